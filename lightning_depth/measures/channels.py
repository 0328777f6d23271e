"""Many channels as one image, and the upper part of a network by itself (zhang2019 3.4-3.5, Appendices E and G).

All raise ValueError for NaN, infinity or a shape that does not fit.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_depth.measures.rows import check_finite, normalised


class SingularImage(NamedTuple):
    """The top singular vector across channels: (*batch, h, w), norm 1, and its share of the activations, (*batch).

    Float64; both are zero for activations that are zero.
    """

    image: Tensor
    share: Tensor


class ChannelMatch(NamedTuple):
    """The number, (*batch), of the channel that correlates most with an image, and its correlation, float64."""

    channel: Tensor
    correlation: Tensor


def _maps(activations: Tensor) -> Tensor:
    """The channels in rows, (n, c, h w), float64."""
    if activations.ndim not in (3, 4):
        raise ValueError(f"activations have shape {tuple(activations.shape)}, not (c, h, w) or (n, c, h, w)")
    check_finite(activations, "activations are")
    return activations.double().flatten(-2).reshape(-1, activations.shape[-3], activations.shape[-2:].numel())


def _reference_rows(reference: Tensor, activations: Tensor) -> Tensor:
    """The reference as one image of the activations' size for all samples or for each: (1 or n, h w), float64."""
    n = len(activations) if activations.ndim == 4 else 1
    if reference.ndim not in (2, 3, 4) or (reference.ndim == 4 and len(reference) != n):
        raise ValueError(f"reference has shape {tuple(reference.shape)} for activations {tuple(activations.shape)}")
    check_finite(reference, "the reference is")
    image = reference.double()
    image = image[None, None] if image.ndim == 2 else image.mean(-3, keepdim=True).reshape(-1, 1, *image.shape[-2:])
    if image.shape[-2:] != activations.shape[-2:]:
        image = F.interpolate(image, activations.shape[-2:], mode="area")
    return image.flatten(1)


def top_singular_image(
    activations: Float[Tensor, "*batch c h w"], reference: Float[Tensor, "..."] | None = None
) -> SingularImage:
    r"""Activations of many channels as one image: their top right singular vector (zhang2019 section 3.4, Figure 8).

        A = sum_i sigma_i u_i v_i^T,  A of c x h w;   image = +-v_1,   share = sigma_1^2 / sum_i sigma_i^2

    `activations` are those of one input, (c, h, w), or of a batch, (n, c, h, w), each with its own SVD, uncentred.
    A singular vector has no sign: it gets the one with <v_1, reference> >= 0 if a reference is given, in the shapes and
    with the resizing of `most_correlated_channel`, else the one with sum(v_1) >= 0. Where sigma_1 = sigma_2 the vector
    is any of their plane.

    Cost: the eigenvectors of the smaller Gram matrix, O(c h w min(c, h w)); a float64 copy.

    >>> edge = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    >>> image, share = top_singular_image(torch.stack([-3 * edge, 4 * edge]), reference=edge)
    >>> image * 2**0.5, share
    (tensor([[ 1., -1.],
            [ 0.,  0.]], dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    maps = _maps(activations)
    if maps.shape[1] <= maps.shape[2]:
        squares, left = torch.linalg.eigh(maps @ maps.mT)
        image = (left[:, None, :, -1] @ maps).squeeze(1)  # sigma_1 v_1 = A^T u_1
    else:
        squares, right = torch.linalg.eigh(maps.mT @ maps)
        image = right[:, :, -1]
    total = maps.square().sum((1, 2))
    length = torch.linalg.vector_norm(image, dim=1)
    image = image * torch.where((total > 0) & (length > 0), 1 / length, 0.0)[:, None]
    # sigma_1^2 / sum_i sigma_i^2
    share = (squares[:, -1].clamp_min(0) / torch.where(total > 0, total, 1.0)).clamp_max(1)
    towards = image if reference is None else image * _reference_rows(reference, activations)
    image = torch.where(towards.sum(1, keepdim=True) < 0, -image, image)
    batch, size = activations.shape[:-3], activations.shape[-2:]
    return SingularImage(image.reshape(*batch, *size), share.view(batch))


def most_correlated_channel(
    activations: Float[Tensor, "*batch c h w"], reference: Float[Tensor, "..."]
) -> ChannelMatch:
    r"""The channel that correlates most with the input image (zhang2019 Appendix E, Figures 19-21).

        argmax_c <a_c, r> / (||a_c|| ||r||)

    The paper's correlation is the cosine, not centred, and signed: a negative copy of the image is at -1. The first of
    equals is taken. `activations` are (c, h, w) or (n, c, h, w); `reference` is one image for all, (h', w') or
    (c', h', w'), or one for each, (n, c', h', w'). Its channels are averaged; another size is resized by area (torch's
    mode "area"). A channel that is constant, zero or not, shows nothing of the image: 0, though its cosine need not be.
    A zero reference: 0 for all. Cost: float64 copies of the activations.

    >>> image = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    >>> channel, correlation = most_correlated_channel(torch.stack([torch.ones(2, 2), -image, 5 * image]), image)
    >>> int(channel), round(float(correlation), 6)
    (2, 1.0)
    """
    maps = _maps(activations)
    n, channels, size = maps.shape
    rows = normalised(maps.reshape(n * channels, size), centred=False).rows.view(n, channels, size)
    image = normalised(_reference_rows(reference, activations), centred=False).rows
    # <a_c, r> / (||a_c|| ||r||)
    correlations = (rows * image[:, None]).sum(2).clamp(-1, 1) * (maps != maps[:, :, :1]).any(2)
    channel = correlations.argmax(1, keepdim=True)
    batch = activations.shape[:-3]
    return ChannelMatch(channel.view(batch), correlations.gather(1, channel).view(batch))


def upper_output(network: nn.Module, layer: str, replacement: Tensor, carrier: Tensor) -> Any:
    """What the network returns when `replacement` is fed directly to `layer` (zhang2019 section 3.5, Appendix G).

    The "upper subnetwork": `carrier`, an ordinary input batch, drives the network as far as `layer`, whose input is
    then replaced. `layer` is a name of `network.named_modules()`; a module that is called several times needs the
    number of the call as well, as in `relu#2`. What reaches the output on a path round the layer, a skip connection,
    still comes from the carrier: feed the whole residual block. Without such a path the batch may be of any length, and
    the answer does not depend on the carrier. In train mode BatchNorm buffers see both batches. Gradients flow.

    Raises ValueError, too, if there is no such module, this carrier does not lead to that call, the module is called
    several times and the call is not named, or it is called with no tensor or several. Cost: one forward pass.

    >>> network = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    >>> upper_output(network, "1", torch.tensor([[-1.0, 0.0, 2.0]]), carrier=torch.zeros(1, 5))
    tensor([[0., 0., 2.]])
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    name, numbered, number = (layer, "", "1") if layer in modules else layer.rpartition("#")
    if name not in modules or not number.isdecimal() or (not numbered and layer not in modules):
        raise ValueError(f"the network has no module {layer!r}")
    check_finite(replacement, "the replacement is")
    wanted = int(number)
    if wanted < 1:
        raise ValueError(f"calls are numbered from 1, not {layer}")
    shapes: list[tuple[int, ...]] = []  # of what the carrier would have fed at each call

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        shapes.append(tuple(tensors[0].shape) if len(tensors) == 1 else ())
        if len(shapes) != wanted:
            return None
        if len(tensors) != 1:
            raise ValueError(f"{layer} is called with {len(tensors)} tensors: only one can be replaced")
        return (
            tuple(replacement if isinstance(value, Tensor) else value for value in args),
            {key: replacement if isinstance(value, Tensor) else value for key, value in kwargs.items()},
        )

    handle = modules[name].register_forward_pre_hook(replace, with_kwargs=True)
    try:
        output = network(carrier)
    except (RuntimeError, ValueError, IndexError) as error:
        if len(shapes) < wanted or shapes[wanted - 1] in ((), tuple(replacement.shape)):
            raise
        refused = f"{tuple(replacement.shape)} where the carrier brings {shapes[wanted - 1]}"
        raise ValueError(f"{layer} or a layer above it refuses {refused}: {error}") from error
    finally:
        handle.remove()
    if len(shapes) < wanted:
        raise ValueError(f"this carrier leads to {len(shapes)} calls of {name}, {layer} is not among them")
    if len(shapes) > 1 and not numbered:
        raise ValueError(f"{name} is called {len(shapes)} times: ask for {name}#1 ... {name}#{len(shapes)}")
    return output
