"""Any data set with random training labels (mori2020 Appendix B)."""

from dataclasses import replace
from typing import final

import torch

from lightning_depth.data.batches import EpochOrder, TensorBatches
from lightning_depth.data.memory import AbstractMemoryData, Loaded, Stage
from lightning_depth.data.sources import Source
from lightning_depth.mistakes import Mistake
from lightning_depth.seeds import generator, run_seed


@final
class RandomLabels(AbstractMemoryData):
    """Another data set, some or all of whose training labels are drawn again, uniformly over its classes.

    Inputs, order, augmentation, and validation and test labels are the other data set's. mori2020 Appendix B trains on
    Gaussian inputs with random labels: there `data` is `KLocal`.

    Args:
        data: the data set, with classes as targets.
        fraction: of the training labels, rounded to a whole number, drawn again; a label may be drawn to be what it
            was. The labels of a smaller fraction are among those of a larger one, and drawn alike.
        seed: of the labels. None: that of `data`, or of the run.

    Raises:
        Mistake: the fraction is not in [0, 1], or the targets are numbers.
    """

    def __init__(self, data: AbstractMemoryData, fraction: float = 1.0, seed: int | None = None) -> None:
        super().__init__(data.batch_size, data.eval_batch_size, data.seed)
        if not 0 <= fraction <= 1:
            raise Mistake(f"fraction={fraction}: it must be from 0 to 1.")
        self.data, self.fraction = data, fraction
        self.label_seed = data.seed if seed is None else seed
        self._train: Loaded | None = None

    def find(self) -> Source:
        """See `AbstractMemoryData`."""
        found = self.data.find()
        self.data._source = found  # a stand-in is announced once, by this data set
        note = f"{100 * self.fraction:g} % of the training labels drawn at random"
        return replace(found, note=f"{found.note}; {note}" if found.note else note)

    def setup(self, stage: str | None = None) -> None:
        """Load what `stage` needs."""
        self.locate()
        self.data.setup(stage or "fit")

    def split(self, name: Stage) -> Loaded:
        """A split of the data set, the training one with its new labels."""
        self.locate()
        if name != "train":
            return self.data.split(name)
        if self._train is None:
            inputs, labels = self.data.split("train")
            classes = self.data.num_classes
            if classes is None:
                raise Mistake(
                    f"The targets of {type(self.data).__name__} are numbers: there are no labels to randomise."
                )
            stream = generator(run_seed(self.label_seed), "random labels")
            with torch.inference_mode(False):
                chosen = torch.randperm(len(labels), generator=stream)[: round(self.fraction * len(labels))]
                drawn = torch.randint(classes, labels.shape, generator=stream)
                labels = labels.clone()
                labels[chosen] = drawn[chosen]
            self._train = Loaded(inputs, labels)
        return self._train

    def batches(self, loaded: Loaded, order: EpochOrder | None = None, epoch: int = 0, skip: int = 0) -> TensorBatches:
        """As the data set serves them."""
        return self.data.batches(loaded, order, epoch, skip)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as the network gets it."""
        return self.data.input_shape

    @property
    def num_classes(self) -> int | None:
        """The number of classes."""
        return self.data.num_classes

    @property
    def validated(self) -> Stage:
        """The split that the data set validates on, its labels as they are."""
        return self.data.validated

    @property
    def train_size(self) -> int:
        """The number of training samples."""
        return len(self.split("train").targets)

    @property
    def val_source(self) -> str:
        """What validation is done on, in words."""
        said = str(getattr(self.data, "val_source", f"{self.validated} split"))
        return f"{said}, labels as they are"
