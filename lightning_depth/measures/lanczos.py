"""The largest singular value of a linear map that is known by its action (Golub and Kahan 1965)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_depth.measures.operators import LinearOperator
from lightning_depth.measures.precision import full_float32


class NormEstimate(NamedTuple):
    """What `operator_norm` found.

    Attributes:
        value: estimate of sigma_1, never above it but for round-off.
        residual: ||A^T u - value v|| / value, where A v = value u and u, v have unit norm; a singular value of A lies
            within the fraction residual / 2 of `value`.
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


# Length of the random direction beside a warm start of length one. With it and a stop at rtol / 4, a vector from
# further down that leads by 0.5 % is seen as often as with 0.3 and a stop at 2 rtol, and one of 1 % nearly always.
_NOISE = 0.1
# Shares of the leading three right vectors in the start of the next call.
_LEADING = (1.0, 0.1, 0.1)


def _check_start(operator: LinearOperator, start: Tensor) -> None:
    if start.shape != operator.input_shape:
        raise ValueError(f"start has shape {tuple(start.shape)}, the operator takes {operator.input_shape}")
    if not start.isfinite().all() or not start.any():
        raise ValueError("start is zero or not finite")


def _image(operator: LinearOperator, vector: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(1, *shape), the vector's numbers read in the operator's order in memory."""
    if operator.channels_last:
        return vector.view(1, *shape[1:], shape[0]).movedim(-1, 1)
    return vector.view(1, *shape)


def _vector(operator: LinearOperator, image: Tensor) -> Tensor:
    """The inverse of `_image`, with or without the batch of one."""
    return (image.movedim(-3, -1) if operator.channels_last else image).reshape(-1)


def _start(operator: LinearOperator, start: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """The first Lanczos vector, of unit norm: random, or `start` with a random part beside it."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    random: Tensor = torch.randn(operator.input_shape, generator=generator, device=generator.device)
    random = _vector(operator, random.to(operator.device, operator.dtype))
    random = random / torch.linalg.vector_norm(random)
    if start is None:
        return random
    _check_start(operator, start)
    warm = _vector(operator, start.detach().to(operator.device, operator.dtype))
    mixed: Tensor = warm / torch.linalg.vector_norm(warm) + _NOISE * random
    mixed /= torch.linalg.vector_norm(mixed)
    return mixed


def _direction(w: Tensor, norm: Tensor, scale: Tensor) -> Tensor:
    """The unit vector w / norm, or zero where w is round-off beside `scale`: the Krylov space is then exhausted."""
    return w * torch.where(norm > 100 * torch.finfo(w.dtype).eps * scale, 1 / norm, 0.0)


def _top_of_bidiagonal(alphas: Tensor, betas: Tensor) -> tuple[float, float, Tensor]:
    """Top singular value theta of the Lanczos bidiagonal B = P diag Q^T, its relative residual, leading rows of Q^T.

    With v = V q and u = U p: A v = theta u and A^T u = theta v + beta_k p_k v_{k+1}, so the residual is beta_k |p_k|.
    P are the eigenvectors of B B^T, which cost half as much as the singular value decomposition.
    """
    bidiagonal = torch.diag(alphas) + torch.diag(betas[:-1], 1)
    unit = float(bidiagonal.max())
    if unit == 0:
        return 0.0, 0.0, torch.eye(len(alphas)).to(alphas)[: len(_LEADING)]
    bidiagonal /= unit
    squares, left = torch.linalg.eigh(bidiagonal @ bidiagonal.mT)
    left = left[:, -len(_LEADING) :].flip(1)
    theta = unit * float(squares[-1].sqrt())
    right = F.normalize(left.mT @ bidiagonal, dim=1)
    return theta, float(betas[-1] * left[-1, 0].abs()) / theta, right


def _leading(right: Tensor) -> Tensor:
    """The mixture of the leading rows of `right` that the next call starts from, of unit norm."""
    shares = right.new_tensor(_LEADING)[: len(right)]
    mixed = shares @ right[: len(shares)]
    unit: Tensor = mixed / torch.linalg.vector_norm(mixed)
    return unit


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
        right = F.normalize(right @ rows, dim=1)
    top, square = vectors[:, -1], squares[-1].clamp_min(0)
    residual = float(torch.linalg.vector_norm(gram @ top - square * top) / square) if square > 0 else 0.0
    right = right.to(operator.dtype)
    start = _leading(right) if square > 0 else right[0]
    shape = operator.input_shape
    return NormEstimate(float(square.sqrt()), residual, 0, right[0].view(shape), start.view(shape))


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
    `dense_limit` rows or columns is written out: its value is exact. For a larger one,
    A V_k = U_k B_k with V_k reorthogonalised in full (one side is enough: Simon & Zha 2000), and the value is
    sigma_1(B_k), a lower bound on sigma_1(A). The iteration stops at a relative residual of rtol / 4: since
    ||A^T A v - value^2 v|| = value^2 residual, some singular value then lies within rtol / 8 of `value`, and where the
    leading ones lie apart the error is far smaller, of the order of residual^2. The margin is for a first and second
    value a few rtol apart: a mixture of their vectors passes at a residual of 2 rtol, however much of it is the
    second's (1 in 50 of the 3x3 convolutions of a deep network was then wrong by 1.4 rtol); at rtol / 4 the first's
    share of v must be below a few per cent of its length for the second to be taken for it. A run that reaches
    `max_iterations` is returned as it stands: see its `residual`. For rtol below about 1e-5, float32 stops at a
    residual of 2e-6 or 2 rtol, whichever is less, and below about 1e-6 an operator in float64 is needed.

    No residual can show that a larger singular value was not missed. A cold start is random, and misses one only where
    the two are within about 0.1 % and the start is nearly orthogonal to it. A warm start (the last call's `start`, of
    the operator's input shape) holds the three leading vectors, so that one that overtakes is seen, and a random
    direction of 0.1 of its length, by which one from further down is seen once it leads by about 1 %. Random numbers
    come from `generator`, by default a private one with a fixed seed, so equal calls give equal answers; torch's global
    generator is not used.

    Raises ValueError if the operator returns NaN or infinity, or `start` has another shape, is zero or not finite.

    Cost: one forward and one transpose a step (40-140 cold, 20-90 warm for 3x3 convolutions at rtol = 1e-4),
    2 k n flops and 4 k n bytes of float32 for the k-th step's reorthogonalisation, n the input's size.

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
    v = _start(operator, start, generator)
    u = v.new_zeros(math.prod(operator.output_shape))
    basis = v.new_empty(32, v.numel())
    basis[0] = v
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    scale = beta = v.new_zeros(())
    next_look = 2
    # a quarter of rtol, or what round-off leaves of it
    small = max(rtol / 4, min(2 * rtol, 20 * torch.finfo(v.dtype).eps))
    with full_float32():
        for k in range(1, max_iterations + 1):
            # alpha_k u_k = A v_k - beta_{k-1} u_{k-1}
            w = _vector(operator, operator.forward(_image(operator, v, operator.input_shape)))
            w = torch.addcmul(w, u, beta, value=-1)
            alpha = torch.linalg.vector_norm(w)
            scale = torch.maximum(scale, alpha)
            u = _direction(w, alpha, scale)
            # beta_k v_{k+1} = A^T u_k - alpha_k v_k, orthogonal to every earlier v
            w = _vector(operator, operator.transpose(_image(operator, u, operator.output_shape)))
            w = torch.addcmul(w, v, alpha, value=-1)
            before = torch.linalg.vector_norm(w)
            w = torch.addmv(w, basis[:k].mT, basis[:k] @ w, alpha=-1)
            beta = torch.linalg.vector_norm(w)
            # Only round-off lies along earlier v, unless u was round-off itself: the Krylov space is then exhausted.
            beta = torch.where(2 * beta < before, 0.0, beta)
            v = _direction(w, beta, scale)
            alphas.append(alpha)
            betas.append(beta)
            if k >= next_look or k == max_iterations:
                scalars = torch.stack(alphas + betas).double().cpu()
                if not scalars.isfinite().all():
                    raise ValueError("the operator returned a value that is not finite")
                value, residual, coefficients = _top_of_bidiagonal(scalars[:k], scalars[k:])
                if residual <= small:
                    break
                # A look costs up to a quarter of a step, and the residual hardly ever falls by more than e in one.
                next_look = k + max(1, k // 16, int(math.log(residual / small)))
            if k == len(basis):
                basis = torch.cat([basis, torch.empty_like(basis)])
            basis[k] = v
        right = coefficients.to(v) @ basis[:k]
    shape = operator.input_shape
    vector, following = (
        _image(operator, F.normalize(row, dim=0), shape)[0].contiguous() for row in (right[0], _leading(right))
    )
    return NormEstimate(value, residual, k, vector, following)
