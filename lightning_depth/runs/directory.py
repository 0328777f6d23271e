"""The directory that one run owns: how it is named, claimed, found again and written."""

import inspect
import zipfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_depth.errors import UserError
from lightning_depth.results import CONFIG, read_config

# What a resumed run may change: how long it goes on, and what only shows or places it.
FREE_ON_RESUME = (
    "ckpt_path",
    "weights_only",
    "run.",
    "trainer.max_epochs",
    "trainer.logger",
    "trainer.enable_progress_bar",
)


def claim(root: Path, name: str, folder: str = "checkpoints") -> Path:
    """Make and return `root/name`, or `root/name-2` and so on where that is taken. Atomic: no two runs get the same.

    Raises:
        UserError: the directory cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        for candidate in _numbered(root, name):
            try:
                candidate.mkdir()
                # mkdir succeeds for root and on some network drives where writing does not.
                (candidate / folder).mkdir()
                return candidate
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(
            f"Cannot write the run directory {root / name}: {error.strerror}.\nChoose another with --run.root."
        ) from error
    raise AssertionError("an endless iterator ended")


def _numbered(root: Path, name: str) -> Iterator[Path]:
    yield root / name
    number = 2
    while True:
        yield root / f"{name}-{number}"
        number += 1


def checked_name(name: str) -> str:
    """`name`, if it can be the name of a directory inside the root."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise UserError(f"--run.name {name!r} must be a plain directory name.")
    return name


def runs_named(root: Path, name: str) -> list[Path]:
    """The runs called `name` that have a config, newest first."""
    found = [c for c in [root / name, *root.glob(f"{name}-*")] if _is_numbered(c.name, name) and (c / CONFIG).is_file()]
    return sorted(found, key=lambda path: (path / CONFIG).stat().st_mtime, reverse=True)


def _is_numbered(candidate: str, name: str) -> bool:
    return candidate == name or candidate.removeprefix(name + "-").isdecimal()


def check_checkpoint(path: Path) -> None:
    """Raise a UserError where there is no checkpoint, or a truncated one (the index of a zip file is its end)."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.\nGive a file, or `last` for the newest of this run.")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a checkpoint, or a truncated one.\nGive another file with --ckpt_path.")


def newest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that is furthest along: of a broken-off epoch where there is one, else of the last epoch."""
    found = [p for p in (directory / "checkpoints" / name for name in ("requeue.ckpt", "last.ckpt")) if p.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def to_resume(root: Path, name: str, config: Mapping[str, Any]) -> tuple[Path, Path]:
    """The newest run called `name` with this config, at its newest checkpoint.

    Raises:
        UserError: there is none; where only the config differs, it names the keys.
    """
    runs = runs_named(root, name)
    if not runs:
        raise UserError(f"Nothing to resume: there is no run {root / name}.\nLeave out --ckpt_path to start one.")
    same = [run for run in runs if not differences(read_config(run), config)]
    if not same:
        raise UserError(_differs(runs[0], config))
    checkpoint = newest_checkpoint(same[0])
    if checkpoint is None:
        raise UserError(f"Nothing to resume: {same[0]} has no checkpoint yet.\nLeave out --ckpt_path to start anew.")
    check_checkpoint(checkpoint)
    return same[0], checkpoint


def check_same_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Raise a UserError that names the keys in which `config` differs from that of the run in `directory`."""
    if differences(read_config(directory), config):
        raise UserError(_differs(directory, config))


def _differs(directory: Path, config: Mapping[str, Any]) -> str:
    changed = differences(read_config(directory), config)
    shown = ", ".join(f"{key} (was {old!r}, now {new!r})" for key, old, new in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (
        f"Cannot resume {directory}: its config differs in {shown}{more}.\n"
        f"Give the same settings (--config {directory / CONFIG}), or leave out --ckpt_path to start a new run."
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) wherever two configs differ in something a resumed run may not change.

    An argument that `old` lacks is one that came later: at its default it does what was done before there was one.
    """
    flat_old, flat_new = dict(_flat(old)), dict(_flat(new))
    keys = sorted(flat_old.keys() | flat_new.keys())
    return [
        (key, flat_old.get(key), flat_new.get(key))
        for key in keys
        if flat_old.get(key) != flat_new.get(key)
        and not key.startswith(FREE_ON_RESUME)
        and not _came_later(key, old, new)
    ]


def _came_later(key: str, old: Any, new: Any) -> bool:
    """Whether `key` belongs to an argument that `old` lacks and that is at its default in `new`."""
    owner: Any = "lightning.pytorch.Trainer"
    for part in key.split("."):
        if isinstance(old, list) and isinstance(new, list):
            if int(part) >= min(len(old), len(new)):
                return False
            old, new = old[int(part)], new[int(part)]
        elif not (isinstance(old, Mapping) and isinstance(new, Mapping)) or part not in new:
            return False
        elif part not in old:
            return _is_default(owner, part, new[part])
        else:
            old, new = old[part], new[part]
        if isinstance(new, Mapping) and "class_path" in new:
            owner = new["class_path"]
    return False


def _is_default(class_path: str, argument: str, value: Any) -> bool:
    """Whether the class has that value as the argument's default; one that is made by a function counts as such."""
    module, _, name = class_path.rpartition(".")
    for kind in inspect.getmro(getattr(import_module(module), name)):
        parameters = inspect.signature(vars(kind)["__init__"]).parameters if "__init__" in vars(kind) else {}
        if argument in parameters:
            default = parameters[argument].default
            plain = list(default) if isinstance(default, tuple) else default
            return callable(default) or plain == value
    return False


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list) and tree:
        for index, value in enumerate(tree):
            yield from _flat(value, f"{prefix}.{index}")
    else:
        yield prefix, tree
