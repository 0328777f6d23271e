"""Representations as rows of numbers: their lengths and directions, at any scale that their dtype can hold."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Squares of numbers below this leave the range of float64, and what they are multiplied by to come back.
_TINY, _UP = 2.0**-500, 2.0**600


class NormalisedRows(NamedTuple):
    """Representations in rows of norm 1, (n, d), float64, and which of them have no direction and are zero, (n)."""

    rows: Tensor
    is_zero: Tensor


def check_finite(values: Float[Tensor, "..."], what: str) -> None:
    """Raise ValueError, that `what` not finite, for NaN or infinity.

    >>> check_finite(torch.ones(2), "logits are")
    """
    if not values.isfinite().all():
        raise ValueError(f"{what} not finite")


def finite_rows(h: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Representations flattened to rows, in float64. Raises ValueError for NaN or infinity.

    >>> finite_rows(torch.ones(1, 2, 2))
    tensor([[1., 1., 1., 1.]], dtype=torch.float64)
    """
    rows = h.flatten(1).double()
    check_finite(rows, "representations are")
    return rows


def lengths(rows: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """The Euclidean norm of each row, in its dtype; squares are summed in float64, in which those of float32 fit.

    (The square of 1e-23 is zero in float32, and that of 1e20 infinite.)

    >>> lengths(torch.tensor([[3e-23, 4e-23]])) * 1e23
    tensor([5.])
    """
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).to(rows.dtype)
    return norms


def unit_rows(rows: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """The rows, each divided by its norm, in their dtype; a zero row stays one.

    >>> unit_rows(torch.tensor([[3e-23, 4e-23], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    norms = lengths(rows)[..., None]
    return rows / torch.where(norms == 0, torch.inf, norms)  # a NaN stays one


def normalised(h: Float[Tensor, "n ..."], centred: bool = True) -> NormalisedRows:
    r"""Representations flattened to rows, each of unit norm: <row_i, row_j> is the correlation of h_i and h_j.

        h_i -> (h_i - mean(h_i)) / ||h_i - mean(h_i)||     (`centred`: Pearson correlation over the entries)
        h_i -> h_i / ||h_i||                               (else: cosine)

    A row of zero norm (a constant representation if `centred`, a zero one else) correlates with nothing: it becomes a
    zero row. Whether a row is constant is decided on its entries, not on the rounded norm.

    Raises ValueError for NaN, or a norm that is not a finite float64 number. Cost: a float64 copy, four passes over it.

    >>> rows, is_zero = normalised(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    >>> rows[0] * 2**0.5, is_zero
    (tensor([-1.,  0.,  1.], dtype=torch.float64), tensor([False,  True]))
    """
    rows, scale = directions(h, centred)
    rows *= scale[:, None]
    return NormalisedRows(rows, scale == 0)


def directions(h: Float[Tensor, "n ..."], centred: bool) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
    """Flattened rows, centred if asked, and what to multiply each by for unit norm: 0 for one that has no direction.

    A row whose squares are too small for float64 is given as a multiple. Raises as `normalised` does.

    >>> directions(torch.tensor([[3.0, 4.0]]), centred=False)
    (tensor([[3., 4.]], dtype=torch.float64), tensor([0.2000], dtype=torch.float64))
    """
    flat = h.flatten(1)
    rows = flat.to(torch.float64, copy=True)
    if centred and rows.shape[1] > 0:
        mean = rows.mean(1)
        rows -= mean[:, None]
    norm = torch.linalg.vector_norm(rows, dim=1)
    tiny = (norm < _TINY).nonzero().squeeze(1)
    rows[tiny] *= _UP
    norm[tiny] = torch.linalg.vector_norm(rows[tiny], dim=1)
    if centred and rows.shape[1] > 0:
        # The mean of equal numbers is rounded, so a constant row can leave a small residue.
        mean[tiny] *= _UP
        suspects = (norm <= 1e-10 * rows.shape[1] ** 0.5 * mean.abs()).nonzero().squeeze(1)
        norm[suspects] *= (flat[suspects] != flat[suspects, :1]).any(1)
    check_finite(norm, "representations are")
    return rows, torch.where(norm > 0, 1 / norm, 0.0)
