import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from lightning_depth.measures.gram import (
    GramSpectrum,
    Kernel,
    cosine_gram,
    gram_effective_rank,
    gram_spectrum,
)
from lightning_depth.measures.spectra import effective_rank
from tests.oracles import linear_gram


def features(p: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(p, *shape, generator=torch.Generator().manual_seed(seed)).relu()


def dense_spectrum(x: Tensor, kernel: Kernel = "cosine") -> Tensor:
    return torch.linalg.svdvals(cosine_gram(x) if kernel == "cosine" else linear_gram(x))


def test_cosine_gram_entry_by_entry() -> None:
    x = features(6, 5)
    for i in range(6):
        for j in range(6):
            expected = torch.nn.functional.cosine_similarity(x[i].double(), x[j].double(), dim=0)
            assert float(cosine_gram(x)[i, j]) == pytest.approx(float(expected), abs=1e-14)


def test_linear_gram_entry_by_entry() -> None:
    x = features(6, 5, 2)
    for i in range(6):
        for j in range(6):
            assert float(linear_gram(x)[i, j]) == pytest.approx(float((x[i].double() * x[j].double()).sum()), abs=1e-13)


@settings(max_examples=40, deadline=None)
@given(
    p=st.integers(1, 30), d=st.integers(1, 30), batch=st.integers(1, 31), limit=st.sampled_from([0, 4096]),
    seed=st.integers(0, 99), kernel=st.sampled_from(["cosine", "linear"]),
)  # fmt: skip
def test_streamed_spectrum_is_the_dense_one(p: int, d: int, batch: int, limit: int, seed: int, kernel: Kernel) -> None:
    x = features(p, d, seed=seed)
    metric = GramSpectrum(d, max_gram_features=limit, kernel=kernel)
    for part in x.split(batch):
        metric.update(part)
    spectrum = metric.compute().reshape(-1)  # torchmetrics drops the dimension of a single number
    dense = dense_spectrum(x, kernel)
    atol = 1e-12 * p * max(1.0, float(dense[0]))
    torch.testing.assert_close(spectrum, dense[: min(p, d)], rtol=0, atol=atol)
    assert dense[min(p, d) :].sum() < 100 * atol
    assert (spectrum >= 0).all()
    torch.testing.assert_close(gram_spectrum(x, kernel), spectrum, rtol=0, atol=atol)


def test_the_linear_spectrum_is_the_squared_singular_values_of_the_features() -> None:
    x = features(20, 7) * torch.logspace(-1, 1, 20)[:, None]
    squares = torch.linalg.svdvals(x.double()).square()
    torch.testing.assert_close(gram_spectrum(x, "linear"), squares, rtol=1e-10, atol=0)
    assert (gram_spectrum(x)[0] - squares[0]).abs() > 1  # the control: of cosines it is another
    torch.testing.assert_close(gram_effective_rank(x, "linear"), effective_rank(squares), rtol=1e-10, atol=0)


def test_images_are_flattened_and_scale_cancels() -> None:
    x = features(20, 3, 4, 4)
    scale = torch.logspace(-10, 10, 20)[:, None, None, None]
    torch.testing.assert_close(gram_spectrum(x), gram_spectrum(x.flatten(1) * scale.flatten(1)), rtol=0, atol=1e-5)
    torch.testing.assert_close(gram_spectrum(x), dense_spectrum(x), rtol=0, atol=1e-12)


def test_ten_directions_have_effective_rank_ln_ten() -> None:
    x = torch.eye(10, 64).repeat(7, 1)
    assert float(gram_effective_rank(x)) == pytest.approx(math.log(10), abs=1e-10)
    assert float(gram_effective_rank(features(70, 64))) > math.log(10)  # the measure can say no


def test_zero_features_are_counted_and_contribute_nothing() -> None:
    x = features(12, 5)
    with_zeros = torch.cat([x, torch.zeros(3, 5)])
    kernels: tuple[Kernel, ...] = ("cosine", "linear")
    for limit in (0, 4096):
        for kernel in kernels:
            metric = GramSpectrum(5, max_gram_features=limit, kernel=kernel)
            metric.update(with_zeros)
            assert metric.zero_rows == 3
            torch.testing.assert_close(metric.compute(), gram_spectrum(x, kernel), rtol=1e-12, atol=1e-12)
    assert effective_rank(GramSpectrum_of_zeros()) == -math.inf


def GramSpectrum_of_zeros() -> Tensor:  # noqa: N802
    metric = GramSpectrum(5)
    metric.update(torch.zeros(4, 5))
    return metric.compute()


def test_merged_states_are_the_whole_and_reset_forgets() -> None:
    x = features(40, 8)
    for limit in (0, 4096):
        one, other = (GramSpectrum(8, max_gram_features=limit) for _ in range(2))
        one.update(x[:25])
        other.update(x[25:])
        one.merge_state(other)
        torch.testing.assert_close(one.compute(), gram_spectrum(x), rtol=0, atol=1e-12)
        one.reset()
        one.update(x[:3])
        torch.testing.assert_close(one.compute(), gram_spectrum(x[:3]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_raise(bad: float) -> None:
    x = features(4, 3)
    x[2, 1] = bad
    for limit in (0, 4096):
        with pytest.raises(ValueError, match="not finite"):
            GramSpectrum(3, max_gram_features=limit).update(x)
        with pytest.raises(ValueError, match="not finite"):
            GramSpectrum(3, max_gram_features=limit, kernel="linear").update(x)
    for gram in (gram_effective_rank, cosine_gram, linear_gram):
        with pytest.raises(ValueError, match="not finite"):
            gram(x)


def test_inner_products_that_overflow_raise() -> None:
    with pytest.raises(ValueError, match="not finite"):
        gram_spectrum(torch.full((2, 2), 1e200, dtype=torch.float64), "linear")


def test_another_kernel_raises() -> None:
    with pytest.raises((ValueError, TypeCheckError)):
        gram_spectrum(features(4, 3), "gaussian")  # type: ignore[arg-type]


def test_another_number_of_features_raises() -> None:
    with pytest.raises(ValueError, match="3 features, not 4"):
        GramSpectrum(4).update(features(2, 3))
