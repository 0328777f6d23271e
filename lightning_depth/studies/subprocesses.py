"""Work in a process of its own, so that what it leaves behind ends with it."""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from lightning_depth.errors import UserError

T = TypeVar("T")


def run_in_subprocess(function: Callable[..., T], *arguments: Any, log: Path | None = None) -> T:
    """`function(*arguments)` in a process of its own, whose output goes to the file `log`.

    On Linux the process is a fork, so it need not import torch again; the parent must only have imported it, not used
    it. It ends with its parent. A `UserError` where the function raised one, or the process died.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(function, arguments, log, sender, os.getpid()))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        lines = log.read_text(errors="replace").strip().splitlines() if log is not None and log.is_file() else []
        last = f"\n{lines[-1][:300]}" if lines else ""
        answer = UserError(f"A process of the search died with exit status {process.exitcode}.{last}")
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
    if isinstance(answer, UserError):
        raise answer
    return answer  # type: ignore[no-any-return]


def _serve(function: Callable[..., Any], args: Sequence[Any], log: Path | None, pipe: Connection, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if log is not None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
    try:
        answer = function(*args)
    except UserError as user_error:
        answer = UserError(str(user_error))  # of a subclass it might not be read back
    except BaseException:
        traceback.print_exc()
        pipe.close()
        raise SystemExit(1) from None
    with suppress(BrokenPipeError):
        pipe.send(answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
