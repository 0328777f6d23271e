"""Arrows point one way; `measures` and `figures` need nothing of the rest; the package never imports the shelf."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "lightning_depth").rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def part(path):
    inside = path.relative_to(ROOT / "lightning_depth")
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


# What each part may import of the package.
ALLOWED = {
    "measures": {"measures"},
    "data": {"data", "discovery", "mistakes", "seeds"},
    "convolutions": set(),
    "models": {"models", "convolutions", "discovery", "expansion", "measures", "mistakes", "optimisers", "seeds"},
    "expansion": {"convolutions", "mistakes"},
    "optimisers": {"optimisers", "mistakes", "seeds"},
    "calls": set(),
    "undisturbed": set(),
    "samples": {"mistakes"},
    "probes": {"calls", "convolutions", "mistakes", "samples", "undisturbed"},
    "figures": {"figures", "mistakes"},
    "commands": {"cli", "commands", "entrance", "figures", "mistakes", "models", "probes", "runs"},
    "runs": {"runs", "early", "figures", "mistakes", "probes", "seeds"},
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    inner = {name.split(".")[1] for name in imports(path) if name.startswith("lightning_depth.")}
    if part(path) in ALLOWED:
        assert inner <= ALLOWED[part(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_knows_the_shelf(path):
    assert path.name == "cli.py" or not any(name.split(".")[0] == "callbacks" for name in imports(path))


def test_measures_need_torch_alone():
    allowed = {"torch", "torchmetrics", "jaxtyping", "lightning_depth"}
    standard = {"abc", "math", "collections", "contextlib", "dataclasses", "typing", "itertools"}
    for path in (ROOT / "lightning_depth" / "measures").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed | standard, path


def test_figures_never_train():
    for path in (ROOT / "lightning_depth" / "figures").glob("*.py"):
        assert not {"torch", "lightning"} & {name.split(".")[0] for name in imports(path)}, path
