import math
import os
import socket

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_depth.measures.collapse import (
    CollapseClassifier,
    expected_errors,
    predictions,
)
from lightning_depth.measures.rows import normalised
from tests.oracles import vote_predictions_nxn


def split(n: int, shape: tuple[int, ...], classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    means = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(123))
    return (torch.randn(n, *shape, generator=generator) + 0.3 * means[y]).relu(), y


def streamed(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], batch: int, **options: bool
) -> CollapseClassifier:
    metric = CollapseClassifier(3, tuple(train[0].shape[1:]), **options)
    for h, y in zip(train[0].split(batch), train[1].split(batch), strict=True):
        metric.update_prototypes(h, y)
    for h, y in zip(test[0].split(batch), test[1].split(batch), strict=True):
        metric.update(h, y)
    return metric


def test_the_inner_product_of_normalised_rows_is_pearson_correlation() -> None:
    h, _ = split(6, (2, 3, 4), 3, 0)
    rows, is_zero = normalised(h)
    np.testing.assert_allclose((rows @ rows.mT).numpy(), np.corrcoef(h.flatten(1).double().numpy()), atol=1e-14)
    assert not is_zero.any()
    cosine = torch.nn.functional.cosine_similarity(h[0].flatten().double(), h[1].flatten().double(), dim=0)
    rows, _ = normalised(h, centred=False)
    assert float(rows[0] @ rows[1]) == pytest.approx(float(cosine), abs=1e-14)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e30, 1e-30])
@pytest.mark.parametrize("d", [1, 3, 1000])
def test_a_constant_representation_becomes_a_zero_row(constant: float, d: int) -> None:
    h = torch.full((1, d), constant)
    rows, is_zero = normalised(h)
    assert is_zero.all()
    assert not rows.any()
    assert normalised(h, centred=False).is_zero.item() == (constant == 0)
    if d > 1:  # one float32 step away it has a direction again
        h[0, 0] = torch.nextafter(h[0, 0], torch.tensor(math.inf))
        rows, is_zero = normalised(h)
        assert not is_zero.any()
        assert float(rows.norm()) == pytest.approx(1, rel=1e-6)


def plain_error(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """zhang2019 3.4 word by word: the argmax of the mean of one-hot labels weighted by correlations."""
    wrong = 0
    for x, y in zip(*test, strict=True):
        weights = [np.corrcoef(x.flatten().double(), z.flatten().double())[0, 1] for z in train[0]]
        mean = np.mean([w * np.eye(3)[label] for w, label in zip(weights, train[1], strict=True)], axis=0)
        wrong += int(mean.argmax() != y)
    return wrong / len(test[1])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_streamed_error_is_that_of_the_definition(seed: int) -> None:
    train, test = split(30, (2, 3, 3), 3, seed), split(20, (2, 3, 3), 3, seed + 50)
    error = float(streamed(train, test, 7).compute())
    assert error == pytest.approx(plain_error(train, test), abs=1e-12)
    assert 0 < error < 1


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), n=st.integers(1, 40), batch=st.integers(1, 41), centred=st.booleans(),
    balanced=st.booleans(), offset=st.sampled_from([0.0, 1.0, 1000.0]),
)  # fmt: skip
def test_the_streamed_votes_are_the_n_by_n_ones(
    seed: int, n: int, batch: int, centred: bool, balanced: bool, offset: float
) -> None:
    (h, y), (x, t) = split(n, (3, 2, 2), 3, seed), split(25, (3, 2, 2), 3, seed + 1)
    h, x = h + offset, x + offset
    expected = vote_predictions_nxn(x, h, y, 3, centred=centred, balanced=balanced)
    metric = streamed((h, y), (x, t), batch, centred=centred)
    error = metric.compute_balanced() if balanced else metric.compute()
    assert float(error) == pytest.approx(float(expected_errors(expected, t).mean()), abs=1e-12)
    counts = metric.class_counts.clamp_min(1) if balanced else n
    mean_votes = normalised(x, centred).rows @ metric.prototypes.flatten(1).mT / counts
    assert torch.equal(predictions(mean_votes), expected)


def test_total_and_balanced_votes_are_two_definitions() -> None:
    h = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [0.0, 1.0, 0.0]])
    y = torch.tensor([0, 0, 0, 1])
    x, t = torch.tensor([[0.6, 0.9, 0.0]]), torch.tensor([1])
    assert float(streamed((h, y), (x, t), 9, centred=False).compute()) == 1
    assert float(streamed((h, y), (x, t), 9, centred=False).compute_balanced()) == 0


def test_ties_count_as_a_random_choice() -> None:
    train = torch.eye(3), torch.tensor([0, 1, 2])
    test = torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), torch.tensor([2, 0, 2])
    metric = streamed(train, test, 2)
    assert float(metric.compute()) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3, abs=1e-12)
    assert metric.zero_rows == 1


def test_collapsed_representations_have_the_error_of_guessing_and_separated_ones_none() -> None:
    y = torch.arange(30) % 3
    collapsed = torch.ones(30, 4, 2, 2)
    assert float(streamed((collapsed, y), (collapsed, y), 8).compute()) == pytest.approx(2 / 3)
    separated = torch.eye(3)[y] + 0.01 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    assert float(streamed((separated, y), (separated, y), 8).compute()) == 0


def test_memory_layout_does_not_matter() -> None:
    train, test = split(30, (4, 3, 2), 3, 0), split(20, (4, 3, 2), 3, 9)
    metric = CollapseClassifier(3, (4, 3, 2))
    metric.update_prototypes(train[0][:15].to(memory_format=torch.channels_last), train[1][:15])
    metric.update_prototypes(train[0][15:], train[1][15:])
    plain = streamed(train, test, 30)
    torch.testing.assert_close(metric.prototypes, plain.prototypes, rtol=0, atol=1e-13)
    metric.update(test[0].to(memory_format=torch.channels_last), test[1])
    assert torch.equal(metric.compute(), plain.compute())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("centred", [True, False])
def test_representations_that_are_not_finite_raise(bad: float, centred: bool) -> None:
    h, y = split(4, (5,), 3, 0)
    metric = CollapseClassifier(3, (5,), centred=centred)
    metric.update_prototypes(h, y)
    h[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        metric.update_prototypes(h, y)
    with pytest.raises(ValueError, match="not finite"):
        metric.update(h, y)


def test_mistaken_calls_raise() -> None:
    h, y = split(4, (5,), 3, 0)
    metric = CollapseClassifier(3, (5,))
    with pytest.raises(RuntimeError, match="no training sample"):
        metric.update(h, y)
    with pytest.raises(ValueError, match="shape"):
        metric.update_prototypes(h[:, :4], y)
    with pytest.raises(ValueError, match="labels"):
        metric.update_prototypes(h, y + 3)
    metric.update_prototypes(h, y)
    with pytest.raises(RuntimeError, match="no test sample"):
        metric.compute()


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    train, test = split(41, (3, 2, 2), 3, 0), split(33, (3, 2, 2), 3, 9)
    metric = CollapseClassifier(3, (3, 2, 2))
    metric.update_prototypes(train[0][rank::2], train[1][rank::2])
    refused = False
    try:
        metric.update(test[0][rank::2], test[1][rank::2])
    except RuntimeError:
        refused = True
    metric.sync_prototypes()
    metric.sync_prototypes()  # once is enough, twice does no harm
    metric.update(test[0][rank::2], test[1][rank::2])
    error = metric.compute()
    answer = {
        "error": error,
        "balanced": metric.compute_balanced(),
        "prototypes": metric.prototypes,
        "refused": refused,
    }
    torch.save(answer, os.path.join(folder, str(rank)))
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_answer_of_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    whole = streamed(split(41, (3, 2, 2), 3, 0), split(33, (3, 2, 2), 3, 9), 50)
    for rank in range(2):
        answer = torch.load(tmp_path / str(rank))
        assert answer["refused"]
        torch.testing.assert_close(answer["prototypes"], whole.prototypes, rtol=0, atol=1e-13)
        assert float(answer["error"]) == pytest.approx(float(whole.compute()), abs=1e-12)
        assert float(answer["balanced"]) == pytest.approx(float(whole.compute_balanced()), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999), n=st.integers(1, 40), batch=st.integers(1, 41),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_one_pass_gives_the_errors_of_both_definitions(seed: int, n: int, batch: int, dtype: torch.dtype) -> None:
    (h, y), (x, t) = split(n, (3, 2), 3, seed), split(25, (3, 2), 3, seed + 1)
    metric = streamed((h.to(dtype), y), (x.to(dtype), t), batch)
    expected = [vote_predictions_nxn(x.to(dtype), h.to(dtype), y, 3, balanced=b) for b in (False, True)]
    for error, predicted in zip((metric.compute(), metric.compute_balanced()), expected, strict=True):
        assert float(error) == pytest.approx(float(expected_errors(predicted, t).mean()), abs=1e-12)


def test_the_two_errors_of_one_pass_differ_where_classes_do_in_size() -> None:
    h = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [0.0, 1.0, 0.0]])
    x, t = torch.tensor([[0.6, 0.9, 0.0], [0.9, 0.1, 0.0]]), torch.tensor([1, 1])
    metric = streamed((h, torch.tensor([0, 0, 0, 1])), (x, t), 9, centred=False)
    assert metric.compute() == 1
    assert metric.compute_balanced() == 0.5
    with pytest.raises(RuntimeError, match="no test sample"):
        CollapseClassifier(3, (5,)).compute_balanced()
