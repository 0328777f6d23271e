"""The base of data sets that change another: what they do not change is the other's."""

from abc import abstractmethod
from dataclasses import replace

from lightning_depth.data.base.batches import EpochOrder, TensorBatches
from lightning_depth.data.base.memory import AbstractMemoryData, Loaded
from lightning_depth.data.base.sources import Source


class AbstractWrapped(AbstractMemoryData):
    """Another data set with a change: shapes, batches, order and augmentation are the other's.

    Args:
        data: the other data set.
        seed: of the change. None: that of `data`, or of the run.
    """

    def __init__(self, data: AbstractMemoryData, seed: int | None = None) -> None:
        super().__init__(data.batch_size, data.eval_batch_size, data.seed)
        self.data = data
        self.change_seed = data.seed if seed is None else seed

    @property
    def effective_change_seed(self) -> int:
        """The seed of the change: its own, that of `data`, or the run's."""
        return self.run_seed if self.change_seed is None else self.change_seed

    @property
    @abstractmethod
    def change(self) -> str:
        """What was changed, in words."""

    def find(self) -> Source:
        """Where the other data set comes from, and the change."""
        found = self.data.locate(announce=False)  # a stand-in is announced once, by this data set
        return replace(found, note=f"{found.note}; {self.change}" if found.note else self.change)

    def batches(self, loaded: Loaded, order: EpochOrder | None = None, epoch: int = 0, skip: int = 0) -> TensorBatches:
        """As the other data set serves them."""
        return self.data.batches(loaded, order, epoch, skip)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as the network gets it."""
        self.locate()
        return self.data.input_shape

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None where the targets are numbers."""
        self.locate()
        return self.data.num_classes

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """Shape of one target where the targets are numbers; None where they are classes."""
        self.locate()
        return self.data.target_shape

    @property
    def train_size(self) -> int:
        """The number of training samples."""
        return len(self.split("train").targets)
