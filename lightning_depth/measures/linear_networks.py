"""The operator of a linear network, and the minimum-norm solution it is compared with (nichani2020 section 4)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_depth.measures.precision import full_float32
from lightning_depth.measures.rows import check_finite, lengths
from lightning_depth.measures.weights import relative_distance


class NotLinear(ValueError):
    """A network that is no affine map."""


class LinearMap(NamedTuple):
    """The affine map x -> matrix x + offset on flattened tensors.

    `matrix` is m x n for n inputs and m outputs; `offset`, m, is the answer to zero.
    """

    matrix: Tensor
    offset: Tensor


# Lengths of the random points, in units of the basis vectors' entries, at which a network must be affine.
_SCALES = (0.1, 1.0, 10.0, 100.0)
# Allowed error of the matrix at these points, in units of round-off.
_ROUND_OFF = 1000


@torch.no_grad()
def linear_operator(
    network: nn.Module, input_shape: tuple[int, ...], chunk: int = 256, max_bytes: int = 2**31
) -> LinearMap:
    r"""The whole matrix of a linear network, by feeding it the identity basis (nichani2020 section 4.1).

        A e_i = f(e_i) - f(0),   offset = f(0)

    `input_shape` is that of one input, without batch dimension; inputs and outputs are flattened, n and m numbers. The
    network runs as it stands (set it to eval mode), in the dtype of its parameters, float32 if it has none: pass
    `network.double()` for float64. Afterwards f(x) = A x + f(0) is checked at random points of four lengths, to
    round-off; torch's global generator is not used.

    Raises NotLinear, a ValueError, for a network that is not linear (most by a coarse test beforehand); ValueError for
    one that is not in float32 or float64, or returns NaN or infinity, and for a matrix of more than `max_bytes`. Cost:
    n forward passes in batches of `chunk`; m n numbers.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data, layer.bias.data = torch.tensor([[3.0, 4.0]]), torch.tensor([5.0])
    >>> linear_operator(layer, (2,))
    LinearMap(matrix=tensor([[3., 4.]]), offset=tensor([5.]))
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, at least one is needed")
    example = next(network.parameters(), torch.empty(0))
    if example.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the network is in {example.dtype}: convert it to float32 or float64")
    n = math.prod(input_shape)

    def apply(rows: Tensor) -> Tensor:
        outputs: Tensor = network(rows.view(-1, *input_shape))
        check_finite(outputs, "the network's outputs are")
        return outputs.reshape(len(rows), -1)

    with full_float32():
        offset = apply(example.new_zeros(1, n))[0]
        size = offset.numel() * n * offset.element_size()
        if size > max_bytes:
            raise ValueError(f"the {offset.numel()} x {n} matrix takes {size} bytes, more than max_bytes = {max_bytes}")
        probe = torch.randn(1, n, generator=torch.Generator().manual_seed(1)).to(example)
        once, twice = apply(probe)[0] - offset, apply(2 * probe)[0] - offset
        if lengths(twice - 2 * once) > 1e-2 * lengths(twice):
            raise NotLinear(f"not linear: {type(network).__name__} does not double its output with its input")
        matrix = offset.new_empty(offset.numel(), n)
        for first in range(0, n, chunk):
            last = min(first + chunk, n)
            basis = example.new_zeros(last - first, n)
            basis[:, first:last].fill_diagonal_(1)
            # A e_i = f(e_i) - f(0)
            matrix[:, first:last] = (apply(basis) - offset).mT
        scales = torch.tensor(_SCALES)[:, None]
        points = (scales * torch.randn(len(_SCALES), n, generator=torch.Generator().manual_seed(0))).to(example)
        found = apply(points)
        errors = lengths(found - offset - points @ matrix.mT)
    # A difference f(e_i) - f(0) carries the round-off of the offset, and n of them are summed.
    length = lengths(offset)
    expected = scales[:, 0].to(example) * (lengths(matrix.flatten()) + math.sqrt(n) * length) + length
    if (errors > _ROUND_OFF * torch.finfo(matrix.dtype).eps * expected).any():
        worst = float((errors / lengths(found)).nan_to_num(math.inf).max())
        off = f"{type(network).__name__} is off its own matrix by {worst:.2g} of its output at random points"
        raise NotLinear(f"not linear: {off} (BatchNorm and Dropout belong in eval mode)")
    return LinearMap(matrix, offset)


def minimum_norm_solution(
    inputs: Float[Tensor, "n d"], targets: Float[Tensor, "n k"], rcond: float | None = None
) -> Float[Tensor, "k d"]:
    r"""The matrix of least Frobenius norm that fits the targets: A* = argmin ||A||_F such that A x_i = y_i for all i.

        A* = (X^+ Y)^T,   X (n, d) the inputs in rows, Y (n, k) the targets

    It is what gradient descent on one linear layer without bias reaches from zero (nichani2020 section 4 and footnote
    1; Engl et al. 1996), and, for targets Y = X, the projection onto the span of the inputs (section 4.3). Where no A
    fits, it is the smallest of the least-squares solutions. Singular values of X below `rcond` of the largest count as
    zero; by default max(n, d) 2^-52. Inputs that are zero in every sample have weights of exactly zero. Float64.

    Raises ValueError for NaN or infinity. Cost: the SVD of X, O(n d min(n, d)).

    >>> minimum_norm_solution(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2.0]])).round(decimals=6)
    tensor([[1., 1., 0.]], dtype=torch.float64)
    """
    x, y = inputs.double(), targets.double()
    check_finite(x, "inputs or targets are")
    check_finite(y, "inputs or targets are")
    if rcond is None:
        rcond = max(x.shape) * torch.finfo(torch.float64).eps
    used = x.any(0)
    solution = x.new_zeros(y.shape[1], x.shape[1])
    # A*^T = X^+ Y
    solution[:, used] = (torch.linalg.pinv(x[:, used], rtol=rcond) @ y).mT
    return solution


def distance_to_minimum_norm(matrix: Float[Tensor, "k d"], solution: Float[Tensor, "k d"]) -> float:
    r"""How far the operator of a network is from the minimum-norm solution, relative to the latter, float64.

        ||A - A*||_F / ||A*||_F

    Since A - A* is orthogonal to A* for any A that fits the targets, it is then sqrt(||A||_F^2 / ||A*||_F^2 - 1).

    Raises ValueError for NaN or infinity, or a solution that is zero.

    >>> distance_to_minimum_norm(torch.tensor([[3.0, 9.0]]), torch.tensor([[3.0, 4.0]]))
    1.0
    """
    if not solution.any():
        raise ValueError("the minimum-norm solution is zero: there is nothing to be relative to")
    return relative_distance(matrix, solution)
