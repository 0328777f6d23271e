"""Which direction of a metric is the better one: declared here, written into summaries, and guessed nowhere else."""

import re
from collections.abc import Iterable
from typing import Literal

Direction = Literal["min", "max"]
LOWER = frozenset(["loss", "error", "err", "inaccuracy", "perplexity", "nll", "mse", "mae", "rmse"])
HIGHER = frozenset(["acc", "accuracy", "auc", "auroc", "f1", "precision", "recall", "r2"])


def better(metric: str) -> Direction | None:
    """The better direction of a metric, by the field's words in its name; None: it has none that is known.

    >>> better("val/acc"), better("val/inaccuracy"), better("val/accumulated_error"), better("grad_norm")
    ('max', 'min', 'min', None)
    """
    words = words_of(metric)
    lower, higher = bool(words & LOWER), bool(words & HIGHER)
    return None if lower == higher else "min" if lower else "max"


def directions(metrics: Iterable[str]) -> dict[str, Direction]:
    """The better direction of each of these metrics that has one."""
    return {metric: direction for metric in metrics if (direction := better(metric)) is not None}


def words_of(metric: str) -> set[str]:
    """The words in the name of a metric.

    >>> sorted(words_of("val/top5_acc"))
    ['acc', 'top5', 'val']
    """
    return set(re.split(r"[^a-z0-9]+", metric.lower()))
