"""Timing by turns: A B C A B C …, so that a machine whose speed drifts treats all alike."""

import ctypes
import gc
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

T = TypeVar("T")


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


def by_turns(timed: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Each entry's own figure, `rounds` times, in turn."""
    found: dict[str, list[T]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, measure in timed.items():
            found[name].append(measure())
    return found


class Cost(NamedTuple):
    """Seconds, by how many bytes the peak of memory rose, and what came out."""

    seconds: float
    bytes: float
    value: Any


def cost(prepare: Callable[..., Callable[[], Any]], *args: Any) -> Cost:
    """What the action `prepare(*args)` costs; making it is not counted.

    On the CPU in a process of its own, so that no memory that somebody freed before can be taken again: the peak of
    the process's resident memory (Linux; else nan). On a GPU, here: the peak of its tensors' memory.
    """
    if DEVICE.type == "cuda":
        return _cost(prepare, *args)
    # Forked from a server that has imported everything and run nothing: fresh, without the seconds of the imports.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["benchmarks.shelf"])
    with ProcessPoolExecutor(1, mp_context=server) as process:
        return process.submit(_cost, prepare, *args).result()


def _cost(prepare: Callable[..., Callable[[], Any]], *args: Any) -> Cost:
    action = prepare(*args)
    # Threads, and the pages of the libraries: nobody's own.
    some = torch.rand(1, 64, 64, 64, device=DEVICE)
    torch.nn.functional.conv2d(some, some[:, :, :3, :3].transpose(0, 1).expand(64, 64, 3, 3))
    for dtype in (torch.float32, torch.float64):
        square = some[0, 0].to(dtype) @ some[0, 1].to(dtype)
        torch.linalg.svdvals(square), torch.linalg.eigvalsh(square)
    gc.collect()
    before = _memory()
    start = now()
    value = action()
    spent = now() - start
    return Cost(spent, _memory(peak=True) - before, value)


def _memory(peak: bool = False) -> float:
    """Bytes in use, or at most since the last call without `peak`."""
    if DEVICE.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return float("nan")
    if not peak:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024.0 * int(status["VmHWM" if peak else "VmRSS"].split()[0])


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
