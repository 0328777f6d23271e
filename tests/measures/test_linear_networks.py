import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_depth.measures.linear_networks import distance_to_minimum_norm, linear_operator, minimum_norm_solution


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module: nn.Module) -> nn.Module:
    for i, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=i).to(parameter.dtype)
    return module.eval()


def linear_cnn(depth: int, dtype: torch.dtype) -> nn.Module:
    convolutions = [nn.Conv2d(2 if i == 0 else 4, 4, 3, padding=1, stride=1 + (i == 1)) for i in range(depth)]
    return filled(
        nn.Sequential(*convolutions, nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout()).to(dtype)
    )


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_the_matrix_is_the_jacobian_and_the_offset_the_answer_to_zero(chunk: int) -> None:
    network = linear_cnn(3, torch.float64)
    matrix, offset = linear_operator(network, (2, 5, 5), chunk)
    expected = torch.func.jacrev(network)(random(1, 2, 5, 5)).reshape(len(offset), -1)
    torch.testing.assert_close(matrix, expected, rtol=1e-12, atol=1e-10)
    x = random(3, 2, 5, 5, seed=9)
    torch.testing.assert_close(x.flatten(1) @ matrix.mT + offset, network(x), rtol=1e-10, atol=1e-9)
    assert not matrix.requires_grad


@pytest.mark.parametrize("depth", [2, 20])
def test_a_deep_float32_network_is_linear_to_its_round_off(depth: int) -> None:
    matrix, _ = linear_operator(linear_cnn(depth, torch.float32), (2, 5, 5))
    exact, _ = linear_operator(linear_cnn(depth, torch.float32).double(), (2, 5, 5))
    assert matrix.dtype == torch.float32
    assert float((matrix - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize(
    "bend",
    [
        nn.ReLU(),
        nn.LeakyReLU(0.99),
        nn.Tanh(),
        nn.Hardtanh(-50, 50),
        nn.Dropout(),
        nn.Sequential(nn.Unflatten(1, (2, 3)), nn.BatchNorm1d(2), nn.Flatten()),
    ],
)
def test_a_network_that_is_not_linear_is_refused(bend: nn.Module) -> None:
    network = nn.Sequential(filled(nn.Linear(5, 6)), bend.train(), filled(nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="not linear: Sequential"):
        linear_operator(network, (5,))
    linear_operator(nn.Sequential(network[0], network[2]), (5,))


def test_networks_and_sizes_that_are_refused() -> None:
    network = nn.Linear(5, 3)
    assert linear_operator(network, (5,), max_bytes=60).matrix.shape == (3, 5)
    with pytest.raises(ValueError, match="takes 60 bytes, more than max_bytes = 59"):
        linear_operator(network, (5,), max_bytes=59)
    with pytest.raises(ValueError, match=r"in torch\.bfloat16"):
        linear_operator(nn.Linear(5, 3).bfloat16(), (5,))
    with pytest.raises(ValueError, match="chunk is 0"):
        linear_operator(network, (5,), chunk=0)
    network.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        linear_operator(network, (5,))


def test_a_network_without_parameters_is_float32() -> None:
    matrix, offset = linear_operator(nn.Flatten(), (2, 2))
    assert torch.equal(matrix, torch.eye(4))
    assert not offset.any()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), d=st.integers(1, 6), k=st.integers(1, 3), rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_solution_satisfies_the_normal_equations_and_lies_in_the_span(
    n: int, d: int, k: int, rank: int, seed: int
) -> None:
    x, y = random(n, rank, seed=seed) @ random(rank, d, seed=seed + 1), random(n, k, seed=seed + 2)
    a = minimum_norm_solution(x, y, rcond=1e-9)
    torch.testing.assert_close(x.mT @ (x @ a.mT - y), torch.zeros(d, k, dtype=torch.float64), rtol=0, atol=1e-7)
    null = torch.eye(d, dtype=torch.float64) - torch.linalg.pinv(x, rtol=1e-9) @ x
    torch.testing.assert_close(a @ null, torch.zeros(k, d, dtype=torch.float64), rtol=0, atol=1e-7)


def test_an_autoencoder_projects_on_its_samples() -> None:
    x = random(3, 7)
    a = minimum_norm_solution(x, x)
    torch.testing.assert_close(a @ a, a, rtol=0, atol=1e-12)
    torch.testing.assert_close(a, a.mT, rtol=0, atol=1e-12)
    assert float(a.trace()) == pytest.approx(3, abs=1e-12)


def test_a_sample_away_from_the_training_ones_scores_exactly_zero() -> None:
    x = torch.cat([random(3, 4), torch.zeros(3, 5)], 1)
    a = minimum_norm_solution(x, random(3, 2, seed=1))
    assert not (torch.cat([torch.zeros(4), torch.ones(5)]).double() @ a.mT).any()


def test_small_singular_values_are_cut_at_rcond() -> None:
    x = torch.diag(torch.tensor([1.0, 1e-3]))
    assert minimum_norm_solution(x, torch.eye(2))[1, 1] == pytest.approx(1e3, rel=1e-6)
    assert minimum_norm_solution(x, torch.eye(2), rcond=1e-2)[1, 1] == 0


def gradient_descent(start: Tensor, x: Tensor, y: Tensor) -> Tensor:
    a = start.clone().requires_grad_()
    rate = 1 / float(torch.linalg.matrix_norm(x, 2)) ** 2
    for _ in range(2000):
        (slope,) = torch.autograd.grad(0.5 * (x @ a.mT - y).square().sum(), a)
        a = (a - rate * slope).detach().requires_grad_()
    return a.detach()


def test_gradient_descent_from_zero_reaches_the_minimum_norm_solution() -> None:
    x, y = random(4, 10), random(4, 2, seed=1)
    best = minimum_norm_solution(x, y)
    found = gradient_descent(torch.zeros(2, 10, dtype=torch.float64), x, y)
    assert distance_to_minimum_norm(found, best) < 1e-8
    # Control: from elsewhere it fits as well and keeps the start's part outside the span.
    start = random(2, 10, seed=2)
    other = gradient_descent(start, x, y)
    torch.testing.assert_close(x @ other.mT, y, rtol=0, atol=1e-8)
    kept = start - start @ torch.linalg.pinv(x) @ x
    assert distance_to_minimum_norm(other, best) == pytest.approx(float(kept.norm() / best.norm()), rel=1e-6)
    assert distance_to_minimum_norm(other, best) > 1
    pythagoras = math.sqrt(float(other.norm() / best.norm()) ** 2 - 1)
    assert distance_to_minimum_norm(other, best) == pytest.approx(pythagoras, rel=1e-6)


def test_bad_numbers_raise() -> None:
    bad = torch.full((2, 2), math.inf)
    for pair in ((bad, torch.eye(2)), (torch.eye(2), bad)):
        with pytest.raises(ValueError, match="not finite"):
            minimum_norm_solution(*pair)
        with pytest.raises(ValueError, match="not finite"):
            distance_to_minimum_norm(*pair)
    with pytest.raises(ValueError, match="solution is zero"):
        distance_to_minimum_norm(torch.eye(2), torch.zeros(2, 2))
