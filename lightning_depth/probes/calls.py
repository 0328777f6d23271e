"""The calls of modules in a forward pass, by name, and the stages of a network."""

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

INPUT = "input"


class Call(NamedTuple):
    """One call of a module in a forward pass.

    Attributes:
        name: the module's name in the network; the second call of one module is named `<name>#2`, and so on.
        module: the module.
        input_shape: of its first argument, without the leading axis; None where that is no tensor.
        output_shape: likewise.
        per_sample: whether the leading axes of input and output are the batch's: a window or a token may be a row.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    per_sample: bool = True


def trace(network: nn.Module, inputs: Tensor) -> list[Call]:
    """Every call of a module in one forward pass of `inputs`, in the order in which the calls ended.

    The batch itself comes first, named `input`.
    """
    calls = [Call(INPUT, nn.Identity(), tuple(inputs.shape[1:]), tuple(inputs.shape[1:]))]
    called: dict[str, int] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            called[name] = called.get(name, 0) + 1
            given = first_tensor(args)
            rows = {len(x) if x is not None and x.dim() else None for x in (given, _tensor(output))}
            calls.append(
                Call(
                    numbered(name, called[name]), module, _shape(given), _shape(_tensor(output)), rows == {len(inputs)}
                )
            )

        return hook

    handles = [m.register_forward_hook(hook_for(name)) for name, m in network.named_modules() if name]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def stages(calls: Sequence[Call]) -> list[str]:
    """The names of the network's stages: the smallest set of sibling modules, nearest the top, that do its work.

    From the top down, a module that holds all the layers with weights is opened; the first with several children that
    hold such layers is the trunk, and those children are the stages.
    """
    names = [call.name.split("#")[0] for call in calls]
    layers = [c.name.split("#")[0] for c in calls if c.module._parameters and next(c.module.parameters()).dim() >= 2]
    prefix = ""
    while True:
        children = list(dict.fromkeys(prefix + n[len(prefix) :].split(".")[0] for n in layers if n.startswith(prefix)))
        if len(children) != 1 or not any(n.startswith(children[0] + ".") for n in layers):
            return [c for c in dict.fromkeys(names) if c in children]
        prefix = children[0] + "."


def outputs_of(
    network: nn.Module,
    names: Iterable[str],
    inputs: Tensor,
    keep: Callable[[str, Tensor], Tensor] = lambda name, output: output.clone(),
) -> dict[str, Tensor]:
    """What the named calls return in one forward pass of `inputs`; the call `input` returns the inputs.

    `keep(name, output)` is what is kept of each. It copies, since the network may go on to change an output in place.
    """
    wanted = list(names)
    seen: dict[str, Tensor] = {INPUT: keep(INPUT, inputs)} if INPUT in wanted else {}

    def hook_for(name: str) -> Callable[..., None]:
        calls = count(1)

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            label = numbered(name, next(calls))
            if label in wanted:
                seen[label] = keep(label, output)

        return hook

    modules = {name.split("#")[0] for name in wanted} - {INPUT}
    handles = [network.get_submodule(name).register_forward_hook(hook_for(name)) for name in modules]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen[name] for name in wanted}


def numbered(name: str, call: int) -> str:
    """What the first, second, ... call of the module `name` is called.

    >>> numbered("conv", 1), numbered("conv", 2)
    ('conv', 'conv#2')
    """
    return name if call == 1 else f"{name}#{call}"


def first_tensor(args: tuple[Any, ...]) -> Tensor | None:
    """The first tensor among a module's arguments."""
    return next((a for a in args if isinstance(a, Tensor)), None)


def _tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def _shape(value: Tensor | None) -> tuple[int, ...] | None:
    return None if value is None or value.dim() == 0 else tuple(value.shape[1:])
