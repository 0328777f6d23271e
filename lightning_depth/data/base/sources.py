"""Where images come from and how they are read: arrays at hand, or files that are decoded when they are asked for."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from lightning_depth.errors import UserError

SourceSplit = Literal["train", "test"]
SUFFIXES = (".png", ".jpg", ".jpeg")
THREADS = min(4, os.cpu_count() or 1)  # more only wait for one another: small images are mostly Python
CHUNK = 128  # files a thread decodes before it reports: a task per file costs more than the decoding


@dataclass(frozen=True)
class Source:
    """Where a data set's images come from.

    Attributes:
        name: what the images are, "CIFAR-10".
        kind: how they are stored.
        path: the file or folder.
        fallback: True where they only stand in for what was asked for.
        note: what a reader of results should know about them.
        stands_for: the data set that was asked for, where they stand in; empty: that which found them.
    """

    name: str
    kind: Literal["torchvision files", "batch files", "image folder", "download", "embedded", "synthetic"]
    path: str
    fallback: bool = False
    note: str = ""
    stands_for: str = ""

    def describe(self) -> str:
        """One line.

        >>> Source("MNIST", "image folder", "data/mnist").describe()
        'MNIST (image folder, data/mnist)'
        """
        line = f"{self.name} ({self.kind}, {self.path})" + (f": {self.note}" if self.note else "")
        return f"FALLBACK {line}" if self.fallback else line


@dataclass(frozen=True, eq=False)
class AbstractImages(ABC):
    """One split of a data set before anything is chosen from it: labels at hand, pixels on request.

    Attributes:
        labels: int64 (N,), numbers of classes.
        class_names: name of each number.
        normalisation: (mean, std) per channel in units of the full scale; None: to be computed from the training set.
    """

    labels: Int64[Tensor, " N"]
    class_names: list[str]
    normalisation: tuple[list[float], list[float]] | None

    @abstractmethod
    def pixels(self, indices: Int64[Tensor, " M"], size: int | None) -> UInt8[Tensor, "M H W C"]:
        """The images at `indices`, resized to size x size unless `size` is None."""


@dataclass(frozen=True, eq=False)
class Arrays(AbstractImages):
    """A split whose pixels are in memory: uint8 (N, H, W, C)."""

    images: UInt8[Tensor, "N H W C"]

    def pixels(self, indices: Int64[Tensor, " M"], size: int | None) -> UInt8[Tensor, "M H W C"]:
        images = self.images[indices]
        return images if size is None else resized(images, size)


@dataclass(frozen=True, eq=False)
class ImageFiles(AbstractImages):
    """A split of PNG and JPEG files: only those asked for are decoded, by a few threads with a progress bar.

    Attributes:
        paths: the files.
        channels: 1 (grey) or 3 (RGB); files of the other kind are converted.
        centre: cut the central square out of every image, its side this part of the shorter one, before resizing.
            None: resize the whole image, which changes the aspect of one that is not square.
        max_bytes: the most that the decoded images may take in memory. None: any amount.
    """

    paths: list[str]
    channels: int
    centre: float | None = None
    max_bytes: int | None = None

    def pixels(self, indices: Int64[Tensor, " M"], size: int | None) -> UInt8[Tensor, "M H W C"]:
        """See `AbstractImages`.

        Raises a UserError where a file cannot be decoded, or differs from the first one in size while `size` is None;
        or all of them together exceed `max_bytes`.
        """
        paths = [self.paths[i] for i in indices.tolist()]
        height, width, _ = self._decoded(paths[0]).shape
        shape = (height, width) if size is None else (size, size)
        needed = len(paths) * shape[0] * shape[1] * self.channels
        if self.max_bytes is not None and needed > self.max_bytes:
            need = f"{len(paths):,} images of {shape[1]} x {shape[0]} need {needed / 1e9:.2f} GB of memory"
            advice = "Ask for fewer classes, samples_per_class or a smaller image_size, or raise max_bytes."
            raise UserError(f"{need}, more than max_bytes={self.max_bytes / 1e9:.2f} GB.\n{advice}")
        images = np.empty((len(paths), *shape, self.channels), np.uint8)

        def decode(start: int) -> int:
            chunk = paths[start : start + CHUNK]
            arrays = [self._decoded(path) for path in chunk]
            if size is not None:
                runs = (torch.from_numpy(np.stack(list(run))) for _, run in groupby(arrays, np.shape))
                arrays = [image for run in runs for image in resized(run, size).numpy()]
            for i, (path, array) in enumerate(zip(chunk, arrays, strict=True), start):
                if array.shape != images.shape[1:]:
                    odd = f"{path} is {array.shape[1]} x {array.shape[0]}, but {paths[0]} is {width} x {height}"
                    raise UserError(f"{odd}.\nGive image_size to resize them all.")
                images[i] = array
            return len(chunk)

        quiet = rank_zero_only.rank != 0  # type: ignore[attr-defined]
        with (
            ThreadPoolExecutor(THREADS) as pool,
            tqdm(total=len(paths), desc="Decoding images", unit="", delay=1, mininterval=0.5, disable=quiet) as bar,
        ):
            for done in pool.map(decode, range(0, len(paths), CHUNK)):
                bar.update(done)
        return torch.from_numpy(images)

    def _decoded(self, path: str) -> UInt8[np.ndarray, "H W C"]:
        image = decoded(path, self.channels)
        if self.centre is None:
            return image
        height, width, _ = image.shape
        side = max(1, round(self.centre * min(height, width)))
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]


def resized(images: UInt8[Tensor, "N H W C"], size: int) -> UInt8[Tensor, "N size size C"]:
    """Images resized to size x size, bilinear with antialiasing; a non-square image changes its aspect."""
    small: Tensor = tv.resize(images.permute(0, 3, 1, 2), [size, size], antialias=True)
    return small.permute(0, 2, 3, 1).contiguous()


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """An image file; a UserError where it is missing, corrupt or truncated, which may show where it is decoded."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a PNG or JPEG image: {error}") from error


def decoded(path: str, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """One image file as grey (`channels` = 1) or RGB (3); a UserError where it has more than 8 bits per channel."""
    with opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{path} has more than 8 bits per channel; convert it to 8.")
        array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)


def is_grey(path: str) -> bool:
    """Whether an image file holds grey values alone (mode L), by its header."""
    with opened(path) as image:
        return image.mode == "L"


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted; hidden ones do not count."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def has_jpeg(folder: Path) -> bool:
    """Whether the first image of the first class is a JPEG file."""
    files = (file.lower() for name in class_folders(folder)[:1] for file in sorted(os.listdir(folder / name)))
    return next((not file.endswith(".png") for file in files if file.endswith(SUFFIXES)), False)


def image_files(
    folder: Path,
    class_names: Sequence[str],
    channels: int | None,
    normalisation: tuple[list[float], list[float]] | None = None,
    folders: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> ImageFiles:
    """The images `<folder>/<class>/*.png|jpg|jpeg` of one split, sorted by name within each folder.

    Args:
        folder: the split's.
        class_names: the folders to look into, in the order of the class numbers; one that is missing counts as empty.
        channels: 1 or 3; None: 1 where every image is grey, else 3.
        normalisation: published constants, if there are any.
        folders: the folders of a class where they are not the one of its name.
    """
    found = [
        (number, os.path.join(folder, part, file))
        for number, name in enumerate(class_names)
        for part in folders.get(name, (name,))
        if (folder / part).is_dir()
        for file in sorted(os.listdir(folder / part))
        if file.lower().endswith(SUFFIXES)
    ]
    labels, paths = torch.tensor([number for number, _ in found], dtype=torch.int64), [path for _, path in found]
    if channels is None:
        channels = 1 if all(map(is_grey, paths)) else 3
    return ImageFiles(labels, list(class_names), normalisation, paths, channels)
