"""What every file on the shelf is held to, also those that will be added: a probe leaves no trace."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

import callbacks as shelf
from lightning_depth.probes import AbstractProbe
from tests.probes.foreign import autoencoder, convnet, loaders, mlp, resnet18, trainer, vit

PROBES = [v for v in vars(shelf).values() if isinstance(v, type) and issubclass(v, AbstractProbe)]
NETWORKS = {
    "mlp": mlp,
    "convnet": convnet,
    "torchvision's resnet18": resnet18,
    "torchvision's vit": vit,
    "autoencoder": autoencoder,
}
SMALL = ["mlp", "convnet", "torchvision's vit", "autoencoder"]
# Arguments that make a look short; every other probe is made without any.
ARGUMENTS = {
    "LocalStability": {"every": 1, "samples": 2, "strengths": [1.0]},
    "JacobianNorm": {"samples": 4},
    "FeatureSimilarity": {"samples": 12},
    "ActivationImages": {"every": 1},
}
# Which networks a probe has nothing to read of, and must say so; each reads something of at least one.
UNSUITED = {
    "IdentityConstant": {"mlp", "convnet", "torchvision's resnet18", "torchvision's vit"},
    "LinearOperator": {"mlp", "convnet", "torchvision's resnet18", "torchvision's vit"},
    "LocalStability": {"autoencoder"},
    "NeuralCollapse": {"autoencoder"},
}


def make(probe, **arguments):
    return probe(**{**ARGUMENTS.get(probe.__name__, {}), **arguments})


def test_the_shelf_is_found():
    shelf = "OperatorNorm EffectiveRank RepresentationCollapse Spectrum JacobianNorm LinearOperator NeuralCollapse"
    shelf += " IdentityConstant WeightDistance FeatureSimilarity LocalStability ActivationImages"
    assert {p.__name__ for p in PROBES} >= set(shelf.split())


class Witness(Callback):
    """Notes everything that a probe could disturb, after each training step and each validation."""

    def __init__(self):
        self.seen = []

    def note(self, module):
        self.seen.append(
            {
                "rng": torch.random.get_rng_state().clone(),
                "numpy": np.random.get_state()[1].copy(),
                "python": random.getstate(),
                "modes": [m.training for m in module.modules()],
                "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()],
                "requires_grad": [p.requires_grad for p in module.parameters()],
                "state": {k: v.detach().clone() for k, v in module.state_dict().items()},
                "grads": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
            }
        )

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.note(pl_module)

    def on_validation_end(self, trainer, pl_module):
        self.note(pl_module)


def history(network, *probes):
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    module, witness = NETWORKS[network](), Witness()
    torch.manual_seed(8)
    epochs = 2 if network in SMALL else 1
    trainer([*probes, witness], max_epochs=epochs).fit(module, *loaders(train=48 if network in SMALL else 32))
    return witness.seen


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture(scope="module")
def without():
    return {name: history(name) for name in NETWORKS}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_a_probe_leaves_no_trace(probe, network, without):
    made = probe()
    seen = history(network, made)
    assert len(seen) == len(without[network]) > 0
    for step, (a, b) in enumerate(zip(without[network], seen, strict=True)):
        for key in a:
            assert equal(a[key], b[key]), f"{probe.__name__} disturbed {key} by note {step}"
    assert any(r.layer for r in made.readings), "a probe that read nothing proves nothing"


class Careless(AbstractProbe):
    """The control: it draws from the global generator outside of the pass that protects it."""

    def select(self, calls):
        return []

    def measure(self):
        yield "", "nothing", 0.0

    def on_validation_end(self, trainer, pl_module):
        torch.rand(1)


def test_the_conformance_test_can_say_no(without):
    seen = history("mlp", Careless())
    assert not all(equal(a, b) for a, b in zip(without["mlp"], seen, strict=True))


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_every_reading_is_finite_named_and_logged(probe, network):
    made = probe()
    fit = trainer([made])
    fit.fit(NETWORKS[network](), *loaders())
    assert {r.epoch for r in made.readings} == {2}
    assert {r.probe for r in made.readings} == {made.name}
    assert all(np.isfinite(r.value) for r in made.readings)
    assert [r.key for r in made.readings if not r.layer] == ["seconds"]
    for reading in made.readings:
        name = "/".join(part for part in (reading.probe, reading.layer, reading.key) if part)
        assert float(fit.callback_metrics[name]) == pytest.approx(reading.value, rel=1e-6)


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_readings_do_not_depend_on_other_probes_nor_on_their_order(probe):
    def read(*probes):
        torch.manual_seed(8)
        trainer(probes).fit(mlp(), *loaders())
        mine = next(p for p in probes if type(p) is probe)
        return [r for r in mine.readings if r.key != "seconds"]

    others = [p for p in PROBES if p is not probe]
    alone = read(probe())
    assert alone == read(probe(), *(p() for p in others)) == read(*(p() for p in reversed(others)), probe())


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_schedule(probe):
    made = probe(every=3)
    epochs = []

    class Note(Callback):
        def on_validation_end(self, trainer, pl_module):
            epochs.append({r.epoch for r in made.readings})

    trainer([made, Note()], max_epochs=4).fit(mlp(), *loaders())
    assert epochs == [set(), set(), {3}, {4}]  # every third, and the last
