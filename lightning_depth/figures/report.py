"""One page about one run: its curves and what the probes saw, drawn from the tables of the run's directory."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lightning_depth import results
from lightning_depth.errors import UserError
from lightning_depth.figures.curves import draw_curves
from lightning_depth.figures.directions import directions
from lightning_depth.figures.heatmaps import draw_heatmap, heatmap_columns
from lightning_depth.figures.page import BELOW, TITLE, Page, fit, inches_of
from lightning_depth.figures.panels import (
    Curves,
    Heatmap,
    Number,
    best_epoch,
    held_out_name,
    panels_of_metrics,
    panels_of_probes,
    section,
)
from lightning_depth.figures.pictures import Row, rows_of
from lightning_depth.figures.style import ALARM, DPI, MARGIN, PROBE, QUIET, STYLE, TALLEST, WIDTH
from lightning_depth.figures.wording import description, headlines, provenance, state, warning_bands
from lightning_depth.figures.wording import number as number_of

METRIC_PANELS = 8
BAND, HEADER, FOOTER_LINE = 0.42, 1.3, 0.17
NUMBERS, NUMBER_HEIGHT = 4, 1.0


def report(directory: Path, summary: Mapping[str, Any] | None = None) -> Path:
    """Draw `report.png`, one page about one run, into its directory and return its path.

    Args:
        directory: holds `metrics.csv` (one row an epoch) and `readings.csv` (a `results.Reading` a row), or one
            of them. Learning rates and times in `metrics.csv` are not drawn.
        summary: what the run knows about itself; every key may be absent. By default the directory's `summary.json`,
            where there is one.

    The file appears whole or not at all. Raises `UserError` for a malformed table, naming the file and the line.
    Cost: one to two seconds.
    """
    figure = draw(directory, summary)
    target = directory / results.REPORT
    with mpl.rc_context(STYLE), results.atomic_file(target) as unfinished:
        figure.savefig(unfinished, format="png", dpi=DPI)
    return target


def draw(directory: Path, summary: Mapping[str, Any] | None = None) -> Figure:
    """The page about the run in `directory`, not yet written anywhere; arguments and errors as for `report`.

    Every axes carries as its label the metric ("loss", "acc") or the probe ("operator_norm") that it shows.
    """
    if summary is None:
        summary = results.read_summary(directory) or {}
    if not any((directory / name).exists() for name in (results.METRICS, results.READINGS)):
        raise UserError(f"{directory} is no run directory: it has neither {results.METRICS} nor {results.READINGS}.")
    classes = section(summary, "data").get("num_classes")
    held_out = held_out_name(summary)
    columns, read = results.read_metrics(directory), results.read_readings(directory)
    direction_of = {**directions(columns), **section(summary, "directions")}
    metric_panels = panels_of_metrics(columns, held_out, direction_of)
    declared = results.read_declarations(directory)
    probe_panels = panels_of_probes(read, declared, classes if isinstance(classes, int) else None)
    last = max((reading.epoch for reading in read), default=None)
    rows = [] if last is None else rows_of(results.read_arrays(directory, until=last), declared)
    with mpl.rc_context(STYLE):
        return _compose(directory, summary, held_out, metric_panels, probe_panels, rows)


def _compose(
    directory: Path,
    summary: Mapping[str, Any],
    held_out: str,
    metric_panels: Sequence[Curves],
    probe_panels: Sequence[Curves | Heatmap | Number],
    rows: Sequence[Row],
) -> Figure:
    best = best_epoch(metric_panels)
    curves = [*metric_panels[:METRIC_PANELS], *(panel for panel in probe_panels if isinstance(panel, Curves))]
    numbers = [panel for panel in probe_panels if isinstance(panel, Number)]
    columns = heatmap_columns([panel for panel in probe_panels if isinstance(panel, Heatmap)])
    across = 4 if len(curves) in (4, 7, 8) or len(curves) > 9 else min(3, max(2, len(curves)))
    lines = math.ceil(len(curves) / across)
    bands = warning_bands(summary)
    footer = textwrap.wrap(provenance(directory, summary, len(metric_panels[METRIC_PANELS:])), 255)

    curve_height = TITLE + 2.25 + BELOW
    number_lines = math.ceil(len(numbers) / NUMBERS)
    fixed = len(bands) * BAND + HEADER + max(lines * curve_height, 0.0 if columns or numbers or rows else 1.0)
    fixed += number_lines * NUMBER_HEIGHT
    fixed += 0.35 + FOOTER_LINE * len(footer)
    panels = max((len(column) for column in columns), default=0) * (TITLE + BELOW)
    maps = max((sum(height for _, height in column) for column in columns), default=0.0)
    # Many curves make a long page, not flat heatmaps.
    shrink = min(1.0, max(0.15, max(TALLEST / 2, TALLEST - fixed - panels) / maps)) if maps else 1.0
    tallest = max((sum(h * shrink + TITLE + BELOW for _, h in column) for column in columns), default=0.0)
    total = fixed + tallest + math.fsum(row.height for row in rows)

    page = Page(Figure(figsize=(WIDTH, total), dpi=DPI), total)
    top = 0.0
    for text, colour in bands:
        page.band(top, BAND, text, colour)
        top += BAND
    epochs = [series.epochs[-1] for panel in curves for series in panel.series if series.epochs.size]
    last = float(max(epochs)) if epochs else None
    run = str(summary.get("run") or directory.resolve().name)
    _draw_header(page, top, run, summary, last, headlines(metric_panels, best, summary, held_out))
    top += HEADER
    for index, number in enumerate(numbers):
        line, place = divmod(index, NUMBERS)
        _draw_number(page, number, MARGIN + place * (WIDTH - 2 * MARGIN) / NUMBERS, top + line * NUMBER_HEIGHT)
    top += number_lines * NUMBER_HEIGHT
    slot = (WIDTH - 2 * MARGIN) / across
    for index, panel in enumerate(curves):
        line, place = divmod(index, across)
        draw_curves(page, panel, best, MARGIN + place * slot, top + line * curve_height, slot)
    if not curves and not columns and not numbers and not rows:
        page.text(MARGIN, top + 0.3, "No epoch is finished and no probe has written yet.", size=13, color=QUIET)
    top += lines * curve_height
    for place, column in enumerate(columns):
        slot = (WIDTH - 2 * MARGIN) / len(columns)
        below = top
        for heatmap, height in column:
            draw_heatmap(page, heatmap, MARGIN + place * slot, below, slot - 0.2, height * shrink)
            below += height * shrink + TITLE + BELOW
    top += tallest
    for row in rows:
        row.draw(page, top)
        top += row.height
    for index, text in enumerate(reversed(footer)):
        page.text(MARGIN, total - 0.18 - FOOTER_LINE * index, text, size=7.5, color=QUIET, va="bottom")
    return page.figure


def _draw_number(page: Page, panel: Number, left: float, top: float) -> None:
    title, size = fit(panel.title, (WIDTH - 2 * MARGIN) / NUMBERS - 0.2, 9.5, 7.0, "bold")
    page.text(left, top, title, size=size, weight="bold")
    page.text(left, top + 0.22, number_of(panel.value), size=20, weight="bold", color=PROBE)
    page.text(left, top + 0.6, panel.unit, size=8.5, color=QUIET)


def _draw_header(
    page: Page,
    top: float,
    run: str,
    summary: Mapping[str, Any],
    last: float | None,
    results: Sequence[tuple[str, str, str]],
) -> None:
    right = WIDTH - MARGIN
    for number, caption, colour in reversed(results):
        width = max(inches_of(number, 22.0, "bold"), inches_of(caption, 8.5))
        page.text(right - width, top + 0.3, number, size=22, weight="bold", color=colour)
        page.text(right - width, top + 0.72, caption, size=8.5, color=QUIET)
        right -= width + 0.4
    room = right - MARGIN - 0.3
    shown, size = fit(run, room, 24.0, 13.0, "bold")
    page.text(MARGIN, top + 0.55, shown, size=size, weight="bold", va="baseline")
    below = top + 0.74
    if described := description(summary):
        shown, size = fit(described, room, 11.0, 8.0)
        page.text(MARGIN, below, shown, size=size)
        below += 0.26
    diverged = str(summary.get("status", "")).lower().startswith(("diverged", "failed"))
    colour, weight = (ALARM, "bold") if diverged else (QUIET, "normal")
    shown, size = fit(state(summary, last), room, 10.0, 8.0, weight)
    page.text(MARGIN, below, shown, size=size, color=colour, weight=weight)
