"""The fixed samples that probes look at: the same ones at every look, however many processes there are."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lightning_depth.errors import UserError
from lightning_depth.results import Split


class Samples:
    """Fixed random choices of the samples of a trainer's splits, drawn once and kept."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._drawn = cache(self._draw)

    def batches(self, split: Split, samples: int, everywhere: bool = False) -> Any:
        """Batches of (inputs, targets) of a fixed random choice of `samples` samples, on the module's device.

        From a data module's `probe_dataloader(samples, split, everywhere)` where it has one; otherwise from the data
        set of the split's loader, with whatever its transforms do. `everywhere`: each process gets all of them, instead
        of its share (every world-th). A `UserError` where there is no such loader, or it is no torch `DataLoader` over
        a sized data set.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if hasattr(datamodule, "probe_dataloader"):
            return datamodule.probe_dataloader(samples, split, everywhere)  # type: ignore[union-attr]
        return self._drawn(split, samples, everywhere)

    def _draw(self, split: Split, samples: int, everywhere: bool) -> list[tuple[Tensor, Tensor]]:
        trainer, loader = self.trainer, loader_of(self.trainer, split)
        if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
            raise _no_samples(split)
        chosen = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0))[:samples]
        if not everywhere:
            chosen = chosen[trainer.global_rank :: trainer.world_size]
        subset = Subset(loader.dataset, chosen.tolist())
        batches = DataLoader(subset, batch_size=loader.batch_size or 128, collate_fn=loader.collate_fn)
        with torch.inference_mode(False):  # a probe that validation calls may want gradients
            return [unpack(trainer.strategy.batch_to_device(batch)) for batch in batches]

    def whole(self, split: Split, samples: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of `batches`, all of them in every process, as the network takes them."""
        batches = [self.trainer.precision_plugin.convert_input(b) for b in self.batches(split, samples, True)]
        inputs, targets = zip(*batches, strict=True)
        return torch.cat(inputs), torch.cat(targets)


def _no_samples(split: Split) -> UserError:
    return UserError(f"A probe needs {split} samples: give the data module a `probe_dataloader(samples, split)`.")


def loader_of(trainer: Trainer, split: Split) -> Any:
    """The first loader of a split. A `UserError` where there are no training data."""
    if split == "train":
        if trainer.train_dataloader is None:
            try:
                trainer.fit_loop.setup_data()
            except MisconfigurationException as error:  # `validate` was given no training data
                raise _no_samples(split) from error
        return trainer.train_dataloader
    loaders = trainer.test_dataloaders if split == "test" else trainer.val_dataloaders
    return loaders[0] if isinstance(loaders, list | tuple) else loaders


def count_classes(trainer: Trainer, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    """The number of classes: the data module's word for it, or one more than the largest label that is seen."""
    stated = getattr(getattr(trainer, "datamodule", None), "num_classes", None)
    if stated is not None:
        return int(stated)
    seen = max((int(targets.max()) for _, targets in batches if not targets.is_floating_point()), default=-1) + 1
    return int(trainer.strategy.reduce(torch.tensor(seen), reduce_op="max"))


def unpack(batch: Any) -> tuple[Tensor, Tensor]:
    """The inputs and targets of a batch."""
    if isinstance(batch, list | tuple) and len(batch) >= 2 and all(isinstance(part, Tensor) for part in batch[:2]):
        return batch[0], batch[1]
    raise UserError(f"Probes need batches of (inputs, targets) tensors; this one is a {type(batch).__name__}.")
