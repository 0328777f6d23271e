"""What every made data set is held to."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_depth.data.base.tensors import ROWS, normal
from lightning_depth.data.gaussian_inputs import GaussianInputs
from lightning_depth.data.ising import Ising
from lightning_depth.data.k_local import KGlobal, KLocal
from lightning_depth.data.low_rank_least_squares import LowRankLeastSquares
from lightning_depth.data.patterns import Patterns
from lightning_depth.data.random_labels import RandomLabels
from lightning_depth.data.single_example import SingleExample
from lightning_depth.data.toy_pixels import ToyPixels
from lightning_depth.models.family import AbstractFamily
from tests.data.small import Squares, stream


class Line(AbstractFamily):
    def build(self, shapes):
        layers = [nn.Flatten(), nn.Linear(math.prod(shapes.input), shapes.outputs)]
        return nn.Sequential(*layers)


def made(**seed):
    """One small data set of each kind."""
    return {
        "KLocal": KLocal(dimension=6, train_samples=30, test_samples=20, **seed),
        "KGlobal": KGlobal(dimension=6, k=3, train_samples=30, test_samples=20, targets="signs", **seed),
        "Ising": Ising(sites=8, train_samples=30, test_samples=20, **seed),
        "ToyPixels": ToyPixels(**seed),
        "ToyPixels quadrant": ToyPixels(positions="quadrant", samples_per_class=4, targets="classes", **seed),
        "LowRankLeastSquares": LowRankLeastSquares(**seed),
        "GaussianInputs": GaussianInputs(shape=(3, 4, 4), outputs=2, train_samples=10, test_samples=10, **seed),
        "RandomLabels": RandomLabels(KLocal(dimension=6, train_samples=30, test_samples=20, **seed)),
        "SingleExample": SingleExample(Squares(), labels=[3, "7"], indices=[0, 2], test_samples=15, **seed),
        "Patterns": Patterns(SingleExample(Squares()), **seed),
    }


SHAPES = {
    "KLocal": ((6,), 2, None),
    "KGlobal": ((6,), None, (1,)),
    "Ising": ((8,), 2, None),
    "ToyPixels": ((3, 6, 6), None, (1,)),
    "ToyPixels quadrant": ((3, 6, 6), 2, None),
    "LowRankLeastSquares": ((32,), None, (32,)),
    "GaussianInputs": ((3, 4, 4), None, (2,)),
    "RandomLabels": ((6,), 2, None),
    "SingleExample": ((1, 8, 8), None, (1, 8, 8)),
    "Patterns": ((1, 8, 8), None, (1, 8, 8)),
}
FIXED = {"ToyPixels", "GaussianInputs", "SingleExample", "Patterns"}  # training inputs or targets that no seed changes


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_as_they_are_said_to_be(name):
    data = made()[name]
    assert (data.input_shape, data.num_classes, data.target_shape) == SHAPES[name]
    for split in ("train", "val", "test"):
        inputs, targets = data.split(split)
        assert inputs.dtype == torch.float32
        assert inputs.shape[1:] == data.input_shape
        assert len(inputs) == len(targets)
        assert targets.dtype == (torch.int64 if data.num_classes else torch.float32)
    assert data.train_size == len(data.split("train").targets)
    assert data.source.describe()


@pytest.mark.parametrize("name", SHAPES)
def test_data_are_a_function_of_the_seed_and_splits_differ(name):
    one, same, other = (made(seed=seed)[name] for seed in (1, 1, 2))
    torch.rand(3)
    for split in ("test", "train"):
        for a, b in zip(one.split("train"), same.split("train"), strict=True):
            assert torch.equal(a, b)
        assert split == "test" or torch.equal(one.split(split).inputs, same.split(split).inputs)
    assert not torch.equal(one.split("test").inputs, other.split("test").inputs)
    assert torch.equal(one.split("train").inputs, other.split("train").inputs) == (name in FIXED - {"GaussianInputs"})
    assert not torch.equal(one.split("val").inputs, one.split("test").inputs)


@pytest.mark.parametrize("name", SHAPES)
def test_a_network_takes_two_steps_and_is_validated(name, tmp_path):
    data, model = made()[name], Line()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    assert trainer.global_step == 2
    assert {"train/loss", "val/loss"} <= set(trainer.callback_metrics)
    assert ("val/acc" in trainer.callback_metrics) == (data.num_classes is not None)
    trainer.test(model, data, verbose=False)
    assert math.isfinite(trainer.callback_metrics["test/loss"])


@pytest.mark.parametrize("make", [lambda n: KLocal(dimension=5, train_samples=n), lambda n: Ising(6, train_samples=n)])
def test_a_larger_set_begins_with_the_smaller_one(make):
    small, large = make(100).split("train"), make(ROWS + 100).split("train")
    assert torch.equal(small.inputs, large.inputs[:100])
    assert torch.equal(small.targets, large.targets[:100])


def test_normal_draws_are_standard_normal():
    x = normal(2 * ROWS + 10, (40,), stream()).double()
    assert x.mean().abs() < 4 / math.sqrt(x.numel())
    assert (x.square().mean() - 1).abs() < 4 * math.sqrt(2 / x.numel())
    assert (x.pow(4).mean() - 3).abs() < 4 * math.sqrt(96 / x.numel())
    assert x.flatten().unique().numel() > 0.99 * x.numel()  # float32 repeats a number now and then, blocks would often
