"""Products of matrices: the linear networks of huh2021, and the Toeplitz networks of nichani2020 Fig. 8c."""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import islice, pairwise
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_depth.errors import UserError
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.initial import InitialName, initialise
from lightning_depth.models.shapes import Shapes


class Toeplitz(nn.Module):
    """A parametrisation: the m x n matrix T_ij = t_(i - j + n - 1), constant along diagonals, of m + n - 1 numbers t.

    Its right inverse takes a matrix's first row and column, so a Toeplitz matrix starts with entries of the same
    distribution as the dense one it is made from.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, t: Tensor) -> Tensor:
        # Row i of unfold is t_i ... t_(i + n - 1); T_ij = t_(i + n - 1 - j)
        return t.unfold(0, self.n, 1).flip(1)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return torch.cat([matrix[0].flip(0), matrix[1:, 0]])


class LinearBlock(nn.Module):
    """x -> W x, normalised, plus x (huh2021 App. C): BatchNorm and the residual connection are there or not."""

    def __init__(self, linear: nn.Linear, batch_norm: bool, residual: bool) -> None:
        super().__init__()
        self.linear = linear
        self.bn: nn.Module = nn.BatchNorm1d(linear.out_features) if batch_norm else nn.Identity()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.linear(x))
        return out + x if self.residual else out


class DeepLinear(AbstractFamily):
    """A product of d matrices W_d ... W_1 applied to flattened inputs (huh2021 2.1).

    Args:
        depth: d, the number of matrices.
        width: rows of every matrix but the last; None: as many as there are inputs (huh2021 App. B).
        layer: `dense`, or `toeplitz` (nichani2020 Fig. 8c): matrices that are constant along their diagonals.
        residual: W -> W + I in every square layer (huh2021 App. C, Fig. 9).
        batch_norm: BatchNorm after every matrix but the last, within the residual branch (Fig. 9). Linear in eval mode.
        bias: whether layers have biases; the paper's have none.
        initial: by name, see `initialise`.
        initial_scale: a factor for all initial weights. It decides whether deep Toeplitz networks train at all.
        initial_depth: D >= d: start with the end-to-end distribution of the network of depth D (Fig. 5, right; 32
            there). D matrices are drawn, and as many consecutive ones multiplied for each of the d layers as makes the
            numbers differ by at most one.
        **recipe: see `AbstractFamily`.

    Raises:
        UserError: a number below 1, or `initial_depth` below `depth` or together with what is no plain product.
    """

    def __init__(
        self,
        depth: int = 3,
        width: int | None = None,
        layer: Literal["dense", "toeplitz"] = "dense",
        residual: bool = False,
        batch_norm: bool = False,
        bias: bool = False,
        initial: InitialName = "pytorch",
        initial_scale: float = 1.0,
        initial_depth: int | None = None,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        if depth < 1 or (width is not None and width < 1):
            raise UserError(f"DeepLinear depth={depth}, width={width}: both must be at least 1.")
        if initial == "siren":
            raise UserError("DeepLinear has no sines: initial=siren does not apply.")
        if initial_depth is not None:
            if initial_depth < depth:
                raise UserError(f"DeepLinear initial_depth={initial_depth} must be at least depth={depth}.")
            if layer != "dense" or residual or batch_norm or bias or initial == "ntk":
                plain = "plain products of dense matrices:\nleave out toeplitz, residual, batch_norm, bias and ntk."
                raise UserError(f"DeepLinear initial_depth is for {plain}")
        self.depth, self.width, self.layer = depth, width, layer
        self.residual, self.batch_norm, self.bias = residual, batch_norm, bias
        self.initial, self.initial_scale, self.initial_depth = initial, initial_scale, initial_depth

    def build(self, shapes: Shapes) -> nn.Module:
        inputs, outputs = math.prod(shapes.input), shapes.outputs
        width = inputs if self.width is None else self.width
        if self.depth > 1 and width < min(inputs, outputs):
            rank_zero_warn(f"DeepLinear width {width} limits the rank of the product: it has {inputs} inputs.")
        layers = self._layers(self.depth, inputs, width, outputs)
        if self.layer == "toeplitz":
            for layer in layers:
                parametrize.register_parametrization(layer, "weight", Toeplitz(layer.in_features))
        if self.initial_depth is None:
            initialise(layers, self.initial, self.initial_scale)
        else:
            factors = self._layers(self.initial_depth, inputs, width, outputs)
            initialise(factors, self.initial, self.initial_scale)
            set_products(layers, [factor.weight.detach() for factor in factors])
        net = nn.Sequential()
        net.add_module("flatten", nn.Flatten())
        for index, layer in enumerate(layers, start=1):
            batch_norm = self.batch_norm and index < self.depth
            residual = self.residual and layer.in_features == layer.out_features
            module = LinearBlock(layer, batch_norm, residual) if batch_norm or residual else layer
            net.add_module("head" if index == self.depth else f"layer{index}", module)
        if shapes.target is not None and len(shapes.target) > 1:
            net.add_module("unflatten", nn.Unflatten(1, shapes.target))
        return net

    def _layers(self, depth: int, inputs: int, width: int, outputs: int) -> list[nn.Linear]:
        return [nn.Linear(n, m, bias=self.bias) for n, m in pairwise([inputs, *[width] * (depth - 1), outputs])]


@torch.no_grad()
def set_products(layers: Sequence[nn.Linear], factors: Sequence[Tensor]) -> None:
    """Give each layer the product of its share of the factors, first layers first: the whole product is kept.

    Shares differ by at most one factor, the larger ones first. Products are taken in float64.

    >>> layers = [nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)]
    >>> set_products(layers, [torch.full((1, 1), value) for value in (2.0, 3.0, 5.0)])
    >>> [float(layer.weight) for layer in layers]
    [6.0, 5.0]
    """
    share, more = divmod(len(factors), len(layers))
    left = iter(factors)
    for index, layer in enumerate(layers):
        own = [factor.double() for factor in islice(left, share + (index < more))]
        # W_k ... W_1
        layer.weight.copy_(reduce(lambda product, factor: factor @ product, own))
