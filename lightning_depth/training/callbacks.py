"""The callbacks of a run, in the one order in which they work."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_depth.config.resolve import Config
from lightning_depth.models.base import AbstractModel
from lightning_depth.runs.directory import Run
from lightning_depth.runs.record import RunRecord
from lightning_depth.training.checkpoints import LastCheckpoint
from lightning_depth.training.goals import Goals
from lightning_depth.training.guards import FiniteLoss, StepSeed, SubsampleForeign, SyncBuffers
from lightning_depth.training.progress import RunProgress
from lightning_depth.training.requeue import SlurmRequeue


def callbacks(
    model: LightningModule,
    data: LightningDataModule | None,
    run: Run | None,
    config: Config,
    provenance: Mapping[str, Any],
    progress: bool = True,
    more: Sequence[Callback] = (),
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

    Args:
        model: the network.
        data: its data module, if it has one.
        run: where it is recorded; None: nowhere.
        config: the seed and the goals.
        provenance: what else its summary says.
        progress: whether to show a bar.
        more: further callbacks.
    """
    goals = Goals(**config.values["goals"])
    own: list[Callback] = [StepSeed(config.seed), FiniteLoss(), SyncBuffers(), SubsampleForeign(), goals]
    own += [*([RunProgress()] if progress else []), *more]
    if run is None:
        return own
    if os.environ.get("SLURM_JOB_ID"):
        own.append(SlurmRequeue(run.directory))
    own.append(RunRecord(run.directory, run.config, provenance))
    folder = run.directory / "checkpoints"
    if isinstance(model, AbstractModel):
        numbers = getattr(data, "target_shape", None) is not None
        metric, mode = ("val/loss", "min") if numbers else ("val/acc", "max")
        always = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        own.append(ModelCheckpoint(folder, "best", metric, mode=mode, **always))
    return [*own, LastCheckpoint(folder)]
