import itertools
import math
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import Arrays, Source
from lightning_depth.data.base.tensors import ROWS, normal
from lightning_depth.data.cifar import CIFAR10
from lightning_depth.data.embedded_digits import EmbeddedDigits, embedded_digits
from lightning_depth.data.folds import Folds
from lightning_depth.data.gaussian_inputs import GaussianInputs
from lightning_depth.data.ising import (
    Ising,
    bayes_error,
    energy_log_probabilities,
    sample_ising,
)
from lightning_depth.data.k_local import KGlobal, KLocal, k_global_feature, k_local_feature, k_local_stability
from lightning_depth.data.low_rank_least_squares import LowRankLeastSquares, low_rank_map
from lightning_depth.data.patterns import Patterns, patterns, translated
from lightning_depth.data.random_labels import RandomLabels
from lightning_depth.data.single_example import SingleExample
from lightning_depth.data.toy_pixels import ToyPixels, sign_accuracy
from lightning_depth.errors import UserError
from lightning_depth.measures.linear_networks import minimum_norm_solution
from lightning_depth.measures.stability import local_stability
from lightning_depth.models.family import AbstractFamily
from lightning_depth.seeds import generator


def stream(name="test"):
    return generator(0, name)


class Squares(AbstractImageData):
    """Four 8 x 8 training images of each of 10 classes and two test images; a pixel value says which image it is."""

    colours = 1
    stand_in = False

    def find(self):
        return Source("squares", "embedded", "tests", fallback=self.stand_in)

    def read(self, split):
        self.locate()
        each = 4 if split == "train" else 2
        labels = torch.arange(10 * each) % 10
        value = 5 * torch.arange(10 * each) + (1 if split == "train" else 2)
        images = value.to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, self.colours).contiguous()
        return Arrays(labels, [str(i) for i in range(10)], None, images)


class ColourSquares(Squares):
    colours = 3


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


# KLocal and KGlobal


@pytest.mark.parametrize("indices", [[0], [1, 3], [0, 1, 4]])
def test_features_are_those_of_the_definition(indices):
    x = torch.randn(20, 5, generator=stream())
    for row, local, total in zip(x, k_local_feature(x, indices), k_global_feature(x, indices), strict=True):
        assert float(local) == pytest.approx(math.prod(float(row[i]) for i in indices))
        sums = sum(math.prod(float(row[(j + i) % 5]) for i in indices) for j in range(5))
        assert float(total) == pytest.approx(sums)


@pytest.mark.parametrize(("family", "feature"), [(KLocal, k_local_feature), (KGlobal, k_global_feature)])
def test_labels_are_signs_of_features(family, feature):
    data = family(dimension=7, k=2, train_samples=300)
    x, y = data.split("train")
    assert torch.equal(y == 0, feature(x, data.indices) >= 0)
    assert 100 < y.sum() < 200
    signs = family(dimension=7, k=2, train_samples=300, targets="signs").split("train").targets
    assert torch.equal(signs, 1.0 - 2 * y[:, None])


def test_the_class_of_zero_is_the_first():
    assert k_local_feature(torch.zeros(1, 3), [0, 1]) >= 0
    assert KLocal(dimension=3, k=3, train_samples=1).num_classes == 2  # one label alone does not say how many there are


def test_indices_are_given_or_drawn_for_all_splits():
    assert KLocal(dimension=9, k=3, indices=[8, 0, 4]).indices == [0, 4, 8]
    drawn = [KLocal(dimension=50, k=3, seed=seed).indices for seed in range(5)]
    assert all(sorted(set(i)) == i and len(i) == 3 and i[0] >= 0 and i[-1] < 50 for i in drawn)
    assert len({tuple(i) for i in drawn}) == 5
    data = KLocal(dimension=9, k=3)
    for split in ("val", "test"):
        x, y = data.split(split)
        assert torch.equal(y == 0, k_local_feature(x, data.indices) >= 0)


def test_local_stability_of_the_local_label_is_exact():
    assert k_local_stability(2, 1.0) == pytest.approx(0.1007, abs=5e-5)
    x = normal(20_000, (4,), stream())
    strengths = torch.tensor([0.2, 0.7, 1.5])
    for k in (1, 2, 3):
        measured = local_stability(lambda x, k=k: k_local_feature(x, range(k))[:, None], x, strengths)
        for strength, share in zip(strengths.tolist(), measured.tolist(), strict=True):
            chance = k_local_stability(k, strength)
            assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / len(x))


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 6}, {"indices": [1, 1]}, {"indices": [1]}, {"indices": [0, 5]}])
def test_impossible_features_are_mistakes(arguments):
    for family in (KLocal, KGlobal):
        with pytest.raises(UserError, match=r"k=|indices="):
            family(dimension=5, **arguments)


# Ising


def ising_energy(spins):
    """H = sum_i s_i s_{i+1} on a ring (mori2020 Equation 19)."""
    return (spins * spins.roll(-1, dims=1)).sum(dim=1)


def bayes_labels(spins, betas):
    """The most likely of equally likely betas for each configuration, by its energy: `bayes_error` is its error."""
    sites = spins.shape[1]
    chances = energy_log_probabilities(sites, betas)[1]
    return chances.argmax(dim=0)[((ising_energy(spins) + sites) / 4).long()]


def test_the_energy_of_a_ring():
    assert ising_energy(torch.tensor([[1.0, 1.0, 1.0, -1.0]])).tolist() == [0.0]


def configurations(sites):
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=sites)))


@pytest.mark.parametrize(("sites", "beta"), [(2, 0.4), (4, 0.7), (6, -0.5), (8, 0.1)])
def test_energy_distribution_is_that_of_all_configurations(sites, beta):
    every = configurations(sites)
    energy = ising_energy(every)
    weights = torch.softmax(-beta * energy.double(), 0)
    energies, logs = energy_log_probabilities(sites, [beta])
    for value, log in zip(energies, logs[0], strict=True):
        assert float(log.exp()) == pytest.approx(float(weights[energy == value].sum()))


@pytest.mark.parametrize("beta", [0.6, -0.6, 0.0])
def test_samples_have_the_gibbs_distribution(beta):
    n, sites = 40_000, 4
    spins = sample_ising(torch.full((n,), beta), sites, stream())
    numbers = ((spins > 0).long() * 2 ** torch.arange(sites - 1, -1, -1)).sum(1)
    counts = torch.bincount(numbers, minlength=2**sites).double()
    expected = n * torch.softmax(-beta * ising_energy(configurations(sites)).double(), 0)
    chi_squared = ((counts - expected).square() / expected).sum()
    assert chi_squared < 37.7  # 15 degrees of freedom: exceeded once in 1,000 seeds


@pytest.mark.parametrize("beta", [0.1, 0.3, -0.8, 1.5])
def test_samples_have_the_transfer_matrix_s_moments(beta):
    n, d = 4000, 30
    spins = sample_ising(torch.full((n,), beta), d, stream()).double()
    assert spins.abs().eq(1).all()
    # Z = (2 cosh b)^d + (-2 sinh b)^d, and <s_0 s_r> = (t^r + t^(d - r)) / (1 + t^d) with t = -tanh b
    t = -math.tanh(beta)
    for r in (1, 2, 7):
        products = (spins * spins.roll(-r, 1)).mean(1)
        exact = (t**r + t ** (d - r)) / (1 + t**d)
        assert abs(float(products.mean()) - exact) < 4 * float(products.std()) / math.sqrt(n)
    energy = ising_energy(spins)
    exact = d * (t + t ** (d - 1)) / (1 + t**d)
    assert abs(float(energy.mean()) - exact) < 4 * float(energy.std()) / math.sqrt(n)
    energies, logs = energy_log_probabilities(d, [beta])
    mean, square = (float((logs[0].exp() * energies**k).sum()) for k in (1, 2))
    assert mean == pytest.approx(exact)
    assert float(energy.var()) == pytest.approx(square - mean**2, rel=0.12)
    assert spins.mean(0).abs().max() < 4.5 / math.sqrt(n)


@pytest.mark.parametrize(("sites", "betas"), [(4, [0.1, 0.9]), (8, [-0.3, 0.2]), (6, [0.0, 0.5, 1.0])])
def test_bayes_error_is_that_of_the_best_labelling_of_all_configurations(sites, betas):
    energy = ising_energy(configurations(sites)).double()
    chances = torch.stack([torch.softmax(-beta * energy, 0) for beta in betas])
    assert bayes_error(sites, betas) == pytest.approx(1 - float(chances.max(0).values.sum()) / len(betas))
    best = bayes_labels(configurations(sites), betas)
    reached = chances[best, torch.arange(len(best))].sum() / len(betas)
    assert 1 - float(reached) == pytest.approx(bayes_error(sites, betas))


def test_the_best_classifier_makes_the_bayes_error():
    data = Ising(sites=40, betas=[0.1, 0.5], train_samples=20_000)
    x, y = data.split("train")
    error = float((bayes_labels(x, data.betas) != y).double().mean())
    exact = bayes_error(40, data.betas)
    assert abs(error - exact) < 4 * math.sqrt(exact * (1 - exact) / len(y))
    assert abs(int(y.sum()) - 10_000) < 4 * math.sqrt(5000)


def test_bayes_error_does_not_depend_on_the_hamiltonian_s_sign():
    assert bayes_error(500, [-0.1, -0.3]) == pytest.approx(bayes_error(500, [0.1, 0.3]))


@pytest.mark.parametrize("arguments", [{"sites": 7}, {"sites": 0}, {"betas": [0.1]}, {"betas": [0.2, 0.2]}])
def test_impossible_rings_are_mistakes(arguments):
    with pytest.raises(UserError, match=r"sites=|betas="):
        Ising(**arguments)


# ToyPixels


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


# Least squares


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


# RandomLabels


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


# SingleExample and Patterns


def test_the_example_is_the_one_that_is_asked_for():
    x, y = SingleExample(EmbeddedDigits(), labels=["7"], indices=[3]).split("train")
    digits = embedded_digits("train")
    image = digits.images[digits.labels == 7][3, :, :, 0]
    assert torch.equal(x[0, 0], image / 255)
    assert torch.equal(x, y)
    assert x.shape == (1, 1, 28, 28)


def test_few_examples_of_several_classes():
    x, _ = SingleExample(Squares(), labels=[3, 7], indices=[2, 0]).split("train")
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [5 * i + 1 for i in (23, 3, 27, 7)]


def test_other_images_are_of_the_test_split():
    x, y = SingleExample(Squares(classes=[2, 5]), test_samples=15).split("val")
    assert sorted((x[:, 0, 0, 0] * 255).round().tolist()) == [5 * i + 2 for i in (2, 5, 12, 15)]
    assert torch.equal(x, y)
    many = SingleExample(Squares(), test_samples=15)
    assert len(many.split("val").inputs) == len(many.split("val").inputs.unique(dim=0)) == 15


def test_size_and_channels_are_those_of_the_images():
    data = SingleExample(EmbeddedDigits(image_size=14, rgb=True), test_samples=2)
    assert data.input_shape == data.target_shape == (3, 14, 14)
    x = data.split("test").inputs
    assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize(
    ("images", "arguments", "said"),
    [
        ({}, {"labels": ["seven"]}, "There is no class 'seven'"),
        ({}, {"indices": [4]}, "There is no image 4 of class '7': its 4 training images count from 0"),
        ({}, {"indices": [1, 1]}, "must be different"),
        ({}, {"indices": [-1]}, "count from 0"),
        ({}, {"labels": []}, "at least one"),
        ({}, {"labels": [7, "7"]}, "named more than once"),
        ({"samples_per_class": 2}, {}, "samples_per_class of `images` would have no effect"),
        ({"augment": "crop", "val_fraction": 0.1}, {}, "val_fraction, augment"),
    ],
)
def test_impossible_examples_are_mistakes(images, arguments, said):
    with pytest.raises(UserError, match=said):
        SingleExample(Squares(**images), **arguments).setup("fit")


KINDS = ["constant", "horizontal_stripes", "vertical_stripes", "checkerboard", "gradient", "square", "disc", "noise"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(20, 3, 28, 28), (5, 1, 7, 9), (3, 1, 2, 2)])
def test_patterns_are_pictures_of_their_kind(kind, shape):
    x = patterns(kind, shape, stream())
    assert x.shape == shape
    assert x.min() >= 0
    assert x.max() <= 1
    assert x.flatten(1).amax(1).gt(0).all()
    assert torch.equal(x, patterns(kind, shape, stream()))
    assert kind == "noise" or torch.equal(x[:, 0], x[:, -1])
    flat = {
        "constant": [x.amax((2, 3)) - x.amin((2, 3))],
        "horizontal_stripes": [x.diff(dim=3), x * (1 - x)],
        "vertical_stripes": [x.diff(dim=2), x * (1 - x)],
        "checkerboard": [x * (1 - x), x.diff(dim=2).diff(dim=3) % 2],
        "gradient": [1 - (x.amax((2, 3)) - x.amin((2, 3))), x.diff(n=2, dim=2), x.diff(n=2, dim=3)],
        "square": [x * (1 - x)],
        "disc": [x * (1 - x)],
        "noise": [],
    }[kind]
    for zero in flat:
        assert zero.abs().max() < 1e-5 if zero.numel() else True


def test_squares_and_discs_lie_inside():
    square, disc = (patterns(kind, (50, 1, 28, 28), stream())[:, 0] for kind in ("square", "disc"))
    for one in square:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns
        assert 6 <= rows <= 15
        assert 6 <= columns <= 15
    assert (disc <= square).all()  # drawn by the same numbers
    assert 0.7 < float(disc.sum() / square.sum()) < 0.87  # pi / 4


def test_stripes_have_both_values_and_all_widths():
    x = patterns("horizontal_stripes", (200, 1, 28, 28), stream())[:, 0, :, 0]
    assert set((x.diff(dim=1) != 0).sum(1).tolist()) == {27, *range(3, 15)} & set((x.diff(dim=1) != 0).sum(1).tolist())
    assert x.amin(1).eq(0).all()


def test_a_pattern_is_the_same_at_another_resolution():
    small, large = (patterns("gradient", (4, 1, n, n), stream()) for n in (7, 112))
    assert torch.allclose(small[:, :, 0, 0], large[:, :, 0, 0])
    assert torch.allclose(small[:, :, -1, -1], large[:, :, -1, -1])


def test_translations_and_mixtures():
    x = torch.rand(3, 2, 5, 6, generator=stream())
    moved = translated(x, [1, -2, 9], [-3, 4, 0])
    assert torch.equal(moved[0, :, 1:, :3], x[0, :, :-1, 3:])
    assert torch.equal(moved[1, :, :3, 4:], x[1, :, 2:, :2])
    assert moved[0, :, 0].eq(0).all()
    assert moved[2].eq(0).all()
    assert torch.equal(translated(x, [0, 0, 0], [0, 0, 0]), x)
    mixture = Patterns(SingleExample(Squares()), kinds=["mixture"], per_kind=3).split("test").inputs
    others = 2 * mixture - SingleExample(Squares()).split("train").inputs
    tested = SingleExample(Squares(), test_samples=20).split("test").inputs
    assert (torch.cdist(others.flatten(1), tested.flatten(1)).min(dim=1).values < 1e-5).all()
    assert len(others.unique(dim=0)) == 3


def test_patterns_are_shown_in_turn_and_do_not_depend_on_one_another():
    example = SingleExample(EmbeddedDigits())
    data = Patterns(example, per_kind=3)
    x, y = data.split("test")
    assert torch.equal(x, y)
    assert len(x) == len(data.captions) == 3 * 12
    assert torch.equal(data.split("train").inputs, example.split("train").inputs)
    assert torch.equal(x[:1], data.split("train").inputs)
    assert data.captions[3:6] == ["translated"] * 3
    few = Patterns(example, kinds=["disc", "images"], per_kind=3).split("test").inputs
    at = data.captions.index("disc")
    assert torch.equal(few[:3], x[at : at + 3])
    at = data.captions.index("images")
    assert torch.equal(few[3:], x[at : at + 3])


def test_patterns_of_another_size_and_another_data_set():
    data = Patterns(SingleExample(Squares()), foreign=EmbeddedDigits(), per_kind=2, test_size=12)
    assert data.split("val").inputs.shape == (26, 1, 12, 12)
    assert data.input_shape == (1, 8, 8)
    with pytest.raises(UserError, match="rgb"):
        Patterns(SingleExample(Squares()), foreign=ColourSquares(), kinds=["foreign"]).split("test")


@pytest.mark.parametrize("arguments", [{"kinds": []}, {"kinds": ["foreign"]}, {"per_kind": 0}, {"test_size": 1}])
def test_impossible_patterns_are_mistakes(arguments):
    with pytest.raises(UserError):
        Patterns(SingleExample(Squares()), **arguments)
    with pytest.raises(UserError, match="shape="):
        patterns("noise", (1, 1, 0, 3), stream())


def test_missing_images_are_a_mistake(tmp_path):
    with pytest.raises(UserError, match="CIFAR-10 is not under"):
        SingleExample(CIFAR10(root=str(tmp_path), download=False)).prepare_data()
