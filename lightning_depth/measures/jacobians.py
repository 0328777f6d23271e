"""Local operator norm: the largest singular value of the input-output Jacobian of a network at given inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Num
from torch import Tensor
from torch.autograd import forward_ad
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_depth.measures.lanczos import RANDOM_SHARE, beside_noise, top_singular_values
from lightning_depth.measures.precision import full_float32
from lightning_depth.measures.rows import check_finite, unit_rows


class JacobianNorms(NamedTuple):
    """What `jacobian_norm` found, one row for each of n inputs.

    Attributes:
        values: n, float64, estimates of sigma_1(J_i).
        residuals: n, float64, as those of `lanczos.TopSingularValues`; 0 for a Jacobian written out.
        iterations: Lanczos steps of the slowest input, each one J v and one J^T u; 0 for a Jacobian written out.
        vectors: (n, *input_shape), the right singular vectors v, also what to start from when the network has changed
            a little; zero may stand for any direction where J_i = 0.
    """

    values: Tensor
    residuals: Tensor
    iterations: int
    vectors: Tensor


_NAME = "the function's derivative"
# Length of the random direction beside a warm start of length one.
_NOISE = 0.3


@contextmanager
def _differentiable(device: torch.device) -> Iterator[None]:
    """Derivatives of both modes in full precision in any caller's context; fused attention has no forward mode."""
    fused = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            full_float32(),
        ):
            yield
    finally:
        mha.set_fastpath_enabled(fused)


class _Jacobians:
    """The Jacobians J_1 .. J_n of `function` at n inputs, known by their action; rows are flattened samples."""

    def __init__(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
        self.function = function
        self.inputs = inputs.detach().clone().requires_grad_()
        self.outputs = function(self.inputs.clone())  # the function may write into its argument
        n, shape = len(inputs), tuple(self.outputs.shape)
        if not shape or shape[0] != n or not self.outputs.numel():
            raise ValueError(f"the function returned shape {shape}, not a row for each of {n} inputs")
        if self.outputs.dtype != inputs.dtype:
            raise ValueError(f"the function returned {self.outputs.dtype} for inputs of {inputs.dtype}")
        check_finite(self.outputs, "the function's outputs are")
        if not self.outputs.requires_grad:
            raise ValueError("the function is not differentiable: its output has no derivative in its input")
        self.rows, self.columns = self.outputs[0].numel(), self.inputs[0].numel()
        self._pullback: tuple[Tensor, Tensor] | None = None
        self._check_independence()

    def _check_independence(self) -> None:
        u = torch.zeros_like(self.outputs)
        u[0] = torch.linspace(1, 2, self.rows, dtype=u.dtype, device=u.device).view_as(u[0])
        image = self.transpose(u)
        check_finite(image, "the function's derivative is")
        if image[1:].any():
            raise ValueError("the samples of the batch depend on each other (BatchNorm in train mode?)")

    def transpose(self, u: Tensor) -> Tensor:
        """J_i^T u_i for each row, from the one graph that is kept."""
        u_like = u.view_as(self.outputs)
        (v,) = torch.autograd.grad(self.outputs, self.inputs, u_like, retain_graph=True, allow_unused=True)
        if v is None:
            raise ValueError("the function is not differentiable: its output has no derivative in its input")
        return v.reshape(len(u), -1)

    def forward(self, v: Tensor) -> Tensor:
        """J_i v_i for each row: forward mode, or where an operator has none, the derivative of J^T u in u."""
        if self._pullback is None:
            # The function may write into its argument and its tangent.
            x, tangent = self.inputs.detach().clone(), v.view_as(self.inputs).clone()
            try:
                with torch.no_grad(), forward_ad.dual_level():
                    dual = self.function(forward_ad.make_dual(x, tangent))  # type: ignore[no-untyped-call]
                    image = forward_ad.unpack_dual(dual).tangent  # type: ignore[no-untyped-call]
                return (torch.zeros_like(self.outputs) if image is None else image).reshape(len(v), -1)
            except NotImplementedError:
                u = torch.zeros_like(self.outputs, requires_grad=True)
                (image,) = torch.autograd.grad(self.outputs, self.inputs, u, create_graph=True)
                self._pullback = u, image
        u, image = self._pullback
        # J v = d <J^T u, v> / du, J^T u being linear in u
        (w,) = torch.autograd.grad(image, u, v.view_as(self.inputs), retain_graph=True)
        return w.reshape(len(v), -1)


def _start(inputs: Tensor, start: Tensor | None) -> Tensor:
    """The first Lanczos vectors, of unit norm: one random direction for all samples, beside `start` if there is one."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(1, inputs[0].numel(), generator=generator).to(inputs).expand(len(inputs), -1)
    if start is None:
        return unit_rows(random)
    if start.shape != inputs.shape:
        raise ValueError(f"start has shape {tuple(start.shape)}, the inputs {tuple(inputs.shape)}")
    check_finite(start, "start is")
    return beside_noise(start.detach().to(inputs).reshape(len(inputs), -1), random, _NOISE)


def _written_out(jacobian: _Jacobians) -> tuple[Tensor, Tensor]:
    """Values and right vectors from the Gram matrices of the smaller side, in float64."""
    m, d = jacobian.rows, jacobian.columns
    apply, side = (jacobian.transpose, m) if m <= d else (jacobian.forward, d)
    n = len(jacobian.inputs)
    rows = torch.empty(n, side, max(m, d), dtype=torch.float64, device=jacobian.inputs.device)
    for i in range(side):
        unit = torch.zeros(n, side, dtype=jacobian.inputs.dtype, device=jacobian.inputs.device)
        unit[:, i] = 1
        rows[:, i] = apply(unit)
    check_finite(rows, "the function's derivative is")
    # sigma_1^2 is the largest eigenvalue of J J^T, or of J^T J
    squares, left = torch.linalg.eigh(rows @ rows.mT)
    top = left[..., -1]
    vectors = unit_rows((top[:, None] @ rows)[:, 0]) if m <= d else top
    return squares[:, -1].clamp_min(0).sqrt(), vectors


def jacobian_norm(
    function: Callable[[Tensor], Tensor],
    inputs: Num[Tensor, "n ..."],
    rtol: float = 1e-3,
    max_iterations: int = 100,
    start: Num[Tensor, "n ..."] | None = None,
    dense_limit: int = 16,
    max_bytes: int = 2**30,
) -> JacobianNorms:
    r"""The largest singular value of the Jacobian of `function` at each of n inputs: its local operator norm.

        value_i = sigma_1(J_i),   J_i = d f(x_i) / d x_i,   an m x d matrix for d inputs and m outputs

    `function` takes (b, ...) to (b, ...) for any b, each row of the result depending on the same row of the argument
    alone: a network in eval mode. For a piecewise linear network J_i is the linear map that holds around x_i.

    It is `lanczos.top_singular_values` for all samples in one batch; J itself is never formed. J^T u goes back through
    one graph that is kept; J v is forward-mode differentiation, or where an operator has none, the derivative of J^T u
    in u. A sample is finished by the rule of `top_singular_values`, with the share of a random start, or after
    `max_iterations` steps: see its residual. Where m or d is at most `dense_limit`, J is written out instead and the
    values are exact.

    The start is random with a fixed seed, the same for every sample. `start` (the last call's `vectors`) takes fewer
    steps; a random direction of 0.3 of its length stands beside it. The gradients and flags of parameters, and the grad
    mode, are left alone. Fused attention is off inside, for it has no forward mode.

    Raises ValueError for inputs that are not float32 or float64; anything that is not finite; a function without
    derivative in its input, whose samples depend on each other, or which is not the same at each call; `start` of
    another shape. Where an operator has neither a forward-mode nor a second derivative, torch's own error is raised.
    Cost: one forward-mode pass (about 3 forward passes) and one backward pass a step, or min(m, d) backward passes
    where that is at most `dense_limit`. Memory: the graph and k vectors of d numbers a sample, for at most k =
    `max_iterations` steps; samples are taken in chunks for which the vectors (not the graph) fit into `max_bytes`.

    >>> x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    >>> jacobian_norm(lambda x: x * x, x).values  # J = diag(2 x)
    tensor([4., 0.], dtype=torch.float64)
    """
    if inputs.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"inputs are {inputs.dtype}: a Jacobian needs float32 or float64")
    if not inputs.numel():
        raise ValueError(f"inputs have shape {tuple(inputs.shape)}: there is nothing to differentiate in")
    check_finite(inputs, "inputs are")
    if max_iterations < 1:
        raise ValueError(f"max_iterations is {max_iterations}, at least one is needed")
    d = inputs[0].numel()
    bytes_each = d * max(min(max_iterations, d) * inputs.element_size(), min(dense_limit, d) * 8)
    chunk = max(1, max_bytes // bytes_each)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    iterations = 0
    with _differentiable(inputs.device):
        first = _start(inputs, start)
        for x, v in zip(torch.split(inputs, chunk), torch.split(first, chunk), strict=True):
            jacobian = _Jacobians(function, x)
            if min(jacobian.rows, jacobian.columns) <= dense_limit:
                values, vectors = _written_out(jacobian)
                residuals, steps = torch.zeros_like(values), 0
            else:
                maps = jacobian.forward, jacobian.transpose, v, jacobian.rows
                found = top_singular_values(*maps, rtol, max_iterations, RANDOM_SHARE, start is None, _NAME)
                values, residuals, steps, vectors = *found[:3], found.right[:, 0]
            parts.append((values.to(v.device), residuals.to(v.device), vectors.to(inputs.dtype)))
            iterations = max(iterations, steps)
    values, residuals, vectors = (torch.cat(part) for part in zip(*parts, strict=True))
    return JacobianNorms(values, residuals, iterations, vectors.view(inputs.shape))
