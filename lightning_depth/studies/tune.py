"""The runs of a search: every fold of every trial that its table lacks, each in a process of its own."""

import contextlib
import math
import pkgutil
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import pstdev
from typing import Any

from filelock import FileLock, Timeout

from lightning_depth.config.resolve import resolve
from lightning_depth.config.words import near
from lightning_depth.errors import UserError
from lightning_depth.figures.tuning import best_of, draw_tuning
from lightning_depth.probes import AbstractProbe
from lightning_depth.results import CONFIG, SEARCH, TRIALS, flat, read_config, read_summary, write_yaml
from lightning_depth.runs.directory import claim, runs_named
from lightning_depth.runs.record import duration
from lightning_depth.studies.search import Search, Trials, scored, suggestion
from lightning_depth.studies.subprocesses import run_in_subprocess
from lightning_depth.training.fit import fit
from lightning_depth.training.guards import Diverged


def _fit(words: Sequence[str]) -> str:
    """`fit words`: "finished", or "diverged"."""
    sys.argv[1:] = ["fit", *words]  # the DDP launcher starts further processes with it
    try:
        fit(resolve("fit", words))
    except Diverged as user_error:
        print(user_error, file=sys.stderr)
        return "diverged"
    return "finished"


def whole_key(asked: str, config: Mapping[str, Any]) -> str:
    """The key of `config` that is meant: `init_args` may be left out.

    A `UserError` where there is none, or it holds no number; it names the closest.

    >>> whole_key("model.lr", {"model": {"init_args": {"lr": 0.1}}})
    'model.init_args.lr'
    """
    parts = {part: config[part] for part in ("model", "data", "trainer") if part in config}
    keys = [key for key, value in flat(parts) if isinstance(value, int | float | None) and not isinstance(value, bool)]
    short = {key.replace(".init_args", ""): key for key in keys}
    if asked.replace(".init_args", "") in short:
        return short[asked.replace(".init_args", "")]
    hint = f"{near(asked, keys) or near(asked, short)}\nSee python main.py fit ... --print_config."
    raise UserError(f"--tune.key {asked}: the config has no such number.{hint}")


def override(key: str, value: float) -> dict[str, Any]:
    """A config that sets `key` alone.

    >>> override("model.init_args.lr", 0.1)
    {'model': {'init_args': {'lr': 0.1}}}
    """
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return dict(tree)


def of_folds(config: Mapping[str, Any], folds: int) -> dict[str, Any]:
    """The config of the fits of a search: its data in `Folds`, no logger, no bar, and no probes: nobody looks."""
    if config.get("data") is None:
        raise UserError("A search divides the training samples of a data module: give --data.")
    callbacks = config["trainer"]["callbacks"] or []
    kept = [one for one in callbacks if not issubclass(pkgutil.resolve_name(one["class_path"]), AbstractProbe)]
    quiet = {"callbacks": kept or None, "logger": False, "enable_progress_bar": False}
    init_args = {"data": config["data"], "fold": 0, "folds": folds}
    return {key: value for key, value in config.items() if key not in ("ckpt_path", "weights_only")} | {
        "run": {"reduced": config["run"]["reduced"]},
        "trainer": config["trainer"] | quiet,
        "data": {"class_path": "lightning_depth.data.Folds", "init_args": init_args},
    }


def run_search(search: Search, config: Mapping[str, Any], root: Path, name: str, command: str) -> None:
    """Run what is missing of a search, a `Search`, in its directory: that of the same settings, or a new one.

    A `UserError` where a fit refuses its settings, all trials diverged, or another process is at work in the directory.
    """
    settings = {key: value for key, value in asdict(search).items() if key not in ("trials", "seed")}
    study = {"search": settings, "config": of_folds(config, search.folds)}
    directory, new = _find_or_claim(study, root, name)
    try:
        with FileLock(directory / ".lock", timeout=5):  # the fit of a search that was killed has ended by then
            print(f"search directory: {directory}{'' if new else ' (going on)'}", flush=True)
            _Loop(search, directory, command).run()
    except Timeout as error:
        hint = "Give --tune.name for a search of its own."
        raise UserError(f"Another process is at work in {directory}.\n{hint}") from error
    except UserError:
        if new and not (directory / TRIALS).is_file():
            shutil.rmtree(directory)
        raise
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def _find_or_claim(study: Mapping[str, Any], root: Path, name: str) -> tuple[Path, bool]:
    """The newest search of these settings, or a new directory; and whether it is new."""
    for directory in runs_named(root, name):
        with contextlib.suppress(UserError):
            if read_config(directory, SEARCH) == study["search"] and read_config(directory) == study["config"]:
                return directory, False
    directory = claim(root, name, "trials")
    write_yaml(directory / SEARCH, study["search"])
    write_yaml(directory / CONFIG, study["config"])
    return directory, True


class _Loop:
    """The trials of a search, one after the other."""

    def __init__(self, search: Search, directory: Path, command: str) -> None:
        self.search, self.directory, self.command = search, directory, command
        self.trials = Trials(directory / TRIALS)
        self.announced = False

    def run(self) -> None:
        search = self.search
        for number in range(search.trials):
            direction = self._direction()
            if (value := self.trials.value(number)) is None:
                before = [trial for trial in self.trials.ended(search.folds) if trial.number < number]
                value = run_in_subprocess(suggestion, search, number, scored(before, direction), direction)
            if not (missing := self.trials.missing(number, search.folds)):
                continue
            all(self._fold(number, fold, value) for fold in missing)  # until one diverges
            if (best := best_of(self.trials.ended(search.folds), self._direction())) is not None:
                text = f"# The best of {search.key} in {self.directory / TRIALS}.\n# {self.command}\n"
                write_yaml(self.directory / "best.yaml", override(search.key, best.value), text)
            draw_tuning(self.directory)
        self._close()

    def _direction(self) -> str:
        # Before the first fit nothing depends on it, and the metric may be misspelt, which that fit will tell.
        return self.search.direction_of(self.trials.metric or "val/acc")

    def _fold(self, number: int, fold: int, value: float) -> bool:
        """Run a fold and write its row; whether it ended well."""
        home = self.directory / "trials" / f"{number:03d}"
        home.mkdir(parents=True, exist_ok=True)
        for left in (home / f"fold-{fold}", *home.glob(f"fold-{fold}-*")):
            shutil.rmtree(left, ignore_errors=True)  # of a fold that was broken off
        key = self.search.key
        inside = key.replace("data.", "data.init_args.data.", 1) if key.startswith("data.") else key
        write_yaml(home / "value.yaml", override(inside, value))
        words = ["--config", str(self.directory / CONFIG), "--config", str(home / "value.yaml")]
        words += [f"--data.init_args.fold={fold}", f"--run.root={home}", f"--run.name=fold-{fold}"]
        start = time.perf_counter()
        status = run_in_subprocess(_fit, words, log=home / f"fold-{fold}.txt")
        metric, result, data = self._read(home, fold)
        status = "diverged" if result is None else status
        row = {"trial": number, "fold": fold, "key": key, "value": value, "metric": metric}
        row |= {"direction": self.search.direction_of(metric) if metric else "", "result": result}
        row |= {"seconds": round(time.perf_counter() - start, 2), "status": status, "data": data}
        if data.startswith("FALLBACK") and not self.announced:
            self.announced = True
            print(f"{'*' * 100}\n* {data}\n{'*' * 100}", flush=True)
        self.trials.append(row)
        for checkpoint in home.glob(f"fold-{fold}*/checkpoints/*.ckpt"):
            checkpoint.unlink()
        self._print_progress(row)
        return status == "finished"

    def _read(self, home: Path, fold: int) -> tuple[str, float | None, str]:
        """The metric, its value at the last epoch (None: the fit diverged), and where the data came from."""
        summaries = map(read_summary, (home / f"fold-{fold}", *home.glob(f"fold-{fold}-*")))
        summary = next((one for one in summaries if one is not None), None)
        if summary is None:
            return self.trials.metric or self.search.metric or "", None, ""
        final = summary["final"]
        metric = self.search.metric or ("val/acc" if "val/acc" in final else "val/loss")
        if metric not in final:
            hint = near(metric, final) or f"\nThere are {', '.join(final)}."
            raise UserError(f"--tune.metric {metric}: the fits have no such metric.{hint}")
        value = math.nan if final[metric] is None else float(final[metric])
        source = summary["data"].get("source", summary["data"]["requested"])
        data = str(source).split(f": fold {fold} of")[0].split(f"; fold {fold} of")[0]
        return metric, value if math.isfinite(value) else None, data

    def _print_progress(self, row: Mapping[str, Any]) -> None:
        search, rows = self.search, self.trials.rows
        left = sum(len(self.trials.missing(number, search.folds)) for number in range(search.trials))
        mean = sum(float(one["seconds"]) for one in rows) / len(rows)
        seen = f"{row['metric']} {row['result']:.4g}" if row["result"] is not None else "diverged"
        place = f"trial {row['trial'] + 1}/{search.trials}  fold {row['fold'] + 1}/{search.folds}"
        eta = f"  {duration(left * mean)} left" if left else ""
        value = f"{search.key.split('.')[-1]} {row['value']:g}"
        print(f"{place}  {value}  {seen}  {row['seconds']:.1f} s{eta}", flush=True)

    def _close(self) -> None:
        """The table that a search ends with."""
        trials = self.trials.ended(self.search.folds)
        if (best := best_of(trials, self._direction())) is None:
            raise UserError(f"All {len(trials)} trials diverged.\nA lower --tune.high is the usual cure.")
        print(f"\n  {self.search.key:>42}  {self.trials.metric} (mean and deviation over {self.search.folds} folds)")
        for trial in sorted(trials, key=lambda trial: trial.value):
            seen = "diverged" if trial.diverged else f"{trial.mean:.4g} ± {pstdev(trial.results):.2g}"
            print(f"  {trial.value:>42g}  {seen}{'  best' if trial is best else ''}")
        print(f"  {self.directory / 'tune.png'}")
        print(f"  again with the best: fit ... --config {self.directory / 'best.yaml'}")
