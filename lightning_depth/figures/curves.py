"""Lines over epochs."""

import textwrap
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lightning_depth.figures import style
from lightning_depth.figures.panels import CURRENT, Array, Best, Curves, Series
from lightning_depth.figures.wording import ellipsis, is_percent, reading_of, with_unit


def draw_curves(ax: Axes, panel: Curves, best: Best | None = None) -> None:
    """The panel's lines, their names and last values at their ends, and the best epoch."""
    style.draw_title(ax, panel.title)
    style.draw_frame(ax)
    others = iter(("#8c6bb1", "#a6761d", "#525252", "#cc79a7"))
    colours = {"train": style.TRAIN, CURRENT: style.CURRENT, "val": style.VALIDATION, "test": style.TEST}
    colours[""] = style.TRAIN if len(panel.series) > 1 else style.PROBE
    ends: list[tuple[float, str, str]] = []
    for series in panel.series:
        colour = colours[series.split] if series.split in colours else next(others, style.INK)
        _draw_line(ax, series, colour)
        finite = series.values[np.isfinite(series.values)]
        if finite.size:
            name = ellipsis(series.label, 22) if series.split or len(panel.series) > 1 else ""
            ends.append((finite[-1], textwrap.fill(f"{name} {reading_of(panel, finite[-1])}".strip(), 18), colour))

    values = np.concatenate([series.values for series in panel.series])
    epochs = np.concatenate([series.epochs for series in panel.series])
    scale = style.draw_scale(ax, "y", values, style.is_wide(values) and not is_percent(panel))
    _limit_y(ax, values, panel.from_zero)
    ax.set_ylabel(ellipsis(panel.unit, 28) + scale)
    ax.set_xlabel("epoch")
    first, last = float(epochs.min()), float(epochs.max())
    room = 0.02 * (last - first) or 1.0
    ax.set_xlim(first - room, last + room)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if first == last:
        ax.set_xticks([first])
    if best is not None and first <= best.epoch <= last:
        ax.axvline(best.epoch, color=style.QUIET, zorder=2, label="best epoch", **style.DASHED)
    if best is not None and best.panel == panel.name:
        style.draw_ring(ax, best.epoch, best.value, size=7.0)
        said = f"best {with_unit(panel, best.value)}, epoch {best.epoch:g}"
        ax.text(1.0, 1.02, said, transform=ax.transAxes, ha="right", va="bottom", size=8.5, color=style.VALIDATION)
    _label_ends(ax, ends)


def _draw_line(ax: Axes, series: Series, colour: str) -> None:
    finite = np.isfinite(series.values)
    # A lone point between gaps has no line to be seen by.
    padded = np.concatenate([[False], finite, [False]])
    lone = finite & ~padded[:-2] & ~padded[2:]
    few, dashes = finite.size <= 40, "--" if series.split == CURRENT else "-"
    marks: Any = {"marker": "o", "markersize": 3.6 if few else 2.5, "linestyle": dashes}
    marks["markevery"] = np.flatnonzero(finite if few else lone).tolist()
    width, order = 1.5 if series.split == "train" else 2.0, 3 if series.split == "val" else 2.5
    ax.plot(series.epochs, series.values, label=series.label, color=colour, linewidth=width, zorder=order, **marks)


def _limit_y(ax: Axes, values: Array, from_zero: bool) -> None:
    """Limits around the finite values, where matplotlib's own are not those of a logarithmic scale."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        ax.set_ylim(0.0, 1.0)
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", va="center", color=style.ALARM)
        return
    if ax.get_yscale() == "log":
        return
    low, high = float(finite.min()), float(finite.max())
    if from_zero and low > 0:
        low = 0.0
    least = 1e-3 * max(abs(low), abs(high))  # the last digits of a constant are no course
    if 0 < high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    span = (high - low) or abs(high) or 1.0
    ax.set_ylim(low - 0.05 * span, high + 0.05 * span)


def _label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names and last values beside the ends of the lines, moved apart where they would touch."""
    size = 8.5
    lines = max((text.count("\n") for _, text, _ in ends), default=0)
    apart = (1.7 + 1.2 * lines) * size / (72 * ax.bbox.height / ax.figure.dpi)
    to_axes = ax.transData + ax.transAxes.inverted()
    x = ax.get_xlim()[1]
    placed = sorted((float(to_axes.transform((x, value))[1]), text, colour) for value, text, colour in ends)
    heights = list(accumulate((y for y, *_ in placed), lambda below, y: max(y, below + apart)))
    beside: Any = {"xycoords": "axes fraction", "xytext": (5, 0), "textcoords": "offset points"}
    # Pushed beyond the top, the stack comes down again.
    for index, (y, (_, text, colour)) in enumerate(zip(heights, placed, strict=True)):
        y = min(y, 1.0 - apart * (len(heights) - 1 - index))
        ax.annotate(text, (1.0, y), va="center", size=size, weight="bold", color=colour, **beside)
