"""Layers over epochs in colours, drawn onto a page."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_depth.figures.page import BELOW, TITLE, Page, draw_title, inches_of
from lightning_depth.figures.panels import Heatmap
from lightning_depth.figures.scale import draw_log_ticks, is_wide
from lightning_depth.figures.style import FAINT, GAP, INK, PROBE, QUIET
from lightning_depth.figures.wording import reading_of, short_names, tick_label

NAMED_ROWS = 24  # a heatmap names every layer up to here, and this many evenly spaced ones beyond


def heatmap_columns(heatmaps: Sequence[Heatmap]) -> list[list[tuple[Heatmap, float]]]:
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


def _natural_height(panel: Heatmap) -> float:
    rows = len(panel.layers)
    return max(1.3, 0.2 * rows if rows <= NAMED_ROWS else max(5.6, 0.05 * rows))


def draw_heatmap(page: Page, panel: Heatmap, left: float, top: float, slot: float, height: float) -> None:
    """The panel in a slot of `slot` inches: its rows, the last reading beside each, and the colour bar."""
    names = short_names(panel.layers)
    rows, columns = panel.values.shape
    shown = rows if rows <= NAMED_ROWS else NAMED_ROWS
    shown = max(2, min(shown, int(height / 0.125)))
    named = np.unique(np.linspace(0, rows - 1, min(rows, shown)).round()).astype(int)
    before = 0.42 + max(inches_of(names[row], 8.0) for row in named)
    numbers, bar = 0.55, 0.95
    profile = columns == 1  # one look has no course over the epochs to be shown in colours
    width = slot - before - numbers - 0.3 if profile else min(slot - before - numbers - bar, max(1.6, 0.9 * columns))

    ax = page.axes(left + before, top + TITLE, width, height, panel.name)
    draw_title(ax, panel.title, before, width, slot)
    ax.set_yticks(named, [names[row] for row in named])
    ax.tick_params(axis="x", length=3, labelsize=8.5)
    ax.tick_params(axis="y", length=0, labelsize=8.0, labelcolor=INK)
    ax.yaxis.set_label_coords((0.1 - before) / width, 0.5)
    beside = ax.get_yaxis_transform()
    for row in named:
        ax.text(
            1.0 + 0.07 / width, row, reading_of(panel, panel.values[row, -1]), transform=beside, va="center", size=8.0
        )
    if profile:
        _draw_profile(ax, panel)
        return
    ax.set_ylabel(panel.rows, size=8.5, rotation=270)
    colours = _colours(panel)
    ax.set_facecolor(GAP)
    image = ax.imshow(
        np.ma.masked_invalid(panel.values), norm=colours, cmap="viridis", aspect="auto", interpolation="nearest"
    )
    for row in range(1, rows if rows <= NAMED_ROWS else 0):
        ax.axhline(row - 0.5, color="white", linewidth=0.7)
    ax.spines[:].set_visible(False)
    ticks = _epoch_ticks(panel.epochs, width)
    ax.set_xticks(ticks, [str(panel.epochs[tick]) for tick in ticks])
    regular = len(set(np.diff(panel.epochs))) <= 1
    ax.set_xlabel("epoch" if regular else "epoch (one column per reading)", size=9)
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


def _draw_profile(ax: Axes, panel: Heatmap) -> None:
    """The readings of one look as points, input at the top."""
    values = panel.values[:, 0]
    ax.plot(values, np.arange(len(values)), "o-", color=PROBE, linewidth=1.2, markersize=4.0, clip_on=False)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.grid(True, axis="both", color=FAINT, linewidth=0.6)
    ax.spines[["top", "right", "left"]].set_visible(False)
    if is_wide(values):
        ax.set_xscale("log")
        draw_log_ticks(ax.xaxis, values)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(tick_label))
    if panel.chance is not None:
        ax.axvline(panel.chance, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.text(panel.chance, -0.5, "chance ", ha="right", va="bottom", size=7.5, color=QUIET)
    scale = ", log scale" if is_wide(values) else ""
    ax.set_xlabel(f"{panel.unit}{scale}, epoch {panel.epochs[0]}", size=9)
    ax.set_ylabel(panel.rows, size=8.5, rotation=270)


def _label_colours(bar_ax: Axes, panel: Heatmap, colours: Normalize, tall: float) -> None:
    if isinstance(colours, LogNorm):
        draw_log_ticks(bar_ax.yaxis, panel.values)
        bar_ax.yaxis.set_tick_params(which="minor", length=0)
        return
    ticks = MaxNLocator(max(2, int(tall / 0.4)), steps=[1, 2, 5, 10]).tick_values(*bar_ax.get_ylim())
    low, high = bar_ax.get_ylim()
    labels = {float(tick): tick_label(round(float(tick), 10)) for tick in ticks if low <= tick <= high}
    if panel.chance is not None:
        near = 0.3 / tall * (high - low)
        labels = {tick: label for tick, label in labels.items() if abs(tick - panel.chance) > near}
        labels[panel.chance] = f"{panel.chance:.3g}\nchance"
        bar_ax.axhline(panel.chance, color="white", linewidth=1.0)
    bar_ax.set_yticks(list(labels), list(labels.values()))


def _colours(panel: Heatmap) -> Normalize:
    finite = panel.values[np.isfinite(panel.values)]
    if finite.size == 0:
        return Normalize(0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    if panel.chance is not None:
        return Normalize(min(0.0, low), max(panel.chance, high))
    if is_wide(finite):
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
