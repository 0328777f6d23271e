"""CIFAR-100, with fine and with coarse labels."""

import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
import torchvision

from lightning_depth.data import CIFAR100
from lightning_depth.data.cifar import SUPERCLASSES
from lightning_depth.errors import UserError
from tests.data.batch_files import Calls, batch


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """CIFAR-100's two pickles in small, every class twice, and their MD5 sums published."""
    home, published = tmp_path / "cifar-100-python", torchvision.datasets.CIFAR100
    home.mkdir()
    coarse = [
        list(SUPERCLASSES).index(c) for name in CIFAR100.names for c, names in SUPERCLASSES.items() if name in names
    ]
    for attribute, seed in (("train_list", 0), ("test_list", 1)):
        ((name, _),) = getattr(published, attribute)
        fine = [i % 100 for i in range(200)]
        content = {
            "data": batch(200, seed=seed)["data"],
            "fine_labels": fine,
            "coarse_labels": [coarse[c] for c in fine],
        }
        (home / name).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(published, attribute, [[name, hashlib.md5((home / name).read_bytes()).hexdigest()]])
    return home


def test_cifar100_files_are_read_as_torchvision_reads_them(cifar100, monkeypatch):
    (cifar100 / "meta").write_bytes(pickle.dumps({"fine_label_names": list(CIFAR100.names)}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = CIFAR100(root=str(cifar100.parent), download=False)
    for split, loader in ((True, data.train_dataloader()), (False, data.test_dataloader())):
        reference = torchvision.datasets.CIFAR100(str(cifar100.parent), train=split)
        assert np.array_equal(loader.images.numpy(), reference.data)
        assert loader.labels.tolist() == reference.targets
    assert (data.num_classes, data.class_names[0], data.class_names[-1]) == (100, "apple", "worm")


def test_cifar100_coarse_labels(cifar100):
    data = CIFAR100(labels="coarse", root=str(cifar100.parent), classes=["people", "aquatic_mammals"])
    assert (data.class_names, data.train_size) == (["people", "aquatic_mammals"], 20)
    fine = CIFAR100(root=str(cifar100.parent), classes=["whale"])
    mammals = data.train_dataloader().images[data.train_dataloader().labels == 1]
    assert {tuple(x.flatten().tolist()) for x in fine.train_dataloader().images} <= {
        tuple(x.flatten().tolist()) for x in mammals
    }
    with pytest.raises(UserError, match="no class 'whale'"):
        CIFAR100(labels="coarse", root=str(cifar100.parent), classes=["whale"]).setup()


def test_the_superclasses_are_the_published_ones():
    # The published coarse label of each fine label, in order.
    published = """
        4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 5 19 8 8 15 13
        14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19
        18 1 2 15 6 0 17 8 14 13"""
    groups = list(SUPERCLASSES.values())
    assert [next(i for i, group in enumerate(groups) if name in group) for name in CIFAR100.names] == [
        int(number) for number in published.split()
    ]


def test_cifar100_as_a_folder_of_fine_classes_has_coarse_labels_too(image_folder):
    root = image_folder("cifar100", ["whale", "boy", "seal"], train=2, test=1).parent
    data = CIFAR100(labels="coarse", root=str(root), classes=["people", "aquatic_mammals"])
    assert torch.bincount(data.train_dataloader().labels).tolist() == [2, 4]
    assert CIFAR100(root=str(root), classes=["whale", "boy"]).train_size == 4


def test_a_corrupt_cifar100_is_named_and_never_unpickled(cifar100, tmp_path):
    (cifar100 / "train").write_bytes(pickle.dumps(Calls(os.system, f"touch {tmp_path / 'canary'}")))
    with pytest.raises(UserError, match="cifar-100-python/train is not the published file"):
        CIFAR100(root=str(cifar100.parent)).setup()
    assert not (tmp_path / "canary").exists()
