"""Networks without activations: products, residual and Toeplitz layers."""

import math

import pytest
import torch
from torch import nn

from lightning_depth.measures.linear_networks import linear_operator
from lightning_depth.models import MLP, ConvNet, DeepLinear
from lightning_depth.models.deep_linear import LinearBlock, Toeplitz
from lightning_depth.models.shapes import Shapes
from tests.models.built import built, count

LINEAR = {
    "mlp": (MLP, (1, 4, 4), {"depth": 2, "width": 9, "activation": "identity"}),
    "convolutions": (ConvNet, (2, 5, 5), {"depth": 3, "channels": 4, "kernel_size": 3, "output": "classes"}),
    "circular": (
        ConvNet,
        (2, 5, 5),
        {"depth": 3, "channels": 4, "kernel_size": 3, "output": "classes", "padding_mode": "circular"},
    ),
    "product": (DeepLinear, (6,), {"depth": 4}),
    "residual": (DeepLinear, (6,), {"depth": 4, "residual": True, "batch_norm": True}),
    "toeplitz": (DeepLinear, (5,), {"depth": 3, "layer": "toeplitz", "num_classes": 5}),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_networks_are_linear(kind):
    family, shape, arguments = LINEAR[kind]
    if family is ConvNet:
        arguments = {**arguments, "activation": "identity"}
    model = built(family, shape=shape, **arguments).double().eval()
    matrix, offset = linear_operator(model, shape)
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.flatten(1) @ matrix.mT + offset, model(x))
    if kind in ("product", "toeplitz"):
        expected = torch.linalg.multi_dot([layer.weight for layer in reversed(model.net[1:])])
        torch.testing.assert_close(matrix, expected)


def test_a_network_with_an_activation_is_not_linear():
    with pytest.raises(ValueError, match="not linear"):
        linear_operator(built(ConvNet, shape=(1, 5, 5), depth=2, channels=4, output="classes"), (1, 5, 5))


def test_toeplitz_matrices_are_constant_along_diagonals_in_training_too():
    model = built(DeepLinear, shape=(5,), depth=3, layer="toeplitz", width=7, num_classes=6, initial="normal")
    assert count(model) == (7 + 5 - 1) + (7 + 7 - 1) + (6 + 7 - 1)
    step = torch.optim.SGD(model.net.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(7, 5)).square().mean().backward()
        step.step()
    for layer in model.net[1:]:
        assert torch.equal(layer.weight[1:, 1:], layer.weight[:-1, :-1])
        assert layer.weight.unique().numel() == sum(layer.weight.shape) - 1
    t = torch.arange(6.0)
    expected = torch.tensor([[2.0, 1.0, 0.0], [3.0, 2.0, 1.0], [4.0, 3.0, 2.0], [5.0, 4.0, 3.0]])
    assert torch.equal(Toeplitz(3)(t), expected)
    assert torch.equal(Toeplitz(3).right_inverse(expected), t)


def test_a_toeplitz_layer_takes_the_ntk_parameterisation():
    model = built(DeepLinear, shape=(5,), depth=2, layer="toeplitz", num_classes=5, initial="ntk")
    second = model.net.head
    coefficients = second.parametrizations.weight.original
    torch.testing.assert_close(second.weight, Toeplitz(5)(coefficients) * math.sqrt(2 / 5))


def test_a_residual_product_is_one_of_matrices_plus_the_identity():
    model = built(DeepLinear, shape=(6,), depth=3, residual=True)
    one, two, three = model.net.layer1.linear.weight, model.net.layer2.linear.weight, model.net.head.weight
    identity = torch.eye(6)
    matrix, _ = linear_operator(model.double(), (6,))
    torch.testing.assert_close(matrix, three @ (two + identity) @ (one + identity), check_dtype=False)  # 6 -> 10


def test_batch_norm_stands_within_the_residual_branch():
    model = built(DeepLinear, shape=(6,), depth=3, residual=True, batch_norm=True, num_classes=6)
    block, head = model.net.layer2, model.net.head
    x = torch.randn(50, 6)
    branch = block(x) - x
    torch.testing.assert_close(branch.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    assert isinstance(head, LinearBlock)
    assert isinstance(head.bn, nn.Identity)


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_a_shallow_network_may_start_as_a_deep_one(depth):
    arguments = {"shape": (12,), "width": 12, "num_classes": 12, "initial": "normal", "initial_scale": 0.3}
    model = built(DeepLinear, depth=depth, initial_depth=8, **arguments)
    assert count(model) == depth * 144

    def spectra(products):
        values = torch.linalg.svdvals(torch.stack(products).double())
        return values.square().sum(dim=-1).log(), (values[:, 0] / values[:, 1]).log()

    torch.manual_seed(0)
    family = DeepLinear(depth=depth, width=12, initial="normal", initial_scale=0.3, initial_depth=8)
    nets = [family.build(Shapes((12,), 12)) for _ in range(300)]
    found = spectra(
        [torch.linalg.multi_dot([torch.eye(12), *[w.detach() for w in list(net.parameters())[::-1]]]) for net in nets]
    )
    expected = spectra([torch.linalg.multi_dot(list(0.3 * torch.randn(8, 12, 12))) for _ in range(3000)])
    for drawn, wanted in zip(found, expected, strict=True):
        error = float(wanted.std()) / math.sqrt(300)
        assert float(drawn.mean()) == pytest.approx(float(wanted.mean()), abs=4 * error)
        assert float(drawn.std()) == pytest.approx(float(wanted.std()), rel=0.2)


def test_narrow_products_say_that_their_rank_is_limited():
    with pytest.warns(UserWarning, match="limits the rank"):
        built(DeepLinear, shape=(12,), width=5, depth=2)
