"""What every file on the shelf is held to, also those that will be added: a probe leaves no trace."""

import random
import re
import warnings
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_depth import callbacks as shelf
from lightning_depth.errors import UserError
from lightning_depth.probes import AbstractProbe, Key
from tests.probes.foreign import autoencoder, convnet, loaders, mlp, resnet18, trainer, vit

PROBES = [v for v in (getattr(shelf, name) for name in dir(shelf)) if issubclass(v, AbstractProbe)]
NETWORKS = {
    "mlp": mlp,
    "convnet": convnet,
    "torchvision's resnet18": resnet18,
    "torchvision's vit": vit,
    "autoencoder": autoencoder,
}
SMALL = ["mlp", "convnet", "torchvision's vit", "autoencoder"]
# Arguments that make a look short, or that a probe cannot do without; every other one is made without any.
ARGUMENTS = {
    "LocalStability": {"every": 1, "samples": 2, "strengths": [1.0]},
    "JacobianNorm": {"samples": 4},
    "FeatureSimilarity": {"samples": 12},
    "ActivationImages": {"every": 1},
}
# Which networks a probe has nothing to read of, and must say so; each reads something of at least one.
UNSUITED = {
    "ActivationImages": {"mlp"},
    "DeadUnits": {"torchvision's vit", "autoencoder"},  # README's example: no ReLU
    "IdentityConstant": {"mlp", "convnet", "torchvision's resnet18", "torchvision's vit"},
    "LinearOperator": {"mlp", "convnet", "torchvision's resnet18", "torchvision's vit"},
    "LocalStability": {"autoencoder"},
    "NeuralCollapse": {"autoencoder"},
    "WeightScale": {"autoencoder"},  # CONTRIBUTING's example: no linear layer
}
AXES = {"identity_constant": "rho", "local_stability": "v"}  # what `at` is called
OF_A_WHOLE = {"identity_constant", "linear_operator", "local_stability", "jacobian_norm"}  # not of a layer alone
HERE = "tests/probes/test_conformance.py"
REFUSED = [("NeuralCollapse", "autoencoder")]  # with a UserError, before any training


def make(probe, **arguments):
    return probe(**{**ARGUMENTS.get(probe.__name__, {}), **arguments})


def suits(probe, network):
    return network not in UNSUITED.get(probe.__name__, ())


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
    small = network in SMALL
    fit = trainer([*probes, witness], max_epochs=2 if small else 1)
    fit.fit(module, *loaders(train=48 if small else 32, held_out=31 if small else 16))
    return witness.seen, fit


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


@cache
def without(network):
    return history(network)[0]


PAIRS = [(p, n) for p in PROBES for n in NETWORKS if (p.__name__, n) not in REFUSED]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0].__name__}-{pair[1]}")
def look(request):
    probe, network = request.param
    made = make(probe)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        seen, fit = history(network, made)
    return SimpleNamespace(probe=made, network=network, seen=seen, fit=fit, said=[str(w.message) for w in said])


def test_a_probe_leaves_no_trace(look):
    expected = without(look.network)
    assert len(look.seen) == len(expected) > 0
    for step, (a, b) in enumerate(zip(expected, look.seen, strict=True)):
        for key in a:
            assert equal(a[key], b[key]), f"{look.probe.name} disturbed {key} by note {step}"


def test_every_reading_is_finite_named_and_logged(look):
    made = look.probe
    assert {r.epoch for r in made.readings} == {2 if look.network in SMALL else 1}
    assert {r.probe for r in made.readings} == {made.name}
    assert all(np.isfinite(r.value) for r in made.readings)
    assert [r.key for r in made.readings].count("seconds") == 1
    assert len({(r.layer, r.at, r.key) for r in made.readings}) == len(made.readings)
    on_axis = {r.key for r in made.readings if r.at is not None}
    assert made.name in AXES or not on_axis, f"name the axis of {made.name}'s {on_axis} under AXES in {HERE}"
    for reading in made.readings:
        at = [] if reading.at is None else [f"{AXES[made.name]}={reading.at:g}"]
        name = "/".join(part for part in (reading.probe, reading.layer, *at, reading.key) if part)
        assert float(look.fit.callback_metrics[name]) == pytest.approx(reading.value, rel=1e-6)


def test_a_layer_is_a_module_or_a_parameter_or_the_input(look):
    module = look.fit.lightning_module
    names = {name for name, _ in module.named_modules()} | {name for name, _ in module.named_parameters()} | {"input"}
    unknown = {r.layer for r in look.probe.readings if r.layer.split("#")[0] not in names}
    assert not unknown, f"{unknown} are neither modules nor parameters of the network"
    without = {r.key for r in look.probe.readings if not r.layer}
    of_layers = without == {"seconds"} or look.probe.name in OF_A_WHOLE
    assert of_layers, f"{without} have no layer: if they are of the whole network, say so under OF_A_WHOLE in {HERE}"
    assert all((r.at is not None) == (look.probe.name in AXES) for r in look.probe.readings if r.key != "seconds")


def test_every_reading_and_every_array_is_declared(look):
    made, name = look.probe, type(look.probe).__name__
    undeclared = {r.key for r in made.readings} - {"seconds"} - {key.name for key in made.keys}
    assert not undeclared, f"{name} reads {undeclared}: declare them, keys = (Key(...), ...)"
    undeclared = {p.key for p in made.pictures} - {array.name for array in made.arrays}
    assert not undeclared, f"{name} draws {undeclared}: declare them, arrays = (ArrayKey(...), ...)"
    assert made.keys, f"declare what {name} reads: keys = (Key(...), ...)"
    assert len({key.name for key in made.keys}) == len(made.keys), f"{name} declares a key twice"
    undefined = [key.name for key in made.keys if not key.definition]
    assert not undefined, f"give {name}'s {undefined} a definition, for README's table"
    shown = any(key.title and key.unit for key in made.keys)
    assert shown, f"give one of {name}'s keys {[key.name for key in made.keys]} a title and a unit, for the report"
    assert made.cost, f"give the class {name} a cost, for README's table"


def test_a_probe_reads_something_or_says_that_it_does_not(look):
    name, read = type(look.probe).__name__, any(r.key != "seconds" for r in look.probe.readings)
    if suits(type(look.probe), look.network):
        assert read, f"{name} read nothing of the {look.network}; where it cannot, say so under UNSUITED in {HERE}"
    else:
        assert not read, f"{name} reads the {look.network}: it is not to be named under UNSUITED in {HERE}"
        assert any(s.startswith(f"{name}: no reading: ") for s in look.said), f"{name} did not say that it read nothing"


def test_pictures_are_finite_named_and_of_layers_that_are_read(look):
    pictures = look.probe.pictures
    assert len({(p.layer, p.key) for p in pictures}) == len(pictures)
    for picture in pictures:
        assert picture.values.dim() in (1, 2, 3)
        assert picture.values.numel()
        assert picture.values.isfinite().all()
        assert not picture.values.requires_grad
        assert len(picture.names) in (0, len(picture.values))
    if not suits(type(look.probe), look.network):
        assert not pictures


@pytest.mark.parametrize(("probe", "network"), REFUSED)
def test_a_probe_that_refuses_a_network_leaves_nothing_behind(probe, network):
    module, made = NETWORKS[network](), make(getattr(shelf, probe))
    with pytest.raises(UserError, match=rf"^{probe} finds no .* name a layer"):
        trainer([made]).fit(module, *loaders())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert left_on(made) == []


def left_on(probe):
    """Which attributes of a probe are, or hold, a network or a trainer."""
    held = {name: getattr(value, "trainer", value) for name, value in vars(probe).items()}
    return [name for name, value in held.items() if isinstance(value, nn.Module | Trainer)]


def test_nothing_is_left_on_the_probe_or_the_trainer(look):
    assert left_on(look.probe) == []
    assert {name for name in vars(look.fit) if "probe" in name} == set()


class Clinging(AbstractProbe):
    """The control: it keeps what it was given."""

    def measure(self, look):
        self.kept = look.network
        return []


def test_what_is_left_on_a_probe_is_found():
    made = Clinging()
    history("mlp", made)
    assert left_on(made) == ["kept"]


class Looking(AbstractProbe):
    """Reads the layers of one kind."""

    keys = (Key("there"),)

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def measure(self, look):
        for call in self.chosen(look, lambda call: isinstance(call.module, self.kind)):
            yield call.name, "there", 1.0


@pytest.mark.parametrize(("kind", "times"), [(nn.Conv3d, 1), (nn.Linear, 0)])
def test_any_probe_that_reads_nothing_says_so_once(kind, times):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        history("mlp", Looking(kind))
    expected = "Looking: no reading: it found nothing in this network that it reads."
    assert [str(w.message) for w in said].count(expected) == times


WHOLE = {"keys": (Key("there", title="There", unit="share", definition="1"),), "cost": "0 s"}
LACKING = {
    "declare what Lacking reads": {"keys": ()},
    "Lacking declares a key twice": {"keys": WHOLE["keys"] * 2},
    "give Lacking's ['there'] a definition": {"keys": (Key("there", title="There", unit="share"),)},
    "give one of Lacking's keys ['there'] a title and a unit": {"keys": (Key("there", title="There", definition="1"),)},
    "give the class Lacking a cost": {"cost": ""},
}


@pytest.mark.parametrize("said", LACKING)
def test_what_a_declaration_lacks_is_named(said):
    def declared(**attributes):
        probe = type("Lacking", (Looking,), attributes)(nn.Linear)
        test_every_reading_and_every_array_is_declared(SimpleNamespace(probe=probe))

    declared(**WHOLE)
    with pytest.raises(AssertionError, match=re.escape(said)):
        declared(**{**WHOLE, **LACKING[said]})


class Careless(AbstractProbe):
    """The control: it draws from the global generator outside of the pass that protects it."""

    def measure(self, look):
        yield "", "nothing", 0.0

    def on_validation_end(self, trainer, pl_module):
        torch.rand(1)


def test_the_conformance_test_can_say_no():
    seen, _ = history("mlp", Careless())
    assert not all(equal(a, b) for a, b in zip(without("mlp"), seen, strict=True))


@cache
def read(network, *probes):
    """What each of the probes read, all of them in one training."""
    torch.manual_seed(8)
    made = [make(probe) for probe in probes]
    trainer(made).fit(NETWORKS[network](), *loaders())
    return {type(p): [r for r in p.readings if r.key != "seconds"] for p in made}


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_readings_do_not_depend_on_other_probes_nor_on_their_order(probe):
    network = next(n for n in ("convnet", "autoencoder", *NETWORKS) if suits(probe, n))
    all_of_them = [p for p in PROBES if (p.__name__, network) not in REFUSED]
    alone = read(network, probe)[probe]
    assert alone
    assert alone == read(network, *all_of_them)[probe] == read(network, *reversed(all_of_them))[probe]


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_schedule(probe):
    made = make(probe, every=3)
    epochs = []

    class Note(Callback):
        def on_validation_end(self, trainer, pl_module):
            epochs.append({r.epoch for r in made.readings})

    trainer([made, Note()], max_epochs=4).fit(mlp(), *loaders())
    assert epochs == [set(), set(), {3}, {4}]  # every third, and the last
