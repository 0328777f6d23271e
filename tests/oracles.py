"""Slow and obvious references that tests alone call, and the one check that every iterative measure is held to."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_depth.layers.expansion import (
    ExpandedConv1d,
    ExpandedConv2d,
    ExpandedLayer,
    ExpandedLinear,
    ExpandedPointwiseConv2d,
)
from lightning_depth.measures.collapse import TIE, predictions
from lightning_depth.measures.neighbours import _lengths, _ties
from lightning_depth.measures.neural_collapse import _ROUND_OFF, _centred
from lightning_depth.measures.rows import finite_rows, normalised
from lightning_depth.measures.similarity import _alignment, _check_samples, cka_matrix
from lightning_depth.measures.similarity import _centred as hsic_centred
from lightning_depth.measures.spectra import normalised_spectrum

# (map, rtol, most steps) -> (largest singular value, steps taken)
Iteration = Callable[[Tensor, float, int], tuple[float, int]]


class Convergence(NamedTuple):
    """How many draws missed the tolerance, and the steps of the slowest."""

    missed: int
    steps: int


@cache
def _bases(size: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(size, size, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [torch.linalg.qr(draw).Q for draw in draws]


def map_with(sigma: Tensor, seed: int) -> Tensor:
    """A square matrix with the singular values `sigma` and random singular vectors, float64."""
    left, right = _bases(len(sigma), seed)
    return left * sigma.double() @ right.mT


def spectrum(kind: str, rtol: float, seed: int, size: int = 300) -> Tensor:
    """Singular values with the largest 1: `close` and `repeated` are the hard ones, with g = 1.5 to 3."""
    g = 1.5 + 1.5 * float(torch.rand((), generator=torch.Generator().manual_seed(1000 + seed)))
    leading = {
        "alone": [1.0],
        "close": [1.0, 1 - g * rtol],
        "three close": [1.0, 1 - g * rtol, 1 - 2 * g * rtol],
        "closer than rtol": [1.0, 1 - 0.1 * rtol],
        "repeated": [1.0, 1.0, 1.0],
        "second repeated": [1.0, 1 - g * rtol, 1 - g * rtol],
    }[kind]
    rest = torch.linspace(0.9, 0, size - len(leading), dtype=torch.float64)
    return torch.cat([torch.tensor(leading, dtype=torch.float64), rest])


def convergence(
    iteration: Iteration, kind: str, rtol: float, budget: int, draws: int, dtype: torch.dtype = torch.float64
) -> Convergence:
    """What `iteration` made of maps whose largest singular value is known: it may take `budget` steps."""
    missed, most = 0, 0
    for seed in range(draws):
        matrix = map_with(spectrum(kind, rtol, seed), seed).to(dtype)
        value, steps = iteration(matrix, rtol, budget)
        # the cast rounds the singular values by no more than the norm of its errors
        missed += not abs(value - 1) <= rtol + 4 * torch.finfo(dtype).eps
        most = max(most, steps)
    return Convergence(missed, most)


def vote_predictions_nxn(
    test: Float[Tensor, "n ..."],
    train: Float[Tensor, "N ..."],
    y: Int[Tensor, "N"],
    num_classes: int,
    centred: bool = True,
    balanced: bool = False,
) -> Bool[Tensor, "n classes"]:
    r"""The classifier as it is defined, by all n x N correlations.

        argmax_c (1 / N) sum_j corr(h(x), h(x_j)) 1[y_j = c]     (zhang2019 section 3.4)

    `balanced` divides by the number of samples of class c instead, which is another definition. Ties are kept.

    >>> train, y = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1])
    >>> vote_predictions_nxn(torch.tensor([[2.0, 1.0, 0.0]]), train, y, num_classes=2)
    tensor([[ True, False]])
    """
    correlations = normalised(test, centred).rows @ normalised(train, centred).rows.mT
    labels = torch.nn.functional.one_hot(y.long(), num_classes).double()
    counts = labels.sum(0).clamp_min(1) if balanced else len(y)
    return predictions(correlations @ labels / counts)


def nearest_mean_predictions_nxc(
    test: Float[Tensor, "n ..."], train: Float[Tensor, "N ..."], y: Int[Tensor, "N"], num_classes: int
) -> Bool[Tensor, "n classes"]:
    """The nearest class mean by all n x classes differences.

    >>> train, y = torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([0, 0, 1])
    >>> nearest_mean_predictions_nxc(torch.tensor([[4.0], [6.0]]), train, y, num_classes=2)
    tensor([[ True, False],
            [False,  True]])
    """
    x, rows = finite_rows(test), finite_rows(train)
    classes = torch.unique(y).tolist()
    means = torch.stack([rows[y == c].mean(0) for c in classes])
    squared = torch.full((len(x), num_classes), math.inf, dtype=torch.float64)
    squared[:, classes] = (x[:, None] - means).square().sum(2)
    ties = _ties(_lengths(x, means.mean(0)), _lengths(means, means.mean(0)))
    return squared <= (squared.amin(1) + ties)[:, None]


def neighbour_predictions_nxn(
    test: Float[Tensor, "n ..."],
    train: Float[Tensor, "N ..."],
    y: Int[Tensor, "N"],
    num_classes: int,
    k: int,
    cosine: bool = True,
) -> Bool[Tensor, "n classes"]:
    """`neighbour_predictions` pair by pair.

    >>> train, y = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 1])
    >>> neighbour_predictions_nxn(torch.tensor([[1.5]]), train, y, num_classes=2, k=2, cosine=False)
    tensor([[True, True]])
    """
    x, rows = finite_rows(test), finite_rows(train)
    predicted = []
    for h in x:
        if cosine:
            distances = [-float(h @ z / (h.norm() * z.norm())) if h.any() and z.any() else 0.0 for z in rows]
            tie = TIE
        else:
            distances = [float((h - z).square().sum()) for z in rows]
            tie = float(_ties(_lengths(h[None], rows.mean(0)), _lengths(rows, rows.mean(0))))
        furthest = sorted(distances)[k - 1] + tie
        votes = [
            sum(d <= furthest for d, c in zip(distances, y.tolist(), strict=True) if c == j) for j in range(num_classes)
        ]
        predicted.append([v == max(votes) for v in votes])
    return torch.tensor(predicted)


def class_means(
    features: Float[Tensor, "n ..."], labels: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "classes d"], Int[Tensor, "classes"]]:
    """The mean of each class that has samples, in float64, and which class each is, ascending.

    Raises ValueError for NaN or infinity or fewer than two classes.

    >>> class_means(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([2, 2, 5]))
    (tensor([[2.],
            [7.]], dtype=torch.float64), tensor([2, 5]))
    """
    rows, classes = finite_rows(features), torch.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"neural collapse is about two classes or more, not {len(classes)}")
    return torch.stack([rows[labels == c].mean(0) for c in classes]), classes


def within_class_variability_dxd(features: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    r"""NC1, tr(Sigma_W Sigma_B^+) / C (Papyan et al. 2020, Figure 6), by the matrices themselves.

    >>> within_class_variability_dxd(torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
    tensor(0.1250, dtype=torch.float64)
    """
    means, classes = class_means(features, labels)
    centred, _ = _centred(means)
    deviations = finite_rows(features) - means[torch.searchsorted(classes, labels)]
    within = deviations.mT @ deviations / len(deviations)
    between = centred.mT @ centred / len(centred)
    # tr(Sigma_W Sigma_B^+) / C
    nc1: Tensor = (within @ torch.linalg.pinv(between, hermitian=True)).trace() / len(centred)
    return nc1 if centred.any() else within.trace() / 0


def normalised_variance_by_pairs(features: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    r"""CDNV, pair by pair: the mean over classes c != c' of (Var_c + Var_c') / (2 ||mu_c - mu_c'||^2).

    >>> normalised_variance_by_pairs(torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
    tensor(0.0625, dtype=torch.float64)
    """
    means, classes = class_means(features, labels)
    rows = finite_rows(features)
    round_off = _ROUND_OFF * means.norm(dim=1).max()
    total, pairs = torch.tensor(0.0, dtype=torch.float64), 0
    for i, c in enumerate(classes):
        for j, other in enumerate(classes):
            if i != j:
                variances = [(rows[labels == k] - means[m]).square().sum(1).mean() for k, m in ((c, i), (other, j))]
                distance = (means[i] - means[j]).norm()
                # (Var_c + Var_c') / (2 ||mu_c - mu_c'||^2)
                total += sum(variances) / (2 * distance.square() * (distance > round_off))
                pairs += 1
    return total / pairs


def linear_gram(features: Float[Tensor, "p ..."]) -> Float[Tensor, "p p"]:
    r"""The p x p matrix of inner products, K = F F^T with F the flattened features in rows (huh2021 Appendix J).

    >>> linear_gram(torch.tensor([[3.0, 4.0], [5.0, 0.0]]))
    tensor([[25., 15.],
            [15., 25.]], dtype=torch.float64)
    """
    rows = finite_rows(features)
    return rows @ rows.mT


def in_sequence(layer: ExpandedLayer) -> nn.Sequential:
    """An expanded layer written out as `factor` layers that run one after the other, as in huh2021 Fig. 8: copies.

    The first has the kernel with its padding, stride and dilation, the last has the bias. Padding is of the input
    alone, so the sequence is the layer itself at the borders too, in every padding mode.
    """
    layers: list[nn.Module] = []
    weights = [weight.detach().clone() for weight in layer.factors()]
    for i, weight in enumerate(weights):
        last = i == len(weights) - 1
        part: Any
        if isinstance(layer, ExpandedLinear):
            part = nn.Linear(weight.shape[1], weight.shape[0], bias=last and layer.bias is not None)
        else:
            assert isinstance(layer, ExpandedConv1d | ExpandedConv2d | ExpandedPointwiseConv2d)
            kind: Any = layer.plain
            same = {"groups": layer.groups, "bias": last and layer.bias is not None}
            names = ("stride", "padding", "dilation", "padding_mode")
            own = {name: getattr(layer, name) for name in names} if i == 0 else {}
            part = kind(weight.shape[1] * layer.groups, weight.shape[0], tuple(weight.shape[2:]), **same, **own)
        part.to(weight.device, weight.dtype)
        part.weight.data = weight
        if part.bias is not None:
            part.bias.data = layer.get_parameter("bias").detach().clone()
        layers.append(part)
    return nn.Sequential(*layers)


def debiased_hsic(k: Float[Tensor, "n n"], l: Float[Tensor, "m m"]) -> Float[Tensor, ""]:  # noqa: E741
    r"""The unbiased estimate of the HSIC of two kernels from their n x n Gram matrices (Song et al. 2012, Equation 5).

        (1 / (n (n - 3))) [tr K~ L~ + 1'K~1 1'L~1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K~ L~ 1],   K~ = K without diagonal

    Computed as <U(K), U(L)> / (n (n - 3)) with U-centred matrices (Szekely & Rizzo 2014), which is the same number. Its
    expectation is 0 for independent features, so it may be negative, but not for K = L. Float64 throughout; the
    matrices must be symmetric.

    Raises ValueError for n < 4, two sizes, NaN or infinity. Cost: O(n^2) time, two float64 copies.

    >>> line = torch.arange(4.0)[:, None]
    >>> debiased_hsic(line @ line.T, line @ line.T)
    tensor(2.1667, dtype=torch.float64)
    """
    if k.shape != l.shape:
        raise ValueError(f"gram matrices have shapes {tuple(k.shape)} and {tuple(l.shape)}")
    n = len(k)
    _check_samples(n, debiased=True)
    # <U(K), U(L)> / (n (n - 3))
    return (hsic_centred(k, debiased=True) * hsic_centred(l, debiased=True)).sum() / (n * (n - 3))


def numerical_rank(
    singular_values: Float[Tensor, "*batch k"], rows: int, columns: int, dtype: torch.dtype | None = None
) -> Int[Tensor, "*batch"]:
    r"""How many singular values are more than round-off, as numpy's and torch's `matrix_rank` count them.

        sum_i 1[sigma_i > max(m, n) eps sigma_1]

    Args:
        singular_values: of an m x n matrix.
        rows: m.
        columns: n.
        dtype: the matrix's own, whose eps it is; None: that of `singular_values`. No gradient.

    >>> numerical_rank(torch.tensor([1.0, 1e-3, 1e-7]), rows=3, columns=3)
    tensor(2)
    """
    eps = torch.finfo(dtype or singular_values.dtype).eps
    # sum_i 1[sigma_i > max(m, n) eps sigma_1]
    return (normalised_spectrum(singular_values) > max(rows, columns) * eps).sum(-1)


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
    floor = 1e-10 * hsic.diagonal()
    if debiased:
        squares = torch.stack([rows.square().sum(1) for rows in pair])
        sums = squares.sum(1)
        # - n / (n - 2) sum_i x_i y_i + sum_i x_i sum_i y_i / ((n - 1)(n - 2))
        hsic = hsic - n / (n - 2) * squares @ squares.mT + torch.outer(sums, sums) / ((n - 1) * (n - 2))
    return _alignment(hsic, floor)[0, 1]
