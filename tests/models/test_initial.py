"""Initialisations and activations by name, against their definitions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_depth.measures.operators import frobenius_norm
from lightning_depth.models import MLP
from lightning_depth.models.activations import activation
from lightning_depth.models.initial import initialise
from tests.models.built import built


def moments(name, layer, index=1, **arguments):
    torch.manual_seed(0)
    initialise([nn.Linear(1, 1)] * index + [layer], name, **arguments)
    weight = layer.weight.detach().double()
    return float(weight.std(correction=0)), float(weight.abs().max()), float((weight**4).mean() / weight.var() ** 2)


# A linear layer and a convolution, each with n = 450 inputs, m = 200 and 1,800 outputs (the fan_out of torch).
LAYERS = [(lambda: nn.Linear(450, 200), 450, 200), (lambda: nn.Conv2d(50, 200, 3), 450, 1800)]


# Standard deviation by (n, m), and the kurtosis: 9/5 if uniform, 3 if normal.
SCALES = {
    "pytorch": (lambda n, m: 1 / math.sqrt(3 * n), 1.8),
    "glorot_uniform": (lambda n, m: math.sqrt(2 / (n + m)), 1.8),
    "glorot_normal": (lambda n, m: math.sqrt(2 / (n + m)), 3),
    "he_uniform": (lambda n, m: math.sqrt(2 / n), 1.8),
    "he_normal": (lambda n, m: math.sqrt(2 / n), 3),
    "uniform": (lambda n, m: 1 / math.sqrt(3), 1.8),
    "normal": (lambda n, m: 1.0, 3),
    "siren": (lambda n, m: math.sqrt(2 / n) / 30, 1.8),
    "ntk": (lambda n, m: math.sqrt(2 / n), 3),
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize(("make", "n", "m"), LAYERS, ids=["linear", "convolution"])
def test_weights_are_drawn_from_the_distribution_named(name, make, n, m):
    scale, kurtosis = SCALES[name]
    layer = make()
    std, largest, found = moments(name, layer, scale=0.5)
    assert std == pytest.approx(0.5 * scale(n, m), rel=0.01)
    assert found == pytest.approx(kurtosis, rel=0.03)
    if kurtosis < 2:
        assert largest <= 0.5 * math.sqrt(3) * scale(n, m) * (1 + 1e-6)
    biases = float(layer.bias.detach().std())
    expected = {"pytorch": 1 / math.sqrt(3 * n), "siren": 1 / math.sqrt(3 * n), "ntk": 0.1}.get(name, 0.0)
    assert biases == pytest.approx(expected, rel=0.25)


def test_first_layers_differ_under_siren_and_ntk():
    std, largest, _ = moments("siren", nn.Linear(450, 200), index=0)
    assert std == pytest.approx(1 / 450 / math.sqrt(3), rel=0.01)
    assert largest <= 1 / 450
    assert moments("ntk", nn.Linear(450, 200), index=0)[0] == pytest.approx(math.sqrt(1 / 450), rel=0.01)


def test_pytorch_leaves_what_torch_draws():
    torch.manual_seed(0)
    expected = nn.Linear(4, 3)
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    initialise([layer], "pytorch")
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.bias, expected.bias)


# mori2020 Eqs. 12 to 14, with Sigma-dot^(L+1) = 1.
def ntk(x, y, depth, beta):
    sigma = {pair: float(a @ b) / len(x) + beta**2 for pair, (a, b) in {"xy": (x, y), "x": (x, x), "y": (y, y)}.items()}
    kernel = sigma["xy"]
    for _ in range(depth):
        length = math.sqrt(sigma["x"] * sigma["y"])
        angle = math.acos(min(1.0, sigma["xy"] / length))
        derivative = (math.pi - angle) / math.pi
        product = length / math.pi * (math.sin(angle) + (math.pi - angle) * math.cos(angle))
        sigma = {"xy": product + beta**2, "x": sigma["x"] + beta**2, "y": sigma["y"] + beta**2}
        kernel = kernel * derivative + sigma["xy"]
    return kernel, sigma


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_gradients_of_wide_networks_have_the_products_of_the_ntk(depth):
    beta, outputs = 0.5, 2
    model = built(
        MLP, shape=(6,), depth=depth, width=1500, initial="ntk", beta=beta, target_shape=(outputs,), channels_last=False
    )
    points = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    gradients = []
    for point in points:
        out = model(point[None])[0]
        for i in range(outputs):
            grads = torch.autograd.grad(out[i], list(model.net.parameters()), retain_graph=True)
            gradients.append(torch.cat([g.flatten() for g in grads]).double())
    found = torch.stack(gradients) @ torch.stack(gradients).mT
    expected = [[ntk(a, b, depth, beta)[0] for b in points] for a in points]
    same = torch.kron(torch.tensor(expected, dtype=torch.float64), torch.eye(outputs, dtype=torch.float64))
    # Eq. 10: the identity in the outputs; 1500 wide, entries fluctuate by a few per cent.
    torch.testing.assert_close(found, same, rtol=0.1, atol=0.1 * float(same.max()))


def test_outputs_of_random_networks_under_ntk_have_the_covariance_of_equation_12():
    points = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    model = built(MLP, shape=(6,), depth=2, width=100, initial="ntk", beta=0.5, num_classes=20_000)
    with torch.no_grad():
        x, y = model(points).double()  # the 20,000 outputs share hidden layers of finite width
    _, sigma = ntk(*points, 2, 0.5)
    assert float((x * y).mean()) == pytest.approx(sigma["xy"], rel=0.25)
    assert float((x * x).mean()) == pytest.approx(sigma["x"], rel=0.25)


def test_what_ntk_trains_is_not_what_the_layer_applies():
    model = built(MLP, shape=(8,), depth=1, width=4, initial="ntk", beta=0.1)
    layer = model.net.layer1
    torch.testing.assert_close(layer.weight, layer.parametrizations.weight.original / math.sqrt(8))
    torch.testing.assert_close(layer.bias, 0.1 * layer.parametrizations.bias.original)
    assert float(frobenius_norm(layer, (8,))) == pytest.approx(float(layer.weight.detach().norm()), rel=1e-5)
    assert built(MLP, shape=(8,), initial="ntk", beta=0.0, width=4).net.layer1.bias is None


def test_sines_start_as_in_siren():
    model = built(MLP, shape=(2,), depth=3, width=512, activation="sine", omega_0=30.0)
    x = 2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) - 1
    # Sitzmann et al. 2020, Theorem 1.8: without biases the arguments of the sines are standard normal, sines arcsine.
    sines = model.net[:5](x)
    assert float((30 * sines @ model.net.layer3.weight.mT).detach().std()) == pytest.approx(1, rel=0.1)
    assert float(sines.detach().std()) == pytest.approx(math.sqrt(0.5), rel=0.05)
    assert MLP(activation="sine", initial="he_normal").initial == "he_normal"


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", F.relu),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("tanh", torch.tanh),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        ("sine", lambda x: torch.sin(30 * x)),
        ("identity", lambda x: x),
    ],
)
def test_activations_are_those_of_their_names(name, function):
    x = torch.linspace(-2, 2, 50)
    torch.testing.assert_close(activation(name)(x), function(x))
