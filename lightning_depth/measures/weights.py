"""How far training has moved the weights (zhang2019 Appendix D)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def relative_distance(weight: Float[Tensor, "..."], initial: Float[Tensor, "..."]) -> float:
    r"""The relative distance of a weight to its initial value, ||W - W0||_F / ||W0||_F (zhang2019 Appendix D).

    In float64, whatever the dtypes; `initial` may lie on another device. A tensor that began at zero (a bias) has moved
    by 0 if it is still zero, else by infinity.

    Raises ValueError for NaN, infinity or shapes that differ. Cost: two float64 copies.

    >>> relative_distance(torch.tensor([3.0, 7.0]), torch.tensor([3.0, 4.0]))
    0.6
    >>> relative_distance(torch.tensor([1.0]), torch.tensor([0.0]))
    inf
    """
    if weight.shape != initial.shape:
        raise ValueError(f"the weight has shape {tuple(weight.shape)}, its initial value {tuple(initial.shape)}")
    start = initial.detach().to(weight.device, torch.float64)
    distance = float(torch.linalg.vector_norm(weight.detach().double() - start))
    size = float(torch.linalg.vector_norm(start))
    if not (math.isfinite(distance) and math.isfinite(size)):
        raise ValueError("weights are not finite")
    if size == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / size
