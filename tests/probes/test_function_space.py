"""Identity and constant maps, distances from the start, stability of labels."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from lightning_depth.callbacks import IdentityConstant, LocalStability, WeightDistance
from lightning_depth.errors import UserError
from lightning_depth.models.resnet import ResNet
from tests.probes.foreign import Autoencoder, convnet, loaders, mlp, readings, trainer, validated
from tests.probes.obvious import samples


class Constant(nn.Module):
    def __init__(self, example):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("example", example)

    def forward(self, x):
        return self.scale * self.example.expand(len(x), *self.example.shape)


@pytest.mark.parametrize("which", [0, 2])
def test_the_constant_and_the_identity_map_are_told_apart(which):
    rhos = [-0.5, 0.0, 0.3, 1.0]
    example = samples("train", which + 1)[0][-1]
    probe = IdentityConstant(correlations=rhos, draws=3, example=which)
    constant = validated(Autoencoder(Constant(example)), probe)
    identity = validated(
        Autoencoder(nn.Sequential(nn.Identity())), IdentityConstant(correlations=rhos, draws=3, example=which)
    )
    size = float(example.double().square().sum())
    for rho in rhos:
        error = 2 * size * (1 - rho) / example.numel()
        for found, own, other in ((constant, "constant", "identity"), (identity, "identity", "constant")):
            assert found["", own, rho] == pytest.approx(1, abs=1e-6)
            assert found["", other, rho] == pytest.approx(rho, abs=1e-6)
            assert found["", f"{own}_mse", rho] == pytest.approx(0, abs=1e-9)
            assert found["", f"{other}_mse", rho] == pytest.approx(error, rel=1e-5, abs=1e-9)
    inputs, predictions = probe.pictures
    assert inputs.values.shape == predictions.values.shape == (4, 8, 8)
    torch.testing.assert_close(predictions.values, example.mean(0).expand(4, 8, 8))
    torch.testing.assert_close(inputs.values[3], example.mean(0), rtol=1e-5, atol=1e-5)
    assert inputs.names == ["rho=-0.5", "rho=0", "rho=0.3", "rho=1"]


def test_weight_distances_are_those_from_the_start_of_training():
    module, probe = mlp(), WeightDistance()
    before = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    with pytest.warns(UserWarning, match=r"^WeightDistance: model.2.bias starts at zero: no relative distance"):
        trainer([probe]).fit(module, *loaders())
    found = readings(probe)
    after = {name: p.detach().double() for name, p in module.named_parameters()}
    assert {layer for layer, _ in found} - {""} == set(before) - {"model.2.bias"}
    for name in set(before) - {"model.2.bias"}:
        expected = float((after[name] - before[name]).norm() / before[name].norm())
        assert expected > 0
        assert found[name, "distance"] == pytest.approx(expected, rel=1e-6)


def test_the_start_of_a_foreign_network_survives_a_checkpoint(tmp_path):
    def fitted(epochs, **arguments):
        torch.manual_seed(3)
        module, probe = mlp(), WeightDistance(layers=["model.1"])
        fit = trainer([probe], max_epochs=epochs)
        fit.fit(module, *loaders(), **arguments)
        return fit, module, readings(probe)

    start = mlp().model[1].weight.detach()
    first, *_ = fitted(1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    _, module, found = fitted(3, ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    expected = float((module.model[1].weight.detach() - start).norm() / start.norm())
    assert found["model.1.weight", "distance"] == pytest.approx(expected, rel=1e-5)
    assert set(found) == {("model.1.weight", "distance"), ("model.1.bias", "distance"), ("", "seconds")}
    # A probe that comes later has not seen the start.
    trainer(max_epochs=1).fit(module := mlp(), *loaders())
    module.trainer.save_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(UserError, match="WeightDistance needs the weights at the start of training"):
        fitted(3, ckpt_path=tmp_path / "without.ckpt", weights_only=False)
    with pytest.raises(UserError, match="WeightDistance needs the weights at the start of training"):
        validated(mlp(), WeightDistance())


def test_the_start_of_our_own_network_is_drawn_again():
    module, probe = ResNet(depth=10, width=2, input_shape=(3, 8, 8), num_classes=4, seed=5), WeightDistance()
    module.configure_model()
    before = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    batches = [DataLoader(d.dataset, 16, collate_fn=lambda b: tuple(default_collate(b))) for d in loaders()]
    trainer([probe], max_epochs=1).fit(module, *batches)
    found = readings(probe)
    assert probe.state_dict() == {"initial": {}}  # nothing to carry
    after = {name: p.detach().double() for name, p in module.named_parameters()}
    named = {name for name, start in before.items() if start.any()}
    assert {layer for layer, _ in found} - {""} == named
    for name in named:
        expected = float((after[name] - before[name]).norm() / before[name].norm())
        assert found[name, "distance"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("network", [convnet, mlp])
def test_local_stability_is_that_of_every_coordinate(network):
    module, strengths = network(), [0.5, 2.0, 8.0]
    found = validated(module, LocalStability(samples=3, strengths=strengths))
    x, _ = samples("val", 3)
    shares = []
    with torch.no_grad():
        label = module.eval()(x).argmax(1)
        for v in strengths:
            stable = 0
            for i in range(3):
                moved = torch.cat([x[i].flatten() + v * torch.eye(192), x[i].flatten() - v * torch.eye(192)])
                stable += int((module(moved.view(-1, 3, 8, 8)).argmax(1) == label[i]).all())
            shares.append(stable / 3)
    assert [found["", "stability", v] for v in strengths] == shares
    assert len(set(shares)) > 1
