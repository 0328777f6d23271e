"""The picture of a search: what each value gave, from its table, and over which values it searched."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_depth.errors import UserError
from lightning_depth.figures import style
from lightning_depth.figures.page import band, compose, on_axes, words, write_png
from lightning_depth.figures.panels import section
from lightning_depth.figures.wording import joined, number, warnings
from lightning_depth.results import CONFIG, SEARCH, TRIALS, Table, read_config

DIVERGED = "diverged"
Row = Mapping[str, Any]


class Trial(NamedTuple):
    """One value and what the folds made of it; `results` is empty where it diverged."""

    number: int
    value: float
    results: list[float]
    diverged: bool

    @property
    def mean(self) -> float:
        """The mean over the folds."""
        return fmean(self.results)


def trials_of(rows: Sequence[Row]) -> list[Trial]:
    """The trials in the rows of a table, whole or not."""
    found = []
    for trial in sorted({int(row["trial"]) for row in rows}):
        own = [row for row in rows if int(row["trial"]) == trial]
        diverged = any(row["status"] == DIVERGED for row in own)
        results = [] if diverged else [float(row["result"]) for row in own]
        found.append(Trial(trial, float(own[0]["value"]), results, diverged))
    return found


def best_of(trials: Sequence[Trial], direction: str) -> Trial | None:
    """The trial of the best mean, the first of equals; None where all diverged."""
    sign = 1 if direction == "max" else -1
    return max((t for t in trials if not t.diverged), key=lambda trial: sign * trial.mean, default=None)


def draw_tuning(directory: Path) -> Path:
    """Draw `tune.png` from the `trials.csv` in `directory`: every fold, every trial's mean, the best, what diverged.

    The search's axis and a reduced setting are read from its files, where they are there. The picture appears whole or
    not at all. A `UserError` where there is no table, or it has no row.
    """
    path = directory / TRIALS
    if not path.is_file():
        raise UserError(f"{directory} is no directory of a search: it has no {TRIALS}.")
    if not (rows := Table(path).rows()):
        raise UserError(f"{path} has no row yet.")
    config, search = (read_config(directory, name) if (directory / name).is_file() else {} for name in (CONFIG, SEARCH))
    return write_png(directory / "tune.png", lambda: draw(rows, search, section(config, "run")))


def draw(rows: Sequence[Row], search: Row, run: Row) -> Figure:
    """The picture of the rows of a table; `search` may have `low`, `high` and `log`, and `run` may have `reduced`."""
    trials = trials_of(rows)
    columns = ("metric", "direction", "data")
    metric, direction, data = (next((str(row[column]) for row in rows if row[column]), "") for column in columns)
    key, metric = str(rows[0]["key"]), metric or "metric"
    best = best_of(trials, direction or "max")
    lost = sum(trial.diverged for trial in trials)
    folds = max(len(trial.results) for trial in trials)
    top = best and f"best {number(best.value)}: {number(best.mean)}"
    said = joined([top, f"{len(trials)} trials", f"{folds} folds", lost and f"{lost} diverged", data])
    warning = data.split(":")[0].replace("FALLBACK", "FALLBACK DATA:")
    bands = map(band, [*([warning] if data.startswith("FALLBACK") else []), *warnings({"reduced": run.get("reduced")})])
    title = words(f"{metric} against {key}", 14.0, above=0.2, weight="bold", color=style.INK)
    plot = partial(draw_trials, trials=trials, best=best, key=key, metric=metric, search=search)
    return compose([*bands, title, words(said, 9.0, lines=6), on_axes(4.6, metric, plot)])


def draw_trials(ax: Axes, trials: Sequence[Trial], best: Trial | None, key: str, metric: str, search: Row) -> None:
    """Every fold, the mean of every trial, the best, and what diverged, over the values that were searched."""
    style.draw_frame(ax)
    good = sorted((trial for trial in trials if not trial.diverged), key=lambda trial: trial.value)
    ends = (float(search[end]) for end in ("low", "high") if end in search)
    values, results = np.array([*ends, *(t.value for t in trials)]), np.array([r for t in good for r in t.results])
    scale = style.draw_scale(ax, "x", values, search.get("log", style.is_wide(values)))
    ax.update_datalim([(value, 0.0) for value in values], updatey=False)
    results_scale = style.draw_scale(ax, "y", results, style.is_wide(results))
    folds = [trial.value for trial in good for _ in trial.results]
    ax.plot(folds, results, "o", color=style.TRAIN, markersize=3.5, alpha=0.6, label="a fold", linestyle="none")
    own: Any = {"color": style.INK, "linewidth": 0.8, "markersize": 5, "label": "mean over the folds"}
    ax.plot([trial.value for trial in good], [trial.mean for trial in good], "-o", **own)
    if best is not None:
        style.draw_ring(ax, best.value, best.mean, size=10.0)
        ax.axvline(best.value, color=style.VALIDATION, label=f"best: {best.value:g}", **style.DASHED)
    if lost := [trial.value for trial in trials if trial.diverged]:
        low = ax.get_xaxis_transform()
        ax.plot(lost, [0.02] * len(lost), "x", color=style.ALARM, transform=low, label="diverged", linestyle="none")
    ax.set(xlabel=key + scale, ylabel=metric + results_scale)
    ax.legend(loc="best")
