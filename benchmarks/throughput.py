"""Training images a second: ours, a bare PyTorch loop on the same tensors, stock Lightning with torchvision's data."""

import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.measure import DEVICE, by_turns, now, ratio
from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import Arrays, Source
from lightning_depth.models import ResNet
from lightning_depth.training.guards import FiniteLoss, StepSeed, SyncBuffers

BATCH = 128
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


class Noise(AbstractImageData):
    """As many images as half of CIFAR-10, of its size: for speed it does not matter what they show."""

    def find(self) -> Source:
        return Source("noise", "embedded", "torch.randint")

    def read(self, split: str) -> Arrays:
        count = 25_000 if split == "train" else 10_000
        images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return Arrays(torch.arange(count) % 10, [str(c) for c in range(10)], (MEAN, STD), images)


class Stopwatch(Callback):
    """Seconds of the training steps after the warm-up."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.start = self.total = 0.0
        self.steps = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.warm_up:
            self.start = now()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.steps += 1
        if trainer.is_last_batch:
            self.total = now() - self.start


def trainer(stopwatch: Stopwatch, steps: int, callbacks: list[Callback]) -> Trainer:
    return Trainer(
        accelerator="gpu" if DEVICE.type == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, stopwatch],
    )


def ours(width: int, steps: int, warm_up: int, data: Noise) -> float:
    watch = Stopwatch(warm_up)
    fit = trainer(watch, steps, [StepSeed(), FiniteLoss(), SyncBuffers()])
    fit.fit(ResNet(depth=18, width=width), datamodule=data)
    return (steps - warm_up) * BATCH / watch.total


def network(width: int) -> nn.Module:
    model = ResNet(depth=18, width=width, input_shape=(3, 32, 32), num_classes=10)
    model.configure_model()
    assert model.net is not None
    return model.net


def bare(width: int, steps: int, warm_up: int, data: Noise) -> float:
    data.trainer = None
    net = network(width).to(DEVICE).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    start = 0.0
    for step, (x, y) in enumerate(first(data.train_dataloader(), steps)):
        if step == warm_up:
            start = now()
        loss = nn.functional.mse_loss(net(x.to(DEVICE)), nn.functional.one_hot(y.to(DEVICE), 10).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (steps - warm_up) * BATCH / (now() - start)


class Stock(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = network(width).to(memory_format=torch.contiguous_format)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), nn.functional.one_hot(y, 10).float())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def stock(width: int, steps: int, warm_up: int, data: Noise) -> float:
    # torchvision's own CIFAR10.__getitem__, without its files.
    dataset = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    split = data.read("train")
    dataset.data, dataset.targets = split.pixels(torch.arange(25_000), None).numpy(), split.labels.tolist()
    steps_v2 = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage()]
    dataset.transform = v2.Compose([*steps_v2, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    dataset.target_transform = None
    workers = os.cpu_count() or 1
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, pin_memory=DEVICE.type == "cuda")
    watch = Stopwatch(warm_up)
    trainer(watch, steps, []).fit(Stock(width), loader)
    return (steps - warm_up) * BATCH / watch.total


def first(batches: Any, count: int) -> Iterator[Any]:
    for step, batch in enumerate(batches):
        if step == count:
            return
        yield batch


def rows(quick: bool) -> list[str]:
    data = Noise(augment="crop_flip", batch_size=BATCH)
    data.setup("fit")
    gpu = DEVICE.type == "cuda"
    out = ["| ResNet-18 | ours, images/s | ours / bare loop | ours / stock Lightning |", "| --- | --- | --- | --- |"]
    for width, steps, warm_up in (
        (16, 150 if gpu else 24, 20 if gpu else 4),
        (64, 100 if gpu else 7, 20 if gpu else 2),
    ):
        kinds: dict[str, Callable[..., float]] = {"ours": ours, "bare": bare, "stock": stock}
        timed = {name: partial(kind, width, steps, warm_up, data) for name, kind in kinds.items()}
        found = by_turns(timed, rounds=1 if quick else 5 if width == 16 else 3)
        speed = statistics.median(found["ours"])
        out.append(
            f"| width {width}, {steps - warm_up} steps of {BATCH} | {speed:.0f} | "
            f"{ratio(found['ours'], found['bare'])} | {ratio(found['ours'], found['stock'])} |"
        )
    return out
