"""The record of a run: a row an epoch, every reading of every probe, and at the end a summary and a picture."""

import time
from collections.abc import Collection, Mapping
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_depth.errors import UserError
from lightning_depth.figures.directions import Direction, directions
from lightning_depth.figures.report import report
from lightning_depth.probes.probe import AbstractProbe, probes_of
from lightning_depth.results import METRICS, READINGS, REPORT, Reading, Table, read_readings, write_summary
from lightning_depth.runs.probing import log_pictures, write_looks
from lightning_depth.runs.provenance import depth_of, described


class RunRecord(Checkpoint):
    """Writes `metrics.csv`, `readings.csv`, `summary.json` and `report.png` into a run's directory.

    It counts as a checkpoint callback so that Lightning calls it after everything else has logged, and it comes before
    the checkpoint itself is saved: a row that is missing was never part of a checkpoint, and one that is too many is
    taken out when the run goes on.

    `config` is the whole one, for loggers; `provenance` what else the summary should say (command, seed, ...).
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        self.directory, self.config, self.provenance = directory, config, provenance
        self.metrics = Table(directory / METRICS, ["epoch"])
        self.readings = Table(directory / READINGS, Reading._fields)
        self._epoch_start = 0.0
        self._seconds: list[float] = []
        self._before, self._held_out = set[str](), set[str]()
        self._weight_layers: int | None = None
        self._started = self._validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start = time.perf_counter()  # an epoch that goes on in its middle has no on_train_epoch_start
        if not trainer.is_global_zero:
            return
        done = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        self.metrics.rewind(done)
        self.readings.rewind(done)
        self._seconds = [float(row["seconds"]) for row in self.metrics.rows()]
        for logger in trainer.loggers:
            logger.log_hyperparams(dict(self.config))
            if isinstance(logger, WandbLogger):
                logger.experiment.define_metric("*", step_metric="epoch")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._started and trainer.is_global_zero:
            self._weight_layers = depth_of(trainer, pl_module, batch)
        self._started = True

    # Lightning keeps the values of the last validation, but an epoch without one has none.
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._held_out |= set(trainer.callback_metrics) - self._before
        self._validated = not trainer.sanity_checking

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Loggers show epochs as this record counts them: 1 is the first.
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            pl_module.log("epoch", float(trainer.current_epoch + 1), sync_dist=False, rank_zero_only=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("epoch", float(trainer.current_epoch + 1), sync_dist=False, rank_zero_only=True)
        if not trainer.is_global_zero:
            return
        probes = probes_of(trainer)
        write_looks(self.directory, self.readings, probes, trainer.current_epoch + 1)
        log_pictures(trainer.loggers, self.directory, probes, trainer.current_epoch + 1)
        stale = set() if self._validated else self._held_out
        self._validated = False
        row = {"epoch": trainer.current_epoch + 1, **_values(trainer, probes, stale)}
        for index, optimizer in enumerate(trainer.optimizers):
            if optimizer.param_groups:  # Lightning's stand-in has none, where a model has no optimizer
                row["lr" if index == 0 else f"lr-{index}"] = float(optimizer.param_groups[0]["lr"])
        row["seconds"] = round(time.perf_counter() - self._epoch_start, 3)
        self.metrics.append([row])
        self._seconds.append(row["seconds"])
        self._print(trainer, row)

    def _print(self, trainer: Trainer, row: Mapping[str, Any]) -> None:
        metrics = {key: value for key, value in row.items() if key.startswith(("train", "val"))}
        shown = [f"{key} {value:.4g}" for key, value in metrics.items() if isinstance(value, float)]
        left = (trainer.max_epochs or 0) - row["epoch"]
        eta = f"  {duration(left * fmean(self._seconds))} left" if left > 0 else ""
        line = f"epoch {row['epoch']}/{trainer.max_epochs}  {'  '.join(shown)}  {row['seconds']:.1f} s{eta}"
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.print(line)
        else:
            rank_zero_info(line)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not self.metrics.path.is_file():
            raise UserError("No epoch was trained: there is nothing to report.\nIs --trainer.max_epochs at least 1?")
        summary = self.summary(trainer, pl_module)
        page = report(self.directory, summary)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                if rows := [list(reading) for reading in read_readings(self.directory)]:
                    logger.log_table("readings", columns=list(Reading._fields), data=rows)
                logger.log_image("report", [str(page)])
        write_summary(self.directory, summary)
        print(closing_table(summary, self.directory), flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # What was measured until here can be looked at; there is no summary, since the run has not ended.
        stopped = isinstance(exception, Exception | KeyboardInterrupt)
        if trainer.is_global_zero and self.metrics.path.is_file() and stopped:
            report(self.directory, None)

    def summary(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What `summary.json` says."""
        rows = [{k: float(v) for k, v in row.items() if v} for row in self.metrics.rows()]
        direction_of = directions(_metrics_of(rows[-1]) if rows else ())
        best = {key: _first_best(rows, key, direction) for key, direction in direction_of.items()}
        return {
            "run": self.directory.name,
            "status": self._status(trainer),
            "epochs": len(rows),
            "final": _metrics_of(rows[-1]) if rows else {},
            "directions": direction_of,
            "best": {key: {"value": row[key], "epoch": int(row["epoch"])} for key, row in best.items()},
            "at_best_train": _at_best_train(rows, direction_of),
            "seconds": round(sum(row["seconds"] for row in rows), 1),
            "weight_layers": self._weight_layers,
            **described(trainer, pl_module, self.provenance),
        }

    def _status(self, trainer: Trainer) -> str:
        stops = [getattr(callback, "stopped_by", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        goal = next((reason for reason in stops if reason is not None), None)
        if trainer.should_stop and goal is not None:
            return f"stopped: {goal}"
        capped = not trainer.should_stop or trainer.current_epoch >= (trainer.max_epochs or 0)
        return "finished" if capped else "stopped early"


def closing_table(summary: Mapping[str, Any], directory: Path) -> str:
    """The small table that a run ends with."""
    epochs, wide = summary["epochs"], max([14, *map(len, summary["final"])])
    ended = f"{summary['status']} after {epochs} epoch{'s' * (epochs != 1)}, {duration(summary['seconds'])}"
    lines = [f"\n{summary['run']}: {ended}"]
    if summary["data"].get("fallback"):
        lines.append(str(summary["data"]["source"]))
    lines.append(f"  {'':{wide}}{'final':>12}{'best':>12}{'epoch':>8}")
    for key, value in summary["final"].items():
        best = summary["best"].get(key)
        tail = f"{best['value']:>12.4f}{best['epoch']:>8d}" if best else ""
        lines.append(f"  {key:{wide}}{value:>12.4f}{tail}")
    lines.append(f"  {directory / REPORT}")
    return "\n".join(lines)


def _values(trainer: Trainer, probes: list[AbstractProbe], stale: Collection[str]) -> dict[str, float]:
    hidden = {"epoch", *stale}.union(*(probe.logged for probe in probes))
    found = {key: float(value) for key, value in trainer.callback_metrics.items() if key not in hidden}
    first = [key for key in ("train/loss", "train/acc", "val/loss", "val/acc") if key in found]
    return {key: found[key] for key in [*first, *(k for k in found if k not in first)]}


def _metrics_of(row: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key not in ("epoch", "seconds") and not key.startswith("lr")}


def _first_best(rows: list[dict[str, float]], key: str, direction: Direction) -> dict[str, float]:
    """The row of the first epoch with the best value of a metric: a number, where it ever is one."""
    sign = 1 if direction == "max" else -1
    return max((row for row in rows if key in row), key=lambda row: (isfinite(row[key]), sign * row[key]))


def _at_best_train(rows: list[dict[str, float]], direction_of: Mapping[str, Direction]) -> dict[str, float | int]:
    """All metrics of the first epoch of highest training accuracy, or lowest training loss where there is none.

    nichani2020 reports the Fully-Conv Net's test accuracy there.
    """
    key = next((key for key in ("train/acc", "train/loss") if rows and key in rows[-1]), None)
    if key is None:
        return {}
    row = _first_best(rows, key, direction_of[key])
    return {"epoch": int(row["epoch"]), **_metrics_of(row)}


def duration(seconds: float) -> str:
    """A time for readers.

    >>> duration(7.0), duration(95.0), duration(3700.0)
    ('7 s', '1:35 min', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
