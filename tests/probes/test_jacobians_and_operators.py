"""Jacobian norms and linear operators against matrices that are written out."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_depth.callbacks import JacobianNorm, LinearOperator, OperatorNorm
from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import layer_operator
from tests.probes.foreign import Foreign, autoencoder, convnet, loaders, validated
from tests.probes.obvious import jacobians, ranks_and_norms, samples, with_targets


@pytest.mark.parametrize("split", ["train", "val"])
def test_jacobian_norms_are_those_of_autograd_matrices(split):
    module = convnet()
    found = validated(module, JacobianNorm(split=split, samples=5))
    x, _ = samples(split, 5)
    module.eval()
    exact = torch.stack([torch.linalg.svdvals(j)[0] for j in jacobians(module, x)]).detach()
    assert found["", "mean"] == pytest.approx(float(exact.mean()), rel=1e-5)
    assert found["", "max"] == pytest.approx(float(exact.max()), rel=1e-5)
    assert found["", "residual"] == 0  # written out


def test_jacobian_norms_of_named_layers():
    module = convnet()
    found = validated(module, JacobianNorm(layers=["model.0", "model.1.0"], samples=4, rtol=1e-4))
    assert {layer for layer, _ in found} == {"", "model.0", "model.1.0"}
    x, _ = samples("val", 4)
    module.eval()
    parts = {"model.0": module.model[0], "model.1.0": nn.Sequential(module.model[0], module.model[1][0])}
    for layer, part in parts.items():
        exact = torch.stack([torch.linalg.svdvals(j)[0] for j in jacobians(part, x)]).detach()
        assert found[layer, "mean"] == pytest.approx(float(exact.mean()), rel=1e-4)
        assert found[layer, "max"] == pytest.approx(float(exact.max()), rel=1e-4)
        assert 0 < found[layer, "residual"] <= 2e-4


def test_a_layers_output_is_read_before_the_network_changes_it_in_place():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 4)]
    module = Foreign(nn.Sequential(*layers))
    found = validated(module, JacobianNorm(layers=["model.0"], samples=2, rtol=1e-5))
    exact = operator_norm(layer_operator(layers[0], (3, 8, 8)), rtol=1e-5).value  # the ReLU would make it smaller
    assert found["model.0", "mean"] == pytest.approx(exact, rel=1e-4)
    assert found["model.0", "max"] == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "rtol"),
    [
        (lambda: JacobianNorm(layers=["model.0"], samples=4, rtol=1e-4), 1e-4),
        (lambda: OperatorNorm(layers=["model.0.0"], rtol=1e-5), 1e-5),
    ],
    ids=["JacobianNorm", "OperatorNorm"],
)
def test_starts_are_saved_and_shorten_the_next_look(make, rtol):
    def look(probe):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        module = Foreign(nn.Sequential(body, nn.Flatten(), nn.Linear(800, 4)))
        with FlopCounterMode(display=False) as counter:
            found = validated(module, probe, loaders(size=10))
        return {k: v for k, v in found.items() if k[1] not in ("seconds", "residual")}, counter.get_total_flops()

    first = make()
    cold, cold_cost = look(first)
    second = make()
    second.load_state_dict(torch_round_trip(first.state_dict()))
    warm, warm_cost = look(second)
    assert warm == pytest.approx(cold, rel=rtol)
    assert warm_cost < cold_cost
    assert look(make()) == (cold, cold_cost)  # the control: nothing else makes it short


def torch_round_trip(state):
    from io import BytesIO

    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def columns(network, shape):
    """The matrix of an affine network in float64, a column for each basis vector, and its offset."""
    network = copy.deepcopy(network).double().eval()
    n = math.prod(shape)
    with torch.no_grad():
        offset = network(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        fed = [network(e.view(1, *shape)).flatten() - offset for e in torch.eye(n, dtype=torch.float64)]
    return torch.stack(fed, dim=1).numpy(), offset.numpy()


def test_linear_operator_of_an_autoencoder_is_the_product_of_its_convolutions():
    module, probe = autoencoder(), LinearOperator(samples=20)
    batches = with_targets(lambda x, y: x)
    found = validated(module, probe, batches)
    matrix, offset = columns(module, (3, 8, 8))
    assert matrix.shape == (192, 192)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    expected = ranks_and_norms(sigma, sigma**2)
    assert found["", "norm"] == pytest.approx(sigma[0], rel=1e-5)
    for key in ("frobenius_norm", "stable_rank", "effective_rank"):
        assert found["", key] == pytest.approx(expected[key], rel=1e-5)
    x = samples("train", 20, batches)[0].flatten(1).double().numpy()
    best = (np.linalg.pinv(x) @ (x - offset)).T
    distance = np.linalg.norm(matrix - best) / np.linalg.norm(best)
    assert found["", "distance"] == pytest.approx(distance, rel=1e-5)
    [spectrum] = probe.pictures
    np.testing.assert_allclose(spectrum.values, sigma / sigma[0], atol=1e-5)


def linear():
    torch.manual_seed(0)
    return Foreign(nn.Sequential(nn.Flatten(), nn.Linear(192, 9, bias=False), nn.Linear(9, 4)))


def test_linear_operator_of_a_classifier_is_compared_with_one_hot_classes():
    module = linear()
    found = validated(module, LinearOperator())
    x, y = samples("train", 1000)
    assert len(x) == 48
    x, one_hot = x.flatten(1).double().numpy(), np.eye(4)[y]
    best = (np.linalg.pinv(x) @ (one_hot - module.model[2].bias.detach().double().numpy())).T
    matrix = (module.model[2].weight @ module.model[1].weight).detach().double().numpy()
    distance = np.linalg.norm(matrix - best) / np.linalg.norm(best)
    assert found["", "distance"] == pytest.approx(distance, rel=1e-5)


def test_no_distance_where_class_labels_are_not_what_the_network_returns():
    probe = LinearOperator()
    with pytest.warns(UserWarning, match=r"LinearOperator: no distance: the targets are not what the network returns"):
        found = validated(autoencoder(), probe)
    assert ("", "norm") in found
    assert ("", "distance") not in found
