"""k-fold cross-validation of any data set in memory (mori2020 2.3)."""

from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from lightning_depth.data.base.memory import AbstractMemoryData, Loaded
from lightning_depth.data.base.wrapped import AbstractWrapped
from lightning_depth.errors import UserError
from lightning_depth.results import Split
from lightning_depth.seeds import generator


@final
class Folds(AbstractWrapped):
    """The training split of another data set in `folds` parts: one is validated on, the others are trained on.

    Every training sample is in exactly one part; parts differ by at most one sample, and are drawn without regard to
    the classes. Test split, order, augmentation and batch sizes are the other data set's, and so is its normalisation:
    constants computed from the training images are computed from those of all parts. mori2020 2.3 has 10 folds. Raises
    a UserError where `folds` is below 2 or above the number of training samples, or there is no such fold.

    Args:
        data: the data set.
        fold: the part to validate on, 0 <= fold < folds.
        folds: number of parts, k.
        seed: of the parts. None: that of `data`, or of the run.
    """

    def __init__(self, data: AbstractMemoryData, fold: int = 0, folds: int = 10, seed: int | None = None) -> None:
        super().__init__(data, f"fold {fold} of {folds} held out", seed)
        if folds < 2:
            raise UserError(f"{folds=}: it must be at least 2, one to validate on and the others to train on.")
        if not 0 <= fold < folds:
            raise UserError(f"{fold=}: {folds} folds count from 0 to {folds - 1}.")
        self.fold, self.folds = fold, folds

    def members(self, fold: int) -> Int64[Tensor, " n"]:
        """The training samples of the data set that `fold` validates on, ascending."""
        samples = len(self.data.split("train").targets)
        if self.folds > samples:
            raise UserError(f"folds={self.folds}: there are only {samples} training samples to divide.")
        shuffled = torch.randperm(samples, generator=generator(self.effective_change_seed, "folds"))
        return shuffled[fold :: self.folds].sort().values

    def load(self, name: Split) -> dict[Split, Loaded]:
        """The folds that are trained on and that which is validated on, or the data set's own test split."""
        self.locate()
        if name == "test":
            return {"test": self.data.split("test")}
        inputs, targets = self.data.split("train")
        held = torch.zeros(len(targets), dtype=torch.bool)
        held[self.members(self.fold)] = True
        return {"train": Loaded(inputs[~held], targets[~held]), "val": Loaded(inputs[held], targets[held])}

    @property
    def val_source(self) -> str:
        return f"fold {self.fold} of {self.folds} of the training split"
