"""Every family trains, alone or on zhang2019's one example, and a checkpoint rebuilds it."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.models import MLP, ConvNet, DeepLinear, FullyConv, HuhCNN, ResNet
from tests.models.built import SEED, built, flat


class One(AbstractTensorData):
    def make(self, split, samples, stream):
        x = torch.randn(samples, 1, 3, 3, generator=stream)
        return x, x.clone()


class Numbers(AbstractTensorData):
    def make(self, split, samples, stream):
        x = torch.randn(samples, 6, generator=stream)
        return x, x[:, :5].clone()


def trainer(path, **arguments):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=path,
        **arguments,
    )


# Lightning says that a recipe's functions stay out of the hyper-parameters: so they do, and loading needs none.
def sgd(lr, momentum=0.0):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def test_one_linear_layer_trained_on_one_example_is_equation_1_of_zhang2019(tmp_path):
    data = One(train_samples=1, test_samples=50, seed=3)
    x_hat = data.split("train").inputs[0].flatten()
    # The loss is a mean over 9 outputs: this rate halves the error at each step.
    model = MLP(depth=0, bias=False, activation="identity", optimizer=sgd(0.25 * 9 / float(x_hat @ x_hat)), seed=SEED)
    trainer(tmp_path, max_epochs=30, limit_val_batches=0).fit(model, datamodule=data)
    start = model.initial_state()["net.head.weight"]
    x = data.split("test").inputs.flatten(1)
    along = (x @ x_hat)[:, None] / (x_hat @ x_hat)
    expected = along * x_hat + (x - along * x_hat) @ start.mT
    torch.testing.assert_close(model(x.view(-1, 1, 3, 3)).flatten(1), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, x, atol=0.1)
    assert float((model.net.head.weight - start).detach().svd().S[1]) < 1e-6  # W_T = W_0 + u x^T


def test_only_the_bottom_layer_moves_and_only_along_the_example(tmp_path):
    data = One(train_samples=1, test_samples=1, seed=3)
    model = MLP(depth=2, width=16, train="bottom", optimizer=sgd(0.1, momentum=0.9), seed=SEED)
    trainer(tmp_path, max_epochs=20, limit_val_batches=0).fit(model, datamodule=data)
    start = model.initial_state()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) == (not name.startswith("net.layer1")), name
    assert [p for group in model.configure_optimizers().param_groups for p in group["params"]] == list(
        model.net.layer1.parameters()
    )
    # zhang2019 Eq. 2: W_T = W_0 + u x^T
    moved = (model.net.layer1.weight - start["net.layer1.weight"]).detach()
    x_hat = data.split("train").inputs[0].flatten()
    torch.testing.assert_close(moved, torch.outer(moved @ x_hat, x_hat) / (x_hat @ x_hat), atol=1e-6, rtol=1e-4)
    assert float(moved.norm()) > 0.01


class Pictures(AbstractTensorData):
    def make(self, split, samples, stream):
        return torch.randn(samples, 3, 16, 16, generator=stream), torch.arange(samples) % 10


def autoencoding():
    return One(train_samples=40, test_samples=10, batch_size=20)


def regression():
    return Numbers(train_samples=40, test_samples=10, batch_size=20)


def pictures():
    return Pictures(train_samples=40, test_samples=10, batch_size=20)


FAMILIES = {
    "mlp": (MLP, pictures, {"depth": 2, "width": 8}),
    "mlp, sine": (MLP, pictures, {"depth": 2, "width": 8, "activation": "sine"}),
    "mlp, ntk": (MLP, pictures, {"depth": 2, "width": 8, "initial": "ntk"}),
    "mlp, bottom": (MLP, pictures, {"depth": 2, "width": 8, "train": "bottom"}),
    "mlp, images": (MLP, autoencoding, {"depth": 1, "width": 8}),
    "conv_net": (
        ConvNet,
        autoencoding,
        {"depth": 2, "channels": 4, "kernel_size": 3},
    ),
    "conv_net, classes": (ConvNet, pictures, {"depth": 2, "channels": 4, "output": "classes", "readout": "flatten"}),
    "fully_conv": (FullyConv, pictures, {"depth": 2, "width": 4}),
    "deep_linear": (DeepLinear, regression, {"depth": 3, "initial_depth": 6}),
    "deep_linear, residual": (
        DeepLinear,
        regression,
        {"depth": 3, "residual": True, "batch_norm": True},
    ),
    "toeplitz": (DeepLinear, regression, {"depth": 3, "layer": "toeplitz"}),
    "huh_cnn": (HuhCNN, pictures, {"width": 2}),
    "resnet, extra": (ResNet, pictures, {"depth": 10, "width": 2, "extra_blocks": 1, "extra_stage": 3}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_a_checkpoint_rebuilds_it(name, tmp_path):
    family, data, arguments = FAMILIES[name]
    model = family(optimizer=sgd(0.01), seed=SEED, **arguments)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, datamodule=data())
    assert fit.global_step == 2
    start = model.initial_state()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    fit.save_checkpoint(tmp_path / "x.ckpt")
    again = family.load_from_checkpoint(tmp_path / "x.ckpt")
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    x = data().split("train").inputs[:5]
    assert torch.equal(model.eval()(x), again.eval()(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_seed_draws_the_same_weights(name):
    family, _, arguments = FAMILIES[name]
    shape = (1, 16, 16) if family is not DeepLinear else (6,)
    if name in ("mlp, images", "conv_net"):
        arguments = {**arguments, "target_shape": shape}
    first = flat(built(family, shape=shape, **arguments))
    torch.manual_seed(99)
    assert torch.equal(first, flat(built(family, shape=shape, **arguments)))
    other = family(
        input_shape=shape, seed=SEED + 1, num_classes=None if "target_shape" in arguments else 10, **arguments
    )
    other.configure_model()
    assert not torch.equal(first, flat(other))
