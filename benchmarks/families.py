"""Training samples a second of each family beside a bare PyTorch loop, and how long made data take to make."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.measure import DEVICE, by_turns, now, ratio, seconds
from benchmarks.throughput import BATCH, Noise, Stopwatch, first, trainer
from lightning_depth.data import (
    GaussianInputs,
    Ising,
    KGlobal,
    KLocal,
    LowRankLeastSquares,
    ToyPixels,
)
from lightning_depth.data.base.memory import AbstractMemoryData
from lightning_depth.models import MLP, ConvNet, DeepLinear, FullyConv, HuhCNN
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.losses import sample_losses
from lightning_depth.models.shapes import Shapes
from lightning_depth.training.guards import FiniteLoss, StepSeed, SyncBuffers


class Case(NamedTuple):
    """What is trained: the family, its data, how many steps, and how many of them at once (a row each)."""

    family: Callable[..., AbstractFamily]
    data: Callable[[], AbstractMemoryData]
    steps: int
    at_once: tuple[int, ...] = (1,)


CASES = {
    "FullyConv, depth 5, width 32": Case(partial(FullyConv, depth=5, width=32), partial(Noise, batch_size=BATCH), 12),
    "ConvNet, depth 5, 32 channels": Case(
        partial(ConvNet, depth=5, channels=32, output="classes"), partial(Noise, batch_size=BATCH), 10
    ),
    "HuhCNN, width 16": Case(partial(HuhCNN, width=16), partial(Noise, batch_size=BATCH), 40, (1, 4)),
    "MLP, 2 x 1,024, images": Case(partial(MLP, depth=2, width=1024), partial(Noise, batch_size=BATCH), 40, (1, 4)),
    "MLP, 1 x 64, 2-local labels of 100 inputs": Case(
        partial(MLP, depth=1, width=64),
        partial(KLocal, dimension=100, k=2, train_samples=50_000, batch_size=BATCH),
        320,
        (1, 4, 16, 32),
    ),
    "DeepLinear, 4 x 32, least squares": Case(
        partial(DeepLinear, depth=4, width=32),
        partial(LowRankLeastSquares, train_samples=50_000, batch_size=BATCH),
        320,
        (1, 4, 16, 32),
    ),
}


def ours(case: Case, data: AbstractMemoryData, at_once: int) -> float:
    lots = case.steps // at_once
    watch = Stopwatch(lots // 5)
    fit = trainer(watch, lots, [StepSeed(), FiniteLoss(), SyncBuffers()])
    fit.fit(case.family(steps_at_once=at_once), datamodule=data)
    return (lots - watch.warm_up) * at_once * BATCH / watch.total


def bare(case: Case, data: AbstractMemoryData) -> float:
    data.trainer = None
    shapes = Shapes(data.input_shape, data.num_classes, data.target_shape)
    net = case.family().draw(0, shapes).to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    warm_up, start = case.steps // 5, 0.0
    for step, (x, y) in enumerate(first(data.train_dataloader(), case.steps)):
        if step == warm_up:
            start = now()
        loss = sample_losses("mse", net(x.to(DEVICE)), y.to(DEVICE), shapes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (case.steps - warm_up) * BATCH / (now() - start)


def rows(quick: bool) -> list[str]:
    out = ["| family | steps at once | ours, samples/s | ours / bare loop |", "| --- | --- | --- | --- |"]
    for name, case in CASES.items():
        data = case.data()
        data.setup("fit")
        timed = {str(n): partial(ours, case, data, n) for n in case.at_once} | {"bare": partial(bare, case, data)}
        found = by_turns(timed, rounds=1 if quick else 5)
        for n in case.at_once:
            speeds = found[str(n)]
            out.append(f"| {name} | {n} | {statistics.median(speeds):.0f} | {ratio(speeds, found['bare'])} |")
    return out


def making(quick: bool) -> list[str]:
    """Seconds to draw the training and validation samples."""
    labels = {"dimension": 500, "k": 2, "train_samples": 10_000, "test_samples": 100_000}
    made: dict[str, Callable[[], AbstractMemoryData]] = {
        "KLocal, d = 500, 110,000 samples": partial(KLocal, **labels),
        "KGlobal, d = 500, 110,000 samples": partial(KGlobal, **labels),
        "Ising, 500 spins, 110,000 samples": partial(Ising, sites=500, train_samples=10_000, test_samples=100_000),
        "ToyPixels": ToyPixels,
        "LowRankLeastSquares": LowRankLeastSquares,
        "GaussianInputs": GaussianInputs,
    }
    out = ["| data | seconds |", "| --- | --- |"]
    for name, make in made.items():
        times = [seconds(partial(both_splits, make)) for _ in range(1 if quick else 3)]
        out.append(f"| {name} | {statistics.median(times):.3f} |")
    return out


def both_splits(make: Callable[[], AbstractMemoryData]) -> None:
    data = make()
    data.split("train"), data.split("val")
