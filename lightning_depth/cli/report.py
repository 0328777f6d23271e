"""`python main.py report runs/NAME ...`: draw the report of a run directory again. Needs no torch."""

from pathlib import Path

from lightning_depth.config.words import CommandParser
from lightning_depth.errors import UserError
from lightning_depth.figures.report import report
from lightning_depth.results import METRICS, read_summary


def main(arguments: list[str]) -> None:
    """Draw `report.png` in each directory named by `arguments` and print its path."""
    parser = CommandParser("report", add_help=True, description="Draw the report of a run again.")
    parser.add_argument("directory", nargs="+", type=Path, help="a run directory, such as runs/resnet_depth")
    for directory in parser.parse_args(arguments).directory:
        if not (directory / METRICS).is_file():
            raise UserError(f"{directory} is no run directory with a finished epoch: it has no metrics.csv.")
        print(report(directory, read_summary(directory)))
