"""The test cluster, once a session, and the jobs whose results several tests read."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import PACKAGES, Cluster, cluster, missing_programs
from tests.slurm.jobs import Job, Jobs, Result, result


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs Slurm, and one worker of `pytest -n 2` runs all of it."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.xdist_group("slurm"))
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster; without an installation the tests are skipped, and fail where CI=true promises one."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Fails where another process has made it: xdist has lost its groups, and every job would run twice.
        (tmp_path_factory.getbasetemp().parent / "cluster").mkdir()
    missing = missing_programs()
    if missing:
        how = f"Slurm is not installed. To run these tests: apt-get install --no-install-recommends {PACKAGES}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{how} (no {', '.join(missing)})", pytrace=False)
        pytest.skip(how)
    # Not under pytest's own folder: a socket's path is at most 107 characters long.
    with tempfile.TemporaryDirectory(prefix="ld-slurm-") as folder, cluster(Path(folder)) as running:
        yield running


@pytest.fixture(scope="session")
def jobs(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """What submits the project's scripts, all into one root of runs."""
    return Jobs(slurm, tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="session")
def stale(jobs: Jobs) -> Path:
    """A run that was broken off, in the directory that `started["mid-epoch"]` would take: job numbers begin anew."""
    words = jobs.cluster.run("scontrol", "show", "config").split()
    directory = jobs.folder / "runs" / f"tiny-{words[words.index('NEXT_JOB_ID') + 2]}_0"
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config.yaml").write_text("seed_everything: 7\n")
    (directory / "checkpoints" / "requeue.ckpt").write_bytes(b"not of this run")
    return directory


@pytest.fixture(scope="session")
def started(jobs: Jobs, stale: Path) -> dict[str, Job]:
    """Jobs by what happens to them, all side by side, since most of their time is start-up and waiting."""
    pre_empt = f"env -i PATH=$PATH SLURM_CONF=$SLURM_CONF sbatch -p urgent --exclusive -o {jobs.folder}/urgent.out"
    one = ["--nodes=1", "--ntasks-per-node=1"]
    found = {
        "mid-epoch": jobs.array(INTERRUPT="3 16"),
        "imports": jobs.array(INTERRUPT="0", INTERRUPT_BY="true"),  # the first step waits for the signal below
    }
    imports = found["imports"].number
    found["imports"].wait_until_importing()
    jobs.cluster.run("scancel", "--signal=USR1", f"{imports}_0")
    return found | {
        "array": jobs.array(tasks="0-3", depths="10 18", seeds="0 1", INTERRUPT="13", INTERRUPT_TASK="1"),
        "pre-empted": jobs.array(options=["-p", "spot"], INTERRUPT="19", INTERRUPT_BY=f"{pre_empt} --wrap hostname"),
        "ddp": jobs.ddp(),
        "ddp interrupted": jobs.ddp(INTERRUPT="7"),
        "cancelled": jobs.array(INTERRUPT="12", INTERRUPT_BY="scancel $SLURM_ARRAY_JOB_ID"),
        "wrong override": jobs.array("--model.widht", "3", depths="10 18"),
        "beyond the grid": jobs.array(tasks="2", depths="10 18"),
        "no config": jobs.submit("array.sbatch", options=["--array=0"]),
        "wrong config": jobs.submit("array.sbatch", "configs/resnet_dept.yaml", options=["--array=0"]),
        "ddp, no config": jobs.submit("ddp.sbatch", options=one),
        "ddp, wrong tasks": jobs.submit("ddp.sbatch", jobs.config, options=["-N2", "--ntasks-per-node=2", "-n3"]),
        "too few processes": jobs.wrap("--trainer.devices", "2"),
    }


@pytest.fixture(scope="session")
def uninterrupted(started: dict[str, Job]) -> Result:
    """What depth 10 and seed 0 give when nothing happens: task 0 of the array."""
    started["array"].ended()
    return result(started["array"].runs()[0])
