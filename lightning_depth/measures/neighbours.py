"""Errors of two classifiers on representations: the nearest class mean and the k nearest neighbours."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_depth.measures.collapse import TIE, expected_errors
from lightning_depth.measures.rows import check_finite, finite_rows, normalised
from lightning_depth.measures.two_splits import AbstractClassifier

# Numbers of training samples that are held in float64 at once (16 MB).
_BLOCK = 2**21


def _lengths(x: Tensor, origin: Tensor) -> Tensor:
    """The distances (2, n) of x from zero and from the origin."""
    return torch.stack([x.norm(dim=1), (x - origin).norm(dim=1)])


def _ties(x: Tensor, points: Tensor) -> Tensor:
    """Squared distances from x (n) that differ by no more than this are equal but for round-off: TIE of their size."""
    return TIE * (x + points.amax(1, keepdim=True)).prod(0)


def nearest_mean_predictions(
    h: Float[Tensor, "n ..."], means: Float[Tensor, "classes d"], seen: Bool[Tensor, "classes"]
) -> Bool[Tensor, "n classes"]:
    r"""The classes whose mean is nearest to each representation, in Euclidean distance; ties are kept.

        argmin_c ||h - mu_c||^2 = argmax_c 2 <h - o, mu_c - o> - ||mu_c - o||^2,   o the mean of the mu_c

    (o keeps digits where all representations lie close together). Two squared distances are a tie where they differ by
    no more than `TIE` times their size before cancellation.

    `means` are float64, `seen` says which classes have one; the others are never predicted. Raises ValueError for NaN
    or infinity, and where no class was seen. Cost O(n d classes), a float64 copy of h.

    >>> means = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    >>> nearest_mean_predictions(torch.tensor([[0.5, 9.0], [1.0, 9.0]]), means, torch.tensor([True, True]))
    tensor([[ True, False],
            [ True,  True]])
    """
    if not seen.any():
        raise ValueError("no class has a mean")
    rows, points = finite_rows(h), means[seen]
    origin = points.mean(0)
    ties = _ties(_lengths(rows, origin), _lengths(points, origin))
    rows, points = rows - origin, points - origin
    # ||h - o||^2 - ||h - mu_c||^2
    nearness = 2 * rows @ points.mT - points.square().sum(1)
    predicted = torch.zeros(len(rows), len(means), dtype=torch.bool, device=rows.device)
    predicted[:, seen] = nearness >= (nearness.amax(1) - ties)[:, None]
    return predicted


class NearestMeanClassifier(AbstractClassifier):
    r"""Error of the nearest class mean on the representations of one layer, streamed (nearest centroid).

        error of  argmin_c ||h(x) - mu_c||,   mu_c = mean of h(x_j) over the training samples of class c

    The training split is summed class by class, raw: neither centred nor normalised. A class without training samples
    is never predicted. Time O((n + N) d classes), memory O(classes d), float64. Arguments: see `AbstractTwoSplits`.

    >>> metric = NearestMeanClassifier(num_classes=2, feature_shape=(2,))
    >>> metric.update_prototypes(torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 0.0]]), torch.tensor([0, 0, 1]))
    >>> metric.update(torch.tensor([[1.0, 5.0], [2.0, 5.0]]), torch.tensor([0, 0]))
    >>> metric.compute()  # right, and a tie of two
    tensor(0.2500, dtype=torch.float64)
    """

    class_sums: Tensor

    def __init__(self, num_classes: int, feature_shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(num_classes, feature_shape, **kwargs)
        class_sums = torch.zeros(num_classes, math.prod(feature_shape), dtype=torch.float64)
        self.add_state("class_sums", class_sums, dist_reduce_fx="sum")

    def _learn(self, h: Tensor, y: Tensor) -> None:
        labels = torch.nn.functional.one_hot(y.long(), self.num_classes).double()
        self.class_sums.addmm_(labels.mT, finite_rows(h))

    def _sync(self) -> None:
        torch.distributed.all_reduce(self.class_sums)
        torch.distributed.all_reduce(self.class_counts)

    def _errors(self, h: Tensor, y: Tensor) -> Tensor:
        means = self.class_sums / self.class_counts.clamp_min(1)[:, None]
        return expected_errors(nearest_mean_predictions(h, means, self.class_counts > 0), y).sum()


def neighbour_predictions(
    test: Float[Tensor, "n ..."], train: Float[Tensor, "N ..."], y: Int[Tensor, "N"], num_classes: int, k: int
) -> Bool[Tensor, "n classes"]:
    r"""The classes with the most members among the k nearest training samples of each test sample; ties are kept.

    Near is a large cosine <h, z> / (||h|| ||z||), 0 where either is zero. Training samples as near as the k-th, to
    `TIE`, vote too, so that the answer does not depend on their order.

    Raises ValueError for NaN or infinity, or k not in 1 ... N. Cost: n N d products in float64; n N numbers and a
    float64 copy of `test` and of a block of `train` in memory.

    >>> train, y = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> neighbour_predictions(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), train, y, num_classes=2, k=1)
    tensor([[ True, False],
            [False,  True]])
    """
    blocks = torch.split(train.flatten(1), max(1, _BLOCK // max(1, train[:1].numel())))
    rows = normalised(test, centred=False).rows
    cosines = torch.cat([rows @ normalised(block, centred=False).rows.mT for block in blocks], dim=1)
    if not 1 <= k <= len(y):
        raise ValueError(f"k = {k} neighbours cannot be found among {len(y)} training samples")
    voters = cosines >= cosines.topk(k, dim=1).values[:, -1:] - TIE
    votes = voters.double() @ torch.nn.functional.one_hot(y.long(), num_classes).double()
    return votes == votes.amax(1, keepdim=True)


class NearestNeighbours(AbstractClassifier):
    r"""Error of k-nearest-neighbour classification on the representations of one layer.

        error of  argmax_c |{j : y_j = c, x_j among the k nearest of x}|,   near by cosine

    The training representations are kept, in their own dtype: N d numbers on every rank. Where they are larger than
    `max_bytes` they are let go at once and `sync_prototypes`, or `update` if that was left out, raises ValueError: on
    all ranks alike, for the limit is on their sum. They are no torchmetrics state: `sync_prototypes` gathers them, and
    checkpoints go without. Predictions are those of `neighbour_predictions`. Time O(n N d).

    Args:
        k: number of neighbours; ValueError where there are fewer training samples.
        num_classes: see `AbstractTwoSplits`, as for ranks and what raises.
        feature_shape: likewise.
        max_bytes: the largest size of all training representations together.
        kwargs: torchmetrics.Metric's.

    >>> metric = NearestNeighbours(k=1, num_classes=2, feature_shape=(2,))
    >>> metric.update_prototypes(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> metric.update(torch.tensor([[5.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0]))
    >>> metric.compute()  # right, and a tie of two
    tensor(0.2500, dtype=torch.float64)
    """

    def __init__(
        self, k: int, num_classes: int, feature_shape: tuple[int, ...], max_bytes: int = 256 * 2**20, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, feature_shape, **kwargs)
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self.k, self.max_bytes = k, max_bytes
        self._forget()

    def _forget(self) -> None:
        self.train_rows: list[Tensor] = []
        self.train_labels: list[Tensor] = []
        self.train_bytes = 0

    def reset(self) -> None:
        super().reset()
        self._forget()

    def _learn(self, h: Tensor, y: Tensor) -> None:
        check_finite(h, "representations are")
        self.train_bytes += h.numel() * h.element_size()
        if self.train_bytes <= self.max_bytes:
            self.train_rows.append(h.flatten(1).clone())
            self.train_labels.append(y.clone())
        else:
            self.train_rows, self.train_labels = [], []

    def sync_prototypes(self) -> None:
        """Gather the training representations of all ranks, once; ValueError on all if they exceed `max_bytes`."""
        super().sync_prototypes()
        self._check_size()

    def _sync(self) -> None:
        width = math.prod(self.feature_shape)
        rows = torch.cat(self.train_rows) if self.train_rows else torch.zeros(0, width, device=self.device)
        labels = torch.cat(self.train_labels) if self.train_labels else torch.zeros(0, device=self.device).long()
        # A rank without training samples learns the others' dtype.
        kinds: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(kinds, (self.train_bytes, rows.dtype))
        self.train_bytes = sum(size for size, _ in kinds)
        self._check_size()
        dtype = next((dtype for size, dtype in kinds if size), rows.dtype)
        self.train_rows = [torch.cat(gather_all_tensors(rows.to(dtype)))]
        self.train_labels = [torch.cat(gather_all_tensors(labels.long()))]
        torch.distributed.all_reduce(self.class_counts)

    def _check_size(self) -> None:
        if self.train_bytes > self.max_bytes:
            taken = f"{self.train_bytes} bytes, more than the limit of {self.max_bytes}"
            raise ValueError(f"the training representations take {taken}")

    def _errors(self, h: Tensor, y: Tensor) -> Tensor:
        self._check_size()
        if len(self.train_rows) > 1:
            self.train_rows, self.train_labels = [torch.cat(self.train_rows)], [torch.cat(self.train_labels)]
        [rows], [labels] = self.train_rows, self.train_labels
        predicted = neighbour_predictions(h.flatten(1), rows, labels, self.num_classes, self.k)
        return expected_errors(predicted, y).sum()
