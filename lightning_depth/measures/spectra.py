"""Ranks of a spectrum that are real numbers: the effective rank and the stable rank."""

import torch
from jaxtyping import Float
from torch import Tensor


def _shares(singular_values: Tensor) -> Tensor:
    """sigma_i / sigma_1 in float64; a spectrum of zeros (or of no values) stays one."""
    sigma = singular_values.double()
    if not sigma.isfinite().all() or (sigma < 0).any():
        raise ValueError("singular values must be finite and not negative")
    if sigma.shape[-1] == 0:
        return sigma
    largest = sigma.amax(-1, keepdim=True)
    return sigma / torch.where(largest > 0, largest, 1.0)


def effective_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The effective rank: Shannon entropy, in nats, of the normalised singular values (huh2021 Definition 1).

        rho = -sum_i p_i ln p_i,   p_i = sigma_i / sum_j sigma_j,   0 ln 0 = 0

    It is between 0 (one value) and ln k (k equal values), and ln r for r equal values and any number of zeros. Roy &
    Vetterli (2007) call exp(rho) the effective rank: see `exp_effective_rank`. A spectrum of zeros has rank 0 and
    effective rank ln 0 = -inf. Order does not matter; float64 throughout.

    Raises ValueError for a NaN, infinite or negative value. Cost O(k).

    >>> effective_rank(torch.tensor([3.0, 3.0, 0.0])).exp()
    tensor(2., dtype=torch.float64)
    """
    sigma = _shares(singular_values)
    total = sigma.sum(-1, keepdim=True)
    # H(p) = sum_i entr(sigma_i / sum_j sigma_j)
    entropy = torch.special.entr(sigma / torch.where(total > 0, total, 1.0)).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy, -torch.inf)


def exp_effective_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The exponential form of the effective rank, exp(rho), between 1 and k (Roy & Vetterli 2007, Definition 1).

    It is r for r equal values and any number of zeros, and 0 for a spectrum of zeros.

    Raises ValueError for a NaN, infinite or negative value. Cost O(k).

    >>> exp_effective_rank(torch.ones(4))
    tensor(4., dtype=torch.float64)
    """
    return effective_rank(singular_values).exp()


def stable_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    r"""The stable rank, sum_i sigma_i^2 / sigma_1^2 = ||A||_F^2 / ||A||_2^2 (nichani2020 Definition 1).

    It is between 1 and k, and 0 for a spectrum of zeros. Order does not matter; float64 throughout.

    Raises ValueError for a NaN, infinite or negative value. Cost O(k).

    >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
    tensor(1.5000, dtype=torch.float64)
    """
    # sum_i (sigma_i / sigma_1)^2
    return _shares(singular_values).square().sum(-1)
