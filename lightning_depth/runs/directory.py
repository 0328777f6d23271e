"""Where a run lives: a directory of its own, an earlier one that it goes on in, or the one that its Slurm job has."""

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_depth.errors import UserError
from lightning_depth.results import CONFIG, METRICS, read_config, read_summary
from lightning_depth.runs.differences import check_same_config, differences

# How the first process of a run tells those that it launches where the run lives.
RUN_VARIABLE = "LIGHTNING_DEPTH_PLACE"


@dataclass(frozen=True)
class Run:
    """One network's training.

    Attributes:
        directory: the run's own; no other run ever gets it.
        config: the whole config as plain values.
        checkpoint: from which it goes on, or starts; None: from scratch.
    """

    directory: Path
    config: Mapping[str, Any]
    checkpoint: Path | None = None


def open_run(root: Path, name: str, checkpoint: str | None, config: Mapping[str, Any]) -> Run:
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
    given = os.environ.get(RUN_VARIABLE)
    if given is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        directory, start = json.loads(given)
    else:
        directory, start = _decide(root, name, checkpoint, config)
        os.environ[RUN_VARIABLE] = json.dumps([str(directory), str(start) if start else None])
    return Run(Path(directory), config, Path(start) if start else None)


def _decide(root: Path, name: str, wanted: str | None, config: Mapping[str, Any]) -> tuple[Path, Path | None]:
    if wanted == "best":
        raise UserError("A run goes on from its last checkpoint, not its best: --ckpt_path last, or a file.")
    if wanted == "last":
        return _newest(root, name, config)
    start = None if wanted is None else Path(wanted)
    if start is not None:
        directory = start.resolve().parent.parent
        if (directory / CONFIG).is_file():
            check_same_config(directory, config)
            return directory, (newest_checkpoint(directory) if _requeued() else None) or start
    if SLURMEnvironment.detect() and "SLURM_JOB_ID" in os.environ:
        return _of_job(root, f"{name}-{job_id(os.environ)}", start, config)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("torchrun cannot agree on a new directory: use --trainer.devices N, or srun, instead.")
    return claim(root, name), start


def _newest(root: Path, name: str, config: Mapping[str, Any]) -> tuple[Path, Path]:
    """The newest run called `name` with this config, at its newest checkpoint; a UserError where there is none."""
    if not (runs := runs_named(root, name)):
        raise UserError(f"Nothing to resume: there is no run {root / name}.\nLeave out --ckpt_path to start one.")
    if not (same := _of_config(runs, config)):
        check_same_config(runs[0], config)  # names the keys
    if (checkpoint := newest_checkpoint(same[0])) is None:
        raise UserError(f"Nothing to resume: {same[0]} has no checkpoint yet.\nLeave out --ckpt_path to start anew.")
    check_checkpoint(checkpoint)
    return same[0], checkpoint


def _of_job(root: Path, name: str, start: Path | None, config: Mapping[str, Any]) -> tuple[Path, Path | None]:
    # Every process of the job computes the same path. A requeued job finds its own earlier work there; any other
    # finds at most that of a job that had the same number, or of an earlier command of the same job.
    if _requeued():
        runs = runs_named(root, name)
        own = _of_config(runs, config)
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


def claim(root: Path, name: str, folder: str = "checkpoints") -> Path:
    """Make and return `root/name`, or `root/name-2` and so on where that is taken; a UserError where it cannot be made.

    Atomic: no two runs get the same.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            candidate = root / (name if number == 1 else f"{name}-{number}")
            try:
                candidate.mkdir()
                # mkdir succeeds for root and on some network drives where writing does not.
                (candidate / folder).mkdir()
                return candidate
            except FileExistsError:
                continue
    except OSError as error:
        reason = f"{error.strerror}.\nChoose another with --run.root."
        raise UserError(f"Cannot write the run directory {root / name}: {reason}") from error
    raise AssertionError("an endless iterator ended")


def is_first_process() -> bool:
    """Whether this is the first of the processes that train one network, before Lightning has counted them."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(rank, "0")) == 0 for rank in ranks)


def lock(run: Run) -> FileLock:
    """The lock of a run's directory, held by the first of the processes that train in it until it ends in any way.

    A `UserError` where another run of the program holds it. A drive that cannot lock is used without.
    """
    held = FileLock(run.directory / ".lock")
    try:
        if is_first_process():
            # After a node has failed, a network drive holds its locks for another minute or two.
            held.acquire(timeout=120 if _requeued() else 0)
    except Timeout as error:
        hint = "Wait until it has ended, or leave out --ckpt_path to start a run of its own."
        raise UserError(f"Another process is training in {run.directory}.\n{hint}") from error
    except (OSError, NotImplementedError) as error:
        rank_zero_warn(f"{run.directory} cannot be locked ({error}): see that no other process trains in it.")
    return held


def runs_named(root: Path, name: str) -> list[Path]:
    """The runs called `name`, or this with a number, that have a config, newest first."""
    numbered = [path for path in root.glob(f"{name}-*") if path.name.removeprefix(name + "-").isdecimal()]
    found = [path for path in (root / name, *numbered) if (path / CONFIG).is_file()]
    return sorted(found, key=lambda path: (path / CONFIG).stat().st_mtime, reverse=True)


def _of_config(runs: list[Path], config: Mapping[str, Any]) -> list[Path]:
    return [run for run in runs if not differences(read_config(run), config)]


def check_checkpoint(path: Path) -> None:
    """Raise a UserError where there is no checkpoint, or a truncated one (the index of a zip file is its end)."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.\nGive a file, or `last` for the newest of this run.")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a checkpoint, or a truncated one.\nGive another file with --ckpt_path.")


def newest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that is furthest along: of a broken-off epoch where there is one, else of the last epoch."""
    found = [p for p in (directory / "checkpoints" / name for name in ("requeue.ckpt", "last.ckpt")) if p.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def checkpoint_of(root: Path, name: str, wanted: str, command: str) -> Path:
    """The checkpoint that `validate` and their like mean: a file, or `last` or `best` of the newest run of this name.

    A UserError where there is none, or it is torn.
    """
    path = Path(wanted)
    if wanted in ("last", "best"):
        if not (directories := runs_named(root, name)):
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
