"""A package that pip installs adds a family, a data set and a probe, and nothing in this one knows of it."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.text import Text

from lightning_depth.figures.report import draw
from tests.commands import command, tiny, written

HERE = Path(__file__).parent
CONFIG = """
model: {class_path: Perceptron, init_args: {depth: 3, optimizer: {class_path: SGD, init_args: {lr: 0.1}}}}
data: {class_path: Stripes, init_args: {batch_size: 20}}
trainer: {accelerator: cpu, max_epochs: 2, callbacks: [{class_path: WeightScale}]}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip has installed the example."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(HERE / "example_plugin", folder / "source")  # a build leaves files beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "site", source], check=True, capture_output=True)
    return folder / "site"


def test_short_class_names_of_an_installed_package_work_in_yaml(installed, tmp_path):
    (tmp_path / "mine.yaml").write_text(CONFIG)
    ended = subprocess.run(
        [sys.executable, HERE.parent / "main.py", "fit", "--config", "mine.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "plug-in" not in ended.stderr
    run = tmp_path / "runs" / "mine"
    with (run / "readings.csv").open() as file:
        layers = {(row["epoch"], row["layer"]): row for row in csv.DictReader(file) if row["key"] == "rms"}
    assert layers.keys() == {(epoch, f"net.{name}") for epoch in "12" for name in ("1.0", "2.0", "3")}
    assert {row["probe"] for row in layers.values()} == {"weight_scale"}
    assert all(0.01 < float(row["value"]) < 1 for row in layers.values())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model"] == "Perceptron(depth=3, width=16)"
    assert summary["data"]["name"] == "stripes"
    assert (run / "report.png").stat().st_size > 10_000
    drawn = " ".join(text.get_text() for text in draw(run, summary).findobj(Text)).replace("_", " ").lower()
    assert "scale of each layer's weights" in drawn


def test_a_mistake_in_its_arguments_is_said_like_one_in_ours(installed, tmp_path):
    (tmp_path / "mine.yaml").write_text(CONFIG)
    ended = command("fit", "--config", "mine.yaml", "--model.dept", "3", cwd=tmp_path, path=[installed])
    assert ended.status == 2
    assert ended.err == "error: Unknown key dept. Did you mean depth?\n"


def test_a_short_name_that_is_taken_is_reported(tmp_path):
    (tmp_path / "site" / "clash-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "clash-1.0.dist-info" / "METADATA").write_text("Name: clash\nVersion: 1.0\n")
    (tmp_path / "site" / "clash-1.0.dist-info" / "entry_points.txt").write_text(
        "[lightning_depth.plugins]\nclash = clash\n"
    )
    (tmp_path / "site" / "clash.py").write_text(
        "from lightning.pytorch import LightningModule\nclass ResNet(LightningModule): pass\n"
    )
    config = tiny()
    config["trainer"]["max_epochs"] = 1
    written(config, tmp_path)
    ended = command("fit", "--config", "tiny.yaml", cwd=tmp_path, path=[tmp_path / "site"])
    assert "plug-in clash: its ResNet shares a built-in's name; give full class paths." in ended.err
    assert ended.status == 0  # the shipped configs give full paths
