"""The words of a command line and the files that they name, before anything heavy is imported."""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lightning_depth.errors import UserError

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
# The parts of a config, each parsed by itself, and the keys of each.
SECTIONS = {
    "trainer": ("trainer",),
    "model": ("model",),
    "data": ("data",),
    "rest": ("seed_everything", "goals", "run", "ckpt_path", "weights_only", "verbose", "return_predictions"),
}
MAPPINGS = {
    "goals": "Its keys are goals.train_acc, goals.train_loss, goals.every and goals.judge.",
    "run": "Its keys are run.root, run.name and run.reduced.",
}
TOP_KEYS = frozenset(key for keys in SECTIONS.values() for key in keys)


def near(word: str, known: Iterable[str]) -> str:
    """A hint at the word that was probably meant, or nothing.

    >>> near("trainr", ["model", "trainer"])
    ' Did you mean trainer?'
    """
    known = sorted(known)
    found = difflib.get_close_matches(word, known, n=1) or [k for k in known if word and k.startswith(word)]
    return f" Did you mean {found[0]}?" if found else ""


def section_of(key: str) -> str:
    """The part of a config to which a top-level key belongs; `rest` for one that is in none.

    >>> section_of("model"), section_of("seed_everything")
    ('model', 'rest')
    """
    return next((name for name, keys in SECTIONS.items() if key in keys), "rest")


def options(words: Sequence[str]) -> list[list[str]]:
    """Each option with the words that follow it; a file is one of them, however it was given.

    >>> options(["-c", "a.yaml", "--config=b.yaml", "--model.depth=3", "--print_config"])
    [['--config', 'a.yaml'], ['--config', 'b.yaml'], ['--model.depth=3'], ['--print_config']]
    """
    found: list[list[str]] = []
    for word in words:
        if word == "-c" or word.startswith("--config="):
            found.append(["--config", *word.split("=", 1)[1:]])
        elif word.startswith("--"):
            found.append([word])
        elif not found:
            raise UserError(f"Unexpected word {word}: options begin with --.")
        else:
            found[-1].append(word)
    return found


def key_of(option: str) -> str:
    """The top-level key that an option sets.

    >>> key_of("--trainer.callbacks+=OperatorNorm")
    'trainer'
    """
    return option.removeprefix("--").split("=")[0].split(".")[0].rstrip("+")


def config_files(words: Sequence[str]) -> list[Path]:
    """The files given by `--config FILE`, `--config=FILE` or `-c FILE`, in order."""
    given = [rest for first, *rest in options(words) if first == "--config"]
    if [] in given:
        raise UserError("--config needs a file.")
    return [Path(file) for file, *_ in given]


def read_file(path: Path) -> dict[str, Any]:
    """What a config file says; a UserError where it is missing, no YAML mapping, or has an unknown top-level key."""
    try:
        loaded = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
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
            known = f"The keys are {', '.join(sorted(TOP_KEYS))}."
            raise UserError(f"{path}: unknown key {key!r}.{near(str(key), TOP_KEYS)}\n{known}")
        if key in MAPPINGS and not isinstance(loaded[key], dict):
            raise UserError(f"{path}: {key} must be a mapping, not {loaded[key]!r}.\n{MAPPINGS[key]}")
    return loaded


def check(words: Sequence[str]) -> None:
    """Raise a UserError without importing torch: no network is named, an unknown key, a wrong file (`read_file`)."""
    files = config_files(words)
    if not files and not any(word.startswith("--model") for word in words):
        raise UserError("No network to work on: give --config FILE, for example configs/resnet_depth.yaml.")
    for first, *_ in options(words):
        key = key_of(first)
        if key not in TOP_KEYS | {"config"} and key != "":
            option = first.split("=")[0]
            raise UserError(f"Unknown option {option}.{near(key, TOP_KEYS)}\nSee python main.py fit --help.")
        if first.split("=")[0].removeprefix("--") in MAPPINGS:
            raise UserError(f"--{key} has no value of its own.\n{MAPPINGS[key]}")
    for path in files:
        read_file(path)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether the words only ask what a config may hold, or what it would be."""
    return any(re.match(r"-h$|--help$|--[\w.]+\.help\b|--print_config", word) for word in words)


def check_name(name: str) -> None:
    """Refuse a name of a run that cannot be that of a directory inside the root."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise UserError(f"--run.name {name!r} must be a plain directory name.")


class CommandParser(argparse.ArgumentParser):
    """The options of a command's own; what is wrong with them is a `UserError`."""

    def __init__(self, command: str, add_help: bool = False, description: str | None = None) -> None:
        program = f"python main.py {command}"
        super().__init__(prog=program, description=description, add_help=add_help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace('the following', 'The following', 1)}.\nSee {self.prog} --help.")
