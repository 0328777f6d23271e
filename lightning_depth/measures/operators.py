"""A layer as the linear map that it really applies: input size, padding, stride, dilation and groups, without bias."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lightning_depth.measures.precision import full_float32


class UnsupportedLayer(ValueError):
    """A layer that is no linear map this module knows; the message names its type."""


@dataclass(frozen=True)
class LinearOperator:
    """A linear map A between tensors, known by its action and that of its transpose.

    Attributes:
        input_shape: shape of x, without a batch dimension.
        output_shape: shape of A x, without a batch dimension.
        forward: (batch, *input_shape) -> (batch, *output_shape), x -> A x.
        transpose: (batch, *output_shape) -> (batch, *input_shape), y -> A^T y, with <A x, y> = <x, A^T y>.
        dtype: of both sides: that of the weights, float32 at least.
        device: of both sides: that of the weights.
        core: the same layer on one position, where it treats each position by itself (nn.Linear, a 1x1 convolution
            without padding), else None. A has the singular values of `core`, once for each output position, and zeros;
            input position 0 is always read.
        channels_last: whether `forward` and `transpose` are fastest with, and return, memory in the order
            (batch, height, width, channels).
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    forward: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    device: torch.device
    core: "LinearOperator | None" = None
    channels_last: bool = False


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# By the number of spatial dimensions.
_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLVE_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _check_known(module: nn.Module) -> None:
    """Raise UnsupportedLayer unless `module` runs the forward of a layer of torch, not one of its own."""
    for kind in (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED):
        if isinstance(module, kind):
            same = all(
                getattr(type(module), name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward")
            ) or getattr(type(module), "applies_its_weight", False)
            if same and not isinstance(module.weight, nn.UninitializedParameter):
                return
    raise UnsupportedLayer(f"{type(module).__name__} is not a layer whose linear map is known")


def _weight(module: nn.Module) -> Tensor:
    """The weight that `module` applies, in float32 or better, read without changing a parametrisation's buffers."""
    if parametrize.is_parametrized(module, "weight"):
        # Of a copy: in train mode spectral_norm takes a step of power iteration at each reading.
        weight = copy.deepcopy(module.parametrizations.weight).eval()()  # type: ignore[union-attr]
    else:
        weight = module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    if not weight.isfinite().all():
        raise ValueError(f"the weight of {type(module).__name__} is not finite")
    return weight


def _padding(module: Any) -> list[tuple[int, int]]:
    """How many positions the convolution adds before and after each spatial dimension."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":  # an odd total puts the extra position after the image
        totals = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in module.padding]


def _sources(size: int, sides: tuple[int, int], mode: str) -> Tensor:
    """The input position that each position of the padded input repeats, -1 where it is a zero."""
    positions = torch.arange(size)
    if mode == "zeros":
        return F.pad(positions, sides, value=-1)
    return F.pad(positions.double()[None, None], sides, mode=mode)[0, 0].long()


def _check_channels(module: Any, input_shape: tuple[int, ...]) -> None:
    if len(input_shape) != len(module.kernel_size) + 1 or input_shape[0] != module.in_channels:
        taken = f"({module.in_channels}, *{len(module.kernel_size)} sizes)"
        raise ValueError(f"{type(module).__name__} takes {taken}, not {input_shape}")


def _linear(module: nn.Module, input_shape: tuple[int, ...]) -> LinearOperator:
    weight = _weight(module)
    if not input_shape or input_shape[-1] != weight.shape[1]:
        raise ValueError(f"{type(module).__name__} takes (..., {weight.shape[1]}), not {input_shape}")
    leading = input_shape[:-1]
    shape, kind = (*leading, weight.shape[0]), (weight.dtype, weight.device)
    core = _linear(module, (*(1 for _ in leading), weight.shape[1])) if math.prod(leading) > 1 else None
    return LinearOperator(input_shape, shape, lambda x: x @ weight.mT, lambda y: y @ weight, *kind, core)


def _convolution(module: Any, input_shape: tuple[int, ...]) -> LinearOperator:
    _check_channels(module, input_shape)
    weight, dims = _weight(module), len(input_shape) - 1
    image, stride, dilation, groups = input_shape[1:], module.stride, module.dilation, module.groups
    sides = _padding(module)
    # Symmetric zeros are left to the convolution itself; any other padding is gathered before it.
    symmetric = module.padding_mode == "zeros" and all(before == after for before, after in sides)
    inside = [before if symmetric else 0 for before, _ in sides]
    gathered = [] if symmetric else zip(image, sides, strict=True)
    sources = [_sources(size, side, module.padding_mode).to(weight.device) for size, side in gathered]
    reach = [
        size + before + after - d * (k - 1) - 1
        for size, (before, after), d, k in zip(image, sides, dilation, module.kernel_size, strict=True)
    ]
    if min(reach) < 0:
        raise ValueError(f"the kernel of {type(module).__name__} is larger than its padded input {input_shape}")
    # No output reads the last `reach % stride` positions of the padded input.
    unread = [r % s for r, s in zip(reach, stride, strict=True)]

    def forward(x: Tensor) -> Tensor:
        for dim, source in enumerate(sources, start=2):
            # Position -1 is the zero appended at the end.
            x = F.pad(x.movedim(dim, -1), (0, 1))[..., source].movedim(-1, dim)
        return _CONVOLVE[dims](x, weight, None, stride, inside, dilation, groups)

    def transpose(y: Tensor) -> Tensor:
        x = _CONVOLVE_TRANSPOSED[dims](y, weight, None, stride, inside, unread, groups, dilation)
        for dim, source in enumerate(sources, start=2):
            size = image[dim - 2]
            x = x.movedim(dim, -1)
            x = x.new_zeros((*x.shape[:-1], size + 1)).index_add_(-1, source % (size + 1), x)
            x = x[..., :size].movedim(-1, dim)
        return x

    output_shape = (module.out_channels, *(r // s + 1 for r, s in zip(reach, stride, strict=True)))
    pointwise = math.prod(module.kernel_size) == 1 and not any(map(any, sides)) and math.prod(image) > 1
    core = _convolution(module, (input_shape[0], *(1 for _ in image))) if pointwise else None
    last = weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    return LinearOperator(input_shape, output_shape, forward, transpose, weight.dtype, weight.device, core, last)


def _transposed_convolution(module: Any, input_shape: tuple[int, ...]) -> LinearOperator:
    _check_channels(module, input_shape)
    weight, dims = _weight(module), len(input_shape) - 1
    stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups

    def forward(x: Tensor) -> Tensor:
        return _CONVOLVE_TRANSPOSED[dims](x, weight, None, stride, padding, module.output_padding, groups, dilation)

    def transpose(y: Tensor) -> Tensor:
        x = _CONVOLVE[dims](y, weight, None, stride, padding, dilation, groups)
        for dim, size in enumerate(input_shape[1:], start=2):
            # An output padding of a stride or more lets the convolution find positions that x does not have.
            x = x.narrow(dim, 0, size)
        return x

    settings = zip(input_shape[1:], stride, padding, dilation, module.kernel_size, module.output_padding, strict=True)
    sizes = ((size - 1) * s - 2 * p + d * (k - 1) + more + 1 for size, s, p, d, k, more in settings)
    output_shape = (module.out_channels, *sizes)
    return LinearOperator(input_shape, output_shape, forward, transpose, weight.dtype, weight.device)


def layer_operator(module: nn.Module, input_shape: tuple[int, ...]) -> LinearOperator:
    """The linear map that `module` applies to one input of `input_shape` (no batch dimension), bias left out.

    nn.Linear acts on the last dimension. Conv1d-3d take every stride, padding (numbers, 'same', 'valid'), padding mode,
    dilation and number of groups; ConvTranspose1d-3d all that torch offers. The weight is read once, now, with its
    parametrisations, and a power iteration inside one (spectral_norm) is not advanced.

    Raises UnsupportedLayer for any other layer, subclasses with a forward of their own included, and ValueError for
    a weight that is not finite or an input shape that the layer does not take.

    >>> layer_operator(nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 32, 32)).output_shape
    (8, 16, 16)
    """
    _check_known(module)
    if isinstance(module, nn.Linear):
        return _linear(module, input_shape)
    return (_convolution if isinstance(module, _CONVOLUTIONS) else _transposed_convolution)(module, input_shape)


@torch.no_grad()
def dense_matrix(operator: LinearOperator) -> Float[Tensor, "m n"]:
    """The matrix of `operator`, one column for each unit vector: m n numbers.

    >>> difference = nn.Conv1d(1, 1, 2, bias=False)
    >>> difference.weight.data = torch.tensor([[[-1.0, 1.0]]])
    >>> dense_matrix(layer_operator(difference, (1, 3)))
    tensor([[-1.,  1.,  0.],
            [ 0., -1.,  1.]])
    """
    n = math.prod(operator.input_shape)
    basis = torch.eye(n, dtype=operator.dtype, device=operator.device)
    with full_float32():
        return operator.forward(basis.reshape(n, *operator.input_shape)).reshape(n, -1).mT


def _coincidences(sources: Tensor, outputs: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """For each two kernel offsets along one dimension, at how many outputs they read the same input position."""
    reads = sources[torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation]
    same = (reads[:, :, None] == reads[:, None, :]) & (reads >= 0)[:, :, None]
    return same.sum(0).double()


def frobenius_norm(module: nn.Module, input_shape: tuple[int, ...]) -> float:
    """The Frobenius norm of `layer_operator(module, input_shape)`, in closed form.

    For a convolution, with W_a the (out, in / groups) slice of the weight at kernel offset a,
        ||A||_F^2 = sum_{a, a'} <W_a, W_a'> prod_dim n_dim(a, a'),
    where n(a, a') counts the outputs at which both offsets read the same input position. With zero padding that is the
    number of outputs at which the offset falls inside the input if a = a', else 0; the other padding modes add pairs of
    offsets that meet through the border. For nn.Linear, ||W||_F times the root of the number of leading positions.

    Raises as `layer_operator` does. Cost: one k x k table of slices for a kernel of k positions, whatever the image.

    >>> ones = nn.Conv2d(1, 1, 3, padding=1)
    >>> ones.weight.data = torch.ones(1, 1, 3, 3)
    >>> round(frobenius_norm(ones, (1, 2, 2)) ** 2, 6)  # the all-ones 4 x 4 matrix
    16.0
    """
    operator = layer_operator(module, input_shape)
    weight = _weight(module).double().cpu()
    if isinstance(module, nn.Linear):
        return float(torch.linalg.vector_norm(weight)) * math.sqrt(math.prod(input_shape[:-1]))
    layer: Any = module
    if isinstance(layer, _CONVOLUTIONS):
        counted = operator.output_shape[1:]
        paddings = zip(input_shape[1:], _padding(layer), strict=True)
        sources = [_sources(size, sides, layer.padding_mode) for size, sides in paddings]
    else:
        # A transposed convolution writes where the convolution of the same settings reads.
        counted = input_shape[1:]
        sizes = zip(operator.output_shape[1:], layer.padding, strict=True)
        sources = [_sources(size, (p, p), "zeros") for size, p in sizes]
    # prod_dim n_dim(a, a'), over the flattened kernel
    counts = torch.ones(1, 1, dtype=torch.float64)
    for dimension in zip(sources, counted, layer.kernel_size, layer.stride, layer.dilation, strict=True):
        counts = torch.kron(counts, _coincidences(*dimension))
    slices = weight.flatten(2).flatten(0, 1)
    return math.sqrt(float(((slices.mT @ slices) * counts).sum()))
