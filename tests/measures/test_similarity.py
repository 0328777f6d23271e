import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_depth.measures.similarity import cka_matrix
from tests.oracles import debiased_hsic, linear_cka


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gram(x: Tensor) -> Tensor:
    return x.flatten(1) @ x.flatten(1).mT


def hsic_of_quadruples(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """The U-statistic: the mean over all ordered quadruples of different samples."""
    a, b = k.tolist(), l.tolist()
    terms = [a[i][j] * (b[i][j] + b[q][r] - 2 * b[i][q]) for i, j, q, r in itertools.permutations(range(len(a)), 4)]
    return math.fsum(terms) / len(terms)


def hsic_of_sums(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """Song et al. (2012), Equation 5, in loops."""
    n = len(k)
    a, b = ([[0.0 if i == j else float(m[i, j]) for j in range(n)] for i in range(n)] for m in (k, l))
    trace = sum(a[i][j] * b[j][i] for i in range(n) for j in range(n))
    total = sum(map(sum, a)) * sum(map(sum, b))
    middle = sum(a[i][j] * b[j][q] for i in range(n) for j in range(n) for q in range(n))
    return (trace + total / ((n - 1) * (n - 2)) - 2 * middle / (n - 2)) / (n * (n - 3))


def biased_cka(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. (2019) as it is written: tr(K H L H), H = 1 - 11'/n."""
    n = len(x)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, l = gram(x.double()), gram(y.double())  # noqa: E741
    hsic = lambda a, b: torch.trace(a @ h @ b @ h)  # noqa: E731
    return float(hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt())


def debiased_cka(x: Tensor, y: Tensor) -> float:
    k, l = gram(x.double()), gram(y.double())  # noqa: E741
    return hsic_of_sums(k, l) / math.sqrt(hsic_of_sums(k, k) * hsic_of_sums(l, l))


@pytest.mark.parametrize("seed", range(3))
def test_debiased_hsic_is_the_mean_over_quadruples(seed: int) -> None:
    k, l = gram(random(8, 3, seed=seed)), gram(random(8, 20, seed=seed + 10) + 1)  # noqa: E741
    for pair in ((k, l), (k, k)):
        expected = hsic_of_quadruples(*pair)
        assert float(debiased_hsic(*pair)) == pytest.approx(expected, rel=1e-9)
        assert hsic_of_sums(*pair) == pytest.approx(expected, rel=1e-9)
    assert debiased_hsic(k, k) > 0


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(4, 12), d1=st.integers(1, 15), d2=st.integers(1, 15), offset=st.sampled_from([0.0, 10.0]),
    double=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_both_sides_of_the_product_against_the_definition(
    n: int, d1: int, d2: int, offset: float, double: bool, seed: int
) -> None:
    dtype = torch.float64 if double else torch.float32
    x = random(n, d1, seed=seed, dtype=dtype) + offset
    y = random(n, d2, seed=seed + 1000, dtype=dtype) + x[:, :1]
    assert float(linear_cka(x, y, debiased=False)) == pytest.approx(biased_cka(x, y), abs=1e-9)
    assert float(linear_cka(x, y)) == pytest.approx(debiased_cka(x, y), abs=1e-6)
    for debiased in (True, False):
        # Repeating features scales HSIC alone, and moves the choice to the side of the samples.
        many = linear_cka(x.repeat(1, 40), y.repeat(1, 40), debiased)
        assert float(many) == pytest.approx(float(linear_cka(x, y, debiased)), abs=1e-6)


def test_images_are_flattened() -> None:
    x, y = random(9, 2, 3, 3), random(9, 4, seed=1)
    assert linear_cka(x, y) == linear_cka(x.flatten(1), y)


def test_independent_features_read_zero_only_if_debiased() -> None:
    n, d, seeds = 64, 4096, range(6)
    pairs = [(random(n, d, seed=seed), random(n, d, seed=seed + 100)) for seed in seeds]
    debiased = [float(linear_cka(x, y)) for x, y in pairs]
    # One pair has a standard deviation of sqrt(2) / n = 0.022.
    assert abs(sum(debiased) / len(debiased)) < 0.02
    assert max(map(abs, debiased)) < 0.09
    assert min(float(linear_cka(x, y, debiased=False)) for x, y in pairs) > 0.95  # the control
    assert float(linear_cka(pairs[0][0], pairs[0][0] + pairs[0][1])) > 0.4  # what is there is still seen


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("d", [3, 50])
def test_invariances(debiased: bool, d: int) -> None:
    x, y = random(20, d), random(20, d, seed=1) + random(20, d)
    rotation = torch.linalg.qr(random(d, d, seed=2)).Q
    value = linear_cka(x, y, debiased)
    for same in (x @ rotation, 1e-6 * x, -3e5 * x, x + 100):
        torch.testing.assert_close(linear_cka(same, y, debiased), value, rtol=0, atol=1e-9)
    torch.testing.assert_close(linear_cka(y, x, debiased), value, rtol=0, atol=1e-12)
    assert float(linear_cka(x, 2 * x @ rotation, debiased)) == pytest.approx(1, abs=1e-12)
    # Another linear map is no invariance.
    stretched = x * torch.linspace(0.1, 10, d, dtype=torch.float64)
    assert abs(float(linear_cka(stretched, y, debiased)) - float(value)) > 1e-3


@pytest.mark.parametrize("debiased", [True, False])
def test_the_matrix_holds_every_pair(debiased: bool) -> None:
    layers = [random(12, 5), random(12, 30, seed=1), random(12, 5) + random(12, 5, seed=2)]
    matrix = cka_matrix(torch.stack([gram(x) for x in layers]), debiased)
    for i, j in itertools.product(range(3), repeat=2):
        assert float(matrix[i, j]) == pytest.approx(float(linear_cka(layers[i], layers[j], debiased)), abs=1e-10)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("d", [2, 100])
def test_constant_features_correlate_with_nothing(debiased: bool, d: int) -> None:
    rounded, other = torch.full((33, d), 0.1, dtype=torch.float64), random(33, d, dtype=torch.float32)
    assert (rounded - rounded.mean(0)).any()  # the control: centred by its mean it is not zero
    assert linear_cka(rounded, other, debiased) == linear_cka(rounded, rounded, debiased) == 0
    constant = rounded.float()
    for pair in ((constant, other), (other, constant), (constant, constant), (0 * other, other)):
        assert linear_cka(*pair, debiased) == 0
    noisy = gram(constant) * (1 + 1e-7 * random(33, 33).sign().float())  # as another order of sums would round it
    matrix = cka_matrix(torch.stack([(noisy + noisy.mT) / 2, gram(other)]), debiased)
    torch.testing.assert_close(matrix, torch.diag(torch.tensor([0.0, 1.0])).double(), rtol=0, atol=1e-9)


def test_features_that_are_all_equally_alike_have_no_debiased_similarity() -> None:
    alike, outlier, other = torch.eye(20), torch.eye(20)[:, :1], random(20, 3, dtype=torch.float32)
    for x in (alike, outlier):
        assert linear_cka(x, other) == linear_cka(x, x) == linear_cka(other, x) == 0
        assert linear_cka(x, x, debiased=False) == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_raises(bad: float) -> None:
    for d in (2, 30):
        x, y = random(6, d), random(6, d, seed=1)
        x[1, 0] = bad
        for pair in ((x, y), (y, x)):
            with pytest.raises(ValueError, match="not finite"):
                linear_cka(*pair)
            with pytest.raises(ValueError, match="not finite"):
                debiased_hsic(*map(gram, pair))
        with pytest.raises(ValueError, match="not finite"):
            cka_matrix(torch.stack([gram(x), gram(y)]))
    with pytest.raises(ValueError, match="too large"):
        linear_cka(1e100 * random(6, 2), random(6, 2))


def test_bad_input_raises() -> None:
    x = random(3, 2)
    for measure in (
        lambda: linear_cka(x, x),
        lambda: cka_matrix(gram(x)[None]),
        lambda: debiased_hsic(gram(x), gram(x)),
    ):
        with pytest.raises(ValueError, match="needs 4 samples, not 3"):
            measure()
    assert float(linear_cka(x, x, debiased=False)) == pytest.approx(1)
    with pytest.raises(ValueError, match="no samples"):
        linear_cka(x[:0], x[:0], debiased=False)
    with pytest.raises(ValueError, match="x has 3 samples, y has 4"):
        linear_cka(x, random(4, 2))
    with pytest.raises(ValueError, match="gram matrices have shapes"):
        debiased_hsic(gram(random(5, 2)), gram(random(4, 2)))
