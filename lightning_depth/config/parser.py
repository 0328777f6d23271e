"""What a config may say: the arguments of a trainer, a network, a data module and a run, as jsonargparse knows them."""

import inspect
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_depth import plugins
from lightning_depth.config.messages import readable
from lightning_depth.config.words import SECTIONS, TOP_KEYS
from lightning_depth.errors import UserError


class Parser(LightningArgumentParser):
    """Says what is wrong and nothing else."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **more: Any) -> Any:  # type: ignore[override]
        """As jsonargparse, which writes the null of `--data.images.image_size null` as the word None on its way in."""
        nulls = None if args is None else [re.sub(r"^(--[\w.]+)=None$", r"\1=null", word) for word in args]
        return super().parse_args(nulls, *rest, **more)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise a UserError with the heart of jsonargparse's message."""
        raise UserError(readable(message, known_words())) from ex


@cache
def parser(command: str, section: str | None = None) -> Parser:
    """The parser of one section of the configs of `command` (`fit`, `validate`, ...), or of whole ones.

    No argument of one section depends on another's, so they can be parsed, and remembered, one by one.
    """
    plugins.load()
    # Or `--trainer.max_epoch 3` would silently mean max_epochs.
    new = Parser(prog=f"python main.py {command}", allow_abbrev=False, dump_header=None)
    new.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file; later ones override earlier ones.")
    for name in SECTIONS if section is None else [section]:
        _add(new, name, command)
    return new


def _add(new: Parser, section: str, command: str) -> None:
    if section == "trainer":
        new.add_lightning_class_args(Trainer, "trainer")
        new.set_defaults({"trainer.num_sanity_val_steps": 0, "trainer.logger": False})
        # Spectra are computed in float64, which Apple's GPUs lack.
        new.set_defaults({"trainer.accelerator": "cpu" if torch.backends.mps.is_available() else "auto"})
        new.set_defaults({"trainer.enable_autolog_hparams": False})  # the record logs the whole config, once
    elif section == "model":
        new.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    elif section == "data":
        new.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    else:
        new.add_argument("--seed_everything", type=bool | int, default=0, help="Seed of the run; true: a random one.")
        new.add_argument("--goals.train_acc", type=float | None, default=None, help="Stop at this training accuracy.")
        new.add_argument("--goals.train_loss", type=float | None, default=None, help="Stop at this training loss.")
        new.add_argument("--goals.every", type=int, default=1, help="Judge the goals every so many epochs.")
        how = "By the epoch as it went by, or by the current weights on un-augmented samples (logged as train_eval/)."
        new.add_argument("--goals.judge", type=Literal["running", "current"], default="running", help=how)
        new.add_argument("--run.root", type=str, default="runs", help="Folder of all runs.")
        new.add_argument("--run.name", type=str | None, default=None, help="Name of the run. Default: the config's.")
        new.add_argument("--run.reduced", type=str | None, default=None, help="How it falls short of a paper's run.")
        new.add_method_arguments(Trainer, command, skip=set(LightningCLI.subcommands()[command]))


@cache
def known_words() -> set[str]:
    """Names that a user may have meant: the classes at hand and the arguments of all of them."""
    torchs = {**vars(torch.optim), **vars(torch.optim.lr_scheduler)}
    classes = {**plugins.built_in(), **{name: value for name, value in torchs.items() if isinstance(value, type)}}
    makers = {Trainer, *(ancestor for value in classes.values() for ancestor in value.__mro__)}
    # A class without an `__init__` of its own has its parents', and that of dict has no signature.
    written = [vars(maker)["__init__"] for maker in makers if inspect.isfunction(vars(maker).get("__init__"))]
    arguments = {name for function in written for name in inspect.signature(function).parameters}
    others = (part for action in parser("fit", "rest")._actions for part in action.dest.split("."))
    keys = TOP_KEYS | {"class_path", "init_args", *others}
    return (classes.keys() | arguments | keys) - {"self", "args", "kwargs"}
