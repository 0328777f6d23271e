"""Where loggers write, and what W&B is told."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

WANDB = "lightning.pytorch.loggers.WandbLogger"


def prepare(trainer: Namespace, directory: Path, data: Any, resumed: bool) -> None:
    """Let each logger of a trainer's config write into the run's directory, and W&B say which run and data this is."""
    for logger in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
        arguments = logger.get("init_args") if isinstance(logger, Namespace) else None
        if arguments is None:
            continue
        if arguments.get("save_dir") in (None, ".", "lightning_logs"):
            arguments["save_dir"] = str(directory)
        if logger.class_path == WANDB:
            _prepare_wandb(logger, directory, data, resumed)


def _prepare_wandb(logger: Namespace, directory: Path, data: Any, resumed: bool) -> None:
    arguments = logger.init_args
    extra = dict(logger.get("dict_kwargs") or {})
    # What is meant for `wandb.init` arrives among the arguments where jsonargparse finds it there, else beside them.
    group, tags = (arguments if key in arguments else extra for key in ("group", "tags"))
    # A second segment under the same id would replace the first on the server: each attempt is a run in one group.
    if group.get("group") is None:
        group["group"] = directory.name
    if arguments.get("name") is None:
        attempts = len(list((directory / "wandb").glob("*run-*"))) if resumed else 0
        arguments["name"] = directory.name + (f"-attempt{attempts + 1}" if resumed else "")
    if getattr(getattr(data, "source", None), "fallback", False):
        tags["tags"] = [*(tags.get("tags") or []), "fallback data"]
    logger["dict_kwargs"] = extra
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not (os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text())):
        os.environ.setdefault("WANDB_MODE", "offline")
