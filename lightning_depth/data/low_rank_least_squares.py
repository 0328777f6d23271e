"""Under-determined least squares whose true map has low rank (huh2021 2.4 and section 3)."""

import math
from typing import Any, final

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_depth.data.base.tensors import AbstractTensorData, normal
from lightning_depth.errors import UserError
from lightning_depth.measures.gram import gram_effective_rank
from lightning_depth.results import Split


def low_rank_map(outputs: int, inputs: int, rank: int, stream: torch.Generator) -> Float[Tensor, "outputs inputs"]:
    """A random linear map of that rank: a product of Gaussian factors, so that E |W x|^2 = outputs for normal x."""
    left, right = normal(outputs, (rank,), stream), normal(rank, (inputs,), stream)
    # W* = A B / sqrt(r n)
    return (left.double() @ right.double() / math.sqrt(rank * inputs)).float()


@final
class LowRankLeastSquares(AbstractTensorData):
    """Regress y = W* x on q samples of standard normal x, where W* has the task rank (huh2021 2.4, Figures 2, 4, 5, 9).

    With fewer samples than input dimensions many maps fit; which one is found depends on the depth. The paper says
    neither q nor how W* is drawn: here it is a product of two Gaussian factors (`low_rank_map`), drawn from the seed.
    Raises a UserError where a dimension is below 1, or the rank is not possible.

    Args:
        input_dim: n; the paper has 32.
        output_dim: m; the paper has 32.
        task_rank: rank of W*; the paper has 24 in Figure 5.
        train_samples: q, to stay below n.
        test_samples: test samples, and as many validation samples; the Gram matrices of Figure 1 have 256.
        batch_size: training samples per batch and process; 0: all in one, as for gradient descent.
        tensors: other arguments of `AbstractTensorData`.

    Warns: q >= n, where the least-squares solution is unique (and is W*), whatever the depth.
    """

    def __init__(
        self,
        input_dim: int = 32,
        output_dim: int = 32,
        task_rank: int = 24,
        train_samples: int = 16,
        test_samples: int = 256,
        batch_size: int = 0,
        **tensors: Any,
    ) -> None:
        super().__init__(train_samples, test_samples, batch_size, **tensors)
        if (most := min(input_dim, output_dim)) < 1:
            raise UserError(f"{input_dim=}, {output_dim=}: both must be at least 1.")
        if not 1 <= task_rank <= most:
            raise UserError(f"{task_rank=}: a {output_dim} x {input_dim} map has rank 1 to {most}.")
        if train_samples >= input_dim:
            unique = "the least-squares solution is unique, so depth cannot choose another"
            rank_zero_warn(f"{train_samples=} >= {input_dim=}: {unique}. Fewer samples leave a choice.")
        self.input_dim, self.output_dim, self.task_rank = input_dim, output_dim, task_rank

    @property
    def teacher(self) -> Float[Tensor, "outputs inputs"]:
        """W*, a function of the seed."""
        return low_rank_map(self.output_dim, self.input_dim, self.task_rank, self.shared("teacher"))

    @property
    def task_effective_rank(self) -> float:
        """Effective rank, in nats, of the Gram matrix of cosines of the true outputs W* x on the validation inputs.

        What the green line of huh2021 Figure 2 is to be compared with: below the logarithm of the task rank.
        """
        return float(gram_effective_rank(self.split("val").targets))

    def make(self, split: Split, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        x = normal(samples, (self.input_dim,), stream)
        # In float64 and rounded, so that no machine's order of summation shows.
        return x, (x.double() @ self.teacher.double().T).float()
