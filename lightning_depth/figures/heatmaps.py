"""Layers over epochs in colours, or, of one look, as points."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axes._secondary_axes import SecondaryAxis
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import LogNorm, Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from lightning_depth.figures.panels import Array, Heatmap
from lightning_depth.figures.style import DASHED, GAP, INK, PROBE, QUIET, draw_scale, draw_title, is_wide
from lightning_depth.figures.wording import ellipsis, evenly_spread, fitted, reading_of

NAMED_ROWS = 24  # a heatmap names every layer up to here, and this many evenly spaced ones beyond


def draw_heatmap(ax: Axes, panel: Heatmap) -> None:
    """The panel's rows, the last reading beside each, and the colour bar; of one look the readings as points."""
    draw_title(ax, panel.title)
    names = fitted(panel.layers)
    named = evenly_spread(len(names), NAMED_ROWS)
    ax.set_yticks(named, [names[row] for row in named])
    beside = ax.secondary_yaxis("right")
    beside.set_yticks(named, [reading_of(panel, panel.values[row, -1]) for row in named])
    beside.spines[:].set_visible(False)
    for axis in (ax, beside):
        axis.tick_params(axis="y", length=0, labelsize=8.0, labelcolor=INK)
    ax.set_ylabel(panel.rows, size=8.5, rotation=270, va="top")
    if len(panel.epochs) == 1:
        _draw_profile(ax, panel)
    else:
        _draw_bar(_draw_colours(ax, panel), beside, panel)


def _draw_colours(ax: Axes, panel: Heatmap) -> AxesImage:
    ax.set_facecolor(GAP)
    rows, columns = panel.values.shape
    steps = np.diff(panel.epochs)
    regular = len(set(steps)) <= 1
    # Regular epochs are coordinates; of irregular ones each reading has a column of one width.
    first, step = (panel.epochs[0], int(steps[0])) if regular else (0, 1)
    extent = (first - 0.5 * step, first + (columns - 0.5) * step, rows - 0.5, -0.5)
    values, norm = np.ma.masked_invalid(panel.values), _norm(panel.values, panel.chance)
    image = ax.imshow(values, norm=norm, cmap="viridis", aspect="auto", extent=extent)
    for row in range(1, rows if rows <= NAMED_ROWS else 0):
        ax.axhline(row - 0.5, color="white", linewidth=0.7)
    ax.spines[:].set_visible(False)
    if not regular:
        named = evenly_spread(columns, 8)
        ax.set_xticks(named, [str(panel.epochs[column]) for column in named])
    elif columns <= 10:
        ax.set_xticks(panel.epochs)
    else:
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlabel("epoch" if regular else "epoch (one column per reading)")
    above: Any = {"xycoords": "axes fraction", "xytext": (4, 4), "textcoords": "offset points"}
    ax.annotate(f"epoch {panel.epochs[-1]}", (1, 1), size=7.0, color=QUIET, **above)
    return image


def _draw_bar(image: AxesImage, beside: SecondaryAxis, panel: Heatmap) -> None:
    """The colour bar, to the right of the readings that stand `beside` the rows, wherever the layout puts these."""
    figure, heatmap = image.axes.figure, image.axes
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0), label=f"{panel.name} colours")

    def locate(_: object, renderer: RendererBase) -> Bbox:
        readings, tenth = beside.get_tightbbox(renderer) or heatmap.bbox, 0.1 * figure.dpi
        place = Bbox.from_bounds(readings.x1 + tenth, heatmap.bbox.y0, 1.3 * tenth, heatmap.bbox.height)
        return place.transformed(figure.transSubfigure.inverted())

    ax.set_axes_locator(locate)
    bar = figure.colorbar(image, cax=ax)
    bar.outline.set_visible(False)
    gaps = "\n(grey: no reading)" if np.isnan(panel.values).any() else ""
    scale = draw_scale(ax, "y", panel.values, isinstance(image.norm, LogNorm))
    bar.set_label(ellipsis(panel.unit, 28) + scale + gaps, size=8.5)
    ax.tick_params(labelsize=8.0)
    if panel.chance is not None:
        _mark_chance(ax, panel.chance)


def _draw_profile(ax: Axes, panel: Heatmap) -> None:
    """The readings of one look as points, input at the top."""
    values = panel.values[:, 0]
    scale = draw_scale(ax, "x", values, is_wide(values))
    ax.plot(values, np.arange(len(values)), "o-", color=PROBE, linewidth=1.2, markersize=4.0, clip_on=False)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.grid(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    if panel.chance is not None:
        ax.axvline(panel.chance, color=QUIET, **DASHED)
        ax.text(panel.chance, -0.5, "chance ", ha="right", va="bottom", size=7.5, color=QUIET)
    ax.set_xlabel(f"{ellipsis(panel.unit, 40)}{scale}, epoch {panel.epochs[0]}")


def _mark_chance(ax: Axes, chance: float) -> None:
    """The colour bar names what guessing gives, in place of ticks too near to it."""
    low, high = ax.get_ylim()
    ticks = [tick for tick in ax.get_yticks() if low <= tick <= high and abs(tick - chance) > 0.2 * (high - low)]
    ax.set_yticks([*ticks, chance], [*(f"{tick:g}" for tick in ticks), f"{chance:.3g}\nchance"])
    ax.get_yticklabels()[-1].set_verticalalignment("top" if 2 * chance > low + high else "bottom")  # beside the bar
    ax.axhline(chance, color="white", linewidth=1.0)


def _norm(values: Array, chance: float | None) -> Normalize:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return Normalize(0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    if chance is not None:
        return Normalize(min(0.0, low), max(chance, high))
    if is_wide(finite):
        return LogNorm(low, high)
    room = 0.0 if low < high else 0.5 * abs(low) or 0.5
    return Normalize(low - room, high + room)
