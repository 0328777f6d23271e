"""CSV tables that grow by whole rows, and that a resumed run continues where its checkpoint stood."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_depth.runs.directory import write_atomically


class Table:
    """An append-only CSV table whose first column is the epoch.

    Rows are written in one piece, so that a kill leaves at most one torn line, which `rewind` removes.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self.path = path
        self.columns = list(columns) if columns else None

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows. New columns widen the table: the earlier rows get empty cells."""
        rows = list(rows)
        if not rows:
            return
        if self.columns is None or not self.path.is_file():
            self.columns = self._read()[0]
        fresh = dict.fromkeys(key for row in rows for key in row if key not in self.columns)
        if self.path.is_file() and not fresh:
            self._write(_csv(self.columns, rows, header=False), append=True)
        else:
            self.columns = [*self.columns, *fresh]
            self._write(_csv(self.columns, [*self._read()[1], *rows], header=True), append=False)

    def rewind(self, epoch: int) -> None:
        """Keep the rows up to `epoch`. Later ones, which will be measured again, move to `<name>.superseded.csv`."""
        if not self.path.is_file():
            return
        header, rows = self._read()
        later = [row for row in rows if not row["epoch"].isdecimal() or int(row["epoch"]) > epoch]
        if later:
            aside = self.path.with_suffix(".superseded.csv")
            with aside.open("a") as file:
                file.write(_csv(header, later, header=aside.stat().st_size == 0))
        self._write(_csv(header, [row for row in rows if row not in later], header=True), append=False)

    def rows(self) -> list[dict[str, str]]:
        """Every row, by column."""
        return self._read()[1]

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self.path.is_file():
            return (self.columns or []), []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole))
        rows = list(reader)
        return list(reader.fieldnames or self.columns or []), rows

    def _write(self, text: str, append: bool) -> None:
        if not append or not self.path.is_file():
            write_atomically(self.path, text)
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
