"""Regression on a low-rank map, and Gaussian inputs."""

import math
import warnings

import pytest
import torch
from torch import nn

from lightning_depth.data.gaussian_inputs import GaussianInputs
from lightning_depth.data.low_rank_least_squares import LowRankLeastSquares, low_rank_map
from lightning_depth.errors import UserError
from lightning_depth.seeds import generator
from tests.data.small import stream


@pytest.mark.parametrize(("m", "n", "rank"), [(32, 32, 24), (5, 9, 1), (9, 5, 5)])
def test_the_map_has_its_rank(m, n, rank):
    values = torch.linalg.svdvals(low_rank_map(m, n, rank, stream()).double())
    assert int((values > 1e-5 * values[0]).sum()) == rank


def test_outputs_have_unit_variance_on_average_over_maps():
    norms = [low_rank_map(16, 32, 8, generator(0, i)).square().sum() for i in range(300)]
    assert float(torch.stack(norms).mean()) == pytest.approx(16, rel=0.03)


def test_all_splits_have_the_same_teacher():
    data = LowRankLeastSquares(seed=3)
    for split in ("train", "val", "test"):
        x, y = data.split(split)
        assert torch.allclose(y, x @ data.teacher.T, atol=1e-5)
    assert not torch.allclose(data.teacher, LowRankLeastSquares(seed=4).teacher)


def population_loss(weight, teacher):
    """E |W x - W* x|^2 / m = |W - W*|_F^2 / m over standard normal x: the exact test loss (`mse`) of the map W."""
    return (weight.double() - teacher.double()).square().sum() / len(weight)


def test_population_loss_is_the_loss_on_many_samples():
    assert float(population_loss(torch.eye(2), torch.zeros(2, 2))) == 1
    data = LowRankLeastSquares(input_dim=8, output_dim=4, task_rank=2, train_samples=5, test_samples=20_000)
    weight = torch.randn(4, 8, generator=stream())
    x, y = data.split("test")
    losses = (x @ weight.T - y).square().mean(1)
    assert float(losses.mean()) == pytest.approx(float(population_loss(weight, data.teacher)), rel=0.03)
    assert population_loss(data.teacher, data.teacher) == 0


def test_the_task_s_effective_rank_is_that_of_the_true_outputs():
    data = LowRankLeastSquares()
    rows = nn.functional.normalize(data.split("val").targets.double())
    shares = torch.linalg.svdvals(rows @ rows.T) / len(rows)  # the Gram matrix of cosines, whose trace is n
    assert data.task_effective_rank == pytest.approx(float(torch.special.entr(shares).sum()), rel=1e-6)
    assert data.task_effective_rank < math.log(24) - 0.1
    assert LowRankLeastSquares(task_rank=1).task_effective_rank == pytest.approx(0, abs=1e-6)


def test_a_unique_solution_is_warned_of():
    with pytest.warns(UserWarning, match="unique"):
        data = LowRankLeastSquares(train_samples=32)
    x, y = (part.double() for part in data.split("train"))
    assert torch.allclose(torch.linalg.lstsq(x, y).solution.T, data.teacher.double(), atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LowRankLeastSquares(train_samples=31)


@pytest.mark.parametrize("arguments", [{"task_rank": 33}, {"task_rank": 0}, {"output_dim": 0}, {"train_samples": 0}])
def test_impossible_least_squares_are_mistakes(arguments):
    with pytest.raises(UserError):
        LowRankLeastSquares(**arguments)


def test_gaussian_inputs_have_a_shape():
    for bad in ((), (3, 0)):
        with pytest.raises(UserError, match="shape="):
            GaussianInputs(shape=bad)
    assert GaussianInputs().split("val").targets.eq(0).all()
