"""Fully connected networks: the FCNs of zhang2019 and nichani2020, the networks of mori2020 and of huh2021 Fig. 3."""

import math
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from lightning_depth.errors import UserError
from lightning_depth.models.activations import ActivationName, activation
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.initial import InitialName, check_initial, initialise
from lightning_depth.models.shapes import Shapes


class MLP(AbstractFamily):
    """A fully connected network of L hidden layers of width H, on flattened inputs (mori2020 Eq. 4; zhang2019 3.1-3.3).

    Outputs have the targets' shape: classes, numbers, or images for an autoencoder.

    Args:
        depth: L, the hidden layers, so L + 1 matrices; 0: one linear layer (zhang2019 Eq. 1).
        width: H.
        activation: by name; `identity` for a linear network.
        omega_0: the frequency of `sine`.
        initial: by name, see `initialise`; None: `siren` for sines, else `pytorch`.
        initial_scale: a factor for all initial weights.
        beta: the impact of biases under `ntk`; 0.1 in mori2020 2.4.
        bias: whether layers have biases.
        train: `all` layers, or the `bottom` one only (zhang2019 3.2 and App. C), the others staying as they were drawn.
        **recipe: see `AbstractFamily`.

    Raises:
        UserError: a negative depth, a width below 1, `siren` without sines.
    """

    def __init__(
        self,
        depth: int = 2,
        width: int = 512,
        activation: ActivationName = "relu",
        omega_0: float = 30.0,
        initial: InitialName | None = None,
        initial_scale: float = 1.0,
        beta: float = 0.1,
        bias: bool = True,
        train: Literal["all", "bottom"] = "all",
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        if depth < 0 or width < 1:
            raise UserError(f"MLP depth={depth}, width={width}: depth must be at least 0 and width at least 1.")
        check_initial(initial, activation)
        self.depth, self.width, self.bias, self.activation, self.omega_0 = depth, width, bias, activation, omega_0
        self.initial: InitialName = initial or ("siren" if activation == "sine" else "pytorch")
        self.initial_scale, self.beta = initial_scale, beta
        self.trained = train  # `train` is a method of every module

    def build(self, shapes: Shapes) -> nn.Module:
        sizes = [math.prod(shapes.input), *[self.width] * self.depth, shapes.outputs]
        layers = [nn.Linear(n, m, bias=self.bias) for n, m in pairwise(sizes)]
        initialise(layers, self.initial, self.initial_scale, self.beta, self.omega_0)
        if self.trained == "bottom":
            for layer in layers[1:]:
                layer.requires_grad_(False)
        net = nn.Sequential()
        net.add_module("flatten", nn.Flatten())
        for index, layer in enumerate(layers[:-1], start=1):
            net.add_module(f"layer{index}", layer)
            net.add_module(f"{self.activation}{index}", activation(self.activation, self.omega_0))
        net.add_module("head", layers[-1])
        if shapes.target is not None and len(shapes.target) > 1:
            net.add_module("unflatten", nn.Unflatten(1, shapes.target))
        return net
