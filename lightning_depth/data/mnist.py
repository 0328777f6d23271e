"""MNIST (LeCun et al. 1998): 60,000 + 10,000 handwritten digits of 28 x 28 grey pixels."""

import math
import struct
from abc import ABC
from pathlib import Path
from typing import final

import torch
import torchvision
from jaxtyping import UInt8
from torch import Tensor

from lightning_depth.data.base.published import AbstractPublishedImages
from lightning_depth.data.base.sources import Arrays, SourceSplit
from lightning_depth.errors import UserError


class AbstractIdxImages(AbstractPublishedImages, ABC):
    """Grey images in the four idx files of MNIST, of ten classes: MNIST itself and the sets made to replace it."""

    channels = 1

    def read_files(self, split: SourceSplit) -> Arrays:
        """A split from its two idx files."""
        images_file, labels_file = (self.root / file for file in self.files[2 * (split == "test") :][:2])
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise UserError(f"{labels_file} has {len(labels)} labels for {len(images)} images.")
        if (labels >= len(self.names)).any():
            raise UserError(f"{labels_file} is corrupt: it has a label above {len(self.names) - 1}.")
        return Arrays(labels.long(), list(self.names), self.published_normalisation, images[..., None])


def idx_files(home: str) -> tuple[str, ...]:
    """The four files below `home`: training images and labels, test images and labels."""
    contents = ("images-idx3", "labels-idx1")
    return tuple(f"{home}/{split}-{content}-ubyte" for split in ("train", "t10k") for content in contents)


@final
class MNIST(AbstractIdxImages):
    """MNIST from `<root>/MNIST/raw/*-ubyte`, `<root>/mnist/{train,test}/<digit>/*` or a download (12 MB)."""

    title = "MNIST"
    folder = "mnist"
    files = idx_files("MNIST/raw")
    names = tuple("0123456789")
    published_normalisation = [0.1307], [0.3081]

    def fetch(self, folder: str) -> None:
        """Download and unpack with torchvision."""
        torchvision.datasets.MNIST(folder, download=True)


def read_idx(path: Path, dimensions: int) -> UInt8[Tensor, "..."]:
    """A file of bytes in the idx format: 0, 0, 8, the number of dimensions, the sizes as big-endian uint32, the bytes.

    Raises:
        UserError: the header or the length is wrong; it names the file.
    """
    content = path.read_bytes()
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{path} is corrupt: it does not begin like an idx file of bytes in {dimensions} dimensions.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise UserError(f"{path} is corrupt: {len(content)} bytes instead of {header + math.prod(shape)}.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
