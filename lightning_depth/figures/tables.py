"""A run's directory as tables: metrics.csv, readings.csv and summary.json."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_depth.errors import UserError


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Column -> epoch -> value. An empty cell is no reading; of two rows for one epoch the later reading holds."""
    columns: dict[str, dict[int, float]] = {}
    for line, row in _rows(path, ["epoch"]):
        epoch = _epoch(row["epoch"], path, line)
        for column, text in row.items():
            if column != "epoch" and text.strip():
                columns.setdefault(column, {})[epoch] = _value(text, column, path, line)
    return columns


def read_readings(path: Path) -> dict[str, dict[tuple[str, str], dict[int, float]]]:
    """Probe -> (layer, key) -> epoch -> value, all in the file's order."""
    probes: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for line, row in _rows(path, ["epoch", "probe", "layer", "key", "value"]):
        epoch = _epoch(row["epoch"], path, line)
        value = _value(row["value"], "value", path, line) if row["value"].strip() else math.nan
        probes.setdefault(row["probe"], {}).setdefault((row["layer"], row["key"]), {})[epoch] = value
    return probes


def read_summary(path: Path) -> Mapping[str, Any]:
    """What the run knows about itself; nothing where the file does not exist."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path}: a {type(summary).__name__} where an object was expected.")
    return summary


def section(summary: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under `key`, empty where the summary has none."""
    value = summary.get(key)
    return value if isinstance(value, Mapping) else {}


def _rows(path: Path, needs: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a csv file, each with its line number; a row of another length than the header is a `UserError`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            missing = [column for column in needs if column not in header]
            if missing:
                raise UserError(f"{path}, line 1: the header has no column {', '.join(map(repr, missing))}.")
            for row in reader:
                if len(row) not in (0, len(header)):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}."
                    )
                if row:
                    yield reader.line_num, dict(zip(header, row, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a csv file in UTF-8 ({error}).") from error


def _epoch(text: str, path: Path, line: int) -> int:
    try:
        if (value := float(text)).is_integer():
            return int(value)
    except ValueError:
        pass
    raise UserError(f"{path}, line {line}: the epoch is {text!r}, not a whole number.")


def _value(text: str, column: str, path: Path, line: int) -> float:
    """The number in a cell; infinities become NaN, since neither has a place on an axis."""
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{path}, line {line}: {column} is {text!r}, not a number.") from None
    return value if math.isfinite(value) else math.nan
