"""slurm/array.sbatch: depths x seeds, a run directory each; what goes wrong is seen."""

import pytest
import yaml

from tests.slurm.jobs import EPOCHS, Job, rows, summary


def test_every_cell_of_the_grid_has_a_finished_run_of_its_own(started: dict[str, Job]) -> None:
    array = started["array"]
    assert [state[:2] for state in array.states()] == [("COMPLETED", 0)] * 4, array.output(0)
    assert [run.name for run in array.runs()] == [f"tiny-{array.number}_{task}" for task in range(4)]
    for run, (depth, seed) in zip(array.runs(), [(10, 0), (10, 1), (18, 0), (18, 1)], strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert (config["model"]["init_args"]["depth"], config["seed_everything"]) == (depth, seed)
        said = summary(run)
        assert (said["status"], said["epochs"], said["seed"], said["processes"]) == ("finished", EPOCHS, seed, 1)
        assert f"depth={depth}" in said["model"]
        assert [int(row["epoch"]) for row in rows(run / "metrics.csv")] == list(range(1, EPOCHS + 1))


def test_a_task_requeues_itself_and_no_other(started: dict[str, Job]) -> None:
    array = started["array"]
    # Task 3 is requeued from outside by another test.
    assert [restarts for _, _, restarts in array.states()][:3] == [0, 1, 0]
    assert f"requeueing job {array.number}_1 at step 14" in array.output(1)
    assert "depth 10, seed 1" in array.output(1)
    assert "attempt 2" in array.output(1)


def test_an_epoch_that_goes_on_in_its_middle_takes_seconds(started: dict[str, Job]) -> None:
    started["array"].ended()
    seconds = [float(row["seconds"]) for run in started["array"].runs() for row in rows(run / "metrics.csv")]
    assert max(seconds) < 200  # it used to be the machine's up-time


@pytest.mark.parametrize(
    ("mistake", "task", "said"),
    [
        ("wrong override", 0, "Did you mean width?"),
        ("beyond the grid", 2, "task 2 is beyond the grid: it has 2 depths x 1 seeds = 2 tasks, --array=0-1"),
        ("no config", 0, "which config? sbatch slurm/array.sbatch configs/resnet_depth.yaml"),
        ("wrong config", 0, "there is no config file configs/resnet_dept.yaml in "),
        ("ddp, no config", None, "which config? sbatch slurm/ddp.sbatch configs/resnet_depth.yaml"),
        ("ddp, wrong tasks", None, "3 tasks on 2 nodes: give --nodes and --ntasks-per-node, not --ntasks."),
        ("too few processes", None, "srun started 1 processes, and the trainer wants 2"),
    ],
)
def test_a_mistake_fails_says_what_it_is_and_leaves_nothing(
    started: dict[str, Job], mistake: str, task: int | None, said: str
) -> None:
    job = started[mistake]
    assert job.states() == [("FAILED", 2, 0)], job.output(task)
    assert said in job.output(task)
    assert job.runs() == []


def test_an_array_that_leaves_out_cells_says_so(started: dict[str, Job]) -> None:
    partial, whole = started["wrong override"], started["array"]
    partial.ended()
    assert "note: only 1 tasks were asked for; the grid has 2 depths x 1 seeds" in partial.output(0)
    whole.ended()
    assert "note" not in whole.output(0)
