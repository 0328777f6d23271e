"""A search for the best value of one key: its settings, its table, and what to try next.

The table is the only memory. The next value is a function of its rows and the seed, so a search that goes on after a
kill tries what it would have tried.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_depth.errors import UserError
from lightning_depth.figures.directions import better
from lightning_depth.figures.tuning import DIVERGED, Trial, trials_of
from lightning_depth.results import Table
from lightning_depth.seeds import derive

COLUMNS = ("trial", "fold", "key", "value", "metric", "direction", "result", "seconds", "status", "data")
RANDOM_FIRST = 5  # trials drawn at random before a Gaussian process is fitted, as in mori2020's package


@dataclass(frozen=True)
class Search:
    """What is searched: `key` of the whole config; `seed` is of what is tried; see `python main.py tune --help`."""

    key: str
    low: float
    high: float
    log: bool = True
    trials: int = 20
    folds: int = 10
    metric: str | None = None
    direction: Literal["max", "min"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"--tune.low {self.low:g} must be below --tune.high {self.high:g}.")
        if self.log and self.low <= 0:
            needs = "a logarithmic scale needs it above 0.\nOr give --tune.log false."
            raise UserError(f"--tune.low {self.low:g}: {needs}")
        if self.trials < 1:
            raise UserError(f"--tune.trials {self.trials}: it must be at least 1.")
        if self.folds < 2:
            raise UserError(f"--tune.folds {self.folds}: it must be at least 2, one to validate on.")

    def direction_of(self, metric: str) -> Literal["max", "min"]:
        """Whether `metric` should be high or low."""
        direction = self.direction or better(metric)
        if direction is None:
            raise UserError(f"Whether {metric} should be high or low is not known.\nGive --tune.direction max, or min.")
        return direction


class Trials:
    """The rows of `trials.csv`: one for each fold that has ended. A torn last line, left by a kill, is taken out."""

    def __init__(self, path: Path) -> None:
        self.table = Table(path, COLUMNS)
        self.table.drop_torn_line()
        self.rows: list[dict[str, Any]] = list(self.table.rows())

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a fold."""
        self.table.append([row])
        self.rows = list(self.table.rows())

    def value(self, trial: int) -> float | None:
        """What a trial tries, if one of its folds has ended."""
        return next((float(row["value"]) for row in self.rows if int(row["trial"]) == trial), None)

    def missing(self, trial: int, folds: int) -> list[int]:
        """The folds of a trial that are still to be run: none where one has diverged."""
        rows = [row for row in self.rows if int(row["trial"]) == trial]
        if any(row["status"] == DIVERGED for row in rows):
            return []
        return [fold for fold in range(folds) if fold not in {int(row["fold"]) for row in rows}]

    def ended(self, folds: int) -> list[Trial]:
        """The trials that have nothing left to run, in their order."""
        return [trial for trial in trials_of(self.rows) if not self.missing(trial.number, folds)]

    @property
    def metric(self) -> str | None:
        """By what the trials so far were judged; None where none has finished."""
        return next((str(row["metric"]) for row in self.rows if row["metric"]), None)


def scored(trials: Sequence[Trial], direction: str) -> list[tuple[float, float]]:
    """(value, mean) of each trial; one that diverged is as bad as the worst of the others.

    >>> scored([Trial(0, 0.1, [0.5, 0.7], False), Trial(1, 9.0, [], True)], "max")
    [(0.1, 0.6), (9.0, 0.6)]
    """
    means = [trial.mean for trial in trials if not trial.diverged]
    worst = (min if direction == "max" else max)(means, default=0.0)
    return [(trial.value, worst if trial.diverged else trial.mean) for trial in trials]


def suggestion(search: Search, number: int, history: Sequence[tuple[float, float]], direction: str) -> float:
    """What trial `number` tries: the value of most expected improvement under a Gaussian process (Snoek et al. 2012).

    The first few are drawn at random. A function of the arguments alone, rounded to four digits; 1 to 2 s of imports.
    `history` has (value, mean) of the trials before it; `direction` is "max" or "min".
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this sampler calls itself experimental
        seed = derive(search.seed, "tune", number) % 2**31
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=RANDOM_FIRST)
        study = optuna.create_study(sampler=sampler, direction="maximize" if direction == "max" else "minimize")
        range_ = optuna.distributions.FloatDistribution(search.low, search.high, log=search.log)
        for value, mean in history:
            study.add_trial(optuna.trial.create_trial(params={"x": value}, distributions={"x": range_}, value=mean))
        drawn = study.ask({"x": range_}).params["x"]
    return min(max(float(f"{drawn:.4g}"), search.low), search.high)
