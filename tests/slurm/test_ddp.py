"""slurm/ddp.sbatch: one network over two nodes, in one run directory, interrupted or not."""

import torch

from tests.slurm.jobs import EPOCHS, STEPS, Job, result, summary


def test_one_network_over_two_nodes(started: dict[str, Job]) -> None:
    job = started["ddp"]
    assert job.states() == [("COMPLETED", 0, 0)], job.output()
    (run,) = job.runs()
    assert run.name == f"tiny-{job.number}"
    said = summary(run)
    assert (said["status"], said["epochs"], said["processes"]) == ("finished", EPOCHS, 2)
    # Two processes see two batches a step, so an epoch has half the steps.
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == EPOCHS * STEPS // 2


def test_it_requeues_and_goes_on_bit_for_bit(started: dict[str, Job]) -> None:
    job = started["ddp interrupted"]
    assert job.states() == [("COMPLETED", 0, 1)], job.output()
    assert f"requeueing job {job.number} at step 8." in job.output()
    (run,) = job.runs()
    started["ddp"].ended()
    assert result(run) == result(*started["ddp"].runs())
