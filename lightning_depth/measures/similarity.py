"""Similarity of the representations of two layers: linear CKA, biased and debiased."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_depth.measures.rows import check_finite

# Gram matrices are subtracted from entry by entry: what is left of one is round-off below so many units of its dtype.
_ULPS = 16


def _check_samples(n: int, debiased: bool) -> None:
    if n < 4 and debiased:
        raise ValueError(f"the debiased HSIC needs 4 samples, not {n}")
    if n < 1:
        raise ValueError("there are no samples")


def _centred(grams: Tensor, debiased: bool) -> Tensor:
    """Double-centred matrices H K H; if debiased U-centred ones, the same over pairs of different samples."""
    n = grams.shape[-1]
    k = grams.to(torch.float64, copy=True)
    check_finite(k, "gram matrices are")
    if debiased:
        k.diagonal(dim1=-2, dim2=-1).zero_()
    # K_ij - sum_l K_il / m - sum_l K_lj / m + sum_lq K_lq / (m m'),  (m, m') = (n - 2, n - 1) debiased, (n, n) else
    means = k.sum(-1) / (n - 2 if debiased else n)
    mean = means.sum(-1) / (n - 1 if debiased else n)
    k -= means[..., :, None]
    k -= (means - mean[..., None])[..., None, :]
    if debiased:
        k.diagonal(dim1=-2, dim2=-1).zero_()
    return k


def _alignment(hsic: Tensor, floor: Tensor) -> Tensor:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) from all of them; 0 where a self-HSIC is not above its floor."""
    own = hsic.diagonal()
    if not hsic.isfinite().all():
        raise ValueError("representations are not finite, or too large for float64")
    scale = torch.where(own > floor, own, torch.inf).rsqrt()
    return torch.where(scale[:, None] * scale > 0, scale[:, None] * hsic * scale, 0.0).clamp(-1, 1)


def cka_matrix(grams: Float[Tensor, "layers n n"], debiased: bool = True) -> Float[Tensor, "layers layers"]:
    r"""The CKA of every two layers, from the Gram matrices of their features on the same n samples.

        CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))                     (Kornblith et al. 2019, Equation 4)

    `debiased` takes the unbiased HSIC (Song et al. 2012, Equation 5; Nguyen et al. 2021, Equation 3), by U-centred
    matrices (Szekely & Rizzo 2014): in [-1, 1] and 0 on average for independent features; the biased one is in [0, 1]
    and tends to 1 for any two layers with many more features than samples. For linear CKA, K = X X^T with X the
    flattened features, better centred: digits are lost if they lie far from 0.

    A self-HSIC of zero, as of constant features or, debiased, of features that are all equally alike, correlates with
    nothing: 0, the diagonal included. What centring leaves counts as zero below 16 eps ||K||_F, eps that of the dtype.

    Raises ValueError for n < 4 samples if debiased, NaN or infinity, or numbers so large that their HSIC is infinite.
    Cost: one product, layers^2 n^2, and a float64 copy.

    >>> line = torch.arange(5.0)[:, None]
    >>> layers = [line, 3 * line + 7, torch.ones(5, 2)]
    >>> cka_matrix(torch.stack([x @ x.T for x in layers]))
    tensor([[1., 1., 0.],
            [1., 1., 0.],
            [0., 0., 0.]], dtype=torch.float64)
    """
    _check_samples(grams.shape[-1], debiased)
    rows = _centred(grams, debiased).flatten(1)
    # HSIC(K_a, K_b) up to a factor that cancels
    hsic = rows @ rows.mT
    floor = (_ULPS * torch.finfo(grams.dtype).eps * torch.linalg.vector_norm(grams.double(), dim=(1, 2))).square()
    return _alignment(hsic, floor)
