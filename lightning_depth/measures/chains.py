"""The linear map of several layers in a row, BatchNorm folded in, and the product of norms that bounds it."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import LinearOperator, UnsupportedLayer, layer_operator

_POOLS: tuple[type[nn.Module], ...] = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d
)  # fmt: skip
_DROPOUTS: tuple[type[nn.Module], ...] = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _is(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether `module` runs the forward of one of `kinds`; a subclass with a forward of its own is another map."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _check_evaluates(module: nn.Module) -> None:
    if module.training:
        raise UnsupportedLayer(f"{type(module).__name__} in train mode is no fixed linear map: call eval() first")


def _scales(module: Any, input_shape: tuple[int, ...]) -> Tensor:
    """What BatchNorm in eval mode multiplies each channel by, of a shape that broadcasts over one input."""
    _check_evaluates(module)
    name = type(module).__name__
    if module.running_var is None:
        raise UnsupportedLayer(f"{name} without running statistics is no fixed linear map")
    dims = {nn.BatchNorm1d: (1, 2), nn.BatchNorm2d: (3,), nn.BatchNorm3d: (4,)}
    allowed = next(sizes for kind, sizes in dims.items() if isinstance(module, kind))
    if len(input_shape) not in allowed or input_shape[0] != module.num_features:
        raise ValueError(f"{name} takes ({module.num_features}, *sizes), not {input_shape}")
    # gamma / sqrt(running_var + eps)
    scales = (module.running_var.double() + module.eps).rsqrt()
    if module.affine:
        scales = scales * module.weight.detach().double()
    if not scales.isfinite().all():
        raise ValueError(f"the scale of {name} is not finite")
    scales = scales.to(torch.promote_types(module.running_var.dtype, torch.float32))
    shaped: Tensor = scales.view(-1, *[1] * (len(input_shape) - 1))
    return shaped


def _shape_after(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a layer without weights gives one input; torch's complaint about a wrong one is a ValueError."""
    try:
        output = module.forward(torch.empty(2, *input_shape, device="meta"))
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{type(module).__name__} does not take {input_shape}: {error}") from error
    if len(output) != 2:
        raise UnsupportedLayer(f"{type(module).__name__} mixes the samples of a batch")
    return tuple(output.shape[1:])


def _transposed(forward: Callable[[Tensor], Tensor], input_shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The transpose of a linear function: its derivative backwards, the same at every point."""

    def transpose(y: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = y.new_zeros(len(y), *input_shape).requires_grad_()
            (image,) = torch.autograd.grad(forward(x), x, y.detach().clone())
        return image

    return transpose


class _Step(NamedTuple):
    """A layer as a linear map; one without weights has no kind of its own: it takes that of its neighbours."""

    output_shape: tuple[int, ...]
    forward: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor]
    kind: tuple[torch.dtype, torch.device] | None


def _step(module: nn.Module, shape: tuple[int, ...]) -> _Step:
    if _is(module, nn.Identity, *_DROPOUTS):
        if getattr(module, "p", 0) > 0:
            _check_evaluates(module)
        return _Step(shape, lambda x: x, lambda y: y, None)
    if _is(module, nn.Flatten, *_POOLS):  # past its hooks
        return _Step(_shape_after(module, shape), module.forward, _transposed(module.forward, shape), None)
    if _is(module, *_BATCH_NORMS):
        scales = _scales(module, shape)
        return _Step(shape, lambda x: x * scales, lambda y: y * scales, (scales.dtype, scales.device))
    layer = layer_operator(module, shape)
    return _Step(layer.output_shape, layer.forward, layer.transpose, (layer.dtype, layer.device))


def chain_operator(modules: Iterable[nn.Module], input_shape: tuple[int, ...]) -> LinearOperator:
    """The linear part of layers applied one after another to one input of `input_shape` (no batch dimension).

        A = A_L ... A_2 A_1

    Taken are the layers of `layer_operator` (without bias), BatchNorm1d-3d in eval mode with running statistics (the
    diagonal of gamma / sqrt(running_var + eps), one for each channel; its shift is a bias), AvgPool and
    AdaptiveAvgPool, Flatten, Identity, Dropout in eval mode, and nn.Sequential of these. Weights and statistics are
    read once, now.

    Raises UnsupportedLayer, by name, for any other layer and for BatchNorm or Dropout in train mode; ValueError for a
    shape that a layer does not take, values that are not finite, and layers of different dtypes or devices. Cost: no
    memory but the weights, and that of the layers for each action.

    >>> doubling = nn.BatchNorm2d(1, eps=0.0).eval()
    >>> doubling.running_var.fill_(0.25)
    tensor([0.2500])
    >>> operator = chain_operator([doubling, nn.AvgPool2d(2), nn.Flatten()], (1, 2, 2))
    >>> operator.forward(torch.ones(1, 1, 2, 2))
    tensor([[2.]])
    """
    steps: list[_Step] = []

    def append(layers: Iterable[nn.Module], shape: tuple[int, ...]) -> tuple[int, ...]:
        for module in layers:
            if isinstance(module, nn.Sequential) and _is(module, nn.Sequential):
                shape = append(module, shape)
            else:
                steps.append(_step(module, shape))
                shape = steps[-1].output_shape
        return shape

    output_shape = append(modules, input_shape)
    kinds = [step.kind for step in steps if step.kind is not None]
    if len(set(kinds)) > 1:
        found = ", ".join(sorted({f"{dtype} on {device}" for dtype, device in kinds}))
        raise ValueError(f"the layers are of different dtypes or devices: {found}")
    dtype, device = kinds[0] if kinds else (torch.float32, torch.device("cpu"))

    def forward(x: Tensor) -> Tensor:
        for step in steps:
            x = step.forward(x)
        return x

    def transpose(y: Tensor) -> Tensor:
        for step in reversed(steps):
            y = step.transpose(y)
        return y

    return LinearOperator(input_shape, output_shape, forward, transpose, dtype, device)


def lipschitz_bound(layers: Iterable[LinearOperator | float]) -> float:
    """The product of the layers' operator norms: an upper bound on the norm of the chain, and of a network of these
    layers with activations of slope at most one between them.

        ||A_L ... A_1|| <= prod_l ||A_l||

    A layer is given by its norm, or by its operator, whose `operator_norm` is then taken (from below, to 1e-4).
    Equality holds where the leading singular vectors of neighbours meet, as for orthogonal layers.

    Raises ValueError for a norm that is negative or not finite, and as `operator_norm` does.

    >>> lipschitz_bound([2.0, 0.5, 3.0])
    3.0
    """
    norms = [operator_norm(layer).value if isinstance(layer, LinearOperator) else float(layer) for layer in layers]
    if not all(0 <= norm < math.inf for norm in norms):
        raise ValueError("norms must be finite and not negative")
    return math.prod(norms, start=1.0)
