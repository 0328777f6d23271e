"""The page's size, its colours and matplotlib's settings."""

from typing import Any

WIDTH, TALLEST, DPI = 16.0, 20.0, 110  # inches, inches, dots per inch
MARGIN = 0.55

INK, QUIET, FAINT, GAP = "#1b1f24", "#5f6873", "#d9dde2", "#e9ebee"
TRAIN, VALIDATION, TEST, PROBE = "#7b90ab", "#c8450c", "#00795c", "#0b5fa5"
FALLBACK, REDUCED, ALARM = "#ffbf00", "#fff0c2", "#b3001b"

# A user's matplotlibrc must not change the page, and a "$" in a layer's name is no formula.
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.usetex": False,
    "text.parse_math": False,
    "text.color": INK,
    "axes.facecolor": "white",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "figure.facecolor": "white",
    "image.origin": "upper",
    "savefig.bbox": None,
}
