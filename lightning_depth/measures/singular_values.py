"""All singular values of a layer as it is really applied, and its stable rank."""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import LinearOperator, dense_matrix, frobenius_norm, layer_operator
from lightning_depth.measures.precision import full_float32


def _period(module: nn.Module, operator: LinearOperator) -> tuple[int, ...] | None:
    """The stride of a convolution that commutes with cyclic shifts (by the stride before, by one after), else None."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or module.padding_mode != "circular":
        return None
    sizes = zip(operator.input_shape[1:], operator.output_shape[1:], module.stride, strict=True)
    return module.stride if all(before == after * s for before, after, s in sizes) else None


def _of_cyclic(operator: LinearOperator, stride: tuple[int, ...]) -> Tensor:
    """The singular values of the symbol at every frequency."""
    channels, *image = operator.input_shape
    # One unit vector for each channel and each position within the first period.
    offsets = list(itertools.product(*(range(s) for s in stride)))
    impulses = torch.zeros(channels, len(offsets), channels, *image, dtype=operator.dtype, device=operator.device)
    for c, (i, offset) in itertools.product(range(channels), enumerate(offsets)):
        impulses[(c, i, c, *offset)] = 1
    with full_float32():
        responses = operator.forward(impulses.flatten(0, 1)).double()
    # symbol(f) = sum_p response_p e^{-2 pi i <f, p>}, an out x (in s^dim) matrix at each frequency f
    symbols = torch.fft.fftn(responses, dim=tuple(range(2, responses.ndim)))
    found: Tensor = torch.linalg.svdvals(symbols.flatten(2).permute(2, 1, 0)).flatten()
    return found


@torch.no_grad()
def singular_values(
    module: nn.Module, input_shape: tuple[int, ...], dense_limit: int = 2**22
) -> Float[Tensor, "values"]:
    r"""All singular values of `layer_operator(module, input_shape)`, in float64, descending, with multiplicity.

    There are min(m, n) of them for an operator from n to m numbers, found in one of three ways, all exact:
    - A convolution with circular padding whose output is the input's size over the stride s commutes with cyclic
      shifts, so a Fourier transform makes it block diagonal (Sedghi, Gupta & Long 2019, Theorem 6, there for s = 1):
          singular values of A = union over frequencies f of those of P(f),
          P(f) = sum_p e^{-2 pi i <f, p>} K_p,
      where K_p, of size out x (in s^dim), holds output p's response to the unit vectors of the first s^dim positions.
      Any kernel size, dilation and number of groups.
    - A layer that treats each position by itself (nn.Linear, a 1x1 convolution without padding) repeats the values of
      its weight at every output position.
    - Any other operator is written out, if its matrix has at most `dense_limit` entries m n.

    Raises as `layer_operator` does, and ValueError, with the size, for a matrix larger than `dense_limit`. Cost for c
    channels and N positions: O(N c^3) time and 16 N c^2 bytes for the first; O(c^3) for the second; O(m n min(m, n))
    time and 8 m n bytes for the third (the default limit is a matrix of 2048 x 2048: seconds).

    >>> second_difference = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    >>> second_difference.weight.data = torch.tensor([[[-1.0, 2.0, -1.0]]])
    >>> singular_values(second_difference, (1, 4))  # 2 - 2 cos(2 pi f / 4)
    tensor([4., 2., 2., 0.], dtype=torch.float64)
    """
    operator = layer_operator(module, input_shape)
    m, n = math.prod(operator.output_shape), math.prod(operator.input_shape)
    stride = _period(module, operator)
    if operator.core is not None:
        positions = math.prod(operator.output_shape) // math.prod(operator.core.output_shape)
        found = torch.linalg.svdvals(dense_matrix(operator.core).double()).repeat(positions)
    elif stride is not None:
        found = _of_cyclic(operator, stride)
    elif m * n <= dense_limit or isinstance(module, nn.Linear):
        found = torch.linalg.svdvals(dense_matrix(operator).double())
    else:
        raise ValueError(f"{type(module).__name__} on {input_shape} is a {m} x {n} matrix: over {dense_limit} entries")
    # Where a stride leaves positions unread, they add nothing but zeros.
    return torch.cat([found.sort(descending=True).values, found.new_zeros(min(m, n) - len(found))])


def operator_stable_rank(module: nn.Module, input_shape: tuple[int, ...], rtol: float = 1e-4) -> float:
    r"""The stable rank of `layer_operator(module, input_shape)` (nichani2020 Definition 1), 0 for a zero weight.

        ||A||_F^2 / ||A||_2^2

    The numerator is in closed form (`frobenius_norm`), the root of the denominator to `rtol` (`operator_norm`), whose
    cost it has. It is between 1 and min(m, n). Raises as `layer_operator` does.

    >>> identity = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    >>> identity.weight.data = nn.init.dirac_(torch.empty(2, 2, 3, 3))
    >>> round(operator_stable_rank(identity, (2, 8, 8)), 3)  # the identity on 128 numbers
    128.0
    """
    norm = operator_norm(layer_operator(module, input_shape), rtol=rtol).value
    return (frobenius_norm(module, input_shape) / norm) ** 2 if norm > 0 else 0.0
