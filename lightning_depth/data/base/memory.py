"""Data held in memory and served from the training device: order, ranks, resuming, and samples for probes."""

import sys
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_depth.data.base.batches import EpochOrder, TensorBatches, Transform
from lightning_depth.data.base.sources import Source
from lightning_depth.errors import UserError
from lightning_depth.results import Split
from lightning_depth.seeds import generator


class Loaded(NamedTuple):
    """A split in memory: inputs (N, ...), uint8 images (N, H, W, C) or floating-point, and targets (N, ...)."""

    inputs: Tensor
    targets: Tensor


class AbstractMemoryData(LightningDataModule, ABC):
    """Splits in memory, served in batches from the training device.

    The order of an epoch is a function of (seed, epoch), whatever the number of processes; a resumed run goes on inside
    an epoch; evaluation counts every sample once. See `EpochOrder` and `TensorBatches`. Raises a UserError where a
    number is below 1.

    Args:
        batch_size: training samples per batch and process.
        eval_batch_size: samples per batch and process elsewhere.
        seed: of everything that is drawn. None: the run's, which `use_run_seed` gives; 0 where nobody calls it.
    """

    run_seed: int = 0
    batches_at_once: int = 1
    """How many training batches are served as one; set by a family that takes several steps at once."""

    def __init__(self, batch_size: int = 128, eval_batch_size: int = 250, seed: int | None = None) -> None:
        super().__init__()
        for name, count in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if count < 1:
                raise UserError(f"{name}={count}: it must be at least 1.")
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self._source: Source | None = None
        self._splits: dict[Split, Loaded] = {}
        self._resident: dict[tuple[str, torch.device], Loaded] = {}

    def use_run_seed(self, seed: int) -> None:
        """Take the run's seed, here and in the data sets that this one holds, before any split is asked for."""
        self.run_seed = seed
        for held in vars(self).values():
            if isinstance(held, AbstractMemoryData):
                held.use_run_seed(seed)

    @property
    def effective_seed(self) -> int:
        """The data set's own seed, or the run's."""
        return self.run_seed if self.seed is None else self.seed

    @abstractmethod
    def find(self) -> Source:
        """Where the data come from, decided without reading them, or a UserError that says which file to put where."""

    @abstractmethod
    def load(self, name: Split) -> dict[Split, Loaded]:
        """A split, and others that come with it; asked for once."""

    def transform(self, training: bool) -> Transform | None:
        """What is done to uint8 images on their way to the network."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Load the training split, from which shapes are read; others are loaded when they are asked for."""
        self.split("train")

    def split(self, name: Split) -> Loaded:
        """A split, on the CPU; the same tensors at every call."""
        if name not in self._splits:
            with torch.inference_mode(False):
                self._splits |= self.load(name)
        return self._splits[name]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as the network gets it: of an image (C, H, W)."""
        inputs = self.split("train").inputs
        shape = tuple(inputs.shape[1:])
        return shape if inputs.is_floating_point() else (shape[-1], *shape[:-1])

    @property
    def train_size(self) -> int:
        return len(self.split("train").targets)

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None where the targets are numbers."""
        return None

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """Shape of one target where the targets are numbers; None where they are classes."""
        return None

    @property
    def validated(self) -> Split:
        """On which split validation is done."""
        return "val"

    @property
    def val_source(self) -> str:
        """What validation is done on, in words."""
        return f"{self.validated} split"

    def locate(self, announce: bool = True) -> Source:
        """Where the data come from, decided once; a stand-in is announced on stderr, unless another data set does."""
        if self._source is None:
            found = self.find()  # a wrapper finds the source of what it wraps, which says what that stands for
            self._source = (
                replace(found, stands_for=found.stands_for or type(self).__name__) if found.fallback else found
            )
            if self._source.fallback and announce:
                _announce(self._source)
        return self._source

    @property
    def source(self) -> Source:
        return self.locate()

    def prepare_data(self) -> None:
        """Have the data at hand, downloaded if need be."""
        self.locate()

    def train_dataloader(self) -> TensorBatches:
        """The training batches, from where a resumed fit left off."""
        train, (rank, world) = self._on_device("train"), self._place()
        fixed = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        order = EpochOrder(len(train.targets), self.batch_size, self.effective_seed, rank, world, reshuffle=not fixed)
        batches = TensorBatches(*train, self.batch_size, self.transform(training=True), order)
        batches.start, batches.at_once = self._position(), self.batches_at_once
        return batches

    def train_eval_dataloader(self) -> TensorBatches:
        """The training samples as they are, without augmentation, each once."""
        return self._evaluation(self._on_device("train"))

    def val_dataloader(self) -> TensorBatches:
        return self._evaluation(self._on_device(self.validated))

    def test_dataloader(self) -> TensorBatches:
        return self._evaluation(self._on_device("test"))

    predict_dataloader = test_dataloader

    def probe_dataloader(self, samples: int, split: Split = "train", everywhere: bool = False) -> TensorBatches:
        """A fixed random subset of the samples of a split, as they are; all of them if there are fewer.

        Each process gets its share of them, or all if `everywhere`.
        """
        if samples < 1:
            raise UserError(f"A probe needs at least 1 sample, not {samples}.")
        held = self._on_device(self.validated if split == "val" else split)
        shuffled = torch.randperm(len(held.targets), generator=generator(self.effective_seed, "probe"))
        chosen = shuffled[:samples].to(held.targets.device)
        with torch.inference_mode(False):  # a probe that validation calls may want gradients
            return self._evaluation(Loaded(held.inputs[chosen], held.targets[chosen]), everywhere)

    def _evaluation(self, split: Loaded, everywhere: bool = False) -> TensorBatches:
        # Every world-th sample and no padding: 101 samples on 2 processes are 51 and 50, and count as 101.
        rank, world = (0, 1) if everywhere else self._place()
        inputs, targets = split.inputs[rank::world], split.targets[rank::world]
        return TensorBatches(inputs, targets, self.eval_batch_size, self.transform(training=False))

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _position(self) -> tuple[int, int]:
        """(epoch, batches of it already seen) where training goes on; a checkpoint's loops are restored by now.

        One case is not exact: resuming a fit by `max_steps` from a checkpoint saved in `on_train_epoch_end`. Lightning
        then counts one epoch too many, and the order goes on with that of the epoch after the next.
        """
        if self.trainer is None:
            return 0, 0
        fit = self.trainer.fit_loop
        epochs, batches = fit.epoch_progress.current, fit.epoch_loop.batch_progress.current
        ended: int = epochs.processed  # type: ignore[attr-defined]  # both trackers have it
        # Training by steps says `restarting` between epochs too; an epoch is open only if it was begun and not ended.
        skip: int = batches.processed if fit.restarting and epochs.ready > ended else 0  # type: ignore[attr-defined]
        return ended, skip

    def _on_device(self, name: Split) -> Loaded:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if (name, device) not in self._resident:
            with torch.inference_mode(False):  # validation may ask first, and training must be able to use the copy
                split = self.split(name)
                self._resident[name, device] = Loaded(split.inputs.to(device), split.targets.to(device))
        return self._resident[name, device]


@rank_zero_only
def _announce(source: Source) -> None:
    lines = [
        source.describe(),
        "No number of this run says anything about the data set that was asked for.",
        "Without a fallback, the program stops here instead and says where to put the files.",
    ]
    rule = "*" * 100
    print(rule, *(f"* {line}" for line in lines), rule, sep="\n", file=sys.stderr, flush=True)
