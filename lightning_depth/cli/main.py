"""The commands and what they need: nothing heavy is imported before a command is known to make sense."""

import errno
import sys
from collections.abc import Sequence
from importlib import import_module

from lightning_depth.cli.messages import filter_messages
from lightning_depth.config.words import TRAINER_COMMANDS, asks_for_help, check, near
from lightning_depth.errors import UserError

# Name -> (module with main(words), or main(command, words) of Lightning's trainer; what it does).
COMMANDS = {
    "fit": ("lightning_depth.cli.train", "train a network, probe it every epoch, write a report"),
    "validate": ("lightning_depth.cli.train", "one pass over the validation split, with probes"),
    "test": ("lightning_depth.cli.train", "loss and accuracy on the test split"),
    "predict": ("lightning_depth.cli.train", "the outputs on the test split"),
    "probe": ("lightning_depth.cli.probe", "look at a checkpoint, or at any network, with any probe"),
    "report": ("lightning_depth.cli.report", "draw the report of a run directory again"),
    "tune": ("lightning_depth.cli.tune", "search a learning rate by cross-validation"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, or 2 after a user's mistake, which is said in one or two lines."""
    if arguments is not None:
        sys.argv[1:] = arguments  # not passed on: the DDP launcher starts further processes with sys.argv
    try:
        _command(sys.argv[1:])
        return 0
    except UserError as user_error:
        message = str(user_error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        message = f"No space left on the device{where}.\nFree some, then go on with --ckpt_path last."
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 2


def _command(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    command, *words = argv
    if command not in COMMANDS:
        raise UserError(f"There is no command {command!r}.{near(command, COMMANDS)}\nSee python main.py --help.")
    filter_messages()
    of_trainer = command in TRAINER_COMMANDS
    if of_trainer and not asks_for_help(words):
        check(words)
    import_module(COMMANDS[command][0]).main(*([command] if of_trainer else []), words)


def help_text() -> str:
    """What `--help` prints."""
    rows = "\n".join(f"  {name:10} {what}" for name, (_, what) in COMMANDS.items())
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
