"""MNIST (LeCun et al. 1998), handwritten digits, and Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), made to replace it.

60,000 + 10,000 grey images of 28 x 28 pixels each, in ten classes.
"""

import math
import struct
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
import torchvision
from jaxtyping import Int64, UInt8
from torch import Tensor

from lightning_depth.data.base.published import AbstractPublishedImages
from lightning_depth.data.base.sources import SourceSplit
from lightning_depth.errors import UserError

IDX_FILES = tuple(f"{part}-{content}-ubyte" for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1"))


@final
class MNIST(AbstractPublishedImages):
    """MNIST from `<root>/MNIST/raw/*-ubyte`, `<root>/mnist/{train,test}/<digit>/*` or a download (12 MB)."""

    title = "MNIST"
    origin = torchvision.datasets.MNIST
    folder = "mnist"
    files = tuple(f"MNIST/raw/{file}" for file in IDX_FILES)
    names = tuple("0123456789")
    published_normalisation = [0.1307], [0.3081]

    def read_files(self, split: SourceSplit) -> tuple[UInt8[Tensor, "N H W 1"], Int64[Tensor, " N"]]:
        return read_split(self.root / "MNIST/raw", split)


@final
class FashionMNIST(AbstractPublishedImages):
    """Fashion-MNIST from `<root>/FashionMNIST/raw/*-ubyte`, `<root>/fashion_mnist/{train,test}/<class>/*` or download.

    The download is 31 MB. The first class's folder is T-shirt_top, for its name has a slash in it.
    """

    title = "Fashion-MNIST"
    origin = torchvision.datasets.FashionMNIST
    folder = "fashion_mnist"
    files = tuple(f"FashionMNIST/raw/{file}" for file in IDX_FILES)
    names = tuple(torchvision.datasets.FashionMNIST.classes)
    folders = MappingProxyType({"T-shirt/top": ("T-shirt_top", "T-shirt/top")})
    published_normalisation = [0.2860], [0.3530]

    def read_files(self, split: SourceSplit) -> tuple[UInt8[Tensor, "N H W 1"], Int64[Tensor, " N"]]:
        return read_split(self.root / "FashionMNIST/raw", split)


def read_split(home: Path, split: SourceSplit) -> tuple[UInt8[Tensor, "N H W 1"], Int64[Tensor, " N"]]:
    """Images and labels from the two idx files of a split; a UserError where they do not belong together."""
    images_file, labels_file = (home / file for file in IDX_FILES[2 * (split == "test") :][:2])
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise UserError(f"{labels_file} has {len(labels)} labels for {len(images)} images.")
    if (labels >= 10).any():
        raise UserError(f"{labels_file} is corrupt: it has a label above 9.")
    return images[..., None], labels.long()


def read_idx(path: Path, dimensions: int) -> UInt8[Tensor, "..."]:
    """A file of bytes in the idx format: 0, 0, 8, the number of dimensions, the sizes as big-endian uint32, the bytes.

    Raises a UserError where the header or the length is wrong.
    """
    content = path.read_bytes()
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{path} is corrupt: it does not begin like an idx file of bytes in {dimensions} dimensions.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise UserError(f"{path} is corrupt: {len(content)} bytes instead of {header + math.prod(shape)}.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
