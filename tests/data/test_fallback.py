"""Real digits stand in for image data that are not there."""

import pytest

from lightning_depth.data import CIFAR100, FashionMNIST, ImageNet, ImageNet32
from lightning_depth.data.imagenet32 import NICHANI2020_CLASSES
from lightning_depth.errors import UserError


@pytest.mark.parametrize(
    ("cls", "arguments", "digits"),
    [
        (FashionMNIST, {"download": False, "classes": ["Bag", "Trouser"]}, "81"),
        (CIFAR100, {"download": False}, "0123456789"),
        (CIFAR100, {"download": False, "labels": "coarse", "classes": ["people", "trees"]}, "01"),
        (ImageNet32, {"classes": list(NICHANI2020_CLASSES[5]), "samples_per_class": 1300}, "01234"),
        (ImageNet, {"classes": ["dumbbell", 7], "image_size": 32}, "01"),
    ],
)
def test_the_digits_stand_in(tmp_path, capsys, cls, arguments, digits):
    data = cls(root=str(tmp_path), fallback="embedded_digits", augment="random_resized_crop_flip", **arguments)
    data.setup()
    assert data.source.fallback
    assert capsys.readouterr().err.count("stands in for") == 1
    assert data.class_names == list(digits)
    assert data.train_size == 400 * len(digits)
    assert data.train_dataloader().transform.augment == "random_resized_crop"  # a mirrored 2 is no digit
    with pytest.raises(UserError, match="no class 'kit_foks'"):
        cls(root=str(tmp_path), fallback="embedded_digits", **{**arguments, "classes": ["kit_foks"]}).setup()
