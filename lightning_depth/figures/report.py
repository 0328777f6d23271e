"""One page about one run: its curves and what the probes saw, drawn from the tables of the run's directory.

>>> _number(0.4567), _number(12345.6), _number(2.0)
('0.457', '12,346', '2')
"""

import csv
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lightning_depth.mistakes import Mistake

Array = NDArray[np.float64]

WIDTH, TALLEST, DPI = 16.0, 20.0, 110  # inches, inches, dots per inch
MARGIN = 0.55
NAMED_ROWS = 24  # a heatmap names every layer up to here, and this many evenly spaced ones beyond
METRIC_PANELS = 8
LOG_FROM = 20.0  # positive values that span more than this factor are drawn on a logarithmic scale

INK, QUIET, FAINT, GAP = "#1b1f24", "#5f6873", "#d9dde2", "#e9ebee"
TRAIN, VALIDATION, TEST, PROBE = "#7b90ab", "#c8450c", "#00795c", "#0b5fa5"
FALLBACK, REDUCED, ALARM = "#ffbf00", "#fff0c2", "#b3001b"

# A user's matplotlibrc must not change the page, and a "$" in a layer's name is no formula.
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.usetex": False,
    "text.parse_math": False,
    "text.color": INK,
    "axes.facecolor": "white",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "figure.facecolor": "white",
    "image.origin": "upper",
    "savefig.bbox": None,
}


# ------------------------------------------------------------------------------------------------- the page's contents


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
        "Effective rank at each layer (nats)", "Effective rank of {layer} (nats)", "effective rank (nats)"
    ),
    ("representation_collapse", "error"): Wording(
        "Collapse: error of the correlation vote at each stage (%)",
        "Collapse: error of the correlation vote at {layer} (%)",
        "error (%)",
        factor=100.0,
        from_zero=True,
    ),
}


# ---------------------------------------------------------------------------------------------------------- the tables


def _rows(path: Path, needs: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a csv file, each with its line number; a row of another length than the header is a `Mistake`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            missing = [column for column in needs if column not in header]
            if missing:
                raise Mistake(f"{path}, line 1: the header has no column {', '.join(map(repr, missing))}.")
            for row in reader:
                if len(row) not in (0, len(header)):
                    raise Mistake(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}."
                    )
                if row:
                    yield reader.line_num, dict(zip(header, row, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise Mistake(f"{path}: not a csv file in UTF-8 ({error}).") from error


def _epoch(text: str, path: Path, line: int) -> int:
    try:
        if (value := float(text)).is_integer():
            return int(value)
    except ValueError:
        pass
    raise Mistake(f"{path}, line {line}: the epoch is {text!r}, not a whole number.")


def _value(text: str, column: str, path: Path, line: int) -> float:
    """The number in a cell; infinities become NaN, since neither has a place on an axis."""
    try:
        value = float(text)
    except ValueError:
        raise Mistake(f"{path}, line {line}: {column} is {text!r}, not a number.") from None
    return value if math.isfinite(value) else math.nan


def _read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Column -> epoch -> value. An empty cell is no reading; of two rows for one epoch the later reading holds."""
    columns: dict[str, dict[int, float]] = {}
    for line, row in _rows(path, ["epoch"]):
        epoch = _epoch(row["epoch"], path, line)
        for column, text in row.items():
            if column != "epoch" and text.strip():
                columns.setdefault(column, {})[epoch] = _value(text, column, path, line)
    return columns


def _read_readings(path: Path) -> dict[str, dict[tuple[str, str], dict[int, float]]]:
    """Probe -> (layer, key) -> epoch -> value, all in the file's order."""
    probes: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for line, row in _rows(path, ["epoch", "probe", "layer", "key", "value"]):
        epoch = _epoch(row["epoch"], path, line)
        value = _value(row["value"], "value", path, line) if row["value"].strip() else math.nan
        probes.setdefault(row["probe"], {}).setdefault((row["layer"], row["key"]), {})[epoch] = value
    return probes


def _read_summary(path: Path) -> Mapping[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Mistake(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(summary, dict):
        raise Mistake(f"{path}: a {type(summary).__name__} where an object was expected.")
    return summary


# ------------------------------------------------------------------------------------------- from tables to panels

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    "test": "test",
}
SPLIT_FIRST = re.compile(rf"({'|'.join(SPLITS)})[/_.-](.+)", re.IGNORECASE)
SPLIT_LAST = re.compile(rf"(.+)[/_.-]({'|'.join(SPLITS)})", re.IGNORECASE)
NOT_A_METRIC = re.compile(r"step|lr([-_/].*)?|learning_rate|(.*[/_])?(seconds|time)", re.IGNORECASE)


def _split_and_metric(column: str) -> tuple[str, str]:
    """The split and the metric that a column's name says.

    >>> _split_and_metric("val/acc"), _split_and_metric("valid_loss_epoch"), _split_and_metric("loss")
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


def _held_out(summary: Mapping[str, Any]) -> str:
    """What the split called "val" in the tables really is."""
    validation = _mapping(summary, "data").get("validation")
    return "test" if isinstance(validation, str) and re.search(r"\btest\b", validation.lower()) else "validation"


def _metric_panels(columns: Mapping[str, Mapping[int, float]], held_out: str) -> list[Curves]:
    """One panel per metric, its splits together: losses, then accuracies as errors, then the rest as they come."""
    groups: dict[str, list[tuple[str, str, Array, Array]]] = {}
    for column, cells in columns.items():
        per_step = column.endswith("_step") and f"{column.removesuffix('_step')}_epoch" in columns
        if NOT_A_METRIC.fullmatch(column) or per_step:
            continue
        split, metric = _split_and_metric(column)
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


def _error_of_accuracy(whole: float) -> Callable[[Array], Array]:
    return lambda values: 100.0 * (1.0 - values / whole)


def _percent_of(whole: float) -> Callable[[Array], Array]:
    return lambda values: 100.0 * values / whole


def _probe_panels(
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


def _best(panels: Sequence[Curves]) -> Best | None:
    """The best epoch by held-out error, or by held-out loss where no error was logged."""
    for panel in sorted((p for p in panels if p.lower_is_better), key=lambda p: p.name != "acc"):
        for series in panel.series:
            if series.split == "val" and np.isfinite(series.values).any():
                at = int(np.nanargmin(series.values))
                return Best(panel.name, float(series.epochs[at]), float(series.values[at]))
    return None


# --------------------------------------------------------------------------------------------------------------- words


def _mapping(summary: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = summary.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(value: float) -> str:
    """Three significant digits, without an exponent where a reader expects none."""
    if not math.isfinite(value):
        return "nan"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _tick(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:g}"


def _duration(seconds: float) -> str:
    """A length of time as one says it.

    >>> _duration(42.4), _duration(192.0), _duration(9000.0)
    ('42 s', '3 min 12 s', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _is_percent(panel: Curves | Heatmap) -> bool:
    return panel.unit.endswith("(%)")


def _reading_of(panel: Curves | Heatmap, value: float) -> str:
    return f"{value:.1f}" if _is_percent(panel) else _number(value)


def _with_unit(panel: Curves, value: float) -> str:
    return _reading_of(panel, value) + (" %" if _is_percent(panel) else "")


def _short_names(layers: Sequence[str], longest: int = 34) -> list[str]:
    """Layer names without the leading modules that all share, and with an ellipsis inside the very long ones.

    >>> _short_names(["net.stem", "net.stage1.0.conv1"])
    ['stem', 'stage1.0.conv1']
    """
    parts = [layer.split(".") for layer in layers]
    while all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    names = [".".join(part) for part in parts]
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(_ellipsis(name, longest), []).append(name)
    return [_window(name, alike[_ellipsis(name, longest)], longest) for name in names]


def _window(name: str, alike: Sequence[str], longest: int) -> str:
    """`name` in at most `longest` characters, around the place where it differs from those it could be taken for."""
    if len(alike) == 1:
        return _ellipsis(name, longest)
    characters = enumerate(zip(*alike, strict=False))
    differs = next((index for index, at in characters if len(set(at)) > 1), min(map(len, alike)))
    start = max(0, min(differs - longest // 2, len(name) - longest + 1))
    shown = name[start:] if len(name) - start < longest else name[start : start + longest - 2] + "…"
    return f"…{shown}" if start else shown


def _ellipsis(text: str, longest: int) -> str:
    """`text` in at most `longest` characters; what goes missing is inside, for the ends tell names apart."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) * 2 // 3
    return f"{text[: longest - 1 - tail]}…{text[-tail:]}"


def _inches(text: str, size: float, weight: str = "normal") -> float:
    """How wide a text will be on the page."""
    if not text.strip():
        return 0.0
    font = FontProperties(family="DejaVu Sans", weight=weight)
    return float(TextPath((0, 0), text, size=size, prop=font).get_extents().width) / 72.0


def _fit(text: str, inches: float, size: float, smallest: float, weight: str = "normal") -> tuple[str, float]:
    """The text and the font size with which it is no wider than `inches`: smaller first, then with an ellipsis."""
    shown = " ".join(text.split())
    wide = _inches(shown, size, weight)
    if wide > inches:
        size, wide = max(smallest, size * inches / wide), max(inches, wide * smallest / size)
    longest = len(shown)
    while wide > 1.001 * inches and longest > 4:
        longest = min(longest - 1, int(longest * inches / wide))
        shown = _ellipsis(" ".join(text.split()), longest)
        wide = _inches(shown, size, weight)
    return shown, size


def _described(summary: Mapping[str, Any]) -> str:
    """Model · data · seed, as far as the summary knows them."""
    data = _mapping(summary, "data")
    parameters = summary.get("parameters")
    said: list[str] = []
    if summary.get("model"):
        said.append(str(summary["model"]))
    if isinstance(parameters, int) and "parameters" not in " ".join(said):
        said.append(f"{parameters / 1e6:.3g} M parameters" if parameters >= 1e5 else f"{parameters:,} parameters")
    if data.get("source"):
        said.append(str(data["source"]))
    if isinstance(data.get("train_size"), int):
        said.append(f"{data['train_size']:,} training images")
    if summary.get("seed") is not None:
        said.append(f"seed {summary['seed']}")
    return "  ·  ".join(said)


def _bands(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What must not be overlooked, each with its colour."""
    data = _mapping(summary, "data")
    bands = []
    if data.get("fallback"):
        wanted = f", not {data['requested']}" if data.get("requested") else ""
        bands.append((f"FALLBACK DATA: {data.get('source') or 'another data set'}{wanted}", FALLBACK))
    if summary.get("reduced"):
        bands.append((f"REDUCED SETTING: {summary['reduced']}", REDUCED))
    return bands


def _state(summary: Mapping[str, Any], last: float | None) -> str:
    said = []
    if summary.get("status"):
        said.append(" ".join(str(summary["status"]).split()))
    if last is not None:
        said.append(f"last epoch {last:g}")
    if isinstance(summary.get("seconds"), int | float) and math.isfinite(summary["seconds"]):
        said.append(_duration(float(summary["seconds"])))
    return "  ·  ".join(said)


def _headlines(
    panels: Sequence[Curves], best: Best | None, summary: Mapping[str, Any], held_out: str
) -> list[tuple[str, str, str]]:
    """The results in large type: (number, caption, colour)."""
    shown: list[tuple[str, str, str]] = []
    panel = next((p for p in panels if best is not None and p.name == best.panel), None)
    if panel is not None and best is not None:
        noun = "error" if _is_percent(panel) else panel.unit
        for series in panel.series:
            if series.split in ("train", "val") and series.values.size:
                colour, name = (TRAIN, "training") if series.split == "train" else (VALIDATION, held_out)
                shown.append((_with_unit(panel, series.values[-1]), f"final {name} {noun}", colour))
        shown.append((_with_unit(panel, best.value), f"best {held_out} {noun}, epoch {best.epoch:g}", VALIDATION))
        return shown
    for when in ("final", "best"):
        for key, value in _mapping(summary, when).items():
            split, metric = _split_and_metric(str(key))
            if split == "val" and metric == "acc" and isinstance(value, int | float):
                shown.append((f"{100.0 * (1.0 - value):.1f} %", f"{when} {held_out} error", VALIDATION))
    return shown


def _provenance(directory: Path, summary: Mapping[str, Any], undrawn: int) -> str:
    data = _mapping(summary, "data")
    said: list[str] = []
    if summary.get("git_commit"):
        said.append("commit " + re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", str(summary["git_commit"])))
    for key in ("config", "seed"):
        if summary.get(key) is not None:
            said.append(f"{key} {summary[key]}")
    if data.get("source"):
        on = f", validated on {data['validation']}" if data.get("validation") else ""
        said.append(f"data {data['source']}{on}")
    versions = summary.get("versions")
    if isinstance(versions, Mapping):
        said.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    elif versions:
        said.append(str(versions))
    tables = [path for name in ("metrics.csv", "readings.csv") if (path := directory / name).exists()]
    written = datetime.fromtimestamp(max(path.stat().st_mtime for path in tables))
    said.append(str(summary["date"]) if summary.get("date") else f"tables of {written:%Y-%m-%d %H:%M}")
    if undrawn:
        said.append(f"{undrawn} more metrics in metrics.csv are not drawn")
    return "  ·  ".join(" ".join(text.split()) for text in said)


# ------------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Page:
    """A figure addressed in inches from its top left corner."""

    figure: Figure
    height: float

    def axes(self, left: float, top: float, width: float, height: float, name: str) -> Axes:
        """New axes, found again by their label."""
        box = (left / WIDTH, 1.0 - (top + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box, label=name)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """A text whose upper edge is at `top`."""
        self.figure.text(left / WIDTH, 1.0 - top / self.height, text, **{"va": "top", **style})

    def band(self, top: float, height: float, text: str, colour: str) -> None:
        """A coloured band over the whole width with a text in it."""
        lower = 1.0 - (top + height) / self.height
        patch = Rectangle(
            (0.0, lower), 1.0, height / self.height, transform=self.figure.transFigure, color=colour, linewidth=0
        )
        self.figure.add_artist(patch)
        shown, size = _fit(text, WIDTH - 2 * MARGIN, 14.0, 9.0, "bold")
        y = 1.0 - (top + height / 2) / self.height
        self.figure.text(MARGIN / WIDTH, y, shown, va="center", size=size, weight="bold", color="#000000")


TITLE, BELOW = 0.52, 0.62  # above and below every panel: its title, and its ticks with the word "epoch"
BAND, HEADER, FOOTER_LINE = 0.42, 1.3, 0.17


def _title(ax: Axes, text: str, offset: float, axes_width: float, slot: float) -> None:
    """The panel's title, flush with the left edge of its slot, `offset` inches left of the axes."""
    shown, size = _fit(text, slot - 0.15, 11.5, 8.0, "bold")
    ax.set_title(shown, loc="left", x=-offset / axes_width, pad=15, size=size, weight="bold", color=INK)


def _is_wide(values: Array) -> bool:
    """Whether a logarithmic scale is due: all positive and spanning more than a factor of `LOG_FROM`."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() > LOG_FROM * finite.min())


def _plain_log(axis: Any, values: Array) -> None:
    finite = values[np.isfinite(values)]
    decades = math.log10(finite.max() / finite.min())
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,), numticks=9))
    axis.set_major_formatter(FuncFormatter(_tick))
    axis.set_minor_formatter(NullFormatter())


def _draw_curves(page: Page, panel: Curves, best: Best | None, left: float, top: float, slot: float) -> None:
    before, after, height = 0.72, 1.16, 2.25
    width = slot - before - after
    ax = page.axes(left + before, top + TITLE, width, height, panel.name)
    _title(ax, panel.title, before, width, slot)
    ax.grid(True, color=FAINT, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(length=3, labelsize=8.5)
    ax.set_xlabel("epoch", size=9)

    others = iter(("#8c6bb1", "#a6761d", "#525252", "#cc79a7"))
    colours = {"train": TRAIN, "val": VALIDATION, "test": TEST, "": TRAIN if len(panel.series) > 1 else PROBE}
    ends: list[tuple[float, str, str]] = []
    for series in panel.series:
        colour = colours[series.split] if series.split in colours else next(others, INK)
        finite = np.isfinite(series.values)
        # A lone point between gaps has no line to be seen by.
        padded = np.concatenate([[False], finite, [False]])
        lone = finite & ~padded[:-2] & ~padded[2:]
        marked = np.flatnonzero(finite if finite.size <= 40 else lone)
        ax.plot(
            series.epochs,
            series.values,
            label=series.label,
            color=colour,
            linewidth=1.5 if series.split == "train" else 2.0,
            marker="o",
            markersize=3.6 if finite.size <= 40 else 2.5,
            markevery=marked.tolist(),
            zorder=3 if series.split == "val" else 2.5,
        )
        if finite.any():
            last = float(series.values[np.flatnonzero(finite)[-1]])
            alone = not series.split and len(panel.series) == 1
            ends.append((last, f"{'' if alone else series.label} {_reading_of(panel, last)}".strip(), colour))

    values = np.concatenate([series.values for series in panel.series])
    epochs = np.concatenate([series.epochs for series in panel.series])
    marks = best is not None and best.panel == panel.name
    logarithmic = _is_wide(values) and not _is_percent(panel)
    _limit_y(ax, values, logarithmic, panel.from_zero, 0.17 if marks else 0.06)
    ax.set_ylabel(panel.unit + (", log scale" if logarithmic else ""), size=9)
    first, last_epoch = float(epochs.min()), float(epochs.max())
    room = 0.02 * (last_epoch - first) or 1.0
    ax.set_xlim(first - room, last_epoch + room)
    if first == last_epoch:
        ax.set_xticks([first])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(max(3, int(width / 0.5)), integer=True, min_n_ticks=2))
    if best is not None and first <= best.epoch <= last_epoch:
        ax.axvline(best.epoch, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2, label="best epoch")
    if best is not None and marks:
        ax.plot([best.epoch], [best.value], "o", color="white", markeredgecolor=VALIDATION, markersize=7, zorder=4)
        where = (best.epoch - first + room) / (last_epoch - first + 2 * room)
        ax.annotate(
            f"best {_with_unit(panel, best.value)}, epoch {best.epoch:g}",
            (best.epoch, 1.0),
            xycoords=ax.get_xaxis_transform(),
            xytext=(-4 if where > 0.5 else 4, -3),
            textcoords="offset points",
            ha="right" if where > 0.5 else "left",
            va="top",
            size=8.5,
            color=VALIDATION,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
        )
    _label_ends(ax, ends, height, after)


def _limit_y(ax: Axes, values: Array, logarithmic: bool, from_zero: bool, headroom: float) -> None:
    """Limits around the finite values, with `headroom` (a share of the axes' height) above them."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        ax.set_ylim(0.0, 1.0)
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", va="center", color=ALARM)
    elif logarithmic:
        low, high = math.log10(finite.min()), math.log10(finite.max())
        span = high - low
        ax.set_yscale("log")
        ax.set_ylim(10 ** (low - 0.05 * span), 10 ** (high + headroom * span / (1 - headroom)))
        _plain_log(ax.yaxis, finite)
    else:
        low, high = float(finite.min()), float(finite.max())
        if from_zero and low >= 0:
            low = 0.0
        span = (high - low) or abs(high) or 1.0
        ax.set_ylim(low - 0.04 * span, high + headroom * span / (1 - headroom))
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(_tick))


def _label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], height: float, room: float) -> None:
    """Names and last values beside the ends of the lines, moved apart where they would touch."""
    to_axes = ax.transData + ax.transAxes.inverted()
    x = ax.get_xlim()[1]
    placed = sorted((float(to_axes.transform((x, value))[1]), text, colour) for value, text, colour in ends)
    apart = 0.16 / height
    heights: list[float] = []
    for y, *_ in placed:
        heights.append(max(y, heights[-1] + apart) if heights else y)
    # Pushed beyond the top, the stack comes down again.
    for index in range(len(heights) - 1, -1, -1):
        highest = 1.0 - apart * (len(heights) - 1 - index)
        heights[index] = min(heights[index], highest)
    fitted = [_fit(text, room - 0.2, 9.0, 7.0, "bold") for _, text, _ in placed]
    size = min((size for _, size in fitted), default=9.0)
    for y, (shown, _), (*_, colour) in zip(heights, fitted, placed, strict=True):
        ax.annotate(
            shown,
            (1.0, y),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            size=size,
            weight="bold",
            color=colour,
        )


def _colours(panel: Heatmap) -> Normalize:
    finite = panel.values[np.isfinite(panel.values)]
    if finite.size == 0:
        return Normalize(0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    if panel.chance is not None:
        return Normalize(min(0.0, low), max(panel.chance, high))
    if _is_wide(finite):
        return LogNorm(low, high)
    if low == high:
        room = 0.5 * abs(low) or 0.5
        return Normalize(low - room, high + room)
    return Normalize(low, high)


def _epoch_ticks(epochs: Sequence[int], width: float) -> list[int]:
    """The columns to name: round epochs where the epochs are regular, else evenly spaced columns."""
    widest = 0.07 * max(len(str(epoch)) for epoch in epochs) + 0.14
    room = max(1, int(width / widest))
    if len(epochs) <= room:
        return list(range(len(epochs)))
    if len(set(np.diff(epochs))) == 1:
        column = {epoch: index for index, epoch in enumerate(epochs)}
        round_ones = MaxNLocator(min(room, 12), integer=True, steps=[1, 2, 5, 10]).tick_values(epochs[0], epochs[-1])
        named = [column[int(epoch)] for epoch in round_ones if int(epoch) in column]
        if len(named) > 1:
            return named
    return [int(index) for index in np.unique(np.linspace(0, len(epochs) - 1, min(room, 12)).round())]


def _draw_heatmap(page: Page, panel: Heatmap, left: float, top: float, slot: float, height: float) -> None:
    names = _short_names(panel.layers)
    rows, columns = panel.values.shape
    shown = rows if rows <= NAMED_ROWS else NAMED_ROWS
    shown = max(2, min(shown, int(height / 0.125)))
    named = np.unique(np.linspace(0, rows - 1, min(rows, shown)).round()).astype(int)
    before = 0.42 + max(_inches(names[row], 8.0) for row in named)
    numbers, bar = 0.55, 0.95
    width = min(slot - before - numbers - bar, max(1.6, 0.9 * columns))

    ax = page.axes(left + before, top + TITLE, width, height, panel.name)
    _title(ax, panel.title, before, width, slot)
    colours = _colours(panel)
    ax.set_facecolor(GAP)
    image = ax.imshow(
        np.ma.masked_invalid(panel.values), norm=colours, cmap="viridis", aspect="auto", interpolation="nearest"
    )
    for row in range(1, rows if rows <= NAMED_ROWS else 0):
        ax.axhline(row - 0.5, color="white", linewidth=0.7)
    ax.spines[:].set_visible(False)
    ax.tick_params(axis="x", length=3, labelsize=8.5)
    ax.tick_params(axis="y", length=0, labelsize=8.0, labelcolor=INK)
    ax.set_yticks(named, [names[row] for row in named])
    ticks = _epoch_ticks(panel.epochs, width)
    ax.set_xticks(ticks, [str(panel.epochs[tick]) for tick in ticks])
    regular = len(set(np.diff(panel.epochs))) <= 1
    ax.set_xlabel("epoch" if regular else "epoch (one column per reading)", size=9)
    ax.set_ylabel("input  →  output", size=8.5, rotation=270)
    ax.yaxis.set_label_coords((0.1 - before) / width, 0.5)

    beside = ax.get_yaxis_transform()
    for row in named:
        ax.text(
            1.0 + 0.07 / width, row, _reading_of(panel, panel.values[row, -1]), transform=beside, va="center", size=8.0
        )
    caption = f"epoch {panel.epochs[-1]}"
    ax.text(1.0 + 0.07 / width, 1.0 + 0.07 / height, caption, transform=ax.transAxes, size=7.0, color=QUIET)

    tall = min(height, 3.0)
    bar_ax = page.axes(left + before + width + numbers + 0.06, top + TITLE, 0.13, tall, f"{panel.name} colours")
    scale = page.figure.colorbar(image, cax=bar_ax)
    scale.outline.set_visible(False)
    label = panel.unit + (", log scale" if isinstance(colours, LogNorm) else "")
    gaps = "\n(grey: no reading)" if np.isnan(panel.values).any() else ""
    _label_colours(bar_ax, panel, colours, tall)
    bar_ax.set_ylabel(label + gaps, size=8.5)
    bar_ax.tick_params(length=2, labelsize=8.0)


def _label_colours(bar_ax: Axes, panel: Heatmap, colours: Normalize, tall: float) -> None:
    if isinstance(colours, LogNorm):
        _plain_log(bar_ax.yaxis, panel.values)
        bar_ax.yaxis.set_tick_params(which="minor", length=0)
        return
    ticks = MaxNLocator(max(2, int(tall / 0.4)), steps=[1, 2, 5, 10]).tick_values(*bar_ax.get_ylim())
    low, high = bar_ax.get_ylim()
    labels = {float(tick): _tick(round(float(tick), 10)) for tick in ticks if low <= tick <= high}
    if panel.chance is not None:
        near = 0.3 / tall * (high - low)
        labels = {tick: label for tick, label in labels.items() if abs(tick - panel.chance) > near}
        labels[panel.chance] = f"{panel.chance:.3g}\nchance"
        bar_ax.axhline(panel.chance, color="white", linewidth=1.0)
    bar_ax.set_yticks(list(labels), list(labels.values()))


# -------------------------------------------------------------------------------------------------------------- layout


def _natural_height(panel: Heatmap) -> float:
    rows = len(panel.layers)
    return max(1.3, 0.2 * rows if rows <= NAMED_ROWS else max(5.6, 0.05 * rows))


def _heatmap_columns(heatmaps: Sequence[Heatmap]) -> list[list[tuple[Heatmap, float]]]:
    """Heatmaps with their heights in one or two columns: each goes to the column that is shorter so far."""
    columns: list[list[tuple[Heatmap, float]]] = [[] for _ in range(min(2, len(heatmaps)))]
    for panel in heatmaps:
        min(columns, key=_column_height).append((panel, _natural_height(panel)))
    tallest = max((_column_height(column) for column in columns), default=0.0)
    for column in columns:
        # The shorter column's rows grow, so that both end on one line, but not into bars.
        drawn = sum(height for _, height in column)
        factor = (drawn + tallest - _column_height(column)) / drawn
        column[:] = [(panel, min(height * factor, max(height, 0.36 * len(panel.layers)))) for panel, height in column]
    return columns


def _column_height(column: Sequence[tuple[Heatmap, float]]) -> float:
    return math.fsum(height + TITLE + BELOW for _, height in column)


def draw(directory: Path, summary: Mapping[str, Any] | None = None) -> Figure:
    """The page about the run in `directory`, not yet written anywhere; arguments and errors as for `report`.

    Every axes carries as its label the metric ("loss", "acc") or the probe ("operator_norm") that it shows.
    """
    if summary is None:
        summary = _read_summary(directory / "summary.json")
    metrics, readings = directory / "metrics.csv", directory / "readings.csv"
    if not metrics.exists() and not readings.exists():
        raise Mistake(f"{directory} is no run directory: it has neither metrics.csv nor readings.csv.")
    classes = _mapping(summary, "data").get("num_classes")
    held_out = _held_out(summary)
    metric_panels = _metric_panels(_read_metrics(metrics) if metrics.exists() else {}, held_out)
    probe_panels = _probe_panels(
        _read_readings(readings) if readings.exists() else {}, classes if isinstance(classes, int) else None
    )
    with mpl.rc_context(STYLE):
        return _compose(directory, summary, held_out, metric_panels, probe_panels)


def _compose(
    directory: Path,
    summary: Mapping[str, Any],
    held_out: str,
    metric_panels: Sequence[Curves],
    probe_panels: Sequence[Curves | Heatmap],
) -> Figure:
    best = _best(metric_panels)
    curves = [*metric_panels[:METRIC_PANELS], *(panel for panel in probe_panels if isinstance(panel, Curves))]
    columns = _heatmap_columns([panel for panel in probe_panels if isinstance(panel, Heatmap)])
    across = 4 if len(curves) in (4, 7, 8) or len(curves) > 9 else min(3, max(2, len(curves)))
    lines = math.ceil(len(curves) / across)
    bands = _bands(summary)
    provenance = _provenance(directory, summary, len(metric_panels[METRIC_PANELS:]))
    footer = textwrap.wrap(provenance, 255)

    curve_height = TITLE + 2.25 + BELOW
    fixed = len(bands) * BAND + HEADER + max(lines * curve_height, 0.0 if columns else 1.0)
    fixed += 0.35 + FOOTER_LINE * len(footer)
    panels = max((len(column) for column in columns), default=0) * (TITLE + BELOW)
    maps = max((sum(height for _, height in column) for column in columns), default=0.0)
    shrink = min(1.0, max(0.15, (TALLEST - fixed - panels) / maps)) if maps else 1.0
    total = fixed + max((sum(h * shrink + TITLE + BELOW for _, h in column) for column in columns), default=0.0)

    page = Page(Figure(figsize=(WIDTH, total), dpi=DPI), total)
    top = 0.0
    for text, colour in bands:
        page.band(top, BAND, text, colour)
        top += BAND
    epochs = [series.epochs[-1] for panel in curves for series in panel.series if series.epochs.size]
    last = float(max(epochs)) if epochs else None
    run = str(summary.get("run") or directory.resolve().name)
    _draw_header(page, top, run, summary, last, _headlines(metric_panels, best, summary, held_out))
    top += HEADER
    slot = (WIDTH - 2 * MARGIN) / across
    for index, panel in enumerate(curves):
        line, place = divmod(index, across)
        _draw_curves(page, panel, best, MARGIN + place * slot, top + line * curve_height, slot)
    if not curves and not columns:
        page.text(MARGIN, top + 0.3, "No epoch is finished and no probe has written yet.", size=13, color=QUIET)
    top += lines * curve_height
    for place, column in enumerate(columns):
        slot = (WIDTH - 2 * MARGIN) / len(columns)
        below = top
        for heatmap, height in column:
            _draw_heatmap(page, heatmap, MARGIN + place * slot, below, slot - 0.2, height * shrink)
            below += height * shrink + TITLE + BELOW
    for index, text in enumerate(reversed(footer)):
        page.text(MARGIN, total - 0.18 - FOOTER_LINE * index, text, size=7.5, color=QUIET, va="bottom")
    return page.figure


def _draw_header(
    page: Page,
    top: float,
    run: str,
    summary: Mapping[str, Any],
    last: float | None,
    headlines: Sequence[tuple[str, str, str]],
) -> None:
    right = WIDTH - MARGIN
    for number, caption, colour in reversed(headlines):
        width = max(_inches(number, 22.0, "bold"), _inches(caption, 8.5))
        page.text(right - width, top + 0.3, number, size=22, weight="bold", color=colour)
        page.text(right - width, top + 0.72, caption, size=8.5, color=QUIET)
        right -= width + 0.4
    room = right - MARGIN - 0.3
    shown, size = _fit(run, room, 24.0, 13.0, "bold")
    page.text(MARGIN, top + 0.55, shown, size=size, weight="bold", va="baseline")
    below = top + 0.74
    if described := _described(summary):
        shown, size = _fit(described, room, 11.0, 8.0)
        page.text(MARGIN, below, shown, size=size)
        below += 0.26
    diverged = str(summary.get("status", "")).lower().startswith(("diverged", "failed"))
    colour, weight = (ALARM, "bold") if diverged else (QUIET, "normal")
    shown, size = _fit(_state(summary, last), room, 10.0, 8.0, weight)
    page.text(MARGIN, below, shown, size=size, color=colour, weight=weight)


def report(directory: Path, summary: Mapping[str, Any] | None = None) -> Path:
    """Draw `report.png`, one page about one run, into its directory and return its path.

    Args:
        directory: holds `metrics.csv` (one row an epoch) and `readings.csv` (epoch, probe, layer, key, value), or one
            of them. Learning rates and times in `metrics.csv` are not drawn.
        summary: what the run knows about itself; every key may be absent. By default the directory's `summary.json`,
            where there is one.

    The file appears whole or not at all. Raises `Mistake` for a malformed table, naming the file and the line.
    Cost: one to two seconds.
    """
    figure = draw(directory, summary)
    target = directory / "report.png"
    unfinished = directory / f".report.{os.getpid()}.png"
    try:
        with mpl.rc_context(STYLE):
            figure.savefig(unfinished, format="png", dpi=DPI)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target
