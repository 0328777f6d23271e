"""Independent random streams that are pure functions of a seed and a path, such as `(seed, "order", epoch)`."""

import hashlib
import os

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


def run_seed(seed: int | None) -> int:
    """`seed`, or where it is None the run's own: that of `seed_everything`, 0 where nobody called it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
