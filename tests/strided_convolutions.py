"""Outputs and gradients of strided 1 x 1 convolutions against float64, in a process that may crash or hang.

python tests/strided_convolutions.py LAYER ...    with ONEDNN_MAX_CPU_ISA in the environment
"""

import itertools
import sys

import torch
from torch import nn
from torch.nn import functional as F

from lightning_depth.layers.convolutions import PointwiseConv2d, subsample_first
from lightning_depth.layers.expansion import expand
from lightning_depth.models import Imported, ResNet


def bare(channels, outputs, stride):
    return nn.Conv2d(channels, outputs, 1, stride)


def ours(channels, outputs, stride):
    return PointwiseConv2d(channels, outputs, 1, stride, bias=False)


def circular(channels, outputs, stride):
    return PointwiseConv2d(channels, outputs, 1, stride, padding=1, padding_mode="circular")


def expanded(channels, outputs, stride):
    return expand(nn.Conv2d(channels, outputs, 1, stride, padding=(0, 1)), 2)


def imported(channels, outputs, stride):
    """Somebody else's layer, trained by our recipe."""
    model = Imported("torch.nn.Conv2d", input_shape=(channels, 9, 9), num_classes=outputs)
    model.arguments = {"in_channels": channels, "out_channels": outputs, "kernel_size": 1, "stride": stride}
    model.configure_model()
    return model


def shortcut(channels, outputs, stride):
    """The layer as it stands in a ResNet, whose stages double the channels."""
    model = ResNet(depth=10, width=channels, input_shape=(1, 8, 8), num_classes=2)
    model.configure_model()
    layer = model.net.stage2[0].shortcut[0]
    layer.stride = stride
    return layer


class Within(nn.Module):
    """A layer that is called within the mode, its gradients taken outside."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with subsample_first():
            return self.net(x)


def transposed(channels, outputs, stride):
    padding = [step - 1 for step in stride]
    return Within(nn.ConvTranspose2d(outputs, channels, 1, stride, output_padding=padding))


LAYERS = {layer.__name__: layer for layer in (bare, ours, circular, expanded, imported, shortcut, transposed)}


def cases():
    """The kinds that are known to fail come first."""
    known = [(2, 4, (2, 2), 128, 28, "last"), (7, 1, (2, 2), 5, 28, "last"), (4, 8, (1, 2), 128, 14, "last")]
    strides, orders = [(2, 2), (1, 2), (2, 1), (3, 3)], ["last", "first", "seen as either"]
    every = itertools.product(range(1, 18), strides, orders)
    shapes = itertools.cycle([(1, 5, 14), (9, 33, 7), (16, 8, 9), (4, 1, 32), (24, 3, 8)])
    return known + [(c, outputs, s, *shape, o) for (c, s, o), (outputs, *shape) in zip(every, shapes, strict=False)]


def error(make, case):
    """The largest error of the output and the two gradients, each relative to its largest entry."""
    channels, outputs, stride, samples, size, order = case
    torch.manual_seed(0)
    layer = make(channels, outputs, stride)
    x = torch.randn(samples, outputs if make is transposed else channels, size, size + 1)
    if order == "last":
        x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    elif order == "seen as either":  # as an augmented batch of one channel
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    parameters = list(layer.parameters())
    y = layer(x)
    found = [y.detach(), *torch.autograd.grad(y, [x, *parameters], torch.cos(y.detach()))]

    # The same in float64, where torch has another kernel, and without the stride.
    inner = getattr(layer, "net", layer)
    exact = [p.detach().double().requires_grad_() for p in parameters]
    named = dict(zip([name for name, _ in inner.named_parameters()], exact, strict=True))
    weight = named["weight"] if "weight" in named else product(named["weight_2"], named["weight_1"])
    z = x.detach().double().requires_grad_()
    if isinstance(inner, nn.ConvTranspose2d):
        out = F.conv_transpose2d(z, weight, named["bias"], stride, 0, inner.output_padding)
        return largest(found, [out.detach(), *torch.autograd.grad(out, [z, *exact], torch.cos(y.detach()).double())])
    padded = z
    if inner.padding != (0, 0):
        down, across = inner.padding
        mode = "constant" if inner.padding_mode == "zeros" else inner.padding_mode
        padded = F.pad(z, (across, across, down, down), mode=mode)
    picked = padded[:, :, :: stride[0], :: stride[1]]
    out = torch.einsum("nchw,oc->nohw", picked, weight.flatten(1))
    if "bias" in named:
        out = out + named["bias"].view(1, -1, 1, 1)
    return largest(found, [out.detach(), *torch.autograd.grad(out, [z, *exact], torch.cos(y.detach()).double())])


def largest(found, wanted):
    pairs = zip(found, wanted, strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def product(last, first):
    return (last.flatten(1) @ first.flatten(1)).reshape(-1, first.shape[1], 1, 1)


def main(names):
    torch.set_num_threads(2 if "bare" in names else 1)  # both are wrong, and one does not wait on a crowded machine
    for name, (index, case) in itertools.product(names, enumerate(cases())):
        if name in ("circular", "expanded", "shortcut", "transposed") and index % 4 > 1:
            continue  # every channel, stride and order comes up all the same
        if name == "shortcut":
            case = (case[0], 2 * case[0], *case[2:])
        print(name, case, file=sys.stderr, flush=True)  # the last line names a case that hangs
        found = error(LAYERS[name], case)
        if not found < 1e-4:
            sys.exit(f"{name}, in, out, stride, samples, size, order {case}: wrong by {found:.2g}")


if __name__ == "__main__":
    main(sys.argv[1:])
