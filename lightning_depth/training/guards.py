"""What keeps training right: losses that are numbers, the same draws and buffers everywhere, right gradients."""

from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.inheritance import get_all_subclasses
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import guarded, is_guarded
from lightning_depth.models.steps_at_once import advance, steps_of
from lightning_depth.seeds import derive


class Diverged(UserError):
    """A fit whose loss is no number any more."""

    def __init__(self, loss: str, value: float, when: str) -> None:
        cure = "Earlier checkpoints are good and kept. A lower learning rate is the usual cure."
        super().__init__(f"The {loss} became {value} in {when}: training stopped.\n{cure}")


class FiniteLoss(Callback):
    """Raises `Diverged`, which names the epoch and the step of the first infinite or NaN loss, validation's included.

    Where a family takes `steps_at_once`, the last of them is looked at: one that is no number stays so.

    On a CPU every loss is checked at once. On a GPU that would stop the queue at each step, so `interval` losses are
    checked together, and always before validation and before a checkpoint is saved: what is on disk comes from finite
    ones.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._losses: list[tuple[int, int, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            step = (batch_idx + 1) * steps_of(pl_module)
            self._losses.append((trainer.current_epoch + 1, step, loss.detach()))
            if loss.device.type == "cpu" or len(self._losses) >= self.interval:
                self._check()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = float(trainer.callback_metrics.get("val/loss", 0.0))
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not abs(value) < float("inf"):
            raise Diverged("validation loss", value, f"epoch {trainer.current_epoch + 1}")

    def _check(self, *args: Any, **kwargs: Any) -> None:
        if not self._losses:
            return
        finite = torch.stack([loss.float().reshape(()) for *_, loss in self._losses]).isfinite().tolist()
        losses, self._losses = self._losses, []
        for (epoch, step, loss), good in zip(losses, finite, strict=True):
            if not good:
                raise Diverged("loss", float(loss), f"epoch {epoch} at step {step}")

    on_validation_start = on_train_epoch_end = on_save_checkpoint = _check


class StepSeed(Callback):
    """Seeds torch from (seed, step, rank) before every training step: a resumed run repeats dropout and the like.

    Not at the start of an epoch: a data loader that starts draws from the global generator, and Lightning starts it
    after that hook in a running fit but before it right after a resume.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = derive(self.seed, "step", trainer.global_step, trainer.global_rank)
        # torch.manual_seed would write down a stack trace for every device that is not in use.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # Lightning counts steps of optimizers: without one there would be no next step, and no checkpoint to save.
        if trainer.global_step == self._step and not any(o.param_groups for o in trainer.optimizers):
            advance(trainer, 1)


class SyncBuffers(Callback):
    """Gives every rank the first one's buffers before validation and testing, so that all look at one network.

    DDP sends them round at the start of each training step; after the last step of an epoch the ranks' BatchNorm
    statistics differ: a validation would mix networks, none of them quite the one in the checkpoint.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        broadcast_buffers(trainer, pl_module)

    on_test_start = on_validation_start


def broadcast_buffers(trainer: Trainer, network: nn.Module) -> None:
    """Give every rank the first one's buffers."""
    if trainer.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)


class SubsampleForeign(Callback):
    """Trains a module that is not of our families within `subsample_first`: its gradients are right on a CPU."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_guarded(pl_module):
            self._open.enter_context(guarded(pl_module.device))

    def _close(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()

    on_fit_end = on_exception = _close


def restore_loaders() -> None:
    """Put torch's loaders back: Lightning patches them while it asks for data, and leaves them so where that raises.

    Or the next network of this process gets loaders that cannot be made again with another sampler.
    """
    for patched in {DataLoader, BatchSampler} | get_all_subclasses(DataLoader) | get_all_subclasses(BatchSampler):
        for name in ("__init__", "__setattr__", "__delattr__"):
            if f"__old{name}" in vars(patched):
                setattr(patched, name, getattr(patched, f"__old{name}"))
                delattr(patched, f"__old{name}")
