"""Runs that are drawn: tables as a run writes them, and what stands on their pages."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_depth import results
from tests.figures.seen import lay_out
from tests.table_of_probes import SHELF

SUMMARY: dict[str, Any] = {
    "run": "resnet_depth18_width16_seed0",
    "status": "finished",
    "config": "configs/resnet_depth.yaml",
    "model": "ResNet depth 18 width 16, 0.7 M parameters",
    "parameters": 701_466,
    "data": {
        "source": "CIFAR-10, image folder",
        "fallback": False,
        "requested": "CIFAR10",
        "validation": "test split",
        "num_classes": 10,
        "train_size": 4000,
    },
    "seed": 0,
    "seconds": 312.4,
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "versions": {"torch": "2.11.0"},
    "final": {"val/acc": 0.71},
    "best": {"val/acc": 0.73},
}


def resnet_layers(blocks: tuple[int, ...], per_block: int) -> list[str]:
    names = ["net.stem"]
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            names += [f"net.stage{stage}.{block}.conv{i}" for i in range(1, per_block + 1)]
    return [*names, "net.fc"]


RESNET18 = resnet_layers((2, 2, 2, 2), 2)
RESNET50 = [*resnet_layers((3, 4, 6, 3), 3)[:-1], "net.stage4.2.proj", "net.stage4.2.expand", "net.head", "net.fc"]
STAGES = ["net.stem", "net.stage1", "net.stage2", "net.stage3", "net.stage4", "net.fc"]


SHELF = {probe.declaration.kind: probe.declaration for probe in (c() for c in SHELF)}
READINGS = ["epoch", "probe", "layer", "key", "value"]


def write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """A table; readings get their column `at`, and beside them is written what the probes of the shelf declare."""
    if header == READINGS:
        header, rows = list(results.Reading._fields), [[*row[:3], "", *row[3:]] for row in rows]
        read = {row[1] for row in rows}
        results.write_declarations(path.parent, {name: one for name, one in SHELF.items() if name in read})
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_metrics(directory: Path, epochs: int, val: bool = True, noise: float = 0.01) -> None:
    draws = np.random.default_rng(0)
    rows = []
    for epoch in range(1, epochs + 1):
        t = epoch / max(epochs, 8)
        train_acc = min(1.0, 1 - 0.82 * math.exp(-5.5 * t) + noise * draws.normal() * math.exp(-4 * t))
        val_acc = 0.72 - 0.5 * math.exp(-6 * t) + noise * draws.normal()
        val_loss = 0.9 + 1.3 * math.exp(-7 * t) + 0.5 * t + 3 * noise * draws.normal()
        tested = [f"{val_loss:.5f}", f"{val_acc:.5f}"] if val else ["", ""]
        rows.append([epoch, f"{2.3 * math.exp(-6 * t):.5f}", f"{train_acc:.5f}", *tested, 0.1, 20.8])
    write(
        directory / "metrics.csv",
        ["epoch", "train/loss", "train/acc", "val/loss", "val/acc", "lr-SGD", "seconds"],
        rows,
    )


def write_readings(directory: Path, layers: list[str], epochs: list[int], last: int | None = None) -> None:
    draws = np.random.default_rng(1)
    rows: list[list[Any]] = []
    for epoch in epochs:
        t = epoch / max(last or epochs[-1], 8)
        for index, layer in enumerate(layers):
            depth = index / len(layers)
            norm = (1.5 + 2.5 * math.sin(9 * depth) ** 2) * math.exp(2.6 * t * (0.3 + depth)) + 0.1 * draws.normal()
            rows.append([epoch, "operator_norm", layer, "norm", f"{norm:.4f}"])
            rows.append([epoch, "operator_norm", layer, "residual", 1e-5])
        rows.append([epoch, "operator_norm", "", "seconds", 0.4])
        rows.append(
            [epoch, "effective_rank", "features", "effective_rank", f"{4.8 - 2.4 * (1 - math.exp(-3 * t)):.4f}"]
        )
        for index, stage in enumerate(STAGES):
            error = 0.78 - 0.09 * index - 0.3 * (1 - math.exp(-3 * t)) * index / len(STAGES)
            rows.append([epoch, "representation_collapse", stage, "error", f"{error:.4f}"])
        rows.append([epoch, "representation_collapse", "", "seconds", 0.8])
    write(directory / "readings.csv", READINGS, rows)


def run_of(directory: Path, layers: list[str] = RESNET18, epochs: int = 15) -> Path:
    write_metrics(directory, epochs)
    write_readings(directory, layers, list(range(1, epochs + 1)))
    return directory


def panel(figure: Figure, name: str) -> Axes:
    (found,) = [ax for ax in figure.axes if ax.get_label() == name]
    return found


def panels(figure: Figure) -> list[str]:
    return [str(ax.get_label()) for ax in figure.axes if not str(ax.get_label()).endswith(" colours")]


def line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def words(figure: Figure) -> str:
    """Every text on the page, titles, labels and ticks included."""
    lay_out(figure)
    return "\n".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def image(ax: Axes) -> np.ma.MaskedArray:
    (found,) = ax.get_images()
    return found.get_array()


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def with_data(**changes: Any) -> dict[str, Any]:
    return {**SUMMARY, "data": {**SUMMARY["data"], **changes}}


@dataclass(frozen=True)
class Drawn:
    """A run's directory and its page, which tests read and leave as they are."""

    directory: Path
    figure: Figure
    layers: list[str]
