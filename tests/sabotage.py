"""Networks and callbacks for tests that go wrong at a chosen moment."""

import math
import os
import signal
import time

from lightning.pytorch import Callback
from torch import nn

from lightning_depth.models.family import AbstractFamily
from lightning_depth.training.checkpoints import LastCheckpoint

LastCheckpoint.share = math.inf  # saved after every epoch: moments that come for sure


class DivergesInEpoch2(AbstractFamily):
    """Its loss is infinite from the second step of the second epoch on."""

    def build(self, shapes):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shapes.input), shapes.outputs))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (math.inf if self.trainer.current_epoch == 1 and batch_idx >= 1 else 1)


class Dropout(AbstractFamily):
    """Draws from torch's global generator in every training step."""

    def build(self, shapes):
        channels, height, width = shapes.input
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, stride=2, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout2d(0.3),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4 * ((height - 1) // 2) * ((width - 1) // 2), shapes.outputs),
        )


class KillAt(Callback):
    """SIGKILL to its own process at the moment that the environment variable KILL_AT names; without it, nothing.

    The moments are `batch EPOCH BATCH` (at its end), `requeue EPOCH BATCH` (where a checkpoint is saved first), `row
    EPOCH` (its rows are written, its first checkpoint is not), `saving EPOCH` (between its two checkpoints) and `epoch
    EPOCH` (at its start); `signal EPOCH BATCH` sends SIGUSR1 instead, and
    `wait EPOCH` waits at its start for a file `go on`. Epochs and batches count from 1.
    """

    def __init__(self):
        self.saved = 0

    def _is(self, *moment):
        return os.environ.get("KILL_AT") == " ".join(map(str, moment))

    def _now(self, *moment):
        if self._is(*moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_epoch_start(self, trainer, pl_module):
        self.saved = 0
        self._now("epoch", trainer.current_epoch + 1)
        while self._is("wait", trainer.current_epoch + 1) and not os.path.exists("go on"):
            time.sleep(0.05)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        here = trainer.current_epoch + 1, batch_idx + 1
        if self._is("signal", *here):
            os.kill(os.getpid(), signal.SIGUSR1)
        if self._is("requeue", *here):
            trainer.save_checkpoint(os.path.join(trainer.default_root_dir, "checkpoints", "requeue.ckpt"))
        for kind in ("batch", "requeue"):
            self._now(kind, *here)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.saved += 1
        self._now(("row", "saving")[self.saved > 1], trainer.current_epoch + 1)
