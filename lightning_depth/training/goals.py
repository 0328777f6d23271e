"""Goals of training, which end a run, and the validation of the last epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.models.base import AbstractModel
from lightning_depth.models.losses import SampleMean
from lightning_depth.probes.probe import ends_training
from lightning_depth.probes.undisturbed import undisturbed
from lightning_depth.training.guards import broadcast_buffers

Judge = Literal["running", "current"]


class Goals(Callback):
    """Stops once the training split is fitted, and sees that the last epoch is validated.

    Whatever `check_val_every_n_epoch` says, the last epoch is validated, and probes know that their look is the last,
    where the end is known by the epoch's last step: a goal (judged after that step and before the validation),
    `max_epochs`, `max_steps` and `max_time`. In the middle of an epoch, `max_time` ends with a validation, `max_steps`
    only where `val_check_interval` has one at that step. An end that follows from a validation or comes after it
    (`EarlyStopping`) makes none. `stopped_by` is the goal that was reached, or None.

    The means of an epoch as it went by (`running`, what is logged as `train/loss` and `train/acc`) are taken before
    each step, in train mode, on augmented images: at a high rate they may never reach 1. `current` evaluates the
    weights as they are after the epoch, on un-augmented training samples in evaluation mode: "zero training error" in
    mori2020 3 and nichani2020. It logs `train_eval/loss` and `train_eval/acc` after every `every` epochs and the last.

    Args:
        train_acc: stop once the training accuracy is at least this (1.0: every sample right).
        train_loss: stop once the training loss, without penalties, is at most this.
        every: judge every so many epochs only (mori2020 3: 50).
        judge: see above. Without a goal `current` only logs.

    Raises:
        UserError: `every` is below 1, or `train_acc` not in [0, 1]; when training starts, that the targets have no
            accuracy, or the model is none of this package's.
    """

    def __init__(
        self, train_acc: float | None = None, train_loss: float | None = None, every: int = 1, judge: Judge = "running"
    ) -> None:
        if every < 1:
            raise UserError(f"Goals are judged every 1 or more epochs, not every={every}.")
        if train_acc is not None and not 0 <= train_acc <= 1:
            raise UserError(f"goals.train_acc={train_acc:g} cannot be reached: it is a share from 0 to 1.")
        self.train_acc, self.train_loss, self.every, self.judge = train_acc, train_loss, every, judge
        self.stopped_by: str | None = None
        self._judged = 0
        self._current: dict[str, Tensor] = {}
        self._check_val_every_n_epoch: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stopped_by, self._judged = None, 0
        # max_time is looked at first: Lightning appends its timer.
        trainer.callbacks = sorted(trainer.callbacks, key=lambda c: not isinstance(c, Timer))  # type: ignore[attr-defined]
        if self.train_acc is None and self.train_loss is None and self.judge == "running":
            return
        if not isinstance(pl_module, AbstractModel):
            raise UserError(f"Goals need a model of lightning_depth, and {type(pl_module).__name__} is none.")
        if self.train_acc is not None and pl_module.shapes.target is not None:
            raise UserError("The targets are numbers, which have no accuracy: give goals.train_loss, not train_acc.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            self._check(trainer, pl_module)
        ends = trainer.is_last_batch or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if ends and ends_training(trainer) and trainer.check_val_every_n_epoch not in (None, 1):
            self._check_val_every_n_epoch, trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch, 1

    # Where a run goes on after the last step of an epoch, that step is not taken again.
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_last_batch:
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)
        for key in ("loss", "acc"):  # those of an earlier epoch
            trainer.callback_metrics.pop(f"train_eval/{key}", None)
        values = {f"train_eval/{key}": value for key, value in self._current.items() if value.dim() == 0}
        # Equal on all ranks already; Lightning wants to be told.
        pl_module.log_dict(values, sync_dist=True, batch_size=1)

    def _restore(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # Not sooner: ModelCheckpoint decides by it when to save.
        if self._check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch, self._check_val_every_n_epoch = self._check_val_every_n_epoch, None

    on_train_epoch_start = on_train_end = on_exception = _restore

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the epoch whose last step was taken, once."""
        epoch = trainer.current_epoch + 1
        if self._judged == epoch or not isinstance(pl_module, AbstractModel):
            return
        self._judged, self._current = epoch, {}
        due = epoch % self.every == 0
        if self.judge == "current" and (due or ends_training(trainer)):
            self._current = train_eval(trainer, pl_module)
        if due and (goal := self._reached(pl_module)) is not None:
            trainer.should_stop, self.stopped_by = True, goal

    def _reached(self, model: AbstractModel) -> str | None:
        if self.train_acc is None and self.train_loss is None:
            return None
        of = " of the current weights" if self.judge == "current" else ""
        values = self._current if of else model.running_metrics("train")
        if self.train_acc is not None and float(values["acc"]) >= self.train_acc:
            return f"training accuracy{of} reached {self.train_acc}"
        if self.train_loss is not None and float(values["loss"]) <= self.train_loss:
            return f"training loss{of} reached {self.train_loss}"
        return None


@torch.no_grad()
def train_eval(trainer: Trainer, model: AbstractModel) -> dict[str, Tensor]:
    """Means over all training samples, by key, (*replicas,) each: `loss`, and `acc` where there are classes.

    It is the pass that a validation on the training split would make: un-augmented, in evaluation mode, in the
    trainer's precision, over the samples of all processes, which all look at the first one's buffers. Weights, buffers,
    modes and random generators are as if it had never run. Costs a forward pass of the training split. A `UserError`
    where the data module has no `train_eval_dataloader`: batches (inputs, targets) of the training split without
    augmentation, each sample once over all processes.
    """
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    if not hasattr(datamodule, "train_eval_dataloader"):
        lack = f"{type(datamodule).__name__} has no `train_eval_dataloader()`"
        raise UserError(f"Goals on current weights need the training samples as they are: {lack}.")
    means = {key: mean for key, mean in model.new_metrics().to(model.device).items() if isinstance(mean, SampleMean)}
    with undisturbed(model), _evaluating(model):
        broadcast_buffers(trainer, model)
        for batch in datamodule.train_eval_dataloader():
            moved = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))
            with trainer.precision_plugin.val_step_context():
                seen = model.sample_metrics(moved)
            for key, mean in means.items():
                mean.update(seen[key])
    return {key: mean.mean() for key, mean in means.items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
