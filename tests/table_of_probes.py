"""README's table of probes, from what they declare: `python -m tests.table_of_probes` prints it."""

from lightning_depth import callbacks
from lightning_depth.probes import AbstractProbe

HEADER = "| probe | reading | definition | cost | source |\n| --- | --- | --- | --- | --- |"
LAST = "| every probe | `seconds` | what the look cost, its share of the shared forward pass included | | |"
SHELF = [
    c
    for c in (getattr(callbacks, name) for name in dir(callbacks))
    if isinstance(c, type) and issubclass(c, AbstractProbe)
]


def table(probes):
    """A row for each key of each probe; a cell that would say what the one above says is empty."""
    lines = [HEADER]
    for probe in probes:
        source = ""
        for number, key in enumerate(probe.keys):
            name, cost = (f"`{probe.__name__}`", probe.cost) if number == 0 else ("", "")
            cells = [name, f"`{key.name}`", key.definition, cost, "" if key.source == source else key.source]
            source = key.source or source
            lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join([*lines, LAST]) + "\n"


if __name__ == "__main__":
    print(table(SHELF), end="")
