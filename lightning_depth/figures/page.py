"""A page: parts one below another and side by side in matplotlib's subfigures, each filled by what is drawn there."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import LayoutEngine
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox

from lightning_depth.figures.style import DPI, FALLBACK, QUIET, REDUCED, STYLE
from lightning_depth.figures.wording import SEPARATOR, ellipsis
from lightning_depth.results import atomic_file

WIDTH, PAD = 16.0, 0.25  # inches: of the page, and of the white on the left and right of whatever stands on it


class Part(NamedTuple):
    """What is drawn into a subfigure that is `height` inches high."""

    height: float
    draw: Callable[[SubFigure], object]


class Filling(LayoutEngine):
    """Every subfigure is filled by its first axes, with its ticks, labels and title and the axes that follow it.

    Constrained layout does the same for a few axes, but its solver takes a minute for a page of fifty, and it moves
    nested subfigures over each other.
    """

    _adjust_compatible, _colorbar_gridspec = True, False

    def execute(self, fig: Figure) -> None:
        """Place all axes."""
        places = dict.fromkeys(ax.figure for ax in fig.axes)
        for figure in [*places, *places]:  # twice, for where a title breaks depends on where it stands
            first, *_ = axes = [ax for ax in fig.axes if ax.figure is figure]
            whole = Bbox.union([box for ax in axes if (box := ax.get_tightbbox(for_layout_only=True)) is not None])
            inch, box, free = figure.dpi, first.bbox, figure.bbox
            left, right = free.x0 + PAD * inch + box.x0 - whole.x0, free.x1 - PAD * inch + box.x1 - whole.x1
            lower, upper = free.y0 + 0.1 * inch + box.y0 - whole.y0, free.y1 - 0.15 * inch + box.y1 - whole.y1
            wanted = Bbox([[left, lower], [max(right, left + 1.0), max(upper, lower + 1.0)]])
            first.set_position(wanted.transformed(figure.transSubfigure.inverted()))


def compose(parts: Sequence[Part]) -> Figure:
    """The page of `parts`, one below another."""
    height = math.fsum(part.height for part in parts)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=Filling())
    _stack(figure, parts, height)
    return figure


def write_png(target: Path, draw: Callable[[], Figure]) -> Path:
    """Draw a figure into the file `target`, which appears whole or not at all; its path again."""
    with mpl.rc_context(STYLE), atomic_file(target) as unfinished:
        draw().savefig(unfinished, format="png")
    return target


def _stack(figure: Figure | SubFigure, parts: Sequence[Part], height: float) -> None:
    heights = [part.height for part in parts]
    below = max(1e-3, height - math.fsum(heights))
    places = figure.subfigures(len(parts) + 1, 1, squeeze=False, height_ratios=[*heights, below])[:, 0]
    for part, place in zip(parts, places, strict=False):
        part.draw(place)


def side_by_side(columns: Sequence[Sequence[Part]], widths: Sequence[float] | None = None) -> Part:
    """Columns of parts, as wide as each other or in the proportions `widths`."""
    height = max(math.fsum(part.height for part in column) for column in columns)

    def draw(figure: SubFigure) -> None:
        places = figure.subfigures(1, len(columns), squeeze=False, width_ratios=widths)[0]
        for column, place in zip(columns, places, strict=True):
            _stack(place, column, height)

    return Part(height, draw)


def in_lines(parts: Sequence[Part], across: int) -> Part:
    """Parts of one height in lines of `across`."""
    return side_by_side([parts[place::across] for place in range(across)])


def on_axes(height: float, label: str, draw: Callable[[Axes], object]) -> Part:
    """A part of one axes, which is found again by its label."""
    return Part(height, lambda figure: draw(figure.add_subplot(label=label)))


def words(text: str, size: float, lines: int = 1, width: float = WIDTH, above: float = 0.05, **style: Any) -> Part:
    """A text, as high as it needs, with an ellipsis where it needs more than `lines` lines.

    The font's `size` is in points, the `width` of the part and the white `above` the text in inches; `style` has more
    properties of a matplotlib text.
    """
    shown = _wrapped(text.replace("\n", " "), width - 2 * PAD, size, lines, style.get("weight", "normal"))
    height = above + (shown.count("\n") + 1.1) * 1.25 * size / 72 if text else 1e-3
    style = {"color": QUIET, "size": size, "va": "top", **style}
    return Part(height, lambda figure: figure.text(PAD / width, 1.0 - above / height, shown, **style))


def band(text: str) -> Part:
    """A coloured band over the whole width with a text that must not be overlooked."""
    colour = FALLBACK if text.startswith("FALLBACK") else REDUCED
    said = words(text, 14.0, lines=3, above=0.12, weight="bold", color="#000000")

    def draw(figure: SubFigure) -> None:
        figure.set_facecolor(colour)
        said.draw(figure)

    return Part(said.height + 0.04, draw)


def _wrapped(text: str, inches: float, size: float, lines: int, weight: str) -> str:
    """`text` in lines that end between its parts, and inside a part only where that alone is longer than a line."""
    font = FontProperties(family="DejaVu Sans", weight=weight)

    def fits(said: str) -> bool:
        return not said.strip() or bool(TextPath((0, 0), said, size, font).get_extents().width <= 72 * inches)

    found = [""]
    for part in text.split(SEPARATOR):
        for place, word in enumerate([part] if fits(part) else part.split(" ")):
            while not fits(word):
                word = ellipsis(word, 9 * len(word) // 10)
            longer = found[-1] + (" " if place else SEPARATOR) + word if found[-1] else word
            found = [*found[:-1], longer] if fits(longer) else [*found, word]
    shown = found[:lines]
    while len(found) > lines and not fits(f"{shown[-1]} …"):
        shown[-1] = shown[-1].rpartition(" ")[0]
    return "\n".join(shown) + " …" * (len(found) > lines)
