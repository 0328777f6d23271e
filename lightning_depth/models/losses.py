"""Losses and hits of single samples, under any number of leading replica axes, and their mean over a split."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_depth.errors import UserError
from lightning_depth.models.shapes import Shapes

LossName = Literal["mse", "cross_entropy"]


def sample_losses(
    loss: LossName, outputs: Float[Tensor, "..."], targets: Shaped[Tensor, "..."], shapes: Shapes
) -> Float[Tensor, "..."]:
    """The loss of each sample, (*replicas, n); how many axes are a sample's own is known from `shapes`.

    `mse` is the mean over the c outputs of the squared distance to the one-hot target, so its mean over samples is
    `torch.nn.MSELoss` on one-hot targets (nichani2020 3.2 after Yang et al. 2020). `cross_entropy` is in nats. Targets
    that are numbers have the mean over all their entries.

    Args:
        loss: see above.
        outputs: (*replicas, n, c) for classes, with c at least their number: a pretrained head may have more. For
            numbers (*replicas, n, ...), of any shape with as many entries as a target.
        targets: classes (*replicas, n), or numbers (*replicas, n, *shapes.target).
        shapes: of one sample.

    Raises:
        UserError: outputs or targets have other shapes, or targets that are classes are no whole numbers, or (on the
            CPU: a look at each batch would make a GPU wait) are not 0 .. classes - 1.

    >>> import torch
    >>> sample_losses("mse", torch.zeros(1, 4), torch.tensor([2]), Shapes((3,), classes=4))
    tensor([0.2500])
    """
    leading = _leading(outputs, targets, shapes)
    if shapes.target is not None:
        # mean_k (f_k - y_k)^2
        entries = math.prod(shapes.target)
        return (outputs.reshape(*leading, entries) - targets.reshape(*leading, entries)).square().mean(dim=-1)
    targets = targets.long()
    if loss == "mse":
        # (1/c) |f - e_y|^2
        one_hot = F.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
        return (outputs - one_hot).square().mean(dim=-1)
    # -log softmax(f)_y
    return F.log_softmax(outputs, dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1).neg()


def correct(outputs: Float[Tensor, "..."], targets: Shaped[Tensor, "..."], shapes: Shapes) -> Bool[Tensor, "..."]:
    """Whether the largest output of each sample is that of its class, (*replicas, n); arguments as `sample_losses`.

    A `UserError` where the targets are numbers, or as for `sample_losses`.
    """
    if shapes.target is not None:
        raise UserError("The targets are numbers, which have no accuracy.")
    _leading(outputs, targets, shapes)
    return outputs.argmax(dim=-1) == targets


def _leading(outputs: Tensor, targets: Tensor, shapes: Shapes) -> torch.Size:
    """(*replicas, n), which outputs and targets share."""
    if shapes.target is None:
        leading = targets.shape
        fits = outputs.shape[:-1] == leading and outputs.shape[-1:] >= (shapes.outputs,)
        fits = fits and not targets.is_floating_point() and not targets.is_complex()
    else:
        axes = targets.dim() - len(shapes.target)
        leading = targets.shape[: max(axes, 0)]
        fits = targets.shape[len(leading) :] == shapes.target and outputs.shape[: len(leading)] == leading
        fits = fits and outputs.numel() == targets.numel() and targets.is_floating_point()
    if not fits or not leading:
        wanted = f"{shapes.classes} classes" if shapes.target is None else f"numbers of shape {shapes.target}"
        found = f"{tuple(outputs.shape)}, the targets are {targets.dtype} {tuple(targets.shape)}"
        misfit = f"they do not fit together, or not targets that are {wanted}"
        raise UserError(f"The network returns {found}:\n{misfit}.")
    if shapes.target is None and targets.device.type == "cpu" and targets.numel():
        for label in targets.aminmax():
            if not 0 <= label < shapes.outputs:
                held = f"the label {int(label)}, but there are {shapes.classes} classes"
                rule = f"labels are whole numbers from 0 to {shapes.outputs - 1}"
                raise UserError(f"The targets hold {held}:\n{rule}.")
    return leading


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
        self._update_count = snapshot["updates"]
        for name, value in snapshot["states"].items():
            setattr(self, name, value.to(self.device))
