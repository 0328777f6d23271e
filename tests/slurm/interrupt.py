"""A callback that lets a job be interrupted at chosen steps: tests of requeueing then depend on no timing."""

import os
import subprocess
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_depth.training import signals
from lightning_depth.training.requeue import job_id


class Interrupt(Callback):
    """Runs a shell command at the start of a step, and waits until a signal has come of it.

    `INTERRUPT="3 17"`: at step 3 of the first attempt and at step 17 of the second. `INTERRUPT_TASK=1`: only in that
    task of an array. `INTERRUPT_BY`: the command; by default Slurm sends SIGUSR1, as it does before a time limit.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        steps = os.environ.get("INTERRUPT", "").split()
        attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if attempt >= len(steps) or trainer.global_step != int(steps[attempt]) or not trainer.is_global_zero:
            return
        if os.environ.get("INTERRUPT_TASK") not in (None, os.environ.get("SLURM_ARRAY_TASK_ID")):
            return
        command = os.environ.get("INTERRUPT_BY", f"scancel --signal=USR1 {job_id(os.environ)}")
        subprocess.run(command, shell=True)  # may die of the signal itself: Slurm sends it to every process
        deadline = time.monotonic() + 20
        while not signals.pending:
            assert time.monotonic() < deadline, "the signal never came"
            time.sleep(0.01)
