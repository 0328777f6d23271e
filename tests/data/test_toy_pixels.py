"""One coloured pixel."""

import pytest
import torch

from lightning_depth.data.toy_pixels import ToyPixels, sign_accuracy
from lightning_depth.errors import UserError
from lightning_depth.measures.linear_networks import minimum_norm_solution


def test_the_pixels_of_figure_7():
    data = ToyPixels()
    x, y = data.split("train")
    assert len(x) == 2
    assert x.nonzero().tolist() == [[0, 0, 0, 0], [1, 2, 0, 0]]  # red, then blue
    assert y.flatten().tolist() == [-1, 1]
    x, y = data.split("test")
    assert len(x) == 200
    assert x.flatten(1).sum(1).eq(1).all()
    assert x[:, :, :3].sum() + x[:, :, :, :3].sum() == 0
    assert x[:, 2].sum() == x[:, 0].sum() == 100
    assert torch.equal(y.flatten(), x[:, 2].sum((1, 2)) - x[:, 0].sum((1, 2)))
    assert (x.sum((0, 1)) > 0).sum() == 9


def test_the_pixels_of_figure_19():
    x, y = ToyPixels("quadrant", samples_per_class=4, targets="classes").split("train")
    assert x[:, :, 3:].sum() + x[:, :, :, 3:].sum() == 0
    assert torch.equal(y, (x[:, 2].sum((1, 2)) > 0).long())
    for colour in (0, 1):
        assert x[y == colour].sum((0, 1)).max() == 1
        assert (y == colour).sum() == 4


@pytest.mark.parametrize("arguments", [{}, {"positions": "quadrant", "samples_per_class": 4}])
def test_the_minimum_norm_solution_says_nothing_and_a_convolution_everything(arguments):
    data = ToyPixels(**arguments)
    x, y = data.split("train")
    operator = minimum_norm_solution(x.flatten(1), y)
    assert torch.allclose(x.flatten(1).double() @ operator.T, y.double())
    assert torch.allclose(operator, torch.linalg.lstsq(x.flatten(1).double(), y.double(), driver="gelsd").solution.T)
    test, signs = data.split("test")
    scores = test.flatten(1).double() @ operator.T
    assert scores.eq(0).all()
    assert sign_accuracy(scores, signs) == 0.5
    assert sign_accuracy(scores, signs, tie=0.0) == 0
    assert sign_accuracy((test[:, 2] - test[:, 0]).sum((1, 2))[:, None], signs) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"samples_per_class": 2},
        {"positions": "quadrant", "samples_per_class": 10},
        {"size": 5},
        {"samples_per_class": 0},
    ],
)
def test_impossible_pixels_are_mistakes(arguments):
    with pytest.raises(UserError):
        ToyPixels(**arguments)
