"""Looking without disturbing: buffers and random generators are put back, and nothing is recorded for gradients."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Put the buffers of `network` and every random generator back as they were."""
    buffers = [(b, b._version, b.detach().clone()) for b in network.buffers() if not b.is_inference()]
    with same_randomness():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put the generators of Python, numpy and torch (all devices in use) back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
