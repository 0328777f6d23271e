"""Losses of single samples; every reduction over the batch is the caller's."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lightning_depth.errors import UserError

LossName = Literal["mse", "cross_entropy"]


def sample_losses(
    loss: LossName, outputs: Float[Tensor, "..."], targets: Int[Tensor, "..."] | Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The loss of each sample, from the outputs of a network and its targets: classes, or numbers of the same size.

    Outputs of a classifier are (*replicas, n, c), its targets (*replicas, n); outputs and targets that are numbers are
    (n, ...), of any shapes with equally many entries.

    `mse` is the mean over the c outputs of the squared distance to the one-hot target, so its mean over samples is
    `torch.nn.MSELoss` on one-hot targets (nichani2020 3.2 after Yang et al. 2020). `cross_entropy` is in nats. Targets
    that are numbers have the mean over all their entries.

    Raises:
        UserError: the outputs have another size than targets that are numbers.

    >>> import torch
    >>> sample_losses("mse", torch.zeros(1, 4), torch.tensor([2]))
    tensor([0.2500])
    """
    if targets.is_floating_point():
        if outputs[0].numel() != targets[0].numel():
            raise UserError(
                f"The network returns {tuple(outputs.shape[1:])}, the targets are {tuple(targets.shape[1:])}."
            )
        # mean_k (f_k - y_k)^2
        return (outputs.flatten(1) - targets.flatten(1)).square().mean(dim=1)
    if loss == "mse":
        # (1/c) |f - e_y|^2
        one_hot = F.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
        return (outputs - one_hot).square().mean(dim=-1)
    # -log softmax(f)_y
    return F.log_softmax(outputs, dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1).neg()
