"""Two real processes (gloo): one run, the numbers of one process, and nobody waits for ever."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lightning_depth import callbacks as shelf
from lightning_depth.data import EmbeddedDigits
from lightning_depth.models import ResNet
from tests.commands import SERVER
from tests.ddp.two_processes import TRAINED, look, train

ROOT = Path(__file__).parents[2]
DATA = {"samples_per_class": 15, "batch_size": 16, "eval_batch_size": 77, "image_size": 10}
# Every number of samples is odd, so the processes never have as many of them.
PROBES = [
    ("OperatorNorm", {}),
    ("EffectiveRank", {"split": "train", "samples": 51}),
    ("RepresentationCollapse", {"train_samples": 101, "samples": 333, "nearest_mean": True, "neighbours": 3}),
    ("NeuralCollapse", {"train_samples": 77}),
    ("Spectrum", {}),
    ("Spectrum", {"name": "gram_spectrum", "of": "gram", "samples": 41, "layers": ["net.head", "net.stage2.0.conv1"]}),
    ("WeightDistance", {}),
    ("FeatureSimilarity", {"samples": 23}),
    ("LocalStability", {"samples": 3, "strengths": [3.0]}),
    ("ActivationImages", {"every": 2, "samples": 3}),
    ("JacobianNorm", {"samples": 3, "rtol": 1e-4}),
]
# The relative error to which an iteration goes, which starts elsewhere in one process; all else is exact to 1e-6.
ITERATED = {("operator_norm", "norm"): 2e-4, ("jacobian_norm", "mean"): 2e-4, ("jacobian_norm", "max"): 2e-4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    config = {
        "model": {"class_path": "ResNet", "init_args": {"depth": 10, "width": 2}},
        "data": {"class_path": "EmbeddedDigits", "init_args": DATA},
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "strategy": "ddp",
            "devices": 2,
            "callbacks": [{"class_path": name, "init_args": arguments} for name, arguments in PROBES],
        },
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "main.py", "fit", "--config", folder / "two.yaml", "--run.root", folder / "runs"]
    # The time-out is the test that no rank waits for another.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.fixture(scope="module")
def one_process(run):
    """The metrics and the probes of one process that validates the last checkpoint."""
    model = ResNet.load_from_checkpoint(run / "two" / "checkpoints" / "last.ckpt")
    probes = [getattr(shelf, name)(**arguments) for name, arguments in PROBES]
    one = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[*probes])
    return one.validate(model, EmbeddedDigits(**DATA), verbose=False)[0], probes


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def same(found, wanted):
    """Whether {(probe, layer, at, key): value} of two processes is that of one."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        probe, *_, key = name
        if key == "residual":
            continue  # where the iteration stopped depends on where it started
        tolerance = ITERATED.get((probe, key), 1e-6)
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-9), name


def apart(action, *arguments):
    """Call it in a process that may fork."""
    process = SERVER.Process(target=action, args=arguments)
    process.start()
    process.join(100)  # no rank waits for another
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0


def test_two_processes_make_one_run(run):
    assert [path.name for path in run.iterdir()] == ["two"]
    summary = json.loads((run / "two" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert [row["epoch"] for row in rows(run / "two" / "metrics.csv")] == ["1", "2"]


def test_metrics_and_readings_are_those_of_one_process(run, one_process):
    metrics, probes = one_process
    logged = rows(run / "two" / "metrics.csv")[-1]
    assert float(logged["val/loss"]) == pytest.approx(metrics["val/loss"], rel=1e-6)
    assert float(logged["val/acc"]) == metrics["val/acc"]
    last = [r for r in rows(run / "two" / "readings.csv") if r["epoch"] == "2" and r["key"] != "seconds"]
    found = {(r["probe"], r["layer"], r["at"], r["key"]): float(r["value"]) for r in last}
    assert len(found) == len(last)
    read = [r for p in probes for r in p.readings if r.key != "seconds"]
    wanted = {(r.probe, r.layer, "" if r.at is None else str(r.at), r.key): r.value for r in read}
    assert {probe for probe, *_ in wanted} == {probe.name for probe in probes}
    assert len({probe.name for probe in probes}) == len(PROBES)
    same(found, wanted)


def test_pictures_are_written_once_and_are_those_of_one_process(run, one_process):
    drawn = {probe.name: probe.pictures for probe in one_process[1] if probe.pictures}
    pictures = run / "two" / "pictures"
    assert {path.name for path in pictures.iterdir()} == drawn.keys()
    assert drawn.keys() == {"spectrum", "gram_spectrum", "feature_similarity", "activation_images"}
    for name, of_probe in drawn.items():
        files = {path.name for path in (pictures / name).iterdir()}
        assert files == {"epoch-00002.npz"} | ({"epoch-00001.npz"} if name != "activation_images" else set())
        with np.load(pictures / name / "epoch-00002.npz") as file:
            for picture in of_probe:
                found, wanted = file[f"{picture.layer}/{picture.key}"], picture.values.float().numpy()
                assert found.shape == wanted.shape
                if picture.key == "similarity":  # each process has its share of the samples, so they come in its order
                    assert found.shape == (41, 41)
                    found, wanted = np.sort(found, axis=None), np.sort(wanted, axis=None)
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_training_metrics_count_every_sample_once(run):
    # 150 samples: 4 global batches of 32, and a last one of 22, 11 a rank.
    accuracy = float(rows(run / "two" / "metrics.csv")[0]["train/acc"])
    assert accuracy * 150 == pytest.approx(round(accuracy * 150), abs=1e-9)


def test_ranks_share_a_checkpoint_of_the_same_weights(run):
    checkpoint = torch.load(run / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["train_metrics"]) == 2


def test_readings_of_a_foreign_linear_network_are_those_of_one_process(tmp_path):
    written = {}
    for devices in (2, 1):
        path = tmp_path / f"{devices}.json"
        apart(look, path, devices)
        world, readings, pictures = json.loads(path.read_text())
        assert world == devices
        written[devices] = {(probe, layer, at, key): value for probe, layer, at, key, value in readings}, pictures
    (found, drawn), (wanted, one) = written[2], written[1]
    assert {("linear_operator", "", None, "norm"), ("identity_constant", "", 0.7, "identity")} <= found.keys()
    same(found, wanted)
    assert drawn.keys() == one.keys() >= {"identity_constant/input/predictions", "linear_operator//spectrum"}
    for name, values in one.items():
        np.testing.assert_allclose(drawn[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", TRAINED)
def test_two_processes_learn_what_one_learns(case, tmp_path):
    found = {}
    for devices in (2, 1):
        apart(train, tmp_path / f"{devices}.pt", devices, case)
        found[devices] = torch.load(tmp_path / f"{devices}.pt", weights_only=True)
        assert found[devices][2].pop("world") == devices
    (ours, metrics, counted), (one, wanted, alone) = found[2], found[1]
    assert counted == alone
    torch.testing.assert_close(ours, one, rtol=1e-4, atol=1e-5)
    assert metrics == pytest.approx(wanted, rel=1e-4, abs=1e-6)
