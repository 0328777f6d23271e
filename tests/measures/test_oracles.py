"""Against libraries that others wrote, where their definitions and ours are the same.

WeightWatcher 0.7.7 speaks of eigenvalues, lambda = sigma^2, of the weight in float32 as float64, without its old 1 / N.
- Linear: of the weight itself. Its `norm` is the squared Frobenius norm, its `spectral_norm` the squared spectral norm,
  `matrix_rank` counts with float64's eps, and `entropy` is that of the lambda (not the sigma), as a share of ln rank,
  with 1e-10 added to every share.
- Conv2d: of the out x in slices of the kernel, one for each offset, pooled, each slice divided by sqrt(2) unless
  `conv2d_norm=False`. So the sum of the lambda is that of the flattened kernel that `callbacks.Spectrum` reads, and a
  kernel of one position has the same spectrum; other values differ, and none is the layer's operator.
- `conv2d_fft=True` is no operator either: it drops the imaginary parts, decomposes the 32 x 32 images instead of the
  channels, and keeps the largest. Conv1d: every out channel's in x kernel. Fewer than 8 values: skipped. Not compared.
"""

import logging
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy
import torch
from lightning.pytorch import LightningModule
from sklearn.metrics.pairwise import cosine_similarity, linear_kernel
from torch import Tensor, nn

from lightning_depth import callbacks
from lightning_depth.measures.gram import cosine_gram
from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import frobenius_norm, layer_operator
from lightning_depth.measures.random_matrices import product_density
from lightning_depth.measures.singular_values import operator_stable_rank
from lightning_depth.measures.singular_values import singular_values as operator_singular_values
from lightning_depth.measures.spectra import (
    effective_rank,
    exp_effective_rank,
    participation_ratio,
    schatten_norm,
    singular_values,
    stable_rank,
    threshold_rank,
)
from lightning_depth.measures.weights import relative_distance
from lightning_depth.probes import Look
from tests.oracles import linear_cka, linear_gram, numerical_rank


class Layer(NamedTuple):
    """A layer, its row of WeightWatcher's table, and its eigenvalues there, ascending, with and without its sqrt(2)."""

    module: Any
    row: dict[str, Any]
    eigenvalues: Tensor
    unscaled: Tensor


def low_rank() -> nn.Linear:
    """30 x 24 of rank 5, exact in float32 for its entries are small whole numbers."""
    layer = nn.Linear(24, 30)
    draw = [torch.randint(-3, 4, shape).float() for shape in ((30, 5), (5, 24))]
    layer.weight.data = draw[0] @ draw[1]
    return layer


@pytest.fixture(scope="module")
def weightwatcher() -> Any:
    """The module. On import it sets up the root logger and warns that there is no GPU: neither may leak."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logging.disable(logging.WARNING)
    try:
        import weightwatcher
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)
    return weightwatcher


@pytest.fixture(scope="module")
def layers(weightwatcher: Any) -> dict[str, Layer]:
    torch.manual_seed(0)
    net = nn.Sequential()
    for name, module in {
        "wide": nn.Linear(40, 12),
        "tall": nn.Linear(17, 33),
        "square": nn.Linear(16, 16, bias=False),
        "low_rank": low_rank(),
        "pointwise": nn.Conv2d(12, 9, 1, bias=False),
        "kernel": nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"),
        "strided": nn.Conv2d(12, 10, (3, 5), stride=2),
    }.items():
        net.add_module(name, module)
    watcher = weightwatcher.WeightWatcher(model=net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its power laws have few values to fit
        rows = watcher.analyze(savefig=False).to_dict("records")
    unscaled = weightwatcher.constants.DEFAULT_PARAMS | {"conv2d_norm": False}
    found = {}
    for row in rows:
        eigenvalues = []
        for params in (weightwatcher.constants.DEFAULT_PARAMS, unscaled):
            layer = next(iter(watcher.make_layer_iterator(layers=[row["layer_id"]], params=params)))
            watcher.apply_normalize_Wmats(layer, params)
            watcher.apply_esd(layer, params)
            eigenvalues.append(torch.from_numpy(layer.evals))
        found[row["longname"]] = Layer(net.get_submodule(row["longname"]), row, *eigenvalues)
    assert list(found) == [name for name, _ in net.named_children()]
    return found


DENSE = ["wide", "tall", "square", "low_rank", "pointwise"]
KERNELS = ["pointwise", "kernel", "strided"]


@pytest.mark.parametrize("name", DENSE)
def test_the_spectrum_of_a_weight_matrix_is_weightwatchers(layers: dict[str, Layer], name: str) -> None:
    module, _, _, eigenvalues = layers[name]
    sigma = singular_values(module.weight.flatten(1))
    torch.testing.assert_close(sigma.square().flip(0), eigenvalues, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DENSE)
def test_the_readings_of_spectrum_are_weightwatchers(layers: dict[str, Layer], name: str) -> None:
    module, row, eigenvalues, unscaled = layers[name]
    halved = 2 if name == "pointwise" else 1
    probe = callbacks.Spectrum()
    network = LightningModule()
    network.add_module(name, module)
    look = Look(network, [], "val", 1, 0, 1, lambda split, samples: (Tensor(), Tensor()))
    found = {key: value for _, key, value in probe.measure(look)}
    assert float(eigenvalues.max()) * halved == pytest.approx(float(unscaled.max()), rel=1e-12)
    assert found["spectral_norm"] == pytest.approx(row["sv_max"] * math.sqrt(halved), rel=1e-10)
    assert found["spectral_norm"] ** 2 == pytest.approx(row["spectral_norm"] * halved, rel=1e-10)
    assert found["frobenius_norm"] ** 2 == pytest.approx(row["norm"] * halved, rel=1e-10)
    assert found["stable_rank"] == pytest.approx(row["stable_rank"], rel=1e-10)
    assert found["nuclear_norm"] == pytest.approx(float(unscaled.sqrt().sum()), abs=1e-6)
    # (sum lambda)^2 / sum lambda^2
    expected = float(unscaled.sum() ** 2 / unscaled.square().sum())
    assert found["participation_ratio"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", DENSE)
def test_rank_and_entropy_are_weightwatchers(layers: dict[str, Layer], name: str) -> None:
    module, row, _, _ = layers[name]
    weight = module.weight.detach().flatten(1)
    sigma = singular_values(weight)
    rank = int(numerical_rank(sigma, *weight.shape, dtype=torch.float64))
    assert rank == row["matrix_rank"] == (5 if name == "low_rank" else min(weight.shape))
    assert row["rank_loss"] == min(weight.shape) - rank
    # That of the squares, over ln rank. It adds 1e-10 to each share p, and so -1e-10 (1 + ln p) to the entropy.
    entropy = float(effective_rank(sigma.square())) / math.log(rank)
    assert entropy == pytest.approx(row["entropy"], abs=1e-10 * 30 * len(sigma))


@pytest.mark.parametrize("name", KERNELS)
def test_the_slices_of_a_kernel_are_weightwatchers(layers: dict[str, Layer], name: str) -> None:
    module, row, eigenvalues, unscaled = layers[name]
    slices = module.weight.detach().flatten(2).permute(2, 0, 1)
    sigma = singular_values(slices).flatten().sort().values
    torch.testing.assert_close(sigma.square(), unscaled, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sigma.square() / 2, eigenvalues, rtol=1e-10, atol=1e-12)
    assert float(stable_rank(sigma)) == pytest.approx(row["stable_rank"], rel=1e-10)
    assert int(numerical_rank(sigma, *slices.shape[1:])) == row["matrix_rank"] == len(sigma)
    # The squares of the flattened kernel have the same sum, and but for one position only that.
    flattened = singular_values(module.weight.detach().flatten(1))
    assert float(schatten_norm(flattened, 2)) ** 2 == pytest.approx(2 * row["norm"], rel=1e-10)
    same = flattened[0] <= 1.05 * math.sqrt(2) * row["sv_max"]
    assert bool(same) is (name == "pointwise")


@pytest.mark.parametrize("name", ["wide", "tall", "low_rank", "pointwise"])
def test_the_operator_norm_is_weightwatchers_where_a_position_is_by_itself(layers: dict[str, Layer], name: str) -> None:
    module, row, _, unscaled = layers[name]
    shape = (12, 7, 5) if name == "pointwise" else (6, module.in_features)
    positions = math.prod(shape) // module.weight.shape[1]
    largest = math.sqrt(float(unscaled.max()))
    assert operator_norm(layer_operator(module, shape)).value == pytest.approx(largest, rel=1e-6)
    assert operator_stable_rank(module, shape) == pytest.approx(positions * row["stable_rank"], rel=1e-6)
    assert frobenius_norm(module, shape) ** 2 == pytest.approx(positions * float(unscaled.sum()), rel=1e-6)
    every = unscaled.sqrt().flip(0).repeat_interleave(positions)
    torch.testing.assert_close(operator_singular_values(module, shape), every, rtol=1e-9, atol=1e-9)


def test_a_circular_convolution_holds_weightwatchers_slices_at_every_position(layers: dict[str, Layer]) -> None:
    module, row, _, unscaled = layers["kernel"]
    shape = (8, 6, 6)
    sigma = operator_singular_values(module, shape)
    assert float(sigma.square().sum()) == pytest.approx(36 * 2 * row["norm"], rel=1e-6)
    assert frobenius_norm(module, shape) ** 2 == pytest.approx(36 * float(unscaled.sum()), rel=1e-6)
    # The norm is that of no slice and of no sum of slices, but between the largest and the sum of all.
    slices = torch.linalg.matrix_norm(module.weight.detach().flatten(2).permute(2, 0, 1), 2)
    assert float(slices.max()) == pytest.approx(math.sqrt(2) * row["sv_max"], rel=1e-6)
    norm = operator_norm(layer_operator(module, shape), rtol=1e-6).value
    assert math.sqrt(2) * row["sv_max"] * 1.1 < norm < 0.9 * float(slices.sum())
    assert norm == pytest.approx(float(sigma[0]), rel=1e-5)


def test_the_distance_of_weights_is_weightwatchers(weightwatcher: Any) -> None:
    torch.manual_seed(1)
    before, after = torch.randn(2, 9, 14)
    distance = weightwatcher.WeightWatcher().matrix_distance(after.numpy(), before.numpy())
    assert relative_distance(after, before) == pytest.approx(distance / float(before.norm()), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (9, 50)])
def test_biased_linear_cka_is_weightwatchers_of_centred_features(weightwatcher: Any, n: int, d: int) -> None:
    torch.manual_seed(2)
    x, noise = torch.randn(2, n, d, dtype=torch.float64)
    y = (x + 0.5 * noise).relu()
    centred = [(a - a.mean(0)).numpy() for a in (x, y)]
    # It gives the root, of features as they are: ||X^T Y|| / sqrt(||X^T X|| ||Y Y^T||).
    expected = weightwatcher.WeightWatcher().matrix_distance(*centred, method="cka") ** 2
    assert float(linear_cka(x + 3, y, debiased=False)) == pytest.approx(expected, rel=1e-10)
    assert 0.2 < expected < 0.95


def test_one_random_factor_has_weightwatchers_quarter_circle(weightwatcher: Any) -> None:
    sigma, expected = weightwatcher.RMT_Util.quarter_circle_pdf(0.01, 1.9, grid_size=0.01)
    curve = product_density(1, points=4000)
    ours = np.interp(sigma, curve.log_sigma.exp().numpy(), curve.log_density.exp().numpy())
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_effective_and_participation_ratio_are_scipys() -> None:
    torch.manual_seed(3)
    sigma = torch.cat([torch.rand(20, dtype=torch.float64).exp(), torch.zeros(4, dtype=torch.float64)])
    assert float(effective_rank(sigma)) == pytest.approx(scipy.stats.entropy(sigma.numpy()), rel=1e-13)
    assert float(exp_effective_rank(sigma)) == pytest.approx(math.exp(scipy.stats.entropy(sigma.numpy())), rel=1e-13)
    # A participation ratio is Hill's number of order 2, the inverse of Simpson's index.
    shares = sigma / sigma.sum()
    assert float(participation_ratio(sigma)) == pytest.approx(1 / float(shares.square().sum()), rel=1e-13)


def test_the_gram_matrices_are_sklearns() -> None:
    torch.manual_seed(4)
    features = torch.randn(11, 6).relu()
    features[3] = 0
    rows = features.double().numpy()
    np.testing.assert_allclose(cosine_gram(features).numpy(), cosine_similarity(rows), rtol=0, atol=1e-14)
    np.testing.assert_allclose(linear_gram(features).numpy(), linear_kernel(rows), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
def test_the_threshold_rank_is_numpys_matrix_rank_at_a_relative_tolerance(threshold: float) -> None:
    torch.manual_seed(5)
    matrix = torch.randn(12, 9, dtype=torch.float64)
    expected = np.linalg.matrix_rank(matrix.numpy(), rtol=threshold)
    assert int(threshold_rank(singular_values(matrix), threshold, of_largest=True)) == expected
