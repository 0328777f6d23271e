"""Networks that are not what a probe hopes for: each has a message that names it, or an exact answer."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import JacobianNorm, OperatorNorm, RepresentationCollapse, Spectrum, WeightDistance
from lightning_depth.errors import UserError
from lightning_depth.measures.collapse import expected_errors
from tests.oracles import vote_predictions_nxn
from tests.probes.foreign import Foreign, convnet, loaders, validated
from tests.probes.looks import PROBES, fitted, is_short, make, name_of, said


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
