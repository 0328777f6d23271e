"""Somebody else's network, such as torchvision's, under this project's recipe."""

import inspect
from importlib import import_module
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from torch import nn

from lightning_depth.errors import UserError
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.shapes import Shapes


class Imported(AbstractFamily):
    """Any `nn.Module` that takes a batch of images, named by its import path.

    Where the callable has an argument `num_classes` and no `weights` are asked for, it is given the data's.

    Args:
        network: import path of a class or function that makes the network, such as `torchvision.models.resnet18`.
        arguments: its arguments, such as `{weights: IMAGENET1K_V1}`.
        state: a file of weights (a `state_dict` saved by torch) to start from.
        recipe: the arguments of `AbstractFamily`.

    Raises:
        UserError: the path names nothing that makes a network, the network refuses its arguments, the data's shape or
            the weights.
    """

    def __init__(
        self, network: str, arguments: dict[str, Any] | None = None, state: str | None = None, **recipe: Any
    ) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        self.network, self.arguments, self.state = network, arguments or {}, state

    def build(self, shapes: Shapes) -> nn.Module:
        make = found(self.network)
        arguments = dict(self.arguments)
        if "num_classes" in _parameters(make) and arguments.get("weights") is None:
            arguments.setdefault("num_classes", shapes.outputs)
        try:
            net = make(**arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.network} refuses its arguments: {error}") from error
        if not isinstance(net, nn.Module):
            raise UserError(f"{self.network} makes a {type(net).__name__}, not a torch.nn.Module.")
        if self.state is not None:
            _load(net, Path(self.state))
        _check(net, self.network, shapes.input)
        return net


def found(path: str) -> Any:
    """What the import path names. A `UserError` where there is no such thing, or it cannot be called."""
    module, _, name = path.rpartition(".")
    try:
        value = getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"There is no network {path}: {error}.") from error
    if not callable(value):
        raise UserError(f"{path!r} names no network: give an import path such as torchvision.models.resnet18.")
    return value


def _parameters(make: Any) -> set[str]:
    """The names of all arguments of `make`; torchvision's functions pass most of theirs on to a class."""
    try:
        signature = inspect.signature(make)
    except ValueError:  # a built-in's arguments may not be known
        return set()
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    return set(signature.parameters) | ({"num_classes"} if passes_on else set())


def _load(net: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except FileNotFoundError as error:
        raise UserError(f"There is no file of weights {path}.") from error
    except (RuntimeError, ValueError, OSError, LookupError, EOFError, AttributeError, TypeError, PickleError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not hold the weights of this network: {reason}") from error


def _check(net: nn.Module, name: str, input_shape: tuple[int, ...]) -> None:
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "The data's image_size and rgb (three channels from one) may help."
        raise UserError(f"{name} refuses inputs of shape {input_shape}: {reason}\n{hint}") from error
    finally:
        net.train(training)
