import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_depth.measures.spectra import (
    effective_rank,
    exp_effective_rank,
    normalised_spectrum,
    nuclear_norm,
    participation_ratio,
    schatten_norm,
    singular_values,
    stable_rank,
    threshold_rank,
    threshold_rank_auc,
)
from tests.oracles import numerical_rank

RANKS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp_effective_rank": exp_effective_rank,
    "stable_rank": stable_rank,
    "participation_ratio": participation_ratio,
    "threshold_rank_auc": threshold_rank_auc,
}
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    **RANKS,
    "effective_rank": effective_rank,
    "nuclear_norm": nuclear_norm,
    "frobenius_norm": lambda sigma: schatten_norm(sigma, 2),
    "spectral_norm": lambda sigma: schatten_norm(sigma, math.inf),
    "schatten_norm_1.5": lambda sigma: schatten_norm(sigma, 1.5),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


DEGENERATE = {
    "repeated": torch.eye(4, 5, dtype=torch.float64),
    "pairs": torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64)),
    "rank deficient": random(6, 2) @ random(2, 5, seed=1),
    "a row and a column of zeros": torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)),
    "rank one": torch.ones(4, 4, dtype=torch.float64),
    "zero": torch.zeros(3, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("size", [10, 50, 400])
def test_a_rank_ten_projection_has_effective_rank_ln_ten_whatever_its_size(size: int) -> None:
    basis, _ = torch.linalg.qr(random(size, 10))
    sigma = torch.linalg.svdvals(3 * basis @ basis.mT)
    assert float(effective_rank(sigma)) == pytest.approx(math.log(10), abs=1e-10)
    for rank in RANKS.values():
        assert float(rank(sigma)) == pytest.approx(10, rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(rank=st.integers(1, 20), zeros=st.integers(0, 50), scale=st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300]))
def test_r_equal_values_have_rank_r(rank: int, zeros: int, scale: float) -> None:
    sigma = torch.cat([torch.full((rank,), scale, dtype=torch.float64), torch.zeros(zeros, dtype=torch.float64)])
    for measure in RANKS.values():
        assert float(measure(sigma)) == pytest.approx(rank, rel=1e-12)
    assert numerical_rank(sigma, rank + zeros, 1) == rank
    assert threshold_rank(sigma, 1 / rank) == rank
    assert threshold_rank(sigma, 1, of_largest=True) == rank


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_ranks_lie_between_one_and_k_and_do_not_see_order_or_scale(values: list[float]) -> None:
    sigma = torch.tensor(values, dtype=torch.float64)
    positive = int((sigma > 0).sum())
    for name, measure in RANKS.items():
        rank = float(measure(sigma))
        assert min(positive, 1) - 1e-9 <= rank <= positive + 1e-9, name
        assert float(measure(3 * sigma.flip(0))) == pytest.approx(rank, rel=1e-9), name


def test_the_definitions_term_by_term_and_their_difference() -> None:
    sigma = [4.0, 2.0, 1.0, 0.5]
    shares = [s / sum(sigma) for s in sigma]
    entropy = -sum(p * math.log(p) for p in shares)
    assert float(effective_rank(torch.tensor(sigma))) == pytest.approx(entropy, rel=1e-14)
    assert float(stable_rank(torch.tensor(sigma))) == pytest.approx(sum(s**2 for s in sigma) / 16, rel=1e-14)
    # The control: without the squares (the middle expression of huh2021 Definition 4) the number is another.
    assert sum(sigma) / 4 != pytest.approx(sum(s**2 for s in sigma) / 16, rel=0.1)
    squares = sum(s**2 for s in sigma)
    assert float(participation_ratio(torch.tensor(sigma))) == pytest.approx(sum(sigma) ** 2 / squares, rel=1e-14)
    assert float(nuclear_norm(torch.tensor(sigma))) == pytest.approx(sum(sigma), rel=1e-14)
    assert normalised_spectrum(torch.tensor(sigma)).tolist() == [1, 0.5, 0.25, 0.125]


def test_threshold_rank_counts_shares_of_the_sum() -> None:
    sigma = torch.tensor([[4.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    counts = {0: [4, 4], 0.125: [4, 0], 0.126: [2, 0], 0.25: [2, 0], 0.5: [1, 0], 0.51: [0, 0]}
    for threshold, count in counts.items():
        assert threshold_rank(sigma, threshold).tolist() == count
    assert threshold_rank(sigma, 0.5, of_largest=True).tolist() == [2, 0]


def test_the_area_under_the_threshold_rank_is_the_integral_over_thresholds() -> None:
    sigma = random(9).abs()
    thresholds = [(i + 0.5) / 1000 for i in range(1000)]
    area = sum(float(threshold_rank(sigma, t, of_largest=True)) for t in thresholds) / 1000
    assert float(threshold_rank_auc(sigma)) == pytest.approx(area, abs=9 / 2000)
    # The control: with the shares of huh2021 Definition 3 the area says nothing, whatever the spectrum.
    of_sum = sum(float(threshold_rank(sigma, t)) for t in thresholds) / 1000
    assert of_sum == pytest.approx(1, abs=9 / 2000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (25, 25)])
def test_numerical_rank_is_the_one_of_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = (random(shape[0], 7) @ random(7, shape[1], seed=1)).to(dtype)
    for noise in (0.0, 1e-9, 1e-3):
        noisy = matrix + noise * random(*shape, seed=2).to(dtype)
        expected = torch.linalg.matrix_rank(noisy)
        assert numerical_rank(torch.linalg.svdvals(noisy), *shape) == expected
        assert numerical_rank(torch.linalg.svdvals(noisy.double()), *shape, dtype=dtype) == expected
    assert expected == min(shape)


def test_schatten_norms_are_the_matrix_norms() -> None:
    matrix = random(3, 5, 7)
    sigma = singular_values(matrix)
    for p, order in ((1, "nuc"), (2, "fro"), (math.inf, 2)):
        expected = torch.linalg.matrix_norm(matrix, order)
        torch.testing.assert_close(schatten_norm(sigma, p), expected, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="p >= 1"):
        schatten_norm(sigma, 0.5)


def test_float32_values_are_treated_in_float64() -> None:
    sigma = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for name, measure in SMOOTH.items():
        assert torch.equal(measure(sigma), measure(sigma.double())), name


def test_the_spectrum_of_a_zero_matrix_has_rank_zero() -> None:
    for sigma in (torch.zeros(5), torch.zeros(0)):
        assert effective_rank(sigma) == -math.inf
        for name in SMOOTH.keys() - {"effective_rank"}:
            assert SMOOTH[name](sigma) == 0, name
        assert numerical_rank(sigma, 5, 5) == 0
        assert threshold_rank(sigma, 0.1) == 0


def test_batches_are_treated_one_by_one() -> None:
    sigma = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    for rank in RANKS.values():
        assert rank(sigma).tolist() == pytest.approx([3, 0, 1])
    assert numerical_rank(sigma, 3, 3).tolist() == [3, 0, 1]
    assert nuclear_norm(sigma).tolist() == [3, 0, 5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", [*SMOOTH, "threshold_rank", "numerical_rank"])
def test_a_value_that_is_no_singular_value_raises(name: str, bad: float) -> None:
    counts = {"threshold_rank": lambda s: threshold_rank(s, 0.1), "numerical_rank": lambda s: numerical_rank(s, 2, 2)}
    with pytest.raises(ValueError, match="finite and not negative"):
        (SMOOTH | counts)[name](torch.tensor([1.0, bad]))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_out_of_range_raises(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold lies in"):
        threshold_rank(torch.ones(3), threshold)


def test_singular_values_are_those_of_the_matrix_with_round_off_as_zero() -> None:
    matrix = random(2, 6, 4)
    torch.testing.assert_close(singular_values(matrix), torch.linalg.svdvals(matrix), rtol=0, atol=0)
    deficient = DEGENERATE["rank deficient"]
    assert (singular_values(deficient)[2:] == 0).all()
    assert (torch.linalg.svdvals(deficient)[2:] != 0).any()  # the control
    assert singular_values(torch.zeros(0, 3)).shape == (0,)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            singular_values(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_the_finite_differences(name: str) -> None:
    for shape in ((5, 3), (3, 5), (2, 4, 4)):
        matrix = random(*shape).requires_grad_()
        assert torch.autograd.gradcheck(lambda a: SMOOTH[name](singular_values(a)), matrix)
    assert torch.autograd.gradcheck(SMOOTH[name], torch.tensor([3.0, 2.0, 0.5]).double().requires_grad_())


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("case", DEGENERATE)
def test_gradients_are_finite_at_repeated_and_zero_values(name: str, case: str) -> None:
    matrix = DEGENERATE[case].clone().requires_grad_()
    SMOOTH[name](singular_values(matrix)).backward()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()
    # The gradient leaves the null spaces alone: U diag(g) V^T with g = 0 where sigma = 0.
    u, s, vt = torch.linalg.svd(DEGENERATE[case])
    rank = int((s > 1e-12).sum())
    torch.testing.assert_close(u[:, rank:].mT @ matrix.grad, torch.zeros(len(u) - rank, len(vt)).double())
    torch.testing.assert_close(matrix.grad @ vt[rank:].mT, torch.zeros(len(u), len(vt) - rank).double())

    sigma = s.clone().requires_grad_()
    SMOOTH[name](sigma).backward()
    assert sigma.grad is not None
    assert sigma.grad.isfinite().all()
    assert (sigma.grad[s == 0] == 0).all()


def test_gradients_among_equal_values_are_equal() -> None:
    for name, measure in SMOOTH.items():
        sigma = torch.tensor([2.0, 2.0, 1.0, 0.0]).requires_grad_()
        measure(sigma).backward()
        assert sigma.grad is not None
        assert sigma.grad[0] == pytest.approx(float(sigma.grad[1]), abs=1e-7), name


def test_entropy_written_with_entr_has_no_finite_gradient_at_zero() -> None:  # why effective_rank is not written so
    sigma = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    torch.special.entr(sigma / sigma.sum()).sum().backward()
    assert sigma.grad is not None
    assert not sigma.grad.isfinite().all()


def test_a_rank_can_be_trained_down() -> None:
    matrix = random(6, 6).requires_grad_()
    optimiser = torch.optim.Adam([matrix], lr=0.05)
    before = float(exp_effective_rank(singular_values(matrix.detach())))
    for _ in range(200):
        optimiser.zero_grad()
        effective_rank(singular_values(matrix)).backward()
        optimiser.step()
    assert float(exp_effective_rank(singular_values(matrix.detach()))) < 0.4 * before
