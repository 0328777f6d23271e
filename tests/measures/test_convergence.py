"""Every iterative measure reaches its tolerance on close and repeated singular values, within a budget of steps."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_depth.measures.chains import chain_operator, lipschitz_bound
from lightning_depth.measures.jacobians import jacobian_norm
from lightning_depth.measures.lanczos import RANDOM_SHARE, operator_norm, top_singular_values
from lightning_depth.measures.operators import layer_operator
from lightning_depth.measures.random_matrices import product_cdf
from lightning_depth.measures.rows import unit_rows
from lightning_depth.measures.singular_values import operator_stable_rank
from tests.oracles import Iteration, convergence, map_with, spectrum

KINDS = ["alone", "close", "three close", "closer than rtol", "repeated", "second repeated"]


def layer(matrix: Tensor) -> nn.Linear:
    made = nn.Linear(*matrix.mT.shape, bias=False, dtype=matrix.dtype)
    made.weight.data = matrix
    return made


def of_layer(matrix: Tensor, rtol: float, budget: int) -> tuple[float, int]:
    found = operator_norm(layer_operator(layer(matrix), (len(matrix),)), rtol=rtol, max_iterations=budget)
    return found.value, found.iterations


def of_layer_warm(matrix: Tensor, rtol: float, budget: int) -> tuple[float, int]:
    operator = layer_operator(layer(matrix), (len(matrix),))
    last = operator_norm(operator, rtol=rtol, generator=torch.Generator().manual_seed(1))
    found = operator_norm(operator, last.start, rtol=rtol, max_iterations=budget)
    return found.value, found.iterations


def of_chain(matrix: Tensor, rtol: float, budget: int) -> tuple[float, int]:
    norm = nn.BatchNorm1d(len(matrix), affine=False, eps=0.0, dtype=matrix.dtype).eval()
    operator = chain_operator([layer(2 * matrix), norm, layer(torch.eye(len(matrix)).to(matrix) / 2)], (len(matrix),))
    found = operator_norm(operator, rtol=rtol, max_iterations=budget)
    return found.value, found.iterations


def of_jacobian(matrix: Tensor, rtol: float, budget: int) -> tuple[float, int]:
    inputs = torch.zeros(1, len(matrix), dtype=matrix.dtype)
    found = jacobian_norm(lambda x: (x @ matrix.mT).sin(), inputs, rtol, budget)
    return float(found.values), found.iterations


def of_jacobian_warm(matrix: Tensor, rtol: float, budget: int) -> tuple[float, int]:
    inputs = torch.zeros(1, len(matrix), dtype=matrix.dtype)
    last = jacobian_norm(lambda x: x @ matrix.mT, inputs, rtol)
    found = jacobian_norm(lambda x: x @ matrix.mT, inputs, rtol, budget, start=last.vectors)
    return float(found.values), found.iterations


def of_stable_rank(matrix: Tensor, rtol: float, budget: int) -> tuple[float, int]:
    squared = float(matrix.double().square().sum())
    return math.sqrt(squared / operator_stable_rank(layer(matrix), (len(matrix),), rtol)), 0


def of_bound(matrix: Tensor, rtol: float, budget: int) -> tuple[float, int]:
    return lipschitz_bound([layer_operator(layer(matrix), (len(matrix),)), 1.0]), 0


ITERATIONS: dict[str, tuple[Iteration, float]] = {
    "operator_norm": (of_layer, 1e-4),
    "operator_norm, loose": (of_layer, 1e-3),
    "operator_norm, warm": (of_layer_warm, 1e-4),
    "operator_norm of a chain": (of_chain, 1e-4),
    "jacobian_norm": (of_jacobian, 1e-3),
    "jacobian_norm, tight": (of_jacobian, 1e-4),
    "jacobian_norm, warm": (of_jacobian_warm, 1e-3),
    "operator_stable_rank": (of_stable_rank, 1e-4),
    "lipschitz_bound": (of_bound, 1e-4),
}
# Those that give themselves 300 steps cannot be stopped early, and a warm Jacobian has converged at once.
STOPPED = [n for n in ITERATIONS if n not in ("operator_stable_rank", "lipschitz_bound", "jacobian_norm, warm")]


@pytest.mark.parametrize("name", ITERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_tolerance_is_reached_within_the_budget(name: str, kind: str) -> None:
    iteration, rtol = ITERATIONS[name]
    found = convergence(
        iteration,
        kind,
        rtol,
        budget=60,
        draws=20 if kind == "close" and name in ("operator_norm", "jacobian_norm") else 3,
    )
    assert found.missed == 0
    assert found.steps < 60


@pytest.mark.parametrize("name", STOPPED)
def test_the_check_can_fail(name: str) -> None:
    iteration, rtol = ITERATIONS[name]
    assert convergence(iteration, "close", rtol, budget=3, draws=3).missed == 3


@pytest.mark.parametrize("name", ["operator_norm", "jacobian_norm"])
def test_float32_reaches_the_tolerance_too(name: str) -> None:
    iteration, rtol = ITERATIONS[name]
    assert convergence(iteration, "close", rtol, budget=60, draws=4, dtype=torch.float32).missed == 0


def missed(rtol: float, share: float, dtype: torch.dtype, draws: int = 400) -> int:
    """How many of so many maps with a close pair are missed, in one batch; their singular vectors are the axes."""
    values = torch.stack([spectrum("close", rtol, seed, 100) for seed in range(draws)]).to(dtype)
    start = unit_rows(torch.randn(draws, 100, generator=torch.Generator().manual_seed(3)).to(dtype))
    found = top_singular_values(
        lambda x: x * values, lambda y: y * values, start, 100, rtol, 100, share, True, "the product"
    )
    assert found.residuals.max() <= rtol / 4
    return int(((found.values - 1).abs() > rtol).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_random_starts_miss_a_close_pair_and_a_looser_rule_misses_more(dtype: torch.dtype) -> None:
    found = missed(1e-4, RANDOM_SHARE, dtype)
    # (2 / pi) share is the probability that the start holds less of the first vector than the rule asks for
    assert found <= 400 * 2 / math.pi * RANDOM_SHARE
    assert missed(1e-4, 1.0, dtype) > max(4, 2 * found)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).double())[0]


def few_values(n: int, above: float, *others: float) -> Tensor:
    """Singular values of a layer near an orthogonal one: 1 + above, once, many times 1, and as many of each other."""
    values = torch.tensor([1.0, *others]).double().repeat_interleave(n // (1 + len(others)))
    return torch.cat([torch.tensor([1 + above]).double(), values])[:n]


TURNED = (orthogonal(300, 0), orthogonal(300, 1))
AXES = (torch.eye(300).double(), torch.eye(300).double())
# Values, what they stand between, rows of the matrix.
FEW_VALUES = {
    "near the identity": (few_values(300, 3e-4), AXES, 300),
    "near an orthogonal matrix": (few_values(300, 2e-4), TURNED, 300),
    "a few others too": (few_values(300, 3e-4, 0.9, 0.5), TURNED, 300),
    "with a null space": (few_values(300, 3e-4, 0.0), AXES, 300),
    "null spaces, turned": (few_values(300, 2e-4, 0.0, 0.3), TURNED, 300),
    "wide": (few_values(270, 3e-4), TURNED, 270),
    "two close clusters": (few_values(300, 4e-4, 1 - 3e-4, 0.99), TURNED, 300),
    "identity": (few_values(300, 0.0), AXES, 300),
    "orthogonal": (few_values(300, 0.0), TURNED, 300),
    "rank one": (few_values(300, 0.0) * (torch.arange(300) == 0), TURNED, 300),
    "zero": (torch.zeros(300).double(), TURNED, 300),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FEW_VALUES)
def test_a_value_that_stands_out_of_many_equal_ones_is_found(name: str, dtype: torch.dtype) -> None:
    values, (left, right), rows = FEW_VALUES[name]
    matrix = (left[:, : len(values)] * values) @ right[:, : len(values)].mT
    matrix = matrix if rows == 300 else values[:, None] * right[:rows]
    for seed, unit in enumerate((1e-37, 1e-30, 1e-10, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e10, 1e30)):
        operator = layer_operator(layer((matrix * unit).to(dtype)), (300,))
        true = float(torch.linalg.matrix_norm(matrix * unit, 2))
        cold = operator_norm(operator, generator=torch.Generator().manual_seed(seed))
        warm = operator_norm(operator, cold.start, generator=torch.Generator().manual_seed(seed + 100))
        for found in (cold, warm):
            assert found.value == pytest.approx(true, rel=1e-4, abs=0), (seed, unit)
            assert found.residual <= 1e-4 / 4
            assert found.iterations <= (4 if name in ("identity", "rank one", "zero", "orthogonal") else 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("counts", [(1, 1023, 0), (1, 1022, 1), (1, 512, 511), (1, 36, 987)])
def test_few_random_starts_miss_what_stands_out(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.tensor([1, 1 - 3e-4, 0.5]).to(dtype).repeat_interleave(torch.tensor(counts))
    start = unit_rows(torch.randn(400, 1024, generator=torch.Generator().manual_seed(5)).to(dtype))
    found = top_singular_values(
        lambda x: x * values, lambda y: y * values, start, 1024, 1e-4, 60, RANDOM_SHARE, True, "it"
    )
    assert ((found.values - 1).abs() > 1e-4).sum() <= 400 * 2 / math.pi * RANDOM_SHARE
    assert found.iterations < 16


def test_an_answer_does_not_depend_on_the_maps_beside_it() -> None:
    values = torch.stack([spectrum(kind, 1e-4, 0) for kind in KINDS])
    start = unit_rows(torch.randn(len(KINDS), 300, generator=torch.Generator().manual_seed(3)).double())

    def found(rows: slice) -> tuple[Tensor, Tensor]:
        few, first = values[rows], start[rows]
        top = top_singular_values(lambda x: x * few, lambda y: y * few, first, 300, 1e-4, 100, RANDOM_SHARE, True, "it")
        return top.values, top.residuals

    together = found(slice(None))
    for i in range(len(KINDS)):
        for whole, alone in zip(together, found(slice(i, i + 1)), strict=True):
            torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-6, atol=1e-12)


def test_a_transpose_that_is_not_one_is_refused() -> None:
    matrix, other = (map_with(spectrum("alone", 1e-4, seed), seed) for seed in range(2))
    start = unit_rows(torch.randn(1, 300, generator=torch.Generator().manual_seed(3)).double())
    with pytest.raises(ValueError, match="disagree"):
        top_singular_values(
            lambda x: x @ matrix.mT, lambda y: y @ other, start, 300, 1e-4, 60, RANDOM_SHARE, True, "it"
        )


@pytest.mark.parametrize("factors", [1, 4, 32])
def test_the_bisection_of_the_law_is_exact(factors: int) -> None:
    # F'(sigma) = p(sigma), and p is in closed form along the curve: see test_random_matrices; here the budget of 64.
    sigma = torch.tensor([1e-6, 0.3, 1.0, 1.0, 1.0 + 1e-12], dtype=torch.float64)
    found = product_cdf(sigma, factors)
    assert found[2] == found[3]
    assert (found.diff() >= -1e-14).all()
    assert float(found[4] - found[3]) < 1e-11
