"""The classes of models, data and callbacks are found by name: at run time file by file, by type checkers in stubs."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from lightning_depth import plugins

ROOT = Path(__file__).parents[1]


def ran(*words, **options):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, **options)


def test_stubs_are_up_to_date():
    for path, text in plugins.stubs().items():
        assert path.read_text() == text, f"{path} is not what `make stubs` writes"


def test_one_name_imports_one_file():
    said = ran(
        "-c",
        "import sys\n"
        "from lightning_depth.callbacks import OperatorNorm\n"
        "from lightning_depth.data import KLocal\n"
        "from lightning_depth.models import ResNet\n"
        "print(*[m for m in sys.modules if m.startswith('lightning_depth.')])",
    )
    loaded = set(said.stdout.split())
    for shelf, used in (("callbacks", "operator_norm"), ("data", "k_local"), ("models", "resnet")):
        files = {f"lightning_depth.{shelf}.{path.stem}" for path in (ROOT / "lightning_depth" / shelf).glob("*.py")}
        own = {name for name in files & loaded if name in {type_.__module__ for type_ in plugins.built_in().values()}}
        assert own == {f"lightning_depth.{shelf}.{used}"}


def test_a_file_that_is_added_is_offered_and_what_is_none_of_its_kind_is_not(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "__init__.py").write_text(
        "from lightning_depth.plugins import offered\n__getattr__, __dir__ = offered(__name__, __path__, Exception)\n"
    )
    (tmp_path / "shelf" / "one.py").write_text(
        "class Mine(ValueError): pass\nclass AbstractMine(ValueError): pass\nclass _Mine(ValueError): pass\n"
        "class Other: pass\n"
    )
    (tmp_path / "shelf" / "two.py").write_text("from shelf.one import Mine\nclass Other(Mine): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    shelf = import_module("shelf")
    assert dir(shelf) == ["Mine", "Other"]
    assert shelf.Mine.__module__ == "shelf.one"
    assert shelf.Other.__module__ == "shelf.two"
    for name in ("AbstractMine", "_Mine", "Nothing"):
        with pytest.raises(AttributeError, match=f"module 'shelf' has no attribute '{name}'"):
            getattr(shelf, name)


def test_a_type_checker_finds_every_name_and_no_other(tmp_path):
    imports = [f"from {shelf} import {name}" for shelf in plugins.SHELVES for name in dir(import_module(shelf))]
    imports += [f"from {shelf} import Nothing" for shelf in plugins.SHELVES]
    (tmp_path / "notebook.py").write_text("\n".join([*imports, ""]))
    flags = ["--follow-imports=skip", "--ignore-missing-imports", f"--cache-dir={tmp_path}", "--explicit-package-bases"]
    said = ran("-m", "mypy", *flags, tmp_path / "notebook.py", *plugins.stubs()).stdout
    wrong = [line for line in said.splitlines() if "error:" in line]
    assert len(wrong) == len(plugins.SHELVES), said
    assert all('has no attribute "Nothing"' in line for line in wrong), said
