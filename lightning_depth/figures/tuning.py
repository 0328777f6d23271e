"""The picture of a search: what each value gave, from `trials.csv` alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lightning_depth.errors import UserError
from lightning_depth.figures.page import Page, fit
from lightning_depth.figures.scale import draw_log_ticks, is_wide
from lightning_depth.figures.style import (
    ALARM,
    DPI,
    FAINT,
    FALLBACK,
    INK,
    MARGIN,
    QUIET,
    STYLE,
    TRAIN,
    VALIDATION,
    WIDTH,
)
from lightning_depth.figures.wording import number
from lightning_depth.results import TRIALS, Table, atomic_file

DIVERGED = "diverged"


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


def trials_of(rows: Sequence[Mapping[str, Any]]) -> list[Trial]:
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

    The file appears whole or not at all.

    Raises:
        UserError: there is no table, or it has no row.
    """
    path, target = directory / TRIALS, directory / "tune.png"
    if not path.is_file():
        raise UserError(f"{directory} is no directory of a search: it has no {TRIALS}.")
    rows = Table(path).rows()
    if not rows:
        raise UserError(f"{path} has no row yet.")
    with mpl.rc_context(STYLE), atomic_file(target) as unfinished:
        draw(rows).savefig(unfinished, format="png", dpi=DPI)
    return target


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The picture of the rows of a table."""
    trials = trials_of(rows)
    key, data = str(rows[0]["key"]), next((str(row["data"]) for row in rows if row["data"]), "")
    metric = next((str(row["metric"]) for row in rows if row["metric"]), "metric")
    best = best_of(trials, next((str(row["direction"]) for row in rows if row["direction"]), "max"))
    band = 0.42 if data.startswith("FALLBACK") else 0.0
    height = 5.6 + band
    page = Page(Figure(figsize=(WIDTH, height), dpi=DPI), height)
    if band:
        page.band(0.0, band, f"{data.split(':')[0].replace('FALLBACK', 'FALLBACK DATA:')}", FALLBACK)
    folds = max(len(trial.results) for trial in trials)
    title, size = fit(f"{metric} against {key}", WIDTH - 2 * MARGIN, 14.0, 9.0, "bold")
    page.text(MARGIN, band + 0.2, title, size=size, weight="bold")
    lost = sum(trial.diverged for trial in trials)
    said = [
        f"{len(trials)} trials",
        f"{folds} folds",
        *([f"{lost} diverged"] if lost else []),
        *([data] if data else []),
    ]
    if best is not None:
        said.insert(0, f"best {number(best.value)}: {number(best.mean)}")
    shown, size = fit("  ·  ".join(said), WIDTH - 2 * MARGIN, 9.0, 7.0)
    page.text(MARGIN, band + 0.52, shown, size=size, color=QUIET)

    ax = page.axes(MARGIN + 0.5, band + 0.95, WIDTH - 2 * MARGIN - 0.5, 3.9, metric)
    ax.grid(True, color=FAINT, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    values = np.array([trial.value for trial in trials])
    if is_wide(values):
        ax.set_xscale("log")
        draw_log_ticks(ax.xaxis, values)
    good = [trial for trial in trials if not trial.diverged]
    results = np.array([result for trial in good for result in trial.results])
    if results.size and is_wide(results):
        ax.set_yscale("log")
        draw_log_ticks(ax.yaxis, results)
    at = [trial.value for trial in good for _ in trial.results]
    ax.plot(at, results, "o", color=TRAIN, markersize=3.5, alpha=0.6, label="a fold", linestyle="none")
    ordered = sorted(good, key=lambda trial: trial.value)
    ax.plot(
        [trial.value for trial in ordered],
        [trial.mean for trial in ordered],
        "-o",
        color=INK,
        linewidth=0.8,
        markersize=5,
        label="mean over the folds",
    )
    if best is not None:
        ax.plot([best.value], [best.mean], "o", color="white", markeredgecolor=VALIDATION, markersize=10, zorder=4)
        ax.axvline(best.value, color=VALIDATION, linewidth=0.8, linestyle=(0, (4, 3)), label=f"best: {best.value:g}")
    for index, trial in enumerate(trial for trial in trials if trial.diverged):
        ax.plot(
            [trial.value],
            [0.02],
            "x",
            color=ALARM,
            transform=ax.get_xaxis_transform(),
            label="diverged" if index == 0 else "_",
        )
    ax.set_xlabel(key, size=9)
    ax.set_ylabel(metric, size=9)
    ax.legend(frameon=False, fontsize=8.5, loc="best")
    return page.figure
