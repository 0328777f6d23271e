"""The initialisations of the papers, by name: of linear layers and of convolutions."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_depth.errors import UserError

InitialName = Literal[
    "pytorch", "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "uniform", "normal", "siren", "ntk"
]
_DRAW: dict[str, Callable[[Tensor], Tensor]] = {
    "glorot_uniform": nn.init.xavier_uniform_,
    "glorot_normal": nn.init.xavier_normal_,
    "he_uniform": nn.init.kaiming_uniform_,
    "he_normal": nn.init.kaiming_normal_,
    "uniform": lambda weight: weight.uniform_(-1, 1),
    "normal": lambda weight: weight.normal_(),
}


class Scaled(nn.Module):
    """A parametrisation: the layer applies `factor` times what is trained."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, trained: Tensor) -> Tensor:
        return self.factor * trained

    def right_inverse(self, applied: Tensor) -> Tensor:
        return applied / self.factor


def check_initial(name: InitialName | None, activation: str) -> None:
    """Refuse an initialisation that is made for other activations. A `UserError` where `siren` comes without sines."""
    if name == "siren" and activation != "sine":
        raise UserError(f"initial=siren is for activation=sine, not {activation}.")


@torch.no_grad()
def initialise(
    layers: Sequence[nn.Linear | nn.Conv2d],
    name: InitialName,
    scale: float = 1.0,
    beta: float = 0.1,
    omega_0: float = 30.0,
) -> None:
    r"""Draw the weights of a network's layers, given from the first to the last, from torch's global generator.

    With m outputs and n inputs of a layer (of a convolution: its channels times the pixels of its kernel):

        pytorch         U(-1/sqrt(n), 1/sqrt(n)), biases too: what torch's layers start with
        glorot_uniform  U(-a, a), a = sqrt(6 / (n + m))     (Glorot & Bengio 2010; Xavier)
        glorot_normal   N(0, 2 / (n + m))
        he_uniform      U(-a, a), a = sqrt(6 / n)           (He et al. 2015; Kaiming, for ReLU, in every layer)
        he_normal       N(0, 2 / n)
        uniform         U(-1, 1)
        normal          N(0, 1)
        siren           U(-1/n, 1/n) in the first layer, then U(-a, a), a = sqrt(6 / n) / omega_0; biases as pytorch
        ntk             N(0, 1) for what is trained; the layer applies sqrt(c / n) w + beta b, with c = 1 in the first
                        layer, else 2

    Biases start at zero where nothing else is said (mori2020 2.3). `ntk` is a parameterisation, not only an
    initialisation (mori2020 2.4, App. A): gradients are scaled too. The first layer has variance 1/n, as Eq. 12's
    x.x'/d needs, not the 2/n of the text. It is a parametrisation of torch: `layer.weight` is what the layer applies,
    `layer.parametrizations.weight.original` what is trained.

    Args:
        layers: in the order in which the network applies them.
        name: see above.
        scale: a factor for all weights, not for biases.
        beta: the impact of biases under `ntk`; 0 takes them out.
        omega_0: the frequency of the sines under `siren`.

    Raises:
        UserError: `scale` or `omega_0` is not positive, or `beta` is negative.
    """
    if scale <= 0:
        raise UserError(f"initial_scale={scale}: it must be positive.")
    if beta < 0:
        raise UserError(f"beta={beta}: it must be at least 0.")
    if omega_0 <= 0:
        raise UserError(f"omega_0={omega_0}: it must be positive.")
    for index, layer in enumerate(layers):
        fan_in = layer.weight[0].numel()
        if name == "ntk":
            _parametrise_ntk(layer, scale * math.sqrt((1 if index == 0 else 2) / fan_in), beta)
            continue
        weight = scale * _drawn(layer.weight, name, index == 0, omega_0)
        if parametrize.is_parametrized(layer, "weight"):
            layer.weight = weight  # torch hands it to the right inverse
        else:
            layer.weight.copy_(weight)
        if layer.bias is not None and name not in ("pytorch", "siren"):
            layer.bias.zero_()


def layers_of(net: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The layers of a network that have weights to draw, in their order."""
    return [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _drawn(like: Tensor, name: InitialName, first: bool, omega_0: float) -> Tensor:
    if name == "pytorch":
        return like.detach().clone()  # drawn when the layer was made
    weight, fan_in = torch.empty_like(like), like[0].numel()
    if name == "siren":
        # U(-1/n, 1/n), then U(-sqrt(6/n) / omega_0, sqrt(6/n) / omega_0)
        bound = 1 / fan_in if first else math.sqrt(6 / fan_in) / omega_0
        return weight.uniform_(-bound, bound)
    return _DRAW[name](weight)


def _parametrise_ntk(layer: nn.Linear | nn.Conv2d, factor: float, beta: float) -> None:
    """W = factor w, b = beta b', with w and b' from N(0, 1)."""
    parametrize.register_parametrization(layer, "weight", Scaled(factor))
    layer.parametrizations.weight.original.normal_()  # type: ignore[union-attr, operator]
    if layer.bias is not None and beta != 0:
        parametrize.register_parametrization(layer, "bias", Scaled(beta))
        layer.parametrizations.bias.original.normal_()  # type: ignore[union-attr, operator]
    else:
        layer.register_parameter("bias", None)
