"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 + 10,000 grey pictures of clothes, made to replace MNIST."""

from types import MappingProxyType
from typing import final

import torchvision

from lightning_depth.data.mnist import AbstractIdxImages, idx_files


@final
class FashionMNIST(AbstractIdxImages):
    """Fashion-MNIST from `<root>/FashionMNIST/raw/*-ubyte`, `<root>/fashion_mnist/{train,test}/<class>/*` or download.

    The download is 31 MB. The first class's folder is T-shirt_top, for its name has a slash in it.
    """

    title = "Fashion-MNIST"
    folder = "fashion_mnist"
    files = idx_files("FashionMNIST/raw")
    names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    folders = MappingProxyType({"T-shirt/top": ("T-shirt_top", "T-shirt/top")})
    published_normalisation = [0.2860], [0.3530]

    def fetch(self, folder: str) -> None:
        """Download and unpack with torchvision."""
        torchvision.datasets.FashionMNIST(folder, download=True)
