"""Ranks of a spectrum that are real numbers, its norms, and singular values that can be trained on.

Every measure but the count can be differentiated, with respect to the spectrum and, through `singular_values`, to
a matrix. They raise ValueError for a NaN, infinite or negative value, compute in float64, do not depend on the order of
the values, and cost O(k) for k of them. The gradient is finite everywhere. With respect to a value that is exactly zero
it is zero: the derivative among spectra with the same zeros (the one-sided derivative of the effective rank is +inf
there). Where values tie for the largest it is shared among them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def singular_values(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch k"]:
    r"""The k = min(m, n) singular values, descending, in float64; values that are round-off become exactly zero.

        A = U diag(sigma) V^T,   d loss / d A = U diag(d loss / d sigma) V^T

    A value at most max(m, n) eps sigma_1 (float64's eps) is round-off of the decomposition, and its singular vectors
    are arbitrary: it becomes zero, and its gradient too. So the gradient is finite for repeated and for zero values.

    Raises ValueError for NaN or infinity. Cost O(m n min(m, n)).

    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 0.0]], requires_grad=True)
    >>> singular_values(weight).sum().backward()
    >>> weight.grad
    tensor([[1., 0.],
            [0., 0.]])
    """
    if not matrix.isfinite().all():
        raise ValueError("the matrix is not finite")
    # On wide matrices MKL takes seven times as long as on their transposes.
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
    sigma: Tensor = torch.linalg.svdvals(tall.double())
    round_off = max(matrix.shape[-2:]) * torch.finfo(torch.float64).eps * sigma[..., :1]
    return torch.where(sigma > round_off, sigma, 0.0)


def checked(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
    """The values in float64, without a gradient to those that are zero; ValueError as all measures here."""
    sigma = singular_values.double()
    if not sigma.isfinite().all() or (sigma < 0).any():
        raise ValueError("singular values must be finite and not negative")
    return torch.where(sigma > 0, sigma, 0.0)


def normalised_spectrum(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
    r"""The spectrum divided by its largest value, sigma_i / sigma_1, in float64 (huh2021 Figure 6).

    A spectrum of zeros (or of no values) stays one.

    >>> normalised_spectrum(torch.tensor([4.0, 2.0, 0.0]))
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    sigma = checked(singular_values)
    if sigma.shape[-1] == 0:
        return sigma
    largest = sigma.amax(-1, keepdim=True)
    return sigma / torch.where(largest > 0, largest, 1.0)


def _shares(singular_values: Tensor) -> Tensor:
    """sigma_i / sum_j sigma_j in float64; a spectrum of zeros stays one."""
    sigma = normalised_spectrum(singular_values)
    total = sigma.sum(-1, keepdim=True)
    return sigma / torch.where(total > 0, total, 1.0)


def effective_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The effective rank: Shannon entropy, in nats, of the normalised singular values (huh2021 Definition 1).

        rho = -sum_i p_i ln p_i,   p_i = sigma_i / sum_j sigma_j,   0 ln 0 = 0

    It is between 0 (one value) and ln k (k equal values), ln r for r equal values and any number of zeros, and
    ln 0 = -inf for a spectrum of zeros. Roy & Vetterli (2007) call exp(rho) the effective rank: `exp_effective_rank`.

    >>> effective_rank(torch.tensor([3.0, 3.0, 0.0])).exp()
    tensor(2., dtype=torch.float64)
    """
    p = _shares(singular_values)
    # rho = -sum_i p_i ln p_i; the gradient of entr is infinite at 0, that of p ln 1 is not
    entropy = -(p * torch.where(p > 0, p, 1.0).log()).sum(-1)
    return torch.where((p > 0).any(-1), entropy, -torch.inf)


def exp_effective_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The exponential form of the effective rank, exp(rho), between 1 and k (Roy & Vetterli 2007, Definition 1).

    It is r for r equal values and any number of zeros, and 0 for a spectrum of zeros.

    >>> exp_effective_rank(torch.ones(4))
    tensor(4., dtype=torch.float64)
    """
    return effective_rank(singular_values).exp()


def stable_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The stable rank, sum_i sigma_i^2 / sigma_1^2 = ||A||_F^2 / ||A||_2^2 (nichani2020 Definition 1).

    It is between 1 and k, and 0 for a spectrum of zeros.

    >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
    tensor(1.5000, dtype=torch.float64)
    """
    # sum_i (sigma_i / sigma_1)^2
    return normalised_spectrum(singular_values).square().sum(-1)


def participation_ratio(spectrum: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The participation ratio of the numbers given, (sum_i l_i)^2 / sum_i l_i^2, between 1 and k.

    For that of a covariance pass its eigenvalues, or the squared singular values of the centred data. It is r for r
    equal values and any number of zeros, and 0 for a spectrum of zeros.

    >>> participation_ratio(torch.tensor([2.0, 1.0, 1.0]))
    tensor(2.6667, dtype=torch.float64)
    """
    share = normalised_spectrum(spectrum)
    squares = share.square().sum(-1)
    # (sum_i l_i)^2 / sum_i l_i^2
    return share.sum(-1).square() / torch.where(squares > 0, squares, 1.0)


def threshold_rank(
    singular_values: Float[Tensor, "*batch k"], threshold: int | float, of_largest: bool = False
) -> Int[Tensor, "*batch"]:
    r"""The threshold rank: how many normalised singular values are at least tau (huh2021 Definition 3).

        tau-rank = sum_i 1[p_i >= tau],   p_i = sigma_i / sum_j sigma_j

    A share is of the sum, as in the paper, so no more than 1 / tau values can count, in however large a matrix;
    `of_largest` takes the share sigma_i / sigma_1 instead. At tau = 0 all k values count, zeros too.

    No gradient. Raises ValueError for a threshold outside [0, 1], too.

    >>> sigma = torch.tensor([8.0, 1.0, 1.0, 0.0])
    >>> threshold_rank(sigma, 0.1), threshold_rank(sigma, 0.2), threshold_rank(sigma, 0.125, of_largest=True)
    (tensor(3), tensor(1), tensor(3))
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold lies in [0, 1], not {threshold}")
    shares = normalised_spectrum(singular_values) if of_largest else _shares(singular_values)
    # sum_i 1[p_i >= tau]
    return (shares >= threshold).sum(-1)


def threshold_rank_auc(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The area under the threshold rank over all thresholds, shares being of the largest value (huh2021 Appendix D).

        int_0^1 sum_i 1[sigma_i / sigma_1 >= tau] dtau = sum_i sigma_i / sigma_1 = ||A||_* / ||A||_2

    It is between 1 and k, r for r equal values, and 0 for a spectrum of zeros. The paper gives no formula: with the
    shares of the sum of its Definition 3 the area would be 1 for every matrix.

    >>> threshold_rank_auc(torch.tensor([2.0, 1.0, 1.0]))
    tensor(2., dtype=torch.float64)
    """
    # sum_i sigma_i / sigma_1
    return normalised_spectrum(singular_values).sum(-1)


def schatten_norm(singular_values: Float[Tensor, "*batch k"], p: int | float) -> Float[Tensor, "*batch"]:
    r"""The Schatten p-norm of a matrix with these singular values, (sum_i sigma_i^p)^(1/p), float64.

    p = 1 is the nuclear norm, 2 the Frobenius norm, infinity the spectral norm sigma_1. Raises ValueError for p < 1,
    too.

    >>> sigma = torch.tensor([4.0, 3.0, 0.0])
    >>> [float(schatten_norm(sigma, p)) for p in (1, 2, torch.inf)]
    [7.0, 5.0, 4.0]
    """
    if not p >= 1:
        raise ValueError(f"a norm needs p >= 1, not {p}")
    sigma = checked(singular_values)
    if sigma.shape[-1] == 0:
        return sigma.sum(-1)
    # In units of the largest, so that no p-th power leaves the range of float64; for the gradient it is a constant.
    unit = sigma.detach().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    # (sum_i sigma_i^p)^(1/p)
    norm: Tensor = unit[..., 0] * torch.linalg.vector_norm(sigma / unit, p, dim=-1)
    return norm


def nuclear_norm(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The nuclear norm, sum_i sigma_i, of a matrix with these singular values (huh2021 Definition 5).

    >>> nuclear_norm(torch.tensor([4.0, 3.0, 0.0]))
    tensor(7., dtype=torch.float64)
    """
    return schatten_norm(singular_values, 1)
