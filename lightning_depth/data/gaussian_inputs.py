"""Standard normal inputs without a task, for looking at random networks (huh2021 3.1, Figure 1)."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lightning_depth.data.memory import Stage
from lightning_depth.data.tensors import AbstractTensorData, normal
from lightning_depth.mistakes import Mistake


@final
class GaussianInputs(AbstractTensorData):
    """Standard normal inputs of any shape, all targets zero: something to feed to networks that are not trained.

    huh2021 Figure 1 feeds 256 inputs of dimension 32 to networks of outputs 32. To keep the random weights, fit with a
    learning rate of 0.

    Args:
        shape: of one input: (d,), or (channels, height, width).
        outputs: numbers in a target, so outputs of the network.
        train_samples: training samples.
        test_samples: validation samples, and as many test samples.
        batch_size: training samples per batch and process; 0: all in one.
        eval_batch_size: samples per batch and process elsewhere.
        seed: of all samples. None: that of the run.

    Raises:
        Mistake: a size is below 1.
    """

    def __init__(
        self,
        shape: Sequence[int] = (32,),
        outputs: int = 32,
        train_samples: int = 256,
        test_samples: int = 256,
        batch_size: int = 0,
        eval_batch_size: int = 256,
        seed: int | None = None,
    ) -> None:
        super().__init__(train_samples, test_samples, batch_size, eval_batch_size, seed)
        if not shape or min(*shape, outputs) < 1:
            raise Mistake(f"shape={list(shape)}, outputs={outputs}: every size must be at least 1.")
        self.shape, self.outputs = tuple(shape), outputs

    def make(self, split: Stage, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `AbstractTensorData`."""
        return normal(samples, self.shape, stream), torch.zeros(samples, self.outputs)
