"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour photographs of 32 x 32 pixels in 10 classes."""

import hashlib
import pickle
from typing import final

import numpy as np
import torch
import torchvision

from lightning_depth.data.base.published import AbstractPublishedImages
from lightning_depth.data.base.sources import Arrays, SourceSplit
from lightning_depth.errors import UserError

HOME = torchvision.datasets.CIFAR10.base_folder


@final
class CIFAR10(AbstractPublishedImages):
    """CIFAR-10 from `<root>/cifar-10-batches-py`, `<root>/cifar10/{train,test}/<class>/*` or a download (170 MB)."""

    title = "CIFAR-10"
    folder = "cifar10"
    files = tuple(
        f"{HOME}/{name}" for name, _ in torchvision.datasets.CIFAR10.train_list + torchvision.datasets.CIFAR10.test_list
    )
    channels = 3
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    published_normalisation = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

    def read_files(self, split: SourceSplit) -> Arrays:
        """A split from the pickled batches, each unpickled only if it has the published MD5 sum."""
        published = torchvision.datasets.CIFAR10
        images, labels = [], []
        for name, md5 in published.train_list if split == "train" else published.test_list:
            path = self.root / HOME / name
            content = path.read_bytes()
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                raise UserError(
                    f"{path} is not the published file (its MD5 sum is not {md5}): corrupt or truncated.\n"
                    f"Replace it, or remove the folder {path.parent} to use another source."
                )
            batch = pickle.loads(content, encoding="latin1")
            images.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += batch["labels"]
        pixels = torch.from_numpy(np.ascontiguousarray(np.concatenate(images)))
        return Arrays(torch.tensor(labels), list(self.names), self.published_normalisation, pixels)

    def fetch(self, folder: str) -> None:
        """Download and unpack with torchvision."""
        torchvision.datasets.CIFAR10(folder, download=True)
