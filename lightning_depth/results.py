"""The format of a run's directory: its files' names, their columns, reading and writing. Nothing else opens them.

`config.yaml` has every setting, `metrics.csv` a row an epoch, `readings.csv` a `Reading` a row, `probes.json` how these
are shown, `pictures/<probe>/epoch-<epoch>.npz` arrays that probes read, `summary.json`, written last, what the run came
to, and `report.png` shows it all. A search has `search.yaml` and `trials.csv`.
"""

import csv
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import yaml
from numpy.typing import NDArray

from lightning_depth.errors import UserError

CONFIG, METRICS, READINGS, SUMMARY = "config.yaml", "metrics.csv", "readings.csv", "summary.json"
PROBES, PICTURES, REPORT = "probes.json", "pictures", "report.png"
OUTPUTS = "outputs"
TRIALS, SEARCH = "trials.csv", "search.yaml"

Split = Literal["train", "val", "test"]
"""The parts of a data set, and the first word of a metric's name: `val/acc`."""


class Reading(NamedTuple):
    """One number that a probe read.

    Attributes:
        epoch: the number of finished epochs.
        probe: the probe's name.
        layer: the module (or parameter) that it is about, `input`, or empty where it is about the network or the probe.
        at: where on an axis of the probe's own it was read (a correlation, a strength), if the probe has one.
        key, value: what was read, and the number.
    """

    epoch: int
    probe: str
    layer: str
    at: float | None
    key: str
    value: float


@dataclass(frozen=True)
class Key:
    """What a probe reads under one key, and how to show it.

    Attributes:
        name: the key, as it stands in a reading.
        title: of the panel that shows it for many layers (or places on the axis); empty: it is not drawn.
        title_one: of the panel that shows it for one, in which `{layer}` stands for its name; empty: as `title`.
        unit: what stands beside the numbers.
        factor: from the reading to that unit.
        from_zero: whether the axis of a curve begins at zero.
        chance: what a random guess reads, before the factor; `classes`: 1 - 1 / the number of classes.
        rows: what the rows of the panel are, from top to bottom.
        at: what `at` is called, if there is one: `rho`.
        definition, source: what is read, exactly, and where that stands; for readers.
    """

    name: str
    title: str = ""
    title_one: str = ""
    unit: str = ""
    factor: float = 1.0
    from_zero: bool = False
    chance: float | Literal["classes"] | None = None
    rows: str = "input  →  output"
    at: str = ""
    definition: str = ""
    source: str = ""


@dataclass(frozen=True)
class ArrayKey:
    """An array that a probe reads: its key, its panel's title, and whether a similarity matrix is shown in clusters."""

    name: str
    title: str
    clustered: bool = False


@dataclass(frozen=True)
class Declaration:
    """What a probe declares of what it reads; `kind` is the name that it has where it is given none."""

    kind: str
    keys: tuple[Key, ...] = ()
    arrays: tuple[ArrayKey, ...] = ()


@dataclass
class Arrays:
    """What one probe read under one key: layer -> epoch -> array, and the names of its first axis's entries."""

    probe: str
    key: str
    layers: dict[str, dict[int, NDArray[np.float64]]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: it takes its place when the block ends well, so the file is whole or not there.

    It has the same suffix, is on the disk before it has its name, and is gone where the block raises.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 that is there whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flat(tree: Any, lists: bool = False, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a config that is no mapping, or an empty one; with `lists`, no list either.

    >>> dict(flat({"a": {"b": 1, "c": ["d"]}})), dict(flat({"c": ["d"]}, lists=True))
    ({'a.b': 1, 'a.c': ['d']}, {'c.0': 'd'})
    """
    parts = dict(enumerate(tree)) if lists and isinstance(tree, list) else tree
    if not isinstance(parts, Mapping) or not parts:
        yield prefix, tree
        return
    for key, value in parts.items():
        yield from flat(value, lists, f"{prefix}.{key}" if prefix else str(key))


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write `config.yaml`."""
    opening = "# The whole config of this run. Again: python main.py fit --config THIS_FILE\n"
    write_yaml(directory / CONFIG, config, opening)


def write_yaml(path: Path, tree: Mapping[str, Any], opening: str = "") -> None:
    """Write a tree of plain values, after lines of comment."""
    write_text(path, opening + yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True))


def read_config(directory: Path, name: str = CONFIG) -> dict[str, Any]:
    """The settings of a run, or those in another file; a `UserError` where there are none, or they are not YAML."""
    path = directory / name
    try:
        text = path.read_text(encoding="utf-8")
        for old, new in RENAMED.items():
            text = text.replace(old, new)
        loaded = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(loaded, dict):
        return {}
    if "model" in loaded and "goals" not in loaded:
        arguments = (loaded["model"] or {}).get("init_args") or {}
        loaded["goals"] = {new: arguments.pop(old) for old, new in MOVED.items() if old in arguments}
    return loaded


# What was called otherwise in earlier versions: goals were arguments of the model, the shelf was a module of its own.
MOVED = {"stop_at_train_acc": "train_acc", "stop_at_train_loss": "train_loss", "check_every": "every"}
RENAMED = {"class_path: callbacks.": "class_path: lightning_depth.callbacks.", "split: held_out": "split: val"}


def write_outputs(directory: Path, outputs: NDArray[Any]) -> Path:
    """Write what a network returned for the samples of the test split, (n, ...), for `numpy.load`."""
    path = directory / OUTPUTS / "test.npy"
    with atomic_file(path) as unfinished:
        np.save(unfinished, outputs)
    return path


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`: NaN and infinities, for which JSON has no word, are null, other objects their text."""
    text = json.dumps(summary, default=lambda value: value.item() if isinstance(value, np.generic) else str(value))
    plain = json.loads(text, parse_constant=lambda word: None)
    write_text(directory / SUMMARY, json.dumps(plain, indent=2) + "\n")


def read_summary(directory: Path) -> dict[str, Any] | None:
    """What a run says of itself when it has ended; None before. A `UserError` where it is torn, or holds no object."""
    return _read_json(directory / SUMMARY)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: a {type(loaded).__name__} where an object was expected.")
    return loaded


def write_declarations(directory: Path, declared: Mapping[str, Declaration]) -> None:
    """Write what probes, by name, declare of their readings into `probes.json`, beside what others have declared."""
    before = read_declarations(directory)
    if before | dict(declared) != before:
        every = {name: asdict(one) for name, one in (before | dict(declared)).items()}
        write_text(directory / PROBES, json.dumps(every, indent=1, ensure_ascii=False) + "\n")


def read_declarations(directory: Path) -> dict[str, Declaration]:
    """What a run's probes declare, by name: nothing where the run is older, a `UserError` where the file is broken."""
    found: dict[str, Declaration] = {}
    try:
        for name, one in (_read_json(directory / PROBES) or {}).items():
            keys, arrays = (Key(**key) for key in one["keys"]), (ArrayKey(**array) for array in one["arrays"])
            found[name] = Declaration(one["kind"], tuple(keys), tuple(arrays))
    except (TypeError, KeyError) as error:
        raise UserError(f"{directory / PROBES}: no declarations of probes as this version writes them.") from error
    return found


class Table:
    """An append-only CSV table whose first column is the epoch.

    Rows are written in one piece, so that a kill leaves at most one torn line, which `rewind` removes.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path, self.columns = path, list(columns)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows. New columns widen the table: the earlier rows get empty cells."""
        if not (rows := list(rows)):
            return
        self.columns = self._header()
        fresh = dict.fromkeys(key for row in rows for key in row if key not in self.columns)
        if fresh or not self.path.is_file():
            self.columns = [*self.columns, *fresh]
            write_text(self.path, _csv(self.columns, [*self.rows(), *rows], header=True))
            return
        with self.path.open("ab", buffering=0) as file:
            file.write(_csv(self.columns, rows, header=False).encode())

    def rewind(self, epoch: int) -> None:
        """Keep the rows up to `epoch`. Later ones, which will be measured again, move to `<name>.superseded.csv`."""
        if not self.path.is_file():
            return
        header, rows = self._header(), self.rows()
        if later := [row for row in rows if not row["epoch"].isdecimal() or int(row["epoch"]) > epoch]:
            aside = self.path.with_suffix(".superseded.csv")
            with aside.open("a") as file:
                file.write(_csv(header, later, header=aside.stat().st_size == 0))
        write_text(self.path, _csv(header, [row for row in rows if row not in later], header=True))

    def drop_torn_line(self) -> None:
        """Take out a torn last line."""
        text = self.path.read_text() if self.path.is_file() else "\n"
        if not text.endswith("\n"):
            write_text(self.path, text[: text.rfind("\n") + 1])

    def rows(self) -> list[dict[str, str]]:
        """Every whole row, by column."""
        text = self.path.read_text() if self.path.is_file() else ""
        return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))

    def _header(self) -> list[str]:
        if not self.path.is_file():
            return self.columns
        with self.path.open(newline="") as file:
            return next(csv.reader(file), self.columns)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_metrics(directory: Path) -> dict[str, dict[int, float]]:
    """Column -> epoch -> value. An empty cell is no reading; of two rows for one epoch the later holds.

    Infinities become NaN, since neither has a place on an axis. Nothing where there is no table. A `UserError` where
    the table is malformed; it names file and line.
    """
    columns: dict[str, dict[int, float]] = {}
    for place, row in _rows(directory / METRICS, ["epoch"]):
        epoch = _epoch(row["epoch"], place)
        for column, text in row.items():
            if column != "epoch" and text.strip():
                columns.setdefault(column, {})[epoch] = _number(text, column, place)
    return columns


def read_readings(directory: Path) -> list[Reading]:
    """What the probes of a run read, in the order of the table; of two for one place the later holds.

    Tables of before there was a column `at` are read too; infinities, no table, a malformed one: as `read_metrics`.
    """
    found: dict[tuple[Any, ...], Reading] = {}
    for place, row in _rows(directory / READINGS, [name for name in Reading._fields if name != "at"]):
        epoch = _epoch(row["epoch"], place)
        layer, at = row["layer"], row.get("at", "")
        if not at and (old := re.fullmatch(r"(?:rho|v)=([-+.\de]+)", layer)):
            layer, at = "", old[1]  # where the place on the axis stood once
        value = _number(row["value"], "value", place) if row["value"].strip() else math.nan
        reading = Reading(epoch, row["probe"], layer, _number(at, "at", place) if at else None, row["key"], value)
        found[reading[:-1]] = reading
    return list(found.values())


def _rows(path: Path, needs: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table, each with its place in words; a row of another length than the header is a `UserError`."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if missing := [column for column in needs if column not in header]:
                raise UserError(f"{path}, line 1: the header has no column {', '.join(map(repr, missing))}.")
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if len(row) not in (0, len(header)):
                    raise UserError(f"{place}: {len(row)} fields where the header has {len(header)}.")
                if row:
                    yield place, dict(zip(header, row, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a csv file in UTF-8 ({error}).") from error


def _epoch(text: str, place: str) -> int:
    with suppress(ValueError):
        if (value := float(text)).is_integer():
            return int(value)
    raise UserError(f"{place}: the epoch is {text!r}, not a whole number.")


def _number(text: str, column: str, place: str) -> float:
    with suppress(ValueError):
        return value if math.isfinite(value := float(text)) else math.nan
    raise UserError(f"{place}: {column} is {text!r}, not a number.")


def write_arrays(
    directory: Path, probe: str, epoch: int, arrays: Iterable[tuple[str, str, NDArray[Any], Sequence[str]]]
) -> None:
    """Write (layer, key, values, names of the first axis's entries or none) of one look of a probe, in float32."""
    members: dict[str, NDArray[np.generic]] = {}
    for layer, key, values, names in arrays:
        members[f"{layer}/{key}"] = values.astype(np.float32)
        if names:
            members[f"names:{layer}/{key}"] = np.array(names, dtype=str)
    path = directory / PICTURES / probe / f"epoch-{epoch:05d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        np.savez_compressed(temporary, **members)  # type: ignore[arg-type]


def read_arrays(directory: Path, until: int | None = None) -> list[Arrays]:
    """The arrays that probes read in a run, up to epoch `until`. A `UserError` where a file is broken."""
    found: dict[tuple[str, str], Arrays] = {}
    for path in sorted(directory.glob(f"{PICTURES}/*/epoch-*.npz")):
        epoch = int(path.stem.removeprefix("epoch-"))
        if until is not None and epoch > until:
            continue
        try:
            with np.load(path) as file:
                members = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, BadZipFile, zlib.error, AttributeError, TypeError) as error:
            raise UserError(f"{path}: not a file of arrays ({error}).") from error
        for name, values in members.items():
            if not name.startswith("names:"):
                layer, _, key = name.rpartition("/")
                arrays = found.setdefault((path.parent.name, key), Arrays(path.parent.name, key))
                arrays.layers.setdefault(layer, {})[epoch] = values.astype(np.float64)
                arrays.names[layer] = [str(n) for n in members.get(f"names:{name}", [])]
    return list(found.values())
