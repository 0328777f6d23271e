import hashlib
import pickle
import struct

import numpy as np
import pytest
import torchvision
from PIL import Image


@pytest.fixture
def image_folder(tmp_path):
    """Write `<tmp>/<name>/{train,test}/<class>/<i>.<suffix>`; pixel values tell class and number."""

    def write(name="mine", classes=("cat", "dog"), train=6, test=3, size=(8, 8), mode="RGB", suffix="png"):
        for split, count in (("train", train), ("test", test)):
            for c, cls in enumerate(classes):
                folder = tmp_path / name / split / cls
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", size, (20 * c, 5 * i, 100 + i)).convert(mode).save(folder / f"{i:03}.{suffix}")
        return tmp_path / name

    return write


@pytest.fixture
def mnist_files(tmp_path):
    """Write the four idx files of MNIST in small: 40 training and 20 test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, n in (("train", 40), ("t10k", 20)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + pixels.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + labels.tobytes())
    return raw


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """Write CIFAR-10's pickled batches in small, 20 images each, and publish their MD5 sums."""
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    rng = np.random.default_rng(0)
    published = torchvision.datasets.CIFAR10
    for attribute in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(published, attribute):
            batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
            content = pickle.dumps(batch)
            (home / name).write_bytes(content)
            sums.append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(published, attribute, sums)
    return home
