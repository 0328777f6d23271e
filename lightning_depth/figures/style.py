"""What all pictures share: colours, matplotlib's settings, titles, and when a scale is logarithmic."""

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lightning_depth.figures.panels import Array
from lightning_depth.figures.wording import ellipsis, tick_label

DPI = 110
LOG_FROM = 20.0  # positive values that span more than this factor are drawn on a logarithmic scale

INK, QUIET, FAINT, GAP = "#1b1f24", "#5f6873", "#d9dde2", "#e9ebee"
TRAIN, CURRENT, VALIDATION, TEST, PROBE = "#7b90ab", "#43587a", "#c8450c", "#00795c", "#0b5fa5"
FALLBACK, REDUCED, ALARM = "#ffbf00", "#fff0c2", "#b3001b"
DASHED: Any = {"linewidth": 0.8, "linestyle": (0, (4, 3))}

# A user's matplotlibrc must not change the page, and a "$" in a layer's name is no formula.
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.linewidth": 0.8,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "image.origin": "upper",
    "image.interpolation": "nearest",
    "savefig.bbox": None,
    **dict.fromkeys(["text.usetex", "text.parse_math", "legend.frameon"], False),
    **dict.fromkeys(["axes.axisbelow", "axes.unicode_minus"], True),
    **dict.fromkeys(["axes.facecolor", "figure.facecolor"], "white"),
    **dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], QUIET),
    **dict.fromkeys(["font.size", "axes.labelsize"], 9.0),
    **dict.fromkeys(["legend.fontsize", "xtick.labelsize", "ytick.labelsize"], 8.5),
    **dict.fromkeys(["xtick.major.size", "ytick.major.size"], 3.0),
}


def draw_ring(ax: Axes, x: float, y: float, size: float) -> None:
    """A ring around the best."""
    ax.plot([x], [y], "o", color="white", markeredgecolor=VALIDATION, markersize=size, zorder=4)


def draw_title(ax: Axes, text: str) -> None:
    """The panel's title, in lines that end where its figure ends, above a line of small print."""
    words = " ".join(ellipsis(word, 28) for word in text.split())
    title: Any = ax.set_title(ellipsis(words, 120), loc="left", pad=19, size=11.0, weight="bold", wrap=True)
    to_the_edge = title._get_wrap_line_width
    title._get_wrap_line_width = lambda: to_the_edge() - 0.2 * DPI


def draw_frame(ax: Axes) -> None:
    """A grid, and no frame above and to the right."""
    ax.grid(True)
    ax.spines[["top", "right"]].set_visible(False)


def is_wide(values: Array) -> bool:
    """Whether a logarithmic scale is due: all positive and spanning more than a factor of `LOG_FROM`."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() > LOG_FROM * finite.min())


def draw_scale(ax: Axes, which: Literal["x", "y"], values: Array, logarithmic: bool) -> str:
    """A scale with round ticks over `values`, written without exponents, and what its label has to say of it."""
    ax.set(**{f"{which}scale": "log" if logarithmic else "linear"})
    axis: Axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if logarithmic:
        finite = values[np.isfinite(values)]
        decades = np.log10(finite.max() / finite.min())
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,), numticks=9))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(tick_label)
    return ", log scale" if logarithmic else ""
