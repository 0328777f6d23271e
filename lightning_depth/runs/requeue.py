"""Leave a Slurm job before its time limit, and go on in the requeued one as if nothing had happened."""

import os
import subprocess
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_depth import early
from lightning_depth.mistakes import Mistake

# A job that Slurm is ending itself: it requeues the job too, or its user has cancelled it.
ENDING = frozenset(
    ["", "CANCELLED", "COMPLETING", "DEADLINE", "NODE_FAIL", "PENDING", "PREEMPTED", "REQUEUED", "TIMEOUT"]
)


class SlurmRequeue(Callback):
    """At the end of the first step after SIGUSR1 or SIGTERM: save `checkpoints/requeue.ckpt`, requeue this task, leave.

    Saved at a step's end and not in the signal handler, so that the requeued task continues bit for bit; all ranks
    agree on the step. The checkpoint goes when the run has ended.

    Args:
        directory: the run's directory, its own for each array task.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "checkpoints" / "requeue.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By now Lightning has a SIGTERM handler, which talks to the other ranks in the middle of whatever they do.
        early.arm()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # no checkpoint holds the gradients that were accumulated so far
        if not trainer.strategy.reduce_boolean_decision(early.pending, all=False):
            return
        trainer.save_checkpoint(self.path)  # ends in a barrier: every rank is here
        if trainer.is_global_zero:
            self._requeue(job_id(os.environ), trainer.global_step)
        raise SystemExit(0)  # Slurm sends SIGTERM anyway

    def _requeue(self, job: str, step: int) -> None:
        state = self._slurm("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
        if state in ENDING:
            print(f"Saved {self.path} at step {step}; Slurm is ending job {job} ({state}).", flush=True)
        else:
            print(f"Saved {self.path}; requeueing job {job} at step {step}.", flush=True)
            self._slurm("scontrol", "requeue", job)

    def _slurm(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Mistake(
                f"Cannot requeue this job: {' '.join(command)}: {done.stderr.strip()}\n"
                f"The run can go on with --ckpt_path {self.path}."
            )
        return done.stdout.strip()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)


def job_id(environment: Any) -> str:
    """The id of this Slurm job as `scontrol requeue` wants it: `<array job>_<task>` for a task of an array."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else str(environment["SLURM_JOB_ID"])
