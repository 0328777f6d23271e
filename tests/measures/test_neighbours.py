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

from lightning_depth.measures import neighbours
from lightning_depth.measures.collapse import expected_errors
from lightning_depth.measures.neighbours import (
    NearestMeanClassifier,
    NearestNeighbours,
    nearest_mean_predictions,
    neighbour_predictions,
)
from tests.oracles import nearest_mean_predictions_nxc, neighbour_predictions_nxn


def split(n: int, shape: tuple[int, ...], classes: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    means = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(123))
    return spread * torch.randn(n, *shape, generator=generator) + 0.5 * means[y], y


def streamed(
    metric: NearestMeanClassifier | NearestNeighbours,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    batch: int = 7,
) -> float:
    for h, y in zip(train[0].split(batch), train[1].split(batch), strict=True):
        metric.update_prototypes(h, y)
    metric.sync_prototypes()
    for h, y in zip(test[0].split(batch), test[1].split(batch), strict=True):
        metric.update(h, y)
    return float(metric.compute())


def mean_error(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> float:
    metric = NearestMeanClassifier(classes, tuple(train[0].shape[1:]))
    return streamed(metric, train, test)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999), n=st.integers(1, 30), batch=st.integers(1, 31),
    offset=st.sampled_from([0.0, 1.0, 1e6]), scale=st.sampled_from([1.0, 1e-3]),
)  # fmt: skip
def test_the_streamed_nearest_mean_is_that_of_all_differences(
    seed: int, n: int, batch: int, offset: float, scale: float
) -> None:
    (h, y), (x, t) = split(n, (2, 3), 4, seed), split(15, (2, 3), 4, seed + 1)
    h, x = (h.double() * scale + offset).float(), (x.double() * scale + offset).float()
    expected = nearest_mean_predictions_nxc(x, h, y, 4)
    metric = NearestMeanClassifier(4, (2, 3))
    error = streamed(metric, (h, y), (x, t), batch)
    assert error == pytest.approx(float(expected_errors(expected, t).mean()), abs=1e-12)
    assert not expected[:, metric.class_counts == 0].any()


def test_nearest_centroid_of_sklearn() -> None:
    from sklearn.neighbors import NearestCentroid

    (h, y), (x, t) = split(60, (5,), 4, 0), split(80, (5,), 4, 1)
    oracle = NearestCentroid().fit(h.double().numpy(), y.numpy())
    error = float(np.mean(oracle.predict(x.double().numpy()) != t.numpy()))
    assert mean_error((h, y), (x, t), 4) == pytest.approx(error, abs=1e-12)
    assert 0 < error < 0.75


def test_close_together_representations_keep_their_digits() -> None:
    y = torch.arange(30) % 3
    offset = 1e3 * torch.ones(8, dtype=torch.float64)
    separated = offset + 1e-7 * torch.eye(8, dtype=torch.float64)[y]
    assert mean_error((separated, y), (separated, y), 3) == 0


def test_collapsed_representations_have_the_error_of_guessing_and_separated_ones_none() -> None:
    y = torch.arange(30) % 3
    collapsed, separated = 0.1 * torch.ones(30, 4, 2), torch.eye(8)[y].reshape(30, 4, 2)
    for h, error in [(collapsed, 2 / 3), (separated, 0)]:
        assert mean_error((h, y), (h, y), 3) == pytest.approx(error, abs=1e-12)
        found = streamed(NearestNeighbours(4, 3, (4, 2)), (h, y), (h, y))
        assert found == pytest.approx(error, abs=1e-12)


def test_a_class_without_training_samples_is_never_predicted() -> None:
    h, y = torch.tensor([[5.0], [7.0]]), torch.tensor([0, 2])
    x = torch.tensor([[0.0], [9.0]])  # the sum of no sample, 0, is no mean
    assert mean_error((h, y), (x, torch.tensor([0, 2])), 3) == 0
    assert mean_error((h, y), (x, torch.tensor([1, 1])), 3) == 1
    with pytest.raises(ValueError, match="no class"):
        nearest_mean_predictions(x, torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.bool))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999), n=st.integers(1, 16), k=st.integers(1, 16), batch=st.integers(1, 17),
    grid=st.booleans(), offset=st.sampled_from([0.0, 100.0]),
)  # fmt: skip
def test_the_streamed_neighbours_are_those_pair_by_pair(
    seed: int, n: int, k: int, batch: int, grid: bool, offset: float
) -> None:
    (h, y), (x, t) = split(n, (2, 2), 3, seed), split(8, (2, 2), 3, seed + 1)
    if grid:  # many distances tie, and some representations are zero
        h, x = h.round(), x.round()
    h, x, k = h + offset, x + offset, min(k, n)
    expected = neighbour_predictions_nxn(x, h, y, 3, k)
    error = streamed(NearestNeighbours(k, 3, (2, 2)), (h, y), (x, t), batch)
    assert error == pytest.approx(float(expected_errors(expected, t).mean()), abs=1e-12)


@pytest.mark.parametrize("k", [1, 5, 8])
def test_neighbours_of_sklearn(k: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    (h, y), (x, t) = split(60, (5,), 3, 0, spread=0.5), split(80, (5,), 3, 1, spread=0.5)
    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    shares = oracle.fit(h.double().numpy(), y.numpy()).predict_proba(x.double().numpy())
    votes = torch.from_numpy(shares * k).round()
    expected = votes == votes.amax(1, keepdim=True)
    assert torch.equal(neighbour_predictions(x, h, y, 3, k), expected)
    assert 0 < float(expected_errors(expected, t).mean()) < 2 / 3


def test_all_training_samples_as_near_as_the_kth_vote_in_any_order() -> None:
    h = torch.tensor([[1.0, 1.0], [3.0, 3.0], [1.0, -1.0], [3.0, -3.0], [2.0, -2.0]])
    y = torch.tensor([0, 0, 1, 1, 1])
    for order in (torch.arange(5), torch.arange(5).flip(0)):
        found = neighbour_predictions(torch.tensor([[2.0, 0.0]]), h[order], y[order], 2, k=1)
        assert found.tolist() == [[False, True]]


def test_blocks_of_training_samples_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    (h, y), (x, _) = split(30, (6,), 3, 0), split(9, (6,), 3, 1)
    whole = neighbour_predictions(x, h, y, 3, 5)
    monkeypatch.setattr(neighbours, "_BLOCK", 24)
    assert torch.equal(neighbour_predictions(x, h, y, 3, 5), whole)


def test_representations_beyond_the_limit_raise_at_the_sync_and_are_let_go() -> None:
    h, y = split(10, (8,), 3, 0)
    fits = NearestNeighbours(1, 3, (8,), max_bytes=10 * 8 * 4)
    fits.update_prototypes(h, y)
    fits.sync_prototypes()
    halves = NearestNeighbours(1, 3, (8,), max_bytes=10 * 8 * 4)
    halves.update_prototypes(h.half(), y)
    halves.update_prototypes(h.half(), y)
    halves.update(h.half(), y)
    assert halves.compute() == 0
    halves.update_prototypes(h[:1].half(), y[:1])
    assert not halves.train_rows
    with pytest.raises(ValueError, match="336 bytes, more than the limit of 320"):
        halves.sync_prototypes()
    with pytest.raises(ValueError, match="more than the limit"):
        halves.update(h.half(), y)
    halves.reset()
    halves.update_prototypes(h.half(), y)
    halves.sync_prototypes()


def test_a_kept_batch_does_not_follow_its_source() -> None:
    h, y = torch.eye(3), torch.arange(3)
    metric = NearestNeighbours(1, 3, (3,))
    metric.update_prototypes(h, y)
    h.copy_(torch.eye(3)[[1, 2, 0]])
    metric.update(torch.eye(3), y)
    assert metric.compute() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("metric", [NearestMeanClassifier(3, (5,)), NearestNeighbours(1, 3, (5,))])
def test_representations_that_are_not_finite_raise(metric: NearestMeanClassifier, bad: float) -> None:
    h, y = split(4, (5,), 3, 0)
    metric.update_prototypes(h, y)
    h[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        metric.update_prototypes(h, y)
    with pytest.raises(ValueError, match="not finite"):
        metric.update(h, y)


def test_neighbours_that_are_not_finite_raise() -> None:
    h, y = split(4, (5,), 3, 0)
    with pytest.raises(ValueError, match="not finite"):
        neighbour_predictions(h * math.inf, h, y, 3, 1)
    with pytest.raises(ValueError, match="not finite"):
        neighbour_predictions(h, h * math.inf, y, 3, 1)


@pytest.mark.parametrize("kind", ["mean", "neighbours"])
def test_mistaken_calls_raise(kind: str) -> None:
    h, y = split(4, (5,), 3, 0)
    metric = NearestMeanClassifier(3, (5,)) if kind == "mean" else NearestNeighbours(5, 3, (5,))
    with pytest.raises(RuntimeError, match="no training sample"):
        metric.update(h, y)
    with pytest.raises(ValueError, match="shape"):
        metric.update_prototypes(h[:, :4], y)
    with pytest.raises(ValueError, match="labels"):
        metric.update_prototypes(h, y + 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        metric.update_prototypes(h.long(), y)
    metric.update_prototypes(h, y)
    with pytest.raises(RuntimeError, match="no test sample"):
        metric.compute()
    if kind == "neighbours":
        with pytest.raises(ValueError, match="k = 5 neighbours cannot be found among 4"):
            metric.update(h, y)
        with pytest.raises(ValueError, match="at least 1"):
            NearestNeighbours(0, 3, (5,))
    metric.reset()
    with pytest.raises(RuntimeError, match="no training sample"):
        metric.update(h, y)


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    train, test = split(41, (3, 2), 3, 0), split(33, (3, 2), 3, 9)
    metrics = [NearestMeanClassifier(3, (3, 2)), NearestNeighbours(5, 3, (3, 2)), NearestNeighbours(5, 3, (3, 2))]
    shares = [
        slice(rank, None, 2),
        slice(30 * rank, 30 + 11 * rank),
        slice(0, 41 * rank),
    ]  # of the last, none on rank 0
    answers = []
    for metric, share in zip(metrics, shares, strict=True):
        if train[0][share].numel():
            metric.update_prototypes(train[0][share].double(), train[1][share])
        with pytest.raises(RuntimeError, match="sync_prototypes"):
            metric.update(test[0][rank::2], test[1][rank::2])
        metric.sync_prototypes()
        metric.sync_prototypes()
        with pytest.raises(RuntimeError, match="already"):
            metric.update_prototypes(train[0], train[1])
        metric.update(test[0][rank::2], test[1][rank::2])
        answers.append(float(metric.compute()))
    limited = NearestNeighbours(5, 3, (3, 2), max_bytes=25 * 24)  # enough for each rank, not for both
    limited.update_prototypes(train[0][rank::2], train[1][rank::2])
    with pytest.raises(ValueError, match="984 bytes"):
        limited.sync_prototypes()
    torch.save(answers, os.path.join(folder, str(rank)))
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_answer_of_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    train, test = split(41, (3, 2), 3, 0), split(33, (3, 2), 3, 9)
    mean, near = mean_error(train, test, 3), streamed(NearestNeighbours(5, 3, (3, 2)), train, test)
    for rank in range(2):
        assert torch.load(tmp_path / str(rank)) == pytest.approx([mean, near, near], abs=1e-12)
