import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_depth.measures.spectra import effective_rank, exp_effective_rank, stable_rank


@pytest.mark.parametrize("size", [10, 50, 400])
def test_a_rank_ten_projection_has_effective_rank_ln_ten_whatever_its_size(size: int) -> None:
    basis, _ = torch.linalg.qr(torch.randn(size, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    sigma = torch.linalg.svdvals(3 * basis @ basis.mT)
    assert float(effective_rank(sigma)) == pytest.approx(math.log(10), abs=1e-10)
    assert float(stable_rank(sigma)) == pytest.approx(10, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(rank=st.integers(1, 20), zeros=st.integers(0, 50), scale=st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300]))
def test_r_equal_values_have_rank_r(rank: int, zeros: int, scale: float) -> None:
    sigma = torch.cat([torch.full((rank,), scale, dtype=torch.float64), torch.zeros(zeros, dtype=torch.float64)])
    assert float(exp_effective_rank(sigma)) == pytest.approx(rank, rel=1e-12)
    assert float(stable_rank(sigma)) == pytest.approx(rank, rel=1e-12)


def test_the_definitions_term_by_term_and_their_difference() -> None:
    sigma = [4.0, 2.0, 1.0, 0.5]
    shares = [s / sum(sigma) for s in sigma]
    entropy = -sum(p * math.log(p) for p in shares)
    assert float(effective_rank(torch.tensor(sigma))) == pytest.approx(entropy, rel=1e-14)
    assert float(stable_rank(torch.tensor(sigma))) == pytest.approx(sum(s**2 for s in sigma) / 16, rel=1e-14)
    # The control: without the squares (the middle expression of huh2021 Definition 4) the number is another.
    assert sum(sigma) / 4 != pytest.approx(sum(s**2 for s in sigma) / 16, rel=0.1)


def test_float32_values_are_treated_in_float64() -> None:
    sigma = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(effective_rank(sigma), effective_rank(sigma.double()))


def test_the_spectrum_of_a_zero_matrix_has_rank_zero() -> None:
    for sigma in (torch.zeros(5), torch.zeros(0)):
        assert effective_rank(sigma) == -math.inf
        assert exp_effective_rank(sigma) == 0
        assert stable_rank(sigma) == 0


def test_batches_are_treated_one_by_one() -> None:
    sigma = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    assert exp_effective_rank(sigma).tolist() == pytest.approx([3, 0, 1])
    assert stable_rank(sigma).tolist() == pytest.approx([3, 0, 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("rank", [effective_rank, exp_effective_rank, stable_rank])
def test_a_value_that_is_no_singular_value_raises(rank, bad: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="finite and not negative"):
        rank(torch.tensor([1.0, bad]))
