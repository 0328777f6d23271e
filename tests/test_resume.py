"""A run that was killed goes on bit for bit as if it had not been, and says so where there is nothing to go on with."""

import csv
import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lightning_depth.data import KLocal
from lightning_depth.models import MLP
from lightning_depth.training.checkpoints import LastCheckpoint
from lightning_depth.training.goals import Goals
from tests.commands import command, tiny, written


def probed(family="ResNet"):
    """The tiny config with everything that has a state, and with a saboteur who is idle until he is told a moment.

    Each family improves on validation in epoch 2 and not in epoch 3.
    """
    config = tiny()
    network, rate, samples, batch = {
        "ResNet": (config["model"], 0.05, 40, 10),
        "Dropout": ({"class_path": "tests.sabotage.Dropout", "init_args": {}}, 0.02, 20, 20),
        "lots": ({"class_path": "tests.sabotage.Dropout", "init_args": {"steps_at_once": 2}}, 0.02, 20, 9),
    }[family]
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": rate, "momentum": 0.9}}
    scheduler = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.7}}
    config["model"] = network
    config["model"]["init_args"] |= {"optimizer": optimizer, "lr_scheduler": scheduler}
    config["data"]["init_args"] |= {"augment": "crop_flip", "samples_per_class": samples, "batch_size": batch}
    config["trainer"]["callbacks"] = [
        {"class_path": "lightning_depth.callbacks.OperatorNorm"},
        {"class_path": "lightning_depth.callbacks.RepresentationCollapse", "init_args": {"train_samples": 30}},
        {"class_path": "tests.sabotage.KillAt"},
    ]
    return config


def fit(folder, *words, kill_at=None):
    """Run or go on with `fit`; with a moment, it must be killed then."""
    environment = {"KILL_AT": kill_at} if kill_at else {}
    ended = command("fit", "--config", "tiny.yaml", *words, cwd=folder, **environment)
    assert ended.status == (-signal.SIGKILL if kill_at else 0), ended.err
    return ended


def table(run, name):
    """A table of the run without the times in it."""
    with (run / name).open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("key") != "seconds"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def flat(tree, prefix=""):
    """(path, value) for every leaf of nested dicts and lists."""
    if isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from flat(value, f"{prefix}/{key}")
    else:
        yield prefix, tree


def assert_same(run, reference):
    """Everything that two runs recorded is the same to the last bit, times aside."""
    for name in ("last", "best"):
        ours, theirs = (
            torch.load(r / "checkpoints" / f"{name}.ckpt", weights_only=True, map_location="cpu")
            for r in (run, reference)
        )
        for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "train_metrics"):
            left, right = dict(flat(ours[key])), dict(flat(theirs[key]))
            assert left.keys() == right.keys()
            for leaf, value in left.items():
                same = torch.equal(value, right[leaf]) if isinstance(value, torch.Tensor) else value == right[leaf]
                assert same, f"{name}.ckpt: {key}{leaf}"
        assert any("running_var" in key for key in ours["state_dict"])
        assert any("momentum_buffer" in path for path, _ in flat(ours["optimizer_states"]))
    for name in ("metrics.csv", "readings.csv"):
        assert table(run, name) == table(reference, name), name
    ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (run, reference))
    for key in ("status", "epochs", "final", "best"):
        assert ours[key] == theirs[key]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The config and the directory of a run of each family that nobody disturbed."""
    found = {}
    for family in ("ResNet", "Dropout", "lots"):
        folder = tmp_path_factory.mktemp(family)
        written(probed(family), folder)
        fit(folder)
        found[family] = folder / "runs" / "tiny"
    return found


MOMENTS = {
    "in the middle of epoch 2": ("Dropout", ["batch 2 1"]),
    "rows of epoch 2 written, checkpoint not": ("ResNet", ["row 2"]),
    "between the two checkpoints of epoch 2": ("ResNet", ["saving 2"]),
    "three times": ("ResNet", ["epoch 2", "batch 2 5", "row 3"]),
    "checkpoint inside epoch 2": ("ResNet", ["requeue 2 4"]),
    "checkpoint inside epoch 2, with dropout": ("Dropout", ["requeue 2 2"]),
    "checkpoint inside epoch 1, then one inside epoch 3": ("Dropout", ["requeue 1 2", "requeue 3 1"]),
    "checkpoint inside epoch 2, several steps at once": ("lots", ["requeue 2 2"]),
    "a checkpoint inside an epoch that is out of date": ("Dropout", ["requeue 1 1", "batch 2 2"]),
}


@pytest.mark.parametrize(("family", "moments"), MOMENTS.values(), ids=MOMENTS)
def test_a_killed_run_goes_on_bit_for_bit(uninterrupted, family, moments, tmp_path):
    written(probed(family), tmp_path)
    for index, moment in enumerate(moments):
        fit(tmp_path, *(["--ckpt_path", "last"] if index else []), kill_at=moment)
        assert not (tmp_path / "runs" / "tiny" / "summary.json").exists()
    fit(tmp_path, "--ckpt_path", "last")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    assert_same(tmp_path / "runs" / "tiny", uninterrupted[family])


@pytest.mark.parametrize(
    ("moment", "step", "saved"),
    [("signal 2 1", 4, "requeue"), ("signal 2 3", 6, "last"), ("signal 3 3", None, None)],
    ids=["inside an epoch", "last step of an epoch", "last step of all"],
)
def test_a_signal_under_slurm_loses_nothing(uninterrupted, moment, step, saved, tmp_path):
    written(probed("Dropout"), tmp_path)
    for name, does in (("squeue", "echo RUNNING"), ("scontrol", 'echo "$@" >> asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = command("fit", "--config", "tiny.yaml", cwd=tmp_path, KILL_AT=moment, **slurm)
    assert ended.status == 0, ended.err
    if step is not None:
        assert f"Saved runs/tiny/checkpoints/{saved}.ckpt; requeueing job 7 at step {step}." in ended.out
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
        fit(tmp_path, "--ckpt_path", "last")
    assert_same(tmp_path / "runs" / "tiny", uninterrupted["Dropout"])


def test_the_comparison_can_say_no(uninterrupted, tmp_path):
    written(probed("Dropout"), tmp_path)
    fit(tmp_path, "--seed_everything", "1")
    with pytest.raises(AssertionError, match=r"last\.ckpt: state_dict"):
        assert_same(tmp_path / "runs" / "tiny", uninterrupted["Dropout"])


def test_rows_that_were_too_early_are_kept_aside(tmp_path):
    written(probed("Dropout"), tmp_path)
    fit(tmp_path, kill_at="row 2")
    run = tmp_path / "runs" / "tiny"
    assert [row["epoch"] for row in table(run, "metrics.csv")] == ["1", "2"]
    fit(tmp_path, "--ckpt_path", "last")
    assert [row["epoch"] for row in table(run, "metrics.csv")] == ["1", "2", "3"]
    assert [row["epoch"] for row in table(run, "metrics.superseded.csv")] == ["2"]
    assert table(run, "metrics.superseded.csv")[0] == table(run, "metrics.csv")[1]


def test_killed_before_the_first_checkpoint_there_is_nothing_to_resume(tmp_path):
    written(probed("Dropout"), tmp_path)
    fit(tmp_path, kill_at="batch 1 2")
    ended = command("fit", "--config", "tiny.yaml", "--ckpt_path", "last", cwd=tmp_path)
    assert ended.status == 2
    assert "Nothing to resume: runs/tiny has no checkpoint yet.\nLeave out --ckpt_path" in ended.err
    fit(tmp_path)
    assert (tmp_path / "runs" / "tiny-2" / "summary.json").is_file()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run, whose best epoch is not its last."""
    folder = tmp_path_factory.mktemp("finished")
    written(probed("Dropout"), folder)
    fit(folder)
    return folder


def test_resuming_a_finished_run_says_so_and_changes_nothing(finished):
    run = finished / "runs" / "tiny"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    assert "runs/tiny is finished: nothing is left to train" in fit(finished, "--ckpt_path", "last").err
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_stopped_early_is_finished_too(tmp_path):
    written(probed("Dropout"), tmp_path)
    goal = ("--goals.train_acc", "0.1", "--trainer.max_epochs", "2")
    fit(tmp_path, *goal)
    assert "is finished" in fit(tmp_path, *goal, "--ckpt_path", "last").err
    assert [row["epoch"] for row in table(tmp_path / "runs" / "tiny", "metrics.csv")] == ["1"]


def test_more_epochs_go_on_as_if_they_had_been_asked_for_at_once(uninterrupted, tmp_path):
    written(probed("ResNet"), tmp_path)
    fit(tmp_path, "--trainer.max_epochs", "2")
    fit(tmp_path, "--trainer.max_epochs", "3", "--ckpt_path", "last")
    assert_same(tmp_path / "runs" / "tiny", uninterrupted["ResNet"])


def test_its_own_config_runs_again_in_a_new_directory(finished):
    own = finished / "runs" / "tiny" / "config.yaml"
    assert command("fit", "--config", own, cwd=finished).status == 0
    assert_same(finished / "runs" / "tiny-2", finished / "runs" / "tiny")
    first, second = (yaml.safe_load((finished / "runs" / n / "config.yaml").read_text()) for n in ("tiny", "tiny-2"))
    assert first == second


@pytest.mark.parametrize("which", ["best", "last", "runs/tiny/checkpoints/best.ckpt"])
@pytest.mark.parametrize("what", ["validate", "test"])
def test_evaluating_a_checkpoint_repeats_what_the_run_recorded(uninterrupted, what, which):
    run = uninterrupted["ResNet"]
    ended = command(what, "--config", run / "config.yaml", "--ckpt_path", which, cwd=run.parent.parent)
    assert ended.status == 0, ended.err
    split = {"validate": "val", "test": "test"}[what]
    printed = {key: float(value) for key, value in re.findall(rf"({split}/\w+)\s+([\d.e-]+)", ended.out)}
    rows = table(run, "metrics.csv")
    row = rows[-1] if which == "last" else max(rows, key=lambda row: float(row["val/acc"]))
    # Validation is on the test split here.
    assert printed == {f"{split}/{key}": pytest.approx(float(row[f"val/{key}"]), abs=1e-12) for key in ("loss", "acc")}
    assert sorted(path.name for path in run.parent.parent.iterdir()) == ["runs", "tiny.yaml"]
    summary = json.loads(max(run.glob(f"{what}-*/summary.json"), key=lambda path: path.stat().st_mtime_ns).read_text())
    assert summary["final"] == {key: pytest.approx(value) for key, value in printed.items()}


def test_predictions_are_kept(uninterrupted):
    run = uninterrupted["ResNet"]
    words = ("--config", run / "config.yaml", "--ckpt_path", "last")
    ended = command("predict", *words, cwd=run.parent.parent)
    assert ended.status == 0, ended.err
    [path] = run.glob("predict-last/outputs/test.npy")
    outputs = np.load(path)
    assert f"outputs of the test split, {outputs.shape}: {path}" in ended.out
    labels = np.repeat(np.arange(outputs.shape[1]), 100)  # held-out digits stand class by class
    wanted = float(table(run, "metrics.csv")[-1]["val/acc"])
    assert (outputs.argmax(1) == labels).mean() == pytest.approx(wanted)


class Slow(LastCheckpoint):
    """Saving takes a tenth of a second, which an epoch does not."""

    share = 0.05

    def _save_checkpoint(self, trainer, filepath):
        self.epochs.append(trainer.current_epoch + 1)
        time.sleep(0.1)
        super()._save_checkpoint(trainer, filepath)


@pytest.mark.parametrize(("stop", "last"), [({}, 30), ({"train_acc": 0.0, "every": 7}, 7)])
def test_the_last_checkpoint_takes_a_twentieth_of_the_time_and_is_there_at_the_end(stop, last, tmp_path):
    save = Slow(tmp_path)
    save.epochs = []
    data = KLocal(dimension=5, k=2, train_samples=10, test_samples=5, batch_size=10)
    fit = Trainer(
        max_epochs=30, accelerator="cpu", logger=False, callbacks=[save, Goals(**stop)], enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    fit.fit(MLP(depth=1, width=4), datamodule=data)
    assert save.epochs[0] == 1
    assert save.epochs[-1] == save.saved_after == last
    assert len(save.epochs) < 5
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == last - 1


def test_of_two_processes_that_go_on_with_one_run_the_second_is_refused(tmp_path):
    config = tiny()
    config["trainer"]["callbacks"] = [{"class_path": "tests.sabotage.KillAt"}]
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        written(config, tmp_path / folder)
    words = ["--config", "tiny.yaml", "--run.root", tmp_path / "runs"]
    more = ["fit", *words, "--ckpt_path", "last", "--trainer.max_epochs", "5"]
    run = tmp_path / "runs" / "tiny"
    assert command("fit", *words, cwd=tmp_path / "first").status == 0
    with ThreadPoolExecutor() as threads:
        first = threads.submit(command, *more, cwd=tmp_path / "first", KILL_AT="wait 5")
        for _ in range(600):
            if len(table(run, "metrics.csv")) == 4:
                break
            time.sleep(0.1)
        second = command(*more, cwd=tmp_path / "second")
        (tmp_path / "first" / "go on").touch()
        assert second.status == 2
        said = second.err[second.err.index("error: ") :].splitlines()
        assert len(said) == 2
        assert f"Another process is training in {run}" in said[0]
        assert first.result().status == 0
    assert [row["epoch"] for row in table(run, "metrics.csv")] == ["1", "2", "3", "4", "5"]
