"""The base of data sets that are made, not found: pure functions of their seed."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_depth.data.base.memory import AbstractMemoryData, Loaded
from lightning_depth.data.base.sources import Source
from lightning_depth.errors import UserError
from lightning_depth.results import Split
from lightning_depth.seeds import generator

ROWS = 1024  # samples drawn at a time, always whole: so the first samples are the same however many are wanted


def normal(samples: int, shape: Sequence[int], stream: torch.Generator) -> Float[Tensor, "samples ..."]:
    """Standard normal numbers, float32 (samples, *shape); the first samples are the same however many are drawn."""
    # Drawn in float64 and rounded: torch's float32 draws differ in the last bit from one processor to another.
    drawn = torch.empty(samples, *shape)
    for start in range(0, samples, ROWS):
        some = torch.randn(ROWS, *shape, generator=stream, dtype=torch.float64)
        drawn[start : start + ROWS] = some[: samples - start]
    return drawn


class AbstractTensorData(AbstractMemoryData):
    """Inputs and targets that are drawn, in memory as floating-point tensors.

    A data set of your own is a subclass with one method, `make`. Validation and test samples are draws of their own.
    Raises a UserError where a number is out of its range.

    Args:
        train_samples: training samples.
        test_samples: validation samples, and as many test samples.
        batch_size: training samples per batch and process; 0: all in one.
        eval_batch_size: samples per batch and process elsewhere.
        seed: of everything that is drawn. None: that of the run.
    """

    label_count: int | None = None
    """The number of classes; None: one more than the largest label of the training split."""

    def __init__(
        self,
        train_samples: int = 1000,
        test_samples: int = 1000,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size or train_samples, eval_batch_size, seed)
        if train_samples < 1 or test_samples < 1:
            raise UserError(f"{train_samples=}, {test_samples=}: both must be at least 1.")
        self.train_samples, self.test_samples = train_samples, test_samples

    @abstractmethod
    def make(self, split: Split, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (samples, ...), floating-point, and targets: int64 classes (samples,), or numbers (samples, ...).

        Everything random comes from `stream`, the split's own. What the splits share (a teacher, a label function) is
        drawn from `self.shared(name)`.
        """

    def shared(self, name: str) -> torch.Generator:
        """A generator for what all splits share, at its start: a function of the seed and `name`."""
        return generator(self.effective_seed, type(self).__name__, name)

    def find(self) -> Source:
        return Source(type(self).__name__, "synthetic", f"seed {self.effective_seed}")

    def load(self, name: Split) -> dict[Split, Loaded]:
        samples = self.train_samples if name == "train" else self.test_samples
        return {name: Loaded(*self.make(name, samples, self.shared(name)))}

    @property
    def num_classes(self) -> int | None:
        targets = self.split("train").targets
        return None if targets.is_floating_point() else self.label_count or int(targets.max()) + 1

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        targets = self.split("train").targets
        return tuple(targets.shape[1:]) if targets.is_floating_point() else None

    @property
    def val_source(self) -> str:
        return "samples drawn for validation"
