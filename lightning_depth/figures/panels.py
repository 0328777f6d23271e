"""What a page shows: the columns and the readings of a run's tables, grouped into panels. It knows no probe by name."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_depth.figures.directions import Direction, words_of
from lightning_depth.results import Declaration, Key, Reading

Array = NDArray[np.float64]


class Series(NamedTuple):
    """One line: finite or NaN `values` (NaN leaves a gap) at `epochs`."""

    label: str
    split: str  # "train", "val", "test", a name of the logger's own, or "" where the column names none
    epochs: Array
    values: Array


class Curves(NamedTuple):
    """One panel of lines over epochs."""

    name: str
    title: str
    unit: str
    series: tuple[Series, ...]
    lower_is_better: bool = False
    from_zero: bool = False


class Heatmap(NamedTuple):
    """One panel of layers (rows, input first) over epochs (columns)."""

    name: str
    title: str
    unit: str
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    values: Array
    chance: float | None = None
    rows: str = "input  →  output"


class Number(NamedTuple):
    """One reading of one look."""

    name: str
    title: str
    unit: str
    value: float


class Best(NamedTuple):
    """The epoch at which the held-out metric was lowest."""

    panel: str
    epoch: float
    value: float


CURRENT = "train_eval"  # the training split once more, without augmentation, on the weights as an epoch left them
SPLITS = {CURRENT: CURRENT, "training": "train", "train": "train", "test": "test"}
SPLITS |= {"validation": "val", "valid": "val", "val": "val"}
SPLIT_FIRST = re.compile(rf"({'|'.join(SPLITS)})[/_.-](.+)", re.IGNORECASE)
SPLIT_LAST = re.compile(rf"(.+)[/_.-]({'|'.join(SPLITS)})", re.IGNORECASE)
ACCURACY, ERROR = {"acc", "accuracy"}, {"err", "error"}  # metrics that are shares of samples
NOT_A_METRIC = re.compile(r"step|lr([-_/].*)?|learning_rate|(.*[/_])?(seconds|time)", re.IGNORECASE)


def panels_of_metrics(
    columns: Mapping[str, Mapping[int, float]], held_out: str, direction_of: Mapping[str, Direction]
) -> list[Curves]:
    """One panel per metric, its splits together: losses, then accuracies as errors, then the rest as they come.

    `columns` has column -> epoch -> value, `direction_of` the better direction of each column that has one; `held_out`
    is what the split `val` really is.
    """
    groups: dict[str, list[tuple[str, Series]]] = {}
    for column, cells in columns.items():
        per_step = column.endswith("_step") and f"{column.removesuffix('_step')}_epoch" in columns
        if NOT_A_METRIC.fullmatch(column) or per_step:
            continue
        split, metric = split_and_metric(column)
        label = {"val": held_out, CURRENT: "train, current weights", "": column.replace("_", " ")}.get(split, split)
        epochs = sorted(cells)
        values = np.array([cells[epoch] for epoch in epochs], dtype=np.float64)
        groups.setdefault(metric, []).append((column, Series(label, split, np.array(epochs, np.float64), values)))

    panels = []
    for metric, group in groups.items():
        series = tuple(one for _, one in group)
        unit, title = metric.replace("_", " "), sentence(metric)
        direction = direction_of.get(group[0][0])
        if (direction == "max" and words_of(metric) & ACCURACY) or (direction == "min" and words_of(metric) & ERROR):
            plain = metric.lower() in ("acc", "error", "err")
            title = "Classification error (%)" if plain else f"Error: {unit} (%)"
            unit, series, direction = "error (%)", _as_errors(series, of_accuracy=direction == "max"), "min"
        panels.append(Curves(metric, title, unit, series, direction == "min", from_zero=direction == "min"))
    return sorted(panels, key=lambda panel: {"loss": 0, "acc": 1}.get(panel.name, 2))


def _as_errors(series: Sequence[Series], of_accuracy: bool) -> tuple[Series, ...]:
    """Accuracies or errors, logged as fractions or as percentages, as errors in percent."""
    finite = np.concatenate([one.values[np.isfinite(one.values)] for one in series])
    whole = 1.0 if finite.size == 0 or finite.max() <= 1.0 else 100.0
    shares = [one.values / whole for one in series]
    errors = [100.0 * (1.0 - share) if of_accuracy else 100.0 * share for share in shares]
    return tuple(one._replace(values=values) for one, values in zip(series, errors, strict=True))


def panels_of_probes(
    readings: Sequence[Reading], declared: Mapping[str, Declaration], classes: int | None
) -> list[Curves | Heatmap | Number]:
    """One panel for each key that a probe declares with a title; for a probe that declares none, for its first key.

    A heatmap where that key was read for several layers or places, else a curve, or a number where it was read once in
    the whole run; where two declare one title, the names of their probes tell them apart. Seconds are never drawn.
    """
    once = len({reading.epoch for reading in readings}) == 1
    shown: list[tuple[Key, Curves | Heatmap | Number]] = []
    for probe in dict.fromkeys(reading.probe for reading in readings):
        mine = [reading for reading in readings if reading.probe == probe and reading.key != "seconds"]
        for key in _shown(probe, mine, declared.get(probe)):
            shown.append((key, _panel(key, [reading for reading in mine if reading.key == key.name], once, classes)))
    of = Counter(title for key, panel in shown for title in {key.title, panel.title})
    return [p._replace(title=f"{p.title} ({p.name})") if max(of[p.title], of[k.title]) > 1 else p for k, p in shown]


def _shown(probe: str, readings: Sequence[Reading], declared: Declaration | None) -> list[Key]:
    """The keys to be drawn, in the order in which they were read."""
    read = dict.fromkeys(reading.key for reading in readings)
    known = {key.name: key for key in (declared.keys if declared else ()) if key.title}
    found = [known[name] for name in read if name in known]
    if found or not read:
        return found
    of_layers = dict.fromkeys(reading.key for reading in readings if reading.layer)
    name = next(iter(of_layers or read))
    plain = sentence(probe if probe == name else f"{probe}: {name}")
    if of_layers:
        return [Key(name, f"{plain} at each layer", plain + " of {layer}", unit=name)]
    return [Key(name, plain, unit=name)]


def _panel(key: Key, readings: Sequence[Reading], once: bool, classes: int | None) -> Curves | Heatmap | Number:
    """The panel of one key of one probe."""
    rows: dict[str, dict[int, float]] = {}
    for reading in readings:
        at = "" if reading.at is None else f"{key.at}={reading.at:g}" if key.at else f"{reading.at:g}"
        row = ", ".join(part for part in (reading.layer, at) if part)
        rows.setdefault(row, {})[reading.epoch] = key.factor * reading.value
    if len(rows) > 1:
        rows.pop("", None)
    probe, unit = readings[0].probe, key.unit.replace("_", " ")
    epochs = sorted({reading.epoch for reading in readings})
    values = np.array([[row.get(epoch, math.nan) for epoch in epochs] for row in rows.values()], dtype=np.float64)
    if len(rows) > 1:
        return Heatmap(probe, key.title, unit, tuple(rows), tuple(epochs), values, _chance(key, classes), key.rows)
    title = (key.title_one or key.title).replace("{layer}", next(iter(rows)) or "the network")
    if once:
        return Number(probe, title, unit, float(values[0, 0]))
    return Curves(probe, title, unit, (Series("", "", np.array(epochs, np.float64), values[0]),), False, key.from_zero)


def _chance(key: Key, classes: int | None) -> float | None:
    """What guessing gives, in the key's unit."""
    if key.chance != "classes":
        return None if key.chance is None else key.factor * key.chance
    return key.factor * (1.0 - 1.0 / classes) if classes else None


def sentence(name: str) -> str:
    """A name in words.

    >>> sentence("dead_units: share")
    'Dead units: share'
    """
    return (name[:1].upper() + name[1:]).replace("_", " ")


def section(summary: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under `key`, empty where the summary has none."""
    value = summary.get(key)
    return value if isinstance(value, Mapping) else {}


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
