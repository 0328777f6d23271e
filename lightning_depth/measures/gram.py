"""Spectrum of the Gram matrix of features (huh2021 section 2.3), of cosine similarities or inner products, streamed.

All raise ValueError for NaN or infinity, or another kernel, and compute in float64.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_depth.measures.rows import check_finite, normalised
from lightning_depth.measures.spectra import effective_rank

Kernel = Literal["cosine", "linear"]
# Wide features are multiplied in blocks of so many float64 numbers (16 MB).
_BLOCK = 2**21


def _rows(features: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The rows of F in float64, with K = F F^T, and which of them are zero."""
    if kernel == "cosine":
        return normalised(features, centred=False)
    if kernel != "linear":
        raise ValueError(f"the kernel is cosine or linear, not {kernel}")
    rows = features.flatten(1).double()
    check_finite(rows.square().sum(1), "representations are")
    return rows, (rows == 0).all(1)


def cosine_gram(features: Float[Tensor, "p ..."]) -> Float[Tensor, "p p"]:
    r"""The p x p matrix of cosine similarities, K = F F^T with F the flattened features in rows of unit norm.

    A zero feature has similarity 0 to everything, itself too. Cost O(p^2 d).

    >>> cosine_gram(torch.tensor([[3.0, 4.0], [5.0, 0.0]]))
    tensor([[1.0000, 0.6000],
            [0.6000, 1.0000]], dtype=torch.float64)
    """
    rows = normalised(features, centred=False).rows
    return rows @ rows.mT


def _spectrum(side: Tensor, count: int) -> Tensor:
    """The `count` largest eigenvalues of a positive semi-definite matrix, descending, round-off below zero cut off."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(side)
    return eigenvalues.flip(0)[:count].clamp_min(0)


def gram_spectrum(features: Float[Tensor, "p ..."], kernel: Kernel = "cosine") -> Float[Tensor, "k"]:
    r"""The min(p, d) leading eigenvalues of `cosine_gram(features)`, descending; its other eigenvalues are zero.

    With `kernel="linear"`, those of the matrix of inner products (huh2021 Appendix J), which are the squares of the
    singular values of the features in rows.

    They are those of the smaller of F F^T and F^T F: O(p d min(p, d)). Below about 1e-15 of the largest is round-off.

    >>> gram_spectrum(torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]))
    tensor([2., 1.], dtype=torch.float64)
    """
    p, d = features.flatten(1).shape
    if d > p:
        return _spectrum(_wide_gram(features.flatten(1), kernel), p)
    rows, _ = _rows(features, kernel)
    return _spectrum(rows.mT @ rows, d)


def _wide_gram(flat: Tensor, kernel: Kernel) -> Tensor:
    """The p x p Gram matrix in float64, by blocks of columns: no float64 copy of features that are wide."""
    if kernel not in ("cosine", "linear"):
        raise ValueError(f"the kernel is cosine or linear, not {kernel}")
    largest = flat.abs().amax(1).double()
    # Numbers whose squares leave the range of float64 have a direction all the same.
    unit = torch.where((largest > 0) & (kernel == "cosine"), largest, 1.0)[:, None]
    gram = flat.new_zeros(len(flat), len(flat), dtype=torch.float64)
    for columns in torch.split(flat, max(1, _BLOCK // max(1, len(flat))), dim=1):
        block = columns.double() / unit
        gram.addmm_(block, block.mT)
    check_finite(gram, "representations are")
    if kernel == "linear":
        return gram
    # K_ij / (||h_i|| ||h_j||)
    norms = gram.diagonal().sqrt()
    scale = torch.where(norms > 0, 1 / norms, 0.0)
    return scale[:, None] * gram * scale


def gram_effective_rank(features: Float[Tensor, "p ..."], kernel: Kernel = "cosine") -> Float[Tensor, ""]:
    r"""The `effective_rank` (nats) of the Gram matrix of the features (huh2021 section 2.3 and Definition 1).

    Zero features contribute nothing. Cost: that of `gram_spectrum`.

    >>> gram_effective_rank(torch.eye(3)).exp()
    tensor(3.0000, dtype=torch.float64)
    """
    return effective_rank(gram_spectrum(features, kernel))


class GramSpectrum(Metric):
    r"""The spectrum of the Gram matrix K = F F^T of all features seen, streamed (huh2021 section 2.3).

    With at most `max_gram_features` features a sample, the state is sum_b F_b^T F_b: d^2 float64 numbers, a plain sum
    over batches and ranks. Beyond, the features are kept, in their own dtype, and the smaller side is taken at the end.
    `compute` gives what `gram_spectrum` does (torchmetrics drops the dimension of a single eigenvalue). Zero features
    are counted in `zero_rows`.

    Args:
        num_features: d, the numbers in one sample's features, flattened.
        max_gram_features: the largest d for which F^T F is the state.
        kernel: "cosine" (the rows of F have unit norm) or "linear" (they are the features).
        kwargs: torchmetrics.Metric's.

    Raises ValueError, too, for another number of features than `num_features`.

    >>> metric = GramSpectrum(num_features=2)
    >>> metric.update(torch.tensor([[2.0, 0.0], [3.0, 0.0]]))
    >>> metric.update(torch.tensor([[0.0, 1.0]]))
    >>> metric.compute()
    tensor([2., 1.], dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False

    gram: Tensor
    features: list[Tensor]
    samples: Tensor
    zero_rows: Tensor

    def __init__(
        self, num_features: int, max_gram_features: int = 4096, kernel: Kernel = "cosine", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_features, self.kernel = num_features, kernel
        self.keeps_features = num_features > max_gram_features
        if self.keeps_features:
            self.add_state("features", [], dist_reduce_fx="cat")
        else:
            gram = torch.zeros(num_features, num_features, dtype=torch.float64)
            self.add_state("gram", gram, dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("zero_rows", torch.tensor(0), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, features: Float[Tensor, "n ..."]) -> None:
        flat = features.flatten(1)
        if flat.shape[1] != self.num_features:
            raise ValueError(f"a sample has {flat.shape[1]} features, not {self.num_features}")
        rows, is_zero = _rows(flat, self.kernel)
        if self.keeps_features:
            self.features.append(flat.detach().clone())
        else:
            self.gram.addmm_(rows.mT, rows)
        self.samples += len(rows)
        self.zero_rows += is_zero.sum()

    def compute(self) -> Float[Tensor, "k"]:
        if not self.keeps_features:
            return _spectrum(self.gram, min(int(self.samples), self.num_features))
        if not self.samples:
            return torch.zeros(0, dtype=torch.float64, device=self.samples.device)
        return gram_spectrum(dim_zero_cat(self.features), self.kernel)
