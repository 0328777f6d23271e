"""A config and what belongs to it: its data, and the run directory or the checkpoint that it is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_depth.config.resolve import Config
from lightning_depth.runs.directory import check_checkpoint, checked_name
from lightning_depth.runs.place import checkpoint_of, has_ended, place
from lightning_depth.training.run import locate, run


def name_of(config: Config, data: Any) -> str:
    """What the run is called: by its key, or after its first config file; data in place of others say so."""
    named = config.values["run"]
    if named["name"] is None:
        named["name"] = config.files[0].stem if config.files else "run"
    fallback = getattr(getattr(data, "source", None), "fallback", False)
    return f"{named['name']}-fallback" if fallback else str(named["name"])


def fit(config: Config) -> None:
    """Train, in a new run or in one that goes on."""
    wanted = config.parsed["rest"].ckpt_path
    _check(config, wanted)
    data = locate(config)
    name = name_of(config, data)
    where = place(Path(config.values["run"]["root"]), name, None if wanted is None else str(wanted), config.values)
    if has_ended(where):
        rank_zero_info(
            f"{where.directory} is finished: nothing is left to train, and nothing was changed.\n"
            "A larger --trainer.max_epochs goes on from here; without --ckpt_path a new run starts."
        )
        return
    run(config, data, where)


def evaluate(config: Config, more: Sequence[Callback] = ()) -> None:
    """Show a network the samples of a split, with `more` callbacks; without a checkpoint its initial weights."""
    wanted = config.parsed["rest"].ckpt_path
    _check(config, wanted)
    data = locate(config)
    checkpoint = None
    if wanted is not None:
        root = Path(config.values["run"]["root"])
        checkpoint = checkpoint_of(root, name_of(config, data), str(wanted), config.command)
    else:
        rank_zero_warn(f"{config.command} without --ckpt_path: the network has its initial weights.")
    run(config, data, more=more, checkpoint=checkpoint)


def _check(config: Config, wanted: Any) -> None:
    if config.values["run"]["name"] is not None:
        checked_name(config.values["run"]["name"])
    if wanted not in (None, "last", "best"):
        check_checkpoint(Path(wanted))
