"""Two real processes (gloo): one run, the numbers of one process, and nobody waits for ever."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

import callbacks
from lightning_depth.data import EmbeddedDigits
from lightning_depth.models import ResNet

ROOT = Path(__file__).parents[2]
CONFIG = """
model:
  class_path: ResNet
  init_args: {depth: 10, width: 2}
data:
  class_path: EmbeddedDigits
  init_args: {samples_per_class: 15, batch_size: 16, eval_batch_size: 77}
trainer:
  max_epochs: 2
  accelerator: cpu
  strategy: ddp
  devices: 2
  callbacks:
    - class_path: OperatorNorm
    - class_path: EffectiveRank
    - class_path: RepresentationCollapse
      init_args: {train_samples: 101}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "two.yaml").write_text(CONFIG)
    command = [sys.executable, "main.py", "fit", "--config", folder / "two.yaml", "--run.root", folder / "runs"]
    # The time-out is the test that no rank waits for another.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder / "runs"


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_two_processes_make_one_run(run):
    assert [path.name for path in run.iterdir()] == ["two"]
    summary = json.loads((run / "two" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert [row["epoch"] for row in rows(run / "two" / "metrics.csv")] == ["1", "2"]


def test_metrics_and_readings_are_those_of_one_process(run):
    model = ResNet.load_from_checkpoint(run / "two" / "checkpoints" / "last.ckpt")
    probes = [
        callbacks.OperatorNorm(),
        callbacks.EffectiveRank(),
        callbacks.RepresentationCollapse(train_samples=101),
    ]
    data = EmbeddedDigits(samples_per_class=15, eval_batch_size=77)
    one = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[*probes])
    metrics = one.validate(model, data, verbose=False)[0]
    logged = rows(run / "two" / "metrics.csv")[-1]
    assert float(logged["val/loss"]) == pytest.approx(metrics["val/loss"], rel=1e-6)
    assert float(logged["val/acc"]) == metrics["val/acc"]
    last = [r for r in rows(run / "two" / "readings.csv") if r["epoch"] == "2" and r["key"] != "seconds"]
    found = {(r["layer"], r["key"]): float(r["value"]) for r in last}
    mine = {(r.layer, r.key): r.value for p in probes for r in p.readings if r.key != "seconds"}
    assert found.keys() == mine.keys()
    for name, value in mine.items():
        if name[1] == "residual":
            continue  # where the iteration stopped depends on where it started
        tolerance = 2e-4 if name[1] == "norm" else 1e-6  # the norm's own rtol, started elsewhere
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-9), name


def test_training_metrics_count_every_sample_once(run):
    # 150 samples: 4 global batches of 32, and a last one of 22, 11 a rank.
    accuracy = float(rows(run / "two" / "metrics.csv")[0]["train/acc"])
    assert accuracy * 150 == pytest.approx(round(accuracy * 150), abs=1e-9)


def test_ranks_share_a_checkpoint_of_the_same_weights(run):
    checkpoint = torch.load(run / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["train_metrics"]) == 2
