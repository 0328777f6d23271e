"""The calls of modules in a forward pass, by name, and the stages of a network."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

INPUT = "input"


class Call(NamedTuple):
    """One call of a module in a forward pass.

    Attributes:
        module_name: the module's name in the network, or `input` for the batch itself.
        module: the module.
        input_shape: of its first argument, without the leading axis; None where that is no tensor.
        output_shape: likewise.
        per_sample: whether the leading axes of input and output are the batch's: a window or a token may be a row.
        number: 1 for the first call of the module in the pass.
    """

    module_name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    per_sample: bool = True
    number: int = 1

    @property
    def name(self) -> str:
        """The module's name; that of its second call ends in `#2`, and so on.

        >>> Call("conv", nn.Identity()).name, Call("conv", nn.Identity(), number=2).name
        ('conv', 'conv#2')
        """
        return self.module_name if self.number == 1 else f"{self.module_name}#{self.number}"


def trace(network: nn.Module, inputs: Tensor) -> list[Call]:
    """Every call of a module in one forward pass of `inputs`, in the order in which the calls ended.

    The batch itself comes first, named `input`.
    """
    calls = [Call(INPUT, nn.Identity(), tuple(inputs.shape[1:]), tuple(inputs.shape[1:]))]
    called: Counter[str] = Counter()

    def see(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        called[name] += 1
        shapes = [None if x is None or x.dim() == 0 else x.shape for x in map(first_tensor, (args, (output,)))]
        per_sample = all(shape is not None and shape[0] == len(inputs) for shape in shapes)
        given, returned = (None if shape is None else tuple(shape[1:]) for shape in shapes)
        calls.append(Call(name, module, given, returned, per_sample, called[name]))

    with ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(partial(see, name)))
        network(inputs)
    return calls


def stages(calls: Sequence[Call]) -> list[str]:
    """The names of the network's stages: the smallest set of sibling modules, nearest the top, that do its work.

    From the top down, a module that holds all the layers with weights is opened; the first with several children that
    hold such layers is the trunk, and those children are the stages.
    """
    layers = [c.module_name for c in calls if c.module._parameters and next(c.module.parameters()).dim() >= 2]
    prefix = ""
    while True:
        children = list(dict.fromkeys(prefix + n[len(prefix) :].split(".")[0] for n in layers if n.startswith(prefix)))
        if len(children) != 1 or not any(n.startswith(children[0] + ".") for n in layers):
            return [name for name in dict.fromkeys(call.module_name for call in calls) if name in children]
        prefix = children[0] + "."


def outputs_of(
    network: nn.Module,
    calls: Collection[Call],
    inputs: Tensor,
    keep: Callable[[str, Tensor], Tensor] = lambda name, output: output.clone(),
) -> dict[str, Tensor]:
    """What calls, by name, return in one forward pass of `inputs`; the call `input` returns the inputs.

    `keep(name, output)` is what is kept of each. It copies, since the network may go on to change an output in place.
    """
    wanted = {call.name: call for call in calls}
    seen: dict[str, Tensor] = {INPUT: keep(INPUT, inputs)} if wanted.pop(INPUT, None) else {}
    called: Counter[str] = Counter()

    def see(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        called[name] += 1
        if (key := Call(name, module, number=called[name]).name) in wanted:
            seen[key] = keep(key, output)

    with ExitStack() as hooks:
        for name in {call.module_name for call in wanted.values()}:
            hooks.enter_context(network.get_submodule(name).register_forward_hook(partial(see, name)))
        network(inputs)
    return {call.name: seen[call.name] for call in calls}


def first_tensor(args: tuple[Any, ...]) -> Tensor | None:
    """The first tensor among a module's arguments."""
    return next((a for a in args if isinstance(a, Tensor)), None)
