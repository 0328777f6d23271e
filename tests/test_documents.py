"""What the documents show is what the tests run."""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_depth.probes import AbstractProbe
from lightning_depth.probes.probe import snake_case
from tests.commands import command, written
from tests.probes.foreign import convnet, loaders, trainer
from tests.probes.test_conformance import NETWORKS, PROBES, make, suits
from tests.table_of_probes import SHELF, table

ROOT = Path(__file__).parents[1]


def code_in(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every code block of the documents as a file of its own: the name of the class that it defines -> its path."""
    folder, written_to = tmp_path_factory.mktemp("documents"), {}
    for code in [*code_in("README.md"), *code_in("CONTRIBUTING.md")]:
        (name,) = re.findall(r"^class (\w+)", code, re.MULTILINE)
        written_to[name] = folder / f"{snake_case(name)}.py"
        written_to[name].write_text(code)
    return written_to


def test_every_block_is_a_whole_file(files):
    assert files.keys() == {"DeadUnits", "Perceptron", "Stripes", "WeightScale"}
    for name, path in files.items():
        assert isinstance(runpy.run_path(str(path))[name], type)


def test_contributing_quotes_the_example_plugin(files):
    plugin = {path.name: path.read_text() for path in (ROOT / "tests" / "example_plugin").glob("*.py")}
    assert plugin == {path.name: path.read_text() for path in files.values() if path.name != "dead_units.py"}


def test_the_blocks_files_train_together(files, tmp_path):
    names = {name: f"{path.stem}.{name}" for name, path in files.items()}
    probes = [{"class_path": names[name]} for name in ("DeadUnits", "WeightScale")]
    config = {
        "model": {"class_path": names["Perceptron"]},
        "data": {"class_path": names["Stripes"], "init_args": {"batch_size": 20}},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "callbacks": probes},
    }
    ended = command("fit", "--config", written(config, tmp_path), cwd=tmp_path, path=[files["Stripes"].parent])
    assert ended.status == 0, ended.err
    run = tmp_path / "runs" / "tiny"
    assert json.loads((run / "summary.json").read_text())["model"] == "Perceptron(depth=2, width=16)"
    with (run / "readings.csv").open() as file:
        read = {(row["probe"], row["layer"]) for row in csv.DictReader(file)}
    assert {("dead_units", "net.1.1"), ("weight_scale", "net.1.0"), ("weight_scale", "net.2")} < read


def test_the_documents_probes_pass_the_conformance_test_once_on_the_shelf(files, tmp_path):
    for folder in ("lightning_depth", "callbacks", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("DeadUnits", "WeightScale"):
        shutil.copy(files[name], tmp_path / "callbacks")
    tests = ["tests/probes/test_conformance.py", "-k", "DeadUnits or WeightScale"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    assert f"{2 * (7 * len(NETWORKS) + 2)} passed" in ended.stdout  # of which two are of no network


def test_the_readmes_own_probe_works(files):
    assert len(files["DeadUnits"].read_text().splitlines()) <= 21
    probe = runpy.run_path(str(files["DeadUnits"]))["DeadUnits"]()
    assert isinstance(probe, AbstractProbe)
    module = convnet()
    torch.nn.init.constant_(module.model[0][1].bias, -100.0)  # BatchNorm's outputs far below zero: all units die
    trainer([probe], max_epochs=1, limit_train_batches=1).fit(module, *loaders())
    found = {r.layer: r.value for r in probe.readings if r.key == "dead"}
    assert found["model.0.2"] == 1.0
    assert 0 <= found["model.1.1"] < 1


def test_the_readmes_look_at_somebody_elses_network_works_without_its_data(tmp_path):
    shown = (ROOT / "README.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ +python main.py (probe --model .*)$", shown, re.MULTILINE)
    ended = command(*shlex.split(line), "--data.download", "false", cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert "FALLBACK" in ended.err
    assert (tmp_path / "runs" / "probed-resnet18" / "readings.csv").is_file()


# Readings that an argument asks for, or for which an autoencoder has no targets.
ON_REQUEST = {
    "RepresentationCollapse": {"nearest_mean_error", "neighbours_error"},
    "FeatureSimilarity": {"reference"},
    "LinearOperator": {"distance"},
}


def test_the_readmes_table_is_what_the_probes_declare():
    said = "README's table of probes is not what `python -m tests.table_of_probes` prints"
    assert table(SHELF) in (ROOT / "README.md").read_text(), said


def test_every_declared_reading_is_read():
    for probe in PROBES:
        network = next(n for n in ("convnet", "autoencoder", *NETWORKS) if suits(probe, n))
        made = make(probe)
        trainer([made], max_epochs=1).fit(NETWORKS[network](), *loaders())
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


def test_the_benchmarks_start():
    run = [sys.executable, "-m", "benchmarks", "--quick", "no such section"]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
