"""Remember a pre-emption signal from the first moment on. Standard library only: imported before torch.

Python's start-up takes seconds in which the default action of SIGUSR1 would kill the job. Lightning leaves a signal
alone that has a handler, so this one stays.
"""

import signal
from types import FrameType

pending = False


def _remember(signum: int, frame: FrameType | None) -> None:
    global pending
    pending = True


def arm(signum: int = signal.SIGUSR1) -> None:
    """From here on `signum` only sets `pending`."""
    signal.signal(signum, _remember)
