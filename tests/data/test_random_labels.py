"""Random labels on any data."""

import pytest
import torch

from lightning_depth.data.embedded_digits import EmbeddedDigits
from lightning_depth.data.folds import Folds
from lightning_depth.data.ising import Ising
from lightning_depth.data.k_local import KLocal
from lightning_depth.data.low_rank_least_squares import LowRankLeastSquares
from lightning_depth.data.patterns import Patterns
from lightning_depth.data.random_labels import RandomLabels
from lightning_depth.data.single_example import SingleExample
from lightning_depth.errors import UserError
from tests.data.small import Squares


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_fraction_of_the_training_labels_is_random(fraction):
    clean = Ising(sites=4, betas=[0.1, 0.2, 0.3, 0.4], train_samples=4000)
    data = RandomLabels(clean, fraction)
    inputs, labels = data.split("train")
    assert torch.equal(inputs, clean.split("train").inputs)
    changed = float((labels != clean.split("train").targets).double().mean())
    assert changed == pytest.approx(0.75 * fraction, abs=0.03)
    assert torch.bincount(labels).min() > 900
    assert data.split("train").targets is labels
    for split in ("val", "test"):
        assert torch.equal(data.split(split).targets, clean.split(split).targets)


def test_random_labels_of_a_smaller_fraction_are_among_those_of_a_larger_one():
    def labels(fraction, seed=None):
        return RandomLabels(KLocal(train_samples=2000), fraction, seed).split("train").targets

    clean, few, many = labels(0.0), labels(0.2), labels(0.6)
    drawn = few != clean
    assert torch.equal(few[drawn], many[drawn])
    assert (many != clean).sum() > drawn.sum()
    assert not torch.equal(labels(0.6, seed=5), many)


def test_random_labels_change_nothing_else_of_images():
    def digits():
        return EmbeddedDigits(classes=[1, 2], samples_per_class=20, augment="crop", val_fraction=0.1, batch_size=8)

    clean, data = digits(), RandomLabels(digits())
    assert (data.num_classes, data.input_shape, data.validated, data.train_size) == (2, (1, 28, 28), "val", 40)
    for one, other in (
        (clean.train_dataloader(), data.train_dataloader()),
        (clean.val_dataloader(), data.val_dataloader()),
    ):
        batches = list(zip(one, other, strict=True))
        assert all(torch.equal(a, b) for (a, _), (b, _) in batches)
    assert all(torch.equal(a, b) for (_, a), (_, b) in batches)  # of the validation
    assert "100 % of the training labels drawn at random" in data.source.describe()


@pytest.mark.parametrize("wrap", [RandomLabels, lambda data: SingleExample(data.images)])
def test_a_stand_in_is_announced_once(wrap, capsys):
    inner = Squares(batch_size=8)
    inner.stand_in, inner.images = True, inner
    data = wrap(inner)
    data.prepare_data()
    data.setup("fit")
    data.split("test")
    assert capsys.readouterr().err.count("FALLBACK") == 1


def test_only_classes_can_be_randomised():
    with pytest.raises(UserError, match="numbers"):
        RandomLabels(LowRankLeastSquares()).split("train")
    with pytest.raises(UserError, match="fraction="):
        RandomLabels(KLocal(), fraction=1.1)


WRAPPERS = [RandomLabels, Folds, lambda data: SingleExample(data.images), lambda data: Folds(RandomLabels(data))]
WRAPPERS += [lambda data: Patterns(SingleExample(data.images, labels=[0]))]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_stand_in_stands_for_the_data_that_is_wrapped(wrap):
    inner = Squares(batch_size=8)
    inner.images = inner
    assert wrap(inner).source.stands_for == ""
    inner = Squares(batch_size=8)
    inner.stand_in, inner.images = True, inner
    assert wrap(inner).source.stands_for == "Squares"
