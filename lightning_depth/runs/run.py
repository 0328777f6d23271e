"""A run as a value: where it lives, what it does, from where it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One network's training.

    Attributes:
        directory: the run's own; no other run ever gets it.
        config: the whole config as plain values.
        checkpoint: from which it goes on, or starts; None: from scratch.
    """

    directory: Path
    config: Mapping[str, Any]
    checkpoint: Path | None = None
