"""What probes read, written into a directory: rows of `readings.csv`, and arrays under `pictures/`."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray

from lightning_depth.figures.pictures import draw_pictures, read_pictures
from lightning_depth.probes import AbstractProbe
from lightning_depth.runs.tables import Table

COLUMNS = ["epoch", "probe", "layer", "key", "value"]


def probes_of(trainer: Trainer) -> list[AbstractProbe]:
    """The probes among the trainer's callbacks."""
    return [callback for callback in trainer.callbacks if isinstance(callback, AbstractProbe)]  # type: ignore[attr-defined]


def write_looks(directory: Path, table: Table, probes: Iterable[AbstractProbe], epoch: int) -> None:
    """Append what `probes` read at `epoch` to the table, and write their arrays."""
    looked = [probe for probe in probes if probe.readings and probe.readings[0].epoch == epoch]
    table.append([reading._asdict() for probe in looked for reading in probe.readings])
    for probe in looked:
        if probe.pictures:
            _write_arrays(directory / "pictures" / probe.name / f"epoch-{epoch:05d}.npz", probe)


def _write_arrays(path: Path, probe: AbstractProbe) -> None:
    """`<layer>/<key>` -> array in float32, and `names:<layer>/<key>` where its first axis has names."""
    members: dict[str, NDArray[np.generic]] = {}
    for picture in probe.pictures:
        name = f"{picture.layer}/{picture.key}"
        members[name] = picture.values.detach().cpu().float().numpy()
        if picture.names:
            members[f"names:{name}"] = np.array(picture.names, dtype=str)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez_compressed(unfinished, **members)  # type: ignore[arg-type]
    os.replace(unfinished, path)


def log_pictures(loggers: Sequence[object], directory: Path, probes: Iterable[AbstractProbe], epoch: int) -> None:
    """Give W&B a picture of what each probe drew at `epoch`."""
    wandb = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    drawn = [p for p in probes if p.pictures and p.readings and p.readings[0].epoch == epoch]
    if not wandb or not drawn:
        return
    everything = read_pictures(directory, until=epoch)
    for probe in drawn:
        mine = [arrays for arrays in everything if arrays.probe == probe.name]
        path = draw_pictures(mine, directory / "pictures" / probe.name / f"epoch-{epoch:05d}.png")
        for logger in wandb:
            logger.log_image(f"pictures/{probe.name}", [str(path)])
