import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_depth.measures.stability import local_stability


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(inputs: int, outputs: int, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).to(dtype)
    for i, parameter in enumerate(net.parameters()):
        parameter.data = random(*parameter.shape, seed=10 * seed + i, dtype=dtype)
    return net


def label(function: nn.Module, x: Tensor) -> int:
    output = function(x[None])[0]
    return int(output.argmax()) if output.numel() > 1 else int(output > 0)


def brute_force(function: nn.Module, inputs: Tensor, v: float) -> float:
    stable = 0
    for x in inputs:
        same = True
        for i in range(x.numel()):
            for alpha in (1, -1):
                moved = x.clone()
                moved.view(-1)[i] += alpha * v
                same &= label(function, moved) == label(function, x)
        stable += same
    return stable / len(inputs)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 8), shape=st.sampled_from([(1,), (3,), (2, 2)]), outputs=st.integers(1, 3),
    max_bytes=st.sampled_from([1, 100, 2**24]), double=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_against_one_perturbation_at_a_time(
    n: int, shape: tuple[int, ...], outputs: int, max_bytes: int, double: bool, seed: int
) -> None:
    dtype = torch.float64 if double else torch.float32
    function, inputs = network(math.prod(shape), outputs, seed, dtype), random(n, *shape, seed=seed, dtype=dtype)
    strengths = torch.tensor([1.0, 0.0, 0.3, 0.1])  # in no order
    stability = local_stability(function, inputs, strengths, max_bytes)
    assert stability.tolist() == [brute_force(function, inputs, v) for v in strengths.tolist()]
    assert stability[1] == 1


def two_local_label(x: Tensor) -> Tensor:
    return x[:, 0] * x[:, 1]


def test_the_two_local_label_has_its_closed_form() -> None:
    strengths = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    stability = local_stability(two_local_label, random(20_000, 10, dtype=torch.float32), strengths)
    # P(|x_1| > v) P(|x_2| > v) for Gaussian x; one standard deviation is at most 0.0036
    torch.testing.assert_close(stability, torch.erfc(strengths / 2**0.5) ** 2, rtol=0, atol=0.012)


def test_a_global_label_is_more_stable_than_a_local_one() -> None:
    inputs, strengths = random(500, 40), torch.tensor([0.5])
    assert local_stability(lambda x: x.sum(1), inputs, strengths) > local_stability(two_local_label, inputs, strengths)
    # Its closed form: |x_1 + ... + x_d| > v is necessary and sufficient.
    share = (inputs.sum(1).abs() > 0.5).double().mean()
    assert float(local_stability(lambda x: x.sum(1), inputs, strengths)) == share


def test_a_label_may_change_and_change_back() -> None:
    stability = local_stability(lambda x: (x - 1).square() - 0.01, torch.zeros(1, 1), torch.tensor([0.5, 1.0, 1.5]))
    assert stability.tolist() == [1, 0, 1]


def test_two_classes_and_the_sign_of_their_difference_agree() -> None:
    function, inputs, strengths = network(5, 2, 0), random(30, 5), torch.tensor([0.05, 0.3])
    difference = local_stability(lambda x: function(x)[:, 1:] - function(x)[:, :1], inputs, strengths)
    assert torch.equal(local_stability(function, inputs, strengths), difference)
    assert 0 < float(difference[1]) < float(difference[0])


def test_batches_stay_within_the_bytes_and_unstable_samples_are_dropped() -> None:
    rows: list[int] = []

    def counted(x: Tensor) -> Tensor:
        rows.append(len(x))
        return two_local_label(x.flip(1))

    n, d, strengths = 100, 20, torch.tensor([2.0, 2.0, 2.0])
    inputs = random(n, d)
    exact = local_stability(counted, inputs, strengths, max_bytes=30 * d * 8)
    assert max(rows) <= 30
    stable = round(float(exact[0]) * n)
    # The first strength must go to the last two coordinates; the later ones try what it found at once.
    assert sum(rows) <= n + n * (1 + 2 * d) + 2 * (n + 2 * d * stable)
    assert torch.equal(exact, local_stability(counted, inputs, strengths))
    assert exact[0] == exact[2]
    rows.clear()
    local_stability(lambda x: counted(x.flip(1)), inputs, strengths[:1], max_bytes=30 * d * 8)
    assert sum(rows) < n * 15  # found early, in the first two coordinates, and dropped


def test_no_gradients_and_the_inputs_are_left_alone() -> None:
    inputs = random(4, 3)
    before = inputs.clone()
    recorded = []

    def function(x: Tensor) -> Tensor:
        recorded.append(torch.is_grad_enabled())
        return network(3, 2, 0)(x)

    local_stability(function, inputs, torch.tensor([0.5]))
    assert not any(recorded)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_raises(bad: float) -> None:
    inputs = torch.ones(2, 3)
    inputs[1, 2] = bad
    with pytest.raises(ValueError, match="inputs are not finite"):
        local_stability(two_local_label, inputs, torch.ones(1))
    with pytest.raises(ValueError, match="strengths must be"):
        local_stability(two_local_label, torch.ones(2, 3), torch.tensor([bad]))
    with pytest.raises(ValueError, match="outputs are not finite"):
        local_stability(lambda x: x[:, 0] * bad, torch.ones(2, 3), torch.ones(1))


def test_bad_input_raises() -> None:
    with pytest.raises(ValueError, match="int64, not floating-point"):
        local_stability(two_local_label, torch.ones(2, 3, dtype=torch.int64), torch.ones(1))
    with pytest.raises(ValueError, match="there are none"):
        local_stability(two_local_label, torch.ones(0, 3), torch.ones(1))
    with pytest.raises(ValueError, match="not negative"):
        local_stability(two_local_label, torch.ones(2, 3), torch.tensor([-0.1]))
    with pytest.raises(ValueError, match="outputs have shape"):
        local_stability(lambda x: x[:, :, None], torch.ones(2, 3), torch.ones(1))
