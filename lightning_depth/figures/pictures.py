"""The arrays that probes read, drawn: spectra over time, matrices, rows of images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_depth.figures.clustering import clustered_order
from lightning_depth.figures.page import BELOW, TITLE, Page, draw_title, fit, inches_of
from lightning_depth.figures.panels import sentence
from lightning_depth.figures.scale import LOG_FROM, draw_log_ticks
from lightning_depth.figures.style import DPI, FAINT, GAP, MARGIN, QUIET, STYLE, WIDTH
from lightning_depth.figures.wording import ellipsis, short_names
from lightning_depth.results import Arrays, Declaration, atomic_file

TILES = 6  # as many layers of one kind are drawn, evenly spread over all
LINES, ACROSS = 12, 16  # as many layers and images of a row of images
CLUSTERED = 512  # samples of a similarity matrix that are put in the order of a clustering, 0.3 s
DARK = 1e-6  # a spectrum is drawn down to this share of its largest value


@dataclass(frozen=True)
class Shown:
    """Arrays with the title of their row."""

    arrays: Arrays
    title: str
    clustered: bool

    @classmethod
    def of(cls, arrays: Arrays, declared: Declaration | None) -> "Shown":
        """As the probe declares, or under the name of its key."""
        known = next((one for one in declared.arrays if one.name == arrays.key), None) if declared else None
        if declared is None or known is None:
            return cls(arrays, sentence(f"{arrays.probe}: {arrays.key}"), False)
        own = "" if declared.kind == arrays.probe else f" ({arrays.probe})"
        return cls(arrays, known.title + own, known.clustered)

    @property
    def axes(self) -> int:
        """The number of axes of each array."""
        return next(array.ndim for of_layer in self.arrays.layers.values() for array in of_layer.values())


@dataclass(frozen=True)
class Row:
    """A part of the page as wide as the page, `height` inches high with its title."""

    height: float
    draw: Callable[[Page, float], None]


def rows_of(pictures: Sequence[Arrays], declared: Mapping[str, Declaration]) -> list[Row]:
    """The parts of a page that show `pictures`, in their order, as their probes declare."""
    makers = {1: _spectra, 2: _matrices, 3: _images}
    every = [Shown.of(arrays, declared.get(arrays.probe)) for arrays in pictures]
    return [makers[shown.axes](shown) for shown in every if shown.axes in makers]


def draw_pictures(pictures: Sequence[Arrays], declared: Mapping[str, Declaration], target: Path) -> Path:
    """A PNG of `pictures` alone; it appears whole or not at all."""
    rows = rows_of(pictures, declared)
    with mpl.rc_context(STYLE), atomic_file(target) as unfinished:
        total = math.fsum(row.height for row in rows) + 0.2
        page = Page(Figure(figsize=(WIDTH, total), dpi=DPI), total)
        top = 0.1
        for row in rows:
            row.draw(page, top)
            top += row.height
        page.figure.savefig(unfinished, format="png", dpi=DPI)
    return target


def _some(names: Sequence[str], most: int) -> list[str]:
    """`names`, or `most` of them, evenly spread, the first and the last among them."""
    return [names[place] for place in _spread(len(names), most)]


def _spread(number: int, most: int) -> list[int]:
    """The places of at most `most` of `number` things."""
    return [int(place) for place in np.unique(np.linspace(0, number - 1, min(most, number)).round())]


def _choice(shown: int, of: int, what: str) -> str:
    return f" ({shown} of {of} {what})" if shown < of else ""


def _spectra(shown: Shown) -> Row:
    arrays = shown.arrays
    layers = _some(list(arrays.layers), TILES)
    height = 2.1

    def draw(page: Page, top: float) -> None:
        epochs = sorted({epoch for layer in layers for epoch in arrays.layers[layer]})
        norm = Normalize(epochs[0], epochs[-1] if len(epochs) > 1 else epochs[0] + 1)
        colour = colormaps["viridis"]
        names = short_names(layers)
        room = WIDTH - 2 * MARGIN - 0.8
        slot = min(4.5, room / len(layers))
        for index, layer in enumerate(layers):
            ax = page.axes(MARGIN + 0.55 + index * slot, top + TITLE + 0.15, slot - 0.65, height, f"{arrays.probe}")
            if index == 0:
                draw_title(
                    ax, shown.title + _choice(len(layers), len(arrays.layers), "layers"), 0.55, slot - 0.65, room
                )
            wide, drawn = _is_wide(arrays.layers[layer]), []
            for epoch, values in arrays.layers[layer].items():
                largest = _range(values)[1]
                visible = np.where(values > DARK * largest, values, np.nan) if wide else values
                drawn.append(visible)
                marker = "." if values.size <= 30 else ""
                ax.plot(np.arange(1, values.size + 1), visible, marker=marker, color=colour(norm(epoch)), linewidth=1.0)
            if wide:
                ax.set_yscale("log")
                draw_log_ticks(ax.yaxis, np.concatenate(drawn))
            if not any(np.isfinite(values).any() for values in arrays.layers[layer].values()):
                ax.text(0.5, 0.5, "no number", transform=ax.transAxes, ha="center", va="center", color=QUIET)
            name, size = fit(names[index], slot - 0.65, 8.0, 6.0)
            ax.text(1.0, 1.01, name, transform=ax.transAxes, ha="right", va="bottom", size=size)
            ax.grid(True, color=FAINT, linewidth=0.5)
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(length=2, labelsize=7.5)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            most = max(2, *(values.size for values in arrays.layers[layer].values()))
            ax.set_xlim(1 - 0.05 * most, 1.05 * most)
            ax.set_xlabel("index", size=8.5)
        if len(epochs) > 1:
            bar = page.axes(
                MARGIN + 0.55 + len(layers) * slot - 0.4, top + TITLE + 0.15, 0.12, height, f"{arrays.probe} epochs"
            )
            scale = page.figure.colorbar(ScalarMappable(norm, "viridis"), cax=bar)
            scale.outline.set_visible(False)
            scale.locator = MaxNLocator(5, integer=True)
            bar.set_ylabel("epoch", size=8.5)

    return Row(height + TITLE + 0.15 + BELOW, draw)


def _is_wide(of_layer: Mapping[int, NDArray[np.float64]]) -> bool:
    """Whether a logarithmic scale is due: none negative (but for round-off), over more than a factor of LOG_FROM."""
    values = np.concatenate(list(of_layer.values()))
    low, high = _range(values)
    positive = values[values > 0]
    return positive.size > 0 and low >= -DARK * high and high > LOG_FROM * float(positive.min())


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """The smallest and the largest number among the values, 0 and 0 where there is none."""
    numbers = values[np.isfinite(values)]
    return (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)


def _matrices(shown: Shown) -> Row:
    arrays = shown.arrays
    height = 2.7
    longest = max((inches_of(n, 7.0) for names in arrays.names.values() for n in short_names(names)), default=0.0)
    before = 0.3 + longest
    slot = before + height + 0.7
    fitting = max(1, int((WIDTH - 2 * MARGIN) / slot))
    over_time = max(len(_first_and_last(of_layer)) for of_layer in arrays.layers.values())
    layers = _some(list(arrays.layers), max(1, fitting // over_time))
    looks = [(layer, epoch) for layer in layers for epoch in _first_and_last(arrays.layers[layer])][-fitting:]

    def draw(page: Page, top: float) -> None:
        for index, (layer, epoch) in enumerate(looks):
            values = _ordered(shown, layer, epoch)
            left = MARGIN + index * slot + before
            ax = page.axes(left, top + TITLE + 0.15, height, height, f"{arrays.probe}")
            if index == 0:
                title = shown.title + _choice(len(layers), len(arrays.layers), "layers")
                draw_title(ax, title, before, height, WIDTH - 2 * MARGIN)
            low, high = _range(values)
            colours = Normalize(min(0.0, low), max(1.0, high))
            image = ax.imshow(
                np.ma.masked_invalid(values),
                norm=colours,
                aspect="equal" if values.shape[0] == values.shape[1] else "auto",
                interpolation="nearest",
            )
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MaxNLocator(6, integer=True))
            ax.set_facecolor(GAP)
            names = arrays.names[layer]
            if names:
                kept = range(0, len(names), math.ceil(len(names) / 24))
                short = short_names(names)
                ax.set_yticks(kept, [short[k] for k in kept], size=7.0)
                ax.set_xticks([])
            ax.tick_params(length=2, labelsize=7.0)
            ax.spines[:].set_visible(False)
            ax.set_xlabel(f"{ellipsis(layer, 34)}  epoch {epoch}".strip(), size=8.5)
            bar = page.axes(left + height + 0.08, top + TITLE + 0.15, 0.12, height, f"{arrays.probe} colours")
            page.figure.colorbar(image, cax=bar).outline.set_visible(False)
            bar.tick_params(length=2, labelsize=7.0)

    return Row(height + TITLE + 0.15 + 0.5, draw)


def _ordered(shown: Shown, layer: str, epoch: int) -> NDArray[np.float64]:
    """The matrix as it is shown: similarities of samples in the order of their clustering."""
    values = shown.arrays.layers[layer][epoch]
    if not shown.clustered or len(values) > CLUSTERED:
        return values
    try:
        order = clustered_order(values)
    except ValueError:  # NaN among them, or no square
        return values
    return values[np.ix_(order, order)]


def _first_and_last(of_layer: Mapping[int, NDArray[np.float64]]) -> list[int]:
    return sorted({min(of_layer), max(of_layer)})


def _images(shown: Shown) -> Row:
    arrays = shown.arrays
    layers = _some(list(arrays.layers), LINES)
    epoch = max(epoch for layer in layers for epoch in arrays.layers[layer])
    last = {layer: arrays.layers[layer][max(arrays.layers[layer])] for layer in layers}
    number = max(len(images) for images in last.values())
    places = _spread(number, ACROSS)
    name_room = 0.15 + max(inches_of(name, 8.0) for name in short_names(layers))
    size = min(1.0, (WIDTH - 2 * MARGIN - name_room) / max(len(places), 1))
    grey = colormaps["gray"].with_extremes(bad=GAP)
    labels = next((names for names in arrays.names.values() if names), [])
    caption = 0.2 if labels else 0.0

    def draw(page: Page, top: float) -> None:
        names = short_names(layers)
        chosen = _choice(len(layers), len(arrays.layers), "layers") + _choice(len(places), number, "images")
        page.text(MARGIN, top + 0.12, f"{shown.title}{chosen}, epoch {epoch}", size=11.5, weight="bold")
        for line, layer in enumerate(layers):
            upper = top + TITLE + caption + line * size
            page.text(MARGIN, upper + size / 2, names[line], size=8.0, va="center")
            for place, which in enumerate(places):
                if which >= len(last[layer]):
                    break
                image = last[layer][which]
                left = MARGIN + name_room + place * size
                ax = page.axes(left, upper, size - 0.05, size - 0.05, f"{arrays.probe} {layer}")
                ax.imshow(np.ma.masked_invalid(image), cmap=grey, interpolation="nearest")
                ax.set_axis_off()
                if line == 0 and which < len(labels):
                    page.text(left + size / 2, upper - 0.18, labels[which], size=7.5, color=QUIET, ha="center")

    return Row(len(layers) * size + TITLE + caption + 0.25, draw)
