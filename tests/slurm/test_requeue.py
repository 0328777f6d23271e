"""A run that is interrupted goes on in its own directory, and every number is that of a run that was not."""

from pathlib import Path

from tests.slurm.jobs import Job, Jobs, Result, result


def test_a_signal_while_python_is_still_importing(started: dict[str, Job], uninterrupted: Result) -> None:
    job = started["imports"]
    assert job.states() == [("COMPLETED", 0, 1)], job.output(0)
    assert f"requeueing job {job.number}_0 at step 1." in job.output(0)
    (run,) = job.runs()
    assert result(run) == uninterrupted


def test_signals_before_the_first_checkpoint_and_in_the_middle_of_an_epoch(
    started: dict[str, Job], uninterrupted: Result, stale: Path
) -> None:
    job = started["mid-epoch"]
    assert job.states() == [("COMPLETED", 0, 2)], job.output(0)
    for step in (4, 17):
        assert f"requeueing job {job.number}_0 at step {step}." in job.output(0)
    # Not in the directory of the job that had the same number, and in one directory throughout.
    (run,) = set(job.runs()) - {stale}
    assert run.name == f"{stale.name}-2"
    assert result(run) == uninterrupted
    assert not (run / "checkpoints" / "requeue.ckpt").exists()
    assert (stale / "checkpoints" / "requeue.ckpt").read_bytes() == b"not of this run"
    assert not (stale / "metrics.csv").exists()


def test_pre_emption_by_a_more_urgent_job(jobs: Jobs, started: dict[str, Job], uninterrupted: Result) -> None:
    job = started["pre-empted"]
    assert job.states() == [("COMPLETED", 0, 1)], job.output(0)
    assert (jobs.folder / "urgent.out").read_text()
    (run,) = job.runs()
    # It came in the last step of an epoch, whose own checkpoint is as good.
    assert f"Saved {run}/checkpoints/last.ckpt at step 20; Slurm is ending job" in job.output(0)
    assert result(run) == uninterrupted


def test_a_cancelled_job_saves_and_stays_cancelled(started: dict[str, Job]) -> None:
    job = started["cancelled"]
    assert [(state, restarts) for state, _, restarts in job.states()] == [("CANCELLED", 0)], job.output(0)
    (run,) = job.runs()
    assert (run / "checkpoints" / "requeue.ckpt").is_file()
    assert not (run / "summary.json").exists()


def test_a_requeued_job_whose_run_has_ended_leaves_it_alone(jobs: Jobs, started: dict[str, Job]) -> None:
    job = started["array"]
    job.ended()
    runs = job.runs()
    before = {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*")}
    jobs.cluster.run("scontrol", "requeue", f"{job.number}_3")
    assert job.states()[3] == ("COMPLETED", 0, 1), job.output(3)
    assert f"{runs[3]} has ended already" in job.output(3)
    assert job.runs() == runs
    assert {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*")} == before
