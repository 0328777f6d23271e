"""A dead network has exact answers, or a message that says what is not defined."""

import math

import pytest
from torch import nn

from lightning_depth.callbacks import (
    ActivationImages,
    EffectiveRank,
    FeatureSimilarity,
    IdentityConstant,
    JacobianNorm,
    LinearOperator,
    LocalStability,
    NeuralCollapse,
    OperatorNorm,
    RepresentationCollapse,
    Spectrum,
    WeightDistance,
)
from tests.probes.foreign import Foreign, autoencoder, convnet, validated
from tests.probes.looks import fitted, said


def dead(module):
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def test_a_dead_network_has_exact_answers():
    def read(probe, network=convnet):
        return {key: value for key, value in validated(dead(network()), probe).items() if key[1] != "seconds"}

    assert set(read(OperatorNorm()).values()) == {0}
    assert read(EffectiveRank()) == {("model.3", "effective_rank"): -math.inf}
    for found in (read(Spectrum()), read(Spectrum(of="gram")), read(Spectrum(of="gram", kernel="linear"))):
        assert all(value == (-math.inf if key == "effective_rank" else 0) for (_, key), value in found.items())
    collapse = read(RepresentationCollapse(nearest_mean=True, neighbours=3))
    for (layer, key), value in collapse.items():
        if layer != "input":  # the error of guessing among four, or among equals as near
            assert value == pytest.approx(0.75), (layer, key)
    assert set(read(JacobianNorm(samples=4)).values()) == {0}
    similar = read(FeatureSimilarity(samples=12))
    assert all(value == (1 if layer == "input" else 0) for (layer, _), value in similar.items())
    assert set(read(LocalStability(samples=2, strengths=[1.0])).values()) == {1}
    images = read(ActivationImages(samples=2))
    assert {value for (layer, _), value in images.items() if layer != "input"} == {0}
    operator = read(LinearOperator(), network=lambda: Foreign(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))))
    assert operator == {
        ("", "norm"): 0,
        ("", "frobenius_norm"): 0,
        ("", "stable_rank"): 0,
        ("", "effective_rank"): -math.inf,
        ("", "distance"): 1,  # ||0 - A*|| / ||A*||
    }
    maps = read(IdentityConstant(correlations=[0.5], draws=2), network=autoencoder)
    assert maps["", "identity", 0.5] == maps["", "constant", 0.5] == 0


def test_a_dead_network_has_no_neural_collapse_but_its_decisions():
    found, messages = said(validated, dead(convnet()), NeuralCollapse())
    assert {key: value for (layer, key), value in found.items() if layer} == {"nc4_held_out": 0.75}
    for key in ("nc1", "nc2_equinorm", "nc2_equiangularity", "nc2_maximal_angle", "nc3", "cdnv"):
        [message] = [m for m in messages if f"no {key} at model.3: it is not defined" in m]
        assert message.startswith("NeuralCollapse: ")


def test_tensors_that_start_at_zero_have_no_distance():
    found, messages = said(fitted, dead(convnet()), WeightDistance())
    assert set(found) == {("", "seconds")}
    assert "WeightDistance: model.0.0.weight and 7 more start at zero: no relative distance." in messages
