import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import UnsupportedLayer, frobenius_norm, layer_operator
from lightning_depth.measures.singular_values import operator_stable_rank, singular_values
from lightning_depth.measures.spectra import stable_rank

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def matrix_of_module(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Slow and obvious: the module's own forward on every unit vector, its answer to zero taken off."""
    basis = torch.eye(math.prod(input_shape), dtype=torch.float64).reshape(-1, *input_shape)
    with torch.no_grad():
        return (module(basis) - module(torch.zeros_like(basis))).flatten(1).mT


def check(module: nn.Module, input_shape: tuple[int, ...], dense_limit: int = 2**22) -> None:
    expected = torch.linalg.svdvals(matrix_of_module(module, input_shape))
    found = singular_values(module, input_shape, dense_limit)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert operator_norm(layer_operator(module, input_shape)).value == pytest.approx(float(found[0]), rel=1e-4)
    assert frobenius_norm(module, input_shape) == pytest.approx(float(found.norm()), rel=1e-10)
    assert operator_stable_rank(module, input_shape) == pytest.approx(float(stable_rank(found)), rel=2e-4)


@settings(max_examples=30, deadline=None)
@given(
    dims=st.integers(1, 2), mode=st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    groups=st.integers(1, 2), data=st.data(),
)  # fmt: skip
def test_convolutions_against_the_dense_matrix(dims: int, mode: str, groups: int, data: st.DataObject) -> None:
    many = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    module = (nn.Conv1d, nn.Conv2d)[dims - 1](
        2 * groups, groups * data.draw(st.integers(1, 3)), many(1, 3), many(1, 3), many(0, 2), many(1, 2), groups,
        padding_mode=mode,
    )  # fmt: skip
    check(filled(module), (2 * groups, *many(5, 7)))


@settings(max_examples=25, deadline=None)
@given(
    dims=st.integers(1, 2), groups=st.integers(1, 2), channels=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    data=st.data(),
)  # fmt: skip
def test_circular_convolutions_need_no_matrix(
    dims: int, groups: int, channels: tuple[int, int], data: st.DataObject
) -> None:
    many = lambda values: tuple(data.draw(st.sampled_from(values)) for _ in range(dims))  # noqa: E731
    kernel, dilation, stride = many([1, 3, 5]), many([1, 2]), many([1, 2, 3])
    padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    image = tuple(s * data.draw(st.integers(math.ceil(max(p, 2) / s), 4)) for s, p in zip(stride, padding, strict=True))
    module = (nn.Conv1d, nn.Conv2d)[dims - 1](
        groups * channels[0], groups * channels[1], kernel, stride, padding, dilation, groups, padding_mode="circular"
    )
    check(filled(module), (groups * channels[0], *image), dense_limit=0)


@pytest.mark.parametrize(
    ("module", "input_shape"),
    [
        (nn.Linear(4, 6), (4,)),
        (nn.Linear(4, 3), (2, 3, 4)),
        (nn.Conv2d(3, 5, 1), (3, 4, 3)),
        (nn.Conv2d(4, 6, 1, stride=2, groups=2), (4, 5, 6)),
    ],
)
def test_layers_that_treat_positions_alike_need_no_matrix_of_their_own(
    module: nn.Module, input_shape: tuple[int, ...]
) -> None:
    check(filled(module), input_shape, dense_limit=0)


def test_transposed_convolutions_are_written_out() -> None:
    check(filled(nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)), (2, 3, 4))


def test_a_circular_average_has_its_known_spectrum() -> None:
    average = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double()
    nn.init.constant_(average.weight, 1 / 3)
    # |1 + 2 cos(2 pi f / 6)| / 3: the pairs f and 6 - f stand twice
    expected = torch.tensor([3.0, 2, 2, 1, 0, 0], dtype=torch.float64) / 3
    torch.testing.assert_close(singular_values(average, (1, 6)), expected)
    # Control: zero padding is another operator.
    zero_padded = nn.Conv1d(1, 1, 3, padding=1, bias=False).double()
    zero_padded.weight = average.weight
    assert float(singular_values(zero_padded, (1, 6))[0]) < 0.95


def test_a_zero_layer() -> None:
    module = nn.Conv2d(2, 2, 3, padding=1)
    nn.init.zeros_(module.weight)
    assert singular_values(module, (2, 4, 4)).tolist() == [0.0] * 32
    assert operator_stable_rank(module, (2, 4, 4)) == 0.0


def test_bad_input_raises() -> None:
    with pytest.raises(ValueError, match="128 x 128 matrix: over 100 entries"):
        singular_values(nn.Conv2d(2, 2, 3, padding=1), (2, 8, 8), dense_limit=100)
    with pytest.raises(UnsupportedLayer, match="BatchNorm2d"):
        singular_values(nn.BatchNorm2d(2), (2, 8, 8))
    with pytest.raises(ValueError, match="takes"):
        singular_values(nn.Linear(3, 2), (4,))
    for bad in (math.nan, math.inf):
        module = nn.Linear(3, 2)
        module.weight.data[0, 0] = bad
        for measure in (singular_values, operator_stable_rank):
            with pytest.raises(ValueError, match="not finite"):
                measure(module, (3,))
