"""Timing by turns: A B C A B C …, so that a machine whose speed drifts treats all alike."""

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Seconds, after everything queued on the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(action: Callable[[], object]) -> float:
    gc.collect()
    start = now()
    action()
    return now() - start


def by_turns(timed: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each entry's own figure, `rounds` times, in turn."""
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, measure in timed.items():
            found[name].append(measure())
    return found


def ratio(over: list[float], under: list[float]) -> str:
    """Median of the ratios round by round, with their range."""
    pairs = sorted(a / b for a, b in zip(over, under, strict=True))
    return f"{statistics.median(pairs):.2f} ({pairs[0]:.2f}-{pairs[-1]:.2f})"


def machine() -> str:
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"
