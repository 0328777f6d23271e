"""What probes read, written into a directory, and the record of one look at a network that is not being trained."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_depth import results
from lightning_depth.errors import UserError
from lightning_depth.figures.pictures import draw_pictures
from lightning_depth.figures.report import report
from lightning_depth.probes.probe import AbstractProbe, probes_of
from lightning_depth.results import PICTURES, READINGS, Reading, Table, write_summary
from lightning_depth.runs.directory import claim
from lightning_depth.runs.provenance import depth_of, described


def write_looks(directory: Path, table: Table, probes: Iterable[AbstractProbe], epoch: int) -> None:
    """Append what `probes` read at `epoch` to the table, and write how to show it and their arrays."""
    looked = [probe for probe in probes if probe.readings and probe.readings[0].epoch == epoch]
    results.write_declarations(directory, {probe.name: probe.declaration for probe in looked})
    table.append([reading._asdict() for probe in looked for reading in probe.readings])
    for probe in (probe for probe in looked if probe.pictures):
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
        path = draw_pictures(mine, declared, directory / PICTURES / probe.name / f"epoch-{epoch:05d}.png")
        for logger in wandb:
            logger.log_image(f"pictures/{probe.name}", [str(path)])


class ProbeRecord(Callback):
    """Writes `readings.csv`, `pictures/`, `summary.json` and `report.png` of a validation or test with probes.

    The probes look as they would have looked when the checkpoint was written: at its epoch, and from the state that
    they had saved in it.

    Args:
        root, name: of a new directory, which gets a number where the name is taken; a `UserError` if it cannot be made.
        checkpoint: the run's checkpoint that is looked at; None: a network without one.
        provenance: what else the summary should say.
        needed: whether it is a mistake to have no probe, a `UserError`; else there is nothing to record then.
    """

    def __init__(
        self, root: Path, name: str, checkpoint: Path | None, provenance: Mapping[str, Any], needed: bool = True
    ) -> None:
        self.root, self.run_name, self.needed = root, name, needed
        self.checkpoint, self.provenance = checkpoint, provenance
        self.directory: Path | None = None
        self.batch: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        probes = probes_of(trainer)
        if not probes:
            if self.needed:
                raise UserError("There is no probe to look with: give --probe, for example --probe OperatorNorm.")
            return
        if self.checkpoint is not None:
            loaded = _load(self.checkpoint)
            # A checkpoint of epoch 2, say, is saved before Lightning counts that epoch as completed.
            done = loaded["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            trainer.fit_loop.epoch_progress.current.completed = done
            for probe in probes:
                if (state := _state_of(probe, loaded.get("callbacks", {}))) is not None:
                    probe.load_state_dict(state)
        if trainer.is_global_zero:
            try:
                self.directory = claim(self.root, self.run_name, PICTURES)
            except UserError as user_error:
                message = str(user_error).replace("run directory", "directory").replace("--run.root", "--out")
                raise UserError(message) from user_error

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.batch = batch if self.batch is None else self.batch

    on_test_batch_start = on_validation_batch_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.directory is None:
            return
        probes = probes_of(trainer)
        table = Table(self.directory / READINGS, Reading._fields)
        write_looks(self.directory, table, probes, trainer.current_epoch)
        of_run = "" if self.checkpoint is None else f"{self.checkpoint.resolve().parent.parent.name} · "
        status = "probed" if self.checkpoint is not None else "probed without a checkpoint of a run"
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "test/"))}
        summary: dict[str, Any] = {"run": of_run + self.directory.name, "status": status}
        summary |= {"epochs": trainer.current_epoch, "weight_layers": depth_of(trainer, pl_module, self.batch)}
        summary |= {"final": {key: value for key, value in metrics.items() if math.isfinite(value)}}
        summary |= described(trainer, pl_module, self.provenance)
        page = report(self.directory, summary)
        write_summary(self.directory, summary)
        print("\n".join(readings_table(probe) for probe in probes))
        print(f"{self.directory / READINGS}\n{page}", flush=True)
        with suppress(OSError):
            (self.directory / PICTURES).rmdir()  # where no probe drew

    on_test_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.directory is not None and not (self.directory / READINGS).is_file():
            (self.directory / PICTURES).rmdir()
            self.directory.rmdir()
            self.directory = None


def _load(path: Path) -> dict[str, Any]:
    """What a run's checkpoint holds. A `UserError` where it is none."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise UserError(f"{path} is not a checkpoint: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(loaded, dict) or not {"state_dict", "loops"} <= loaded.keys():
        raise UserError(f"{path} is no checkpoint of a run.\nA file of weights goes with --model and --data.")
    return loaded


def _state_of(probe: AbstractProbe, states: Mapping[str, Any]) -> Any:
    """What the checkpoint holds for this probe, or else for another of its class, with another schedule or layers."""
    alike = [state for key, state in states.items() if key.startswith(f"{type(probe).__qualname__}(")]
    return states.get(probe.state_key, alike[0] if alike else None)


def readings_table(probe: AbstractProbe) -> str:
    """What a probe read, a row a layer and a column a key, for a terminal."""
    cells: dict[str, dict[str, str]] = {}
    for reading in probe.readings:
        if reading.key != "seconds":
            place = probe.logged_as(reading).removeprefix(f"{probe.name}/").rpartition("/")[0]
            cells.setdefault(place, {})[reading.key] = f"{reading.value:.5g}"
    keys = list(dict.fromkeys(key for row in cells.values() for key in row))
    wide = max([12, *map(len, cells)])
    seconds = next((r.value for r in probe.readings if r.key == "seconds"), 0.0)
    lines = [f"\n{probe.name} ({seconds:.1f} s)"]
    for layer, row in [("", {key: key for key in keys}), *cells.items()] if keys else []:
        lines.append(f"  {layer:<{wide}}" + "".join(f"  {row.get(key, ''):>{max(len(key), 10)}}" for key in keys))
    return "\n".join(lines)
