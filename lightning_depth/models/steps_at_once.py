"""Several optimizer steps in one of Lightning's: what `AbstractFamily(steps_at_once=...)` is made of.

The data module serves several batches as one (`AbstractMemoryData.batches_at_once`); the family divides it again and
takes a step on each part.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_depth.data.base.batches import TensorBatches
from lightning_depth.errors import UserError

Batch = Sequence[Tensor]
Objective = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]


def steps_of(model: LightningModule) -> int:
    """How many optimizer steps a model takes in one of Lightning's: 1, unless it is a family that was given another."""
    return int(getattr(model, "steps_at_once", 1))


def check(trainer: Trainer, steps: int, own_step: bool) -> None:
    """Raise a UserError for what several steps would pass by; `own_step`: the family has its own `training_step`."""
    loader: Any = trainer.train_dataloader
    served = loader.at_once if isinstance(loader, TensorBatches) else 1
    refused = {
        "one process": trainer.world_size > 1,
        "no gradient clipping": bool(trainer.gradient_clip_val),
        "accumulate_grad_batches=1": trainer.accumulate_grad_batches > 1,
        "a precision that does not scale losses": getattr(trainer.precision_plugin, "scaler", None) is not None,
        "a family without a training_step of its own": own_step,
        "data of lightning_depth": served != steps,
    }
    if steps > 1 and any(refused.values()):
        wanted = ", ".join(what for what, missing in refused.items() if missing)
        raise UserError(f"steps_at_once={steps} needs {wanted}.")


def batches_an_epoch(trainer: Trainer, steps: int) -> int:
    """The number of batches of an epoch: Lightning counts groups of them."""
    if steps == 1:
        return int(trainer.num_training_batches)
    loader: Any = trainer.train_dataloader
    batches: int = math.ceil(len(loader.sampler) / loader.batch_size)
    return batches


def divided(trainer: Trainer, batch: Batch) -> list[Batch]:
    """The batches that were served as one."""
    loader: Any = trainer.train_dataloader
    return list(zip(*(torch.split(tensor, loader.batch_size) for tensor in batch), strict=True))


def step(
    model: LightningModule, batch: Batch, optimizer: torch.optim.Optimizer, objective: Objective
) -> dict[str, Tensor]:
    """A step that Lightning does not see: what it would do between closure and step is most of a small one.

    Returns what is to be counted of the batch: at the weights before the step.
    """
    first: list[dict[str, Tensor]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        with model.trainer.precision_plugin.train_step_context():
            loss, seen = objective(batch)
        first.append(seen)
        model.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # torch takes a tensor as well
    return {key: values.detach() for key, values in first[0].items()}


def advance(trainer: Trainer, steps: int) -> None:
    """Count steps that Lightning has not seen: for max_steps, loggers and random numbers."""
    loop, automatic = trainer.fit_loop.epoch_loop, trainer.lightning_module.automatic_optimization
    seen = loop.automatic_optimization.optim_progress.optimizer.step
    progress = seen if automatic else loop.manual_optimization.optim_step_progress
    for count in (progress.total, progress.current):
        count.ready += steps
        count.completed += steps
