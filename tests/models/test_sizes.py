"""Parameter counts and shapes of the papers' networks."""

import math

import pytest
import torch
import torchvision
from torch import nn

from lightning_depth.models import MLP, ConvNet, FullyConv, HuhCNN, Imported, ResNet
from lightning_depth.models.imported import found
from lightning_depth.models.resnet import TABLE_1
from tests.models.built import built, count, images


# zhang2019 3.1.
@pytest.mark.parametrize(("depth", "width", "parameters"), [(1, 2048, 3_214_096), (3, 784, 2_461_760)])
def test_linear_autoencoders_have_the_parameters_that_zhang2019_counts(depth, width, parameters):
    model = built(MLP, depth=depth, width=width, activation="identity", target_shape=(1, 28, 28))
    assert count(model) == parameters
    assert model(images(2, 1, 28, 28)).shape == (2, 1, 28, 28)


def test_an_mlp_of_depth_l_has_l_hidden_layers_as_mori2020_counts_them():
    d, hidden, classes, depth = 20, 7, 3, 4
    model = built(MLP, shape=(d,), depth=depth, width=hidden, num_classes=classes)
    assert count(model) == hidden * (d + 1) + (depth - 1) * hidden * (hidden + 1) + classes * (hidden + 1)
    assert model(torch.zeros(5, d)).shape == (5, classes)
    assert sum(isinstance(m, nn.ReLU) for m in model.net) == depth


def test_a_convnet_of_zhang2019_has_128_channels_of_5_by_5():
    model = built(ConvNet, target_shape=(1, 28, 28))
    assert count(model) == (25 + 1) * 128 + 3 * (25 * 128 + 1) * 128 + (25 * 128 + 1)
    assert [type(m).__name__ for m in model.net] == ["Conv2d", "ReLU"] * 4 + ["Conv2d"]
    for size in (7, 28, 33):
        assert model(images(1, 1, size, size)).shape == (1, 1, size, size)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_the_linear_classifier_of_nichani2020_is_convolutions_and_a_mean(padding_mode):
    arguments = {"depth": 5, "channels": 32, "kernel_size": 3, "activation": "identity", "bias": False}
    model = built(ConvNet, shape=(3, 6, 6), output="classes", padding_mode=padding_mode, target_shape=(1,), **arguments)
    assert count(model) == 9 * (3 * 32 + 3 * 32 * 32 + 32)
    x = images(2, 3, 6, 6)
    expected = nn.Sequential(*model.net[:-2])(x).mean(dim=(-2, -1))
    torch.testing.assert_close(model(x), expected)
    with torch.no_grad():
        here, moved = model(x), model(x.roll((1, 2), (-2, -1)))
    shifted = torch.allclose(moved, here, atol=1e-5 * float(here.abs().max()))
    assert shifted == (padding_mode == "circular")  # zero padding alone tells the network where a pixel is


def test_a_convnet_reads_out_by_a_linear_layer_on_all_pixels():
    model = built(ConvNet, shape=(3, 8, 8), depth=2, channels=4, kernel_size=3, output="classes", readout="flatten")
    assert model.net.head.weight.shape == (10, 4 * 64)
    assert model(images(2, 3, 8, 8)).shape == (2, 10)


def test_a_fully_conv_net_is_that_of_figure_9():
    model = built(FullyConv, shape=(3, 16, 16), depth=3, width=16)
    kinds = [type(m).__name__ for m in model.net]
    assert kinds == ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3 + ["Conv2d", "AdaptiveAvgPool2d", "Flatten"]
    assert count(model) == 9 * (3 * 16 + 2 * 16 * 16) + 3 * 2 * 16 + 9 * 16 * 10 + 10
    assert model(images(2, 3, 16, 16)).shape == (2, 10)


def test_the_cifar_network_of_huh2021_is_that_of_appendix_e():
    model = built(HuhCNN, shape=(3, 32, 32))
    said = [type(m).__name__ for m in model.net]
    stage = ["Conv2d", "MaxPool2d", "ReLU"]
    assert said == [*stage * 3, "Conv2d", "ReLU", "AdaptiveMaxPool2d", "Flatten", "Linear", "ReLU", "Linear"]
    shapes = [tuple(p.shape) for n, p in model.net.named_parameters() if n.endswith("weight")]
    assert shapes == [(64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (512, 256, 3, 3), (256, 512), (10, 256)]
    assert count(model) == sum(math.prod(s) for s in shapes) + 64 + 128 + 256 + 512 + 256 + 10 == 1_684_874
    assert built(HuhCNN, width=4)(images(2, 1, 28, 28)).shape == (2, 10)


# 11,689,512 etc. as torchvision states them; ResNet-10 is ResNet-18 less the second block of each stage.
@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        ("torchvision.models.alexnet", 61_100_840),
        ("torchvision.models.resnet18", 11_689_512),
        ("torchvision.models.resnet34", 21_797_672),
        ("lightning_depth.models.imagenet.resnet10", None),
    ],
)
def test_imagenet_networks_are_torchvisions(network, parameters):
    net = _made(network)
    if parameters is None:
        second = sum(p.numel() for n, p in _made("torchvision.models.resnet18").named_parameters() if ".1." in n[:9])
        parameters = 11_689_512 - second
        assert parameters == 5_418_792
    assert sum(p.numel() for p in net.parameters()) == parameters


def _made(path):
    with torch.device("meta"):  # sizes alone: AlexNet's weights take a second to draw
        return found(path)()


def test_resnet10_is_imported_for_the_classes_of_the_data():
    network = "lightning_depth.models.imagenet.resnet10"
    model = built(Imported, shape=(3, 64, 64), network=network, num_classes=7)
    assert isinstance(model.net, torchvision.models.ResNet)
    assert [len(stage) for stage in (model.net.layer1, model.net.layer2, model.net.layer3, model.net.layer4)] == [1] * 4
    assert model.eval()(images(1, 3, 64, 64)).shape == (1, 7)


# nichani2020 Fig. 15.
@pytest.mark.parametrize("stage", [1, 3])
def test_extra_blocks_go_into_one_stage(stage):
    plain, more = built(ResNet, depth=10, width=2), built(ResNet, depth=10, width=2, extra_blocks=4, extra_stage=stage)
    grown = tuple(b - a for a, b in zip(plain.blocks, more.blocks, strict=True))
    assert grown == tuple(4 if index == stage else 0 for index in range(1, 5))
    filters = 2 * 2 ** (stage - 1)
    assert count(more) - count(plain) == 4 * 2 * (9 * filters**2 + 2 * filters)
    assert built(ResNet, depth=18, width=1, extra_blocks=0, extra_stage=1).blocks == TABLE_1[18]
