"""Leaves out what Lightning says at every start and nobody needs, so that what matters is seen."""

import logging
import warnings
from functools import cache

LIGHT_BULB = "\N{ELECTRIC LIGHT BULB}"
IDLE = ("Seed set to", "GPU available", "TPU available", "HPU available", LIGHT_BULB, "`Trainer.fit` stopped")
LOGGERS = ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed")
WARNINGS = (
    ".*isinstance.treespec, LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*`srun` command is available on your system but is not used.*",
    ".*does not have many workers.*",
    ".*when logging on epoch level in distributed setting.*",
    ".*could not find the monitored key.*",  # in an epoch without a validation there is none
    ".*Checkpoint directory .* exists and is not empty.*",
)


@cache
def filter_messages() -> None:
    """From here on, in this process."""
    for name in LOGGERS:
        logging.getLogger(f"lightning.{name}").addFilter(lambda record: not record.getMessage().startswith(IDLE))
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
