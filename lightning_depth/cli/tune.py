"""`python main.py tune`: search the value of one key by k-fold cross-validation (mori2020 2.3)."""

import argparse
import contextlib
import copy
import difflib
import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import pstdev
from typing import Any, NoReturn

import yaml

from lightning_depth.cli.main import check_config_files, config_files
from lightning_depth.errors import UserError

USAGE = """usage: python main.py tune --config FILE --tune.low A --tune.high B [--tune.KEY VALUE ...] [--KEY VALUE ...]

  --tune.key KEY        what to search. Default: model.init_args.optimizer.init_args.lr
  --tune.low A          least value
  --tune.high B         largest value
  --tune.log BOOL       search on a logarithmic scale. Default: true
  --tune.trials N       values to try: 5 at random, then by a Gaussian process. Default: 20
  --tune.folds K        parts of the training split; a trial is K fits, each validated on one part. Default: 10
  --tune.metric NAME    what is compared, at the last epoch: val/acc, val/loss, ... Default: val/acc, else val/loss
  --tune.direction D    max or min. Default: max for accuracies, min for losses and errors
  --tune.name NAME      of the new directory in --run.root. Default: tune-CONFIG

Every other option is one of `python main.py fit --help`; probes and loggers of the config are left out. The directory
has trials.csv, tune.png and best.yaml. The same command goes on with a search that was broken off, and with a larger
--tune.trials with one that has ended.

  python main.py tune --config configs/k_local.yaml --tune.low 1e-3 --tune.high 1 --tune.trials 20 --tune.folds 10
  python main.py fit --config configs/k_local.yaml --config runs/tune-k_local/best.yaml"""
KEY = "model.init_args.optimizer.init_args.lr"


def main(arguments: list[str]) -> None:
    """Parse `arguments`, then run every fold of every trial that is missing in the table."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE)
        return
    own, words = _own(arguments)
    _check(own, words)
    import lightning_depth.cli.lightning_cli  # noqa: F401  # what the processes of the fits need, imported once; nothing here uses it
    from lightning_depth.studies.search import Search, apart

    config = apart(_config, words)
    key = whole_key(own.key, config)
    if config.get("ckpt_path") is not None:
        raise UserError("A search starts each fit from scratch: leave out ckpt_path.")
    seed = config["seed_everything"]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"A search needs a seed: --seed_everything 0, not {seed}.")
    search = Search(key, own.low, own.high, own.log, own.trials, own.folds, own.metric, own.direction, seed)
    root = Path(config["run"]["root"])
    files = config_files(words)
    name = own.name or f"tune-{files[0].stem if files else 'run'}"
    run_search(search, config, root, name, "python main.py tune " + shlex.join(arguments))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}.\nSee python main.py tune --help.")


def _own(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = _Parser(prog="python main.py tune", add_help=False, allow_abbrev=False)
    parser.add_argument("--tune.key", dest="key", default=KEY)
    parser.add_argument("--tune.low", dest="low", type=float, required=True)
    parser.add_argument("--tune.high", dest="high", type=float, required=True)
    parser.add_argument("--tune.log", dest="log", type=_truth, default=True, metavar="{true,false}")
    parser.add_argument("--tune.trials", dest="trials", type=int, default=20)
    parser.add_argument("--tune.folds", dest="folds", type=int, default=10)
    parser.add_argument("--tune.metric", dest="metric")
    parser.add_argument("--tune.direction", dest="direction", choices=["max", "min"])
    parser.add_argument("--tune.name", dest="name")
    known = [option for action in parser._actions for option in action.option_strings]
    for word in arguments:
        option = word.split("=")[0]
        if option.startswith("--tune") and option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"Unknown option {option}.{hint}\nSee python main.py tune --help.")
    return parser.parse_known_args(arguments)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _check(own: argparse.Namespace, words: list[str]) -> None:
    """Refuse what can be seen to be wrong before anything slow is imported."""
    check_config_files(words)
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        raise UserError("A search is one process: start it with --ntasks 1.")
    if any(word.split("=")[0] in ("--print_config", "--ckpt_path", "--run.name") for word in words):
        raise UserError("--print_config, --ckpt_path and --run.name are for fit; the search's name is --tune.name.")
    from lightning_depth.runs.directory import checked_name

    if own.name is not None:
        checked_name(own.name)


def _config(words: Sequence[str]) -> dict[str, Any]:
    """The whole config of `fit words`, every default written out; without probes. In a process apart."""
    from lightning_depth.cli.lightning_cli import run_trainer_command
    from lightning_depth.probes import AbstractProbe

    out = io.StringIO()
    sys.argv[1:] = ["fit", *words]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run_trainer_command(["fit", *words, "--print_config"])
    config: dict[str, Any] = yaml.safe_load(out.getvalue())
    kept = []
    for callback in config["trainer"]["callbacks"] or []:
        module, _, name = callback["class_path"].rpartition(".")
        if not issubclass(getattr(import_module(module), name), AbstractProbe):
            kept.append(callback)
    config["trainer"]["callbacks"] = kept or None
    return config


def _fit(words: Sequence[str]) -> str:
    """`fit words`: "finished", or "diverged". In a process apart."""
    from lightning_depth.cli.lightning_cli import run_trainer_command
    from lightning_depth.training.finite_loss import Diverged

    sys.argv[1:] = words  # the DDP launcher starts further processes with it
    try:
        run_trainer_command(words)
    except Diverged as user_error:
        print(user_error, file=sys.stderr)
        return "diverged"
    return "finished"


def _numbers(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) for every number, or null, that is not inside a list."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _numbers(value, f"{prefix}.{key}" if prefix else str(key))
    elif tree is None or (isinstance(tree, int | float) and not isinstance(tree, bool)):
        yield prefix, tree


def whole_key(asked: str, config: Mapping[str, Any]) -> str:
    """The key of `config` that is meant: `init_args` may be left out.

    Raises:
        UserError: there is none, or it holds no number; it names the closest.

    >>> whole_key("model.lr", {"model": {"init_args": {"lr": 0.1}}})
    'model.init_args.lr'
    """
    keys = [key for key, _ in _numbers(config) if key.split(".")[0] in ("model", "data", "trainer")]
    short = {key.replace(".init_args", ""): key for key in keys}
    if asked.replace(".init_args", "") in short:
        return short[asked.replace(".init_args", "")]
    near = difflib.get_close_matches(asked, keys, n=1) or difflib.get_close_matches(asked, short, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"--tune.key {asked}: the config has no such number.{hint}\nSee python main.py fit ... --print_config."
    )


def override(key: str, value: float) -> dict[str, Any]:
    """A config that sets `key` alone.

    >>> override("model.init_args.lr", 0.1)
    {'model': {'init_args': {'lr': 0.1}}}
    """
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    whole: dict[str, Any] = tree
    return whole


def of_folds(config: Mapping[str, Any], folds: int) -> dict[str, Any]:
    """The config of the fits of a search: its data in `Folds`, no logger, no bar."""
    made = copy.deepcopy(dict(config))
    for key in ("ckpt_path", "weights_only"):
        made.pop(key, None)
    if made.get("data") is None:
        raise UserError("A search divides the training samples of a data module: give --data.")
    made["run"] = {"reduced": made["run"]["reduced"]}
    made["trainer"] |= {"logger": False, "enable_progress_bar": False}
    made["data"] = {
        "class_path": "lightning_depth.data.Folds",
        "init_args": {"data": made["data"], "fold": 0, "folds": folds},
    }
    return made


def run_search(search: Any, config: Mapping[str, Any], root: Path, name: str, command: str) -> None:
    """Run what is missing of a search, a `Search`, in its directory: that of the same settings, or a new one.

    Raises:
        UserError: a fit refuses its settings, all trials diverged, or another process is at work in the directory.
    """
    from filelock import FileLock, Timeout

    settings = {
        "key": search.key,
        "low": search.low,
        "high": search.high,
        "log": search.log,
        "folds": search.folds,
        "metric": search.metric,
        "direction": search.direction,
    }
    study = {"search": settings, "config": of_folds(config, search.folds)}
    directory, new = _place(study, root, name)
    try:
        with FileLock(directory / ".lock", timeout=5):  # the fit of a search that was killed has ended by then
            print(f"search directory: {directory}{'' if new else ' (going on)'}", flush=True)
            _Loop(search, directory, command).run()
    except Timeout as error:
        raise UserError(
            f"Another process is at work in {directory}.\nGive --tune.name for a search of its own."
        ) from error
    except UserError:
        if new and not (directory / "trials.csv").is_file():
            shutil.rmtree(directory)
        raise
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def _place(study: Mapping[str, Any], root: Path, name: str) -> tuple[Path, bool]:
    """The newest search of these settings, or a new directory; and whether it is new."""
    from lightning_depth.results import CONFIG, SEARCH, read_config, write_yaml
    from lightning_depth.runs.directory import claim, runs_named

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

    def __init__(self, search: Any, directory: Path, command: str) -> None:
        from lightning_depth.studies.search import Trials

        self.search, self.directory, self.command = search, directory, command
        self.trials = Trials(directory / "trials.csv")
        self.announced = False

    def run(self) -> None:
        from lightning_depth.figures.tuning import best_of, draw_tuning
        from lightning_depth.results import write_yaml
        from lightning_depth.studies.search import apart, scored, suggestion

        search = self.search
        for number in range(search.trials):
            direction = self._direction()
            value = self.trials.value(number)
            if value is None:
                before = [trial for trial in self.trials.ended(search.folds) if trial.number < number]
                value = apart(suggestion, search, number, scored(before, direction), direction)
            missing = self.trials.missing(number, search.folds)
            for fold in missing:
                if not self._fold(number, fold, value):
                    break
            best = best_of(self.trials.ended(search.folds), self._direction())
            if missing and best is not None:
                text = f"# The best of {search.key} in {self.directory / 'trials.csv'}.\n# {self.command}\n"
                write_yaml(self.directory / "best.yaml", override(self._key, best.value), text)
            if missing:
                draw_tuning(self.directory)
        self._close()

    @property
    def _key(self) -> str:
        return str(self.search.key)

    def _direction(self) -> str:
        metric = self.search.metric or self.trials.metric or "val/acc"
        return str(self.search.direction_of(metric))

    def _fold(self, number: int, fold: int, value: float) -> bool:
        """Run a fold and write its row; whether it ended well."""
        from lightning_depth.results import write_yaml
        from lightning_depth.studies.search import apart

        home = self.directory / "trials" / f"{number:03d}"
        home.mkdir(parents=True, exist_ok=True)
        for left in (home / f"fold-{fold}", *home.glob(f"fold-{fold}-*")):
            shutil.rmtree(left, ignore_errors=True)  # of a fold that was broken off
        inside = self._key.replace("data.", "data.init_args.data.", 1) if self._key.startswith("data.") else self._key
        write_yaml(home / "value.yaml", override(inside, value))
        words = ["fit", "--config", str(self.directory / "config.yaml"), "--config", str(home / "value.yaml")]
        words += [f"--data.init_args.fold={fold}", f"--run.root={home}", f"--run.name=fold-{fold}"]
        start = time.perf_counter()
        status = apart(_fit, words, said=home / f"fold-{fold}.txt")
        metric, result, data = self._read(home, fold)
        if result is None:
            status = "diverged"
        row = {"trial": number, "fold": fold, "key": self._key, "value": value, "metric": metric}
        row |= {"direction": self.search.direction_of(metric) if metric else "", "result": result}
        row |= {"seconds": round(time.perf_counter() - start, 2), "status": status, "data": data}
        if data.startswith("FALLBACK") and not self.announced:
            self.announced = True
            print(f"{'*' * 100}\n* {data}\n{'*' * 100}", flush=True)
        self.trials.append(row)
        for checkpoint in home.glob(f"fold-{fold}*/checkpoints/*.ckpt"):
            checkpoint.unlink()
        self._say(row)
        return status == "finished"

    def _read(self, home: Path, fold: int) -> tuple[str, float | None, str]:
        """The metric, its value at the last epoch (None: the fit diverged), and where the data came from."""
        from lightning_depth.results import read_summary

        summaries = map(read_summary, (home / f"fold-{fold}", *home.glob(f"fold-{fold}-*")))
        summary = next((one for one in summaries if one is not None), None)
        if summary is None:
            return self.trials.metric or self.search.metric or "", None, ""
        final = summary["final"]
        metric = self.search.metric or ("val/acc" if "val/acc" in final else "val/loss")
        if metric not in final:
            near = difflib.get_close_matches(metric, final, n=1)
            hint = f" Did you mean {near[0]}?" if near else f"\nThere are {', '.join(final)}."
            raise UserError(f"--tune.metric {metric}: the fits have no such metric.{hint}")
        value = float(final[metric])
        source = summary["data"].get("source", summary["data"]["requested"])
        finite = value == value and abs(value) != float("inf")
        return (
            metric,
            value if finite else None,
            str(source).split(f": fold {fold} of")[0].split(f"; fold {fold} of")[0],
        )

    def _say(self, row: Mapping[str, Any]) -> None:
        search, rows = self.search, self.trials.rows
        left = sum(len(self.trials.missing(number, search.folds)) for number in range(search.trials))
        mean = sum(float(one["seconds"]) for one in rows) / len(rows)
        seen = f"{row['metric']} {row['result']:.4g}" if row["result"] is not None else "diverged"
        place = f"trial {row['trial'] + 1}/{search.trials}  fold {row['fold'] + 1}/{search.folds}"
        eta = f"  {_clock(left * mean)} left" if left else ""
        print(f"{place}  {self._key.split('.')[-1]} {row['value']:g}  {seen}  {row['seconds']:.1f} s{eta}", flush=True)

    def _close(self) -> None:
        """The table that a search ends with."""
        from lightning_depth.figures.tuning import best_of

        trials = self.trials.ended(self.search.folds)
        best = best_of(trials, self._direction())
        if best is None:
            raise UserError(f"All {len(trials)} trials diverged.\nA lower --tune.high is the usual cure.")
        print(f"\n  {self._key:>42}  {self.trials.metric} (mean and deviation over {self.search.folds} folds)")
        for trial in sorted(trials, key=lambda trial: trial.value):
            seen = "diverged" if trial.diverged else f"{trial.mean:.4g} ± {pstdev(trial.results):.2g}"
            print(f"  {trial.value:>42g}  {seen}{'  best' if trial is best else ''}")
        print(
            f"  {self.directory / 'tune.png'}\n  again with the best: fit ... --config {self.directory / 'best.yaml'}"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
