import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_depth.measures.identity import at_correlation, cosine_to, mse_to


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs_at(rho: Tensor, example: Tensor, seed: int = 1) -> Tensor:
    return at_correlation(example, rho, random(len(rho), *example.shape, seed=seed))


def slow_cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.double().flatten(), other.double().flatten()
    return float(one @ other / (one.norm() * other.norm()))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(2,), (7,), (1, 5, 5), (3, 4, 6)]), rho=st.lists(st.floats(-1, 1), min_size=1, max_size=5),
    scale=st.sampled_from([1e-12, 1.0, 1e9]), double=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_correlation_and_norm_are_those_asked_for(
    shape: tuple[int, ...], rho: list[float], scale: float, double: bool, seed: int
) -> None:
    dtype = torch.float64 if double else torch.float32
    example = scale * random(*shape, seed=seed, dtype=dtype)
    correlations = torch.tensor(rho, dtype=torch.float64)
    inputs = inputs_at(correlations, example, seed + 1000)
    assert inputs.shape == (len(rho), *shape)
    assert inputs.dtype == dtype
    accuracy = 4e-15 if double else 4e-7
    for x, wanted in zip(inputs, rho, strict=True):
        assert slow_cosine(x, example) == pytest.approx(wanted, abs=accuracy)
        assert float(x.double().norm()) == pytest.approx(float(example.double().norm()), rel=accuracy)


def test_noise_nearly_parallel_to_the_example_is_still_made_orthogonal() -> None:
    example = random(50)
    noise = example + 1e-8 * random(1, 50, seed=1)
    assert abs(slow_cosine(at_correlation(example, torch.zeros(1), noise)[0], example)) < 1e-15
    once = noise[0] - (noise[0] @ example) / (example @ example) * example
    assert abs(slow_cosine(once, example)) > 1e-10  # the control: one subtraction is not enough


def test_at_one_the_input_is_the_example_whatever_the_noise() -> None:
    example = random(1, 4, 4)
    noise = torch.stack([torch.zeros_like(example), example])
    inputs = at_correlation(example, torch.tensor([1.0, -1.0]), noise)
    torch.testing.assert_close(inputs, torch.stack([example, -example]), rtol=1e-14, atol=0)


def test_draws_differ_and_equal_noise_gives_equal_inputs() -> None:
    example, rho = random(30), torch.tensor([0.0, 0.5]).repeat_interleave(2)
    inputs = inputs_at(rho, example)
    assert not torch.allclose(inputs[0], inputs[1])
    assert torch.equal(inputs, inputs_at(rho, example))


def test_a_constant_predictor_and_the_identity_have_known_answers() -> None:
    example = random(1, 6, 6)
    rho = torch.linspace(-1, 1, 9, dtype=torch.float64)
    inputs = inputs_at(rho, example)
    error = 2 * example.square().mean() * (1 - rho)
    constant, ones, zeros = example.expand_as(inputs), torch.ones_like(rho), torch.zeros_like(rho)
    for predictions, expected in [(constant, (rho, ones, error, zeros)), (inputs, (ones, rho, zeros, error))]:
        found = [measure(predictions, to) for measure in (cosine_to, mse_to) for to in (inputs, example)]
        for value, answer in zip(found, expected, strict=True):
            torch.testing.assert_close(value, answer, rtol=0, atol=1e-13)
    # Control: with an offset the Pearson correlation of the constant predictor is another number.
    shifted = inputs_at(rho, example + 1)
    pearson = torch.stack([torch.corrcoef(torch.stack([x.flatten(), (example + 1).flatten()]))[0, 1] for x in shifted])
    assert (pearson - rho).abs().max() > 0.05


def test_against_one_sample_at_a_time() -> None:
    predictions, inputs = random(5, 2, 3, dtype=torch.float32), random(5, 2, 3, seed=1, dtype=torch.float32)
    for reference in (inputs, inputs[0]):
        for i in range(5):
            one = reference if reference.ndim == 2 else reference[i]
            assert float(cosine_to(predictions, reference)[i]) == pytest.approx(slow_cosine(predictions[i], one))
            expected = sum(float(a - b) ** 2 for a, b in zip(predictions[i].flatten(), one.flatten(), strict=True)) / 6
            assert float(mse_to(predictions, reference)[i]) == pytest.approx(expected, rel=1e-6)


def test_a_zero_prediction_correlates_with_nothing() -> None:
    assert cosine_to(torch.zeros(2, 3), torch.ones(3)).tolist() == [0, 0]
    assert cosine_to(torch.ones(2, 3), torch.zeros(3)).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_raises(bad: float) -> None:
    good, wrong = torch.ones(2, 3), torch.ones(2, 3)
    wrong[1, 2] = bad
    for measure in (cosine_to, mse_to):
        for arguments in ((wrong, good), (good, wrong), (good, wrong[1])):
            with pytest.raises(ValueError, match="not finite"):
                measure(*arguments)
    for arguments in ((wrong[1], torch.zeros(2), good), (good[1], torch.zeros(2), wrong)):
        with pytest.raises(ValueError, match="not finite"):
            at_correlation(*arguments)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        at_correlation(good[0], torch.tensor([0.0, bad]), random(2, 3))


def test_bad_input_raises() -> None:
    example, rho = torch.tensor([1.0, 2.0]), torch.zeros(1)
    with pytest.raises(ValueError, match="example is zero"):
        at_correlation(torch.zeros(2), rho, random(1, 2))
    with pytest.raises(ValueError, match="int64, not floating-point"):
        at_correlation(torch.tensor([1, 2]), rho, random(1, 2))
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        at_correlation(example, torch.tensor([1.01]), random(1, 2))
    with pytest.raises(ValueError, match=r"shape \(1, 3\), not \(1, 2\)"):
        at_correlation(example, rho, random(1, 3))
    for noise in (torch.zeros(1, 2), 3 * example[None]):
        with pytest.raises(ValueError, match="zero or parallel"):
            at_correlation(example, rho, noise)
    for measure in (cosine_to, mse_to):
        with pytest.raises(ValueError, match="reference has shape"):
            measure(torch.ones(2, 3), torch.ones(1, 3))
