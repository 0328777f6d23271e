"""Gaussian inputs with k-local and k-global labels (mori2020 2.1)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_depth.data.base.tensors import ROWS, AbstractTensorData, normal
from lightning_depth.errors import UserError
from lightning_depth.results import Split


def k_local_feature(x: Float[Tensor, "n d"], indices: Sequence[int]) -> Float[Tensor, " n"]:
    """The product of k components of each input, counted from 0; float64 (mori2020 Equation 1).

    >>> k_local_feature(torch.tensor([[2.0, 5.0, -3.0]]), [0, 2])
    tensor([-6.], dtype=torch.float64)
    """
    # x_{i1} x_{i2} ... x_{ik}
    return x[:, list(indices)].double().prod(dim=1)


def k_global_feature(x: Float[Tensor, "n d"], indices: Sequence[int]) -> Float[Tensor, " n"]:
    """The sum of that product over all shifts of each input on a ring; float64 (mori2020 Equation 2).

    >>> k_global_feature(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), [0, 1])  # 1*2 + 2*3 + 3*4 + 4*1
    tensor([24.], dtype=torch.float64)
    """
    # M = sum_{j=1}^{d} x_{j+i1} x_{j+i2} ... x_{j+ik}, with x_{d+i} = x_i
    product = torch.ones_like(x, dtype=torch.float64)
    for i in indices:
        product *= x.roll(-i, dims=1)
    return product.sum(dim=1)


def k_local_stability(k: int, strength: float) -> float:
    """The chance that no change of one component by +-strength flips the k-local label of a Gaussian input.

    s(v) = P(|x_i| > v)^k = erfc(v / sqrt 2)^k: the exact curve of the label in mori2020 Figure 5.

    >>> round(k_local_stability(2, 1.0), 4)
    0.1007
    """
    return math.erfc(strength / math.sqrt(2)) ** k


class AbstractRelevantFeature(AbstractTensorData):
    """Standard normal inputs (d,), labelled by the sign of a relevant feature (mori2020 2.1).

    Class 0, the paper's y = 1, where the feature is >= 0; class 1, its y = 2, elsewhere. The labels are a function of
    the inputs, so the Bayes error is 0. With `loss: mse` the network is trained to one-hot labels (mori2020 2.4, App.
    D). The training set of N samples is the beginning of every larger one of the same seed. Raises a UserError where k
    is below 1 or above d, or the indices are not k different ones below d.

    Args:
        dimension: d.
        k: components in a product. The paper has (k, d) = (2, 500), (3, 100) local and (2, 100), (3, 40) global.
        indices: the k components, counted from 0. None: drawn from the seed, the same for all splits.
        targets: `classes`, or `signs`: the numbers +1 (feature >= 0) and -1, of shape (1,).
        tensors: the arguments of `AbstractTensorData`. The paper has batches of 50 and 100,000 test samples.
    """

    label_count = 2
    relevant: Callable[[Tensor, Sequence[int]], Tensor]
    """From inputs (n, d) and indices to the relevant feature (n,), float64."""

    def __init__(
        self,
        dimension: int = 100,
        k: int = 2,
        indices: list[int] | None = None,
        targets: Literal["classes", "signs"] = "classes",
        **tensors: Any,
    ) -> None:
        super().__init__(**tensors)
        if not 1 <= k <= dimension:
            raise UserError(f"{k=}, {dimension=}: a product needs from 1 to {dimension} different components.")
        if indices is not None and (len(set(indices)) != k or len(indices) != k):
            raise UserError(f"{indices=}: there must be {k=} different ones.")
        if indices is not None and not 0 <= min(indices) <= max(indices) < dimension:
            raise UserError(f"{indices=}: they count from 0 to dimension - 1 = {dimension - 1}.")
        self.dimension, self.k, self.given, self.targets = dimension, k, indices, targets

    @property
    def indices(self) -> list[int]:
        """The k components, counted from 0, ascending."""
        if self.given is not None:
            return sorted(self.given)
        return sorted(torch.randperm(self.dimension, generator=self.shared("indices"))[: self.k].tolist())

    def feature(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.relevant(x, self.indices)

    def make(self, split: Split, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        x = normal(samples, (self.dimension,), stream)
        first = torch.cat([self.feature(some) >= 0 for some in torch.split(x, ROWS)])
        if self.targets == "signs":
            return x, torch.where(first, 1.0, -1.0)[:, None]
        return x, (~first).long()


@final
class KLocal(AbstractRelevantFeature):
    """Gaussian inputs whose class is the sign of the product of k components (mori2020 Equation 1)."""

    relevant = staticmethod(k_local_feature)


@final
class KGlobal(AbstractRelevantFeature):
    """Gaussian inputs whose class is the sign of such a product summed over the ring (mori2020 Equation 3)."""

    relevant = staticmethod(k_global_feature)
