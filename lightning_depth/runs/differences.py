"""Whether a run may go on with a config: in what two configs differ that a resumed run may not change."""

import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_depth.errors import UserError
from lightning_depth.results import CONFIG, flat, read_config

# What a resumed run may change: how long it goes on, and what only shows or places it.
SHOWS_OR_PLACES = ("run.", "trainer.logger", "trainer.enable_progress_bar")
FREE_ON_RESUME = ("ckpt_path", "weights_only", "trainer.max_epochs", *SHOWS_OR_PLACES)


def check_same_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Raise a UserError that names the keys in which `config` differs from that of the run in `directory`."""
    if changed := differences(read_config(directory), config):
        shown = ", ".join(f"{key} (was {old!r}, now {new!r})" for key, old, new in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        hint = f"Give the same settings (--config {directory / CONFIG}), or leave out --ckpt_path to start a new run."
        raise UserError(f"Cannot resume {directory}: its config differs in {shown}{more}.\n{hint}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) wherever two configs differ in something a resumed run may not change.

    An argument that `old` lacks is one that came later: at its default it does what was done before there was one.
    """
    flat_old, flat_new = ({key: value for key, value in flat(of, lists=True) if value != {}} for of in (old, new))
    keys = [key for key in sorted(flat_old.keys() | flat_new.keys()) if flat_old.get(key) != flat_new.get(key)]
    bound = [key for key in keys if not key.startswith(FREE_ON_RESUME) and not _came_later(key, old, new)]
    return [(key, flat_old.get(key), flat_new.get(key)) for key in bound]


def _came_later(key: str, old: Any, new: Any) -> bool:
    """Whether `key` belongs to an argument that `old` lacks and that is at its default in `new`."""
    owner = "lightning_depth.training.goals.Goals" if key.startswith("goals.") else "lightning.pytorch.Trainer"
    for part in key.split("."):
        if isinstance(old, list) and isinstance(new, list):
            if int(part) >= min(len(old), len(new)):
                return False
            old, new = old[int(part)], new[int(part)]
        elif not (isinstance(old, Mapping) and isinstance(new, Mapping)) or part not in new:
            return False
        elif part == "init_args" and part not in old:
            old, new = {}, new[part]
        elif part not in old:
            return _is_default(owner, part, new[part])
        else:
            old, new = old[part], new[part]
        if isinstance(new, Mapping) and "class_path" in new:
            owner = new["class_path"]
    return False


def _is_default(class_path: str, argument: str, value: Any) -> bool:
    """Whether the class has that value as the argument's default; a function stands in a config by its import path."""
    for kind in inspect.getmro(pkgutil.resolve_name(class_path)):
        parameters = inspect.signature(vars(kind)["__init__"]).parameters if "__init__" in vars(kind) else {}
        if argument in parameters:
            default = parameters[argument].default
            if callable(default):
                return bool(value == f"{default.__module__}.{default.__qualname__}")
            return bool((list(default) if isinstance(default, tuple) else default) == value)
    return False
