r"""Neural collapse: NC1 to NC4 of Papyan, Han and Donoho (2020), and CDNV of Galanti, Gyorgy and Hutter (2021).

    mu_c = mean of h over the n_c samples of class c       mu_G = (1/C) sum_c mu_c          (each class counts once)
    Sigma_W = (1/N) sum_i (h_i - mu_yi)(h_i - mu_yi)^T     Sigma_B = (1/C) sum_c (mu_c - mu_G)(mu_c - mu_G)^T

The paper assumes classes of one size, where every weighting agrees. For other sizes these are the choices of the
authors' code: samples count alike in Sigma_W, classes in mu_G and Sigma_B. C is the number of classes with samples.

Class means that differ by no more than their round-off, 1e-13 of the largest, are identical. Where a quotient has no
value it is not made one up: x / 0 is infinite and 0 / 0 is NaN. So with identical class means NC1 and CDNV are infinite
(NaN without any within-class variance) and NC2 and NC3, which are about directions, are NaN.

All raise ValueError for NaN or infinity or fewer than two classes, and cost O(C d) or, where they compare classes by
pairs, O(C^2 d).
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_depth.measures.neighbours import nearest_mean_predictions
from lightning_depth.measures.rows import check_finite, finite_rows
from lightning_depth.measures.two_splits import AbstractTwoSplits

# Round-off of a class mean, as a fraction of its length: sums of 1e5 float64 numbers are as good as this.
_ROUND_OFF = 1e-13


def _centred(means: Tensor) -> tuple[Tensor, float]:
    """The means mu_c - mu_G, zero where that is round-off, and what length is round-off."""
    if len(means) < 2:
        raise ValueError(f"neural collapse is about two classes or more, not {len(means)}")
    means = finite_rows(means)
    round_off = _ROUND_OFF * float(means.norm(dim=1).max())
    centred = means - means.mean(0)
    return torch.where(centred.norm(dim=1, keepdim=True) > round_off, centred, 0.0), round_off


def within_class_variability(within: Float[Tensor, "d d"], means: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
    r"""NC1, tr(Sigma_W Sigma_B^+) / C (Papyan et al. 2020, Figure 6), from Sigma_W and the class means.

    0 where all samples lie at their class means; the authors' code leaves out the division by C. Sigma_B^+ is the
    Moore-Penrose inverse: directions in which the class means do not differ do not count. With the thin SVD of the
    centred means M = U diag(s) V^T (one class a row), Sigma_B = V diag(s^2 / C) V^T has rank at most C - 1, so

        tr(Sigma_W Sigma_B^+) / C = sum_k v_k^T Sigma_W v_k / s_k^2   over s_k > 0, at most C - 1 of them

    Singular values of M that are round-off are zeros. Cost O(C d^2 + C^2 d).

    >>> within_class_variability(torch.tensor([[1.0]]), torch.tensor([[-2.0], [2.0]]))
    tensor(0.1250, dtype=torch.float64)
    """
    centred, round_off = _centred(means)
    _, s, directions = torch.linalg.svd(centred, full_matrices=False)
    # The rows of M add up to zero, so one of C singular values is round-off however large it is.
    kept = (s > round_off * len(centred) ** 0.5) & (torch.arange(len(s), device=s.device) < len(centred) - 1)
    if not kept.any():
        return within.double().trace() / 0
    v = directions[kept]
    # sum_k v_k^T Sigma_W v_k / s_k^2
    return torch.sum((v @ within.double() * v).sum(1) / s[kept].square())


def equinorm(means: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
    r"""NC2, equal norms: std_c ||mu_c - mu_G|| / mean_c ||mu_c - mu_G|| (Papyan et al. 2020, Figure 2).

    0 for centred class means of one length. The standard deviation is that of all C norms (divided by C; the authors'
    code divides by C - 1, so its number is sqrt(C / (C - 1)) times this one). NaN for identical class means.

    >>> equinorm(torch.tensor([[1.0], [1.0], [4.0]]))  # lengths 1, 1 and 2
    tensor(0.3536, dtype=torch.float64)
    """
    norms = _centred(means)[0].norm(dim=1)
    variation: Tensor = norms.std(correction=0) / norms.mean()
    return variation


def _cosines(means: Tensor) -> Tensor:
    """cos(mu_c - mu_G, mu_c' - mu_G) of all pairs c < c'; NaN where one of them is zero."""
    centred, _ = _centred(means)
    unit: Tensor = centred / centred.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    return (unit @ unit.mT)[first, second]


def equiangularity(means: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
    r"""NC2, equal angles: the standard deviation over pairs c != c' of cos(mu_c - mu_G, mu_c' - mu_G).

    (Papyan et al. 2020, Figure 3.) 0 for equal angles, two classes included; divided by the number of pairs. NaN if a
    class mean is the global mean and so has no direction.

    >>> equiangularity(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))  # cosines -1, -1 and four 0
    tensor(0.4714, dtype=torch.float64)
    """
    return _cosines(means).std(correction=0)


def maximal_angle(means: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
    r"""NC2, maximal angles: the mean over pairs c != c' of |cos(mu_c - mu_G, mu_c' - mu_G) + 1 / (C - 1)|.

    (Papyan et al. 2020, Figure 4.) 0 for the vertices of a simplex, whose angles are the largest that C directions can
    all have. NaN as `equiangularity`.

    >>> maximal_angle(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))  # 2/3, 2/3 and four 1/3
    tensor(0.4444, dtype=torch.float64)
    """
    return (_cosines(means) + 1 / (len(means) - 1)).abs().mean()


def self_duality(means: Float[Tensor, "classes d"], weight: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
    r"""NC3: || W / ||W||_F - M / ||M||_F ||_F^2 with the rows mu_c - mu_G of M (Papyan et al. 2020, Figure 5).

    0 where the classifier W is a multiple of M, 2 where they are orthogonal, at most 4. W is taken as it is, not
    centred. NaN if the class means are identical or W is zero.

    >>> self_duality(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, -2.0]]))
    tensor(2.0000, dtype=torch.float64)
    """
    centred, _ = _centred(means)
    w = weight.double()
    check_finite(w, "the weight is")
    # || W / ||W||_F - M / ||M||_F ||_F^2
    difference: Tensor = w / w.norm() - centred / centred.norm()
    return difference.square().sum()


def disagreements(decided: Bool[Tensor, "n classes"], nearest: Bool[Tensor, "n classes"]) -> Float[Tensor, "n"]:
    r"""NC4, sample by sample: whether the network's decision is not the class with the nearest mean.

        argmax_c logit_c(h) != argmin_c ||h - mu_c||        (Papyan et al. 2020, Figure 7)

    Ties are broken uniformly at random, independently, and the probability of a disagreement is given.

    >>> disagreements(torch.tensor([[True, False], [True, False]]), torch.tensor([[False, True], [True, True]]))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    return 1 - (decided & nearest).sum(1).double() / (decided.sum(1) * nearest.sum(1))


def normalised_variance(variances: Float[Tensor, "classes"], means: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
    r"""CDNV, the mean over classes c != c' of (Var_c + Var_c') / (2 ||mu_c - mu_c'||^2), from variances and means.

    Var_c = mean over class c of ||h - mu_c||^2 (the class-distance normalised variance of Galanti, Gyorgy and Hutter
    2021). 0 where all samples lie at their class means. A pair of identical means is infinite, or NaN without variance,
    and so is then the mean. Classes count alike whatever their sizes. C^2 numbers.

    >>> normalised_variance(torch.tensor([1.0, 1.0]), torch.tensor([[-2.0], [2.0]]))
    tensor(0.0625, dtype=torch.float64)
    """
    centred, round_off = _centred(means)
    distances = F.pdist(centred)
    distances = torch.where(distances > round_off, distances, 0.0)
    first, second = torch.triu_indices(len(centred), len(centred), 1, device=centred.device)
    variances = variances.double()
    # mean over c < c' of (Var_c + Var_c') / (2 ||mu_c - mu_c'||^2): the pair (c', c) has the same value
    return ((variances[first] + variances[second]) / (2 * distances.square())).mean()


class NeuralCollapse(AbstractTwoSplits):
    r"""NC1 to NC4 and CDNV of one layer's features, streamed; definitions and conventions are the module's.

    One pass over the training split (`update_prototypes`) keeps, of each class, its count, its sum and its samples'
    squared distances from their mean, and of all classes together the d x d scatter about the class means (Chan, Golub
    and LeVeque 1983: batches are merged without cancellation, so collapsed features have a scatter of exactly zero).
    One pass over the held-out split (`update`) compares the network's decisions with the nearest training means, on
    test data as in the paper's Figure 7. `compute` gives, as float64 numbers,

        nc1                 `within_class_variability`   (not if `nc1` is false)
        nc2_equinorm        `equinorm`
        nc2_equiangularity  `equiangularity`
        nc2_maximal_angle   `maximal_angle`
        nc3                 `self_duality`               (if `weight` was given)
        nc4_held_out        mean of `disagreements`      (after a held-out sample)
        cdnv                `normalised_variance`

    Classes without training samples are left out of all of it, and `classes_seen` says how many were left in.

    Under torch.distributed `compute`, too, raises RuntimeError if `sync_prototypes` was forgotten. Time O(N d^2) for
    NC1, the rest O((n + N) d C). Memory d^2 + C d float64 numbers (d = 2,048 and C = 10: 34 MB), or C d without NC1;
    `compute` gathers that from every rank.

    Args:
        num_classes: see `AbstractTwoSplits`, as for ranks and what raises.
        feature_shape: likewise.
        weight: the last linear layer's weight, one row a class, or None to leave NC3 out.
        nc1: whether to keep the d x d scatter.
        max_features: the largest d for which it may be kept; ValueError beyond.
        kwargs: torchmetrics.Metric's.

    >>> metric = NeuralCollapse(num_classes=2, feature_shape=(1,), weight=torch.tensor([[-5.0], [5.0]]))
    >>> metric.update_prototypes(torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
    >>> metric.update(torch.tensor([[-1.0], [2.0]]), logits=torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    >>> {name: round(float(value), 4) for name, value in metric.compute().items() if "nc2" not in name}
    {'nc1': 0.125, 'nc3': 0.0, 'nc4_held_out': 0.5, 'cdnv': 0.0625}
    """

    class_sums: Tensor
    class_scatters: Tensor
    scatter: Tensor
    differing: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_shape: tuple[int, ...],
        weight: Float[Tensor, "classes d"] | None = None,
        nc1: bool = True,
        max_features: int = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, feature_shape, **kwargs)
        d = math.prod(feature_shape)
        if nc1 and d > max_features:
            raise ValueError(f"NC1 needs {d} x {d} numbers: {d} features exceed max_features = {max_features}")
        if weight is not None and tuple(weight.shape) != (num_classes, d):
            raise ValueError(f"the weight has shape {tuple(weight.shape)}, not {(num_classes, d)}")
        self.weight = None if weight is None else weight.detach().double().clone()
        self.nc1 = nc1
        self.add_state("class_sums", torch.zeros(num_classes, d, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("class_scatters", torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        if nc1:
            self.add_state("scatter", torch.zeros(d, d, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("differing", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def classes_seen(self) -> int:
        """The number of classes that have training samples; those of all ranks after `sync_prototypes`."""
        return int((self.class_counts > 0).sum())

    def _means(self) -> Tensor:
        return self.class_sums / self.class_counts.clamp_min(1)[:, None]

    def _add_scatter(self, deviations: Tensor, labels: Tensor) -> None:
        """Add the outer products of the deviations to the scatter and their squares to those of their classes."""
        self.class_scatters += labels.mT @ deviations.square().sum(1)
        if self.nc1:
            self.scatter.addmm_(deviations.mT, deviations)

    def _learn(self, h: Tensor, y: Tensor) -> None:
        rows = finite_rows(h)
        labels = F.one_hot(y.long(), self.num_classes).double()
        counts = labels.sum(0)
        sums = labels.mT @ rows
        means = sums / counts.clamp_min(1)[:, None]
        # Merging a class's n_a samples with n_b more adds n_a n_b / (n_a + n_b) gap gap^T to their scatters' sum.
        weights = self.class_counts * counts / (self.class_counts + counts).clamp_min(1)
        gaps = weights.sqrt()[:, None] * (means - self._means())
        every_class = torch.eye(self.num_classes, dtype=labels.dtype, device=labels.device)
        self._add_scatter(torch.cat([rows - means[y.long()], gaps]), torch.cat([labels, every_class]))
        self.class_sums += sums
        self._update_count += 1  # without a decision to judge nothing else is ever given

    def _sync(self) -> None:
        counts, means = self.class_counts.double(), self._means()
        torch.distributed.all_reduce(self.class_counts)
        torch.distributed.all_reduce(self.class_sums)
        # A rank's n_r samples scatter about the mean of all as about their own, plus n_r gap gap^T.
        gaps = counts.sqrt()[:, None] * (means - self._means())
        self._add_scatter(gaps, torch.eye(self.num_classes, dtype=gaps.dtype, device=gaps.device))
        torch.distributed.all_reduce(self.class_scatters)
        if self.nc1:
            torch.distributed.all_reduce(self.scatter)

    @torch.no_grad()
    def update(self, h: Float[Tensor, "n ..."], logits: Float[Tensor, "n classes"]) -> None:
        """Compare the network's decisions on a batch of the held-out split with the nearest training means (NC4)."""
        if tuple(logits.shape) != (len(h), self.num_classes):
            raise ValueError(f"logits have shape {tuple(logits.shape)}, not {(len(h), self.num_classes)}")
        check_finite(logits, "logits are")
        self._check_held_out(h, logits.argmax(1))
        nearest = nearest_mean_predictions(h, self._means(), self.class_counts > 0)
        decided = logits == logits.amax(1, keepdim=True)
        self.differing += disagreements(decided, nearest).sum()
        self.samples += len(h)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Not offered: scatters about different means do not add up. `sync_prototypes` is for that."""
        raise NotImplementedError("NeuralCollapse cannot merge states; use sync_prototypes()")

    def compute(self) -> dict[str, Tensor]:
        self._check_synced()
        # torchmetrics has summed what was already the sum over ranks: all are as many times too large, and their
        # quotients are right.
        seen = self.class_counts > 0
        counts, means = self.class_counts[seen], self._means()[seen]
        values = {}
        if self.nc1:
            values["nc1"] = within_class_variability(self.scatter / counts.sum(), means)
        values["nc2_equinorm"] = equinorm(means)
        values["nc2_equiangularity"] = equiangularity(means)
        values["nc2_maximal_angle"] = maximal_angle(means)
        if self.weight is not None:
            values["nc3"] = self_duality(means, self.weight.to(means.device)[seen])
        if self.samples:
            values["nc4_held_out"] = self.differing / self.samples
        values["cdnv"] = normalised_variance(self.class_scatters[seen] / counts, means)
        return values
