"""`python main.py tune`: search the value of one key by k-fold cross-validation (mori2020 2.3)."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_depth.config.words import CommandParser, check, check_name, config_files, near
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


def main(arguments: list[str]) -> None:
    """Parse `arguments`, then run every fold of every trial that is missing in the table."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE)
        return
    own, words = _own(arguments)
    _check(own, words)
    from lightning_depth.config.resolve import resolve
    from lightning_depth.studies.search import Search
    from lightning_depth.studies.tune import run_search, whole_key

    config = resolve("fit", words).values
    seed = config["seed_everything"]
    if isinstance(seed, bool):
        raise UserError(f"A search needs a seed: --seed_everything 0, not {seed}.")
    key = whole_key(own.key, config)
    search = Search(key, own.low, own.high, own.log, own.trials, own.folds, own.metric, own.direction, seed)
    name = own.name or f"tune-{next((file.stem for file in config_files(words)), 'run')}"
    run_search(search, config, Path(config["run"]["root"]), name, f"python main.py tune {shlex.join(arguments)}")


def _own(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = CommandParser("tune")
    parser.add_argument("--tune.key", dest="key", default="model.init_args.optimizer.init_args.lr")
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
            raise UserError(f"Unknown option {option}.{near(option, known)}\nSee python main.py tune --help.")
    return parser.parse_known_args(arguments)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _check(own: argparse.Namespace, words: list[str]) -> None:
    """Refuse what can be seen to be wrong before anything slow is imported."""
    check(words)
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        raise UserError("A search is one process: start it with --ntasks 1.")
    if any(word.split("=")[0] in ("--print_config", "--ckpt_path", "--run.name") for word in words):
        raise UserError("--print_config, --ckpt_path and --run.name are for fit; the search's name is --tune.name.")
    if own.name is not None:
        check_name(own.name)
