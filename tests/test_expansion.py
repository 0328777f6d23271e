import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_depth.errors import UserError
from lightning_depth.layers.expansion import ExpandedLayer, collapse, expand
from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import layer_operator
from tests.oracles import in_sequence

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear, wide": (lambda: nn.Linear(5, 9, bias=False), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 5, stride=2, padding=3, dilation=2), (4, 19)),
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8)),
    "fewer outputs": (lambda: nn.Conv2d(8, 3, 3, padding=1, bias=False), (8, 6, 6)),
    "same": (lambda: nn.Conv2d(3, 4, (4, 3), padding="same"), (3, 7, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 7, 7)),
    "strided 1x1": (lambda: nn.Conv2d(4, 8, 1, stride=2, bias=False), (4, 7, 7)),
    **{
        mode: (
            lambda mode=mode: nn.Conv2d(
                4, 6, (3, 5), stride=(2, 1), padding=(2, 3), dilation=(2, 1), groups=2, padding_mode=mode
            ),
            (4, 11, 9),
        )
        for mode in ("zeros", "circular", "reflect", "replicate")
    },
}


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(0)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_the_initial_function_is_kept_and_collapsing_gives_the_layer_back(name, factor):
    make, shape = LAYERS[name]
    plain, x = make(), torch.randn(2, *shape)
    expanded = expand(plain, factor, keep="function")
    torch.testing.assert_close(expanded(x), plain(x), atol=1e-5, rtol=0)
    again = collapse(expanded)
    assert type(again) is type(plain)
    assert list(again.state_dict()) == list(plain.state_dict())
    assert [p.shape for p in again.parameters()] == [p.shape for p in plain.parameters()]
    torch.testing.assert_close(again(x), plain(x), atol=1e-5, rtol=0)


# huh2021 runs the factors one after the other: padding in the first one alone makes that the same at the borders.
@pytest.mark.parametrize(("residual", "keep"), [(False, "variance"), (True, "class")])
@pytest.mark.parametrize("name", LAYERS)
def test_factors_in_sequence_are_the_layer_and_its_collapse_also_at_the_borders(name, residual, keep):
    make, shape = LAYERS[name]
    expanded, x = expand(make(), 3, keep=keep, residual=residual), torch.randn(2, *shape)
    with torch.no_grad():
        for parameter in expanded.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # it has been trained
    outputs = in_sequence(expanded)(x)
    torch.testing.assert_close(expanded(x), outputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(collapse(expanded)(x), outputs, atol=1e-5, rtol=1e-5)


def test_padding_in_every_factor_would_not_be_the_layer():
    # The control: with padding 1 in a last 1x1 factor the borders differ, and the size too.
    layers = in_sequence(expand(nn.Conv2d(2, 3, 3, padding=1), 2))
    layers[1].padding = (1, 1)
    assert layers(torch.zeros(1, 2, 5, 5)).shape != (1, 3, 5, 5)


@pytest.mark.parametrize("name", ["linear", "linear, wide", "zeros", "reflect"])
def test_gradients_are_those_of_the_sequence(name):
    make, shape = LAYERS[name]
    expanded, x = expand(make(), 3), torch.randn(2, *shape)
    sequence = in_sequence(expanded)
    expanded(x).square().sum().backward()
    sequence(x).square().sum().backward()
    for i, layer in enumerate(sequence):
        torch.testing.assert_close(getattr(expanded, f"weight_{i + 1}").grad, layer.weight.grad, atol=1e-4, rtol=1e-4)
    if expanded.bias is not None:
        torch.testing.assert_close(expanded.bias.grad, sequence[-1].bias.grad, atol=1e-4, rtol=1e-4)


def test_linear_layers_do_the_same_either_way_round():
    expanded = expand(nn.Linear(6, 40), 4)
    x = torch.randn(500, 6)
    rows = torch.cat([expanded(row[None]) for row in x])  # one row: a sequence; 500: the product first
    torch.testing.assert_close(expanded(x), rows, atol=1e-5, rtol=1e-5)


# huh2021 Eq. 19 and 21, the effective step of the product of the factors, for L = 1/2 |y - W_e x|^2.
@pytest.mark.parametrize("depth", [2, 4])
def test_a_step_of_gradient_descent_is_that_of_the_papers_product_rule(depth):
    layer = expand(nn.Linear(4, 3, bias=False).double(), depth, width=5)
    x, y, rate = torch.randn(4, 10).double(), torch.randn(3, 10).double(), 0.05
    before = [w.detach().clone() for w in layer.factors()]
    effective = layer.weight.detach().clone()
    gradient = effective @ x @ x.T - y @ x.T
    (0.5 * (layer(x.T).T - y).square().sum()).backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= rate * parameter.grad
    first_order, stepped = torch.zeros_like(effective), torch.eye(4).double()
    for i, weight in enumerate(before):
        left, right = torch.eye(3).double(), torch.eye(4).double()
        for later in reversed(before[i + 1 :]):
            left = left @ later
        for earlier in before[:i]:
            right = earlier @ right
        # W_i <- W_i - eta (W_d ... W_{i+1})^T grad (W_{i-1} ... W_1)^T
        stepped = (weight - rate * left.T @ gradient @ right.T) @ stepped
        first_order += left @ left.T @ gradient @ right.T @ right
    torch.testing.assert_close(layer.weight.detach(), stepped)
    if depth == 2:
        # Eq. 19: W_e - eta (W2 W2^T grad + grad W1^T W1) + eta^2 grad W_e^T grad
        second_order = gradient @ effective.T @ gradient
        torch.testing.assert_close(layer.weight.detach(), effective - rate * first_order + rate**2 * second_order)
        assert not torch.allclose(layer.weight.detach(), effective - rate * first_order)  # the control


@pytest.mark.parametrize("name", ["linear", "conv", "zeros", "depthwise"])
def test_variance_keeps_the_mean_square_of_the_outputs(name):
    make, shape = LAYERS[name]
    plain = make()
    plain.bias.data.zero_()
    x = torch.randn(100, *shape)
    draws = torch.stack([expand(plain, 4)(x).detach().square().mean() for _ in range(150)])
    assert float(draws.mean()) == pytest.approx(float(plain(x).detach().square().mean()), rel=0.25)
    # The control: torch's own initial weights, of variance 1 / (3 inputs), shrink it 3 times for each factor.
    own = torch.stack([expand(plain, 4, keep="class")(x).detach().square().mean() for _ in range(30)])
    assert float(own.mean()) < 0.2 * float(plain(x).detach().square().mean())


def test_shapes_and_widths_are_those_of_appendix_b():
    def shapes(layer, *arguments, **options):
        return [tuple(p.shape) for n, p in expand(layer, *arguments, **options).named_parameters() if n != "bias"]

    assert shapes(nn.Linear(5, 9), 3) == [(5, 5), (5, 5), (9, 5)]
    assert shapes(nn.Linear(5, 9), 2, width="2n") == [(10, 5), (9, 10)]
    conv = nn.Conv2d(64, 64, 3)
    assert shapes(conv, 3) == [(64, 64, 3, 3), (64, 64, 1, 1), (64, 64, 1, 1)]
    first = nn.Conv2d(3, 64, 3)  # of rank 27: the paper's h = n would make it 3
    assert shapes(first, 2) == [(27, 3, 3, 3), (64, 27, 1, 1)]
    narrow = expand(first, 2, width="n", allow_bottleneck=True)
    assert [tuple(p.shape) for p in narrow.parameters()][1:] == [(3, 3, 3, 3), (64, 3, 1, 1)]
    assert int(torch.linalg.matrix_rank(narrow.weight.flatten(1))) == 3
    assert int(torch.linalg.matrix_rank(expand(first, 2).weight.flatten(1))) == 27
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    assert shapes(grouped, 3) == [(6, 2, 3, 3), (6, 3, 1, 1), (6, 3, 1, 1)]


def test_residual_factors_have_the_identity_added():
    plain = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    expanded = expand(plain, 3, residual=True, keep="class")
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for parameter in expanded.parameters():
            parameter.zero_()
    torch.testing.assert_close(expanded(x), x)  # (0 + I)(0 + I)(0 + I)
    kept = expand(plain, 3, residual=True, keep="function")
    torch.testing.assert_close(kept(x), plain(x), atol=1e-5, rtol=0)
    narrowing = expand(nn.Linear(4, 2, bias=False), 2, residual=True, keep="class")
    torch.testing.assert_close(
        narrowing.weight, narrowing.weight_2 @ (narrowing.weight_1 + torch.eye(4))
    )  # the last factor is not square


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def test_a_whole_network_is_expanded_by_kind_and_the_given_one_stays():
    net, x = network().eval(), torch.randn(2, 3, 4, 4)
    before = copy.deepcopy(net.state_dict())
    for which in (["linear"], ["conv"], ["linear", "conv"]):
        expanded = expand(net, 2, which=which, keep="function")
        kinds = {"conv": expanded[0], "linear": expanded[4]}
        assert {kind for kind, layer in kinds.items() if isinstance(layer, ExpandedLayer)} == set(which)
        torch.testing.assert_close(expanded(x), net(x), atol=1e-5, rtol=0)
        again = collapse(expanded)
        assert list(again.state_dict()) == list(before)
        assert [n for n, _ in again.named_parameters()] == [n for n, _ in net.named_parameters()]
        assert isinstance(expanded[0 if "conv" in which else 4], ExpandedLayer)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(isinstance(m, ExpandedLayer) for m in expand(net, 1).modules())


def test_frozen_layers_stay_frozen_and_a_trained_network_collapses():
    net = network()
    net[0].requires_grad_(False)
    expanded = expand(net, 3)
    assert {n for n, p in expanded.named_parameters() if not p.requires_grad} == {
        "0.bias", "0.weight_1", "0.weight_2", "0.weight_3"
    }  # fmt: skip
    optimizer = torch.optim.SGD([p for p in expanded.parameters() if p.requires_grad], lr=0.1)
    x, y = torch.randn(16, 3, 4, 4), torch.randint(5, (16,))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(expanded(x), y))
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1]) < 0.7 * float(losses[0])
    collapsed = collapse(expanded)
    assert not collapsed[0].weight.requires_grad
    assert collapsed[4].weight.requires_grad
    torch.testing.assert_close(collapsed.eval()(x), expanded.eval()(x), atol=1e-5, rtol=1e-5)
    reloaded = expand(network(), 3)
    reloaded.load_state_dict(expanded.state_dict())
    torch.testing.assert_close(reloaded.eval()(x), expanded.eval()(x))


def test_measures_see_the_effective_weight():
    expanded = expand(nn.Conv2d(3, 4, 3, padding=1), 3)
    norms = [float(operator_norm(layer_operator(m, (3, 6, 6))).value) for m in (expanded, collapse(expanded))]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_channels_last_network_is_the_same():
    expanded = expand(network(), 3)
    x = torch.randn(2, 3, 4, 4)
    outputs = expanded(x)
    expanded.to(memory_format=torch.channels_last)
    torch.testing.assert_close(expanded(x.contiguous(memory_format=torch.channels_last)), outputs)


class Own(nn.Linear):
    pass


def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("net", "options", "said"),
    [
        (nn.Linear(3, 3), {"factor": 0}, "at least 1"),
        (nn.Linear(8, 6), {"factor": 2, "width": 5}, "rank bottleneck.*\n.*at least 6"),
        (nn.Conv2d(3, 64, 3), {"factor": 2, "width": "n"}, "weight is 64 x 27"),
        (nn.Conv2d(4, 4, 3, groups=2), {"factor": 2, "width": 3}, "multiple of its 2"),
        (nn.Linear(3, 3), {"factor": 2, "width": "n2"}, "such as 2n"),
        (nn.Linear(3, 3), {"factor": 2, "width": 0}, "positive"),
        (nn.Linear(3, 3), {"factor": 2, "which": ["conv"]}, "no plain conv layer"),
        (nn.Linear(3, 3), {"factor": 2, "which": []}, "list of linear and conv"),
        (nn.Linear(3, 3), {"factor": 2, "residual": True}, "cannot keep the variance"),
        (nn.Linear(8, 6), {"factor": 2, "width": 5, "allow_bottleneck": True, "keep": "function"}, "cannot keep the"),
        (tied(), {"factor": 2}, "share a weight"),
        (expand(nn.Linear(3, 3), 2), {"factor": 2}, "expanded already"),
    ],
)
def test_user_errors_are_named(net, options, said):
    with pytest.raises(UserError, match=said):
        expand(net, **options)


def test_layers_of_another_class_are_named():
    with pytest.warns(UserWarning, match=r"1 \(Own\)"):
        expanded = expand(nn.Sequential(nn.Linear(3, 3), Own(3, 3)), 2)
    assert [isinstance(m, ExpandedLayer) for m in expanded] == [True, False]


def test_every_pair_of_options_collapses():
    x = torch.randn(2, 4, 5, 5)
    for keep, residual, bias in itertools.product(("class", "function", "variance"), (False, True), (False, True)):
        if not (residual and keep == "variance"):
            expanded = expand(nn.Conv2d(4, 4, 3, padding=1, bias=bias), 2, keep=keep, residual=residual)
            torch.testing.assert_close(collapse(expanded)(x), expanded(x), atol=1e-5, rtol=1e-5)
