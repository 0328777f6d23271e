"""The mean over all samples of a split."""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torchmetrics import Metric


class SampleMean(Metric):
    """The mean over samples of numbers (*replicas, n), which come in batches; replica axes stay.

    Sums are in float64: over 50,000 samples the mean is exact to all the digits that anyone prints. Under DDP it is
    over the samples of all processes. One NaN makes the mean NaN.

    >>> mean = SampleMean()
    >>> mean.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), mean.update(torch.tensor([[3.0], [5.0]]))
    (None, None)
    >>> mean.mean()
    tensor([2., 4.], dtype=torch.float64)
    """

    full_state_update = False
    # Named as in torchmetrics' MeanMetric: checkpoints of an unfinished epoch hold them by name.
    mean_value: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean_value", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    @property
    def dtype(self) -> torch.dtype:
        """float64: `set_dtype` alone is forgotten when the metric moves to its device."""
        return torch.float64

    def update(self, values: Shaped[Tensor, "*replicas n"]) -> None:
        """Count the samples of a batch."""
        self.mean_value = self.mean_value + values.detach().double().sum(dim=-1)
        self.weight = self.weight + values.shape[-1]

    def compute(self) -> Tensor:
        """The mean over the samples of all processes; torchmetrics takes the axes from one that is a single number."""
        return self.mean_value / self.weight

    def mean(self) -> Tensor:
        """The mean over the samples of all processes, (*replicas,)."""
        return self.compute().reshape(self.mean_value.shape)

    def snapshot(self) -> dict[str, Any]:
        """The sums of this process so far, on the CPU."""
        states = {name: getattr(self, name).detach().cpu().clone() for name in self._defaults}
        return {"updates": self._update_count, "states": states}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot."""
        self._update_count = snapshot["updates"]
        for name, value in snapshot["states"].items():
            setattr(self, name, value.to(self.device))
