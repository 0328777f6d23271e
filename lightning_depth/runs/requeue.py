"""Leave a Slurm job before its time limit, and go on in the requeued one as if nothing had happened."""

import os
import subprocess
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_depth import early


class SlurmRequeue(Callback):
    """At the first batch end after SIGUSR1: save `checkpoints/requeue.ckpt`, `scontrol requeue` this task, leave.

    Saved at a batch's end and not in the signal handler, so that the requeued task continues bit for bit; all ranks
    agree on the step. The checkpoint goes once an epoch's own is newer.

    Args:
        directory: the run's directory, its own for each array task.
        every: batches between two times at which the ranks compare notes.
    """

    def __init__(self, directory: Path, every: int = 1) -> None:
        self.path = directory / "checkpoints" / "requeue.ckpt"
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.every or not trainer.strategy.reduce_boolean_decision(early.pending, all=False):
            return
        trainer.save_checkpoint(self.path)  # ends in a barrier: every rank is here
        if trainer.is_global_zero:
            job = job_id(os.environ)
            print(f"Saved {self.path}; requeueing job {job} at step {trainer.global_step}.", flush=True)
            subprocess.run(["scontrol", "requeue", job], check=True)
        raise SystemExit(0)  # Slurm sends SIGTERM anyway

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)


def job_id(environment: Any) -> str:
    """The id of this Slurm job as `scontrol requeue` wants it: `<array job>_<task>` for a task of an array."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else str(environment["SLURM_JOB_ID"])
