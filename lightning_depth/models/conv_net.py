"""Convolutions one after the other: the ConvNets of zhang2019 3.4-3.6 and the linear ones of nichani2020 section 4."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.models.activations import ActivationName, activation
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.initial import InitialName, check_initial, initialise, layers_of
from lightning_depth.models.shapes import Shapes

PaddingMode = Literal["zeros", "circular"]


class FitsKernel(nn.Module):
    """Lets images pass that a circular kernel fits into, and refuses others: torch would let it see pixels twice."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        check_kernel(self.kernel_size, "circular", x.shape[-2:])
        return x


class ConvNet(AbstractFamily):
    """`depth` convolutions k x k of stride 1 that keep the image's size, with an activation after all but the last.

    Autoencoder (zhang2019 3.4): depth 5, kernel 5, 128 channels, ReLU; the last convolution has the image's channels.
    Linear classifier (nichani2020 Figs. 7, 19): output classes, kernel 3, 32 or 64 channels, identity, no bias,
    glorot_uniform. Linear autoencoder (Fig. 8): 16 channels, glorot_normal. Circular padding is the control for the
    zero padding, which is what makes accuracy fall with depth in Fig. 7.

    Images of any other size may be shown to the network, unless it reads out by `flatten`.

    Args:
        depth: the number of convolutions.
        channels: of every convolution but the last.
        kernel_size: k, odd; above the image's size too with padding by zeros (zhang2019 Fig. 14: up to 57).
        activation: by name; `identity` for a linear network.
        padding_mode: `zeros` or `circular`.
        bias: whether convolutions and the linear read-out have biases.
        output: `image` for targets that are images of the inputs' size, or `classes`: a number for each class (or for
            each entry of a target).
        readout: of `classes`: `average` gives the last convolution a channel for each number and takes its mean over
            the pixels, as nichani2020 does; `flatten` puts a linear layer on the last convolution's flattened output,
            of `channels` channels, after an activation.
        initial: by name, see `initialise`. zhang2019 does not say; PyTorch's own reproduces its effects.
        initial_scale: a factor for all initial weights.
        **recipe: see `AbstractFamily`.

    Raises:
        UserError: a number below 1, an even kernel, a circular kernel larger than an image, `siren` without sines, or
            `image` where the targets are none of the inputs' size.
    """

    def __init__(
        self,
        depth: int = 5,
        channels: int = 128,
        kernel_size: int = 5,
        activation: ActivationName = "relu",
        padding_mode: PaddingMode = "zeros",
        bias: bool = True,
        output: Literal["image", "classes"] = "image",
        readout: Literal["average", "flatten"] = "average",
        initial: InitialName = "pytorch",
        initial_scale: float = 1.0,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        if depth < 1 or channels < 1:
            raise UserError(f"ConvNet depth={depth}, channels={channels}: both must be at least 1.")
        check_initial(initial, activation)
        check_kernel(kernel_size)
        self.depth, self.channels, self.kernel_size, self.padding_mode = depth, channels, kernel_size, padding_mode
        self.activation, self.bias, self.output, self.readout = activation, bias, output, readout
        self.initial, self.initial_scale = initial, initial_scale

    def build(self, shapes: Shapes) -> nn.Module:
        input_shape = shapes.input
        check_kernel(self.kernel_size, self.padding_mode, input_shape[-2:])
        if self.output == "image":
            last = _image_channels(shapes)
        else:
            last = shapes.outputs if self.readout == "average" else self.channels
        net = nn.Sequential()
        if self.padding_mode == "circular":
            net.add_module("fits", FitsKernel(self.kernel_size))
        channels = input_shape[0]
        for index in range(1, self.depth + 1):
            filters = last if index == self.depth else self.channels
            conv = convolution(channels, filters, self.kernel_size, self.bias, self.padding_mode)
            net.add_module(f"conv{index}", conv)
            channels = self.channels
            if index < self.depth or (self.output, self.readout) == ("classes", "flatten"):
                net.add_module(f"{self.activation}{index}", activation(self.activation))
        if self.output == "classes":
            if self.readout == "average":
                net.add_module("average", nn.AdaptiveAvgPool2d(1))
            net.add_module("flatten", nn.Flatten())
            if self.readout == "flatten":
                features = last * input_shape[1] * input_shape[2]
                net.add_module("head", nn.Linear(features, shapes.outputs, bias=self.bias))
        initialise(layers_of(net), self.initial, self.initial_scale)
        return net


def _image_channels(shapes: Shapes) -> int:
    wanted, (_, height, width) = shapes.target, shapes.input
    if wanted is None or len(wanted) != 3 or wanted[1:] != (height, width):
        found = "classes" if wanted is None else f"of shape {wanted}"
        hint = "Give output=classes, or data whose targets are images."
        needed = f"targets that are images of {height} x {width} pixels"
        raise UserError(f"ConvNet output=image needs {needed}, these are {found}.\n{hint}")
    return wanted[0]


def convolution(channels_in: int, channels: int, size: int, bias: bool, padding_mode: PaddingMode) -> nn.Conv2d:
    """A convolution size x size of stride 1 that keeps the image's size."""
    return nn.Conv2d(channels_in, channels, size, padding=size // 2, bias=bias, padding_mode=padding_mode)


def check_kernel(kernel_size: int, padding_mode: PaddingMode = "zeros", image: Sequence[int] = ()) -> None:
    """Refuse kernels that are even, or go round a circular `image` (height, width; once known) more than once."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"kernel_size={kernel_size}: it must be odd and positive; an even kernel has no middle.")
    if padding_mode == "circular" and image and kernel_size > min(image):
        sizes = f"{kernel_size} x {kernel_size} is larger than an image of {image[0]} x {image[1]}"
        advice = "Give a smaller kernel_size, or padding_mode=zeros."
        raise UserError(f"A circular kernel of {sizes}: it would see pixels twice.\n{advice}")
