"""`fit`, `validate`, `test` and `predict`: parse, resolve, run."""

from collections.abc import Sequence

from lightning_depth.config.parser import parser
from lightning_depth.config.resolve import resolve
from lightning_depth.config.words import asks_for_help
from lightning_depth.training.fit import evaluate, fit


def main(command: str, words: Sequence[str]) -> None:
    """Run a command of Lightning's trainer; what the user can mend is a `UserError`."""
    if asks_for_help(words):
        parser(command).parse_args(list(words))  # prints and exits
    config = resolve(command, words)
    if command == "fit":
        fit(config)
    else:
        evaluate(config)
