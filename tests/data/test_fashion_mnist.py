"""Fashion-MNIST, as torchvision's files and as a folder."""

import pytest
import torch
import torchvision

from lightning_depth.data import MNIST, FashionMNIST
from lightning_depth.errors import UserError


def test_fashion_mnist_is_read_as_torchvision_reads_it(mnist_files):
    home = mnist_files.parent.parent
    (home / "MNIST").rename(home / "FashionMNIST")
    data = FashionMNIST(root=str(home), download=False, classes=["Ankle boot", "T-shirt/top"])
    reference = torchvision.datasets.FashionMNIST(str(home), train=True)
    loader = data.train_dataloader()
    clothes = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
    assert list(FashionMNIST.names) == reference.classes == clothes.split(", ")
    assert torch.equal(loader.images[loader.labels == 0][..., 0], reference.data[reference.targets == 9])
    assert torch.equal(loader.images[loader.labels == 1][..., 0], reference.data[reference.targets == 0])
    assert data.normalisation == ([0.2860], [0.3530])
    with pytest.raises(UserError, match="download is off"):
        MNIST(root=str(home), download=False).setup()  # the one is not the other


def test_fashion_mnist_as_a_folder(image_folder):
    names = [name.replace("/", "_") for name in FashionMNIST.names]
    root = image_folder("fashion_mnist", names, train=2, test=1, mode="L").parent
    data = FashionMNIST(root=str(root))
    assert (data.num_classes, data.class_names[0], data.train_size) == (10, "T-shirt/top", 20)
