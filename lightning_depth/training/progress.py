"""One progress bar for the whole run, with the time it will still take."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lightning_depth.models.steps_at_once import steps_of


class RunProgress(ProgressBar):
    """A bar over all steps of all epochs (or over the batches of an evaluation), drawn only on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        if self._enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stdout)
            sys.stdout.flush()

    def _start(self, total: float, what: str, done: int = 0, scale: int = 1) -> None:
        known = int(total) if total not in (float("inf"), -1) else None
        off = None if self._enabled else True  # None: no bar where the output is not a terminal
        steps: Any = {"unit": "step", "unit_scale": scale if scale > 1 else False}
        self._bar = tqdm(total=known, initial=done, desc=what, disable=off, leave=False, dynamic_ncols=True, **steps)

    def _stop(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    on_train_end = on_exception = _stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        self._start(steps, "", trainer.fit_loop.total_batch_idx + 1, steps_of(pl_module))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Reading the loss waits for a GPU, so it is shown only when the bar is drawn anyway.
        drawn = self._bar is not None and not self._bar.disable and self._bar.update()
        if self._bar is not None and drawn and isinstance(outputs, dict) and "loss" in outputs:
            self._bar.set_postfix(loss=f"{float(outputs['loss']):.3g}", refresh=False)

    # An evaluation has a bar of its own; the validations of a fit have none.
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._start(sum(trainer.num_val_batches), "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(sum(trainer.num_test_batches), "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(sum(trainer.num_predict_batches), "predict")

    def _advance_evaluation(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn != "fit" and self._bar is not None:
            self._bar.update()

    def _end_evaluation(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn != "fit":
            self._stop()

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _advance_evaluation
    on_validation_end = on_test_end = on_predict_end = _end_evaluation
