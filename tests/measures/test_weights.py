import math

import pytest
import torch
from torch import Tensor, nn

from lightning_depth.measures.weights import relative_distance


def state(seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    network[1].num_batches_tracked += seed
    return network.state_dict()


def test_against_a_loop_over_the_entries() -> None:
    before, after = state(0), state(1)
    for name in ("0.weight", "0.bias", "2.weight"):
        pairs = list(zip(after[name].flatten().tolist(), before[name].flatten().tolist(), strict=True))
        expected = math.sqrt(sum((w - w0) ** 2 for w, w0 in pairs) / sum(w0**2 for _, w0 in pairs))
        assert relative_distance(after[name], before[name]) == pytest.approx(expected, rel=1e-12)
    assert relative_distance(after["1.running_mean"], before["1.running_mean"]) == 0


def test_it_is_relative_to_the_initial_value() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    assert relative_distance(3 * weight, weight) == 2
    assert relative_distance(weight, 3 * weight) == pytest.approx(2 / 3, rel=1e-7)
    assert relative_distance(weight, weight) == 0


def test_what_began_at_zero() -> None:
    zero = torch.zeros(3)
    assert relative_distance(zero, zero) == 0
    assert relative_distance(torch.tensor([0.0, 1e-30, 0.0]), zero) == math.inf
    assert relative_distance(torch.zeros(0), torch.zeros(0)) == 0


def test_half_precision_is_measured_in_float64() -> None:
    weight = torch.full((1000,), 100.0, dtype=torch.float16)  # the sum of squares, 1e7, is no float16
    assert relative_distance(1.5 * weight, weight) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_raise(bad: float) -> None:
    good, wrong = torch.ones(2), torch.tensor([1.0, bad])
    for pair in ((good, wrong), (wrong, good), (wrong, wrong)):
        with pytest.raises(ValueError, match="not finite"):
            relative_distance(*pair)


def test_weights_of_two_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 2\), its initial value \(2,\)"):
        relative_distance(torch.ones(1, 2), torch.ones(2))
