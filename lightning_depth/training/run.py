"""One function that does what a config says, in the directory that its run has."""

import errno
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from lightning_depth.config.parser import Parser, parser
from lightning_depth.config.resolve import Config
from lightning_depth.data.base.memory import AbstractMemoryData
from lightning_depth.errors import UserError
from lightning_depth.probes.probe import check_names
from lightning_depth.results import write_config
from lightning_depth.runs.directory import Run, discard
from lightning_depth.seeds import Seeded
from lightning_depth.training.callbacks import callbacks
from lightning_depth.training.checkpoints import AtomicCheckpoints
from lightning_depth.training.loggers import prepare
from lightning_depth.training.restore_loaders import restore_loaders

# How `load_from_checkpoint` makes the module again, as with Lightning's own command line.
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def locate(config: Config) -> LightningDataModule | None:
    """The data module of `config`, its data found and read, before anything is written; None where it names none.

    Also seeds every generator from the config, as making a network of somebody else's may draw from them.

    Raises:
        UserError: the data are missing or not as the config says.
    """
    seed = config.values["seed_everything"]
    if seed is not False:
        seeded = seed_everything(None if seed is True else seed, workers=True)
        config.values["seed_everything"] = seeded  # a random one can be repeated
    if config.values.get("data") is None:
        return None
    data: LightningDataModule = _made(config, "data")
    if isinstance(data, Seeded):
        data.use_run_seed(config.seed)
    if isinstance(data, AbstractMemoryData):
        data.locate()
        data.setup(config.command)
    return data


def run(
    config: Config,
    data: LightningDataModule | None,
    run: Run | None = None,
    more: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> Any:
    """Do what `config` says; what its command of Lightning's `Trainer` returns.

    Args:
        config: `fit`, `validate`, `test` or `predict` of a network.
        data: what `locate(config)` gave.
        run: where a `fit` lives, which records it; its config is written there before anything is trained.
        more: further callbacks, such as a record of the look.
        checkpoint: for a command other than `fit`: whose network it is about.

    Raises:
        UserError: anything that the user can mend. Where no epoch was finished, a new run's directory goes again.
        OSError: the disk is full.
    """
    trainer = None
    try:
        model: LightningModule = _made(config, "model")
        if isinstance(model, Seeded):
            model.use_run_seed(config.seed)
        trainer = _trainer(config, model, data, run, more)
        rest = config.parsed["rest"]
        given = {key: rest[key] for key in ("weights_only", "return_predictions") if key in rest}
        if "verbose" in rest:
            given["verbose"] = False  # its table cuts names short
        start = checkpoint if run is None else run.checkpoint
        command = getattr(trainer, config.command)
        return command(model, datamodule=data, ckpt_path=None if start is None else str(start), **given)
    except BaseException as error:
        if run is not None and (trainer is None or isinstance(error, UserError)):
            discard(run)
        # torch says so in many ways when the disk is full in the middle of a checkpoint.
        full = r"No space left|PytorchStreamWriter|file write failed"
        if isinstance(error, RuntimeError) and re.search(full, str(error)):
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise
    finally:
        restore_loaders()


class _Remembering:
    """Lets what is made know its arguments as the config has them, for `save_hyperparameters`."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said = {"_class_path": said["class_path"], **said.get("init_args", {}), **said.get("dict_kwargs", {})}

    def __call__(self, class_type: Any, *args: Any, applied_instantiation_links: Any, **kwargs: Any) -> Any:
        with _given_hyperparameters_context(hparams=dict(self.said), instantiator=INSTANTIATOR):
            return class_type(*args, **kwargs)


def _made(config: Config, section: str, parsed: Namespace | None = None) -> Any:
    """The object that a section describes; the trainer's: its arguments, with what they name made."""
    of_section: Parser = parser(config.command, section)
    if section != "trainer":
        base = {"model": LightningModule, "data": LightningDataModule}[section]
        of_section.add_instantiator(_Remembering(config.values[section]), base, subclasses=True)
    try:
        made = of_section.instantiate_classes((parsed or config.parsed[section]).clone())
    except ValueError as error:
        # jsonargparse wraps what a class raises when it is made.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from error
            cause = cause.__cause__ or cause.__context__
        raise
    return made[section]


def _trainer(
    config: Config, model: LightningModule, data: LightningDataModule | None, run: Run | None, more: Sequence[Callback]
) -> Trainer:
    parsed = config.parsed["trainer"].clone()
    if run is None:
        parsed.trainer.logger = False
    else:
        prepare(parsed.trainer, run.directory, data, resumed=run.checkpoint is not None)
    arguments = dict(vars(_made(config, "trainer", parsed)))
    progress = arguments["enable_progress_bar"] is not False
    own = callbacks(model, data, run, config, provenance(config), progress, more)
    arguments["callbacks"] = [*_as_list(arguments["callbacks"]), *own]
    check_names(arguments["callbacks"])  # before Lightning says so of their states, at length
    arguments["enable_model_summary"] = arguments["enable_model_summary"] or False
    plugins = _as_list(arguments["plugins"])
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpoints())
    on_slurm = SLURMEnvironment.detect()
    arguments["plugins"] = [*plugins, SLURMEnvironment(auto_requeue=False)] if on_slurm else plugins
    if run is not None:
        arguments["default_root_dir"] = str(run.directory)
        if int(os.environ.get("SLURM_PROCID", "0")) == 0 and os.environ.get("LOCAL_RANK", "0") == "0":
            if run.checkpoint is None:
                write_config(run.directory, run.config)
            rank_zero_info(f"run directory: {run.directory}")
    try:
        trainer = Trainer(**arguments)
    except (MisconfigurationException, ValueError) as error:  # no such device, strategy, ...
        raise UserError("\n".join(str(error).strip().splitlines()[:2])) from error
    if on_slurm:
        _check_processes(trainer)
    return trainer


def _check_processes(trainer: Trainer) -> None:
    started, wanted = os.environ.get("SLURM_STEP_NUM_TASKS"), trainer.num_nodes * trainer.num_devices
    if started is not None and int(started) != wanted:
        # Lightning would train on fewer devices, or the same network several times, without a word.
        raise UserError(
            f"srun started {started} processes, and the trainer wants {wanted}: --nodes and --ntasks-per-node "
            "must equal --trainer.num_nodes and --trainer.devices.\nslurm/ddp.sbatch sets all four."
        )


def provenance(config: Config) -> dict[str, Any]:
    """What a summary says of the command that made it."""
    return {
        "command": "python main.py " + shlex.join(sys.argv[1:]),
        "config": [str(path) for path in config.files],
        "seed": config.values["seed_everything"],
        "reduced": config.values["run"]["reduced"],
    }


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
