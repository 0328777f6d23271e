"""Lines over epochs, drawn onto a page."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_depth.figures.page import TITLE, Page, draw_title, fit
from lightning_depth.figures.panels import Array, Best, Curves
from lightning_depth.figures.scale import draw_log_ticks, is_wide
from lightning_depth.figures.style import ALARM, FAINT, INK, PROBE, QUIET, TEST, TRAIN, VALIDATION
from lightning_depth.figures.wording import is_percent, reading_of, tick_label, with_unit


def draw_curves(page: Page, panel: Curves, best: Best | None, left: float, top: float, slot: float) -> None:
    """The panel in a slot of `slot` inches: its lines, the names at their ends, and the best epoch in every panel."""
    before, after, height = 0.72, 1.16, 2.25
    width = slot - before - after
    ax = page.axes(left + before, top + TITLE, width, height, panel.name)
    draw_title(ax, panel.title, before, width, slot)
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
            ends.append((last, f"{'' if alone else series.label} {reading_of(panel, last)}".strip(), colour))

    values = np.concatenate([series.values for series in panel.series])
    epochs = np.concatenate([series.epochs for series in panel.series])
    marks = best is not None and best.panel == panel.name
    logarithmic = is_wide(values) and not is_percent(panel)
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
            f"best {with_unit(panel, best.value)}, epoch {best.epoch:g}",
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
        draw_log_ticks(ax.yaxis, finite)
    else:
        low, high = float(finite.min()), float(finite.max())
        if from_zero and low >= 0:
            low = 0.0
        least = 1e-3 * max(abs(low), abs(high))  # the last digits of a constant are no course
        if 0 < high - low < least:
            low, high = (low + high - least) / 2, (low + high + least) / 2
        span = (high - low) or abs(high) or 1.0
        ax.set_ylim(low - 0.04 * span, high + headroom * span / (1 - headroom))
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(tick_label))


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
    fitted = [fit(text, room - 0.2, 9.0, 7.0, "bold") for _, text, _ in placed]
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
