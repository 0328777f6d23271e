"""Any data set with random training labels (mori2020 Appendix B)."""

from typing import final

import torch

from lightning_depth.data.base.memory import AbstractMemoryData, Loaded
from lightning_depth.data.base.wrapped import AbstractWrapped
from lightning_depth.errors import UserError
from lightning_depth.results import Split
from lightning_depth.seeds import generator


@final
class RandomLabels(AbstractWrapped):
    """Another data set, some or all of whose training labels are drawn again, uniformly over its classes.

    Inputs, order, augmentation, and validation and test labels are the other data set's. mori2020 Appendix B trains on
    Gaussian inputs with random labels: there `data` is `KLocal`. Raises a UserError where the fraction is not in [0,
    1], or the targets are numbers.

    Args:
        data: the data set, with classes as targets.
        fraction: of the training labels, rounded to a whole number, drawn again; a label may be drawn to be what it
            was. The labels of a smaller fraction are among those of a larger one, and drawn alike.
        seed: of the labels. None: that of `data`, or of the run.
    """

    def __init__(self, data: AbstractMemoryData, fraction: float = 1.0, seed: int | None = None) -> None:
        super().__init__(data, f"{100 * fraction:g} % of the training labels drawn at random", seed)
        if not 0 <= fraction <= 1:
            raise UserError(f"{fraction=}: it must be from 0 to 1.")
        self.fraction = fraction

    def setup(self, stage: str | None = None) -> None:
        self.locate()
        self.data.setup(stage or "fit")

    def load(self, name: Split) -> dict[Split, Loaded]:
        self.locate()
        if name != "train":
            return {name: self.data.split(name)}
        inputs, labels = self.data.split("train")
        classes = self.data.num_classes
        if classes is None:
            raise UserError(f"The targets of {type(self.data).__name__} are numbers: there are no labels to randomise.")
        stream = generator(self.effective_change_seed, "random labels")
        chosen = torch.randperm(len(labels), generator=stream)[: round(self.fraction * len(labels))]
        labels = labels.clone()
        labels[chosen] = torch.randint(classes, labels.shape, generator=stream)[chosen]
        return {"train": Loaded(inputs, labels)}

    @property
    def validated(self) -> Split:
        return self.data.validated

    @property
    def val_source(self) -> str:
        return f"{self.data.val_source}, labels as they are"
