"""Local stability of predicted labels (mori2020 Appendix B)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Num
from torch import Tensor


def _labels(outputs: Tensor) -> Tensor:
    """The argmax of several outputs; with a single one, whether it is positive."""
    if outputs.ndim not in (1, 2):
        raise ValueError(f"outputs have shape {tuple(outputs.shape)}, not (n, classes), (n, 1) or (n,)")
    if not outputs.isfinite().all():
        raise ValueError("outputs are not finite")
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return outputs.argmax(1)
    return (outputs.flatten() > 0).long()


@torch.no_grad()
def local_stability(
    function: Callable[[Tensor], Tensor],
    inputs: Num[Tensor, "n ..."],
    strengths: Float[Tensor, "v"],
    max_bytes: int = 2**24,
) -> Float[Tensor, "v"]:
    r"""The share of inputs whose predicted label no perturbation of one coordinate changes (mori2020 Equation 17).

        s(v) = (1 / n) sum_mu 1[label(x_mu + alpha v e_i) = label(x_mu) for all i and alpha = +-1]

    All 2 d perturbations are tried. `function` takes a batch of inputs, of any length, and returns (batch, classes),
    label argmax, or (batch, 1) or (batch,), label whether the output is positive. It must treat each sample by itself:
    a network in eval mode. The shares are float64, one for each strength v, in units of the inputs. They need not fall
    as v grows: a label may change and change back.

    Raises ValueError for inputs that are not floating-point, no inputs, NaN, infinity, a negative strength, or outputs
    of another shape or not finite. Cost: at most n (1 + k (1 + 2 d)) evaluations for k strengths. A sample is dropped
    at its first changed label, and the perturbation that changed it is tried first at the next strength, so give the
    strengths in ascending order: an unstable sample then mostly costs one evaluation more, a stable one always 1 + 2 d.
    Memory: `max_bytes` of perturbed inputs at a time (one sample at least), and what `function` makes of them.

    >>> local_stability(lambda x: x, torch.tensor([[0.5], [-2.0]]), torch.tensor([0.1, 1.0, 3.0]))
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs are {inputs.dtype}, not floating-point")
    if not inputs.isfinite().all() or not inputs.numel():
        raise ValueError("inputs are not finite, or there are none")
    if not strengths.isfinite().all() or (strengths < 0).any():
        raise ValueError("strengths must be finite and not negative")
    shape = inputs.shape[1:]
    flat = inputs.reshape(len(inputs), -1)
    perturbations = 2 * math.prod(shape)  # number 2 i is +v e_i, 2 i + 1 is -v e_i
    most = max(1, max_bytes // (flat.shape[1] * flat.element_size()))
    labels = torch.cat([_labels(function(part.view(-1, *shape))) for part in torch.split(flat, most)])

    def changed(samples: Tensor, tried: Tensor, v: float) -> Tensor:
        """Whether the perturbations `tried` (k, m) change the labels of the samples (m,)."""
        answers = []
        for part, numbers in zip(torch.split(samples, most), torch.split(tried, most, dim=1), strict=True):
            x = flat[part.repeat(len(numbers))]
            alpha = 1 - 2 * (numbers.reshape(-1, 1) % 2).to(x)
            x.scatter_add_(1, numbers.reshape(-1, 1) // 2, alpha * v)
            answers.append(_labels(function(x.view(-1, *shape))).view(numbers.shape) != labels[part])
        return torch.cat(answers, dim=1)

    culprits = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
    shares = []
    for v in strengths.tolist():
        stable = torch.arange(len(flat), device=flat.device)
        stable = stable[~changed(stable, culprits[None], v)[0]]
        first = 0
        while first < perturbations and len(stable):
            k = min(max(1, most // len(stable)), perturbations - first)
            tried = torch.arange(first, first + k, device=flat.device)[:, None].expand(k, len(stable))
            change = changed(stable, tried, v)
            fell = change.any(0)
            culprits[stable[fell]] = first + change[:, fell].int().argmax(0)
            stable = stable[~fell]
            first += k
        shares.append(len(stable) / len(flat))
    return torch.tensor(shares, dtype=torch.float64, device=flat.device)
