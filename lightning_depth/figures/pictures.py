"""The arrays that probes read, drawn: spectra over time, matrices, rows of images."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from lightning_depth.figures.clustering import clustered_order
from lightning_depth.figures.page import Part, compose, in_lines, on_axes, side_by_side, words, write_png
from lightning_depth.figures.panels import Array, sentence
from lightning_depth.figures.style import GAP, INK, QUIET, draw_frame, draw_scale, is_wide
from lightning_depth.figures.wording import ellipsis, evenly_spread, short_names
from lightning_depth.results import ArrayKey, Arrays, Declaration

TILES = 6  # as many layers of one kind are drawn, evenly spread over all
LINES, ACROSS = 12, 16  # as many layers and images of a row of images
CLUSTERED = 512  # samples of a similarity matrix that are put in the order of a clustering, 0.3 s
DARK = 1e-6  # a spectrum is drawn down to this share of its largest value


def draw_pictures(pictures: Sequence[Arrays], declared: Mapping[str, Declaration], target: Path) -> Path:
    """A PNG of `pictures` alone; it appears whole or not at all."""
    return write_png(target, lambda: compose(parts_of(pictures, declared)))


def parts_of(pictures: Sequence[Arrays], declared: Mapping[str, Declaration]) -> list[Part]:
    """Titles and pictures of arrays of one, two and three axes, in their order, as their probes declare."""
    makers = {1: _spectra, 2: _matrices, 3: _images}
    parts: list[Part] = []
    for arrays in pictures:
        probe = declared.get(arrays.probe, Declaration(arrays.probe))
        plain = ArrayKey(arrays.key, sentence(f"{arrays.probe}: {arrays.key}"))
        known = next((key for key in probe.arrays if key.name == arrays.key), plain)
        own = "" if known is plain or probe.kind == arrays.probe else f" ({arrays.probe})"
        axes = next(array.ndim for of_layer in arrays.layers.values() for array in of_layer.values())
        if axes in makers:
            chosen, part = makers[axes](arrays, known.clustered)
            parts += [words(f"{known.title}{own}{chosen}", 11.5, 3, above=0.2, weight="bold", color=INK), part]
    return parts


def _some(arrays: Arrays, most: int) -> tuple[list[str], str]:
    """At most `most` layers, evenly spread, the first and the last among them, and what a title says of the choice."""
    every = list(arrays.layers)
    layers = [every[place] for place in evenly_spread(len(every), most)]
    return layers, _choice(len(layers), len(every), "layers")


def _choice(shown: int, of: int, what: str) -> str:
    return f" ({shown} of {of} {what})" if shown < of else ""


def _spectra(arrays: Arrays, _: bool) -> tuple[str, Part]:
    layers, chosen = _some(arrays, TILES)
    epochs = sorted({epoch for layer in layers for epoch in arrays.layers[layer]})
    colours = ScalarMappable(Normalize(epochs[0], max(epochs[-1], epochs[0] + 1)), "viridis")
    columns: list[list[Part]] = []
    for layer, name in zip(layers, short_names(layers, 28), strict=True):
        draw = partial(draw_spectrum, of_layer=arrays.layers[layer], name=name, unit=arrays.key, colours=colours)
        columns.append([on_axes(2.8, arrays.probe, draw)])
    bar = on_axes(2.8, f"{arrays.probe} epochs", partial(_draw_epochs, colours=colours))
    blank = max(0.01, 3.0 - len(layers))
    return chosen, side_by_side([*columns, [bar] if len(epochs) > 1 else [], []], [*(1.0 for _ in layers), 0.4, blank])


def _draw_epochs(ax: Axes, colours: ScalarMappable) -> None:
    ax.set_box_aspect(16)
    ax.set_anchor("W")
    bar = ax.figure.colorbar(colours, cax=ax, label="epoch", ticks=MaxNLocator(5, integer=True))
    bar.outline.set_visible(False)


def draw_spectrum(ax: Axes, of_layer: Mapping[int, Array], name: str, unit: str, colours: ScalarMappable) -> None:
    """The values of one layer's spectrum in their order, a line an epoch in the colour of that epoch."""
    finite = {epoch: np.where(np.isfinite(values), values, np.nan) for epoch, values in of_layer.items()}
    largest = {epoch: np.nanmax(values, initial=0.0) for epoch, values in finite.items()}
    visible = {epoch: np.where(values > DARK * largest[epoch], values, np.nan) for epoch, values in finite.items()}
    values, drawn = (np.concatenate(list(lines.values())) for lines in (finite, visible))
    # Zeros, and round-off below them, keep no spectrum from a logarithmic scale.
    wide = is_wide(drawn) and bool(np.nanmin(values) >= -DARK * max(largest.values()))
    for epoch, line in (visible if wide else of_layer).items():
        marker = "." if line.size <= 30 else ""
        ax.plot(np.arange(1, line.size + 1), line, marker=marker, color=colours.to_rgba(np.array(epoch)), linewidth=1.0)
    ax.set_ylabel(ellipsis(unit.replace("_", " "), 18) + draw_scale(ax, "y", drawn, wide), size=8.0)
    if np.isnan(values).all():
        ax.text(0.5, 0.5, "no number", transform=ax.transAxes, ha="center", va="center", color=QUIET)
    draw_frame(ax)
    ax.set_title(name, loc="right", size=8.0)
    ax.tick_params(labelsize=7.5)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlabel("index")


def _matrices(arrays: Arrays, clustered: bool) -> tuple[str, Part]:
    """Matrices of each layer at the first and the last epoch; as many layers as there is room for."""
    longest = max((len(name) for names in arrays.names.values() for name in short_names(names)), default=0)
    across = 4 if longest <= 12 else 3
    first_and_last = {layer: sorted({min(looks), max(looks)}) for layer, looks in arrays.layers.items()}
    layers, chosen = _some(arrays, max(1, across // max(map(len, first_and_last.values()))))
    parts = []
    for layer, epoch in ((name, look) for name in layers for look in first_and_last[name]):
        values = arrays.layers[layer][epoch]
        values = _clustered(values) if clustered else values
        caption = f"{ellipsis(layer, 34)}  epoch {epoch}".strip()
        draw = partial(draw_matrix, values=values, names=arrays.names[layer], caption=caption)
        parts.append(on_axes(3.2, arrays.probe, draw))
    return chosen, in_lines(parts, across)


def draw_matrix(ax: Axes, values: Array, names: Sequence[str], caption: str) -> None:
    """A matrix in colours that hold 0 and 1, with the names of its rows, if it has any, a colour bar and a caption."""
    shown = np.ma.masked_invalid(values)
    norm = Normalize(np.min(shown.compressed(), initial=0.0), np.max(shown.compressed(), initial=1.0))
    image = ax.imshow(shown, norm=norm, aspect="auto")
    ax.set_box_aspect(1)
    ax.set_anchor("W")
    ax.set_facecolor(GAP)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    if names:
        named, short = range(0, len(names), math.ceil(len(names) / 20)), short_names(names)
        ax.set_yticks(named, [short[row] for row in named])
        ax.set_xticks([])
    ax.set_xlabel(caption, size=8.5)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0.0, 0.045, 1.0)))
    bar.outline.set_visible(False)
    for own in (ax, bar.ax):
        own.tick_params(length=2, labelsize=7.0)


def _clustered(values: Array) -> Array:
    """Similarities of samples in the order of their clustering."""
    if len(values) > CLUSTERED:
        return values
    try:
        order = clustered_order(values)
    except ValueError:  # NaN among them, or no square
        return values
    return values[np.ix_(order, order)]


def _images(arrays: Arrays, _: bool) -> tuple[str, Part]:
    """Images of each layer at its last epoch."""
    layers, chosen = _some(arrays, LINES)
    last = {name: arrays.layers[name][max(arrays.layers[name])] for name in layers}
    number = max(map(len, last.values()))
    places = evenly_spread(number, ACROSS)
    chosen += _choice(len(places), number, "images")
    names = next((names for names in arrays.names.values() if names), [])
    draw = partial(draw_images, images=last, places=places, names=names)
    height = 0.3 + 0.2 * bool(names) + len(layers) * min(1.0, 14.4 / max(len(places), 1))
    epoch = max(epoch for layer in layers for epoch in arrays.layers[layer])
    return f"{chosen}, epoch {epoch}", on_axes(height, arrays.probe, draw)


def draw_images(ax: Axes, images: Mapping[str, Array], places: Sequence[int], names: Sequence[str]) -> None:
    """Rows of images, one a layer, from the upper left corner; each image has its own range of grey.

    `images` has layer -> number x height x width; of each layer those at `places` are shown, with any `names`.
    """
    ax.set(aspect="equal", anchor="NW")
    grey = colormaps["gray"].with_extremes(bad=GAP)
    for line, of_layer in enumerate(images.values()):
        for place, image in enumerate(of_layer[which] for which in places if which < len(of_layer)):
            height, width = 0.48 * np.array(image.shape) / max(image.shape)
            extent = (place + 0.5 - width, place + 0.5 + width, line + 0.5 + height, line + 0.5 - height)
            ax.imshow(np.ma.masked_invalid(image), cmap=grey, extent=extent)
    ax.set_xlim(0, max(len(places), 1))
    ax.set_ylim(len(images), 0)
    ax.set_yticks(np.arange(len(images)) + 0.5, short_names(list(images)), size=8.0)
    captions = {place + 0.5: ellipsis(names[which], 12) for place, which in enumerate(places) if which < len(names)}
    ax.set_xticks(list(captions), list(captions.values()), size=7.5)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
