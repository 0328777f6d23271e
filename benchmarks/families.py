"""Training samples a second of each family beside a bare PyTorch loop, and how long made data take to make."""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

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
from lightning_depth.data.memory import AbstractMemoryData
from lightning_depth.models import MLP, ConvNet, DeepLinear, FullyConv, HuhCNN
from lightning_depth.models.base import AbstractFamily
from lightning_depth.models.losses import sample_losses
from lightning_depth.runs.finite_loss import FiniteLoss
from lightning_depth.runs.same_buffers import SameBuffers
from lightning_depth.runs.step_seed import StepSeed

# What is trained: the family, its data, and how many steps.
CASES: dict[str, tuple[Callable[[], AbstractFamily], Callable[[], AbstractMemoryData], int]] = {
    "FullyConv, depth 5, width 32": (lambda: FullyConv(depth=5, width=32), lambda: Noise(batch_size=BATCH), 12),
    "ConvNet, depth 5, 32 channels": (
        lambda: ConvNet(depth=5, channels=32, output="classes"),
        lambda: Noise(batch_size=BATCH),
        10,
    ),
    "HuhCNN, width 16": (lambda: HuhCNN(width=16), lambda: Noise(batch_size=BATCH), 20),
    "MLP, 2 x 1,024, images": (lambda: MLP(depth=2, width=1024), lambda: Noise(batch_size=BATCH), 40),
    "MLP, 1 x 64, 2-local labels of 100 inputs": (
        lambda: MLP(depth=1, width=64),
        lambda: KLocal(dimension=100, k=2, train_samples=40_000, batch_size=BATCH),
        300,
    ),
    "DeepLinear, 4 x 32, least squares": (
        lambda: DeepLinear(depth=4, width=32),
        lambda: LowRankLeastSquares(train_samples=40_000, batch_size=BATCH),
        300,
    ),
}


def ours(make: Callable[[], AbstractFamily], data: AbstractMemoryData, steps: int) -> float:
    warm_up = steps // 5
    watch = Stopwatch(warm_up)
    trainer(watch, steps, [StepSeed(), FiniteLoss(), SameBuffers()]).fit(make(), datamodule=data)
    return (steps - warm_up) * BATCH / watch.total


def bare(make: Callable[[], AbstractFamily], data: AbstractMemoryData, steps: int) -> float:
    data.trainer = None
    model = make()
    model.input_shape, model.num_classes, model.target_shape = data.input_shape, data.num_classes, data.target_shape
    model.configure_model()
    net = model.net
    assert isinstance(net, nn.Module)
    net.to(DEVICE).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    warm_up, start = steps // 5, 0.0
    for step, (x, y) in enumerate(first(data.train_dataloader(), steps)):
        if step == warm_up:
            start = now()
        loss = sample_losses("mse", net(x.to(DEVICE)), y.to(DEVICE)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (steps - warm_up) * BATCH / (now() - start)


def rows(quick: bool) -> list[str]:
    out = ["| family | ours, samples/s | ours / bare loop |", "| --- | --- | --- |"]
    for name, (make, make_data, steps) in CASES.items():
        data = make_data()
        data.setup("fit")
        timed = {kind.__name__: partial(kind, make, data, steps) for kind in (ours, bare)}
        found = by_turns(timed, rounds=1 if quick else 5)
        out.append(f"| {name} | {statistics.median(found['ours']):.0f} | {ratio(found['ours'], found['bare'])} |")
    return out


def making(quick: bool) -> list[str]:
    """Seconds to draw the training and validation samples."""
    made: dict[str, Callable[[], AbstractMemoryData]] = {
        "KLocal, d = 500, 110,000 samples": lambda: KLocal(
            dimension=500, k=2, train_samples=10_000, test_samples=100_000
        ),
        "KGlobal, d = 500, 110,000 samples": lambda: KGlobal(
            dimension=500, k=2, train_samples=10_000, test_samples=100_000
        ),
        "Ising, 500 spins, 110,000 samples": lambda: Ising(sites=500, train_samples=10_000, test_samples=100_000),
        "ToyPixels": lambda: ToyPixels(),
        "LowRankLeastSquares": lambda: LowRankLeastSquares(),
        "GaussianInputs": lambda: GaussianInputs(),
    }
    out = ["| data | seconds |", "| --- | --- |"]
    for name, make in made.items():
        times = [
            seconds(lambda make=make: [make().split(split) for split in ("train", "val")])
            for _ in range(1 if quick else 3)
        ]  # type: ignore[misc]
        out.append(f"| {name} | {statistics.median(times):.3f} |")
    return out
