"""MNIST (LeCun et al. 1998): 60,000 + 10,000 handwritten digits of 28 x 28 grey pixels."""

import math
import struct
from pathlib import Path
from typing import final

import torch
import torchvision
from jaxtyping import UInt8
from torch import Tensor

from lightning_depth.data.published import AbstractPublishedImages
from lightning_depth.data.sources import Arrays, Split
from lightning_depth.mistakes import Mistake

HOME = "MNIST/raw"


@final
class MNIST(AbstractPublishedImages):
    """MNIST from `<root>/MNIST/raw/*-ubyte`, `<root>/mnist/{train,test}/<digit>/*` or a download (12 MB)."""

    title = "MNIST"
    folder = "mnist"
    files = tuple(
        f"{HOME}/{split}-{content}-ubyte" for split in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
    )
    channels = 1
    names = tuple("0123456789")
    published_normalisation = [0.1307], [0.3081]

    def read_files(self, split: Split) -> Arrays:
        """A split from the two idx files."""
        stem = self.root / HOME / ("train" if split == "train" else "t10k")
        images, labels = read_idx(Path(f"{stem}-images-idx3-ubyte"), 3), read_idx(Path(f"{stem}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels):
            raise Mistake(f"{stem}-labels-idx1-ubyte has {len(labels)} labels for {len(images)} images.")
        if (labels > 9).any():
            raise Mistake(f"{stem}-labels-idx1-ubyte is corrupt: it has a label above 9.")
        return Arrays(labels.long(), list(self.names), self.published_normalisation, images[..., None])

    def fetch(self, folder: str) -> None:
        """Download and unpack with torchvision."""
        torchvision.datasets.MNIST(folder, download=True)


def read_idx(path: Path, dimensions: int) -> UInt8[Tensor, "..."]:
    """A file of bytes in the idx format: 0, 0, 8, the number of dimensions, the sizes as big-endian uint32, the bytes.

    Raises:
        Mistake: the header or the length is wrong; it names the file.
    """
    content = path.read_bytes()
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise Mistake(f"{path} is corrupt: it does not begin like an idx file of bytes in {dimensions} dimensions.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise Mistake(f"{path} is corrupt: {len(content)} bytes instead of {header + math.prod(shape)}.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
