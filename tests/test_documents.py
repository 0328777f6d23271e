"""What the documents show is what the tests run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_depth.probes import AbstractProbe
from tests.probes.foreign import autoencoder, convnet, loaders, trainer
from tests.probes.test_conformance import PROBES, make
from tests.table_of_probes import SHELF, table

ROOT = Path(__file__).parents[1]


def code_in(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def test_contributing_quotes_the_example_plugin():
    source = (ROOT / "tests" / "example_plugin" / "depth_example.py").read_text()
    quoted = code_in("CONTRIBUTING.md")
    assert len(quoted) == 3
    assert all(block in source for block in quoted)


def test_the_readmes_own_probe_works():
    (code,) = code_in("README.md")
    assert len(code.splitlines()) <= 21
    names = {}
    exec(code, names)
    probe = names["DeadUnits"]()
    assert isinstance(probe, AbstractProbe)
    module = convnet()
    torch.nn.init.constant_(module.model[0][1].bias, -100.0)  # BatchNorm's outputs far below zero: all units die
    trainer([probe], max_epochs=1, limit_train_batches=1).fit(module, *loaders())
    found = {r.layer: r.value for r in probe.readings if r.key == "dead"}
    assert found["model.0.2"] == 1.0
    assert 0 <= found["model.1.1"] < 1


# Readings that an argument asks for, or for which an autoencoder has no targets.
ON_REQUEST = {
    "RepresentationCollapse": {"nearest_mean_error", "neighbours_error"},
    "FeatureSimilarity": {"reference"},
    "LinearOperator": {"distance"},
}


def test_the_readmes_table_is_what_the_probes_declare():
    assert table(SHELF) in (ROOT / "README.md").read_text()


def test_every_declared_reading_is_read():
    for probe in PROBES:
        network = autoencoder if probe.__name__ in ("LinearOperator", "IdentityConstant") else convnet
        made = make(probe)
        trainer([made], max_epochs=1).fit(network(), *loaders())
        declared = {key.name for key in probe.keys}
        assert {r.key for r in made.readings} - {"seconds"} == declared - ON_REQUEST.get(probe.__name__, set())


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_documents_name_exist(name):
    text = (ROOT / name).read_text()
    paths = re.findall(r"(?:configs|slurm|tests|benchmarks|docs|lightning_depth|callbacks)/[\w./]*\w\.\w+", text)
    missing = {p for p in paths if not (ROOT / p).is_file() and p != "callbacks/dead_units.py"}
    assert not missing


def test_help_names_commands_that_exist():
    shown = subprocess.run([sys.executable, ROOT / "main.py", "--help"], capture_output=True, text=True, check=True)
    for path in re.findall(r"configs/[\w/]+\.yaml", shown.stdout):
        assert (ROOT / path).is_file()
