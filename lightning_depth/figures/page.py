"""A figure addressed in inches, with texts that fit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from lightning_depth.figures.style import INK, MARGIN, WIDTH
from lightning_depth.figures.wording import ellipsis

TITLE, BELOW = 0.52, 0.62  # above and below every panel: its title, and its ticks with the word "epoch"


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
        shown, size = fit(text, WIDTH - 2 * MARGIN, 14.0, 9.0, "bold")
        y = 1.0 - (top + height / 2) / self.height
        self.figure.text(MARGIN / WIDTH, y, shown, va="center", size=size, weight="bold", color="#000000")


def draw_title(ax: Axes, text: str, offset: float, axes_width: float, slot: float) -> None:
    """The panel's title, flush with the left edge of its slot, `offset` inches left of the axes."""
    shown, size = fit(text, slot - 0.25, 11.5, 8.0, "bold")
    ax.set_title(shown, loc="left", x=-offset / axes_width, pad=15, size=size, weight="bold", color=INK)


def fit(text: str, inches: float, size: float, smallest: float, weight: str = "normal") -> tuple[str, float]:
    """The text and the font size with which it is no wider than `inches`: smaller first, then with an ellipsis."""
    shown = " ".join(text.split())
    wide = inches_of(shown, size, weight)
    if wide > inches:
        size, wide = max(smallest, size * inches / wide), max(inches, wide * smallest / size)
    longest = len(shown)
    while wide > 1.001 * inches and longest > 4:
        longest = min(longest - 1, int(longest * inches / wide))
        shown = ellipsis(" ".join(text.split()), longest)
        wide = inches_of(shown, size, weight)
    return shown, size


def inches_of(text: str, size: float, weight: str = "normal") -> float:
    """How wide a text will be on the page."""
    if not text.strip():
        return 0.0
    path = TextPath((0, 0), text, size=size, prop=FontProperties(family="DejaVu Sans", weight=weight))
    # Outlines of this font turn only at their vertices, whose extents are theirs at a tenth of the cost.
    outline = path.vertices[path.codes != Path.CLOSEPOLY, 0]
    return float(np.ptp(outline)) / 72.0 if outline.size else 0.0
