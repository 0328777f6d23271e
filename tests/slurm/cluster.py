"""A throw-away Slurm cluster: two virtual nodes of two CPUs on this host, without systemd and without files in /etc.

A third node is there for jobs that pre-empt others.

It runs as root and as a plain user (then jobs run as that user). All of it lives in one directory and on free ports, so
that several can run side by side. The daemons are children of this process, so that none outlives it.
"""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from getpass import getuser
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
NODES = ("n1", "n2", "n3")
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

# cred_expire: a requeued job waits until its old credential has expired, 2 minutes by default.
CONFIG = """\
ClusterName=lightning-depth-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
SlurmdParameters=config_overrides
{nodes}
PartitionName=main   Nodes=n[1-2] State=UP PreemptMode=OFF Default=YES
PartitionName=spot   Nodes=n3     State=UP PreemptMode=REQUEUE PriorityTier=1
PartitionName=urgent Nodes=n3     State=UP PreemptMode=OFF PriorityTier=9
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000 State=UNKNOWN"


class ClusterError(Exception):
    """A daemon did not come up, or a job did not do what was waited for."""


def missing_programs() -> list[str]:
    """The programs of a Slurm installation that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]


class Cluster:
    """A running cluster.

    Args:
        directory: an empty directory with a short path (a socket's path has at most 107 characters).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.environment |= {
            "PATH": SEARCHED,
            "SLURM_CONF": str(directory / "slurm.conf"),
            # No name server knows n1 and n2.
            "MASTER_ADDR": "127.0.0.1",
        }
        self.jobs: list[int] = []
        self._daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self) -> None:
        """Bring up all daemons and wait until both nodes take jobs."""
        for name in ("state", "spool"):
            (self.directory / name).mkdir()
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        host, ports = socket.gethostname().split(".")[0], free_ports(1 + len(NODES))
        nodes = [NODE.format(name=n, host=host, port=p) for n, p in zip(NODES, ports[1:], strict=True)]
        settings = CONFIG.format(
            host=host, ports=ports, user=getuser(), directory=self.directory, nodes="\n".join(nodes)
        )
        (self.directory / "slurm.conf").write_text(settings)

        munge = {"key": "munge.key", "socket": "munge.socket", "pid": "munge.pid", "log": "munge.log", "seed": "seed"}
        # munged writes its log before it can read its key, and --force lets it live outside /etc.
        options = [
            f"--{o}={self.directory / munge[o.split('-')[0]]}"
            for o in ("key-file", "socket", "pid-file", "log-file", "seed-file")
        ]
        self._daemon("munged", "--foreground", "--force", *options)
        self._until(lambda: (self.directory / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon("slurmd", "-D", "-c", "-N", node)
        self._until(lambda: self._idle_nodes() == len(NODES), "slurmctld", "slurmd")

    def stop(self) -> None:
        """Take down whatever came up, jobs first."""
        if any(name == "slurmctld" and daemon.poll() is None for name, daemon in self._daemons):
            with contextlib.suppress(subprocess.SubprocessError):
                self._end_jobs()
        for _, daemon in reversed(self._daemons):
            daemon.terminate()
        for _, daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout.strip()

    def sbatch(self, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
        """Submit a batch job; its id."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, arguments)],
            env={**self.environment, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise ClusterError(f"sbatch refused: {done.stderr.strip()}")
        self.jobs.append(int(done.stdout))
        return self.jobs[-1]

    def tasks(self, job: int) -> list[dict[str, str]]:
        """What Slurm says about a job, `Key=Value` by key; of an array about each of its tasks, in order."""
        text = self.run("scontrol", "--oneliner", "show", "job", str(job))
        found = [dict(re.findall(r"(\S+?)=(.*?)(?= \S+=| *$)", line)) for line in text.splitlines()]
        return sorted(found, key=lambda task: int(task.get("ArrayTaskId", "0").split("-")[0]))

    def wait(self, job: int, timeout: float = 400) -> list[dict[str, str]]:
        """The job's tasks once all of them have ended for good."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
        return self.when(job, lambda tasks: all(task["JobState"] in over for task in tasks), timeout)

    def when(
        self, job: int, condition: Callable[[Sequence[Mapping[str, str]]], bool], timeout: float = 400
    ) -> list[dict[str, str]]:
        """The job's tasks as soon as `condition` holds for them."""
        deadline = time.monotonic() + timeout
        while not condition(tasks := self.tasks(job)):
            if time.monotonic() > deadline:
                states = [(task["JobState"], task["Reason"], task["Restarts"]) for task in tasks]
                raise ClusterError(f"Job {job} is {states} after {timeout} s.\n{self.logs()}")
            time.sleep(0.1)
        return tasks

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"--- {p.name}\n{_end(p)}" for p in sorted(self.directory.glob("*.log")))

    def _daemon(self, program: str, *arguments: str) -> None:
        name = f"{program}-{arguments[-1]}" if program == "slurmd" else program
        path = shutil.which(program, path=SEARCHED)
        assert path is not None
        with (self.directory / f"{name}.out.log").open("wb") as log:
            daemon = subprocess.Popen(
                [path, *arguments],
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._daemons.append((name, daemon))

    def _end_jobs(self) -> None:
        self.run("scancel", "--quiet", "--full", "--signal=KILL", f"--user={getuser()}")
        self.run("scancel", "--quiet", f"--user={getuser()}")
        deadline = time.monotonic() + 15
        while self.run("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.1)

    def _idle_nodes(self) -> int:
        try:
            return len(set(self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split()))
        except subprocess.SubprocessError:
            return 0

    def _until(self, condition: Callable[[], bool], *programs: str, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            ended = [name for name, daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                what = f"{', '.join(ended)} ended" if ended else f"{' and '.join(programs)} not ready in {timeout} s"
                raise ClusterError(f"The test cluster did not come up: {what}.\n{self.logs()}")
            time.sleep(0.05)


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """A running cluster, taken down at the end whatever happens."""
    made = Cluster(directory)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nothing on this host listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
