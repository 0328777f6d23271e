"""The base of measures that learn from one split, in all processes, and judge another."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric


class AbstractTwoSplits(Metric, ABC):
    """A metric of labelled representations that takes a training split first, then a held-out one.

    `update_prototypes` takes batches of the training split, `update` those of the held-out one. Under torch.distributed
    `sync_prototypes` comes between the two; `update` raises RuntimeError if it was forgotten, and `update_prototypes`
    if it came already, for its batches would count once for each rank. `compute` then sums over ranks by itself.

    Args:
        num_classes: number of classes C; labels are 0 ... C - 1.
        feature_shape: shape of one representation.
        kwargs: torchmetrics.Metric's.

    Raises ValueError for NaN or infinity, another shape than `feature_shape`, or a label out of range; RuntimeError if
    `update` comes before any training sample.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    synced: Tensor
    samples: Tensor
    class_counts: Tensor

    def __init__(self, num_classes: int, feature_shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.feature_shape = num_classes, feature_shape
        self.add_state("synced", torch.tensor(False), dist_reduce_fx="max")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("class_counts", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    @torch.no_grad()
    def update_prototypes(self, h: Float[Tensor, "n ..."], y: Int[Tensor, "n"]) -> None:
        self._check_batch(h, y)
        if self.synced:
            raise RuntimeError("the training split is already that of all ranks; reset() before another one")
        self._learn(h, y)
        self.class_counts += torch.bincount(y, minlength=self.num_classes)

    @abstractmethod
    def _learn(self, h: Tensor, y: Tensor) -> None:
        """Learn from a batch of the training split, whose labels are then counted."""

    @torch.no_grad()
    def sync_prototypes(self) -> None:
        """Sum over all ranks what was learnt, once; every rank must call it. Without torch.distributed a no-op."""
        if is_distributed() and not self.synced:
            self._sync()
            self.synced.fill_(True)

    @abstractmethod
    def _sync(self) -> None:
        """Sum over all ranks what `update_prototypes` added."""

    def _check_batch(self, h: Tensor, y: Tensor) -> None:
        if tuple(h.shape[1:]) != self.feature_shape:
            raise ValueError(f"representations have shape {tuple(h.shape[1:])}, not {self.feature_shape}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(f"labels must lie in 0 ... {self.num_classes - 1}")

    def _check_held_out(self, h: Tensor, y: Tensor) -> None:
        self._check_batch(h, y)
        self._check_synced()
        if not self.class_counts.any():
            raise RuntimeError("no training sample was given to update_prototypes()")

    def _check_synced(self) -> None:
        if is_distributed() and not self.synced:
            raise RuntimeError("call sync_prototypes() on every rank between the training and the held-out split")


class AbstractClassifier(AbstractTwoSplits):
    """The error of a classifier that learns from the training split, in [0, 1], on the held-out one.

    Ties count as in `collapse.expected_errors`. `compute` raises RuntimeError before any held-out sample.
    """

    errors: Tensor
    definitions = 1
    """By how many definitions it classifies in one pass; `compute` answers for the first."""

    def __init__(self, num_classes: int, feature_shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(num_classes, feature_shape, **kwargs)
        self.add_state("errors", torch.zeros(self.definitions, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, h: Float[Tensor, "n ..."], y: Int[Tensor, "n"]) -> None:
        self._check_held_out(h, y)
        if len(h):
            self.errors += self._errors(h, y)
            self.samples += len(h)

    @abstractmethod
    def _errors(self, h: Tensor, y: Tensor) -> Tensor:
        """The expected number of errors on a batch, by each definition."""

    def compute(self) -> Float[Tensor, ""]:
        return self._error(self.errors[0], self.samples)

    def _error(self, errors: Tensor, samples: Tensor) -> Tensor:
        if not samples:
            raise RuntimeError("no test sample was given to update()")
        return errors / samples


def is_distributed() -> bool:
    """Whether torch.distributed runs with more than one process."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
