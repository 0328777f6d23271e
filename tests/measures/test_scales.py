"""Votes, ties, norms and correlations at extreme scales: an exact change of unit changes no answer."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lightning_depth.measures import (
    channels,
    gram,
    identity,
    jacobians,
    lanczos,
    linear_networks,
    neighbours,
    neural_collapse,
    random_matrices,
    spectra,
    weights,
)
from lightning_depth.measures.collapse import CollapseClassifier, expected_errors
from lightning_depth.measures.operators import frobenius_norm, layer_operator
from lightning_depth.measures.rows import lengths, normalised, unit_rows
from tests.oracles import debiased_hsic, linear_cka, linear_gram, numerical_rank, vote_predictions_nxn

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
# 8e-31 and 1.3e30
UNITS = [2.0**-100, 2.0**100]
CLASSES = 3


def split(seed: int, n: int = 24, d: int = 6) -> tuple[Tensor, Tensor]:
    """Small whole numbers, exact in each dtype; some rows are constant, some zero, and many votes tie."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randint(-3, 4, (n, d), generator=generator).double()
    h[0], h[1] = 2.0, 0.0
    h[2] = torch.tensor([1.0, -1.0, 0.0]).repeat(d // 3)
    return h, torch.arange(n) % CLASSES


def exact_collapse_error(train: Tensor, y: Tensor, test: Tensor, t: Tensor, centred: bool) -> float:
    """zhang2019 3.4 with exact centring, dot products and squared norms; 40 digits would not change a vote here."""

    def exact(row: Tensor) -> list[Fraction]:
        entries = [Fraction(x) for x in row.double().tolist()]
        mean = sum(entries, Fraction()) / len(entries) if centred else Fraction()
        return [x - mean for x in entries]

    def correlation(a: list[Fraction], b: list[Fraction]) -> float:
        squares = sum(x * x for x in a) * sum(x * x for x in b)
        if not squares:
            return 0.0
        product = sum(x * z for x, z in zip(a, b, strict=True))
        return math.copysign(math.sqrt(product * product / squares), product)

    rows = [exact(row) for row in train]
    errors = []
    for x, label in zip(test, t.tolist(), strict=True):
        found = [correlation(exact(x), row) for row in rows]
        votes = [math.fsum(v for v, c in zip(found, y.tolist(), strict=True) if c == k) for k in range(CLASSES)]
        tied = [k for k, vote in enumerate(votes) if vote >= max(votes) - 1e-11]
        errors.append(1 - (label in tied) / len(tied))
    return sum(errors) / len(errors)


def collapse_error(train: Tensor, y: Tensor, test: Tensor, t: Tensor, centred: bool = True) -> float:
    metric = CollapseClassifier(CLASSES, tuple(train.shape[1:]), centred=centred)
    metric.update_prototypes(train, y)
    metric.update(test, t)
    return float(metric.compute())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("unit", [1.0, *UNITS, 1e-30, 1e-23, 1e30])
def test_collapse_is_that_of_exact_arithmetic(dtype: torch.dtype, centred: bool, unit: float) -> None:
    (h, y), (x, t) = split(0), split(1)
    h, x = (unit * h).to(dtype), (unit * x).to(dtype)
    expected = exact_collapse_error(h, y, x, t, centred)
    assert collapse_error(h, y, x, t, centred) == pytest.approx(expected, abs=1e-12)
    nxn = expected_errors(vote_predictions_nxn(x, h, y, CLASSES, centred=centred), t).mean()
    assert float(nxn) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [1e-38, 1e-30, 1e-23, 1e-10, 1.0, 1e20, 1e30])
def test_a_constant_representation_ties_at_every_scale(dtype: torch.dtype, constant: float) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(100) % 10
    train = (constant * (torch.eye(10, 300)[y] + 0.3 * torch.rand(100, 300, generator=generator)).double()).to(dtype)
    metric = CollapseClassifier(10, (300,))
    metric.update_prototypes(train, y)
    same = torch.full((1, 300), constant, dtype=torch.float64).to(dtype)
    for label in range(10):  # each by itself: over all labels, one class for all has the error of guessing too
        metric.update(same, torch.tensor([label]))
        assert float(metric.errors[0]) == pytest.approx(0.9 * (label + 1), abs=1e-12)
    assert metric.zero_rows == 10
    metric.reset()
    metric.update_prototypes(train, y)
    metric.update(train, y)
    assert metric.compute() < 0.1, "the control has a direction"


def test_a_deep_linear_network_is_seen_through_all_its_layers() -> None:
    (h, y), (x, t) = split(2), split(3)
    h, x = h.float(), x.float()
    expected = collapse_error(h, y, x, t)
    for _ in range(100):
        h, x = h / 2, x / 2
        assert collapse_error(h, y, x, t) == expected
    assert h.abs().max() < 1e-29


def wide(h: Tensor) -> nn.Linear:
    """A linear layer, large enough to be iterated on."""
    made = nn.Linear(48, 72, bias=False, dtype=torch.float32 if h.dtype == torch.bfloat16 else h.dtype)
    made.weight.data = torch.kron(h, torch.eye(8, dtype=h.dtype)[:3]).to(made.weight)
    return made


def operator_value(h: Tensor, limit: int) -> Tensor:
    layer = wide(h)
    found = lanczos.operator_norm(layer_operator(layer, (48,)), dense_limit=limit)
    again = lanczos.operator_norm(layer_operator(layer, (48,)), found.start, dense_limit=limit)
    assert float(found.vector.norm()) == pytest.approx(1, abs=1e-5)
    return torch.tensor([found.value, again.value], dtype=torch.float64)


def jacobian_value(h: Tensor, limit: int) -> Tensor:
    layer = wide(h)
    inputs = torch.zeros(2, 48, dtype=layer.weight.dtype)
    found = jacobians.jacobian_norm(layer, inputs, dense_limit=limit)
    assert float(found.vectors[0].norm()) == pytest.approx(1, abs=1e-5)
    return torch.cat([found.values, jacobians.jacobian_norm(layer, inputs, start=h[0, 0] * found.vectors).values])


def neural_collapse_values(h: Tensor) -> Tensor:
    y = split(0)[1]
    metric = neural_collapse.NeuralCollapse(CLASSES, (6,), weight=h[:CLASSES])
    metric.update_prototypes(h, y)
    metric.update(h.flip(0), h[:, :CLASSES])
    return torch.stack(list(metric.compute().values()))


def errors_of(metric: neighbours.NearestMeanClassifier | neighbours.NearestNeighbours, h: Tensor) -> Tensor:
    metric.update_prototypes(h[:12], split(0)[1][:12])
    metric.update(h[12:], split(0)[1][12:])
    return metric.compute()


def images(h: Tensor) -> Tensor:
    return h.reshape(4, 6, 2, 3)


# Each takes representations and gives what no change of unit may change, or with a degree, what grows like unit^degree.
MEASURES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "normalised": (lambda h: normalised(h).rows, 0),
    "cosines": (lambda h: normalised(h, centred=False).rows, 0),
    "lengths": (lambda h: lengths(h.float() if h.dtype == torch.bfloat16 else h).double(), 1),
    "unit_rows": (lambda h: unit_rows(h.double()), 0),
    "cosine_gram": (gram.cosine_gram, 0),
    "linear_gram": (linear_gram, 2),
    "gram_spectrum": (gram.gram_spectrum, 0),
    "gram_spectrum, wide": (lambda h: gram.gram_spectrum(h[:4]), 0),
    "gram_spectrum, linear": (lambda h: gram.gram_spectrum(h[:4], "linear"), 2),
    "gram_effective_rank": (lambda h: gram.gram_effective_rank(h, "linear"), 0),
    "linear_cka": (lambda h: linear_cka(h[:, :3], h[:, 3:]), 0),
    "linear_cka, biased": (lambda h: linear_cka(h[:, :3], h[:, 3:], debiased=False), 0),
    "linear_cka, wide": (lambda h: linear_cka(h[:5], h[5:10]), 0),
    "debiased_hsic": (lambda h: debiased_hsic(*[(p @ p.mT) for p in (h.double(), h.double())]), 4),
    "nearest mean": (lambda h: errors_of(neighbours.NearestMeanClassifier(CLASSES, (6,)), h), 0),
    "neighbours, cosine": (lambda h: errors_of(neighbours.NearestNeighbours(3, CLASSES, (6,)), h), 0),
    "neighbours": (lambda h: errors_of(neighbours.NearestNeighbours(3, CLASSES, (6,)), h), 0),
    "neural collapse": (neural_collapse_values, 0),
    "cosine_to": (lambda h: identity.cosine_to(h, h[2]), 0),
    "mse_to": (lambda h: identity.mse_to(h, h[2]), 2),
    "at_correlation": (lambda h: identity.at_correlation(h[2], torch.tensor([0.5]), h[3:4]).double(), 1),
    "top image": (lambda h: channels.top_singular_image(images(h), h[:2, :3]).image, 0),
    "share of the top image": (lambda h: channels.top_singular_image(images(h)).share, 0),
    "channel": (lambda h: channels.most_correlated_channel(images(h), h[2:4, :3]).correlation, 0),
    "relative_distance": (lambda h: torch.tensor(weights.relative_distance(h[3], h[4])), 0),
    "effective_rank": (lambda h: spectra.effective_rank(spectra.singular_values(h)), 0),
    "stable_rank": (lambda h: spectra.stable_rank(spectra.singular_values(h)), 0),
    "numerical_rank": (lambda h: numerical_rank(spectra.singular_values(h), 24, 6).double(), 0),
    "schatten 2": (lambda h: spectra.schatten_norm(spectra.singular_values(h), 2), 1),
    "schatten 20": (lambda h: spectra.schatten_norm(spectra.singular_values(h), 20), 1),
    "ks_distance": (lambda h: random_matrices.ks_distance(spectra.singular_values(h), 2), 0),
    "operator_norm": (lambda h: operator_value(h, 256), 1),
    "operator_norm, iterated": (lambda h: operator_value(h, 0), 1),
    "jacobian_norm": (lambda h: jacobian_value(h, 256), 1),
    "jacobian_norm, iterated": (lambda h: jacobian_value(h, 0), 1),
    "frobenius_norm": (lambda h: torch.tensor(frobenius_norm(wide(h), (48,)), dtype=torch.float64), 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MEASURES)
def test_an_exact_change_of_unit_changes_no_answer(name: str, dtype: torch.dtype) -> None:
    measure, degree = MEASURES[name]
    h = split(0)[0].to(dtype)
    expected = measure(h)
    assert expected.isfinite().all()
    # the answer is that of float64 at an ordinary scale
    torch.testing.assert_close(
        expected, measure(h.double()), rtol=4e-3 if name == "at_correlation" else 1e-4, atol=1e-6
    )
    for unit in UNITS:
        found = measure((h.double() * unit).to(dtype))
        # LAPACK may scale by itself, to round-off
        torch.testing.assert_close(found / unit**degree, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_a_network_that_is_not_linear_is_refused_at_every_scale(unit: float) -> None:
    linear, bent = nn.Linear(6, 5, bias=False), nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU())
    for parameter in [*linear.parameters(), *bent.parameters()]:
        parameter.data *= unit
    assert linear_networks.linear_operator(linear, (6,)).matrix.any()
    with pytest.raises(linear_networks.NotLinear):
        linear_networks.linear_operator(bent, (6,))


def test_a_row_below_the_squares_of_float64_has_a_direction() -> None:
    h = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    for unit in (2.0**-600, 2.0**-1000):
        for centred in (True, False):
            found, expected = normalised(unit * h, centred), normalised(h, centred)
            assert torch.equal(found.rows, expected.rows)
            assert torch.equal(found.is_zero, expected.is_zero)
