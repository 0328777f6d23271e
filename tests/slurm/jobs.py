"""Jobs of the project's own scripts on the test cluster, and what they left in their run directories."""

import csv
import json
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.slurm.cluster import Cluster, ClusterError, free_ports

ROOT = Path(__file__).parents[2]
EPOCHS, STEPS = 3, 10  # steps an epoch; 5 on two processes
OURS = {"PYTHONPATH": str(Path(__file__).parent), "CUDA_VISIBLE_DEVICES": ""}
CONFIG = f"""\
model:
  class_path: lightning_depth.models.ResNet
  init_args:
    depth: 10
    width: 2
    optimizer:
      class_path: torch.optim.SGD
      init_args: {{lr: 0.05, momentum: 0.9}}
data:
  class_path: lightning_depth.data.EmbeddedDigits
  init_args: {{samples_per_class: 8, val_fraction: 0.05, image_size: 8, batch_size: 8, augment: crop}}
trainer:
  accelerator: cpu
  max_epochs: {EPOCHS}
  callbacks:
    - class_path: lightning_depth.callbacks.EffectiveRank
    - class_path: interrupt.Interrupt
"""


class Job:
    """A submitted batch job."""

    def __init__(self, cluster: Cluster, number: int, folder: Path) -> None:
        self.cluster, self.number, self.folder = cluster, number, folder

    def ended(self) -> list[dict[str, str]]:
        """What Slurm says about each task, once all have ended."""
        return self.cluster.wait(self.number)

    def states(self) -> list[tuple[str, int, int]]:
        """(state, exit code, restarts) of each task, once all have ended."""
        return [(t["JobState"], int(t["ExitCode"].split(":")[0]), int(t["Restarts"])) for t in self.ended()]

    def output(self, task: int | None = None) -> str:
        """What the job, or a task of the array, printed."""
        name = f"{self.number}" if task is None else f"{self.number}_{task}"
        path = self.folder / f"{name}.out"
        return path.read_text() if path.exists() else ""

    def runs(self) -> list[Path]:
        """The run directories of this job, of all its tasks and attempts."""
        own = re.compile(rf"tiny-{self.number}(_\d+)?(-\d+)?")
        return sorted(path for path in (self.folder / "runs").glob("*") if own.fullmatch(path.name))

    def wait_until_importing(self, timeout: float = 100) -> None:
        """Until main.py has done its first line: SIGUSR1 has a handler, and the imports have begun."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for proc in Path("/proc").glob("[0-9]*"):
                try:
                    words = (proc / "cmdline").read_bytes().split(b"\0")
                    if b"python" not in words[0] or b"main.py" not in words[1:]:
                        continue
                    variables = (proc / "environ").read_bytes().split(b"\0")
                    caught = re.search(r"SigCgt:\s*(\w+)", (proc / "status").read_text())
                except (OSError, IndexError):
                    continue
                ours = {f"{key}={self.number}".encode() for key in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID")}
                if caught and int(caught[1], 16) & 1 << (10 - 1) and ours & set(variables):
                    return
            time.sleep(0.01)
        raise ClusterError(f"Job {self.number} never started to train.\n{self.output()}\n{self.cluster.logs()}")


class Jobs:
    """Submits the project's scripts.

    Args:
        cluster: where.
        folder: of the config, the jobs' output and `runs`, the one root of all runs.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.config = folder / "tiny.yaml"
        self.config.write_text(CONFIG)

    def submit(
        self, script: str, *arguments: str | Path, options: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> Job:
        """`sbatch OPTIONS slurm/SCRIPT ARGUMENTS` from the repository's root, which needs no config of its own."""
        output = "%A_%a.out" if script == "array.sbatch" else "%j.out"
        number = self.cluster.sbatch(
            f"--output={self.folder / output}",
            "--cpus-per-task=1",
            *options,
            ROOT / "slurm" / script,
            *arguments,
            cwd=ROOT,
            env={**OURS, **(env or {})},
        )
        return Job(self.cluster, number, self.folder)

    def array(
        self,
        *overrides: str,
        tasks: str = "0",
        depths: str = "10",
        seeds: str = "0",
        options: Sequence[str] = (),
        **env: str,
    ) -> Job:
        """`slurm/array.sbatch` on the tiny config."""
        return self.submit(
            "array.sbatch",
            self.config,
            "--run.root",
            self.folder / "runs",
            *overrides,
            options=[f"--array={tasks}", *options],
            env={"DEPTHS": depths, "SEEDS": seeds, **env},
        )

    def ddp(self, *overrides: str, **env: str) -> Job:
        """`slurm/ddp.sbatch` on the tiny config: two nodes with one process each."""
        return self.submit(
            "ddp.sbatch",
            self.config,
            "--run.root",
            self.folder / "runs",
            *overrides,
            options=["--nodes=2", "--ntasks-per-node=1"],
            # The default port is made from the job's number, and on this host another cluster may have that number too.
            env={"ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "MASTER_PORT": str(free_ports(1)[0]), **env},
        )

    def wrap(self, *overrides: str) -> Job:
        """The tiny config in a job of one task, as one writes it without a script."""
        command = [sys.executable, "main.py", "fit", "--config", self.config, "--run.root", self.folder / "runs"]
        line = "srun " + shlex.join(map(str, [*command, *overrides]))
        number = self.cluster.sbatch(f"--output={self.folder}/%j.out", "--ntasks=1", "--wrap", line, cwd=ROOT, env=OURS)
        return Job(self.cluster, number, self.folder)


class Result(NamedTuple):
    """What must be the same, bit for bit, whether a run was interrupted or not."""

    weights: dict[str, list[float]]
    momentum: list[list[float]]
    metrics: list[dict[str, str]]
    readings: list[dict[str, str]]


def result(directory: Path) -> Result:
    """What a finished run computed; the time that it took is left out."""
    checkpoint: dict[str, Any] = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["optimizer_states"][0]["state"]
    return Result(
        {name: tensor.flatten().tolist() for name, tensor in checkpoint["state_dict"].items()},
        [entry["momentum_buffer"].flatten().tolist() for entry in state.values()],
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows(directory / "metrics.csv")],
        [row for row in rows(directory / "readings.csv") if "seconds" not in row["key"]],
    )


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV table."""
    with path.open() as file:
        return list(csv.DictReader(file))


def summary(directory: Path) -> dict[str, Any]:
    """`summary.json`."""
    loaded: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return loaded
