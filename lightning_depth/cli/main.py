"""The commands and what they need: nothing heavy is imported before a command is known to make sense."""

import errno
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from lightning_depth.errors import UserError

TRAINER_COMMANDS = {
    "fit": "train a network, probe it every epoch, write a report",
    "validate": "one pass over the validation split, with probes",
    "test": "loss and accuracy on the test split",
    "predict": "the outputs on the test split",
}
# Commands that are no Trainer methods: name -> (module with main(arguments), what it does).
OTHER_COMMANDS = {
    "probe": ("lightning_depth.cli.probe", "look at a checkpoint, or at any network, with any probe"),
    "report": ("lightning_depth.cli.report", "draw the report of a run directory again"),
    "tune": ("lightning_depth.cli.tune", "search a learning rate by cross-validation"),
}
TOP_KEYS = frozenset(
    [
        "seed_everything",
        "trainer",
        "model",
        "data",
        "goals",
        "run",
        "ckpt_path",
        "weights_only",
        "verbose",
        "return_predictions",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, or 2 after a user's mistake, which is said in one or two lines."""
    if arguments is not None:
        sys.argv[1:] = arguments  # not passed on: the DDP launcher starts further processes with sys.argv
    try:
        _command(sys.argv[1:])
        return 0
    except UserError as user_error:
        return _say(str(user_error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" ({error.filename})" if error.filename else ""
            return _say(f"No space left on the device{where}.\nFree some, then go on with --ckpt_path last.")
        raise


def _say(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 2


def _command(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    command = argv[0]
    if command in OTHER_COMMANDS:
        run: Callable[[list[str]], None] = import_module(OTHER_COMMANDS[command][0]).main
        run(argv[1:])
        return
    if command not in TRAINER_COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, [*TRAINER_COMMANDS, *OTHER_COMMANDS], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"There is no command {command!r}.{hint}\nSee python main.py --help.")
    if not any(a in ("-h", "--help") or a.startswith("--print_config") for a in argv):
        check_config_files(argv[1:])
    from lightning_depth.cli.lightning_cli import run_trainer_command

    run_trainer_command()


def help_text() -> str:
    """What `--help` prints."""
    every = {**TRAINER_COMMANDS, **{name: what for name, (_, what) in OTHER_COMMANDS.items()}}
    rows = "\n".join(f"  {name:10} {what}" for name, what in every.items())
    return f"""usage: python main.py COMMAND [--config FILE ...] [--key value ...]

commands:
{rows}

  python main.py fit --config configs/resnet_depth.yaml                          the main job
  python main.py fit --config configs/resnet_depth.yaml --model.depth 34         any key can be overridden
  python main.py fit --config configs/resnet_depth.yaml --ckpt_path last         go on with a run that was broken off
  python main.py fit --config A.yaml --config configs/trainer/gpu.yaml           later files override earlier ones
  python main.py fit --config A.yaml --print_config                              what would run
  python main.py probe --ckpt runs/NAME/checkpoints/last.ckpt --probe Spectrum   a table and a picture of one look
  python main.py tune --config configs/k_local.yaml --tune.low 1e-3 --tune.high 1   the rate that 10 folds prefer
  python main.py fit --help                                                      every key of fit
  python main.py fit --model.help ResNet                                         every key of one class"""


def config_files(argv: Sequence[str]) -> list[Path]:
    """The files given by `--config FILE`, `--config=FILE` or `-c FILE`, in order."""
    found = []
    for index, word in enumerate(argv):
        if word in ("--config", "-c"):
            if index + 1 == len(argv):
                raise UserError(f"{word} needs a file.")
            found.append(Path(argv[index + 1]))
        elif word.startswith("--config="):
            found.append(Path(word.removeprefix("--config=")))
    return found


def check_config_files(argv: Sequence[str]) -> None:
    """Refuse what can be seen to be wrong without importing torch.

    Raises:
        UserError: a config file that is missing, unreadable or no YAML mapping, or an unknown top-level key.
    """
    files = config_files(argv)
    if not files and not any(word.startswith("--model") for word in argv):
        raise UserError("No network to work on: give --config FILE, for example configs/resnet_depth.yaml.")
    for word in argv:
        key = word.removeprefix("--").split("=")[0].split(".")[0].rstrip("+")
        if word.startswith("--") and key not in TOP_KEYS | {"config"} and key != "":
            raise UserError(f"Unknown option {word.split('=')[0]}.{_near(key)}\nSee python main.py fit --help.")
    import yaml

    for path in files:
        try:
            loaded = yaml.safe_load(path.read_text())
        except FileNotFoundError as error:
            raise UserError(f"There is no config file {path}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Cannot read the config file {path}: {error}") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(loaded, dict):
            raise UserError(f"{path} is not a config: it must be a mapping with keys such as model, data and trainer.")
        for key in loaded:
            if str(key).rstrip("+") not in TOP_KEYS:
                raise UserError(
                    f"{path}: unknown key {key!r}.{_near(str(key))}\nThe keys are {', '.join(sorted(TOP_KEYS))}."
                )


def _near(key: str) -> str:
    import difflib

    near = difflib.get_close_matches(key, sorted(TOP_KEYS), n=1) or [k for k in TOP_KEYS if key and k.startswith(key)]
    return f" Did you mean {near[0]}?" if near else ""
