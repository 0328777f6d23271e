"""Singular values of a product of random square matrices, as their size grows (huh2021 Appendices A, F and G).

W = W_L ... W_1, each n x n with independent Gaussian entries of mean 0 and variance 1/n, and n -> infinity. The law has
mean square 1. For L = 1 it is the quarter circle; the square of a singular value follows the Fuss-Catalan law.

All raise ValueError unless 1 <= num_factors <= `MOST_FACTORS`, num_factors being L, and where a sigma is NaN, infinite
or negative.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_depth.measures.spectra import checked

# Rounding errors grow like num_factors * 1e-16, in log sigma as in the effective rank.
MOST_FACTORS = 10**6
# exp(-750) is below every double, and 750 / 2**64 below the spacing of doubles at 1.
_LEAST_LOG, _BISECTIONS = -750.0, 64


class DensityCurve(NamedTuple):
    """Points of a density (per unit of sigma) by rising sigma, in natural logarithms: at depth both leave float64."""

    log_sigma: Tensor
    log_density: Tensor


def _check_factors(num_factors: int) -> None:
    if not 1 <= num_factors <= MOST_FACTORS:
        raise ValueError(f"the number of factors must lie in 1 ... {MOST_FACTORS}, not {num_factors}")


def _log_sines(t: Tensor, rest: Tensor, L: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of sin phi, sin(L phi) and sin((L + 1) phi) at pi - (L + 1) phi = pi t, exact where they are small.

    rest = 1 - t is given too.
    """
    phi = torch.pi * rest / (L + 1)
    # sin((L + 1) phi) = sin psi and sin(L phi) = sin(psi + phi): the smaller of the two angles has the smaller error.
    psi = torch.pi * torch.minimum(t, rest)
    L_phi = torch.minimum(L * phi, torch.pi * t + phi)
    return phi.sin().log(), L_phi.sin().log(), psi.sin().log()


def _log_sigma(phi: Tensor, L_phi: Tensor, psi: Tensor, L: int) -> Tensor:
    # sigma^2 = sin^(L + 1)((L + 1) phi) / (sin phi sin^L(L phi))
    return 0.5 * ((L + 1) * psi - phi - L * L_phi)


def product_density(num_factors: int, points: int = 1000) -> DensityCurve:
    r"""The density of the singular values of a product of L random matrices, as a curve (huh2021 Equation 5).

        sigma(phi) = sqrt(sin^(L+1)((L+1) phi) / (sin(phi) sin^L(L phi))),   0 < phi < pi / (L+1)
        p(sigma(phi)) = (2 / pi) sqrt(sin^3(phi) sin^(L-2)(L phi) / sin^(L-1)((L+1) phi))

    It lies on 0 < sigma < sqrt((L+1)^(L+1) / L^L), integrates to 1 and has mean square 1; for L > 1 it is unbounded at
    0. The points are spaced so that about as much probability lies between any two neighbours, whatever L.

    Raises ValueError unless points >= 1. Both logarithms are exact to about 1e-15 num_factors. Cost O(points).

    >>> curve = product_density(1, points=3)  # the quarter circle, p = sqrt(4 - sigma^2) / pi
    >>> curve.log_density.exp() * torch.pi / (4 - (2 * curve.log_sigma).exp()).sqrt()
    tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    _check_factors(num_factors)
    if points < 1:
        raise ValueError(f"a curve needs a point or more, not {points}")
    L = num_factors
    # u = psi / (psi + phi) is the share of probability below sigma, for large L.
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    whole = (L + 1) * (1 - u) + u
    phi, L_phi, psi = _log_sines(u / whole, (L + 1) * (1 - u) / whole, L)
    # p = (2 / pi) sqrt(sin^3(phi) sin^(L - 2)(L phi) / sin^(L - 1)((L + 1) phi))
    log_density = math.log(2 / math.pi) + 0.5 * (3 * phi + (L - 2) * L_phi - (L - 1) * psi)
    return DensityCurve(_log_sigma(phi, L_phi, psi, L), log_density)


def product_cdf(sigma: Float[Tensor, "*shape"], num_factors: int) -> Float[Tensor, "*shape"]:
    r"""The probability of a singular value of at most sigma in a product of L random matrices, n -> infinity.

        F(sigma(phi)) = 1 - ((L+1) phi - L sin(phi) sin((L+1) phi) / sin(L phi)) / pi

    This is the integral of huh2021 Equation 5 (its p(sigma) |sigma'| is the derivative), with sigma(phi) as in
    `product_density`, solved for phi by bisection. Exact to 1e-14, relatively so where F is small; float64.
    Cost: 64 evaluations of sigma(phi).

    >>> product_cdf(torch.tensor([0.0, 1.0, 2.0]), 1)  # the quarter circle: 1/3 + sqrt(3) / (2 pi) lies below 1
    tensor([0.0000, 0.6090, 1.0000], dtype=torch.float64)
    """
    _check_factors(num_factors)
    L = num_factors
    log_sigma = checked(sigma).log()
    low = torch.full_like(log_sigma, _LEAST_LOG)
    high = torch.zeros_like(log_sigma)
    for _ in range(_BISECTIONS):
        log_t = (low + high) / 2
        below = _log_sigma(*_log_sines(log_t.exp(), -log_t.expm1(), L), L) < log_sigma
        low, high = torch.where(below, log_t, low), torch.where(below, high, log_t)
    log_t = (low + high) / 2
    phi, L_phi, psi = _log_sines(log_t.exp(), -log_t.expm1(), L)
    # F = (psi + L sin(phi) sin(psi) / sin(L phi)) / pi with psi = pi - (L + 1) phi: a sum of positive terms.
    return log_t.exp() + L / torch.pi * (phi + psi - L_phi).exp()


def differential_effective_rank(num_factors: int) -> float:
    r"""The differential effective rank of a product of L random matrices, in nats (huh2021 Definition 6).

        rho = -int (sigma / c) ln(sigma / c) p(sigma) dsigma,   c = int sigma p(sigma) dsigma

    c is the mean, as the definition says (huh2021 Equations 8 to 10 put the largest sigma in its place, and lose a
    sign). The moments of sigma^2 are the Fuss-Catalan numbers, M(s) = Gamma((L+1) s + 1) / (Gamma(s+1) Gamma(L s + 2)),
    for real s too; so, with psi the digamma function,

        c = M(1/2),   rho = ln c - M'(1/2) / (2 M(1/2))
          = ln c - ((L+1) psi((L+3) / 2) - psi(3/2) - L psi(L/2 + 2)) / 2

    It is 4/3 + ln(2 / (3 pi)) for L = 1 and falls with L, near 1.332 - ln L for large L. Exact to about 1e-15 L.
    Cost O(1).

    >>> math.isclose(differential_effective_rank(1), 4 / 3 + math.log(2 / (3 * math.pi)))
    True
    """
    _check_factors(num_factors)
    L = num_factors
    # c = M(1/2) = Gamma((L + 3) / 2) / (Gamma(3/2) Gamma(L/2 + 2))
    log_mean = math.lgamma((L + 3) / 2) - math.lgamma(1.5) - math.lgamma(L / 2 + 2)
    psi: list[float] = torch.special.digamma(torch.tensor([(L + 3) / 2, 1.5, L / 2 + 2], dtype=torch.float64)).tolist()
    # rho = ln c - E[sigma ln sigma] / c
    return log_mean - ((L + 1) * psi[0] - psi[1] - L * psi[2]) / 2


def asymptotic_effective_rank(n: int, num_factors: int) -> float:
    r"""What `effective_rank` tends to for a product of L random n x n matrices, in nats: ln n + rho(L).

    The sum over n singular values, each with share sigma / (n c), becomes ln n plus the integral of Definition 6
    (huh2021 Appendix F): see `differential_effective_rank`. The scale of the entries cancels. Cost O(1). Raises
    ValueError unless n >= 1.

    >>> round(asymptotic_effective_rank(256, 1), 4), round(asymptotic_effective_rank(256, 8), 4)
    (5.3283, 4.4291)
    """
    if n < 1:
        raise ValueError(f"a matrix has a row or more, not {n}")
    return math.log(n) + differential_effective_rank(num_factors)


def ks_distance(singular_values: Float[Tensor, "*batch k"], num_factors: int) -> Float[Tensor, "*batch"]:
    r"""The Kolmogorov-Smirnov distance of a spectrum from the law of a product of L random matrices, in [0, 1].

        D = sup_x |F_k(x) - F(x)|,   F_k(x) = (number of sigma_i / s <= x) / k,   s^2 = sum_i sigma_i^2 / k

    F is `product_cdf`. The law has mean square 1, so the spectrum is divided by its root mean square and the scale of
    the weights cancels. Singular values below k eps sigma_1 (eps of the dtype given) are round-off, so the supremum is
    over the x above that. (At L = 32 the law itself puts a tenth of them below 1e-16 sigma_1.)

    A spectrum of zeros has distance 1. The singular values of one matrix repel each other: D is far smaller than for
    independent draws, 2 to 3.5 / k (measured for k = 32 to 256, L to 64), and the tables of the Kolmogorov-Smirnov
    test do not apply. Raises ValueError for no value. Cost: that of `product_cdf`, and a sort.

    >>> ks_distance(torch.tensor([1.0, 1.0]), 1)
    tensor(0.6090, dtype=torch.float64)
    """
    _check_factors(num_factors)
    sigma = checked(singular_values).sort(-1).values
    k = sigma.shape[-1]
    if k == 0:
        raise ValueError("no singular values")
    largest = sigma[..., -1:]
    sigma = sigma / torch.where(largest > 0, largest, 1.0)
    cut = k * torch.finfo(singular_values.dtype).eps * sigma[..., -1:]
    resolved = sigma > cut
    rms = sigma.square().mean(-1, keepdim=True).sqrt()
    rms = torch.where(rms > 0, rms, 1.0)
    law = product_cdf(sigma / rms, num_factors)
    # sup |F_k - F| is taken just below or at a singular value, or at the cut.
    ranks = torch.arange(1, k + 1, dtype=torch.float64, device=sigma.device)
    steps = torch.maximum((ranks / k - law).abs(), ((ranks - 1) / k - law).abs())
    at_cut = ((~resolved).double().mean(-1) - product_cdf(cut / rms, num_factors).squeeze(-1)).abs()
    return torch.maximum(torch.where(resolved, steps, 0.0).amax(-1), at_cut)
