"""Losses of single samples; every reduction over the batch is the caller's."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["mse", "cross_entropy"]


def sample_losses(
    loss: LossName, outputs: Float[Tensor, "*replicas n c"], labels: Int[Tensor, "*replicas n"]
) -> Float[Tensor, "*replicas n"]:
    """The loss of each sample, from the outputs of a classifier of c classes.

    `mse` is the mean over the c outputs of the squared distance to the one-hot target, so its mean over samples is
    `torch.nn.MSELoss` on one-hot targets (nichani2020 3.2 after Yang et al. 2020). `cross_entropy` is in nats.

    >>> import torch
    >>> sample_losses("mse", torch.zeros(1, 4), torch.tensor([2]))
    tensor([0.2500])
    """
    if loss == "mse":
        # (1/c) |f - e_y|^2
        one_hot = F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype)
        return (outputs - one_hot).square().mean(dim=-1)
    # -log softmax(f)_y
    return F.log_softmax(outputs, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1).neg()
