"""Strided 1 x 1 convolutions without the kernel of torch that gets their gradients wrong on CPUs.

On a CPU torch hands them to oneDNN, which copies the positions that the stride leaves into a workspace, and writes past
its end where a vector of the processor is longer than the number of channels (oneDNN issue 6035; seen with torch 2.15).
With channels-last input and fewer than 16 channels (8 without AVX-512) the gradient of the weight is then wrong, or the
heap is corrupted, or the call never returns. 1-d convolutions of one channel are hit too, and transposed convolutions
with output padding, by their output's channels. An input of one channel counts as channels-last whatever one asks for.
Subsampling first and convolving with stride 1 is bit for bit the same where torch is right.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from inspect import getattr_static
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAFE = 16
"""With so many channels torch is right: a vector of AVX-512 holds 16 numbers of float32."""


class PointwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with a 1 x 1 kernel (ValueError for another), which subsamples first: the same function and names."""

    applies_its_weight = True  # its `_conv_forward` is another than that of nn.Conv2d, and the same map

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.kernel_size != (1, 1):
            raise ValueError(f"a pointwise convolution has a 1 x 1 kernel, not {self.kernel_size}")

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if max(self._reversed_padding_repeated_twice) > 0:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=mode)
        x = input[..., :: self.stride[0], :: self.stride[1]]
        return nn.functional.conv2d(x, weight, bias, groups=self.groups)


@contextmanager
def subsample_first() -> Iterator[None]:
    """Within it narrow, strided 1 x 1 convolutions on a CPU subsample first, whoever wrote them, layers or functions.

    It stands for torch's functions in the whole process. Neither a scripted module nor a process that is spawned within
    it knows of it.

    >>> net = nn.Conv2d(3, 8, 1, stride=2)
    >>> x = torch.rand(2, 3, 8, 8)
    >>> with subsample_first():
    ...     inside = net(x)
    >>> torch.allclose(inside, net(x), atol=1e-5)
    True
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _put(_ours)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _put(_torchs)


def is_on() -> bool:
    """Whether this is within `subsample_first`."""
    return _depth > 0


def guarded(device: torch.device) -> AbstractContextManager[None]:
    """`subsample_first` on a CPU; a compiler that reads the call sees torch's own functions."""
    return subsample_first() if device.type == "cpu" and not torch.compiler.is_compiling() else nullcontext()


def _convolution(
    func: Callable[..., Tensor],
    input: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """What stands for `torch.conv1d` and `conv2d`; None where torch is right."""
    if not _may_be_wrong(input, weight, groups):
        return None
    steps, sides = (_each(value, weight.dim() - 2) for value in (stride, 0 if isinstance(padding, str) else padding))
    if max(steps) == 1:
        return None
    if max(sides) > 0:
        input = F.pad(input, [side for side in reversed(sides) for _ in range(2)])
    index: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
    return func(input[index], weight, bias, groups=groups)


def _transposed(
    func: Callable[..., Tensor],
    input: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor | None:
    """What stands for `torch.conv_transpose1d` and `conv_transpose2d`: stride 1, then zeros between the outputs."""
    if not _may_be_wrong(input, weight, groups):
        return None
    steps, sides, more = (_each(value, weight.dim() - 2) for value in (stride, padding, output_padding))
    if max(steps) == 1:
        return None
    out: Tensor = func(input, weight, None, groups=groups)
    for dim, (step, side, extra) in enumerate(zip(steps, sides, more, strict=True), start=out.dim() - len(steps)):
        size = out.shape[dim]
        spread = F.pad(out.movedim(dim, -1)[..., None], [0, step - 1]).flatten(-2)
        # Where there is dilation too, the output padding may be larger than the stride.
        out = F.pad(spread, [0, extra]).narrow(-1, side, (size - 1) * step + 1 + extra - 2 * side).movedim(-1, dim)
    return out if bias is None else out + bias.view(-1, *[1] * len(steps))


def _general(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor | None:
    """What stands for `torch.convolution`, which is both of them in any number of dimensions."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    arguments = dict(zip(names, args, strict=False)) | kwargs
    dims = arguments["weight"].dim() - 2
    if dims > 2:
        return None
    transposed, output_padding = arguments.pop("transposed"), arguments.pop("output_padding")
    if transposed:
        return _transposed(_torchs[f"conv_transpose{dims}d"], **arguments, output_padding=output_padding)
    return _convolution(_torchs[f"conv{dims}d"], **arguments)


def _standing_for(func: Callable[..., Tensor], instead: Callable[..., Tensor | None]) -> Callable[..., Tensor]:
    @wraps(func)
    def convolve(*args: Any, **kwargs: Any) -> Tensor:
        result = instead(func, *args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    return convolve


_kinds: dict[str, Callable[..., Tensor | None]] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv_transpose1d": _transposed,
    "conv_transpose2d": _transposed,
    "convolution": _general,
}
_torchs: dict[str, Callable[..., Tensor]] = {name: getattr(torch, name) for name in _kinds}
_ours = {name: _standing_for(_torchs[name], instead) for name, instead in _kinds.items()}
_lock = Lock()
_depth = 0


def _put(functions: dict[str, Callable[..., Tensor]]) -> None:
    for name, func in functions.items():
        setattr(torch, name, func)
        if name != "convolution":
            setattr(F, name, func)


def _may_be_wrong(input: Any, weight: Any, groups: int) -> bool:
    """Whether a kernel is 1 x 1, and of so few channels that torch may be wrong on a CPU if there is a stride."""
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor)) or input.device.type != "cpu":
        return False
    # The second axis has the input's channels, or for a transposed convolution the output's.
    return weight.dim() > 2 and max(weight.shape[2:]) == 1 and groups == 1 and weight.shape[1] < SAFE


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension, of what torch takes for that."""
    values = tuple(map(int, value)) if isinstance(value, tuple | list) else (int(value),)
    return values * dims if len(values) == 1 else values


def subsamples(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a module's `forward` as one that calls its network within `guarded`."""
    forward.subsamples = True  # type: ignore[attr-defined]
    return forward


def is_guarded(module: nn.Module) -> bool:
    """Whether the module's own `forward` is marked by `subsamples`; a subclass with another is not."""
    return "subsamples" in getattr(getattr_static(type(module), "forward", None), "__dict__", {})


def layers_at_risk(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers, by name, whose gradients torch may get wrong on a CPU, but for those within guarded modules."""
    guarded: list[str] = []
    for name, module in network.named_modules():
        if any(name.startswith(prefix) for prefix in guarded):
            continue
        if is_guarded(module):
            guarded.append(f"{name}." if name else "")
        elif _is_at_risk(module):
            yield name or type(module).__name__, module


def _is_at_risk(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, "original_name", "") in ("Conv1d", "Conv2d") and _is_narrow_and_strided(module)
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d):
        return False
    strided = not isinstance(module, PointwiseConv2d) and _is_narrow_and_strided(module)
    return strided and next(module.parameters()).dtype != torch.float64


def _is_narrow_and_strided(module: Any) -> bool:
    narrow = min(module.in_channels, module.out_channels) > 0 and module.groups == 1
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        narrow = narrow and module.out_channels < SAFE and max(module.output_padding) > 0
    else:
        narrow = narrow and module.in_channels < (2 if len(module.kernel_size) == 1 else SAFE)
    return bool(narrow and max(module.kernel_size) == 1 and max(module.stride) > 1)
