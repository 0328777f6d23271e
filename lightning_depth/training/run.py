"""One function that does what a config says, in its run's directory, and the callbacks that every run has."""

import errno
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from lightning_depth.config.parser import parser
from lightning_depth.config.resolve import Config
from lightning_depth.data.base.memory import AbstractMemoryData
from lightning_depth.errors import UserError
from lightning_depth.models.base import AbstractModel
from lightning_depth.probes.probe import check_names
from lightning_depth.results import write_config
from lightning_depth.runs.directory import Run, discard, is_first_process, lock
from lightning_depth.runs.record import RunRecord
from lightning_depth.seeds import Seeded
from lightning_depth.training.checkpoints import AtomicCheckpoints, LastCheckpoint
from lightning_depth.training.goals import Goals
from lightning_depth.training.guards import FiniteLoss, StepSeed, SubsampleForeign, SyncBuffers, restore_loaders
from lightning_depth.training.loggers import prepare
from lightning_depth.training.progress import RunProgress
from lightning_depth.training.requeue import SlurmRequeue

# How `load_from_checkpoint` makes the module again, as with Lightning's own command line.
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
Data = LightningDataModule | None


def locate(config: Config) -> Data:
    """The data module of `config`, its data found and read, before anything is written; None where it names none.

    Also seeds every generator from the config, as making a network of somebody else's may draw from them. A `UserError`
    where the data are missing or not as the config says.
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
    config: Config, data: Data, run: Run | None = None, more: Sequence[Callback] = (), checkpoint: Path | None = None
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
    trainer, held = None, None if run is None else lock(run)
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
        if held is not None:
            held.release()


def _remembering(values: Mapping[str, Any]) -> Callable[..., Any]:
    """Makes an object that knows its arguments as the config has them, for `save_hyperparameters`."""
    given = {"_class_path": values["class_path"], **values.get("init_args", {}), **values.get("dict_kwargs", {})}

    def make(class_type: Any, *args: Any, applied_instantiation_links: Any, **kwargs: Any) -> Any:
        with _given_hyperparameters_context(hparams=dict(given), instantiator=INSTANTIATOR):
            return class_type(*args, **kwargs)

    return make


def _made(config: Config, section: str, parsed: Namespace | None = None) -> Any:
    """The object that a section describes; the trainer's: its arguments, with what they name made."""
    base = {"model": LightningModule, "data": LightningDataModule}.get(section)
    makers = None if base is None else [(_remembering(config.values[section]), base, True)]
    try:
        made = parser(config.command, section).instantiate(parsed or config.parsed[section], instantiators=makers)
    except ValueError as error:
        # jsonargparse wraps what a class raises when it is made.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from error
            cause = cause.__cause__ or cause.__context__
        raise
    return made[section]


def _trainer(config: Config, model: LightningModule, data: Data, run: Run | None, more: Sequence[Callback]) -> Trainer:
    parsed = config.parsed["trainer"].clone()
    if run is None:
        parsed.trainer.logger = False
    else:
        prepare(parsed.trainer, run.directory, data, resumed=run.checkpoint is not None)
    arguments = dict(vars(_made(config, "trainer", parsed)))
    arguments["callbacks"] = [*_as_list(arguments["callbacks"]), *callbacks(config, model, data, run, more)]
    check_names(arguments["callbacks"])  # before Lightning says so of their states, at length
    arguments["enable_model_summary"] = arguments["enable_model_summary"] or False
    plugins = _as_list(arguments["plugins"])
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpoints())
    on_slurm = SLURMEnvironment.detect()
    arguments["plugins"] = [*plugins, SLURMEnvironment(auto_requeue=False)] if on_slurm else plugins
    if run is not None:
        arguments["default_root_dir"] = str(run.directory)
        if is_first_process():
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


def callbacks(
    config: Config, model: LightningModule, data: Data, run: Run | None, more: Sequence[Callback]
) -> list[Callback]:
    """What every run has, after the callbacks of its config, so that these have logged and looked before it records.

    1. `StepSeed`: draws of a training step depend on the step alone, before anything draws.
    2. `FiniteLoss`: a loss that is no number ends the run before it is recorded or saved.
    3. `SyncBuffers`: all processes validate one network.
    4. `SubsampleForeign`: before the first step, wherever it stands.
    5. `Goals`: judged before a validation, so that probes know their last look, and logged before the record writes.
    6. `RunProgress`: the bar above which the record prints.
    7. `more`: a command's own, such as the record of a look.
    8. `SlurmRequeue`: leaves at the end of a step, before an epoch is recorded that did not end.
    9. `RunRecord`: writes the epoch's rows before the checkpoint that counts the epoch as done. A kill in between
       leaves a row too many, which a resumed run takes out; a row too few would never come back. It counts as a
       checkpoint, since Lightning calls those last.
    10. The checkpoints: of the best epoch, then the last. One with `save_last` would save only when it improves.

    Without a `run` nothing is recorded.
    """
    goals = Goals(**config.values["goals"])
    own: list[Callback] = [StepSeed(config.seed), FiniteLoss(), SyncBuffers(), SubsampleForeign(), goals]
    if config.values["trainer"]["enable_progress_bar"] is not False:
        own.append(RunProgress())
    own += more
    if run is None:
        return own
    if os.environ.get("SLURM_JOB_ID"):
        own.append(SlurmRequeue(run.directory))
    own.append(RunRecord(run.directory, run.config, provenance(config)))
    folder = run.directory / "checkpoints"
    if isinstance(model, AbstractModel):
        numbers = getattr(data, "target_shape", None) is not None
        metric, mode = ("val/loss", "min") if numbers else ("val/acc", "max")
        after_epochs: Any = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        own.append(ModelCheckpoint(folder, "best", metric, mode=mode, **after_epochs))
    return [*own, LastCheckpoint(folder)]


def _check_processes(trainer: Trainer) -> None:
    started, wanted = os.environ.get("SLURM_STEP_NUM_TASKS"), trainer.num_nodes * trainer.num_devices
    if started is not None and int(started) != wanted:
        # Lightning would train on fewer devices, or the same network several times, without a word.
        rule = "--nodes and --ntasks-per-node must equal --trainer.num_nodes and --trainer.devices"
        hint = f"{rule}.\nslurm/ddp.sbatch sets all four."
        raise UserError(f"srun started {started} processes, and the trainer wants {wanted}: {hint}")


def provenance(config: Config) -> dict[str, Any]:
    """What a summary says of the command that made it."""
    return {
        "command": "python main.py " + shlex.join(sys.argv[1:]),
        "config": [str(path) for path in config.files],
        "seed": config.values["seed_everything"],
        "reduced": config.values["run"]["reduced"],
    }


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None or isinstance(value, bool) else [value]
