"""`last.ckpt`, as often as it costs little."""

import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_depth.training import signals


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` after an epoch, unless saving would take more than a twentieth of the time.

    It is saved after the first epoch and the last, and when Slurm is about to end the job, whatever it costs. A run
    that is killed in between repeats what it did since: at most twenty times as long as a save takes, and an epoch.

    Args:
        directory: where to.
    """

    share = 0.05

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.saved_after = 0
        """The number of epochs after which it was saved last."""
        self._due = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        ends = trainer.should_stop or epochs == trainer.max_epochs or 0 <= trainer.max_steps <= trainer.global_step
        start = time.perf_counter()
        if trainer.strategy.reduce_boolean_decision(ends or signals.pending or start >= self._due, all=False):
            super().on_train_epoch_end(trainer, pl_module)
            saved = time.perf_counter()
            self.saved_after, self._due = epochs, saved + (saved - start) / self.share
