"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour photographs of 32 x 32 pixels each."""

from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, final

import torch
import torchvision
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision.datasets.utils import check_integrity

from lightning_depth.data.base.pickles import from_planes, read_pickle
from lightning_depth.data.base.published import AbstractPublishedImages
from lightning_depth.data.base.sources import SourceSplit
from lightning_depth.errors import UserError

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


def read_batches(
    root: Path, published: Any, split: SourceSplit, labels: str
) -> tuple[UInt8[Tensor, "N 32 32 3"], Int64[Tensor, " N"]]:
    """Pixels and `labels` of a split from its pickles; a UserError where MD5 sums are not torchvision's `published`."""
    batches = []
    for name, md5 in published.train_list if split == "train" else published.test_list:
        path = root / published.base_folder / name
        if not check_integrity(path, md5):
            wrong = f"is not the published file (its MD5 sum is not {md5}): corrupt or truncated"
            advice = f"Replace it, or remove the folder {path.parent} to use another source."
            raise UserError(f"{path} {wrong}.\n{advice}")
        batches.append(read_pickle(path))
    numbers = [number for batch in batches for number in batch[labels]]
    return from_planes([batch["data"] for batch in batches]), torch.tensor(numbers)


@final
class CIFAR10(AbstractPublishedImages):
    """CIFAR-10 from `<root>/cifar-10-batches-py`, `<root>/cifar10/{train,test}/<class>/*` or a download (170 MB)."""

    title = "CIFAR-10"
    origin = torchvision.datasets.CIFAR10
    folder = "cifar10"
    files = (*(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)), "cifar-10-batches-py/test_batch")
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    published_normalisation = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

    def read_files(self, split: SourceSplit) -> tuple[UInt8[Tensor, "N 32 32 3"], Int64[Tensor, " N"]]:
        return read_batches(self.root, self.origin, split, "labels")


@final
class CIFAR100(AbstractPublishedImages):
    """CIFAR-100 from `<root>/cifar-100-python`, `<root>/cifar100/{train,test}/<class>/*` or a download (169 MB).

    Args:
        labels: "fine": the 100 classes; "coarse": the 20 superclasses, which `classes` then names.
        kwargs: the arguments of `AbstractPublishedImages`.
    """

    title = "CIFAR-100"
    origin = torchvision.datasets.CIFAR100
    folder = "cifar100"
    files = ("cifar-100-python/train", "cifar-100-python/test")
    names = tuple(sorted(name for names in SUPERCLASSES.values() for name in names))
    published_normalisation = [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]

    def __init__(self, labels: Literal["fine", "coarse"] = "fine", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = labels
        if labels == "coarse":
            self.names = tuple(SUPERCLASSES)
            self.folders = {name: (name, *parts) for name, parts in SUPERCLASSES.items()}

    def read_files(self, split: SourceSplit) -> tuple[UInt8[Tensor, "N 32 32 3"], Int64[Tensor, " N"]]:
        return read_batches(self.root, self.origin, split, f"{self.labels}_labels")
