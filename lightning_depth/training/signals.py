"""Remember a pre-emption signal from the first moment on. Standard library only: imported before torch.

Python's start-up takes seconds in which the default action of SIGUSR1 would kill the job. Lightning leaves a SIGUSR1
alone that has a handler, so this one stays.
"""

import os
import signal
import sys
from types import FrameType

pending = False


def _remember(signum: int, frame: FrameType | None) -> None:
    global pending
    pending = True


def arm() -> None:
    """From here on SIGUSR1 only sets `pending`; so does SIGTERM where a Slurm job trains: Slurm pre-empts with it."""
    signal.signal(signal.SIGUSR1, _remember)
    if "SLURM_JOB_ID" in os.environ and sys.argv[1:2] == ["fit"]:
        signal.signal(signal.SIGTERM, _remember)
