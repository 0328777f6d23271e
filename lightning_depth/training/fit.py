"""A config and what belongs to it: its data, and the run directory or the checkpoint that it is about."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from lightning_depth.config.resolve import Config
from lightning_depth.config.words import check_name
from lightning_depth.results import CONFIG, OUTPUTS, write_outputs
from lightning_depth.runs.directory import check_checkpoint, checkpoint_of, claim, has_ended, open_run
from lightning_depth.runs.probing import ProbeRecord
from lightning_depth.training.run import locate, provenance, run


def name_of(config: Config, data: Any) -> str:
    """What the run is called: by its key, or after its first config file; data in place of others say so."""
    settings = config.values["run"]
    if settings["name"] is None:
        settings["name"] = config.files[0].stem if config.files else "run"
    fallback = getattr(getattr(data, "source", None), "fallback", False)
    return f"{settings['name']}-fallback" if fallback else str(settings["name"])


def fit(config: Config) -> None:
    """Train, in a new run or in one that goes on."""
    wanted = config.parsed["rest"].ckpt_path
    _check(config, wanted)
    data = locate(config)
    name = name_of(config, data)
    its_run = open_run(Path(config.values["run"]["root"]), name, wanted and str(wanted), config.values)
    if has_ended(its_run):
        hint = "A larger --trainer.max_epochs goes on from here; without --ckpt_path a new run starts."
        done = f"{its_run.directory} is finished: nothing is left to train, and nothing was changed."
        rank_zero_info(f"{done}\n{hint}")
        return
    run(config, data, its_run)


def evaluate(config: Config) -> None:
    """`validate`, `test` or `predict`: of a checkpoint, or of a network with its initial weights.

    Metrics are printed. Where the config has probes they look too, and what they read is printed and written into a new
    directory beside the checkpoint's, such as `runs/NAME/test-best`, as are the outputs of `predict`.
    """
    wanted = config.parsed["rest"].ckpt_path
    _check(config, wanted)
    data = locate(config)
    root, name = Path(config.values["run"]["root"]), name_of(config, data)
    checkpoint = None if wanted is None else checkpoint_of(root, name, str(wanted), config.command)
    if checkpoint is None:
        rank_zero_warn(f"{config.command} without --ckpt_path: the network has its initial weights.")
    home, title, of_run = root, f"{config.command}-{name}", None
    if checkpoint is not None and (checkpoint.resolve().parent.parent / CONFIG).is_file():
        home, title, of_run = checkpoint.resolve().parent.parent, f"{config.command}-{checkpoint.stem}", checkpoint
    if config.command == "predict":
        _write_predictions(run(config, data, checkpoint=checkpoint), home, title)
        return
    record = ProbeRecord(home, title, of_run, provenance(config), needed=False)
    for key, value in look(config, data, [record], checkpoint).items():
        rank_zero_only(print)(f"  {key:14} {value}", flush=True)


def _write_predictions(outputs: Any, home: Path, title: str) -> None:
    """Write what `predict` returned, a batch after the other, where it is the outputs of all samples."""
    if not outputs or not all(isinstance(batch, torch.Tensor) for batch in outputs):
        rank_zero_warn("predict: the network returned no tensor for each batch, and nothing is written.")
        return
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank_zero_warn("predict: each process has the outputs of its own samples, and nothing is written.")
        return
    values = torch.cat(outputs).float().cpu().numpy()
    path = write_outputs(claim(home, title, OUTPUTS), values)
    print(f"  outputs of the test split, {values.shape}: {path}", flush=True)


def look(
    config: Config, data: LightningDataModule | None, more: Sequence[Callback] = (), checkpoint: Path | None = None
) -> dict[str, float]:
    """Show a network the samples of a split, with `more` callbacks; its metrics of that split."""
    with warnings.catch_warnings():
        # Lightning says this of a checkpoint that is looked at and not resumed.
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint")
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        found = run(config, data, more=more, checkpoint=checkpoint)
    metrics = found[0] if isinstance(found, list) and found and isinstance(found[0], Mapping) else {}
    return {key: value for key, value in metrics.items() if key.startswith(("val/", "test/"))}


def _check(config: Config, wanted: Any) -> None:
    if config.values["run"]["name"] is not None:
        check_name(config.values["run"]["name"])
    if wanted not in (None, "last", "best"):
        check_checkpoint(Path(wanted))
