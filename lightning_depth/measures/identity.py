"""Identity or constant: what a network trained on one example has learned (zhang2019 sections 3.3-3.4, Appendix I).

Both maps fit the one example e. A constant predictor has correlation rho to the identity at inputs of correlation rho
to e (`at_correlation`), and so has the identity map to the constant; each has mean squared error 2 ||e||^2 (1 - rho) /
d to the other there. All raise ValueError for NaN, infinity or another shape, and cost a few float64 copies.
"""

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lightning_depth.measures.rows import check_finite, normalised

# What is left of a noise without the example's direction is round-off below this fraction of it.
_PARALLEL = 1e-10


def at_correlation(
    example: Num[Tensor, "..."], correlations: Float[Tensor, "n"], noise: Float[Tensor, "n ..."]
) -> Float[Tensor, "n ..."]:
    r"""Test inputs at a given correlation (cosine) to the training example, and of its norm (zhang2019 section 3.3).

        x = ||e|| (rho e^ + sqrt(1 - rho^2) n^),   e^ = e / ||e||,   n^ = (n - <n, e^> e^) / ||n - <n, e^> e^||

    Each correlation rho in [-1, 1] has a noise of its own: repeat the correlations for several draws. The paper says
    "randomly sample the pixels" and no more; standard normal noise makes n^ uniform on the sphere. The result is of the
    example's dtype, computed in float64: cosine and norm are exact to the round-off of that dtype.

    Raises ValueError, too, for a zero example or one that is not floating-point, a correlation beyond [-1, 1], or a
    noise that is zero or parallel to the example where |rho| < 1.

    >>> at_correlation(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 0.6]), torch.tensor([[1.0, 0.0], [2.0, 7.0]]))
    tensor([[0., 5.],
            [4., 3.]])
    """
    if not example.is_floating_point():
        raise ValueError(f"the example is {example.dtype}, not floating-point")
    if noise.shape != (len(correlations), *example.shape):
        raise ValueError(f"noise has shape {tuple(noise.shape)}, not {(len(correlations), *example.shape)}")
    rho = correlations.double()[:, None]
    if not (rho.abs() <= 1).all():
        raise ValueError("correlations must lie in [-1, 1]")
    (unit,), is_zero = normalised(example[None], centred=False)
    if is_zero:
        raise ValueError("the example is zero: nothing has a correlation to it")
    rest, no_noise = normalised(noise, centred=False)
    for _ in range(2):  # the first subtraction leaves a component of round-off beside what may be a short rest
        rest = rest - (rest @ unit)[:, None] * unit
    length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
    parallel = no_noise[:, None] | (length <= _PARALLEL)
    if (parallel & (rho.abs() < 1)).any():
        raise ValueError("a noise is zero or parallel to the example")
    # x = ||e|| (rho e^ + sqrt(1 - rho^2) n^)
    norm = torch.linalg.vector_norm(example.double())
    x: Tensor = norm * (rho * unit + ((1 - rho) * (1 + rho)).sqrt() * rest / torch.where(parallel, 1.0, length))
    return x.view(noise.shape).to(example.dtype)


def _per_sample(predictions: Tensor, reference: Tensor) -> Tensor:
    """The reference with a batch axis: that of the predictions, or of length one."""
    if reference.shape == predictions.shape:
        return reference
    if reference.shape == predictions.shape[1:]:
        return reference[None]
    raise ValueError(f"reference has shape {tuple(reference.shape)}, the predictions {tuple(predictions.shape)}")


def cosine_to(predictions: Float[Tensor, "n ..."], reference: Float[Tensor, "..."]) -> Float[Tensor, "n"]:
    r"""The correlation of each prediction with a reference (zhang2019 Figures 5 and 7), in [-1, 1], float64.

        cos(f, r) = <f, r> / (||f|| ||r||),   0 where either is zero

    It is the cosine, not centred: only so is a constant predictor at correlation rho to an input at correlation rho.
    `reference` is one for all, of a prediction's shape, or one for each.

    >>> cosine_to(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([0.0, 2.0]))
    tensor([0.8000, 0.0000], dtype=torch.float64)
    """
    reference = _per_sample(predictions, reference)
    # <f^, r^>; round-off can pass 1
    products = normalised(predictions, centred=False).rows * normalised(reference, centred=False).rows
    cosines: Tensor = products.sum(1).clamp(-1, 1)
    return cosines


def mse_to(predictions: Float[Tensor, "n ..."], reference: Float[Tensor, "..."]) -> Float[Tensor, "n"]:
    r"""The mean squared error of each prediction, of d entries, to a reference, ||f - r||^2 / d (zhang2019 Appendix I).

    `reference` as in `cosine_to`; float64.

    >>> mse_to(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0.0, 2.0]))
    tensor([6.5000, 0.0000], dtype=torch.float64)
    """
    difference = predictions.double() - _per_sample(predictions, reference).double()
    error = difference.flatten(1).square().mean(1)
    check_finite(error, "predictions or reference are")
    return error
