"""Arguments and data that a family cannot take are named."""

import pytest

from lightning_depth.errors import UserError
from lightning_depth.models import MLP, ConvNet, DeepLinear, FullyConv, HuhCNN, ResNet
from lightning_depth.models.activations import Sine
from tests.models.built import built, images


@pytest.mark.parametrize(
    ("family", "arguments", "said"),
    [
        (MLP, {"depth": -1}, "at least 0"),
        (MLP, {"width": 0}, "at least 1"),
        (MLP, {"initial": "siren"}, "for activation=sine, not relu"),
        (ConvNet, {"kernel_size": 4}, "odd"),
        (ConvNet, {"depth": 0}, "at least 1"),
        (ConvNet, {"initial": "siren"}, "for activation=sine"),
        (FullyConv, {"kernel_size": 2}, "odd"),
        (FullyConv, {"width": 0}, "at least 1"),
        (FullyConv, {"initial": "siren"}, "for activation=sine"),
        (HuhCNN, {"width": 0}, "at least 1"),
        (HuhCNN, {"kernel_size": 2}, "odd"),
        (HuhCNN, {"initial": "siren"}, "for activation=sine"),
        (DeepLinear, {"depth": 0}, "at least 1"),
        (DeepLinear, {"width": 0}, "at least 1"),
        (DeepLinear, {"initial": "siren"}, "no sines"),
        (DeepLinear, {"depth": 4, "initial_depth": 3}, "at least depth=4"),
        (DeepLinear, {"initial_depth": 8, "residual": True}, "plain products"),
        (DeepLinear, {"initial_depth": 8, "layer": "toeplitz"}, "plain products"),
        (ResNet, {"depth": 10, "extra_blocks": 2}, "give both"),
        (ResNet, {"depth": 10, "extra_blocks": 2, "extra_stage": 5}, "stages 1 to 4"),
        (ResNet, {"depth": 10, "extra_blocks": -1, "extra_stage": 1}, "stages 1 to 4"),
    ],
)
def test_wrong_arguments_are_named(family, arguments, said):
    with pytest.raises(UserError, match=said):
        family(**arguments)


def test_networks_that_do_not_fit_the_data_are_named():
    circular = {"kernel_size": 7, "padding_mode": "circular"}
    for family, more in ((ConvNet, {"output": "classes"}), (FullyConv, {})):
        with pytest.raises(UserError, match="7 x 7 is larger than an image of 6 x 6"):
            built(family, shape=(1, 6, 6), **circular, **more)
    model = built(ConvNet, shape=(1, 8, 8), depth=1, target_shape=(1, 8, 8), **circular)
    model(images(1, 1, 7, 9))
    with pytest.raises(UserError, match="larger than an image of 5 x 9"):
        model(images(1, 1, 5, 9))
    with pytest.raises(UserError, match="these are classes"):
        built(ConvNet, depth=1)
    with pytest.raises(UserError, match=r"these are of shape \(5,\)"):
        built(ConvNet, depth=1, target_shape=(5,))
    with pytest.raises(UserError, match="image_size of at least 8"):
        built(HuhCNN, shape=(3, 6, 6))
    with pytest.raises(UserError, match="initial_scale=0"):
        built(MLP, initial_scale=0.0)
    with pytest.raises(UserError, match="beta=-1"):
        built(MLP, initial="ntk", beta=-1.0)
    with pytest.raises(UserError, match="omega_0=0"):
        built(MLP, activation="sine", omega_0=0.0)
    assert repr(Sine(2.0)) == "Sine(omega_0=2.0)"
