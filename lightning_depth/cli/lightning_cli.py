"""LightningCLI with one run, one directory, and errors that a person can read."""

import errno
import inspect
import json
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_depth import plugins
from lightning_depth.cli.main import TOP_KEYS, TRAINER_COMMANDS, config_files
from lightning_depth.config.messages import readable
from lightning_depth.data.base.memory import AbstractMemoryData
from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import SubsampleFirst, SubsamplesFirst
from lightning_depth.models.base import AbstractFamily
from lightning_depth.probes.probe import check_names
from lightning_depth.results import read_config, read_summary, write_config
from lightning_depth.runs.directory import (
    Place,
    check_checkpoint,
    check_same_config,
    checked_name,
    claim,
    differences,
    newest_checkpoint,
    runs_named,
    to_resume,
)
from lightning_depth.runs.record import RunRecord
from lightning_depth.training.atomic_checkpoints import AtomicCheckpoints
from lightning_depth.training.finite_loss import FiniteLoss
from lightning_depth.training.last_checkpoint import LastCheckpoint
from lightning_depth.training.progress import RunProgress
from lightning_depth.training.requeue import SlurmRequeue, job_id
from lightning_depth.training.step_seed import StepSeed
from lightning_depth.training.sync_buffers import SyncBuffers

# How the first process of a run tells those that it launches where the run lives.
PLACE = "LIGHTNING_DEPTH_PLACE"
WANDB = "lightning.pytorch.loggers.WandbLogger"


class Parser(LightningArgumentParser):
    """Says what is wrong and nothing else."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **more: Any) -> Any:  # type: ignore[override]
        """As jsonargparse, which writes the null of `--data.images.image_size null` as the word None on its way in."""
        nulls = None if args is None else [re.sub(r"^(--[\w.]+)=None$", r"\1=null", word) for word in args]
        return super().parse_args(nulls, *rest, **more)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise a UserError with the heart of jsonargparse's message."""
        raise UserError(readable(message, known_words())) from ex


class DepthCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`, each on any LightningModule and LightningDataModule.

    `fit` claims a directory of its own under `run.root` and writes the whole config there before it trains.
    """

    place: Place | None = None
    located: LightningDataModule | None = None
    words: Sequence[str] = ()
    """What is parsed: the command and its options."""
    extra: Sequence[Callback] = ()
    """Callbacks of the command's own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where the run lives."""
        parser.add_argument("--run.root", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument("--run.name", type=str | None, default=None, help="Name of the run. Default: the config's.")
        parser.add_argument("--run.reduced", type=str | None, default=None, help="How it falls short of a paper's run.")

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the checkpoint's hyper-parameters override the config without a word.
        pass

    # --- before anything is made ------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Find the data, then the run's directory, then tell the loggers."""
        config = self.config[str(self.subcommand)]
        _spell_out(config)
        if config.run.name is None:
            files = config_files(self.words[1:])
            config.run.name = files[0].stem if files else "run"
        checked_name(config.run.name)
        if config.get("ckpt_path") not in (None, "last", "best"):
            check_checkpoint(Path(config.ckpt_path))
        self.resolved = resolved_config(self._parser(self.subcommand), config)
        self._locate_data(config)
        if self.subcommand == "fit":
            self.place = self._place(config)
            config.ckpt_path = None if self.place.checkpoint is None else str(self.place.checkpoint)
            _prepare_loggers(config, self.place.directory, self.located, resumed=self.place.checkpoint is not None)
        else:
            config.ckpt_path = self._checkpoint_to_evaluate(config)
            config.trainer.logger = False

    def _locate_data(self, config: Namespace) -> None:
        # The source decides the run's name, and with it where loggers write, so the data module comes first.
        if config.get("data") is not None:
            parser = self._parser(self.subcommand)
            self.located = parser.instantiate_classes(Namespace(data=config.data.clone())).data  # type: ignore[no-untyped-call]
            if isinstance(self.located, AbstractMemoryData):
                self.located.locate()
                self.located.setup(str(self.subcommand))  # what is wrong with the data shows before anything is written

    def _place(self, config: Namespace) -> Place:
        told = os.environ.get(PLACE)
        if told is not None and os.environ.get("LOCAL_RANK", "0") != "0":
            directory, checkpoint = json.loads(told)
            return Place(Path(directory), Path(checkpoint) if checkpoint else None)
        place = self._decide(config)
        os.environ[PLACE] = json.dumps([str(place.directory), str(place.checkpoint) if place.checkpoint else None])
        return place

    def _decide(self, config: Namespace) -> Place:
        root, name = Path(config.run.root), self._name(config)
        if config.ckpt_path == "best":
            raise UserError("A run goes on from its last checkpoint, not its best: --ckpt_path last, or a file.")
        if config.ckpt_path == "last":
            return to_resume(root, name, self.resolved)
        if config.ckpt_path is not None:
            directory = Path(config.ckpt_path).resolve().parent.parent
            if (directory / "config.yaml").is_file():
                check_same_config(directory, self.resolved)
                newest = newest_checkpoint(directory) if requeued() else None
                return Place(directory, newest or Path(config.ckpt_path))
        start = None if config.ckpt_path is None else Path(config.ckpt_path)
        if SLURMEnvironment.detect() and "SLURM_JOB_ID" in os.environ:
            return self._slurm_place(root, f"{name}-{job_id(os.environ)}", start)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError("torchrun cannot agree on a new directory: use --trainer.devices N, or srun, instead.")
        return Place(claim(root, name), start)

    def _name(self, config: Namespace) -> str:
        fallback = getattr(getattr(self.located, "source", None), "fallback", False)
        return f"{config.run.name}-fallback" if fallback else str(config.run.name)

    def _slurm_place(self, root: Path, name: str, start: Path | None) -> Place:
        # Every process of the job computes the same path. A requeued job finds its own earlier work there; any other
        # finds at most that of a job that had the same number, or of an earlier command of the same job.
        if requeued():
            runs = runs_named(root, name)
            own = [run for run in runs if not differences(read_config(run), self.resolved)]
            if own and read_summary(own[0]) is not None:
                rank_zero_info(f"{own[0]} has ended already: nothing is left to do.")
                raise SystemExit(0)
            if own:
                return Place(own[0], newest_checkpoint(own[0]) or start)
            for run in runs:
                if read_summary(run) is None:
                    check_same_config(run, self.resolved)
            if (root / name).is_dir() and not runs:
                return Place(root / name, start)  # it had not come to write its config
        if int(os.environ.get("SLURM_PROCID", "0")) != 0:
            return Place(root / name, start)
        return Place(claim(root, name), start)

    def _checkpoint_to_evaluate(self, config: Namespace) -> str | None:
        wanted = config.get("ckpt_path")
        if wanted in ("last", "best"):
            root, name = Path(config.run.root), self._name(config)
            directories = runs_named(root, name)
            if not directories:
                raise UserError(f"There is no run {root / name} to {self.subcommand}.")
            wanted = str(directories[0] / "checkpoints" / f"{wanted}.ckpt")
            check_checkpoint(Path(wanted))
        if wanted is None:
            rank_zero_warn(f"{self.subcommand} without --ckpt_path: the network has its initial weights.")
        return None if wanted is None else str(wanted)

    # --- making -----------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Make everything; a directory that was claimed for nothing goes again."""
        try:
            super().instantiate_classes()
        except BaseException:
            self._discard()
            raise

    def fit(self, **kwargs: Any) -> None:
        """`Trainer.fit`; a mistake before the first finished epoch leaves nothing behind."""
        if self.place is not None and self._ended(self.place):
            rank_zero_info(
                f"{self.place.directory} is finished: nothing is left to train, and nothing was changed.\n"
                "A larger --trainer.max_epochs goes on from here; without --ckpt_path a new run starts."
            )
            return
        foreign = self.trainer.strategy.root_device.type == "cpu" and not isinstance(self.model, SubsamplesFirst)
        try:
            with SubsampleFirst() if foreign else nullcontext():
                self.trainer.fit(**kwargs)
        except UserError:
            self._discard()
            raise

    def _ended(self, place: Place) -> bool:
        """Whether the run to resume has written its summary, and no more epochs are wanted now than then."""
        summary = None if place.checkpoint is None else read_summary(place.directory)
        wanted = self.config_init.fit.trainer.max_epochs
        if summary is None or wanted is None:
            return False
        before = read_config(place.directory).get("trainer", {}).get("max_epochs")
        stopped = wanted == before and summary["status"] != "finished"
        return stopped or 0 <= int(wanted) <= int(summary["epochs"])

    def _discard(self) -> None:
        """Remove the directory that this process claimed, unless something was measured in it."""
        if self.place is not None and self.place.checkpoint is None:
            directory = self.place.directory
            if not (directory / "metrics.csv").is_file() and not any((directory / "checkpoints").glob("*")):
                shutil.rmtree(directory, ignore_errors=True)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the callbacks that every run has."""
        if self.located is not None:
            self.datamodule = self.located
        config = self.config_init[str(self.subcommand)]
        own: list[Callback] = [StepSeed(), FiniteLoss(), SyncBuffers()]
        if config.trainer.enable_progress_bar is not False:
            own.append(RunProgress())
        own.extend(self.extra)
        kwargs.setdefault("enable_model_summary", config.trainer.enable_model_summary or False)
        plugins = []
        if SLURMEnvironment.detect():
            plugins = [SLURMEnvironment(auto_requeue=False)]
        if self.place is not None:
            directory = self.place.directory
            if os.environ.get("SLURM_JOB_ID"):
                own.append(SlurmRequeue(directory))
            own.append(RunRecord(directory, self.resolved, self._provenance()))
            own.extend(self._checkpoints(directory / "checkpoints"))
            kwargs["default_root_dir"] = str(directory)
            if int(os.environ.get("SLURM_PROCID", "0")) == 0 and os.environ.get("LOCAL_RANK", "0") == "0":
                if self.place.checkpoint is None:
                    write_config(directory, self.resolved)
                rank_zero_info(f"run directory: {directory}")
        wanted_plugins = _as_list(config.trainer.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in wanted_plugins):
            wanted_plugins.append(AtomicCheckpoints())
        kwargs["plugins"] = [*wanted_plugins, *plugins]
        self.trainer_defaults["callbacks"] = own
        check_names(_as_list(config.trainer.callbacks))  # before Lightning says so of their states, at length
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:  # no such device, strategy, ...
            raise UserError("\n".join(str(error).strip().splitlines()[:2])) from error
        if plugins and "SLURM_STEP_NUM_TASKS" in os.environ:
            started, wanted = int(os.environ["SLURM_STEP_NUM_TASKS"]), trainer.num_nodes * trainer.num_devices
            if started != wanted:
                # Lightning would train on fewer devices, or the same network several times, without a word.
                raise UserError(
                    f"srun started {started} processes, and the trainer wants {wanted}: --nodes and --ntasks-per-node "
                    "must equal --trainer.num_nodes and --trainer.devices.\nslurm/ddp.sbatch sets all four."
                )
        return trainer

    def _checkpoints(self, directory: Path) -> list[Callback]:
        # Two of them: `save_last` would save only when the monitored one has improved.
        always = LastCheckpoint(directory)
        if not isinstance(self.model, AbstractFamily):
            return [always]
        numbers = getattr(self.located, "target_shape", None) is not None
        metric, mode = ("val/loss", "min") if numbers else ("val/acc", "max")
        best = ModelCheckpoint(
            directory, "best", metric, mode=mode, save_on_train_epoch_end=True, enable_version_counter=False
        )
        return [best, always]

    def _provenance(self) -> dict[str, Any]:
        return {
            "command": "python main.py " + shlex.join(sys.argv[1:]),
            "config": [str(path) for path in config_files(self.words[1:])],
            "seed": self.resolved["seed_everything"],
            "reduced": self.resolved["run"]["reduced"],
        }


def requeued() -> bool:
    """Whether Slurm started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def run_trainer_command(words: Sequence[str] | None = None, extra: Sequence[Callback] = ()) -> None:
    """Parse `words` (default: those of the command line), make everything, run the command with `extra` callbacks."""
    hush()
    plugins.load()
    # Spectra are computed in float64, which Apple's GPUs lack.
    accelerator = "cpu" if torch.backends.mps.is_available() else "auto"
    try:
        DepthCLI.words, DepthCLI.extra = words or sys.argv[1:], extra
        DepthCLI(
            LightningModule,
            LightningDataModule,
            args=None if words is None else list(words),
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "num_sanity_val_steps": 0,
                "logger": False,
                "accelerator": accelerator,
                "enable_autolog_hparams": False,  # the record logs the whole config, once
            },
            parser_class=Parser,
            # Or `--trainer.max_epoch 3` would silently mean max_epochs.
            parser_kwargs={"allow_abbrev": False, **{name: {"allow_abbrev": False} for name in TRAINER_COMMANDS}},
        )
    except RuntimeError as error:
        # torch says so in many ways when the disk is full in the middle of a checkpoint.
        if re.search(r"No space left|PytorchStreamWriter|file write failed", str(error)):
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise
    except ValueError as error:
        # jsonargparse wraps what a class raises when it is made.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from error
            cause = cause.__cause__ or cause.__context__
        raise


def hush() -> None:
    """Leave out what Lightning says at every start and nobody needs, so that what matters is seen."""
    idle = (
        "Seed set to",
        "GPU available",
        "TPU available",
        "HPU available",
        "\N{ELECTRIC LIGHT BULB}",
        "`Trainer.fit` stopped",
    )
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(idle))
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available on your system but is not used.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    warnings.filterwarnings("ignore", message=".*when logging on epoch level in distributed setting.*")


def known_words() -> set[str]:
    """Names that a user may have meant: the classes at hand and the arguments of all of them."""
    torchs = {**vars(torch.optim), **vars(torch.optim.lr_scheduler)}
    classes = {**plugins.built_in(), **{name: value for name, value in torchs.items() if isinstance(value, type)}}
    makers = {Trainer, *(ancestor for value in classes.values() for ancestor in value.__mro__)}
    # A class without an `__init__` of its own has its parents', and that of dict has no signature.
    written = [vars(maker)["__init__"] for maker in makers if inspect.isfunction(vars(maker).get("__init__"))]
    arguments = {name for function in written for name in inspect.signature(function).parameters}
    keys = TOP_KEYS | {"class_path", "init_args", "root", "name"}
    return (classes.keys() | arguments | keys) - {"self", "args", "kwargs"}


def resolved_config(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """The whole config as plain values: every default written out, nothing of this run's own place."""
    text = parser.dump(config, skip_none=False, skip_validation=True, format="yaml")
    loaded: dict[str, Any] = yaml.safe_load(text)
    for key in ("ckpt_path", "weights_only", "config"):
        loaded.pop(key, None)
    return loaded


def _spell_out(tree: Any) -> None:
    """Put words in place of enums that are words: some of Lightning's callbacks have them as defaults."""
    items = vars(tree) if isinstance(tree, Namespace) else dict(enumerate(tree)) if isinstance(tree, list) else {}
    for key, value in items.items():
        if isinstance(value, Enum) and isinstance(value, str):
            vars(tree)[key] = str(value.value)
        _spell_out(value)


def _prepare_loggers(config: Namespace, directory: Path, datamodule: Any, resumed: bool) -> None:
    """Let each logger write into the run's directory, and W&B say which run and data this is."""
    for logger in _as_list(config.trainer.logger):
        arguments = logger.get("init_args") if isinstance(logger, Namespace) else None
        if arguments is None:
            continue
        if arguments.get("save_dir") in (None, ".", "lightning_logs"):
            arguments["save_dir"] = str(directory)
        if logger.class_path == WANDB:
            _prepare_wandb(logger, directory, datamodule, resumed)


def _prepare_wandb(logger: Namespace, directory: Path, datamodule: Any, resumed: bool) -> None:
    arguments = logger.init_args
    extra = dict(logger.get("dict_kwargs") or {})
    # What is meant for `wandb.init` arrives among the arguments where jsonargparse finds it there, else beside them.
    group, tags = (arguments if key in arguments else extra for key in ("group", "tags"))
    # A second segment under the same id would replace the first on the server: each attempt is a run in one group.
    if group.get("group") is None:
        group["group"] = directory.name
    if arguments.get("name") is None:
        attempts = len(list((directory / "wandb").glob("*run-*"))) if resumed else 0
        arguments["name"] = directory.name + (f"-attempt{attempts + 1}" if resumed else "")
    if getattr(getattr(datamodule, "source", None), "fallback", False):
        tags["tags"] = [*(tags.get("tags") or []), "fallback data"]
    logger["dict_kwargs"] = extra
    if not has_wandb_key():
        os.environ.setdefault("WANDB_MODE", "offline")


def has_wandb_key() -> bool:
    """Whether W&B could log in: an API key in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
