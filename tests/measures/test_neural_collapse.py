import math
import os
import socket

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_depth.measures.neural_collapse import (
    NeuralCollapse,
    disagreements,
    equiangularity,
    equinorm,
    maximal_angle,
    normalised_variance,
    self_duality,
    within_class_variability,
)
from tests.oracles import class_means, normalised_variance_by_pairs, within_class_variability_dxd

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric NeuralCollapse was called before")


def split(n: int, d: int, classes: int, seed: int, noise: float = 1.0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(2), torch.randint(classes, (n - 2,), generator=generator)])
    means = torch.randn(classes, d, generator=torch.Generator().manual_seed(123), dtype=torch.float64)
    return noise * torch.randn(n, d, generator=generator, dtype=torch.float64) + means[y] + offset, y


def weight(classes: int, d: int) -> Tensor:
    return torch.randn(classes, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def streamed(
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor] | None = None,
    classes: int = 4,
    batch: int = 7,
    w: Tensor | None = None,
    nc1: bool = True,
) -> NeuralCollapse:
    metric = NeuralCollapse(classes, tuple(train[0].shape[1:]), weight=w, nc1=nc1)
    for h, y in zip(train[0].split(batch), train[1].split(batch), strict=True):
        metric.update_prototypes(h, y)
    metric.sync_prototypes()
    if held_out is not None:
        for h, logits in zip(held_out[0].split(batch), held_out[1].split(batch), strict=True):
            metric.update(h, logits)
    return metric


def values(metric: NeuralCollapse) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def published(h: np.ndarray, y: np.ndarray, W: np.ndarray) -> dict[str, float]:
    """By the authors' steps, in numpy; columns are classes. Balanced or not, all classes present."""
    C, N = len(W), len(y)
    M = np.stack([h[y == c].mean(0) for c in range(C)], axis=1)
    Sw = sum(np.outer(x - M[:, c], x - M[:, c]) for x, c in zip(h, y, strict=True)) / N
    M_ = M - M.mean(1, keepdims=True)
    Sb = M_ @ M_.T / C
    norms = np.linalg.norm(M_, axis=0)
    cosines = (M_ / norms).T @ (M_ / norms)
    apart = ~np.eye(C, dtype=bool)
    variance = [np.mean(np.sum((h[y == c] - M[:, c]) ** 2, axis=1)) for c in range(C)]
    pairs = [
        (variance[a] + variance[b]) / (2 * np.sum((M[:, a] - M[:, b]) ** 2))
        for a in range(C)
        for b in range(C)
        if a != b
    ]
    return {
        "nc1": np.trace(Sw @ np.linalg.pinv(Sb, rcond=1e-10)) / C,
        "nc2_equinorm": np.std(norms) / np.mean(norms),
        "nc2_equiangularity": np.std(cosines[apart]),
        "nc2_maximal_angle": np.mean(np.abs(cosines[apart] + 1 / (C - 1))),
        "nc3": np.linalg.norm(W.T / np.linalg.norm(W) - M_ / np.linalg.norm(M_)) ** 2,
        "cdnv": np.mean(pairs),
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999), n=st.integers(2, 40), d=st.integers(1, 9), batch=st.integers(1, 41),
    offset=st.sampled_from([0.0, 30.0]),
)  # fmt: skip
def test_the_streamed_numbers_are_those_of_the_published_steps(
    seed: int, n: int, d: int, batch: int, offset: float
) -> None:
    train, w = split(n, d, 5, seed, offset=offset), weight(5, d)
    metric = streamed(train, classes=5, batch=batch, w=w)
    seen = train[1].unique()
    assert metric.classes_seen == len(seen)
    found = values(metric)
    # Classes without samples are left out: the oracle gets the others, renumbered.
    expected = published(train[0].numpy(), torch.searchsorted(seen, train[1]).numpy(), w[seen].numpy())
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-9)
    means, _ = class_means(*train)
    slow = {"nc1": within_class_variability_dxd(*train), "cdnv": normalised_variance_by_pairs(*train)}
    assert {name: float(value) for name, value in slow.items()} == pytest.approx(
        {name: found[name] for name in slow}, rel=1e-7, abs=1e-9
    )
    assert float(self_duality(means, w[seen])) == pytest.approx(found["nc3"], abs=1e-9)


def simplex(classes: int, per_class: int = 3) -> tuple[Tensor, Tensor]:
    y = torch.arange(classes).repeat(per_class)
    return (torch.eye(classes, classes + 2) - 1 / classes)[y], y


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_a_simplex_is_collapsed_in_every_sense_and_noise_is_not(classes: int) -> None:
    h, y = simplex(classes)
    h = h + 3.0  # a shift of all features moves no centred mean
    w = 0.1 * torch.eye(classes, classes + 2) - 0.1 * torch.eye(classes, classes + 2).mean(0)
    found = values(streamed((h, y), (h, torch.eye(classes)[y]), classes, w=w))
    assert len(found) == 7
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-6)
    assert found["nc1"] == found["cdnv"] == found["nc4_held_out"] == 0
    noisy = h + 0.6 * torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
    found = values(streamed((noisy, y), (h, torch.eye(classes)[(y + 1) % classes]), classes, w=w.roll(1, 0)))
    for name, value in found.items():
        # Two classes are always opposite each other.
        assert value > 0.01 or (classes == 2 and name.startswith("nc2")), name


def test_known_numbers_away_from_collapse() -> None:
    # Orthogonal classes around the origin: all cosines are -1 or 0 in place of -1/3.
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert float(maximal_angle(means)) == pytest.approx((2 * 2 / 3 + 4 / 3) / 6)
    assert float(equiangularity(means)) == pytest.approx(math.sqrt(2 / 6 * 4 / 6))
    assert equinorm(means) == 0
    assert float(self_duality(means, -2 * means)) == pytest.approx(4)
    # Isotropic variance v in d dimensions about +-a e_1: only e_1 counts for NC1, all of d for CDNV.
    a, v, d = 2.0, 0.25, 6
    axes = math.sqrt(v * d) * torch.cat([torch.eye(d), -torch.eye(d)])
    h = torch.cat([axes + a * torch.eye(d)[0], axes - a * torch.eye(d)[0]])
    found = values(streamed((h, torch.arange(4 * d) // (2 * d)), classes=2))
    assert found["nc1"] == pytest.approx(v / a**2 / 2, rel=1e-6)
    assert found["cdnv"] == pytest.approx(v * d / (2 * a) ** 2, rel=1e-6)


def test_samples_weigh_alike_in_nc1_and_classes_in_cdnv() -> None:
    h = torch.tensor([[-3.0], [-1.0], [2.0], [2.0], [2.0], [2.0]])
    y = torch.tensor([0, 0, 1, 1, 1, 1])
    found = values(streamed((h, y)))
    assert found["nc1"] == pytest.approx((2 / 6) / 4 / 2)
    assert found["cdnv"] == pytest.approx((1 + 0) / 2 / 16)


def test_a_pair_of_identical_means_is_infinite_for_cdnv_and_does_not_count_for_nc1() -> None:
    h = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [6.0, 1.0], [6.0, -1.0]])
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    found = values(streamed((h, y)))
    assert found["cdnv"] == math.inf == float(normalised_variance_by_pairs(h, y))
    assert found["nc1"] == pytest.approx((1 / 3) / 24, rel=1e-12)
    assert float(within_class_variability_dxd(h, y)) == pytest.approx(found["nc1"], rel=1e-12)


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_identical_class_means_are_infinite_with_variance_and_undefined_without(spread: float, constant: float) -> None:
    y = torch.arange(24) % 3
    deviations = torch.tensor([1.0, 2.0, -1.0, -2.0]).repeat_interleave(6)[:, None]  # each class: the same, mean zero
    h = constant + spread * deviations * torch.ones(1, 5)
    w = weight(3, 5)
    found = values(streamed((h, y), classes=3, batch=5, w=w))
    for name in ("nc1", "cdnv"):
        assert found[name] == math.inf if spread else math.isnan(found[name])
    for slow in (within_class_variability_dxd(h, y), normalised_variance_by_pairs(h, y)):
        assert slow == math.inf if spread else slow.isnan()
    for name in ("nc2_equinorm", "nc2_equiangularity", "nc2_maximal_angle", "nc3"):
        assert math.isnan(found[name])


def test_round_off_is_no_class_structure() -> None:
    # Each class has the same samples in another order, so its float64 sums differ in the last digits.
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(50, 4, generator=generator, dtype=torch.float64) + 1.0
    h = torch.cat([one[torch.randperm(50, generator=generator)] for _ in range(4)])
    y = torch.arange(200) // 50
    found = values(streamed((h, y), batch=200))
    assert found["nc1"] == found["cdnv"] == math.inf
    h[:, 0] += 1e-9 * y  # but a difference that is no round-off is one
    found = values(streamed((h, y), batch=200))
    assert 1e12 < found["nc1"] < math.inf
    assert 1e12 < found["cdnv"] < math.inf


def test_a_class_mean_at_the_global_mean_has_no_angle() -> None:
    means = torch.tensor([[-1.0], [0.0], [1.0]])
    assert equiangularity(means).isnan()
    assert maximal_angle(means).isnan()
    assert float(equinorm(means)) == pytest.approx(math.sqrt(2 / 9) / (2 / 3))


def test_nearly_identical_representations_keep_their_digits() -> None:
    h, y = split(40, 6, 4, 0)
    expected = values(streamed((h, y)))
    found = values(streamed((1e4 + 1e-4 * h, y)))
    assert found == pytest.approx(expected, rel=1e-3)  # 1e-4 beside 1e4 leaves eight digits


def test_more_classes_than_features() -> None:
    train = split(60, 3, 12, 0)
    classes = len(train[1].unique())
    found = values(streamed(train, classes=12))
    assert classes > 4
    assert found["nc1"] == pytest.approx(float(within_class_variability_dxd(*train)), rel=1e-9)


def test_nc4_is_the_share_decided_otherwise_than_by_the_nearest_training_mean() -> None:
    train = torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([0, 0, 1])
    x = torch.tensor([[5.0], [6.0], [9.0], [5.5]])
    logits = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [2.0, 2.0, 2.0]])
    # Agrees; disagrees; class 2 has no training sample; two ties of two in three.
    assert values(streamed(train, (x, logits), 3))["nc4_held_out"] == pytest.approx((0 + 1 + 1 + 2 / 3) / 4)
    tied = torch.tensor([[True, True, False]])
    assert disagreements(tied, tied.roll(1, 1)).tolist() == [0.75]


def test_numbers_that_were_not_asked_for_are_left_out() -> None:
    train = split(20, 3, 4, 0)
    whole = values(streamed(train, (train[0], weight(20, 4)), w=weight(4, 3)))
    assert values(streamed(train, nc1=False)) == {
        name: value for name, value in whole.items() if name.startswith("nc2") or name == "cdnv"
    }
    with pytest.raises(ValueError, match="5000 features exceed max_features = 4096"):
        NeuralCollapse(4, (50, 10, 10))
    NeuralCollapse(4, (50, 10, 10), nc1=False)


def test_images_are_flattened() -> None:
    train = split(20, 12, 4, 0)
    images = train[0].reshape(20, 3, 2, 2).to(memory_format=torch.channels_last), train[1]
    assert values(streamed(images)) == pytest.approx(values(streamed(train)), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_input_that_is_not_finite_raises(bad: float) -> None:
    h, y = split(6, 3, 4, 0)
    metric = streamed((h, y))
    logits = weight(6, 4)
    broken, broken_logits = h.clone(), logits.clone()
    broken[1, 2] = broken_logits[3, 1] = bad
    for call in (
        lambda: metric.update_prototypes(broken, y),
        lambda: metric.update(broken, logits),
        lambda: metric.update(h, broken_logits),
        lambda: within_class_variability_dxd(broken, y),
        lambda: normalised_variance_by_pairs(broken, y),
        lambda: equinorm(broken),
        lambda: equiangularity(broken),
        lambda: maximal_angle(broken),
        lambda: self_duality(broken, h),
        lambda: self_duality(h, broken),
        lambda: normalised_variance(torch.ones(6), broken),
        lambda: within_class_variability(torch.eye(3), broken),
    ):
        with pytest.raises(ValueError, match="not finite"):
            call()


def test_mistaken_calls_raise() -> None:
    h, y = split(6, 3, 4, 0)
    metric = NeuralCollapse(4, (3,))
    with pytest.raises(RuntimeError, match="no training sample"):
        metric.update(h, weight(6, 4))
    with pytest.raises(ValueError, match="shape"):
        metric.update_prototypes(h[:, :2], y)
    with pytest.raises(ValueError, match="labels"):
        metric.update_prototypes(h, y + 4)
    with pytest.raises(jaxtyping.TypeCheckError):
        metric.update_prototypes(h.long(), y)
    metric.update_prototypes(h, y * 0)
    with pytest.raises(ValueError, match="logits have shape"):
        metric.update(h, weight(6, 3))
    with pytest.raises(ValueError, match="shape"):
        metric.update(h[:, :2], weight(6, 4))
    metric.update(h, weight(6, 4))
    for call in (
        metric.compute,
        lambda: class_means(h, y * 0),
        lambda: within_class_variability_dxd(h, y * 0),
        lambda: equinorm(h[:1]),
    ):
        with pytest.raises(ValueError, match="two classes or more, not 1"):
            call()
    with pytest.raises(ValueError, match="weight has shape"):
        NeuralCollapse(4, (3,), weight=weight(3, 4))
    with pytest.raises(NotImplementedError, match="sync_prototypes"):
        metric.merge_state(NeuralCollapse(4, (3,)))
    metric.reset()
    assert metric.classes_seen == 0


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    (h, y), (x, _) = split(41, 6, 4, 0, offset=5.0), split(33, 6, 4, 9, offset=5.0)
    metric = NeuralCollapse(4, (6,), weight=weight(4, 6))
    h, y = h[y.argsort()], y.sort().values  # neither rank has every class
    share = slice(0, 15) if rank == 0 else slice(15, 41)
    metric.update_prototypes(h[share], y[share])
    with pytest.raises(RuntimeError, match="sync_prototypes"):
        metric.update(x, weight(33, 4))
    with pytest.raises(RuntimeError, match="sync_prototypes"):
        NeuralCollapse(4, (6,)).compute()
    metric.sync_prototypes()
    metric.sync_prototypes()
    with pytest.raises(RuntimeError, match="already"):
        metric.update_prototypes(h, y)
    metric.update(x[rank::2], weight(33, 4)[rank::2])
    torch.save({"seen": metric.classes_seen, **values(metric)}, os.path.join(folder, str(rank)))
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_answer_of_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    train, (x, _) = split(41, 6, 4, 0, offset=5.0), split(33, 6, 4, 9, offset=5.0)
    whole = values(streamed(train, (x, weight(33, 4)), w=weight(4, 6)))
    assert len(whole) == 7
    for rank in range(2):
        assert torch.load(tmp_path / str(rank)) == pytest.approx({"seen": 4, **whole}, rel=1e-12)
