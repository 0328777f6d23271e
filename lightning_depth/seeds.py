"""Independent random streams that are pure functions of a seed and a path, such as `(seed, "order", epoch)`."""

import hashlib
from typing import Protocol, runtime_checkable

import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream named by `path`, the same on every machine and device.

    Two different paths give unrelated streams (SHA-256), so the order of epoch 3 of seed 0 says nothing about the
    order of epoch 0 of seed 3.

    >>> derive(0, "order", 3) == derive(0, "order", 3), derive(0, "order", 3) == derive(3, "order", 0)
    (True, False)
    """
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream named by `path`; it does not touch torch's global generator."""
    return torch.Generator().manual_seed(derive(seed, *path))


@runtime_checkable
class Seeded(Protocol):
    """What draws from the run's seed where it has none of its own: models and data modules.

    Whoever trains hands the seed on, before anything is drawn or set up. Nothing reads it from the environment, so runs
    of different seeds in one process do not mix.
    """

    def use_run_seed(self, seed: int) -> None:
        """Take the run's seed."""
