"""Leave a Slurm job before its time limit, and go on in the requeued one as if nothing had happened."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_depth.errors import UserError
from lightning_depth.runs.directory import job_id
from lightning_depth.training import signals
from lightning_depth.training.checkpoints import LastCheckpoint

# A job that Slurm is ending itself: it requeues the job too, or its user has cancelled it.
ENDING = ("", "CANCELLED", "COMPLETING", "DEADLINE", "NODE_FAIL", "PENDING", "PREEMPTED", "REQUEUED", "TIMEOUT")


class SlurmRequeue(Callback):
    """At the end of the first step after SIGUSR1 or SIGTERM: save `checkpoints/requeue.ckpt`, requeue this task, leave.

    Saved at a step's end and not in the signal handler, so that the requeued task continues bit for bit; all ranks
    agree on the step. After the last step of an epoch it waits for the epoch's own checkpoint, or where there is none
    for the next step. The one it saved goes when the run has ended. Each array task has a `directory` of its own.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "checkpoints" / "requeue.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By now Lightning has a SIGTERM handler, which talks to the other ranks in the middle of whatever they do.
        signals.arm()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return  # Lightning would take that checkpoint for one after validation, and leave the epoch's end out
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # no checkpoint holds the gradients that were accumulated so far
        if self._signalled(trainer):
            trainer.save_checkpoint(self.path)  # ends in a barrier: every rank is here
            self._leave(trainer, self.path)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saved = [c.saved_after for c in trainer.callbacks if isinstance(c, LastCheckpoint)]  # type: ignore[attr-defined]
        if trainer.current_epoch in saved and trainer.current_epoch > 0 and self._signalled(trainer):
            self._leave(trainer, self.path.with_name("last.ckpt"))  # of the epoch that has just ended

    def _signalled(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(signals.pending, all=False)

    def _leave(self, trainer: Trainer, saved: Path) -> None:
        if trainer.is_global_zero:
            self._requeue(job_id(os.environ), trainer.global_step, saved)
        raise SystemExit(0)  # Slurm sends SIGTERM anyway

    def _requeue(self, job: str, step: int, saved: Path) -> None:
        # Slurm signals every process of the step: scontrol too would die of what it asks for.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        state = self._slurm("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
        if state in ENDING:
            print(f"Saved {saved} at step {step}; Slurm is ending job {job} ({state}).", flush=True)
        else:
            print(f"Saved {saved}; requeueing job {job} at step {step}.", flush=True)
            self._slurm("scontrol", "requeue", job)

    def _slurm(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = f"{' '.join(command)}: {done.stderr.strip()}\nThe run can go on with --ckpt_path {self.path}."
            raise UserError(f"Cannot requeue this job: {said}")
        return done.stdout.strip()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)
