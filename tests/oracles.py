"""Slow references that tests alone call, and the one check that every iterative measure is held to."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

# (map, rtol, most steps) -> (largest singular value, steps taken)
Iteration = Callable[[Tensor, float, int], tuple[float, int]]


class Convergence(NamedTuple):
    """How many draws missed the tolerance, and the steps of the slowest."""

    missed: int
    steps: int


@cache
def _bases(size: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(size, size, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [torch.linalg.qr(draw).Q for draw in draws]


def map_with(sigma: Tensor, seed: int) -> Tensor:
    """A square matrix with the singular values `sigma` and random singular vectors, float64."""
    left, right = _bases(len(sigma), seed)
    return left * sigma.double() @ right.mT


def spectrum(kind: str, rtol: float, seed: int, size: int = 300) -> Tensor:
    """Singular values with the largest 1: `close` and `repeated` are the hard ones, with g = 1.5 to 3."""
    g = 1.5 + 1.5 * float(torch.rand((), generator=torch.Generator().manual_seed(1000 + seed)))
    leading = {
        "alone": [1.0],
        "close": [1.0, 1 - g * rtol],
        "three close": [1.0, 1 - g * rtol, 1 - 2 * g * rtol],
        "closer than rtol": [1.0, 1 - 0.1 * rtol],
        "repeated": [1.0, 1.0, 1.0],
        "second repeated": [1.0, 1 - g * rtol, 1 - g * rtol],
    }[kind]
    rest = torch.linspace(0.9, 0, size - len(leading), dtype=torch.float64)
    return torch.cat([torch.tensor(leading, dtype=torch.float64), rest])


def convergence(
    iteration: Iteration, kind: str, rtol: float, budget: int, draws: int, dtype: torch.dtype = torch.float64
) -> Convergence:
    """What `iteration` made of maps whose largest singular value is known: it may take `budget` steps."""
    missed, most = 0, 0
    for seed in range(draws):
        matrix = map_with(spectrum(kind, rtol, seed), seed).to(dtype)
        value, steps = iteration(matrix, rtol, budget)
        # the cast rounds the singular values by no more than the norm of its errors
        missed += not abs(value - 1) <= rtol + 4 * torch.finfo(dtype).eps
        most = max(most, steps)
    return Convergence(missed, most)
