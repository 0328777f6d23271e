"""Right gradients for networks of somebody else's on a CPU."""

from contextlib import ExitStack

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_depth.layers.convolutions import guarded, is_guarded


class SubsampleForeign(Callback):
    """Trains a module that is not of our families within `subsample_first`, in each process of its own."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_guarded(pl_module):
            self._open.enter_context(guarded(pl_module.device))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._open.close()
