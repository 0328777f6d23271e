"""Each reading against the slow and obvious computation, on networks that are not ours."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import EffectiveRank, OperatorNorm, RepresentationCollapse
from lightning_depth.errors import UserError
from lightning_depth.measures.collapse import expected_errors
from lightning_depth.probes import AbstractProbe
from lightning_depth.probes.calls import stages, trace
from tests.oracles import vote_predictions_nxn
from tests.probes.foreign import Foreign, convnet, loaders, mlp, resnet18, trainer


def validated(module, probe, **sizes):
    train, held_out = loaders(**sizes)
    fit = trainer([probe])
    fit.fit_loop._data_source.instance = train  # what `fit` would set; here only validation runs
    fit.validate(module, held_out, verbose=False)
    return {(r.layer, r.key): r.value for r in probe.readings}, train, held_out


def outputs(module, layer, batches):
    seen = []
    handle = dict(module.named_modules())[layer].register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    module.eval()
    with torch.no_grad():
        labels = [module(x) is None or y for x, y in batches]
    handle.remove()
    return torch.cat([a for a, _ in seen]), torch.cat([b for _, b in seen]), torch.cat(labels)


def test_operator_norms_are_those_of_dense_matrices():
    module = convnet()
    found, *_ = validated(module, OperatorNorm())
    for call in trace(module, torch.zeros(1, 3, 8, 8)):
        if isinstance(call.module, nn.Conv2d | nn.Linear):
            x = torch.zeros(call.input_shape)
            matrix = torch.func.jacrev(lambda x, m=call.module: m(x[None]))(x).reshape(-1, x.numel())
            exact = torch.linalg.svdvals(matrix.double())[0]
            assert found[call.name, "norm"] == pytest.approx(float(exact), rel=1e-4)
    assert [layer for layer, key in found if key == "norm"] == ["model.0.0", "model.1.0", "model.3"]


@pytest.mark.parametrize("network", [mlp, convnet])
def test_effective_rank_is_that_of_the_whole_gram_matrix(network):
    module = network()
    found, _, held_out = validated(module, EffectiveRank())
    (layer, _), *_ = found
    features, *_ = outputs(module, layer, held_out)
    normalised = nn.functional.normalize(features.double(), dim=1)
    eigenvalues = torch.linalg.svdvals(normalised @ normalised.T)
    shares = eigenvalues / eigenvalues.sum()
    entropy = float(torch.special.entr(shares).sum())
    assert found[layer, "effective_rank"] == pytest.approx(entropy, rel=1e-9)


@pytest.mark.parametrize("at", ["stages", "layers"])
def test_collapse_is_the_vote_of_all_training_samples(at):
    module, probe = convnet(), RepresentationCollapse(at=at, train_samples=48)
    _, held_out = loaders(train=48)
    trainer([probe], max_epochs=1, limit_train_batches=0.99).fit(module, *loaders(train=48))
    found = {r.layer: r.value for r in probe.readings if r.key == "error"}
    assert found.keys() > {"input", "model.0" if at == "stages" else "model.0.0"}
    train_batches = DataLoader(loaders(train=48)[0].dataset, 16)
    for layer, error in found.items():
        if layer == "input":
            (train, labels), (test, truth) = (
                tuple(map(torch.cat, zip(*batches, strict=True))) for batches in (train_batches, held_out)
            )
        else:
            _, train, labels = outputs(module, layer, train_batches)
            _, test, truth = outputs(module, layer, held_out)
        predicted = vote_predictions_nxn(test, train, labels, 4)
        assert error == pytest.approx(float(expected_errors(predicted, truth).mean()), abs=1e-12)


def test_a_torchvision_resnet_is_probed_layer_by_layer():
    probes = [OperatorNorm(rtol=1e-2), EffectiveRank(), RepresentationCollapse(train_samples=16)]
    trainer(probes, max_epochs=1).fit(resnet18(), *loaders(train=16, held_out=16))
    norm, rank, collapse = (list(dict.fromkeys(r.layer for r in p.readings if r.layer)) for p in probes)
    assert len(set(norm)) == 21  # 17 convolutions, 3 shortcuts, the head
    assert set(rank) == {"model.fc"}
    assert collapse == ["input", "model.conv1", *(f"model.layer{i}" for i in range(1, 5)), "model.fc"]


def test_stages_of_nested_and_flat_networks():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    assert stages(trace(flat, torch.zeros(1, 3, 2, 2))) == ["1", "3"]
    nested = nn.ModuleDict({"body": flat})
    nested.forward = lambda x: nested["body"](x)
    assert stages(trace(nested, torch.zeros(1, 3, 2, 2))) == ["body.1", "body.3"]


def test_layer_filter():
    found, *_ = validated(convnet(), OperatorNorm(layers=["*.0.0", "model.3"]))
    assert [layer for layer, key in found if key == "norm"] == ["model.0.0", "model.3"]
    with pytest.raises(UserError, match=r"no layer matches \['nothing'\]"):
        validated(convnet(), OperatorNorm(layers=["nothing"]))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3 * 8 * 8, 6)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.shared(torch.relu(self.shared(self.first(x.flatten(1))))))


def test_a_module_that_is_called_twice_has_two_readings():
    probe = RepresentationCollapse(at="layers", train_samples=16)
    trainer([probe], max_epochs=1).fit(Foreign(Twice()), *loaders())
    layers = [r.layer for r in probe.readings if r.key == "error"]
    assert layers == ["input", "model.first", "model.shared", "model.shared#2", "model.head"]


def test_what_cannot_be_treated_is_said_once_by_name():
    module = Foreign(nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Unflatten(1, (1, 6)), Odd(), nn.Linear(6, 4)))
    probe = OperatorNorm()
    with pytest.warns(UserWarning, match=r"OperatorNorm: model.3 is left out: .*Odd"):
        trainer([probe]).fit(module, *loaders())
    assert {r.layer for r in probe.readings if r.layer} == {"model.1", "model.4"}
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        trainer([probe]).fit(module, *loaders())
    assert not [w for w in again if "is left out" in str(w.message)]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6))

    def forward(self, x):
        return (x @ self.weight).squeeze(1)


def test_no_validation_no_silence():
    with pytest.warns(UserWarning, match="validation, which is off"):
        trainer([OperatorNorm()], limit_val_batches=0).fit(mlp(), *loaders())


def test_labels_must_be_classes():
    train = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.randn(8, 4)), 4)

    class Regression(Foreign):
        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

    with pytest.raises(UserError, match="one integer class label a sample"):
        trainer([RepresentationCollapse()]).fit(Regression(mlp().model), train, train)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_numbers_stop_the_probe_by_name(bad):
    module = convnet()
    nn.init.constant_(module.model[0][0].weight, bad)
    for probe in (OperatorNorm(), EffectiveRank(), RepresentationCollapse()):
        with pytest.raises(UserError, match=rf"{type(probe).__name__}.* epoch 1"):
            trainer([probe], max_epochs=1).fit(module, *loaders())


def epochs_of(probe, **arguments):
    seen = []

    class Note(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.extend({r.epoch for r in probe.readings} - set(seen))

    trainer([probe, Note()], **arguments).fit(mlp(), *loaders())
    return seen


def test_geometric_and_last_schedules():
    assert epochs_of(OperatorNorm(every="geometric"), max_epochs=6) == [1, 2, 4, 6]
    assert epochs_of(OperatorNorm(every="last"), max_epochs=3) == [3]
    with pytest.raises(UserError, match="every must be a number of epochs, geometric or last, not 0"):
        OperatorNorm(every=0)


@pytest.mark.parametrize("samples", [1, 7, 31, 40])
def test_a_choice_of_samples_is_evenly_spread_and_exactly_so_many(samples):
    module, seen = convnet(), []

    class Rows(AbstractProbe):
        def __init__(self):
            super().__init__()
            self.watch("val", samples)

        def select(self, look):
            return look.calls[:1]

        def observe(self, given):
            seen.append(given.inputs)

        def measure(self, look):
            return []

    probe = Rows()
    trainer([probe], max_epochs=1).fit(module, *loaders())
    held_out = torch.cat([x for x, _ in loaders()[1]])
    wanted = min(samples, 31)
    places = [i for i in range(31) if (i + 1) * wanted // 31 > i * wanted // 31]
    assert len(places) == wanted
    assert torch.equal(torch.cat(seen), held_out[places])


def test_training_samples_of_one_probe_do_not_depend_on_what_another_wants():
    def read(*others):
        torch.manual_seed(1)
        probe = EffectiveRank(split="train", samples=20)
        trainer([*others, probe], max_epochs=1).fit(mlp(), *loaders())
        return [r.value for r in probe.readings if r.layer]

    # Batches of other sizes are summed in another order.
    assert read() == pytest.approx(read(RepresentationCollapse(train_samples=40)), rel=1e-6)


def test_a_filter_that_names_a_module_which_is_never_called_says_so():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 4)
            self.spare = nn.Linear(4, 4)

        def forward(self, x):
            return self.head(x.flatten(1))

    with pytest.raises(UserError, match=r"model\.spare is never called"):
        trainer([OperatorNorm(layers=["*.spare"])]).fit(Foreign(Idle()), *loaders())
    with pytest.warns(UserWarning, match=r"OperatorNorm: model.spare \(Linear\) is never called"):
        trainer([OperatorNorm()]).fit(Foreign(Idle()), *loaders())
