"""Random draws of a training step that a resumed run repeats exactly."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_depth.seeds import derive


class StepSeed(Callback):
    """Seeds torch from (seed, step, rank) before every training step: dropout and the like do not depend on the past.

    Not at the start of an epoch: a data loader that starts draws from the global generator, and Lightning starts it
    after that hook in a running fit but before it right after a resume.

    Args:
        seed: the run's.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = derive(self.seed, "step", trainer.global_step, trainer.global_rank)
        # torch.manual_seed would write down a stack trace for every device that is not in use.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)
