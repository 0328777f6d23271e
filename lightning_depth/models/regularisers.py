"""Explicit regularisers of weights, and low-rank initial weights (huh2021 Table 3)."""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, Required, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.layers.expansion import ExpandedLayer
from lightning_depth.measures import spectra

Penalty = Literal["l1", "l2", "squared_frobenius", "nuclear", "effective_rank", "stable_rank"]


class Regulariser(TypedDict, total=False):
    """`coefficient` times the sum of a penalty over chosen weights, as it stands in YAML.

    kind: see `penalty`.
    coefficient: at least 0.
    weights: shell patterns on the names of parameters, such as `["stage1.*", "head.weight"]`; left out: all. Vectors
        (biases, BatchNorm) count only where a pattern names them and the penalty is one of entries (l1, l2,
        squared_frobenius).
    factors: of an expanded layer take the factors, as weight decay would, and not their product `weight`.
    """

    kind: Required[Penalty]
    coefficient: Required[float]
    weights: list[str]
    factors: bool


class LowRank(TypedDict, total=False):
    """Weights that start with a rank of at most `rank`, as it stands in YAML; `weights` as in `Regulariser`."""

    rank: Required[int]
    weights: list[str]


OF_ENTRIES: dict[str, Callable[[Tensor], Tensor]] = {
    # sum_ij |w_ij|
    "l1": lambda weight: weight.abs().sum(),
    # (sum_ij w_ij^2)^(1/2)
    "l2": torch.linalg.vector_norm,
    # sum_ij w_ij^2
    "squared_frobenius": lambda weight: weight.square().sum(),
}
OF_SPECTRUM: dict[str, Callable[[Tensor], Tensor]] = {
    "nuclear": spectra.nuclear_norm,
    "effective_rank": spectra.effective_rank,
    "stable_rank": spectra.stable_rank,
}


def penalty(kind: Penalty, weight: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """A penalty of one weight (huh2021 Table 3; measures of rank: App. D), with gradient.

    `l1` is the sum of the absolute entries, `l2` their Euclidean norm (not squared), `squared_frobenius` its square.
    `nuclear`, `effective_rank` (nats) and `stable_rank` are of the weight as a matrix (outputs, all else), in float64,
    and cost a singular value decomposition each: seconds a step for a ResNet-18. A `UserError` where a spectrum is
    wanted of a weight that is no matrix, or that is infinite or NaN.

    >>> weight = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    >>> [round(float(penalty(k, weight)), 3) for k in ("l1", "l2", "squared_frobenius", "nuclear", "stable_rank")]
    [7.0, 5.0, 25.0, 7.0, 1.562]
    """
    if kind in OF_ENTRIES:
        return OF_ENTRIES[kind](weight)
    if weight.dim() < 2:
        raise UserError(f"A weight of shape {tuple(weight.shape)} has no {kind}: choose weight matrices or kernels.")
    if not weight.isfinite().all():
        diverged = f"a weight that has a penalty ({kind}) is not finite"
        raise UserError(f"Training diverged: {diverged}. Lower the learning rate.")
    return OF_SPECTRUM[kind](spectra.singular_values(weight.flatten(1))).to(weight.dtype)


def regularisation(net: nn.Module, regularisers: Sequence[Regulariser]) -> Float[Tensor, ""]:
    """The sum of all penalties, each times its coefficient.

    A `UserError` where a coefficient is negative, or as for `penalty` and `chosen_weights`.
    """
    terms: list[Tensor] = []
    for regulariser in regularisers:
        coefficient = regulariser["coefficient"]
        if not (coefficient >= 0 and math.isfinite(coefficient)):
            raise UserError(f"The coefficient of a regulariser must be at least 0, not {coefficient}.")
        patterns, kind = regulariser.get("weights"), regulariser["kind"]
        vectors = patterns is not None and kind in OF_ENTRIES
        chosen = chosen_weights(net, patterns, regulariser.get("factors", False), vectors)
        terms += [coefficient * penalty(kind, weight) for weight in chosen.values()]
    return sum(terms[1:], terms[0]) if terms else torch.zeros(())


def chosen_weights(
    net: nn.Module, patterns: Sequence[str] | None = None, factors: bool = False, vectors: bool = False
) -> dict[str, Tensor]:
    """The weight matrices and kernels whose names match, by name, and the `vectors`.

    Of an expanded layer it is the product `weight`, or the `factors` (`weight_1` and so on). A `UserError` where there
    are none.
    """
    found: dict[str, Tensor] = {}
    for prefix, module in net.named_modules():
        own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
        if isinstance(module, ExpandedLayer) and not factors:
            bias = {"bias": own["bias"]} if "bias" in own else {}
            own = {"weight": module.weight, **bias}
        for key, weight in own.items():
            name = f"{prefix}.{key}" if prefix else key
            named = patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)
            if named and (vectors or weight.dim() >= 2):
                found[name] = weight
    if not found:
        names = ", ".join([name for name, _ in net.named_parameters()][:8])
        raise UserError(f"No weight {'' if vectors else 'matrix '}matches {patterns}; the parameters are {names}, …")
    return found


@torch.no_grad()
def truncate(net: nn.Module, rank: int, patterns: Sequence[str] | None = None) -> None:
    """Replace chosen weights by their best approximations of a rank of at most `rank`, in place.

    A kernel is taken as a matrix (outputs, all else). huh2021 Table 3 has "low-rank initialization" and says no more:
    scale and ranks are not stated there. A `UserError` where no chosen weight has a higher rank.
    """
    if rank < 1:
        raise UserError(f"The rank of initial weights must be at least 1, not {rank}.")
    chosen = chosen_weights(net, patterns, factors=True)
    if all(min(weight.flatten(1).shape) <= rank for weight in chosen.values()):
        raise UserError(f"None of the chosen weights has a higher rank than {rank}: low_rank would change nothing.")
    for weight in chosen.values():
        u, sigma, vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
        # sum_{i <= r} sigma_i u_i v_i^T
        weight.copy_(((u[:, :rank] * sigma[:rank]) @ vh[:rank]).reshape(weight.shape))
