"""The largest singular value of linear maps that are known by their action (Golub and Kahan 1965)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_depth.measures.operators import LinearOperator
from lightning_depth.measures.precision import full_float32
from lightning_depth.measures.rows import check_finite, lengths, unit_rows


class NormEstimate(NamedTuple):
    """What `operator_norm` found.

    Attributes:
        value: estimate of sigma_1.
        residual: as those of `TopSingularValues`.
        iterations: Lanczos steps, each one forward and one transpose; 0 for a dense matrix.
        vector: v, the right singular vector, of the operator's input shape.
        start: what to start from when the weights have changed a little: v with the next two right vectors, so that a
            singular value that overtakes the first is not missed.
    """

    value: float
    residual: float
    iterations: int
    vector: Tensor
    start: Tensor


class TopSingularValues(NamedTuple):
    """What `top_singular_values` found, one row for each of b maps.

    Attributes:
        values: b, float64, on the CPU, estimates of sigma_1, never above it but for round-off.
        residuals: b, float64, on the CPU, ||A^T u - value v|| / value, where A v = value u and u, v have unit norm; a
            singular value of A lies within the fraction residual / 2 of the value.
        iterations: steps of the slowest map.
        right: (b, 3, n), the leading right vectors, of unit norm; zero where fewer steps were taken.
    """

    values: Tensor
    residuals: Tensor
    iterations: int
    right: Tensor


# Length of the random direction beside a warm start of length one.
_NOISE = 0.1
# Shares of the leading three right vectors in the start of the next call.
_LEADING = (1.0, 0.1, 0.1)
# The share of the first vector in a start, beside that of the second, down to which rtol is kept: a random start has
# less in one case of 79 (2 / pi times this), a warm one holds as much of the leading vectors of the last call.
RANDOM_SHARE, _WARM_SHARE = 0.02, 0.1
# A and A^T are the same matrix: how far <v, A^T u> may be from <A v, u>, as a fraction of ||A||.
_DISAGREEMENT = 1e-3


def _direction(w: Tensor, norm: Tensor, spent: Tensor) -> tuple[Tensor, Tensor]:
    """Norm and direction of each row, both zero where it is spent."""
    return norm.masked_fill(spent, 0.0), w / norm.masked_fill(spent, torch.inf)[:, None]


def beside_noise(warm: Float[Tensor, "b n"], random: Float[Tensor, "b n"], noise: float) -> Float[Tensor, "b n"]:
    """Warm starts of unit norm, each with a random direction of length `noise` beside it; a zero one is only random.

    >>> beside_noise(torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 2.0]]), noise=0.75)
    tensor([[0.8000, 0.6000]])
    """
    return unit_rows(unit_rows(warm) + noise * unit_rows(random))


def _orthogonalised(w: Tensor, seen: Tensor) -> Tensor:
    """Each row without what lies along the vectors seen, (b, k, n)."""
    if len(w) == 1:  # a matrix by a vector is a third faster on CPUs when it is not a batch of one
        return torch.addmv(w[0], seen[0].mT, seen[0] @ w[0], alpha=-1)[None]
    return torch.baddbmm(w[:, None], torch.bmm(seen, w[:, :, None]).mT, seen, alpha=-1)[:, 0]


def _unit(images: Tensor) -> Tensor | None:
    """Powers of two near the norms of the rows, (b, 1), in whose units their squares fit into float32; None for 1."""
    exponents = torch.frexp(lengths(images)).exponent
    return torch.exp2(exponents.to(images))[:, None] if (exponents.abs() > 30).any() else None


class _Ritz(NamedTuple):
    """Of b bidiagonals B = P diag(theta) Q^T: theta_1, its relative residual, G and q_1 of `top_singular_values`.

    With v = V q and u = U p: A v = theta u and A^T u = theta v + beta_k p_k v_{k+1}, so the residual is beta_k |p_k|.
    """

    values: Tensor
    residuals: Tensor
    growth: Tensor
    first: Tensor
    left: Tensor


def _ritz(alphas: Tensor, betas: Tensor, rtol: float, round_off: float) -> _Ritz:
    """P are the eigenvectors of B B^T, at half the cost of the singular value decomposition."""
    diagonal = alphas.square()
    diagonal[:, :-1] += betas[:, :-1].square()
    beside = torch.diag_embed(alphas[:, 1:] * betas[:, :-1], 1)
    squares, left = torch.linalg.eigh(beside + torch.diag_embed(diagonal), UPLO="U")
    top = squares[:, -1:].clamp_min(0)
    values = top[:, 0].sqrt()
    # G = prod_{i > 1} (t - theta_i^2) / (theta_1^2 - theta_i^2),   t = (1 + rtol)^2 theta_1^2
    growth = (1 + (2 + rtol) * rtol * top / (top - squares[:, :-1]).clamp_min(round_off * top)).prod(1)
    residuals = betas[:, -1] * left[:, -1, -1].abs() / values
    zero = values == 0
    first = (alphas[:, 0] * left[:, 0, -1]).abs() / values
    return _Ritz(values, residuals.masked_fill(zero, 0), growth.masked_fill(zero, 1), first.masked_fill(zero, 0), left)


def _right(left: Tensor, alphas: Tensor, betas: Tensor) -> Tensor:
    """The leading rows of Q^T of one bidiagonal, of unit norm."""
    bidiagonal = torch.diag(alphas) + torch.diag(betas[:-1], 1)
    found = unit_rows(left[:, -len(_LEADING) :].flip(1).mT @ bidiagonal)
    return found if bidiagonal.any() else torch.eye(len(alphas)).to(found)[: len(found)]


class _Look(NamedTuple):
    """When to look at a bidiagonal, which costs up to a quarter of a step; the last look, and what it found."""

    next: int = 2
    last: int = 0
    excess: float = 0.0
    spent: bool = False

    def after(self, k: int, excess: float) -> "_Look":
        """The look after that at step k, when the residual was e^excess of what is enough.

        It hardly ever falls by more than e in a step; at the pace so far, half of the way is no risk either.
        """
        paced = excess / 2 * (k - self.last) / max(self.excess - excess, 1e-9) if self.last else 0.0
        return _Look(k + max(1, k // 16, int(excess), int(min(paced, k / 8))), k, excess)


def top_singular_values(
    forward: Callable[[Tensor], Tensor],
    transpose: Callable[[Tensor], Tensor],
    v: Float[Tensor, "b n"],
    m: int,
    rtol: float,
    max_iterations: int,
    share: float,
    random: bool,
    name: str,
) -> TopSingularValues:
    r"""The largest singular value of each of b linear maps by Golub-Kahan-Lanczos bidiagonalisation, in one batch.

        A V_k = U_k B_k,   A^T U_k = V_k B_k^T + beta_k v_{k+1} e_k^T,   value = sigma_1(B_k) <= sigma_1(A)

    (Golub & Kahan 1965), V_k orthogonal (one side is enough: Simon & Zha 2000); no answer depends on those beside it.

    What may be missed is a singular value with too small a share in the start. Since v_{k+1} = p_k(A^T A) v_1 has unit
    norm, p_k the polynomial with the zeros theta_i^2 = sigma_i(B_k)^2, a vector of singular value (1 + rtol) value or
    more has at most the share 1 / |p_k(t)|, t = (1 + rtol)^2 value^2, in v_1 (Hochstenbach 2013). Beside the share q
    of v that is at most `share` as soon as

        residual <= 2 rtol share G,   G = prod_{i > 1} (t - theta_i^2) / (value^2 - theta_i^2) >= 1

    and a residual of rtol / 4. That is where a map has converged. A vector has a share of about n^(-1/2) in a random
    start, but q may be up to 1 where a value is repeated (near an orthogonal layer): the residual must then be less, by
    q n^(1/2). Where that is below round-off, the next step must find round-off again: its direction holds what the
    start has of a vector not found, magnified by 2 rtol / round-off (which no restart at random would do).

    A random start falls short of the share with probability (2 / pi) share, for a singular value that is a few rtol
    above the next (further up it would be seen earlier, further down it does no harm): of maps with 1 and 1 - g rtol, g
    from 1.5 to 3, one in 200 is missed with a share of 0.02, one in 40 at a residual of rtol / 4 alone, one in 3 at
    2 rtol.

    Args:
        forward: (b, n) -> (b, m), each row x -> A x with its own A.
        transpose: (b, m) -> (b, n), y -> A^T y.
        v: the first vectors, of unit norm.
        m: numbers in A x.
        rtol: relative error of the values.
        max_iterations: most steps, at least 2; a map that has not converged by then is returned as it stands.
        share: of the first vector in the start, beside that of the vector found, down to which it is not missed.
        random: whether v has a share of about n^(-1/2) of every vector.
        name: what is not finite, in the error.

    Raises ValueError if a product is NaN or infinite, or `forward` and `transpose` belong to different matrices. Cost:
    one forward and one transpose a step, 4 b k n flops for the k-th step's reorthogonalisation, b k n numbers. Float32
    stops at a residual of 2e-6 or 2 rtol, whichever is less.

    >>> values = torch.linspace(0, 3, 50).double()
    >>> found = top_singular_values(lambda x: x * values, lambda y: y * values, torch.ones(1, 50).double() / 50**0.5,
    ...                             50, rtol=1e-6, max_iterations=51, share=0.02, random=True, name="the product")
    >>> found.values.round(decimals=6)
    tensor([3.], dtype=torch.float64)
    """
    b, n = v.shape
    # After the first step, B is complete after n more, or m and one more that ends in alpha = 0.
    limit = min(max(1, max_iterations - 1), n, m + 1)
    round_off = min(2 * rtol, 20 * torch.finfo(v.dtype).eps)
    values, residuals = torch.zeros(2, b, dtype=torch.float64)
    right = v.new_zeros(b, len(_LEADING), n)
    running, looks = list(range(b)), [_Look()] * b
    basis = v.new_empty(b, min(limit, 64), n)
    u = v.new_zeros(b, m)
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    scale = beta = v.new_zeros(b)
    w = forward(v)
    unit = _unit(w)
    # v_1 along A^T A v, which has no part in the null space of A: beside that A v_2 could be round-off.
    back = transpose(unit_rows(w))
    one = 1 if unit is None else unit
    slip = ((v * (back / one)).sum(1) - lengths(w / one)).abs()
    v = torch.where(back.any(1, keepdim=True), unit_rows(back), v)
    for k in range(1, limit + 1):
        if k > basis.shape[1]:
            basis = torch.cat([basis, basis.new_empty(b, min(k - 1, limit - k + 1), n)], dim=1)
        basis[:, k - 1] = v
        # alpha_k u_k = A v_k - beta_{k-1} u_{k-1}
        w = forward(v)
        w = torch.addcmul(w if unit is None else w / unit, u, beta[:, None], value=-1)
        alpha = torch.linalg.vector_norm(w, dim=1)
        scale = torch.maximum(scale, alpha)
        floor = 100 * torch.finfo(v.dtype).eps * scale
        alpha, u = _direction(w, alpha, alpha <= floor)  # not so for NaN, which must not pass for zero
        # beta_k v_{k+1} = A^T u_k - alpha_k v_k, orthogonal to every earlier v
        w = transpose(u)
        w = torch.addcmul(w if unit is None else w / unit, v, alpha[:, None], value=-1)
        before = torch.linalg.vector_norm(w, dim=1)
        w = _orthogonalised(w, basis[:, :k])
        beta = torch.linalg.vector_norm(w, dim=1)
        # Only round-off lies along earlier v, unless u was round-off itself: the Krylov space is then exhausted. A w
        # that is small by itself goes on: it holds what little the start has of a vector not yet found, magnified.
        beta, v = _direction(w, beta, (beta == 0) | (2 * beta < before) & (before > floor))
        alphas.append(alpha)
        betas.append(beta)
        looked = [i for i in running if k >= looks[i].next or k == limit]
        if not looked:
            continue
        scalars = torch.stack([*alphas, *betas, scale, slip]).double().cpu()
        check_finite(scalars, f"{name} is")
        if (scalars[-1] > _DISAGREEMENT * scalars[-2]).any():
            raise ValueError(f"{name} and its transpose disagree: is it the same at each call (no dropout)?")
        a, b_ = scalars[:k].mT, scalars[k : 2 * k].mT
        ritz = _ritz(a[looked], b_[looked], rtol, round_off)
        found_share = (ritz.first * n**0.5).clamp_min(1) if random else 1
        enough = (2 * rtol * share * ritz.growth / found_share).clamp_max(rtol / 4)
        for j, i in enumerate(looked):
            values[i], residuals[i] = ritz.values[j], ritz.residuals[j]
            spent = bool(residuals[i] <= round_off)
            if residuals[i] <= enough[j] or k == limit or (spent and looks[i].spent):
                coefficients = _right(ritz.left[j], a[i], b_[i]).to(v)
                right[i, : len(coefficients)] = coefficients @ basis[i, :k]
                running.remove(i)
            elif spent:
                looks[i] = _Look(k + 1, spent=True)
            else:
                looks[i] = looks[i].after(k, math.log(float(residuals[i] / enough[j])))
        if not running:
            break
    if unit is not None:
        values *= unit[:, 0].double().cpu()
    return TopSingularValues(values, residuals, k + 1, right)


def _check_start(operator: LinearOperator, start: Tensor) -> None:
    if start.shape != operator.input_shape:
        raise ValueError(f"start has shape {tuple(start.shape)}, the operator takes {operator.input_shape}")
    if not start.isfinite().all() or not start.any():
        raise ValueError("start is zero or not finite")


def _images(operator: LinearOperator, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, *shape), the rows' numbers read in the operator's order in memory."""
    if operator.channels_last:
        return rows.view(-1, *shape[1:], shape[0]).movedim(-1, 1)
    return rows.view(-1, *shape)


def _rows(operator: LinearOperator, images: Tensor) -> Tensor:
    """The inverse of `_images`."""
    return (images.movedim(-3, -1) if operator.channels_last else images).reshape(len(images), -1)


def _start(operator: LinearOperator, start: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """The first Lanczos vector, (1, n), of unit norm: random, or `start` with a random part beside it."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    random: Tensor = torch.randn(1, *operator.input_shape, generator=generator, device=generator.device)
    random = _rows(operator, random.to(operator.device, operator.dtype))
    if start is None:
        return unit_rows(random)
    _check_start(operator, start)
    warm = _rows(operator, start.detach().to(operator.device, operator.dtype)[None])
    return beside_noise(warm, random, _NOISE)


def _leading(right: Tensor) -> Tensor:
    """The mixture of the leading right vectors, in rows, that the next call starts from: (1, n), of unit norm."""
    return unit_rows(right.new_tensor(_LEADING)[None, : len(right)] @ right)


def _dense_norm(operator: LinearOperator) -> NormEstimate:
    """The norm from the Gram matrix of the smaller side, in float64."""
    m, n = math.prod(operator.output_shape), math.prod(operator.input_shape)
    basis = torch.eye(min(m, n), dtype=operator.dtype, device=operator.device)
    with full_float32():
        if n <= m:
            rows = operator.forward(basis.view(n, *operator.input_shape)).flatten(1).double()  # A^T, n x m
        else:
            rows = operator.transpose(basis.view(m, *operator.output_shape)).flatten(1).double()  # A, m x n
    if not rows.isfinite().all():
        raise ValueError("the operator returned a value that is not finite")
    gram = rows @ rows.mT
    squares, vectors = torch.linalg.eigh(gram)
    # the right vectors are the eigenvectors of A^T A, or A^T times those of A A^T
    right = vectors.mT.flip(0)[: len(_LEADING)]
    if n > m:
        right = unit_rows(right @ rows)
    top, square = vectors[:, -1], squares[-1].clamp_min(0)
    residual = float(torch.linalg.vector_norm(gram @ top - square * top) / square) if square > 0 else 0.0
    # Any direction, where A = 0.
    right = (right if square > 0 else torch.eye(1, n, device=operator.device)).to(operator.dtype)
    shape = operator.input_shape
    return NormEstimate(float(square.sqrt()), residual, 0, right[0].view(shape), _leading(right).view(shape))


@torch.no_grad()
def operator_norm(
    operator: LinearOperator,
    start: Tensor | None = None,
    rtol: float = 1e-4,
    max_iterations: int = 300,
    generator: torch.Generator | None = None,
    dense_limit: int = 256,
) -> NormEstimate:
    """The largest singular value of `operator` by Golub-Kahan-Lanczos bidiagonalisation (Golub & Kahan 1965).

    A layer that treats each position by itself is measured on one (`LinearOperator.core`), and a matrix with at most
    `dense_limit` rows or columns is written out: its value is exact. For a larger one it is `top_singular_values` of a
    batch of one: a lower bound on sigma_1, and within rtol of it unless the start holds too little of the first
    singular vector: less than 1/50 of what it holds of the one found if it is random, 1/10 if it is warm. A run that
    reaches `max_iterations` is returned as it stands: see its `residual`. For rtol below about 1e-6 an operator in
    float64 is needed.

    A warm start (the last call's `start`) holds the three leading vectors, the second and third with 1/10 of the
    first's length, and beside them a random direction of 0.1 of its length, by which one from further down is seen once
    it leads by about 1 %. Random numbers come from `generator`, by default a private one with a fixed seed.

    Raises ValueError if the operator returns NaN or infinity, or `start` has another shape, is zero or not finite.
    Cost: one forward and one transpose a step (50-160 cold, 20-90 warm for 3x3 convolutions at rtol = 1e-4), 4 k n
    flops and 4 k n bytes of float32 for the k-th step's reorthogonalisation, n the input's size.

    >>> from lightning_depth.measures.operators import layer_operator
    >>> identity = torch.nn.Conv2d(2, 2, 3, padding=1, bias=False)
    >>> identity.weight.data = torch.nn.init.dirac_(torch.empty(2, 2, 3, 3))
    >>> round(operator_norm(layer_operator(identity, (2, 8, 8))).value, 6)
    1.0
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations is {max_iterations}, at least one is needed")
    if operator.core is not None:
        corner: Any = tuple(slice(size) for size in operator.core.input_shape)
        if start is not None:
            _check_start(operator, start)
            start = start[corner] if start[corner].any() else None
        estimate = operator_norm(operator.core, start, rtol, max_iterations, generator, dense_limit)
        whole = estimate.start.new_zeros(2, *operator.input_shape)
        whole[(slice(None), *corner)] = torch.stack([estimate.vector, estimate.start])
        return estimate._replace(vector=whole[0], start=whole[1])
    if min(math.prod(operator.output_shape), math.prod(operator.input_shape)) <= dense_limit:
        return _dense_norm(operator)
    shape = operator.input_shape
    rule = rtol, max_iterations, RANDOM_SHARE if start is None else _WARM_SHARE, start is None
    with full_float32():
        [value], [residual], iterations, [right] = top_singular_values(
            lambda rows: _rows(operator, operator.forward(_images(operator, rows, shape))),
            lambda rows: _rows(operator, operator.transpose(_images(operator, rows, operator.output_shape))),
            _start(operator, start, generator),
            math.prod(operator.output_shape),
            *rule,
            "the operator's answer",
        )
    ends = unit_rows(right[:1]), _leading(right)
    vector, following = (_images(operator, rows, shape)[0].contiguous() for rows in ends)
    return NormEstimate(float(value), float(residual), iterations, vector, following)
