"""Under DDP, look at one network and not at one a rank."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SyncBuffers(Callback):
    """Gives every rank the first one's buffers before validation and testing.

    DDP sends them round at the start of each training step; after the last step of an epoch the ranks' BatchNorm
    statistics differ: a validation would mix networks, none of them quite the one in the checkpoint.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)
