"""Stop at the first loss that is not a number, before a checkpoint keeps what it did."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_depth.errors import UserError


class Diverged(UserError):
    """A fit whose loss is no number any more."""


class FiniteLoss(Callback):
    """Raises `Diverged`, which names the epoch and the step of the first infinite or NaN loss, validation's included.

    Where a family takes `steps_at_once`, the last of them is looked at: one that is no number stays so.

    On a CPU every loss is checked at once. On a GPU that would stop the queue at each step, so losses are checked in
    lots of `lot` and always before validation and before a checkpoint is saved: what is on disk comes from finite ones.
    """

    def __init__(self, lot: int = 50) -> None:
        self.lot = lot
        self._losses: list[tuple[int, int, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            step = (batch_idx + 1) * getattr(pl_module, "steps_at_once", 1)
            self._losses.append((trainer.current_epoch + 1, step, loss.detach()))
            if loss.device.type == "cpu" or len(self._losses) >= self.lot:
                self._check()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        for name, value in trainer.callback_metrics.items():
            if name == "val/loss" and not torch.isfinite(torch.as_tensor(value)):
                epoch = trainer.current_epoch + 1
                raise Diverged(
                    f"The validation loss became {float(value)} in epoch {epoch}: training stopped.\n"
                    "Earlier checkpoints are good and kept. A lower learning rate is the usual cure."
                )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check()

    def _check(self) -> None:
        if not self._losses:
            return
        finite = torch.stack([loss.float().reshape(()) for *_, loss in self._losses]).isfinite().tolist()
        lot, self._losses = self._losses, []
        for (epoch, step, loss), good in zip(lot, finite, strict=True):
            if not good:
                raise Diverged(
                    f"The loss became {float(loss)} in epoch {epoch} at step {step}: training stopped.\n"
                    "Earlier checkpoints are good and kept. A lower learning rate is the usual cure."
                )
