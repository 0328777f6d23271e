"""The activations that the papers compare, by name."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_depth.errors import UserError

ActivationName = Literal["relu", "leaky_relu", "tanh", "gelu", "sine", "identity"]

_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,  # slope 0.01, torch's
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


class Sine(nn.Module):
    """sin(omega_0 x), entry by entry (SIREN, Sitzmann et al. 2020, 3.2); a UserError where omega_0 is not positive."""

    def __init__(self, omega_0: float = 30.0) -> None:
        super().__init__()
        if omega_0 <= 0:
            raise UserError(f"omega_0={omega_0}: the frequency of a sine must be positive.")
        self.omega_0 = omega_0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * x)

    def extra_repr(self) -> str:
        return f"omega_0={self.omega_0}"


def activation(name: ActivationName, omega_0: float = 30.0) -> nn.Module:
    """The activation of that name (huh2021 Fig. 3 compares relu, tanh, gelu and sine; nichani2020 has leaky_relu).

    `identity` makes a linear network. `omega_0` is the frequency of `sine`, 30 in SIREN; a `UserError` where a sine's
    is not positive.

    >>> activation("sine", omega_0=2.0)
    Sine(omega_0=2.0)
    """
    return Sine(omega_0) if name == "sine" else _PLAIN[name]()
