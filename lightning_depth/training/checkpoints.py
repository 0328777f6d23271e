"""How checkpoints are written: whole or not at all, and the last one as often as it costs little."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_depth.probes.probe import ends_training
from lightning_depth.results import atomic_file
from lightning_depth.training import signals


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there in one step.

    Lightning writes to the system's temporary folder first. From there to another file system a move is a copy, and a
    kill or a full disk in the middle of it leaves a torn file where the last good checkpoint was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):  # a ModelCheckpoint of the user's own, on an object store
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` after an epoch, unless saving would take more than a twentieth of the time.

    It is saved after the first epoch and the last, and when Slurm is about to end the job, whatever it costs. A run
    that is killed in between repeats what it did since: at most twenty times as long as a save takes, and an epoch.
    """

    share = 0.05

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.saved_after = 0  # the number of epochs after which it was saved last
        self._due = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = time.perf_counter()
        due = ends_training(trainer) or signals.pending or start >= self._due
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            super().on_train_epoch_end(trainer, pl_module)
            saved = time.perf_counter()
            self.saved_after, self._due = trainer.current_epoch + 1, saved + (saved - start) / self.share
