"""Where a run lives: a directory of its own, an earlier one that it goes on in, or the one that its Slurm job has."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info

from lightning_depth.errors import UserError
from lightning_depth.results import CONFIG, METRICS, read_config, read_summary
from lightning_depth.runs.directory import (
    check_checkpoint,
    check_same_config,
    claim,
    differences,
    newest_checkpoint,
    runs_named,
    to_resume,
)
from lightning_depth.runs.run import Run

# How the first process of a run tells those that it launches where the run lives.
TOLD = "LIGHTNING_DEPTH_PLACE"


def place(root: Path, name: str, checkpoint: str | None, config: Mapping[str, Any]) -> Run:
    """The run that a `fit` of `config` is: a new one, or with a checkpoint the one to which that belongs.

    Args:
        root: folder of all runs.
        name: of the run; where it is taken, `<name>-2` and so on.
        checkpoint: None; `last`, of the newest run of this name and config; or a file, of a run or any other.
        config: the whole config; an earlier run that goes on must have the same.

    Raises:
        UserError: there is nothing to go on from, another config, no place to write.
        SystemExit: a requeued Slurm job whose run has ended.
    """
    told = os.environ.get(TOLD)
    if told is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        directory, start = json.loads(told)
        return Run(Path(directory), config, Path(start) if start else None)
    directory_, start_ = _decide(root, name, checkpoint, config)
    os.environ[TOLD] = json.dumps([str(directory_), str(start_) if start_ else None])
    return Run(directory_, config, start_)


def _decide(root: Path, name: str, wanted: str | None, config: Mapping[str, Any]) -> tuple[Path, Path | None]:
    if wanted == "best":
        raise UserError("A run goes on from its last checkpoint, not its best: --ckpt_path last, or a file.")
    if wanted == "last":
        return to_resume(root, name, config)
    start = None if wanted is None else Path(wanted)
    if start is not None:
        directory = start.resolve().parent.parent
        if (directory / CONFIG).is_file():
            check_same_config(directory, config)
            newest = newest_checkpoint(directory) if _requeued() else None
            return directory, newest or start
    if SLURMEnvironment.detect() and "SLURM_JOB_ID" in os.environ:
        return _of_job(root, f"{name}-{job_id(os.environ)}", start, config)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("torchrun cannot agree on a new directory: use --trainer.devices N, or srun, instead.")
    return claim(root, name), start


def _of_job(root: Path, name: str, start: Path | None, config: Mapping[str, Any]) -> tuple[Path, Path | None]:
    # Every process of the job computes the same path. A requeued job finds its own earlier work there; any other
    # finds at most that of a job that had the same number, or of an earlier command of the same job.
    if _requeued():
        runs = runs_named(root, name)
        own = [run for run in runs if not differences(read_config(run), config)]
        if own and read_summary(own[0]) is not None:
            rank_zero_info(f"{own[0]} has ended already: nothing is left to do.")
            raise SystemExit(0)
        if own:
            return own[0], newest_checkpoint(own[0]) or start
        for run in runs:
            if read_summary(run) is None:
                check_same_config(run, config)
        if (root / name).is_dir() and not runs:
            return root / name, start  # it had not come to write its config
    if int(os.environ.get("SLURM_PROCID", "0")) != 0:
        return root / name, start
    return claim(root, name), start


def _requeued() -> bool:
    """Whether Slurm started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def job_id(environment: Any) -> str:
    """The id of this Slurm job as `scontrol requeue` wants it: `<array job>_<task>` for a task of an array."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else str(environment["SLURM_JOB_ID"])


def checkpoint_of(root: Path, name: str, wanted: str, command: str) -> Path:
    """The checkpoint that `validate` and their like mean: a file, or `last` or `best` of the newest run of this name.

    Raises:
        UserError: there is none, or it is torn.
    """
    path = Path(wanted)
    if wanted in ("last", "best"):
        directories = runs_named(root, name)
        if not directories:
            raise UserError(f"There is no run {root / name} to {command}.")
        path = directories[0] / "checkpoints" / f"{wanted}.ckpt"
    check_checkpoint(path)
    return path


def has_ended(run: Run) -> bool:
    """Whether the run to go on with has written its summary, and no more epochs are wanted now than then."""
    summary = None if run.checkpoint is None else read_summary(run.directory)
    wanted = run.config["trainer"]["max_epochs"]
    if summary is None or wanted is None:
        return False
    before = read_config(run.directory).get("trainer", {}).get("max_epochs")
    stopped = wanted == before and summary["status"] != "finished"
    return stopped or 0 <= int(wanted) <= int(summary["epochs"])


def discard(run: Run) -> None:
    """Remove the directory of a new run, unless something was measured in it."""
    measured = (run.directory / METRICS).is_file() or any((run.directory / "checkpoints").glob("*"))
    if run.checkpoint is None and not measured:
        shutil.rmtree(run.directory, ignore_errors=True)
