"""ImageNet32's batch files, its classes, and what is said where they are not there."""

import pickle

import numpy as np
import pytest
import torch
import torchvision

from lightning_depth.data import ImageNet32
from lightning_depth.data.base.imagenet_classes import DEVKIT_NAMES, SORTED_NAMES
from lightning_depth.data.imagenet32 import NICHANI2020_CLASSES
from lightning_depth.errors import UserError
from tests.data.batch_files import batch


@pytest.fixture(params=["pickle", "npz"])
def imagenet32(request, tmp_path):
    """The eleven official files in small: 12 images each, of labels 1 to 4."""
    home = tmp_path / "imagenet32"
    home.mkdir()
    for i, name in enumerate([*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]):
        if request.param == "pickle":
            (home / name).write_bytes(pickle.dumps(batch(seed=i), protocol=3))
        else:
            np.savez(home / name, **batch(seed=i))
    return home


def test_imagenet32_reads_all_its_files_and_labels_start_from_one(imagenet32):
    data = ImageNet32(root=str(imagenet32.parent), classes=["Siberian_husky", "n02119789"])
    data.setup()
    assert data.source.kind == "batch files"
    assert (data.class_names, data.input_shape, data.train_size) == (["Siberian_husky", "kit_fox"], (3, 32, 32), 60)
    loader, first = data.train_dataloader(), batch()["data"]
    planes = loader.images.permute(0, 3, 1, 2).flatten(1)
    assert torch.equal(planes[0], torch.from_numpy(first[0]))  # label 1, the second class asked for
    assert torch.equal(planes[1], torch.from_numpy(first[2]))
    assert loader.labels[:4].tolist() == [1, 0, 1, 0]
    assert data.test_dataloader().labels.tolist() == [1, 0] * 3
    pixels = loader.images.double() / 255
    torch.testing.assert_close(torch.tensor(data.normalisation[0]).double(), pixels.mean((0, 1, 2)))


def test_imagenet32_numbers_are_those_of_the_kit_less_one(imagenet32):
    by_number = ImageNet32(root=str(imagenet32.parent), classes=[0, 3])
    assert by_number.class_names == ["kit_fox", "Australian_terrier"]


def test_the_classes_of_nichani2020_exist_and_lie_within_one_another():
    two, five, ten = (NICHANI2020_CLASSES[n] for n in (2, 5, 10))
    assert [len(two), len(five), len(ten)] == [2, 5, 10]
    assert ten[:5] == five
    assert five[:2] == two
    assert set(ten) <= set(ImageNet32.names)


def test_the_table_of_imagenets_classes():
    kit, by_id = list(DEVKIT_NAMES.values()), list(SORTED_NAMES.values())
    assert len(set(kit)) == len(kit) == len(set(DEVKIT_NAMES)) == 1000
    assert by_id == [name.replace(" ", "_") for name in torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]]
    # Of map_clsloc.txt: labels from 1.
    for label, name in {
        1: "kit_fox",
        2: "English_setter",
        8: "Egyptian_cat",
        429: "crane_bird",
        1000: "dumbbell",
    }.items():
        assert kit[label - 1] == name
    assert (DEVKIT_NAMES["n02119789"], DEVKIT_NAMES["n01440764"], by_id[0]) == ("kit_fox", "tench", "tench")


def test_a_class_that_does_not_exist_is_told_in_two_short_lines(imagenet32):
    with pytest.raises(UserError, match=r"no class 'kitfox'. Did you mean 'kit_fox'\?") as error:
        ImageNet32(root=str(imagenet32.parent), classes=["kitfox"]).setup()
    assert len(str(error.value)) < 200


def test_imagenet32_is_complete_or_a_mistake(imagenet32):
    last = sorted(imagenet32.iterdir())[-1]
    last.unlink()
    with pytest.raises(UserError, match=f"ImageNet32 is incomplete: .*{last.name} is missing"):
        ImageNet32(root=str(imagenet32.parent)).setup()


def test_imagenet32_that_is_nowhere_says_where_to_put_it(tmp_path):
    with pytest.raises(UserError, match="Put train_data_batch_1 to train_data_batch_10 and val_data there") as error:
        ImageNet32(root=str(tmp_path)).setup()
    assert len(str(error.value).splitlines()) == 2
