"""The Fully-Conv Net of nichani2020 3.1 and App. A (Figure 9)."""

from typing import Any

from torch import nn

from lightning_depth.errors import UserError
from lightning_depth.models.activations import ActivationName, activation
from lightning_depth.models.conv_net import PaddingMode, check_kernel, convolution
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.initial import InitialName, check_initial, initialise, layers_of
from lightning_depth.models.shapes import Shapes


class FullyConv(AbstractFamily):
    """Fully-Conv Net of depth d and width w: no residual connections, downsampling or linear layers (nichani2020 3.1).

    d convolutions of w filters and stride 1, each followed by BatchNorm and LeakyReLU, then a convolution with a filter
    for each class and the mean over its pixels: d + 1 convolutions. Those before BatchNorm have no bias, which
    BatchNorm would take out again; the last one has one. The paper does not give the kernel's size: 3.

    Args:
        depth: d.
        width: w; 16 or 32 in the paper.
        kernel_size: odd.
        padding_mode: `zeros` or `circular`.
        activation: by name.
        initial: by name, see `initialise`; Kaiming normal in Fig. 11.
        initial_scale: a factor for all initial weights.
        **recipe: see `AbstractFamily`.

    Raises:
        UserError: a number below 1, an even kernel, a circular kernel larger than the images, `siren` without sines.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 16,
        kernel_size: int = 3,
        padding_mode: PaddingMode = "zeros",
        activation: ActivationName = "leaky_relu",
        initial: InitialName = "he_normal",
        initial_scale: float = 1.0,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        if depth < 1 or width < 1:
            raise UserError(f"FullyConv depth={depth}, width={width}: both must be at least 1.")
        check_initial(initial, activation)
        check_kernel(kernel_size)
        self.depth, self.width, self.activation = depth, width, activation
        self.kernel_size, self.padding_mode = kernel_size, padding_mode
        self.initial, self.initial_scale = initial, initial_scale

    def build(self, shapes: Shapes) -> nn.Module:
        check_kernel(self.kernel_size, self.padding_mode, shapes.input[-2:])
        net = nn.Sequential()
        channels = shapes.input[0]
        for index in range(1, self.depth + 1):
            conv = convolution(channels, self.width, self.kernel_size, False, self.padding_mode)
            net.add_module(f"conv{index}", conv)
            net.add_module(f"bn{index}", nn.BatchNorm2d(self.width))
            net.add_module(f"{self.activation}{index}", activation(self.activation))
            channels = self.width
        net.add_module("head", convolution(channels, shapes.outputs, self.kernel_size, True, self.padding_mode))
        net.add_module("average", nn.AdaptiveAvgPool2d(1))
        net.add_module("flatten", nn.Flatten())
        initialise(layers_of(net), self.initial, self.initial_scale)
        return net
