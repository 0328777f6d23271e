"""A family, a data set and a probe of one's own: one file each, one line of a config each, all on the run's page."""

import csv
import json

import pytest
from matplotlib.text import Text

from lightning_depth.figures.report import draw
from tests.commands import command, written

FILES = {
    "my_network.py": '''
from torch import nn
from lightning_depth.models.family import AbstractFamily

class Bottleneck(AbstractFamily):
    """Two linear layers with few units between them."""

    def __init__(self, units: int = 3, **recipe) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        self.units = units

    def build(self, shapes):
        return nn.Sequential(nn.Flatten(), nn.Linear(*shapes.input, self.units), nn.Linear(self.units, shapes.outputs))
''',
    "my_data.py": '''
import torch
from lightning_depth.data.base.tensors import AbstractTensorData

class Signs(AbstractTensorData):
    """Gaussian inputs; whether the first number is positive."""

    def make(self, split, samples, stream):
        x = torch.randn(samples, 5, generator=stream)
        return x, (x[:, 0] > 0).long()
''',
    "my_probe.py": '''
from lightning_depth.probes import AbstractProbe, Key

class LargestWeight(AbstractProbe):
    """The largest weight of each layer."""

    keys = (Key("largest", title="The heaviest weight of each layer", unit="absolute value"),)

    def measure(self, look):
        for call in self.chosen(look, lambda call: hasattr(call.module, "weight")):
            yield call.name, "largest", float(call.module.weight.abs().max())
''',
}
CONFIG = {
    "model": {"class_path": "my_network.Bottleneck", "init_args": {"units": 2}},
    "data": {"class_path": "my_data.Signs", "init_args": {"train_samples": 40, "test_samples": 20, "batch_size": 10}},
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "callbacks": [{"class_path": "my_probe.LargestWeight"}]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    ended = command("fit", "--config", written(CONFIG, folder, "mine.yaml"), cwd=folder, path=[folder])
    assert ended.status == 0, ended.err
    return folder / "runs" / "mine"


def test_each_is_one_file_and_shows_on_the_page(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model"] == "Bottleneck(units=2)"
    assert summary["data"]["requested"] == "Signs"
    assert summary["weight_layers"] == 2
    with (run / "readings.csv").open() as file:
        read = {(row["epoch"], row["layer"]) for row in csv.DictReader(file) if row["probe"] == "largest_weight"}
    assert {("1", "net.1"), ("1", "net.2"), ("2", "net.1"), ("2", "net.2")} <= read
    shown = [text.get_text() for text in draw(run, summary).findobj(Text)]
    assert any("Bottleneck(units=2)" in text for text in shown)
    assert any("Signs" in text for text in shown)
    assert "The heaviest weight of each layer" in shown
    assert any("absolute value" in text for text in shown)
