"""The record of one look at a network that is not being trained: a table, a picture, a summary."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_depth.errors import UserError
from lightning_depth.figures.report import report
from lightning_depth.probes import AbstractProbe
from lightning_depth.probes.probe import probes_of
from lightning_depth.results import PICTURES, READINGS, Reading, Table, write_summary
from lightning_depth.runs.directory import claim
from lightning_depth.runs.looks import write_looks
from lightning_depth.runs.record import describe_data, describe_model, device_name, git_commit, versions


class ProbeRecord(Callback):
    """Writes `readings.csv`, `pictures/`, `summary.json` and `report.png` of a validation with probes.

    The probes look as they would have looked when the checkpoint was written: at its epoch, and from the state that
    they had saved in it.

    Args:
        root: folder in which a new directory is made.
        name: of that directory, or of this with a number.
        checkpoint: the run's checkpoint that is looked at; None: a network without one.
        provenance: what else the summary should say.

    Raises:
        UserError: the directory cannot be made, or there is no probe.
    """

    def __init__(self, root: Path, name: str, checkpoint: Path | None, provenance: Mapping[str, Any]) -> None:
        self.root = root
        self.run_name = name
        self.checkpoint = checkpoint
        self.provenance = provenance
        self.directory: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        probes = probes_of(trainer)
        if not probes:
            raise UserError("There is no probe to look with: give --probe, for example --probe OperatorNorm.")
        if self.checkpoint is not None:
            loaded = _loaded(self.checkpoint)
            # A checkpoint of epoch 2, say, is saved before Lightning counts that epoch as completed.
            done = loaded["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            trainer.fit_loop.epoch_progress.current.completed = done
            for probe in probes:
                state = _state_of(probe, loaded.get("callbacks", {}))
                if state is not None:
                    probe.load_state_dict(state)
        if trainer.is_global_zero:
            try:
                self.directory = claim(self.root, self.run_name, PICTURES)
            except UserError as user_error:
                said = str(user_error).replace("run directory", "directory").replace("--run.root", "--out")
                raise UserError(said) from user_error

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.directory is None:
            return
        probes = probes_of(trainer)
        table = Table(self.directory / READINGS, Reading._fields)
        write_looks(self.directory, table, probes, trainer.current_epoch)
        summary = {
            "run": self.directory.name,
            "status": "probed",
            "epochs": trainer.current_epoch,
            "model": describe_model(pl_module),
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "data": describe_data(trainer),
            "device": device_name(trainer),
            "processes": trainer.world_size,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "git_commit": git_commit(),
            **self.provenance,
        }
        page = report(self.directory, summary)
        write_summary(self.directory, summary)
        print("\n".join(readings_table(probe) for probe in probes))
        print(f"{self.directory / READINGS}\n{page}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.directory is not None and not (self.directory / READINGS).is_file():
            (self.directory / PICTURES).rmdir()
            self.directory.rmdir()
            self.directory = None


def _loaded(path: Path) -> dict[str, Any]:
    """What a run's checkpoint holds.

    Raises:
        UserError: it is none.
    """
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
    cells: dict[str, dict[str, float]] = {}
    for reading in probe.readings:
        if reading.key != "seconds":
            place = probe.logged_as(reading).removeprefix(f"{probe.name}/").rpartition("/")[0]
            cells.setdefault(place, {})[reading.key] = reading.value
    keys = list(dict.fromkeys(key for row in cells.values() for key in row))
    wide = max([len(layer) for layer in cells] + [12])
    widths = {key: max(len(key), 10) for key in keys}
    seconds = next((r.value for r in probe.readings if r.key == "seconds"), 0.0)
    lines = [f"\n{probe.name} ({seconds:.1f} s)"]
    if keys:
        lines.append("  " + " " * wide + "".join(f"  {key:>{widths[key]}}" for key in keys))
    for layer, row in cells.items():
        numbers = (f"{row[key]:.5g}" if key in row else "" for key in keys)
        shown = "".join(f"  {n:>{w}}" for n, w in zip(numbers, widths.values(), strict=True))
        lines.append(f"  {layer:<{wide}}{shown}")
    return "\n".join(lines)
