"""Strided 1 x 1 convolutions whose gradients are right on every CPU.

On a CPU torch hands them to oneDNN, which copies the positions that the stride leaves into a workspace, and writes past
its end where a vector of the processor is longer than the number of channels (oneDNN issue 6035; seen with torch 2.15).
With channels-last input and fewer than 16 channels (8 without AVX-512) the gradient of the weight is then wrong, or the
heap is corrupted, or the call never returns; 1-d convolutions of one channel are hit too. No choice of memory order
avoids it: an input of one channel counts as channels-last whatever one asks for.

Subsampling first and convolving with stride 1 is the same function without that kernel, and bit for bit the same where
torch is right.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

# With so many input channels torch is right: a vector of AVX-512 holds 16 numbers.
SAFE_CHANNELS = {nn.Conv1d: 2, nn.Conv2d: 16}


def _subsampled(
    x: Tensor, weight: Tensor, stride: int | Iterable[int], padding: str | int | Iterable[int]
) -> Tensor | None:
    """What of `x` a convolution of stride 1 wants; None for a larger kernel, no stride, or another device."""
    steps, sides = (_each(value, weight.dim() - 2) for value in (stride, 0 if isinstance(padding, str) else padding))
    if x.device.type != "cpu" or max(weight.shape[2:]) > 1 or max(steps) == 1:
        return None
    if max(sides) > 0:
        x = F.pad(x, [side for side in reversed(sides) for _ in range(2)])
    index: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
    return x[index]


def _each(value: int | Iterable[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that subsamples first where its kernel is 1 x 1: the same function, parameters and names."""

    applies_its_weight = True  # its `_conv_forward` is another than that of nn.Conv2d, and the same map

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        x = _subsampled(input, weight, self.stride, padding)
        if x is None:
            return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)
        return F.conv2d(x, weight, bias, groups=self.groups)


class SubsampleFirst(TorchFunctionMode):
    """Within it every strided 1 x 1 convolution on a CPU subsamples first, whoever wrote it, layer or function.

    Attributes:
        found: whether there has been one.

    >>> net = nn.Conv2d(3, 8, 1, stride=2)
    >>> with SubsampleFirst() as mode:
    ...     net(torch.rand(2, 3, 8, 8)).sum().backward()
    >>> mode.found
    True
    """

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, or what stands for it."""
        if func is not torch.conv2d and func is not torch.conv1d:
            return func(*args, **(kwargs or {}))

        def convolve(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            dilation: Any = 1,
            groups: int = 1,
        ) -> Any:
            x = _subsampled(input, weight, stride, padding)
            if x is None:
                return func(input, weight, bias, stride, padding, dilation, groups)
            self.found = True
            return func(x, weight, bias, groups=groups)

        return convolve(*args, **(kwargs or {}))


class SubsamplesFirst:
    """Of a module that calls its network within `subsampling`: under `SubsampleFirst`, where it needs that.

    The mode costs a small network a few per cent of its time, so the first call shows whether there is anything for it.
    """

    _needed: bool | None = None

    @contextmanager
    def subsampling(self, x: Tensor) -> Iterator[None]:
        """Within which the network is called with `x`."""
        if x.device.type != "cpu" or self._needed is False:
            yield
            return
        with SubsampleFirst() as mode:
            yield
        self._needed = mode.found or (isinstance(self, nn.Module) and bool(_at_risk(self)))


def unguarded(network: nn.Module) -> list[str]:
    """The layers of `network` whose gradients torch may get wrong on a CPU, by name and number of input channels.

    There are none where the network subsamples first, or `SubsampleFirst` is on.
    """
    on = any(isinstance(mode, SubsampleFirst) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]
    return [] if on or isinstance(network, SubsamplesFirst) else _at_risk(network)


def _at_risk(network: nn.Module) -> list[str]:
    found = []
    for name, module in network.named_modules():
        for kind, safe in SAFE_CHANNELS.items():
            if isinstance(module, kind) and not isinstance(module, Conv2d) and module.groups == 1:
                strided = max(module.kernel_size) == 1 and max(module.stride) > 1
                trained = any(parameter.requires_grad for parameter in module.parameters())
                if strided and trained and module.in_channels < safe:
                    found.append(f"{name or type(module).__name__} ({module.in_channels})")
    return found
