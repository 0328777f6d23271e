"""One page about one run: its curves and what the probes saw, drawn from the tables of the run's directory."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lightning_depth import results
from lightning_depth.errors import UserError
from lightning_depth.figures import panels, style
from lightning_depth.figures.curves import draw_curves
from lightning_depth.figures.directions import directions
from lightning_depth.figures.heatmaps import NAMED_ROWS, draw_heatmap
from lightning_depth.figures.page import WIDTH, Part, band, compose, in_lines, on_axes, side_by_side, words, write_png
from lightning_depth.figures.pictures import parts_of
from lightning_depth.figures.wording import description, headlines, number, provenance, shared_modules, state, warnings

METRIC_PANELS = 8
Declared = Mapping[str, results.Declaration]


def report(directory: Path, summary: Mapping[str, Any] | None = None, declared: Declared | None = None) -> Path:
    """Draw `report.png`, one page about one run, into its directory and return its path.

    The directory holds `metrics.csv` (one row an epoch; learning rates and times are not drawn) and `readings.csv` (a
    `results.Reading` a row), or one of them. `summary` is what the run knows about itself; every key may be absent. By
    default it is the directory's `summary.json`, where there is one. `declared`, by probe, is for a run of before there
    were declarations. The file appears whole or not at all. A `UserError` names file and line of a malformed table.
    """
    return write_png(directory / results.REPORT, lambda: draw(directory, summary, declared))


def draw(directory: Path, summary: Mapping[str, Any] | None = None, declared: Declared | None = None) -> Figure:
    """The page about the run in `directory`, not yet written anywhere; arguments and errors as for `report`.

    Every axes carries as its label the metric ("loss", "acc") or the probe ("operator_norm") that it shows.
    """
    if summary is None:
        summary = results.read_summary(directory) or {}
    if not any((directory / name).exists() for name in (results.METRICS, results.READINGS)):
        raise UserError(f"{directory} is no run directory: it has neither {results.METRICS} nor {results.READINGS}.")
    classes, held_out = panels.section(summary, "data").get("num_classes"), panels.held_out_name(summary)
    columns, read = results.read_metrics(directory), results.read_readings(directory)
    direction_of = {**directions(columns), **panels.section(summary, "directions")}
    metrics = panels.panels_of_metrics(columns, held_out, direction_of)
    declared = results.read_declarations(directory) or declared or {}
    pictures = results.read_arrays(directory, until=max(reading.epoch for reading in read)) if read else []
    shared = shared_modules([*(one.layer for one in read), *(layer for arrays in pictures for layer in arrays.layers)])
    read = [one._replace(layer=one.layer.removeprefix(shared)) for one in read]
    for arrays in pictures:
        arrays.layers = {layer.removeprefix(shared): looks for layer, looks in arrays.layers.items()}
        arrays.names = {layer.removeprefix(shared): names for layer, names in arrays.names.items()}
    probes = panels.panels_of_probes(read, declared, classes if isinstance(classes, int) else None)

    best = panels.best_epoch(metrics)
    curves = [*metrics[:METRIC_PANELS], *(panel for panel in probes if isinstance(panel, panels.Curves))]
    epochs = [series.epochs[-1] for panel in curves for series in panel.series if series.epochs.size]
    with mpl.rc_context(style.STYLE):
        shown = [
            *_numbers([panel for panel in probes if isinstance(panel, panels.Number)]),
            *_curves(curves, best),
            *_heatmaps([panel for panel in probes if isinstance(panel, panels.Heatmap)]),
            *parts_of(pictures, declared),
        ]
        run = str(summary.get("run") or directory.resolve().name)
        numbers = headlines(metrics, best, summary, held_out)
        page = [
            *map(band, warnings(summary)),
            _header(run, summary, float(max(epochs)) if epochs else None, numbers),
            *(shown or [words("No epoch is finished and no probe has written yet.", 13.0, above=0.3)]),
            words(provenance(directory, summary, len(metrics[METRIC_PANELS:])), 7.5, lines=9, above=0.2),
        ]
        return compose(page)


def _header(run: str, summary: Mapping[str, Any], last: float | None, numbers: Sequence[tuple[str, str, str]]) -> Part:
    bad = str(summary.get("status", "")).lower().startswith(("diverged", "failed"))
    alarm: Any = {"color": style.ALARM, "weight": "bold"} if bad else {}
    wide = 2.1
    room = WIDTH - wide * len(numbers)
    text = [
        words(run, 24.0 if len(run) <= 36 else 14.0, width=room, above=0.25, weight="bold", color=style.INK),
        words(description(summary), 10.5, 6, room, color=style.INK),
        words(state(summary, last), 9.5, 6, room, **alarm),
    ]
    colours = {"train": style.TRAIN, "val": style.VALIDATION}
    beside = [_number("", number, caption, colours[split], wide) for number, caption, split in numbers]
    return side_by_side([text, *beside], [room, *(wide for _ in beside)])


def _number(title: str, value: str, caption: str, colour: str, width: float) -> list[Part]:
    """A reading in large type, between its title and its unit."""
    return [
        words(title, 9.5, 3, width, above=0.2, weight="bold", color=style.INK),
        words(value, 20.0, 1, width, above=0.05 if title else 0.28, weight="bold", color=colour),
        words(caption, 8.5, 3, width),
    ]


def _numbers(shown: Sequence[panels.Number]) -> list[Part]:
    """Numbers, four in a line."""
    cells = [_number(p.title, number(p.value), p.unit, style.PROBE, WIDTH / 4) for p in shown]
    starts = range(0, len(cells), 4)
    return [side_by_side([*cells[at : at + 4], *([] for _ in range(at + 4 - len(cells)))]) for at in starts]


def _curves(shown: Sequence[panels.Curves], best: panels.Best | None) -> list[Part]:
    """Curves, two to four in a line."""
    across = 4 if len(shown) in (4, 7, 8) or len(shown) > 9 else min(3, max(2, len(shown)))
    parts = [on_axes(3.3, panel.name, partial(draw_curves, panel=panel, best=best)) for panel in shown]
    return [in_lines(parts, across)] if parts else []


def _heatmaps(shown: Sequence[panels.Heatmap]) -> list[Part]:
    """Heatmaps in one or two columns: each goes to the column that is shorter so far."""
    columns: list[list[Part]] = [[] for _ in range(min(2, len(shown)))]
    for panel in shown:
        rows = len(panel.layers)
        height = 1.3 + (max(1.2, 0.2 * rows) if rows <= NAMED_ROWS else min(max(5.6, 0.05 * rows), 9.0))
        shorter = min(columns, key=lambda column: math.fsum(part.height for part in column))
        shorter.append(on_axes(height, panel.name, partial(draw_heatmap, panel=panel)))
    return [side_by_side(columns)] if columns else []
