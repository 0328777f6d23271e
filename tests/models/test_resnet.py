import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_depth.callbacks import WeightDistance
from lightning_depth.data import EmbeddedDigits
from lightning_depth.errors import UserError
from lightning_depth.models import ResNet
from lightning_depth.models.losses import sample_losses
from lightning_depth.models.resnet import TABLE_1, ResNetNetwork
from lightning_depth.models.shapes import Shapes
from lightning_depth.training.goals import Goals


def built(**arguments):
    model = ResNet(input_shape=(3, 32, 32), num_classes=10, **arguments)
    model.configure_model()
    return model


# The counts of the CIFAR ResNets of He et al. at width 64, as published implementations report them.
@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_173_962), (34, 21_282_122)])
def test_parameters_are_those_of_the_published_networks(depth, parameters):
    assert sum(p.numel() for p in built(depth=depth, width=64).parameters()) == parameters


@pytest.mark.parametrize("depth", TABLE_1)
def test_depth_counts_the_layers_on_the_longest_path(depth):
    network = built(depth=depth, width=1).net
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(layers) == depth


def test_widths_and_strides_are_those_of_figure_10():
    network = built(depth=10, width=3).net
    shapes = []
    x = network.stem(torch.zeros(1, 3, 32, 32))
    for stage in (network.stage1, network.stage2, network.stage3, network.stage4):
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(3, 32, 32), (6, 16, 16), (12, 8, 8), (24, 4, 4)]


def test_blocks_give_any_other_depth():
    assert built(blocks=[5, 1, 1, 1], width=1).blocks == (5, 1, 1, 1)
    assert built(blocks=[2, 2, 2, 2], depth=18, width=1).blocks == TABLE_1[18]


@pytest.mark.parametrize("kernel_size", [1, 5, 7])
def test_kernel_size_keeps_the_image_size(kernel_size):
    network = built(depth=10, width=2, kernel_size=kernel_size).net
    assert network.stage1(network.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 2, 32, 32)
    kernels = {m.kernel_size[0] for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n}
    assert kernels == {kernel_size}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16), (4, 19, 23)])
def test_any_channels_size_and_classes(shape):
    model = ResNet(depth=10, width=2, input_shape=shape, num_classes=7)
    model.configure_model()
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 17}, "not in Table 1"),
        ({}, "not in Table 1"),
        ({"depth": 18, "blocks": [1, 1, 1, 1]}, "disagree"),
        ({"blocks": [1, 1, 1]}, "four positive"),
        ({"blocks": [1, 1, 0, 1]}, "four positive"),
        ({"depth": 18, "kernel_size": 4}, "odd"),
        ({"depth": 18, "width": 0}, "at least 1"),
    ],
)
def test_user_errors_are_named(arguments, said):
    with pytest.raises(UserError, match=said):
        ResNet(**arguments)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def test_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = weights(built(depth=10, width=2, seed=3))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, weights(built(depth=10, width=2, seed=3)))
    assert not torch.equal(first, weights(built(depth=10, width=2, seed=4)))


def test_residual_connection_is_there():
    network = ResNetNetwork(3, 10, (1, 1, 1, 1), 4, 3).eval()
    block = network.stage1[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x)


FIVE = Shapes((3,), classes=5)


def test_mse_is_torchs_on_one_hot_targets():
    outputs, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    one_hot = nn.functional.one_hot(labels, 5).float()
    torch.testing.assert_close(sample_losses("mse", outputs, labels, FIVE).mean(), nn.MSELoss()(outputs, one_hot))
    torch.testing.assert_close(
        sample_losses("cross_entropy", outputs, labels, FIVE).mean(), nn.CrossEntropyLoss()(outputs, labels)
    )


def digits(**arguments):
    return EmbeddedDigits(samples_per_class=10, eval_batch_size=300, **arguments)


def trainer(**arguments):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **arguments,
    )


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_logged_metrics_are_means_over_all_samples(loss, tmp_path):
    model, data = ResNet(depth=10, width=2, loss=loss), digits(batch_size=32)
    fit = trainer(max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path)
    fit.fit(model, datamodule=data)
    model.eval()
    with torch.no_grad():
        batches = [(model(x), y) for x, y in data.test_dataloader()]
    outputs, labels = torch.cat([o for o, _ in batches]), torch.cat([y for _, y in batches])
    assert len(labels) == 1000  # 300 + 300 + 300 + 100: a mean of batch means would differ
    expected = sample_losses(loss, outputs.double(), labels, model.shapes).mean()
    assert float(fit.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(fit.callback_metrics["val/acc"]) == float((outputs.argmax(-1) == labels).double().mean())


def test_training_stops_at_the_stated_accuracy(tmp_path):
    model, probe = ResNet(depth=10, width=2), WeightDistance(every="last")
    fit = trainer(max_epochs=5, enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[probe, Goals(0.0)])
    fit.fit(model, datamodule=digits())
    assert fit.current_epoch == 1
    assert {r.epoch for r in probe.readings} == {1}  # it knew that this look was the last
    assert float(fit.callback_metrics["train/acc"]) > 0
    never = ResNet(depth=10, width=2)
    fit = trainer(max_epochs=2, enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[Goals(1.0)])
    fit.fit(never, datamodule=digits())
    assert fit.current_epoch == 2


def test_a_checkpoint_is_enough_to_build_the_network_again(tmp_path):
    model = ResNet(depth=10, width=2)
    fit = trainer(max_epochs=1, default_root_dir=tmp_path)
    fit.fit(model, datamodule=digits())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    again = ResNet.load_from_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(weights(model), weights(again))
    assert again.num_classes == 10
    assert again.input_shape == (1, 28, 28)


def test_a_network_that_does_not_fit_the_data_is_refused(tmp_path):
    model = ResNet(depth=10, width=2, num_classes=3)
    with pytest.raises(UserError, match="num_classes=3, but the data have 10"):
        trainer(max_epochs=1, default_root_dir=tmp_path).fit(model, datamodule=digits())
    with pytest.raises(UserError, match="needs input_shape"):
        ResNet(depth=10).configure_model()


def test_convolutions_are_channels_last_unless_asked_otherwise():
    assert built(depth=10, width=8).layout == torch.channels_last
    assert built(depth=10, width=16, channels_last=False).layout == torch.contiguous_format
