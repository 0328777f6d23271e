# ruff: noqa: E501
"""The house: arrows point one way, every room is listed, and the rules can say no."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_depth"
ROOMS = ("lightning_depth", "callbacks", "tests", "benchmarks")
LONG = {Path("tests/figures/test_report.py")}  # not yet split


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


def test_no_file_is_too_long_and_few_lie_loose():
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 200
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > 400 and path not in LONG} == {}
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
