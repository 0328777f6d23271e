# ruff: noqa: E501
"""The house: arrows point one way, every room is listed, and the rules can say no."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_depth"
ROOMS = ("lightning_depth", "callbacks", "tests", "benchmarks")


def lint(folder):
    """Whether the import rules hold in a checkout, and what the linter says."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return ended.returncode == 0, ended.stdout + ended.stderr


def test_arrows_point_one_way():
    holds, said = lint(ROOT)
    assert holds, said


# What each file must not import, and as what the linter names it.
FORBIDDEN = {
    "measures/spectra.py": ("from lightning_depth import cli", "measures is not allowed to import lightning_depth.cli"),
    "measures/gram.py": ("from lightning_depth.errors import UserError", "measures is not allowed to import lightning_depth.errors"),
    "seeds.py": ("import lightning_depth.models.base", "seeds is not allowed to import lightning_depth.models"),
    "training/progress.py": ("from lightning_depth.callbacks import OperatorNorm", "training is not allowed to import lightning_depth.callbacks"),
    "data/ising.py": ("def late():\n    from lightning_depth.runs import record", "data is not allowed to import lightning_depth.runs"),
    "models/mlp.py": ("from lightning_depth.probes.calls import trace", "models is not allowed to import lightning_depth.probes"),
    "figures/page.py": ("import torch", "figures is not allowed to import torch"),
    "figures/curves.py": ("import lightning_depth.data.base.imagenet_classes", "figures is not allowed to import lightning_depth.data"),
    "probes/look.py": ("from lightning_depth.data import cifar", "probes is not allowed to import lightning_depth.data"),
    "probes/calls.py": ("from lightning_depth.measures import gram", "probes is not allowed to import lightning_depth.measures"),
    "callbacks/spectrum.py": ("from lightning_depth.training import run", "callbacks is not allowed to import lightning_depth.training"),
    "callbacks/jacobian_norm.py": ("from lightning_depth.studies import tune", "callbacks is not allowed to import lightning_depth.studies"),
    "callbacks/operator_norm.py": ("import lightning_depth.runs.record", "callbacks is not allowed to import lightning_depth.runs"),
    "callbacks/effective_rank.py": ("from lightning_depth.models import MLP", "callbacks is not allowed to import lightning_depth.models"),
}  # fmt: skip
UNLISTED = {"a room": "attic/__init__.py", "a loose file": "utils.py"}


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "lightning_depth", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_arrow_up_is_an_error(copy):
    for path, (line, _) in FORBIDDEN.items():
        with (copy / "lightning_depth" / path).open("a") as file:
            file.write(f"\n\n{line}\n")
    holds, said = lint(copy)
    assert not holds
    assert [path for path, (_, named) in FORBIDDEN.items() if f"lightning_depth.{named}" not in said] == [], said


@pytest.mark.parametrize("name", UNLISTED)
def test_what_is_not_listed_is_an_error(name, copy):
    file = copy / "lightning_depth" / UNLISTED[name]
    file.parent.mkdir(exist_ok=True)
    file.write_text('"""Old things."""\n')
    holds, said = lint(copy)
    assert not holds
    assert f"lightning_depth.{UNLISTED[name].split('/')[0].removesuffix('.py')}" in said, said


def sources():
    """Each file of the package, by its path in it; the shelf lies in callbacks/, behind a link."""
    paths = {*PACKAGE.rglob("*.py"), *(PACKAGE / "callbacks").rglob("*.py")}
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in paths}


def imported(text):
    """The top-level names of what a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_measures_need_torch_torchmetrics_and_jaxtyping_alone():
    allowed = {*sys.stdlib_module_names, "torch", "torchmetrics", "jaxtyping", "lightning_depth"}
    used = {path: imported(text) - allowed for path, text in sources().items() if path.startswith("measures/")}
    assert len(used) > 20
    assert {path: names for path, names in used.items() if names} == {}
    control = "import math, sklearn.svm\ndef late():\n    from einops.layers import torch\n    import pandas as torch"
    assert imported(control) - allowed == {"sklearn", "einops", "pandas"}


FLOORS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split(" | ")}
IMPORTERS = ("import_module", "__import__", "resolve_name")
# What is imported by its name, and meant to be: plug-ins, and the owner of an argument that came later.
BY_NAME = {("plugins.py", room) for room in ("models", "data", "callbacks", "optimisers")} | {
    ("runs/differences.py", "training")
}


def named(path, text):
    """Rooms above or beside that of a file which it names in a string, or any relative name it imports."""
    own = path.split("/")[0].removesuffix(".py")
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            module = re.match(r"lightning_depth[.:](\w+)[\w.:]*$", node.value)
            if module and module[1] in FLOOR and module[1] != own and FLOOR[module[1]] <= FLOOR.get(own, -1):
                found.add(module[1])
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in IMPORTERS:
            values = [
                value.value
                for value in [*node.args, *(k.value for k in node.keywords)]
                if isinstance(value, ast.Constant)
            ]
            found |= {value for value in values if isinstance(value, str) and value.startswith(".")}
    return found


def test_no_arrow_up_is_hidden_in_a_string():
    assert {(path, room) for path, text in sources().items() for room in named(path, text)} == BY_NAME
    for line in (
        'importlib.import_module("lightning_depth.training.run")',
        '__import__(name="lightning_depth.training")',
        'pkgutil.resolve_name("lightning_depth.training.run:run")',
        'import_module(f"lightning_depth.training.{name}")',
        'NAME = "lightning_depth.training.run"',
    ):
        assert named("data/ising.py", line) == {"training"}, line
        assert named("cli/main.py", line) == set(), line
    assert named("data/ising.py", 'import_module(".training.run", "lightning_depth")') == {".training.run"}


def test_no_file_is_too_long_and_few_lie_loose():
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 200
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > 400} == {}
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        "__init__.py", "errors.py", "plugins.py", "results.py", "seeds.py",
    }  # fmt: skip


def test_the_shelf_is_no_top_level_module():
    said = subprocess.run(
        [sys.executable, "-c", "import sys, lightning_depth.callbacks; sys.exit('callbacks' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
