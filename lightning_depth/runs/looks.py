"""What probes read, written into a directory: rows of `readings.csv`, how to show them, and arrays."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from lightning_depth import results
from lightning_depth.figures.pictures import draw_pictures
from lightning_depth.probes import AbstractProbe


def write_looks(directory: Path, table: results.Table, probes: Iterable[AbstractProbe], epoch: int) -> None:
    """Append what `probes` read at `epoch` to the table, and write how to show it and their arrays."""
    looked = [probe for probe in probes if probe.readings and probe.readings[0].epoch == epoch]
    results.write_declarations(directory, {probe.name: probe.declaration for probe in looked})
    table.append([reading._asdict() for probe in looked for reading in probe.readings])
    for probe in looked:
        if probe.pictures:
            arrays = [(p.layer, p.key, p.values.detach().cpu().float().numpy(), p.names) for p in probe.pictures]
            results.write_arrays(directory, probe.name, epoch, arrays)


def log_pictures(loggers: Sequence[object], directory: Path, probes: Iterable[AbstractProbe], epoch: int) -> None:
    """Give W&B a picture of what each probe drew at `epoch`."""
    wandb = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    drawn = [p for p in probes if p.pictures and p.readings and p.readings[0].epoch == epoch]
    if not wandb or not drawn:
        return
    everything, declared = results.read_arrays(directory, until=epoch), results.read_declarations(directory)
    for probe in drawn:
        mine = [arrays for arrays in everything if arrays.probe == probe.name]
        path = draw_pictures(mine, declared, directory / results.PICTURES / probe.name / f"epoch-{epoch:05d}.png")
        for logger in wandb:
            logger.log_image(f"pictures/{probe.name}", [str(path)])
