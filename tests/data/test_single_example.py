"""One or few images to be returned."""

import pytest
import torch

from lightning_depth.data.cifar import CIFAR10
from lightning_depth.data.embedded_digits import EmbeddedDigits, embedded_digits
from lightning_depth.data.single_example import SingleExample
from lightning_depth.errors import UserError
from tests.data.small import Squares


def test_the_example_is_the_one_that_is_asked_for():
    x, y = SingleExample(EmbeddedDigits(), labels=["7"], indices=[3]).split("train")
    digits = embedded_digits("train")
    image = digits.images[digits.labels == 7][3, :, :, 0]
    assert torch.equal(x[0, 0], image / 255)
    assert torch.equal(x, y)
    assert x.shape == (1, 1, 28, 28)


def test_few_examples_of_several_classes():
    x, _ = SingleExample(Squares(), labels=[3, 7], indices=[2, 0]).split("train")
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [5 * i + 1 for i in (23, 3, 27, 7)]


def test_other_images_are_of_the_test_split():
    x, y = SingleExample(Squares(classes=[2, 5]), test_samples=15).split("val")
    assert sorted((x[:, 0, 0, 0] * 255).round().tolist()) == [5 * i + 2 for i in (2, 5, 12, 15)]
    assert torch.equal(x, y)
    many = SingleExample(Squares(), test_samples=15)
    assert len(many.split("val").inputs) == len(many.split("val").inputs.unique(dim=0)) == 15


def test_size_and_channels_are_those_of_the_images():
    data = SingleExample(EmbeddedDigits(image_size=14, rgb=True), test_samples=2)
    assert data.input_shape == data.target_shape == (3, 14, 14)
    x = data.split("test").inputs
    assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize(
    ("images", "arguments", "said"),
    [
        ({}, {"labels": ["seven"]}, "There is no class 'seven'"),
        ({}, {"indices": [4]}, "There is no image 4 of class '7': its 4 training images count from 0"),
        ({}, {"indices": [1, 1]}, "must be different"),
        ({}, {"indices": [-1]}, "count from 0"),
        ({}, {"labels": []}, "at least one"),
        ({}, {"labels": [7, "7"]}, "named more than once"),
        ({"samples_per_class": 2}, {}, "samples_per_class of `images` would have no effect"),
        ({"augment": "crop", "val_fraction": 0.1}, {}, "val_fraction, augment"),
    ],
)
def test_impossible_examples_are_mistakes(images, arguments, said):
    with pytest.raises(UserError, match=said):
        SingleExample(Squares(**images), **arguments).setup("fit")


def test_missing_images_are_a_mistake(tmp_path):
    with pytest.raises(UserError, match="CIFAR-10 is not under"):
        SingleExample(CIFAR10(root=str(tmp_path), download=False)).prepare_data()
