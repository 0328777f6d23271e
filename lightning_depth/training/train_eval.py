"""Loss and accuracy of the current weights on the training split: un-augmented, in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.models.base import AbstractModel
from lightning_depth.models.sample_mean import SampleMean
from lightning_depth.probes.undisturbed import undisturbed


@runtime_checkable
class ServesTrainEval(Protocol):
    """A data module that serves the training samples as they are: every one of ours, and any that has the method."""

    def train_eval_dataloader(self) -> Any:
        """Batches (inputs, targets) of the training split without augmentation, each sample once over all processes."""


@torch.no_grad()
def train_eval(trainer: Trainer, model: AbstractModel) -> dict[str, Tensor]:
    """Means over all training samples, by key, (*replicas,) each: `loss`, and `acc` where there are classes.

    It is the pass that a validation on the training split would make: un-augmented, in evaluation mode, in the
    trainer's precision, over the samples of all processes, which all look at the first one's buffers. Weights, buffers,
    modes and random generators are as if it had never run. Costs a forward pass of the training split.

    Raises:
        UserError: the data module has no `train_eval_dataloader`.
    """
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(datamodule, ServesTrainEval):
        raise UserError(
            "Goals on current weights need the training samples as they are: "
            f"{type(datamodule).__name__} has no `train_eval_dataloader()`."
        )
    means = model.new_metrics().to(model.device)
    with undisturbed(model), _evaluating(model):
        if trainer.world_size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        for batch in datamodule.train_eval_dataloader():
            moved = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))
            with trainer.precision_plugin.val_step_context():
                seen = model.sample_metrics(moved)
            for key, mean in means.items():
                assert isinstance(mean, SampleMean)
                mean.update(seen[key])
    return {key: mean.mean() for key, mean in means.items() if isinstance(mean, SampleMean)}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
