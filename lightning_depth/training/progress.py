"""One progress bar for the whole run, with the time it will still take."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class RunProgress(ProgressBar):
    """A bar over all steps of all epochs (or over the batches of an evaluation), drawn only on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Undo `disable`."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        if self._enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stdout)
            sys.stdout.flush()

    def _start(self, total: float, initial: int, what: str, steps_at_once: int = 1) -> None:
        known = int(total) if total not in (float("inf"), -1) else None
        # disable=None: no bar where the output is not a terminal.
        disable = None if self._enabled else True
        self._bar = tqdm(
            total=known,
            initial=initial,
            desc=what,
            disable=disable,
            leave=False,
            unit="step",
            unit_scale=steps_at_once if steps_at_once > 1 else False,
            dynamic_ncols=True,
        )

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(
            trainer.estimated_stepping_batches * trainer.accumulate_grad_batches,
            trainer.fit_loop.total_batch_idx + 1,
            "",
            getattr(pl_module, "steps_at_once", 1),
        )

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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._start(sum(trainer.num_val_batches), 0, "validate")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == "validate" and self._bar is not None:
            self._bar.update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(sum(trainer.num_test_batches), 0, "test")

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(sum(trainer.num_predict_batches), 0, "predict")

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
