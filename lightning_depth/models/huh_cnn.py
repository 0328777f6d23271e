"""The CIFAR network of huh2021 App. E."""

from typing import Any

from torch import nn

from lightning_depth.errors import UserError
from lightning_depth.models.activations import ActivationName, activation
from lightning_depth.models.conv_net import check_kernel
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.initial import InitialName, check_initial, initialise, layers_of
from lightning_depth.models.shapes import Shapes


class HuhCNN(AbstractFamily):
    """Four convolutions and two linear layers (huh2021 App. E, "CIFAR architecture").

    Convolutions of w, 2w, 4w and 8w filters (64, 128, 256, 512), each followed by max-pooling 2 x 2 (not the last one)
    and ReLU; the maximum over all pixels; a linear layer with 4w outputs and ReLU; the linear read-out. Kernel and
    padding are unstated: 3 x 3, keeping the image's size.

    Args:
        width: w, 64 in the paper.
        kernel_size: odd.
        activation: by name.
        initial: by name, see `initialise`.
        initial_scale: a factor for all initial weights.
        **recipe: see `AbstractFamily`.

    Raises:
        UserError: a width below 1, an even kernel, `siren` without sines, images smaller than 8 x 8.
    """

    def __init__(
        self,
        width: int = 64,
        kernel_size: int = 3,
        activation: ActivationName = "relu",
        initial: InitialName = "pytorch",
        initial_scale: float = 1.0,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        if width < 1:
            raise UserError(f"HuhCNN width={width}: it must be at least 1.")
        check_kernel(kernel_size)
        check_initial(initial, activation)
        self.width, self.kernel_size, self.activation = width, kernel_size, activation
        self.initial, self.initial_scale = initial, initial_scale

    def build(self, shapes: Shapes) -> nn.Module:
        channels, height, width = shapes.input
        if min(height, width) < 8:
            few = f"{height} x {width} pixels are too few"
            raise UserError(f"HuhCNN halves images three times: {few}, give image_size of at least 8.")
        net, size = nn.Sequential(), self.kernel_size
        for index in range(1, 5):
            filters = self.width * 2 ** (index - 1)
            net.add_module(f"conv{index}", nn.Conv2d(channels, filters, size, padding=size // 2))
            if index < 4:
                net.add_module(f"pool{index}", nn.MaxPool2d(2))
            net.add_module(f"{self.activation}{index}", activation(self.activation))
            channels = filters
        net.add_module("maximum", nn.AdaptiveMaxPool2d(1))
        net.add_module("flatten", nn.Flatten())
        net.add_module("linear", nn.Linear(channels, 4 * self.width))
        net.add_module(f"{self.activation}5", activation(self.activation))
        net.add_module("head", nn.Linear(4 * self.width, shapes.outputs))
        initialise(layers_of(net), self.initial, self.initial_scale)
        return net
