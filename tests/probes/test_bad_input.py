"""What is wrong, odd or too large: each has a message that names it, or an exact answer."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth import callbacks as shelf
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
from lightning_depth.errors import UserError
from lightning_depth.measures.collapse import expected_errors
from lightning_depth.probes import AbstractProbe
from tests.oracles import vote_predictions_nxn
from tests.probes.foreign import Data, Foreign, autoencoder, convnet, loaders, readings, trainer, validated

PROBES = [v for v in (getattr(shelf, name) for name in dir(shelf)) if issubclass(v, AbstractProbe)]
ARGUMENTS = {
    "LocalStability": {"samples": 2, "strengths": [1.0]},
    "JacobianNorm": {"samples": 4},
    "FeatureSimilarity": {"samples": 12},
}
OF_MAPS = ("LinearOperator", "IdentityConstant")
OF_WEIGHTS = ("OperatorNorm", "Spectrum", "WeightDistance")
name_of = {"ids": lambda p: p.__name__ if isinstance(p, type) else str(p)}


def make(probe, **arguments):
    return probe(**{**ARGUMENTS.get(probe.__name__, {}), **arguments})


def suited(probe):
    return (autoencoder if probe.__name__ in OF_MAPS else convnet)()


def fitted(module, probe, batches=None):
    trainer([probe], max_epochs=1).fit(module, *(batches or loaders()))
    return readings(probe)


def said(function, *arguments, **keywords):
    """The warnings of one call, and what it returned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function(*arguments, **keywords)
    return found, [str(w.message) for w in caught]


def is_short(error):
    return len(str(error.value)) < 300 and str(error.value).count("\n") < 2


# --- not finite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("probe", [*PROBES, "gram"], **name_of)
def test_weights_that_are_not_finite_are_named(probe, bad):
    made = Spectrum(of="gram") if probe == "gram" else make(probe)
    module = suited(type(made))
    module.model[0][0].weight.data[0, 0, 0, 0] = bad
    with pytest.raises(UserError, match=rf"^{type(made).__name__}, (.*, )?epoch 1: ") as error:
        fitted(module, made)
    assert any(name in str(error.value) for name in ("model.", "output", "prediction")), error.value
    assert is_short(error)
    assert not any(m._forward_hooks for m in module.modules())


class Spoil(nn.Module):
    """Makes one number of one sample bad, in evaluation."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, x):
        if self.training:
            return x
        x = x.clone()
        x[0, 0, 0, 0] = self.bad
        return x


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("probe", [*PROBES, "gram"], **name_of)
def test_activations_that_are_not_finite_are_named(probe, bad):
    made = Spectrum(of="gram") if probe == "gram" else make(probe)
    module = suited(type(made))
    module.model[0].append(Spoil(bad))
    if probe in (OperatorNorm, Spectrum, WeightDistance):  # they look at weights alone
        assert all(math.isfinite(value) for value in fitted(module, made).values())
        return
    with pytest.raises(UserError, match=rf"^{type(made).__name__}, (.*, )?epoch 1: ") as error:
        fitted(module, made)
    assert any(name in str(error.value) for name in ("model.", "output", "prediction")), error.value
    assert is_short(error)


# --- layer filters ---------------------------------------------------------------------------------------------------


FILTERED = [p for p in PROBES if p not in (LinearOperator, IdentityConstant, LocalStability)]


@pytest.mark.parametrize("layers", [[], ["nothing.*"]])
@pytest.mark.parametrize("probe", [*FILTERED, "gram"], **name_of)
def test_a_filter_that_matches_nothing_is_a_mistake(probe, layers):
    made = Spectrum(of="gram", layers=layers) if probe == "gram" else make(probe, layers=layers)
    with pytest.raises(UserError, match=rf"^{type(made).__name__}: no .*matches \[") as error:
        fitted(convnet(), made)
    assert str(layers) in str(error.value)
    assert is_short(error)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 4)
        self.spare = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("probe", [*FILTERED, "gram"], **name_of)
def test_a_layer_that_is_never_called(probe):
    made = Spectrum(of="gram", layers=["*.spare"]) if probe == "gram" else make(probe, layers=["*.spare"])
    if probe in (Spectrum, WeightDistance):  # it has weights all the same
        assert {layer.removesuffix(".weight").removesuffix(".bias") for layer, _ in fitted(Foreign(Idle()), made)} == {
            "",
            "model.spare",
        }
        return
    with pytest.raises(UserError, match=rf"^{type(made).__name__}: .*model.spare is never called") as error:
        fitted(Foreign(Idle()), made)
    assert is_short(error)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(256, 4)

    def forward(self, x):
        return self.head(self.shared(torch.relu(self.shared(self.first(x)))).flatten(1))


@pytest.mark.parametrize("pattern", ["model.shared", "*.shared#2"])
@pytest.mark.parametrize("probe", [*FILTERED, "gram"], **name_of)
def test_a_module_that_is_called_twice_has_a_reading_for_each_call(probe, pattern):
    torch.manual_seed(3)
    made = Spectrum(of="gram", layers=[pattern]) if probe == "gram" else make(probe, layers=[pattern])
    if probe in (Spectrum, WeightDistance):  # its weights are there once
        if "#" not in pattern:
            layers = {layer for layer, _ in fitted(Foreign(Twice()), made)}
            assert layers in ({"", "model.shared"}, {"", "model.shared.weight", "model.shared.bias"})
        return
    found = fitted(Foreign(Twice()), made)
    expected = {"model.shared", "model.shared#2"} if "#" not in pattern else {"model.shared#2"}
    if probe is FeatureSimilarity:
        assert set(made.pictures[0].names) == expected
    else:
        assert {layer for layer, _ in found} - {""} == expected
    if "#" not in pattern and probe not in (OperatorNorm, FeatureSimilarity):
        first, second = ([v for (layer, _), v in found.items() if layer == name] for name in sorted(expected))
        assert first != second


class Windows(nn.Module):
    """Its linear layer sees four windows of each image."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(48, 6)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        windows = self.inner(x.reshape(len(x) * 4, 48))
        return self.head(windows.reshape(len(x), 24))


@pytest.mark.parametrize("probe", [*(p for p in FILTERED if p.__name__ not in OF_WEIGHTS), "gram"], **name_of)
def test_a_module_whose_rows_are_not_samples_is_left_out_by_name(probe):
    made = Spectrum(of="gram", layers=["*.inner"]) if probe == "gram" else make(probe, layers=["*.inner"])
    found, messages = said(fitted, Foreign(Windows()), made)
    left_out = f"{type(made).__name__}: model.inner (Linear) is left out: its rows are not the samples."
    assert messages.count(left_out) == 1
    assert set(found) == {("", "seconds")}


# --- nothing to see --------------------------------------------------------------------------------------------------


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


# --- too few, too large ----------------------------------------------------------------------------------------------


def test_fewer_samples_than_a_similarity_needs():
    with pytest.raises(UserError, match=r"^FeatureSimilarity, epoch 0: the debiased HSIC needs 4 samples, not 3"):
        validated(convnet(), FeatureSimilarity(samples=3))


@pytest.mark.parametrize("probe", [RepresentationCollapse, LinearOperator, NeuralCollapse, IdentityConstant])
def test_training_samples_that_nobody_gave(probe):
    with pytest.raises(UserError, match=r"^A probe needs train samples: .*probe_dataloader"):
        trainer([probe()]).validate(convnet(), loaders()[1], verbose=False)


class Stated(Data):
    num_classes = 4


def stated(module, probe):
    trainer([probe]).validate(module, datamodule=Stated(*loaders()), verbose=False)
    return readings(probe)


def test_fewer_samples_than_classes():
    found, messages = said(stated, convnet(), NeuralCollapse(train_samples=3))
    seen = len(set(chosen_labels(3).tolist()))
    assert seen < 4
    assert f"NeuralCollapse: model.3: {seen} of 4 classes have training samples; it is about those." in messages
    assert all(math.isfinite(value) for value in found.values())
    collapse = stated(convnet(), RepresentationCollapse(train_samples=3))
    train, test = (loader.dataset.tensors for loader in loaders())
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:3]
    for balanced, key in ((False, "error"), (True, "balanced_error")):
        predicted = vote_predictions_nxn(test[0], train[0][order], train[1][order], 4, balanced=balanced)
        error = float(expected_errors(predicted, test[1]).mean())
        assert collapse["input", key] == pytest.approx(error, abs=1e-12)


def chosen_labels(count):
    return loaders()[0].dataset.tensors[1][torch.randperm(48, generator=torch.Generator().manual_seed(0))[:count]]


def of_classes(*classes):
    """Training data of these classes alone."""
    x, y = loaders()[0].dataset.tensors
    kept = torch.isin(y, torch.tensor(classes))
    return DataLoader(TensorDataset(x[kept], y[kept]), 16), loaders()[1]


def test_classes_that_no_training_sample_shows():
    with pytest.raises(UserError, match=r"^RepresentationCollapse: .*label 3.* 3 classes.*num_classes") as error:
        validated(convnet(), RepresentationCollapse(), of_classes(0, 1, 2))
    assert is_short(error)
    found, messages = said(validated, convnet(), NeuralCollapse(), of_classes(0, 1, 2))
    assert any("NeuralCollapse: no nc3 and no nc4 at model.3: it has 4 outputs for 3 classes" in m for m in messages)
    assert "nc3" not in {key for _, key in found}
    assert not any("compute" in m for m in messages), messages  # of torchmetrics, which speaks to its own users
    with pytest.raises(UserError, match=r"^NeuralCollapse, .*epoch 0: .*two classes or more, not 1"):
        validated(convnet(), NeuralCollapse(), of_classes(0))


def test_images_of_another_size_need_no_start_of_theirs():
    torch.manual_seed(0)
    module = Foreign(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    )
    for make in (OperatorNorm, lambda: JacobianNorm(samples=4)):
        seen_before = make()
        validated(module, seen_before, loaders(size=8))
        found, fresh = validated(module, seen_before, loaders(size=10)), validated(module, make(), loaders(size=10))
        for key, value in fresh.items():
            assert key[1] == "seconds" or found[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


def test_an_example_that_is_not_there():
    with pytest.raises(UserError, match="example=60, but there are 48 training samples"):
        validated(autoencoder(), IdentityConstant(example=60))


def test_more_features_than_nc1_may_hold():
    whole = validated(convnet(), NeuralCollapse())
    found, messages = said(validated, convnet(), NeuralCollapse(max_features=71))
    assert "NeuralCollapse: no nc1 at model.3: it has 72 features, more than max_features=71." in messages
    without = {k: v for k, v in whole.items() if k[1] not in ("nc1", "seconds")}
    assert {k: v for k, v in found.items() if k[1] != "seconds"} == without


def test_neighbours_that_exceed_the_stated_memory_are_left_out():
    # 256 MiB are 1,000,000 times 67 float32 numbers
    probe = RepresentationCollapse(train_samples=1_000_000, neighbours=1)
    found, messages = said(validated, convnet(), probe)
    for layer in ("input", "model.0", "model.1"):
        message = f"no neighbours at {layer}: its training representations exceed 256 MiB."
        assert f"RepresentationCollapse: {message}" in messages
    assert [layer for layer, key in found if key == "neighbours_error"] == ["model.3"]
    assert len([key for _, key in found if key == "error"]) == 4


def test_an_operator_that_exceeds_the_stated_memory_is_not_read():
    found, messages = said(validated, autoencoder(), LinearOperator(max_bytes=192 * 192 * 4 - 1))
    message = "no reading: the 192 x 192 matrix takes 147456 bytes, more than max_bytes=147455."
    assert f"LinearOperator: {message}" in messages
    assert set(found) == {("", "seconds")}
    assert ("", "norm") in validated(autoencoder(), LinearOperator(max_bytes=192 * 192 * 4))


# --- networks that are not what a probe hopes for --------------------------------------------------------------------


class Unscored(Foreign):
    def training_step(self, batch, batch_idx):
        return sum(p.sum() for p in self.parameters())

    def validation_step(self, batch, batch_idx):
        self(batch[0])


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = convnet().model

    def forward(self, x):
        return self.body(x).argmax(1)


class Secretive(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = convnet().model

    @torch.no_grad()
    def forward(self, x):
        return self.body(x)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.relu(self.mix(self.embed(x))).mean(1))


def token_loaders():
    torch.manual_seed(2)
    return [DataLoader(TensorDataset(torch.randint(11, (n, 7)), torch.arange(n) % 4), 16) for n in (48, 31)]


MISTAKES = {
    ("argmax", "JacobianNorm"): "output: the function returned torch.int64",
    ("no_grad", "JacobianNorm"): "output: the function is not differentiable",
}
NO_READING = {
    ("argmax", "LinearOperator"): "outputs are torch.int64",
    ("argmax", "IdentityConstant"): "outputs of shape () are no maps",
    ("tokens", "IdentityConstant"): "inputs are torch.int64",
    ("tokens", "JacobianNorm"): "inputs are torch.int64",
    ("tokens", "LocalStability"): "inputs are torch.int64",
    ("argmax", "LocalStability"): "outputs are torch.int64",
    ("no_grad", "LinearOperator"): "not linear",
    ("no_grad", "IdentityConstant"): "outputs of shape (4,) are no maps",
    ("tokens", "LinearOperator"): "inputs are torch.int64",
    ("tokens", "ActivationImages"): "no stage of this network returns images",
}


@pytest.mark.parametrize("kind", ["argmax", "no_grad", "tokens"])
@pytest.mark.parametrize("probe", PROBES, **name_of)
def test_networks_without_derivatives_and_integer_inputs(probe, kind):
    made = make(probe)
    module = Unscored({"argmax": Decides, "no_grad": Secretive, "tokens": Tokens}[kind]())
    batches = token_loaders() if kind == "tokens" else loaders()
    look = (lambda: validated(module, made, batches)) if kind == "no_grad" else (lambda: fitted(module, made, batches))
    if kind == "no_grad" and probe is WeightDistance:
        return  # it cannot be trained, so there is no start
    if (kind, probe.__name__) in MISTAKES:
        with pytest.raises(UserError, match=rf"^{probe.__name__}, epoch .: {MISTAKES[kind, probe.__name__]}") as error:
            look()
        assert is_short(error)
        return
    found, messages = said(look)
    if (kind, probe.__name__) in NO_READING:
        assert any(m.startswith(f"{probe.__name__}: no reading: {NO_READING[kind, probe.__name__]}") for m in messages)
        assert set(found) == {("", "seconds")}
    else:
        assert all(math.isfinite(value) for value in found.values())
        assert len(found) > 1


def test_an_embedding_is_left_out_by_name_and_tokens_are_numbers():
    found, messages = said(validated, Unscored(Tokens()), OperatorNorm(), token_loaders())
    assert any(m.startswith("OperatorNorm: model.embed is left out: Embedding") for m in messages)
    assert {layer for layer, _ in found} == {"", "model.mix", "model.head"}
    found, messages = said(validated, Unscored(Tokens()), Spectrum(), token_loaders())
    assert "Spectrum: model.embed (Embedding) is left out: it is a table, not a matrix that is applied." in messages
    assert {layer for layer, _ in found} == {"", "model.mix", "model.head"}
    collapse = validated(Unscored(Tokens()), RepresentationCollapse(), token_loaders())
    train, test = (loader.dataset.tensors for loader in token_loaders())
    predicted = vote_predictions_nxn(test[0].double(), train[0].double(), train[1], 4)
    error = float(expected_errors(predicted, test[1]).mean())
    assert collapse["input", "error"] == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("probe", PROBES, **name_of)
def test_batches_that_are_dicts_are_named(probe):
    class Keyed(Foreign):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step((batch["x"], batch["y"]), batch_idx)

    x, y = loaders()[0].dataset.tensors
    keyed = DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], 16)
    with pytest.raises(UserError, match=r"^Probes need batches of \(inputs, targets\) tensors; this one is a dict\."):
        fitted(Keyed(convnet().model), make(probe), (keyed, keyed))


class Cube(torch.autograd.Function):
    """Without a forward mode, but its backward can be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class OnceCube(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Stage(nn.Module):
    """Cubes of a convolution: 128 numbers, too many to write the Jacobian out."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        return self.function.apply(self.conv(x))


def test_a_custom_function_without_forward_mode():
    torch.manual_seed(0)
    module = Foreign(nn.Sequential(Stage(Cube), nn.Flatten(), nn.Linear(128, 4)))
    found = validated(module, JacobianNorm(layers=["model.0"], samples=3, rtol=1e-4))
    x = loaders()[1].dataset.tensors[0][torch.randperm(31, generator=torch.Generator().manual_seed(0))[:3]]
    conv = module.model[0].conv
    exact = [torch.linalg.svdvals(torch.func.jacrev(lambda s: conv(s[None]) ** 3)(s).reshape(128, 192))[0] for s in x]
    assert found["model.0", "max"] == pytest.approx(float(max(exact)), rel=1e-3)
    module = Foreign(nn.Sequential(Stage(OnceCube), nn.Flatten(), nn.Linear(128, 4)))
    with pytest.raises(UserError, match=r"^JacobianNorm: model.0 has no derivative in forward mode") as error:
        validated(module, JacobianNorm(layers=["model.0"], samples=3))
    assert is_short(error)
    # Written out, it needs no forward mode.
    assert validated(module, JacobianNorm(samples=3))["", "max"] > 0
