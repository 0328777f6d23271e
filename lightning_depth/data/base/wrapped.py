"""The base of data sets that change another: what they do not change is the other's."""

from dataclasses import replace

from lightning_depth.data.base.batches import Transform
from lightning_depth.data.base.memory import AbstractMemoryData
from lightning_depth.data.base.sources import Source


class AbstractWrapped(AbstractMemoryData):
    """Another data set with a change: shapes, batches, order and augmentation are the other's.

    Args:
        data: the other data set.
        change: what is changed, in words.
        seed: of the change. None: that of `data`, or of the run.
    """

    def __init__(self, data: AbstractMemoryData, change: str, seed: int | None = None) -> None:
        super().__init__(data.batch_size, data.eval_batch_size, data.seed)
        self.data, self.change = data, change
        self.change_seed = data.seed if seed is None else seed

    @property
    def effective_change_seed(self) -> int:
        return self.run_seed if self.change_seed is None else self.change_seed

    def find(self) -> Source:
        found = self.data.locate(announce=False)  # a stand-in is announced once, by this data set
        return replace(found, note=f"{found.note}; {self.change}" if found.note else self.change)

    def transform(self, training: bool) -> Transform | None:
        return self.data.transform(training)

    @property
    def num_classes(self) -> int | None:
        self.locate()
        return self.data.num_classes

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        self.locate()
        return self.data.target_shape
