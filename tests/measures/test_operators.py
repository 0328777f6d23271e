import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_depth.measures import lanczos
from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import (
    LinearOperator,
    UnsupportedLayer,
    dense_matrix,
    frobenius_norm,
    layer_operator,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    module = module.double()
    for i, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=seed + i)
    return module


def matrix_of_module(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Slow and obvious: the module's own forward on every unit vector, its answer to zero taken off."""
    basis = torch.eye(math.prod(input_shape), dtype=torch.float64).reshape(-1, *input_shape)
    with torch.no_grad():
        return (module(basis) - module(torch.zeros_like(basis))).flatten(1).mT


def check(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    operator = layer_operator(module, input_shape)
    expected = matrix_of_module(module, input_shape)
    torch.testing.assert_close(dense_matrix(operator), expected, rtol=0, atol=1e-12)
    x = random(2, *operator.input_shape, seed=7)
    y = random(2, *operator.output_shape, seed=8)
    torch.testing.assert_close(
        (operator.forward(x) * y).sum(), (x * operator.transpose(y)).sum(), rtol=1e-10, atol=1e-9
    )
    estimate = operator_norm(operator)
    assert estimate.value == pytest.approx(float(torch.linalg.matrix_norm(expected, 2)), rel=1e-4)
    assert frobenius_norm(module, input_shape) == pytest.approx(float(expected.norm()), rel=1e-12)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    many = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, dilation, image = many(1, 4), many(1, 2), many(4, 7 if dims < 3 else 4)
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    padding = draw(st.sampled_from(["same", "valid", many(0, 3)]))
    if mode == "reflect" and padding == "same":
        image = tuple(size + 4 for size in image) if dims < 3 else image
    stride = (1,) * dims if padding == "same" else many(1, 3)
    module = CONVOLUTIONS[dims](
        *channels, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode
    )
    return filled(module, draw(st.integers(0, 99))), (channels[0], *image)


@settings(max_examples=50, deadline=None)
@given(case=convolutions())
def test_convolutions_of_every_kind_against_the_dense_matrix(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    module, input_shape = case
    try:
        module(torch.zeros(1, *input_shape, dtype=torch.float64))
    except RuntimeError:  # torch itself refuses: a kernel beyond its padded input
        with pytest.raises((ValueError, RuntimeError)):
            layer_operator(module, input_shape)
        return
    check(module, input_shape)


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        ({"kernel_size": 7, "padding": 3}, (2, 3)),
        ({"kernel_size": 5, "padding": 2, "padding_mode": "circular"}, (3, 2)),  # offsets that meet round the torus
        ({"kernel_size": (2, 4), "padding": "same", "dilation": (3, 1)}, (5, 4)),
        ({"kernel_size": 2, "padding": "same", "padding_mode": "reflect"}, (4, 5)),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, (8, 7)),
        ({"kernel_size": 1, "stride": 3}, (7, 8)),
    ],
)
def test_awkward_convolutions(settings: dict[str, object], image: tuple[int, int]) -> None:
    check(filled(nn.Conv2d(2, 3, **settings)), (2, *image))  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(
    dims=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 3), padding=st.integers(0, 1),
    dilation=st.integers(1, 3), groups=st.integers(1, 2), data=st.data(),
)  # fmt: skip
def test_transposed_convolutions(
    dims: int, kernel: int, stride: int, padding: int, dilation: int, groups: int, data: st.DataObject
) -> None:
    extra = data.draw(st.integers(0, max(stride, dilation) - 1))
    module = TRANSPOSED[dims](
        2, 4, kernel, stride=stride, padding=padding, output_padding=extra, groups=groups, dilation=dilation
    )
    check(filled(module), (2, *[3, 4, 3][:dims]))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_linear(leading: tuple[int, ...]) -> None:
    module = filled(nn.Linear(5, 4))
    check(module, (*leading, 5))
    assert operator_norm(layer_operator(module, (*leading, 5)), rtol=1e-9).value == pytest.approx(
        float(torch.linalg.matrix_norm(module.weight.detach(), 2)), rel=1e-9
    )


def test_the_norms_that_papers_confuse_are_all_different() -> None:
    module = filled(nn.Conv2d(4, 4, 3, padding=1))
    circular = filled(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    strided = filled(nn.Conv2d(4, 4, 3, padding=1, stride=2))
    norms = [operator_norm(layer_operator(layer, (4, 10, 10))).value for layer in (circular, module, strided)]
    norms.append(float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)))
    norms.append(float(torch.linalg.matrix_norm(module.weight.detach().permute(2, 3, 0, 1), 2).max()))
    assert norms == sorted(norms, reverse=True)
    assert min(a / b for a, b in itertools.pairwise(norms)) > 1.01
    # The circular one has a closed form: the largest norm over the frequencies (Sedghi et al. 2019).
    symbol = torch.fft.fft2(circular.weight.detach(), s=(10, 10)).permute(2, 3, 0, 1)
    assert norms[0] == pytest.approx(float(torch.linalg.matrix_norm(symbol, 2).max()), rel=1e-5)


def test_float32_reaches_one_part_in_ten_thousand_within_a_budget() -> None:
    for seed in range(4):
        module = nn.Conv2d(8, 8, 3, padding=1)
        module.weight.data = random(8, 8, 3, 3, seed=seed, dtype=torch.float32)
        exact = float(torch.linalg.matrix_norm(dense_matrix(layer_operator(module.double(), (8, 9, 9))), 2))
        estimate = operator_norm(layer_operator(module.float(), (8, 9, 9)), max_iterations=80)
        assert estimate.iterations < 80
        assert estimate.residual <= 2e-4
        assert abs(estimate.value / exact - 1) < 1e-4
        # Control: three steps are not enough, and the estimate says so.
        hasty = operator_norm(layer_operator(module, (8, 9, 9)), max_iterations=3)
        assert 1 - hasty.value / exact > 1e-2
        assert hasty.residual > 2e-4


def test_value_residual_and_vector_belong_together() -> None:
    operator = layer_operator(filled(nn.Conv2d(3, 5, 3, padding=1)), (3, 7, 7))
    value, residual, _, vector, _ = operator_norm(operator, dense_limit=0)
    assert vector.shape == (3, 7, 7)
    image = operator.forward(vector[None])
    assert float(vector.norm()) == pytest.approx(1, rel=1e-12)
    assert float(image.norm()) == pytest.approx(value, rel=1e-10)
    recomputed = (operator.transpose(image / value)[0] - value * vector).norm() / value
    assert float(recomputed) == pytest.approx(residual, rel=1e-3)


def test_a_warm_start_needs_fewer_steps_than_a_cold_one() -> None:
    module = filled(nn.Conv2d(8, 8, 3, padding=1))
    cold = operator_norm(layer_operator(module, (8, 10, 10)), rtol=1e-8)
    change = random(*module.weight.shape, seed=1)
    module.weight.data += 0.01 * module.weight.norm() / change.norm() * change
    moved = layer_operator(module, (8, 10, 10))
    warm = operator_norm(moved, start=cold.start)
    assert warm.iterations < operator_norm(moved).iterations
    assert warm.value == pytest.approx(float(torch.linalg.matrix_norm(dense_matrix(moved), 2)), rel=1e-4)


def diagonal(values: Tensor) -> LinearOperator:
    def scale(x: Tensor) -> Tensor:
        return x * values

    return LinearOperator(values.shape, values.shape, scale, scale, values.dtype, values.device)


@pytest.mark.parametrize("second", [0.5, 0.9])
def test_a_start_orthogonal_to_the_answer_finds_it(second: float) -> None:
    values = torch.cat([torch.tensor([1.0, second]), torch.linspace(0, 0.4, 500)]).double()
    wrong = torch.zeros(502, dtype=torch.float64)
    wrong[1] = 1
    assert operator_norm(diagonal(values), start=wrong, dense_limit=0).value == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1e-3])
def test_near_degenerate_leading_values_cost_little(gap: float) -> None:
    values = torch.cat([torch.tensor([1.0, 1 - gap], dtype=torch.float64), torch.linspace(0, 0.9, 500).double()])
    estimate = operator_norm(diagonal(values), dense_limit=0)
    assert estimate.value == pytest.approx(1, rel=1e-4)
    assert estimate.iterations <= 40


def test_a_zero_layer_has_norm_zero() -> None:
    module = nn.Conv2d(2, 2, 3)
    nn.init.zeros_(module.weight)
    assert operator_norm(layer_operator(module, (2, 5, 5)))[:2] == (0.0, 0.0)
    assert frobenius_norm(module, (2, 5, 5)) == 0


def test_global_random_numbers_are_left_alone_and_answers_repeat() -> None:
    module = filled(nn.Conv2d(2, 2, 3))
    before = torch.get_rng_state()
    one, two = (operator_norm(layer_operator(module, (2, 6, 6)), dense_limit=0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.vector, two.vector)
    other = operator_norm(layer_operator(module, (2, 6, 6)), dense_limit=0, generator=torch.Generator().manual_seed(5))
    assert other.value == pytest.approx(one.value, rel=1e-4)
    assert other.value != one.value


def test_a_lower_matmul_precision_of_the_trainer_is_not_used_and_put_back() -> None:
    module = filled(nn.Linear(40, 30)).float()
    exact = operator_norm(layer_operator(module, (40,)))
    try:
        torch.set_float32_matmul_precision("medium")
        assert operator_norm(layer_operator(module, (40,))).value == exact.value
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_parametrised_weight_is_read_and_left_as_it_was() -> None:
    module = parametrizations.spectral_norm(filled(nn.Linear(6, 5)), n_power_iterations=200)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert operator_norm(layer_operator(module, (6,))).value == pytest.approx(1, abs=1e-3)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(part.training for part in module.modules())
    assert float(module.parametrizations.weight.original.detach().norm()) > 2  # the raw weight would give another norm


def test_half_precision_weights_are_measured_in_float32() -> None:
    module = filled(nn.Conv2d(2, 3, 3)).bfloat16()
    operator = layer_operator(module, (2, 5, 5))
    assert operator.dtype == torch.float32
    exact = float(torch.linalg.matrix_norm(matrix_of_module(module.double(), (2, 5, 5)), 2))
    assert operator_norm(operator).value == pytest.approx(exact, rel=1e-4)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize("module", [nn.ReLU(), nn.BatchNorm2d(2), Standardised(2, 2, 3), nn.LazyConv2d(2, 3)])
def test_another_layer_is_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(UnsupportedLayer, match=type(module).__name__):
        layer_operator(module, (2, 5, 5))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_raise(bad: float) -> None:
    module = nn.Conv2d(2, 2, 3)
    module.weight.data[0, 0, 0, 0] = bad
    for measure in (layer_operator, frobenius_norm):
        with pytest.raises(ValueError, match="not finite"):
            measure(module, (2, 5, 5))
    with pytest.raises(ValueError, match="not finite"):
        operator_norm(diagonal(torch.tensor([1.0, bad])))


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match="takes"):
        layer_operator(nn.Conv2d(2, 2, 3), (3, 5, 5))
    with pytest.raises(ValueError, match="takes"):
        layer_operator(nn.Linear(2, 2), (3,))
    with pytest.raises(ValueError, match="larger than"):
        layer_operator(nn.Conv2d(2, 2, 3), (2, 2, 2))
    operator = layer_operator(nn.Linear(2, 2), (2,))
    with pytest.raises(ValueError, match="start has shape"):
        operator_norm(operator, dense_limit=0, start=torch.ones(3))
    with pytest.raises(ValueError, match="zero or not finite"):
        operator_norm(operator, dense_limit=0, start=torch.zeros(2))


def test_a_value_that_overtakes_the_first_is_seen_from_a_warm_start():
    values = torch.linspace(0.1, 0.9, 400)
    values[:2] = torch.tensor([1.0, 0.998])
    before = operator_norm(diagonal(values), rtol=1e-6)
    values[:2] = torch.tensor([0.999, 1.0])  # 0.1 % apart: the old first vector alone would pass for converged
    assert operator_norm(diagonal(values), start=before.start).value == pytest.approx(1, rel=1e-4)
    assert operator_norm(diagonal(values), start=before.vector).value < 0.9995, "the control should be deceived"


def test_a_value_from_far_down_that_leads_by_one_percent_is_seen_from_a_warm_start(monkeypatch):
    values = torch.cat([torch.tensor([1.0, 0.995, 0.99]), 0.985 * torch.linspace(0, 1, 4000) ** 0.5])
    exact = torch.eye(3, len(values))
    start = exact[0] + 0.5 * exact[1] + 0.5 * exact[2]
    values[2000] = 1.01
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        assert operator_norm(diagonal(values), start, generator=generator).value == pytest.approx(1.01, rel=1e-4)
    monkeypatch.setattr(lanczos, "_NOISE", 0.0)
    assert operator_norm(diagonal(values), start).value == pytest.approx(1, rel=1e-3), "the control should be deceived"


@pytest.mark.parametrize(
    ("module", "input_shape"),
    [
        (nn.Conv2d(6, 8, 1, stride=2), (6, 7, 4)),
        (nn.Conv2d(6, 8, 1, groups=2), (6, 5, 5)),
        (nn.Conv1d(6, 4, 1), (6, 9)),
        (nn.Linear(6, 5), (3, 2, 6)),
    ],
)
def test_a_layer_that_treats_positions_alike_is_measured_on_one(module, input_shape):
    operator = layer_operator(filled(module), input_shape)
    exact = float(torch.linalg.matrix_norm(matrix_of_module(module, input_shape), 2))
    cold = operator_norm(operator, dense_limit=0, rtol=1e-8)
    assert cold.value == pytest.approx(exact, rel=1e-7)
    assert cold.vector.shape == input_shape
    assert float(operator.forward(cold.vector[None]).norm()) == pytest.approx(exact, rel=1e-7)
    assert operator_norm(operator, cold.start, dense_limit=0).value == pytest.approx(exact, rel=1e-4)
    elsewhere = torch.zeros(input_shape)
    elsewhere[..., -1] = float(module.weight.dim() > 2)  # nothing at position 0 of a convolution's input
    elsewhere[(-1, *[0] * (len(input_shape) - 1))] = float(module.weight.dim() == 2)
    assert operator_norm(operator, elsewhere, dense_limit=0).value == pytest.approx(exact, rel=1e-4)


def test_padding_keeps_a_1x1_convolution_from_being_measured_on_one_position():
    module = nn.Conv2d(2, 2, 1, padding=1, padding_mode="replicate")
    assert layer_operator(module, (2, 3, 3)).core is None
    check(filled(module), (2, 3, 3))


@pytest.mark.parametrize(("inputs", "outputs"), [(30, 700), (700, 30), (40, 40)])
def test_the_dense_and_the_iterated_norm_agree(inputs, outputs):
    operator = layer_operator(nn.Linear(inputs, outputs).double(), (inputs,))
    dense, iterated = operator_norm(operator), operator_norm(operator, dense_limit=0, rtol=1e-8)
    assert dense.iterations == 0 < iterated.iterations
    assert dense.value == pytest.approx(iterated.value, rel=1e-7)
    assert torch.linalg.vector_norm(operator.forward(dense.vector[None])) == pytest.approx(dense.value, rel=1e-9)


def test_channels_last_weights_change_nothing_but_the_order_in_memory():
    module = filled(nn.Conv2d(6, 9, 3, padding=1, stride=2))
    plain = operator_norm(layer_operator(module, (6, 8, 7)), dense_limit=0)
    module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    operator = layer_operator(module, (6, 8, 7))
    assert operator.channels_last
    check(module, (6, 8, 7))
    cold = operator_norm(operator, dense_limit=0)
    assert cold.iterations == plain.iterations
    torch.testing.assert_close(cold.vector, plain.vector, rtol=1e-6, atol=1e-9)
    assert cold.vector.is_contiguous()
    # A start is in the input's shape and means the same in either layout.
    warm = operator_norm(operator, plain.start, dense_limit=0)
    assert warm.iterations < cold.iterations
    assert warm.value == pytest.approx(plain.value, rel=1e-7)
    assert float(operator.forward(warm.vector[None]).norm()) == pytest.approx(warm.value, rel=1e-10)


@pytest.mark.parametrize("share", [0.25, 0.4, 1.0])
def test_a_second_value_a_little_below_the_first_is_not_taken_for_it(share):
    values = torch.cat([torch.tensor([1.0, 1 - 1.5e-4]), torch.linspace(0, 0.95, 400)]).double()
    start = torch.zeros(402, dtype=torch.float64)
    start[:2] = torch.tensor([share, 1.0])
    estimate = operator_norm(diagonal(values), start, dense_limit=0)
    assert estimate.residual <= 1e-4 / 4
    assert estimate.value == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_the_scale_of_a_layer_does_not_matter(unit):
    values = unit * torch.linspace(0.1, 1, 400).double()
    estimate = operator_norm(diagonal(values), dense_limit=0)
    assert estimate.value / unit == pytest.approx(1, rel=1e-4)
    assert float(estimate.vector.norm()) == pytest.approx(1, rel=1e-12)
    assert operator_norm(diagonal(values), estimate.start, dense_limit=0).value / unit == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [0.0, 1e-6, 1e-4, 1e-2, 0.14, 0.9])
def test_a_few_singular_values_that_repeat_exhaust_the_krylov_space(dtype, low):
    # Past its end every vector is round-off: it must not grow.
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.linalg.qr(torch.randn(90, 90, generator=generator).double()).Q for _ in range(2))
        sigma = torch.full((90,), low, dtype=torch.float64)
        sigma[: 1 + seed] = 4.0
        layer = nn.Linear(90, 90, bias=False, dtype=dtype)
        layer.weight.data = (left * sigma @ right.mT).to(dtype)
        exact = float(torch.linalg.svdvals(layer.weight.detach().double())[0])
        for rtol in (1e-4, 1e-7):
            found = operator_norm(layer_operator(layer, (90,)), rtol=rtol, dense_limit=0)
            assert found.value == pytest.approx(exact, rel=3e-6)
