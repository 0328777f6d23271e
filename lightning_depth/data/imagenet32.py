"""ImageNet32 (Chrabaszcz, Loshchilov and Hutter 2017, arXiv:1707.08819): ImageNet at 32 x 32 pixels, in batch files."""

import zipfile
import zlib
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from lightning_depth.data.base.imagenet_classes import DEVKIT_NAMES
from lightning_depth.data.base.pickles import from_planes, read_pickle
from lightning_depth.data.base.published import AbstractReplaceableImages
from lightning_depth.data.base.sources import AbstractImages, Arrays, Source, SourceSplit
from lightning_depth.errors import UserError

BATCHES = {"train": tuple(f"train_data_batch_{i}" for i in range(1, 11)), "test": ("val_data",)}
TWO = ("kit_fox", "English_setter")
FIVE = (*TWO, "Siberian_husky", "Australian_terrier", "English_springer")
NICHANI2020_CLASSES = MappingProxyType(
    {2: TWO, 5: FIVE, 10: (*FIVE, "Egyptian_cat", "Persian_cat", "malamute", "Great_Dane", "Walker_hound")}
)
"""How many classes -> which, by nichani2020, Appendix C, Table 3."""


@final
class ImageNet32(AbstractReplaceableImages):
    """ImageNet32 from `<root>/imagenet32/{train_data_batch_1, ..., train_data_batch_10, val_data}`, or the same `.npz`.

    These are the official files (image-net.org gives them to registered users: nothing is downloaded here). Pickles are
    read without executing what they may contain. The validation images are the test split.

    Classes go by the names or WordNet ids of `imagenet_classes`, or by number: 0, kit_fox, is label 1 of the files,
    whose order is that of ImageNet's development kit, not torchvision's. All ten files are read, but only the classes
    asked for are kept: two take 8 MB of memory, all of them 4 GB, and twice that while they are loaded. Normalised by
    the training images' own mean and deviation unless they are given.
    """

    title = "ImageNet32"
    names = tuple(DEVKIT_NAMES.values())
    aliases = DEVKIT_NAMES

    def find(self) -> Source:
        """The batch files, which must all be there in one of the two formats."""
        home = self.root / "imagenet32"
        for suffix in ("", ".npz"):
            files = [home / f"{name}{suffix}" for name in (*BATCHES["train"], *BATCHES["test"])]
            missing = [file for file in files if not file.is_file()]
            if not missing:
                return Source(self.title, "batch files", str(home), note="npz" if suffix else "")
            if len(missing) < len(files):
                raise UserError(f"{self.title} is incomplete: {missing[0]} is missing.\nPut the file there.")
        absent = f"is not in {home}, and only image-net.org has it"
        remedy = f"Put {BATCHES['train'][0]} to {BATCHES['train'][-1]} and val_data there, as pickles or as .npz files."
        return self.stand_in(absent, remedy)

    def read_found(self, split: SourceSplit, source: Source) -> AbstractImages:
        wanted = self.class_numbers(self.classes, self.names)
        images, labels = [], []
        for name in BATCHES[split]:
            pixels, numbers = read_batch(Path(source.path) / (f"{name}.npz" if source.note else name))
            kept = np.isin(numbers, wanted)
            images.append(pixels[kept])
            labels.append(numbers[kept])
        return Arrays(torch.from_numpy(np.concatenate(labels)), list(self.names), None, from_planes(images))


def read_batch(path: Path) -> tuple[UInt8[np.ndarray, "N 3072"], Int64[np.ndarray, " N"]]:
    """Pixels, red then green then blue, and class numbers from 0, of one batch file: a pickle, or `.npz`.

    Raises a UserError where it is corrupt, does not have the format, or asks for more than arrays.
    """
    batch = read_npz(path) if path.suffix == ".npz" else read_pickle(path)
    wrong, absent = f"{path} is no batch of ImageNet32", {"data", "labels"} - batch.keys()
    if absent:
        raise UserError(f"{wrong}: it has no {min(absent)!r}.")
    data = batch["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise UserError(f"{wrong}: its data are {found}, not uint8 (N, 3072).")
    listed = batch["labels"]
    plain = isinstance(listed, np.ndarray) or (isinstance(listed, list) and all(type(label) is int for label in listed))
    labels = np.asarray(listed) if plain else np.empty(0, object)
    if labels.dtype.kind not in "iu" or labels.shape != data.shape[:1]:
        raise UserError(f"{wrong}: its labels are not {len(data)} whole numbers, one an image.")
    if len(labels) and not 1 <= labels.min() <= labels.max() <= 1000:
        raise UserError(f"{path} has labels from {labels.min()} to {labels.max()}; ImageNet32 has them from 1 to 1000.")
    return data, labels.astype(np.int64) - 1


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays `data` and `labels` of an `.npz` file; a UserError where it is corrupt or holds pickled objects."""
    try:
        # A file that is no zip archive would be read as a lone array or refused as a pickle.
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("data", "labels") if name in arrays.files}
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as arrays: {' '.join(str(error).split())}") from None
