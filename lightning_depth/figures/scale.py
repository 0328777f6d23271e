"""When an axis or a colour bar is logarithmic, and which values it names then."""

import math
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lightning_depth.figures.panels import Array
from lightning_depth.figures.wording import tick_label

LOG_FROM = 20.0  # positive values that span more than this factor are drawn on a logarithmic scale


def is_wide(values: Array) -> bool:
    """Whether a logarithmic scale is due: all positive and spanning more than a factor of `LOG_FROM`."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() > LOG_FROM * finite.min())


def draw_log_ticks(axis: Any, values: Array) -> None:
    """Round values as ticks of a logarithmic axis over `values`, written without exponents."""
    finite = values[np.isfinite(values)]
    decades = math.log10(finite.max() / finite.min())
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,), numticks=9))
    axis.set_major_formatter(FuncFormatter(tick_label))
    axis.set_minor_formatter(NullFormatter())
