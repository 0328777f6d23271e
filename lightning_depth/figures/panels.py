"""What a page shows: the columns and the readings of a run's tables, grouped into panels."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_depth.figures.tables import section

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line: finite or NaN `values` (NaN leaves a gap) at `epochs`."""

    label: str
    split: str  # "train", "val", "test", a name of the logger's own, or "" where the column names none
    epochs: Array
    values: Array


@dataclass(frozen=True)
class Curves:
    """One panel of lines over epochs."""

    name: str
    title: str
    unit: str
    series: tuple[Series, ...]
    lower_is_better: bool = False
    from_zero: bool = False


@dataclass(frozen=True)
class Heatmap:
    """One panel of layers (rows, input first) over epochs (columns)."""

    name: str
    title: str
    unit: str
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    values: Array
    chance: float | None = None


@dataclass(frozen=True)
class Best:
    """The epoch at which the held-out metric was lowest."""

    panel: str
    epoch: float
    value: float


@dataclass(frozen=True)
class Wording:
    """How a known reading is called: its title for many layers, for one, its unit, and the factor to that unit."""

    many: str
    one: str
    unit: str
    factor: float = 1.0
    from_zero: bool = False


WORDINGS = {
    ("operator_norm", "norm"): Wording(
        "Operator norm of each layer (largest singular value)",
        "Operator norm of {layer} (largest singular value)",
        "largest singular value",
    ),
    ("effective_rank", "effective_rank"): Wording(
        "Effective rank at each layer (nats)", "Effective rank of the features (nats)", "effective rank (nats)"
    ),
    ("representation_collapse", "error"): Wording(
        "Collapse: error of the correlation vote at each stage (%)",
        "Collapse: error of the correlation vote at {layer} (%)",
        "error (%)",
        factor=100.0,
        from_zero=True,
    ),
}


SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    "test": "test",
}
SPLIT_FIRST = re.compile(rf"({'|'.join(SPLITS)})[/_.-](.+)", re.IGNORECASE)
SPLIT_LAST = re.compile(rf"(.+)[/_.-]({'|'.join(SPLITS)})", re.IGNORECASE)
NOT_A_METRIC = re.compile(r"step|lr([-_/].*)?|learning_rate|(.*[/_])?(seconds|time)", re.IGNORECASE)


def panels_of_metrics(columns: Mapping[str, Mapping[int, float]], held_out: str) -> list[Curves]:
    """One panel per metric, its splits together: losses, then accuracies as errors, then the rest as they come."""
    groups: dict[str, list[tuple[str, str, Array, Array]]] = {}
    for column, cells in columns.items():
        per_step = column.endswith("_step") and f"{column.removesuffix('_step')}_epoch" in columns
        if NOT_A_METRIC.fullmatch(column) or per_step:
            continue
        split, metric = split_and_metric(column)
        label = {"val": held_out, "": column.replace("_", " ")}.get(split, split)
        epochs = sorted(cells)
        values = np.array([cells[epoch] for epoch in epochs], dtype=np.float64)
        groups.setdefault(metric, []).append((label, split, np.array(epochs, dtype=np.float64), values))

    panels = []
    for metric, group in groups.items():
        convert: Callable[[Array], Array] = np.asarray
        unit = metric.replace("_", " ")
        title = unit[:1].upper() + unit[1:]
        rate = _is_accuracy(metric) or _is_error(metric)
        lower_is_better = rate or "loss" in metric.lower()
        if rate:
            finite = np.concatenate([values[np.isfinite(values)] for *_, values in group])
            whole = (
                1.0 if finite.size == 0 or finite.max() <= 1.0 else 100.0
            )  # logged as a fraction, or as a percentage
            convert = _error_of_accuracy(whole) if _is_accuracy(metric) else _percent_of(whole)
            plain = metric.lower() in ("acc", "error", "err")
            title = "Classification error (%)" if plain else f"Error: {metric.replace('_', ' ')} (%)"
            unit = "error (%)"
        series = tuple(Series(label, split, epochs, convert(values)) for label, split, epochs, values in group)
        panels.append(Curves(metric, title, unit, series, lower_is_better, from_zero=lower_is_better))
    rank = {"loss": 0, "acc": 1}
    return sorted(panels, key=lambda panel: rank.get(panel.name, 2))


def panels_of_probes(
    probes: Mapping[str, Mapping[tuple[str, str], Mapping[int, float]]], classes: int | None
) -> list[Curves | Heatmap]:
    """One panel per probe, known or not, of the first key that it wrote for a layer.

    A heatmap where that key has several layers, else a curve. Readings without a layer are about the probe itself (its
    cost, say): they are drawn only for a probe that writes nothing else, and seconds never.
    """
    panels: list[Curves | Heatmap] = []
    for probe, readings in probes.items():
        keys = [key for layer, key in readings if layer] or [key for _, key in readings if key != "seconds"]
        if not keys:
            continue
        key = keys[0]
        cells = {layer: cells for (layer, of), cells in readings.items() if of == key}
        if len(cells) > 1:
            cells.pop("", None)
        plain = probe if probe == key else f"{probe}: {key}"
        plain = (plain[:1].upper() + plain[1:]).replace("_", " ")
        wording = WORDINGS.get((probe, key), Wording(f"{plain} at each layer", plain + " of {layer}", key))
        if len(cells) == 1:
            ((layer, only),) = cells.items()
            title = wording.one.format(layer="the features" if layer == "features" else layer) if layer else plain
            epochs = sorted(only)
            values = wording.factor * np.array([only[epoch] for epoch in epochs], dtype=np.float64)
            line = Series("", "", np.array(epochs, dtype=np.float64), values)
            panels.append(Curves(probe, title, wording.unit.replace("_", " "), (line,), from_zero=wording.from_zero))
        else:
            measured = sorted({epoch for of_layer in cells.values() for epoch in of_layer})
            rows = [[of_layer.get(epoch, math.nan) for epoch in measured] for of_layer in cells.values()]
            chance = 100.0 * (1.0 - 1.0 / classes) if classes and probe == "representation_collapse" else None
            panels.append(
                Heatmap(
                    probe,
                    wording.many,
                    wording.unit.replace("_", " "),
                    tuple(cells),
                    tuple(measured),
                    wording.factor * np.array(rows, dtype=np.float64),
                    chance if key == "error" else None,
                )
            )
    return panels


def best_epoch(panels: Sequence[Curves]) -> Best | None:
    """The best epoch by held-out error, or by held-out loss where no error was logged."""
    for panel in sorted((p for p in panels if p.lower_is_better), key=lambda p: p.name != "acc"):
        for series in panel.series:
            if series.split == "val" and np.isfinite(series.values).any():
                at = int(np.nanargmin(series.values))
                return Best(panel.name, float(series.epochs[at]), float(series.values[at]))
    return None


def held_out_name(summary: Mapping[str, Any]) -> str:
    """What the split called "val" in the tables really is."""
    validation = section(summary, "data").get("validation")
    return "test" if isinstance(validation, str) and re.search(r"\btest\b", validation.lower()) else "validation"


def split_and_metric(column: str) -> tuple[str, str]:
    """The split and the metric that a column's name says.

    >>> split_and_metric("val/acc"), split_and_metric("valid_loss_epoch"), split_and_metric("loss")
    (('val', 'acc'), ('val', 'loss'), ('', 'loss'))
    """
    column = column.removesuffix("_epoch")
    if match := SPLIT_FIRST.fullmatch(column):
        split, metric = SPLITS[match[1].lower()], match[2]
    elif match := SPLIT_LAST.fullmatch(column):
        split, metric = SPLITS[match[2].lower()], match[1]
    else:
        split, _, metric = column.rpartition("/")
    return split, "acc" if metric.lower() in ("acc", "accuracy") else metric


def _is_accuracy(metric: str) -> bool:
    return re.search(r"(?<![a-z])acc(?![a-z])|accuracy", metric.lower()) is not None


def _is_error(metric: str) -> bool:
    return re.search(r"(?<![a-z])err(or)?(?![a-z])", metric.lower()) is not None


def _error_of_accuracy(whole: float) -> Callable[[Array], Array]:
    return lambda values: 100.0 * (1.0 - values / whole)


def _percent_of(whole: float) -> Callable[[Array], Array]:
    return lambda values: 100.0 * values / whole
