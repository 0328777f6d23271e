"""Standard normal inputs, to look at random networks (huh2021 Fig. 1), or to be returned (nichani2020 Fig. 8c)."""

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from lightning_depth.data.base.tensors import AbstractTensorData, normal
from lightning_depth.errors import UserError
from lightning_depth.results import Split


@final
class GaussianInputs(AbstractTensorData):
    """Standard normal inputs of any shape: something to feed to networks that are not trained, or to be returned.

    huh2021 Figure 1 feeds 256 inputs of dimension 32 to networks of outputs 32. To keep the random weights, fit with a
    learning rate of 0. nichani2020 Figure 8c trains linear autoencoders on a 5-dimensional vector. Raises a UserError
    where a size is below 1, or `outputs` are given with targets that are the inputs.

    Args:
        shape: of one input: (d,), or (channels, height, width).
        targets: `zeros`, or the `inputs` themselves, for an autoencoder.
        outputs: numbers in a target of zeros, so outputs of the network; None: as many as in an input.
        train_samples: training samples.
        test_samples: validation samples, and as many test samples.
        batch_size: training samples per batch and process; 0: all in one.
        eval_batch_size: samples per batch and process elsewhere.
        seed: of all samples. None: that of the run.
    """

    def __init__(
        self,
        shape: Sequence[int] = (32,),
        targets: Literal["zeros", "inputs"] = "zeros",
        outputs: int | None = None,
        train_samples: int = 256,
        test_samples: int = 256,
        batch_size: int = 0,
        eval_batch_size: int = 256,
        seed: int | None = None,
    ) -> None:
        super().__init__(train_samples, test_samples, batch_size, eval_batch_size, seed)
        if not shape or min(shape) < 1 or (outputs is not None and outputs < 1):
            raise UserError(f"shape={list(shape)}, {outputs=}: every size must be at least 1.")
        if targets == "inputs" and outputs is not None:
            raise UserError(f"{outputs=}: an input that is its own target says how many there are. Leave it out.")
        self.shape, self.targets = tuple(shape), targets
        self.outputs = math.prod(shape) if outputs is None else outputs

    def make(self, split: Split, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        x = normal(samples, self.shape, stream)
        return x, x.clone() if self.targets == "inputs" else torch.zeros(samples, self.outputs)
