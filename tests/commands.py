"""`python main.py ...` in a process of its own, forked from a server that has imported torch once and used it never."""

import atexit
import contextlib
import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])


class Ended(NamedTuple):
    """How a command ended: its exit status (minus the signal that killed it), and what it said."""

    status: int
    out: str
    err: str


def command(*words, cwd, path=(), **environment) -> Ended:
    """Run `python main.py words...` in the folder `cwd`, with these folders first on the path and these variables.

    A variable that is None is taken out.
    """
    here = {"WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": "", **environment}
    arguments = [str(word) for word in words], str(cwd), [str(folder) for folder in path], here
    process = SERVER.Process(target=_main, args=arguments)
    process.start()
    process.join(120)
    out, err = Path(cwd, ".stdout"), Path(cwd, ".stderr")
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{words}: {err.read_text()}")
    ended = Ended(process.exitcode, out.read_text(), err.read_text())
    out.unlink(), err.unlink()
    return ended


def _main(words, cwd, path, environment):
    os.chdir(cwd)
    for descriptor, name in ((1, ".stdout"), (2, ".stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    sys.path[:0] = path
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    import torch

    from lightning_depth.cli.main import main

    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        stack.callback(sys.stdout.flush)
        stack.callback(sys.stderr.flush)
        stack.callback(atexit._run_exitfuncs)  # a forked process skips them, and a logger may end its run there
        raise SystemExit(main(words))


def tiny():
    """The config of a run of two seconds: 3 epochs of 3 steps of 20 real digits each; validation on 300."""
    return {
        "seed_everything": 0,
        "model": {"class_path": "lightning_depth.models.ResNet", "init_args": {"depth": 10, "width": 2}},
        "data": {
            "class_path": "lightning_depth.data.EmbeddedDigits",
            "init_args": {"classes": [0, 1, 2], "samples_per_class": 20, "batch_size": 20},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 3,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "lightning_depth.callbacks.OperatorNorm"}],
            "logger": False,
        },
    }


def written(config, folder, name="tiny.yaml"):
    """Write `config` to a file in `folder`; its name."""
    Path(folder, name).write_text(yaml.safe_dump(config))
    return name
