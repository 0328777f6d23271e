import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_depth.measures.chains import chain_operator, lipschitz_bound
from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import UnsupportedLayer, dense_matrix, layer_operator


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(*modules: nn.Module) -> nn.Sequential:
    """Random weights and statistics, in eval mode."""
    network = nn.Sequential(*modules).double()
    for i, parameter in enumerate(network.parameters()):
        parameter.data = random(*parameter.shape, seed=i)
    for i, (name, buffer) in enumerate(network.named_buffers()):
        if "running" in name:
            buffer.copy_(random(*buffer.shape, seed=100 + i).abs() + 0.1)
    return network.eval()


def check(network: nn.Sequential, input_shape: tuple[int, ...]) -> None:
    operator = chain_operator(network, input_shape)
    x = random(1, *input_shape, seed=7)
    assert operator.output_shape == network(x).shape[1:]
    expected = torch.func.jacrev(network)(x).detach().reshape(math.prod(operator.output_shape), -1)
    torch.testing.assert_close(dense_matrix(operator), expected, rtol=1e-11, atol=1e-10)
    x, y = random(2, *input_shape, seed=8), random(2, *operator.output_shape, seed=9)
    torch.testing.assert_close((operator.forward(x) * y).sum(), (x * operator.transpose(y)).sum(), rtol=1e-9, atol=1e-9)
    exact = float(torch.linalg.matrix_norm(expected, 2))
    assert operator_norm(operator).value == pytest.approx(exact, rel=1e-9)
    assert operator_norm(operator, dense_limit=0, rtol=1e-7).value == pytest.approx(exact, rel=1e-6)


@settings(max_examples=20, deadline=None)
@example(dims=2, stride=2, padding=1, kernel=1, affine=False, pool=None)  # two singular values, repeated
@given(
    dims=st.integers(1, 2), stride=st.integers(1, 2), padding=st.integers(0, 2), kernel=st.integers(1, 3),
    affine=st.booleans(), pool=st.sampled_from([None, "average", "adaptive"]),
)  # fmt: skip
def test_convolutions_with_batch_norm_against_the_dense_matrix(
    dims: int, stride: int, padding: int, kernel: int, affine: bool, pool: str | None
) -> None:
    convolution, norm, average, adaptive = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d),
        2: (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    }[dims]
    pools = {None: nn.Identity(), "average": average(2, 1, 1), "adaptive": adaptive(2)}
    network = filled(
        norm(2),
        convolution(2, 3, kernel, stride=stride, padding=padding),
        nn.Sequential(norm(3, affine=affine), nn.Dropout(0.5)),
        pools[pool],
    )
    check(network, (2, *[5, 6][:dims]))


@pytest.mark.parametrize(
    ("network", "input_shape"),
    [
        (filled(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 5)), (4,)),
        (filled(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), (1, 5, 5)),
        (filled(nn.Flatten(2), nn.Linear(6, 2), nn.BatchNorm1d(3)), (3, 2, 3)),
        (filled(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.AvgPool3d(2)), (1, 4, 3, 3)),
        (filled(nn.ConvTranspose2d(2, 1, 2, stride=2), nn.AvgPool2d(3, ceil_mode=True)), (2, 2, 2)),
    ],
)
def test_other_chains_against_the_dense_matrix(network: nn.Sequential, input_shape: tuple[int, ...]) -> None:
    check(network, input_shape)


def test_folding_batch_norm_changes_the_norm() -> None:
    convolution, norm = filled(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = nn.Conv2d(2, 3, 3).double()
    folded.weight.data = convolution.weight.data * scale.detach()[:, None, None, None]
    value = operator_norm(chain_operator([convolution, norm], (2, 6, 6))).value
    assert value == pytest.approx(operator_norm(layer_operator(folded, (2, 6, 6))).value, rel=1e-9)
    assert abs(value / operator_norm(layer_operator(convolution, (2, 6, 6))).value - 1) > 0.1


def test_weights_are_read_once_and_hooks_and_grad_mode_are_left_alone() -> None:
    network = filled(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Flatten())
    calls: list[str] = []
    network[2].register_forward_hook(lambda *_: calls.append("hook"))
    operator = chain_operator(network, (4,))
    with torch.inference_mode():
        before = operator_norm(operator, dense_limit=0).value
    network[1].running_var.mul_(4)
    assert operator_norm(operator, dense_limit=0).value == before
    assert not calls
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_empty_chain_is_the_identity() -> None:
    assert operator_norm(chain_operator([], (2, 3))).value == pytest.approx(1, rel=1e-12)


class Doubled(nn.AvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), "ReLU"),
        (nn.MaxPool2d(2), "MaxPool2d"),
        (nn.GroupNorm(1, 2), "GroupNorm"),
        (Doubled(2), "Doubled"),
        (nn.Dropout(0.5), "Dropout in train mode"),
        (nn.BatchNorm2d(2), "BatchNorm2d in train mode"),
        (nn.BatchNorm2d(2, track_running_stats=False).eval(), "without running statistics"),
        (nn.Flatten(0), "mixes the samples"),
        (nn.Sequential(nn.Identity(), nn.Sigmoid()), "Sigmoid"),
    ],
)
def test_what_is_no_fixed_linear_map_is_refused_by_name(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedLayer, match=message):
        chain_operator([nn.Conv2d(2, 2, 3), module], (2, 6, 6))


def test_shapes_dtypes_and_values_that_are_refused() -> None:
    with pytest.raises(ValueError, match="BatchNorm2d takes"):
        chain_operator([nn.BatchNorm2d(3).eval()], (2, 4, 4))
    with pytest.raises(ValueError, match="BatchNorm1d takes"):
        chain_operator([nn.BatchNorm1d(2).eval()], (2, 4, 4))
    with pytest.raises(ValueError, match="AvgPool2d does not take"):
        chain_operator([nn.AvgPool2d(5)], (2, 4, 4))
    with pytest.raises(ValueError, match="different dtypes"):
        chain_operator([nn.Linear(3, 3), nn.Linear(3, 3).double()], (3,))
    norm = nn.BatchNorm2d(2).eval()
    norm.running_var[0] = math.nan
    with pytest.raises(ValueError, match="scale of BatchNorm2d is not finite"):
        chain_operator([norm], (2, 4, 4))


@pytest.mark.parametrize("seed", range(3))
def test_the_product_of_norms_bounds_the_chain(seed: int) -> None:
    layers = [nn.Linear(6, 6, bias=False).double() for _ in range(4)]
    for i, layer in enumerate(layers):
        layer.weight.data = random(6, 6, seed=10 * seed + i)
    operators = [layer_operator(layer, (6,)) for layer in layers]
    exact = operator_norm(chain_operator(layers, (6,))).value
    bound = lipschitz_bound(operators)
    assert bound > 1.1 * exact
    assert bound == pytest.approx(lipschitz_bound([operator_norm(operator).value for operator in operators]))
    # Equality for multiples of orthogonal layers.
    for layer in layers:
        layer.weight.data = 2 * torch.linalg.qr(layer.weight.data).Q
    bound = lipschitz_bound(layer_operator(layer, (6,)) for layer in layers)
    assert bound == pytest.approx(16, rel=1e-9)
    assert operator_norm(chain_operator(layers, (6,))).value == pytest.approx(16, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_norms_that_are_none_raise(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        lipschitz_bound([1.0, bad])
    assert lipschitz_bound([]) == 1
