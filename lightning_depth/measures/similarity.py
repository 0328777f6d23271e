"""Similarity of the representations of two layers: linear CKA, biased and debiased.

All raise ValueError for n < 4 samples if debiased, NaN or infinity, and cost float64 copies besides.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_depth.measures.rows import check_finite, finite_rows

# Where features are subtracted from, a self-HSIC is a difference of squares and below this fraction of them round-off.
_ROUND_OFF = 1e-10
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

    Raises ValueError, too, for numbers so large that their HSIC is infinite. Cost: one product, layers^2 n^2.

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


def _centred_features(features: Tensor) -> Tensor:
    """Flattened features of mean zero, float64; constant ones become exactly zero."""
    rows = finite_rows(features)
    rows = rows - rows[:1]  # the mean of equal numbers is rounded
    return rows - rows.mean(0)


def linear_cka(x: Float[Tensor, "n ..."], y: Float[Tensor, "m ..."], debiased: bool = True) -> Float[Tensor, ""]:
    r"""The linear CKA of two representations of the same n samples (Kornblith et al. 2019, section 3), float64.

        biased    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F),   X and Y centred, in rows
        debiased  the same with ||Y^T X||_F^2 - n / (n - 2) sum_i x_i y_i + sum_i x_i sum_i y_i / ((n - 1)(n - 2))
                  in place of each square,   x_i = ||X_i||^2,  y_i = ||Y_i||^2

    The second is `cka_matrix` of the Gram matrices X X^T and Y Y^T, debiased (Nguyen et al. 2021, Equation 3): see
    there for its range, and use it for many layers. Features are flattened. Invariant to orthogonal maps, shifts and
    one scale for all features of a layer, not to other linear maps.

    Constant features, and debiased those that are all equally alike, have self-HSIC zero and correlate with nothing: 0,
    with themselves too. A debiased self-HSIC counts as zero below 1e-10 of the biased one.

    Raises ValueError, too, for two numbers of samples. Cost: the cheaper of n^2 (d1 + d2), by samples, and
    n (d1^2 + d1 d2 + d2^2), by features.

    >>> line = torch.arange(5.0)[:, None]
    >>> linear_cka(line, 7 - 2 * line)
    tensor(1., dtype=torch.float64)
    """
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples, y has {len(y)}")
    n = len(x)
    _check_samples(n, debiased)
    pair = [_centred_features(x), _centred_features(y)]
    d1, d2 = (rows.shape[1] for rows in pair)
    if n * (d1 + d2) <= d1 * d1 + d1 * d2 + d2 * d2:
        return cka_matrix(torch.stack([rows @ rows.mT for rows in pair]), debiased)[0, 1]
    # ||Y^T X||_F^2
    hsic = torch.stack([torch.stack([(a.mT @ b).square().sum() for a in pair]) for b in pair])
    floor = _ROUND_OFF * hsic.diagonal()
    if debiased:
        squares = torch.stack([rows.square().sum(1) for rows in pair])
        sums = squares.sum(1)
        # - n / (n - 2) sum_i x_i y_i + sum_i x_i sum_i y_i / ((n - 1)(n - 2))
        hsic = hsic - n / (n - 2) * squares @ squares.mT + torch.outer(sums, sums) / ((n - 1) * (n - 2))
    return _alignment(hsic, floor)[0, 1]
