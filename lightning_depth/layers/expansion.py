"""Linear over-parameterisation of any network: a layer's weight becomes a product of matrices (huh2021 App. B and C).

A layer W, m x n, becomes W_d ... W_1 with nothing between the factors. A convolution's W_1 has the kernel, and all the
padding, stride and dilation; the other factors are 1x1. The network computes the same class of functions as before (if
no hidden width is a rank bottleneck), and gradient descent moves through it differently.
"""

import copy
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Required, TypedDict

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import PointwiseConv2d

Kind = Literal["linear", "conv"]
Keep = Literal["class", "function", "variance"]


class Expansion(TypedDict, total=False):
    """The arguments of `expand`, as they stand in YAML: `{factor: 4, which: [conv]}`."""

    factor: Required[int]
    width: int | str | None
    which: list[Kind]
    keep: Keep
    residual: bool
    allow_bottleneck: bool


class ExpandedLayer(nn.Module):
    """A layer whose `weight` is the product of its factors: the parameters `weight_1` (at the input) to `weight_d`.

    It is still a linear layer or a convolution, under the same name and with the same bias, so whatever looks at layers
    sees the product, huh2021's effective weight.
    """

    factor: int
    residual: bool
    plain: type[nn.Module]
    """The class of the layer that it was, and that `collapse` makes of it."""

    def factors(self) -> list[Tensor]:
        """W_1, ..., W_d as they are multiplied: with the identity added, where the expansion is residual."""
        weights: list[Tensor] = [self.get_parameter(f"weight_{i + 1}") for i in range(self.factor)]
        if self.residual:
            groups = getattr(self, "groups", 1)
            weights = [w + _identity(w, groups) if _is_square(w, groups) else w for w in weights]
        return weights

    @property
    def weight(self) -> Tensor:
        """W_d ... W_1, of the plain layer's shape (m, n / groups, *kernel)."""
        groups = getattr(self, "groups", 1)
        *others, last = self.factors()
        # From the left: the m outputs are usually fewer than the n k^2 inputs. Each group has factors of its own.
        product = _by_group(last, groups)
        for factor in reversed(others):
            product = product @ _by_group(factor, groups)
        return product.reshape(-1, *others[0].shape[1:])


class ExpandedLinear(ExpandedLayer, nn.Linear):  # type: ignore[override]  # `weight` is read only
    """An expanded `nn.Linear`; it multiplies the matrices first, or one after the other where that is less work."""

    applies_its_weight = True  # its forward is another than that of nn.Linear, and the same map

    def forward(self, x: Tensor) -> Tensor:
        m, n, h, middle = self.out_features, self.in_features, len(self.get_parameter("weight_1")), self.factor - 2
        rows = x.numel() // n
        if rows * (m * n) + m * h * (middle * h + n) <= rows * (h * n + middle * h * h + m * h):
            return F.linear(x, self.weight, self.bias)
        *first, last = self.factors()
        for factor in first:
            x = F.linear(x, factor)
        return F.linear(x, last, self.bias)


# A convolution multiplies its factors first, always: one convolution instead of d, with the same gradients.
class ExpandedConv1d(ExpandedLayer, nn.Conv1d):  # type: ignore[override]
    """An expanded `nn.Conv1d`."""


class ExpandedConv2d(ExpandedLayer, nn.Conv2d):  # type: ignore[override]
    """An expanded `nn.Conv2d`."""


class ExpandedPointwiseConv2d(ExpandedLayer, PointwiseConv2d):  # type: ignore[override]
    """An expanded 1 x 1 convolution, strided or not, which subsamples first as `PointwiseConv2d` does."""


EXPANDED: dict[type[nn.Module], type[ExpandedLayer]] = {
    nn.Linear: ExpandedLinear,
    nn.Conv1d: ExpandedConv1d,
    nn.Conv2d: ExpandedConv2d,
    PointwiseConv2d: ExpandedPointwiseConv2d,
}


def expand(
    net: nn.Module,
    factor: int,
    width: int | str | None = None,
    which: Sequence[Kind] = ("linear", "conv"),
    keep: Keep = "variance",
    residual: bool = False,
    allow_bottleneck: bool = False,
) -> nn.Module:
    r"""A copy of `net` in which the weight of each chosen layer is a product of `factor` matrices (huh2021 App. B).

        W in R^{m x n x k x k}  ->  W_d ... W_1
        W_1: h x n x k x k,   W_2 ... W_{d-1}: h x h x 1 x 1,   W_d: m x h x 1 x 1

    With g groups, every factor has g groups, and m, n, h below are those of one group. The bias is kept, once. Weights
    are drawn from torch's global generator. Raises a UserError for nothing to expand, a bottleneck, or options that
    contradict each other.

    Args:
        net: any network; layers of exactly the types `nn.Linear`, `nn.Conv1d` and `nn.Conv2d` (or ours) are expanded.
        factor: the number of matrices, d; 1 changes nothing.
        width: the hidden width h, of all groups together: a number, or a multiple of the layer's inputs, such as `n`
            (the paper's) or `2n` (the paper's for ImageNet). None: n, or where the kernel has a higher rank than that
            min(m, n k^2). Only the second keeps the function class where a convolution has more outputs than inputs:
            with h = n its kernel, as an m x n k^2 matrix, has a rank of at most n.
        which: kinds of layers.
        keep: besides the shapes, what of the initial network. `variance`: that of the outputs, in expectation: W_1 is
            normal with the plain weight's mean square, the others with variance 1/h (the paper's "scaled Normal" with
            gain 1, for nothing but linear maps follows them). `function`: the product is the plain weight; all factors
            but one are random and (semi-)orthogonal. `class`: nothing: each factor as torch draws a layer of its shape.
        residual: the identity (the Dirac kernel) is added to each factor with as many inputs as outputs (App. C,
            W -> W + I). Not with keep=variance: the sum of two has the variance of both.
        allow_bottleneck: let h be smaller than min(m, n k^2): the paper's rank bottleneck.

    >>> plain = nn.Conv2d(3, 8, 3, padding=1)
    >>> [tuple(p.shape) for p in expand(plain, 3).parameters()]
    [(8,), (8, 3, 3, 3), (8, 8, 1, 1), (8, 8, 1, 1)]
    """
    if factor < 1:
        raise UserError(f"An expansion's factor is the number of matrices, at least 1, not {factor}.")
    if not which or not set(which) <= {"linear", "conv"}:
        raise UserError(f"An expansion's which is a list of linear and conv, not {list(which)}.")
    if residual and keep == "variance":
        raise UserError("A residual expansion W + I cannot keep the variance: keep: function, or class.")
    expanded = copy.deepcopy(net)
    if factor == 1:
        return expanded
    chosen = list(_layers(expanded, which))
    if not chosen:
        raise UserError(f"There is no layer to expand: the network has no plain {' or '.join(which)} layer.")
    _refuse_tied(expanded, [layer for _, layer in chosen])
    for name, layer in chosen:
        hidden = _hidden_width(name, layer, width, allow_bottleneck)
        factors = _drawn(name, layer, factor, hidden, keep)
        groups = getattr(layer, "groups", 1)
        trained, plain = layer.weight.requires_grad, layer.weight.detach()
        del layer.weight
        layer.plain = type(layer)
        is_pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
        layer.__class__ = EXPANDED[PointwiseConv2d if is_pointwise else type(layer)]
        assert isinstance(layer, ExpandedLayer)
        layer.factor, layer.residual = factor, residual
        for i, weight in enumerate(factors):
            if residual and _is_square(weight, groups):
                weight = weight - _identity(weight, groups)
            layer.register_parameter(f"weight_{i + 1}", nn.Parameter(weight.to(plain), requires_grad=trained))
    return expanded


def collapse(net: nn.Module) -> nn.Module:
    """A copy of `net` in which each expanded layer is a plain one again: same function, names and `state_dict` keys.

    >>> plain = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="circular")
    >>> again = collapse(expand(plain, 3, keep="function"))
    >>> type(again).__name__, bool((again.weight - plain.weight).abs().max() < 1e-6)
    ('Conv2d', True)
    """
    collapsed = copy.deepcopy(net)
    for layer in list(collapsed.modules()):
        if isinstance(layer, ExpandedLayer):
            trained = any(layer.get_parameter(f"weight_{i + 1}").requires_grad for i in range(layer.factor))
            weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=trained)
            for i in range(layer.factor):
                delattr(layer, f"weight_{i + 1}")
            bias = layer._parameters.pop("bias")
            layer.__class__ = layer.plain  # type: ignore[assignment]
            del layer.factor, layer.residual
            vars(layer).pop("plain", None)
            layer.register_parameter("weight", weight)
            layer.register_parameter("bias", bias)  # after the weight, as in a plain layer
    return collapsed


def _layers(net: nn.Module, which: Sequence[Kind]) -> Iterator[tuple[str, Any]]:
    """The layers to expand, by name; those that another class of layer may run differently are named in a warning."""
    kinds = {"linear": (nn.Linear,), "conv": (nn.Conv1d, nn.Conv2d)}
    wanted = tuple(kind for word in which for kind in kinds[word])
    left = []
    for name, module in net.named_modules():
        if isinstance(module, ExpandedLayer):
            raise UserError(f"{name or 'The network'} is expanded already: collapse it first.")
        if type(module) in EXPANDED and isinstance(module, wanted):
            yield name, module
        elif isinstance(module, wanted):
            left.append(f"{name} ({type(module).__name__})")
    if left:
        rank_zero_warn(f"Not expanded, for they are layers of another class: {', '.join(left)}.")


def _refuse_tied(net: nn.Module, chosen: Sequence[Any]) -> None:
    owners: dict[Tensor, set[nn.Module]] = {}
    for module in net.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    if any(len(owners[layer.weight]) > 1 for layer in chosen):
        raise UserError("Two layers of the network share a weight, and an expansion would part them: expand neither.")


def _hidden_width(name: str, layer: Any, width: int | str | None, allow_bottleneck: bool) -> int:
    """The hidden width of all groups together."""
    groups: int = getattr(layer, "groups", 1)
    m, n, *kernel = (int(size) for size in layer.weight.shape)
    m, inputs = m // groups, n * math.prod(kernel)
    if width is None:
        return groups * max(n, min(m, inputs))
    if isinstance(width, str):
        if (found := re.fullmatch(r"([1-9]\d*)?n", width)) is None:
            raise UserError(f"An expansion's width is a number, or a multiple of the inputs such as 2n, not {width!r}.")
        hidden = int(found[1] or 1) * n * groups
    else:
        hidden = width
    if hidden < 1 or hidden % groups:
        wanted = f"positive and a multiple of its {groups} group(s)"
        raise UserError(f"{name}: a hidden width must be {wanted}, not {hidden}.")
    needed = min(m, inputs)
    if hidden // groups < needed and not allow_bottleneck:
        each = " in each group" if groups > 1 else ""
        narrow = f"a hidden width of {hidden // groups} is a rank bottleneck{each}: the weight is {m} x {inputs}"
        advice = f"Give a width of at least {needed * groups} (None finds one for each layer), or allow_bottleneck."
        raise UserError(f"{name}: {narrow}.\n{advice}")
    return hidden


def _drawn(name: str, layer: Any, factor: int, hidden: int, keep: Keep) -> list[Tensor]:
    """W_1, ..., W_d in their full shapes, on the CPU; where there are identities to add, with them."""
    groups, plain = getattr(layer, "groups", 1), layer.weight.detach().cpu()
    m, n, *kernel = plain.shape
    ones = [1] * len(kernel)
    shapes = [(hidden, n, *kernel), *[(hidden, hidden // groups, *ones)] * (factor - 2), (m, hidden // groups, *ones)]
    if keep == "function":
        drawn = [_factors_of(name, weight, factor, hidden // groups) for weight in _by_group(plain.double(), groups)]
        parts = [torch.cat(group) for group in zip(*drawn, strict=True)]
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    if keep == "variance":
        # E |W_d ... W_1 x|^2 = m mean(W^2) |x|^2, whatever d
        scales = [float(plain.double().square().mean().sqrt()), *[(hidden // groups) ** -0.5] * (factor - 1)]
        return [torch.randn(shape) * scale for shape, scale in zip(shapes, scales, strict=True)]
    # torch's own: uniform up to 1 / sqrt(inputs)
    return [(2 * torch.rand(shape) - 1) / math.prod(shape[1:]) ** 0.5 for shape in shapes]


def _factors_of(name: str, weight: Tensor, factor: int, hidden: int) -> list[Tensor]:
    """Matrices whose product is `weight`, (m, inputs): one takes it, through the transposes of orthogonal others."""
    m, inputs = weight.shape
    if hidden < min(m, inputs):
        kept = f"the function of a {m} x {inputs} weight"
        raise UserError(f"{name}: a product through {hidden} units cannot keep {kept}.")
    middle = [_orthogonal(hidden, hidden) for _ in range(factor - 2)]
    if hidden >= m:
        last = _orthogonal(m, hidden)
        through = torch.linalg.multi_dot([last, *reversed(middle)]) if middle else last
        return [through.T @ weight, *middle, last]  # through through^T = I
    first = _orthogonal(hidden, inputs)
    through = torch.linalg.multi_dot([*reversed(middle), first]) if middle else first
    return [first, *middle, weight @ through.T]  # through^T through = I


def _orthogonal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64))


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """(out, in / groups, *kernel) as one matrix a group: (groups, out / groups, in / groups * kernel)."""
    return weight.reshape(groups, len(weight) // groups, -1)


def _is_square(weight: Tensor, groups: int) -> bool:
    return len(weight) == weight.shape[1] * groups


def _identity(weight: Tensor, groups: int) -> Tensor:
    """The identity map as a weight: 1 at the middle of the kernel, from each channel to itself."""
    if weight.dim() == 2:
        return torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return nn.init.dirac_(torch.empty_like(weight, requires_grad=False), groups)
