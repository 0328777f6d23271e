import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_depth.measures.random_matrices import (
    MOST_FACTORS,
    asymptotic_effective_rank,
    differential_effective_rank,
    ks_distance,
    product_cdf,
    product_density,
)
from lightning_depth.measures.spectra import effective_rank

FACTORS = [1, 2, 3, 4, 7, 8, 16, 32]


def product_spectrum(n: int, num_factors: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Singular values of a product of Gaussian matrices with entries of variance 1/n."""
    generator = torch.Generator().manual_seed(seed)
    product = torch.eye(n, dtype=torch.float64)
    for _ in range(num_factors):
        product = torch.randn(n, n, dtype=torch.float64, generator=generator) @ product / n**0.5
    return torch.linalg.svdvals(product.to(dtype))


def printed_law(num_factors: int, nodes: int = 20000) -> tuple[Tensor, Tensor]:
    """sigma(phi), and p(sigma) |dsigma| by finite differences, with the formulas of huh2021 Equation 5 as printed."""
    L, sin = num_factors, torch.sin
    # Points crowd at pi / (L + 1), where sigma vanishes.
    phi = torch.pi / (L + 1) * (1 - torch.linspace(0, 1, nodes + 1, dtype=torch.float64)[1:-1].flip(0) ** 2)

    def sigma(phi: Tensor) -> Tensor:
        return (sin((L + 1) * phi) ** (L + 1) / (sin(phi) * sin(L * phi) ** L)).sqrt()

    middle = (phi[1:] + phi[:-1]) / 2
    density = 2 / torch.pi * (sin(middle) ** 3 * sin(L * middle) ** (L - 2) / sin((L + 1) * middle) ** (L - 1)).sqrt()
    return sigma(middle), density * -sigma(phi).diff()


@pytest.mark.parametrize("num_factors", [1, 2, 3, 4, 8])
def test_the_law_as_printed_integrates_to_one_and_has_the_closed_form_rank(num_factors: int) -> None:
    sigma, mass = printed_law(num_factors)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    assert float((sigma**2 * mass).sum()) == pytest.approx(1, abs=1e-5)
    mean = (sigma * mass).sum()
    share = sigma / mean
    rho = differential_effective_rank(num_factors)
    assert float(-(share * share.log() * mass).sum()) == pytest.approx(rho, abs=1e-4)
    # The control: with the largest sigma in place of the mean (huh2021 Equation 10) it is another number.
    share = sigma / sigma.max()
    assert float(-(share * share.log() * mass).sum()) != pytest.approx(rho, abs=0.1)


@pytest.mark.parametrize("num_factors", FACTORS)
def test_the_density_is_the_slope_of_the_distribution(num_factors: int) -> None:
    log_sigma, log_density = product_density(num_factors, points=4000)
    assert (log_sigma.diff() > 0).all()
    # int p dsigma = int p sigma dln(sigma), by the trapezoidal rule
    integrand = (log_density + log_sigma).exp()
    steps = (integrand[1:] + integrand[:-1]) / 2 * log_sigma.diff()
    cdf = product_cdf(log_sigma.exp(), num_factors)
    torch.testing.assert_close(steps.cumsum(0), (cdf - cdf[0])[1:], rtol=0, atol=1e-4)
    assert cdf[0] < 1e-3
    assert cdf[-1] > 1 - 1e-3
    second_moment = ((2 * log_sigma[1:]).exp() + (2 * log_sigma[:-1]).exp()) / 2 @ cdf.diff()
    assert float(second_moment) == pytest.approx(1, abs=1e-3)


def test_one_factor_is_the_quarter_circle() -> None:
    sigma = torch.linspace(0, 2, 101, dtype=torch.float64)
    expected = (sigma * (4 - sigma**2).sqrt() / 2 + 2 * (sigma / 2).arcsin()) / torch.pi
    torch.testing.assert_close(product_cdf(sigma, 1), expected, rtol=1e-13, atol=1e-15)
    curve = product_density(1, points=50)
    density = (4 - (2 * curve.log_sigma).exp()).sqrt() / torch.pi
    torch.testing.assert_close(curve.log_density, density.log(), rtol=0, atol=1e-12)
    assert (product_cdf(sigma, 2) - expected).abs().max() > 0.1  # the control


@settings(max_examples=30, deadline=None)
@given(num_factors=st.integers(1, 200), sigma=st.lists(st.floats(0, 30), min_size=2, max_size=6))
def test_a_distribution_rises_from_zero_to_one(num_factors: int, sigma: list[float]) -> None:
    values = torch.tensor(sorted(sigma), dtype=torch.float64)
    cdf = product_cdf(values, num_factors)
    assert (cdf.diff() >= -1e-14).all()
    assert ((cdf >= 0) & (cdf <= 1 + 1e-14)).all()
    largest = math.exp(0.5 * ((num_factors + 1) * math.log(num_factors + 1) - num_factors * math.log(num_factors)))
    ends = product_cdf(torch.tensor([0.0, largest, 2 * largest], dtype=torch.float64), num_factors)
    assert ends.tolist() == pytest.approx([0, 1, 1], abs=1e-12)


@pytest.mark.parametrize("num_factors", [1, 2, 4, 8])
def test_gaussian_products_follow_their_law_and_no_other(num_factors: int) -> None:
    sigma = product_spectrum(192, num_factors)
    assert float(sigma.square().mean()) == pytest.approx(1, abs=0.1)
    assert ks_distance(sigma, num_factors) < 4 / 192
    assert ks_distance(100 * sigma, num_factors) == pytest.approx(float(ks_distance(sigma, num_factors)), abs=1e-9)
    for other in {max(num_factors - 1, 1), num_factors + 1} - {num_factors}:
        assert ks_distance(sigma, other) > 6 / 192
    expected = asymptotic_effective_rank(192, num_factors)
    assert float(effective_rank(sigma)) == pytest.approx(expected, abs=0.03)
    assert float(effective_rank(sigma)) != pytest.approx(asymptotic_effective_rank(192, num_factors + 1), abs=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_off_among_the_singular_values_does_not_count(dtype: torch.dtype) -> None:
    sigma = product_spectrum(192, 32, dtype=dtype)
    assert (sigma < 192 * torch.finfo(dtype).eps * sigma[0]).sum() > 10
    assert ks_distance(sigma, 32) < 4 / 192
    assert ks_distance(sigma, 16) > 10 / 192


def test_distance_by_brute_force() -> None:
    sigma = torch.tensor([0.3, 0.9, 0.9, 1.5], dtype=torch.float64)
    unit = sigma / sigma.square().mean().sqrt()
    grid = torch.linspace(0, 3, 30001, dtype=torch.float64)
    empirical = (unit[:, None] <= grid).double().mean(0)
    for num_factors in (1, 3):
        expected = (empirical - product_cdf(grid, num_factors)).abs().max()
        assert float(ks_distance(sigma, num_factors)) == pytest.approx(float(expected), abs=1e-3)


def test_degenerate_spectra_are_far_from_every_law() -> None:
    rank_one = torch.zeros(50)
    rank_one[0] = 1
    batch = torch.stack([torch.zeros(50), rank_one])
    for num_factors in (1, 4):
        distances = ks_distance(batch, num_factors).tolist()
        assert distances[0] == 1
        assert distances[1] > 0.9


def test_effective_rank_falls_with_every_factor() -> None:  # huh2021 Theorem 1
    ranks = [differential_effective_rank(L) for L in range(1, 200)]
    assert all(deeper < shallower for shallower, deeper in itertools.pairwise(ranks))
    assert ranks[0] == pytest.approx(4 / 3 + math.log(2 / (3 * math.pi)), rel=1e-14)
    assert asymptotic_effective_rank(7, 3) == pytest.approx(math.log(7) + ranks[2], rel=1e-15)


def test_double_precision_holds_to_the_largest_number_of_factors() -> None:
    # ln c and digamma by Stirling's series: rho + ln L -> 1/2 + digamma(3/2) / 2 - ln Gamma(3/2) + ln 2
    limit = 0.5 + (2 - 0.5772156649015329 - 2 * math.log(2)) / 2 - math.lgamma(1.5) + math.log(2)
    assert differential_effective_rank(MOST_FACTORS) + math.log(MOST_FACTORS) == pytest.approx(limit, abs=1e-5)
    log_sigma, log_density = product_density(MOST_FACTORS, points=100)
    assert log_sigma.isfinite().all()
    assert log_density.isfinite().all()
    largest = 0.5 * (1 + math.log(MOST_FACTORS + 1))  # sigma_max^2 -> e (L + 1)
    assert log_sigma[-1] < largest
    assert product_cdf(torch.tensor([1.01 * math.exp(largest)]), MOST_FACTORS) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("num_factors", [0, -1, MOST_FACTORS + 1])
def test_a_number_of_factors_out_of_range_raises(num_factors: int) -> None:
    sigma = torch.ones(3)
    for call in (
        lambda: product_density(num_factors),
        lambda: product_cdf(sigma, num_factors),
        lambda: differential_effective_rank(num_factors),
        lambda: asymptotic_effective_rank(32, num_factors),
        lambda: ks_distance(sigma, num_factors),
    ):
        with pytest.raises(ValueError, match="number of factors"):
            call()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_value_that_is_no_singular_value_raises(bad: float) -> None:
    for measure in (product_cdf, ks_distance):
        with pytest.raises(ValueError, match="finite and not negative"):
            measure(torch.tensor([1.0, bad]), 2)


def test_nothing_to_measure_raises() -> None:
    with pytest.raises(ValueError, match="no singular values"):
        ks_distance(torch.zeros(0), 1)
    with pytest.raises(ValueError, match="a row or more"):
        asymptotic_effective_rank(0, 1)
    with pytest.raises(ValueError, match="a point or more"):
        product_density(1, points=0)
