"""Where a run's numbers come from: network, data, device, versions, commit."""

import datetime
import inspect
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

import lightning_depth
from lightning_depth.measures.weight_layers import weight_layers
from lightning_depth.probes.undisturbed import undisturbed

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics")


def described(trainer: Trainer, pl_module: LightningModule, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What every summary says of its network, data, device and versions, and `provenance` (config, command, ...)."""
    versions = {package: version(package) for package in PACKAGES}
    return {
        "model": describe_model(pl_module),
        "parameters": sum(p.numel() for p in pl_module.parameters()),
        "data": describe_data(trainer),
        "device": device_name(trainer),
        "processes": trainer.world_size,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions, "lightning_depth": lightning_depth.__version__},
        "git_commit": git_commit(),
        **provenance,
    }


def depth_of(trainer: Trainer, pl_module: LightningModule, batch: Any) -> int | None:
    """`weight_layers` of the network, from the first sample of a batch; None where that is not what it takes."""
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(inputs, torch.Tensor):
        return None
    try:
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            return weight_layers(pl_module, inputs[:1])
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, AssertionError):
        return None


def describe_model(pl_module: LightningModule) -> str:
    """The family and the arguments of its own, such as `ResNet(depth=18, width=16)`."""
    own = [p.name for p in inspect.signature(type(pl_module).__init__).parameters.values() if p.name != "self"]
    given = {name: pl_module.hparams[name] for name in own if pl_module.hparams.get(name) is not None}
    shown = ", ".join(f"{k}={v}" for k, v in given.items() if isinstance(v, int | float | str | list | tuple))
    return f"{type(pl_module).__name__}({shown})"


def describe_data(trainer: Trainer) -> dict[str, Any]:
    """Where the data came from, as far as the data module says."""
    datamodule = getattr(trainer, "datamodule", None)
    source = getattr(datamodule, "source", None)
    found: dict[str, Any] = {"requested": type(datamodule).__name__ if datamodule is not None else None}
    if is_dataclass(source) and not isinstance(source, type):
        fields = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(source).items()}
        found |= {**fields, "source": source.describe()}  # type: ignore[attr-defined]
    for key, attribute in (("validation", "val_source"), ("num_classes", "num_classes"), ("train_size", "train_size")):
        if getattr(datamodule, attribute, None) is not None:
            found[key] = getattr(datamodule, attribute)
    return found


def git_commit() -> str | None:
    """The commit of the checkout that tracks this very file, with `+changes` where it was edited; None elsewhere."""
    said = []
    try:
        for words in (f"ls-files --error-unmatch {Path(__file__).name}", "rev-parse HEAD", "status --porcelain"):
            git, here = ["git", *words.split()], Path(__file__).parent
            said.append(subprocess.run(git, cwd=here, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[1] + ("+changes" if said[2] else "")


def device_name(trainer: Trainer) -> str:
    """What the network ran on."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
