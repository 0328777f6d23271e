"""`python main.py report runs/NAME ...`: draw the report of a run directory again. Needs torch only for old runs."""

from pathlib import Path

from lightning_depth.config.words import CommandParser
from lightning_depth.errors import UserError
from lightning_depth.figures.report import report
from lightning_depth.results import METRICS, PROBES, READINGS, Declaration, read_summary


def main(arguments: list[str]) -> None:
    """Draw `report.png` in each directory named by `arguments` and print its path."""
    parser = CommandParser("report", add_help=True, description="Draw the report of a run again.")
    parser.add_argument("directory", nargs="+", type=Path, help="a run directory, such as runs/resnet_depth")
    for directory in parser.parse_args(arguments).directory:
        if not (directory / METRICS).is_file():
            raise UserError(f"{directory} is no run directory with a finished epoch: it has no metrics.csv.")
        old = (directory / READINGS).is_file() and not (directory / PROBES).is_file()
        print(report(directory, read_summary(directory), _declared_today() if old else {}))


def _declared_today() -> dict[str, Declaration]:
    """What this version's probes declare under their classes' names, for a run older than declarations."""
    from lightning_depth.plugins import built_in
    from lightning_depth.probes.probe import AbstractProbe, snake_case

    probes = {snake_case(name): found for name, found in built_in().items() if issubclass(found, AbstractProbe)}
    return {name: Declaration(name, probe.keys, probe.arrays) for name, probe in probes.items()}
