"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour photographs of 32 x 32 pixels in 100 classes, 20 superclasses."""

import hashlib
from types import MappingProxyType
from typing import Any, Literal, final

import numpy as np
import torch
import torchvision

from lightning_depth.data.base.pickles import read_pickle
from lightning_depth.data.base.published import AbstractPublishedImages
from lightning_depth.data.base.sources import Arrays, SourceSplit
from lightning_depth.errors import UserError

HOME = torchvision.datasets.CIFAR100.base_folder
SUPERCLASSES = MappingProxyType(
    {
        "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
        "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
        "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
        "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
        "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
        "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
        "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
        "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
        "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
        "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
        "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
        "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
        "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
        "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
        "people": ("baby", "boy", "girl", "man", "woman"),
        "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
        "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
        "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
        "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
        "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
    }
)
"""Superclass -> its five classes; the numbers of both follow the alphabet."""


@final
class CIFAR100(AbstractPublishedImages):
    """CIFAR-100 from `<root>/cifar-100-python`, `<root>/cifar100/{train,test}/<class>/*` or a download (169 MB).

    Args:
        labels: "fine": the 100 classes; "coarse": the 20 superclasses, which `classes` then names.
        kwargs: the arguments of `AbstractPublishedImages`.
    """

    title = "CIFAR-100"
    folder = "cifar100"
    files = (f"{HOME}/train", f"{HOME}/test")
    channels = 3
    names = tuple(sorted(name for names in SUPERCLASSES.values() for name in names))
    published_normalisation = [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]

    def __init__(self, labels: Literal["fine", "coarse"] = "fine", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = labels
        if labels == "coarse":
            self.names = tuple(SUPERCLASSES)
            self.folders = {name: (name, *parts) for name, parts in SUPERCLASSES.items()}

    def read_files(self, split: SourceSplit) -> Arrays:
        """A split from its pickle, which must have the published MD5 sum."""
        published = torchvision.datasets.CIFAR100
        ((name, md5),) = published.train_list if split == "train" else published.test_list
        path = self.root / HOME / name
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != md5:
            raise UserError(
                f"{path} is not the published file (its MD5 sum is not {md5}): corrupt or truncated.\n"
                f"Replace it, or remove the folder {path.parent} to use another source."
            )
        batch = read_pickle(path)
        pixels = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Arrays(
            torch.tensor(batch[f"{self.labels}_labels"]),
            list(self.names),
            self.published_normalisation,
            torch.from_numpy(np.ascontiguousarray(pixels)),
        )

    def fetch(self, folder: str) -> None:
        """Download and unpack with torchvision."""
        torchvision.datasets.CIFAR100(folder, download=True)
