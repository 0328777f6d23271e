"""Norms of a layer as it is really applied: input size, padding, stride, dilation and groups, without bias."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lightning_depth.measures.precision import full_float32


class UnsupportedLayer(ValueError):
    """A layer that is no linear map this module knows; the message names its type."""


@dataclass(frozen=True)
class LinearOperator:
    """A linear map A between tensors, known by its action and that of its transpose.

    Attributes:
        input_shape: shape of x, without a batch dimension.
        output_shape: shape of A x, without a batch dimension.
        forward: (batch, *input_shape) -> (batch, *output_shape), x -> A x.
        transpose: (batch, *output_shape) -> (batch, *input_shape), y -> A^T y, with <A x, y> = <x, A^T y>.
        dtype: of both sides: that of the weights, float32 at least.
        device: of both sides: that of the weights.
        core: the same layer on one position, where it treats each position by itself (nn.Linear, a 1x1 convolution
            without padding), else None. A has the singular values of `core`, once for each output position, and zeros;
            input position 0 is always read.
        channels_last: whether `forward` and `transpose` are fastest with, and return, memory in the order
            (batch, height, width, channels).
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    forward: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    device: torch.device
    core: "LinearOperator | None" = None
    channels_last: bool = False


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

_Function = Callable[..., Tensor]
_CONVOLUTIONS: dict[type[nn.Module], tuple[_Function, _Function]] = {
    nn.Conv1d: (F.conv1d, F.conv_transpose1d),
    nn.Conv2d: (F.conv2d, F.conv_transpose2d),
    nn.Conv3d: (F.conv3d, F.conv_transpose3d),
}
_TRANSPOSED: dict[type[nn.Module], tuple[_Function, _Function]] = {
    nn.ConvTranspose1d: (F.conv1d, F.conv_transpose1d),
    nn.ConvTranspose2d: (F.conv2d, F.conv_transpose2d),
    nn.ConvTranspose3d: (F.conv3d, F.conv_transpose3d),
}


def _kind(module: nn.Module) -> type[nn.Module]:
    """The torch class whose forward `module` runs; a subclass with a forward of its own is another map."""
    kinds: list[type[nn.Module]] = [nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED]
    for kind in kinds:
        if isinstance(module, kind):
            same = all(
                getattr(type(module), name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward")
            ) or getattr(type(module), "applies_its_weight", False)
            if same and not isinstance(module.weight, nn.UninitializedParameter):
                return kind
    raise UnsupportedLayer(f"{type(module).__name__} is not a layer whose linear map is known")


def _weight(module: nn.Module) -> Tensor:
    """The weight that `module` applies, in float32 or better, read without changing a parametrisation's buffers."""
    if not parametrize.is_parametrized(module, "weight"):
        weight = module.weight
    else:
        # In train mode spectral_norm takes a step of power iteration at each reading.
        parametrizations = list(module.parametrizations.weight.modules())  # type: ignore[union-attr]
        modes = [part.training for part in parametrizations]
        try:
            for part in parametrizations:
                part.training = False
            weight = module.weight
        finally:
            for part, mode in zip(parametrizations, modes, strict=True):
                part.training = mode
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    if not weight.isfinite().all():
        raise ValueError(f"the weight of {type(module).__name__} is not finite")
    return weight


def _padding(module: Any) -> list[tuple[int, int]]:
    """How many positions the convolution adds before and after each spatial dimension."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":  # an odd total puts the extra position after the image
        totals = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in module.padding]


def _sources(size: int, sides: tuple[int, int], mode: str) -> Tensor:
    """The input position that each position of the padded input repeats, -1 where it is a zero."""
    positions = torch.arange(size)
    if mode == "zeros":
        return F.pad(positions, sides, value=-1)
    return F.pad(positions.double()[None, None], sides, mode=mode)[0, 0].long()


def _check_channels(module: Any, input_shape: tuple[int, ...]) -> None:
    if len(input_shape) != len(module.kernel_size) + 1 or input_shape[0] != module.in_channels:
        raise ValueError(
            f"{type(module).__name__} takes ({module.in_channels}, *{len(module.kernel_size)} sizes), not {input_shape}"
        )


def _linear(module: nn.Module, input_shape: tuple[int, ...]) -> LinearOperator:
    weight = _weight(module)
    if not input_shape or input_shape[-1] != weight.shape[1]:
        raise ValueError(f"{type(module).__name__} takes (..., {weight.shape[1]}), not {input_shape}")
    leading = input_shape[:-1]
    output_shape = (*leading, weight.shape[0])
    core = _linear(module, (*(1 for _ in leading), weight.shape[1])) if math.prod(leading) > 1 else None
    return LinearOperator(
        input_shape, output_shape, lambda x: x @ weight.mT, lambda y: y @ weight, weight.dtype, weight.device, core
    )


def _convolution(module: Any, kind: type[nn.Module], input_shape: tuple[int, ...]) -> LinearOperator:
    _check_channels(module, input_shape)
    weight = _weight(module)
    convolve, convolve_transposed = _CONVOLUTIONS[kind]
    image, stride, dilation, groups = input_shape[1:], module.stride, module.dilation, module.groups
    sides = _padding(module)
    # Symmetric zeros are left to the convolution itself; any other padding is gathered before it.
    symmetric = module.padding_mode == "zeros" and all(before == after for before, after in sides)
    inside = [before if symmetric else 0 for before, _ in sides]
    sources = [
        _sources(size, side, module.padding_mode).to(weight.device)
        for size, side in zip(image, sides, strict=True)
        if not symmetric
    ]
    reach = [
        size + before + after - d * (k - 1) - 1
        for size, (before, after), d, k in zip(image, sides, dilation, module.kernel_size, strict=True)
    ]
    if min(reach) < 0:
        raise ValueError(f"the kernel of {type(module).__name__} is larger than its padded input {input_shape}")
    # No output reads the last `reach % stride` positions of the padded input.
    unread = [r % s for r, s in zip(reach, stride, strict=True)]

    def forward(x: Tensor) -> Tensor:
        for dim, source in enumerate(sources, start=2):
            # Position -1 is the zero appended at the end.
            x = F.pad(x.movedim(dim, -1), (0, 1))[..., source].movedim(-1, dim)
        return convolve(x, weight, None, stride, inside, dilation, groups)

    def transpose(y: Tensor) -> Tensor:
        x = convolve_transposed(y, weight, None, stride, inside, unread, groups, dilation)
        for dim, source in enumerate(sources, start=2):
            size = image[dim - 2]
            x = x.movedim(dim, -1)
            x = x.new_zeros((*x.shape[:-1], size + 1)).index_add_(-1, source % (size + 1), x)
            x = x[..., :size].movedim(-1, dim)
        return x

    output_shape = (module.out_channels, *(r // s + 1 for r, s in zip(reach, stride, strict=True)))
    pointwise = math.prod(module.kernel_size) == 1 and not any(map(any, sides)) and math.prod(image) > 1
    core = _convolution(module, kind, (input_shape[0], *(1 for _ in image))) if pointwise else None
    last = weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    return LinearOperator(input_shape, output_shape, forward, transpose, weight.dtype, weight.device, core, last)


def _transposed_sizes(module: Any, input_shape: tuple[int, ...]) -> list[int]:
    return [
        (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for size, s, p, d, k, extra in zip(
            input_shape[1:],
            module.stride,
            module.padding,
            module.dilation,
            module.kernel_size,
            module.output_padding,
            strict=True,
        )
    ]


def _transposed_convolution(module: Any, kind: type[nn.Module], input_shape: tuple[int, ...]) -> LinearOperator:
    _check_channels(module, input_shape)
    weight = _weight(module)
    convolve, convolve_transposed = _TRANSPOSED[kind]
    stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups

    def forward(x: Tensor) -> Tensor:
        return convolve_transposed(x, weight, None, stride, padding, module.output_padding, groups, dilation)

    def transpose(y: Tensor) -> Tensor:
        x = convolve(y, weight, None, stride, padding, dilation, groups)
        for dim, size in enumerate(input_shape[1:], start=2):
            # An output padding of a stride or more lets the convolution find positions that x does not have.
            x = x.narrow(dim, 0, size)
        return x

    output_shape = (module.out_channels, *_transposed_sizes(module, input_shape))
    return LinearOperator(input_shape, output_shape, forward, transpose, weight.dtype, weight.device)


def layer_operator(module: nn.Module, input_shape: tuple[int, ...]) -> LinearOperator:
    """The linear map that `module` applies to one input of `input_shape` (no batch dimension), bias left out.

    nn.Linear acts on the last dimension. Conv1d-3d take every stride, padding (numbers, 'same', 'valid'), padding mode,
    dilation and number of groups; ConvTranspose1d-3d all that torch offers. The weight is read once, now, with its
    parametrisations, and a power iteration inside one (spectral_norm) is not advanced.

    Raises UnsupportedLayer for any other layer, subclasses with a forward of their own included, and ValueError for
    a weight that is not finite or an input shape that the layer does not take.

    >>> layer_operator(nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 32, 32)).output_shape
    (8, 16, 16)
    """
    kind = _kind(module)
    if kind is nn.Linear:
        return _linear(module, input_shape)
    if kind in _CONVOLUTIONS:
        return _convolution(module, kind, input_shape)
    return _transposed_convolution(module, kind, input_shape)


@torch.no_grad()
def dense_matrix(operator: LinearOperator) -> Float[Tensor, "m n"]:
    """The matrix of `operator`, one column for each unit vector. For tests and small cases: m n numbers.

    >>> difference = nn.Conv1d(1, 1, 2, bias=False)
    >>> difference.weight.data = torch.tensor([[[-1.0, 1.0]]])
    >>> dense_matrix(layer_operator(difference, (1, 3)))
    tensor([[-1.,  1.,  0.],
            [ 0., -1.,  1.]])
    """
    n = math.prod(operator.input_shape)
    basis = torch.eye(n, dtype=operator.dtype, device=operator.device)
    with full_float32():
        return operator.forward(basis.reshape(n, *operator.input_shape)).reshape(n, -1).mT


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
        right = torch.nn.functional.normalize(right @ rows, dim=1)
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

    >>> identity = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    >>> identity.weight.data = nn.init.dirac_(torch.empty(2, 2, 3, 3))
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


def _coincidences(sources: Tensor, outputs: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """For each two kernel offsets along one dimension, at how many outputs they read the same input position."""
    reads = sources[torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation]
    same = (reads[:, :, None] == reads[:, None, :]) & (reads >= 0)[:, :, None]
    return same.sum(0).double()


def frobenius_norm(module: nn.Module, input_shape: tuple[int, ...]) -> float:
    """The Frobenius norm of `layer_operator(module, input_shape)`, in closed form.

    For a convolution, with W_a the (out, in / groups) slice of the weight at kernel offset a,
        ||A||_F^2 = sum_{a, a'} <W_a, W_a'> prod_dim n_dim(a, a'),
    where n(a, a') counts the outputs at which both offsets read the same input position. With zero padding that is the
    number of outputs at which the offset falls inside the input if a = a', else 0; the other padding modes add pairs of
    offsets that meet through the border. For nn.Linear, ||W||_F times the root of the number of leading positions.

    Raises as `layer_operator` does. Cost: one k x k table of slices for a kernel of k positions, whatever the image.

    >>> ones = nn.Conv2d(1, 1, 3, padding=1)
    >>> ones.weight.data.fill_(1.0)  # doctest: +ELLIPSIS
    tensor(...)
    >>> round(frobenius_norm(ones, (1, 2, 2)) ** 2, 6)  # the all-ones 4 x 4 matrix
    16.0
    """
    operator = layer_operator(module, input_shape)
    weight = _weight(module).double().cpu()
    if isinstance(module, nn.Linear):
        return float(torch.linalg.vector_norm(weight)) * math.sqrt(math.prod(input_shape[:-1]))
    layer: Any = module
    if _kind(module) in _CONVOLUTIONS:
        counted = operator.output_shape[1:]
        sources = [
            _sources(size, sides, layer.padding_mode)
            for size, sides in zip(input_shape[1:], _padding(layer), strict=True)
        ]
    else:
        # A transposed convolution writes where the convolution of the same settings reads.
        counted = input_shape[1:]
        sources = [
            _sources(size, (p, p), "zeros") for size, p in zip(operator.output_shape[1:], layer.padding, strict=True)
        ]
    # prod_dim n_dim(a, a'), over the flattened kernel
    counts = torch.ones(1, 1, dtype=torch.float64)
    for source, positions, kernel, stride, dilation in zip(
        sources, counted, layer.kernel_size, layer.stride, layer.dilation, strict=True
    ):
        counts = torch.kron(counts, _coincidences(source, positions, kernel, stride, dilation))
    slices = weight.flatten(2).flatten(0, 1)
    return math.sqrt(float(((slices.mT @ slices) * counts).sum()))
