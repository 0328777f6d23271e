"""The base of all image data sets: which images, which classes, which batches."""

import difflib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from jaxtyping import Int64, UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_depth.data.base.batches import Augmentation, Interval, Transform
from lightning_depth.data.base.memory import AbstractMemoryData, Loaded
from lightning_depth.data.base.sources import AbstractImages, SourceSplit
from lightning_depth.errors import UserError
from lightning_depth.results import Split
from lightning_depth.seeds import generator


class AbstractImageData(AbstractMemoryData):
    """Images held in memory, served in batches from the training device.

    A data set of your own is a subclass with two methods: `find()` says where the images are (or raises `UserError`),
    and `read(split)` returns the "train" or "test" split, as `Arrays` (pixels in memory) or `ImageFiles` (decoded when
    asked for); CONTRIBUTING.md has one of ten lines. Raises a UserError where an argument is out of its range.

    Args:
        root: the folder that holds the data.
        classes: the classes to keep, by name or number; they are renumbered 0, 1, ... in this order. None: all.
        samples_per_class: training images per class: the first so many of a permutation drawn from (seed, class name),
            so a smaller subset lies within a larger one. None: all.
        image_size: resize to image_size x image_size at load time (bilinear, antialiased). None: as they are.
        rgb: give grey images three equal channels, for networks that want three.
        augment: "none", "crop" (random crops after black padding), "random_resized_crop" (random parts of the image,
            resized to its own size), or with horizontal flips "crop_flip" and "random_resized_crop_flip" (flips make no
            sense for digits: they are left out on the fallback); training batches only.
        padding: black pixels on each side before cropping.
        crop_scale: least and largest part of the image's area that a random resized crop shows.
        crop_ratio: least and largest ratio of width to height that it may have.
        val_fraction: 0: validate on the test split, as the papers do. Above 0: on this fraction of each class of the
            training split, the other end of the same permutation, so it does not depend on samples_per_class.
        batch_size: training images per batch and process.
        eval_batch_size: images per batch and process elsewhere.
        seed: of subset, validation images, order and augmentation. None: that of the run.
        mean: per channel, 0 to 1; None: the published constants (those of the full-size images, whatever image_size
            is), or where there are none the training images' own.
        std: per channel, 0 to 1; None: as for mean.
    """

    names: tuple[str, ...] = ()
    """The names by which `classes` may be asked for; empty: those that `read` returns."""
    aliases: Mapping[str, str] = MappingProxyType({})
    """Other names of classes -> their names."""

    def __init__(
        self,
        root: str = "data",
        classes: list[str | int] | None = None,
        samples_per_class: int | None = None,
        image_size: int | None = None,
        rgb: bool = False,
        augment: Augmentation = "none",
        padding: int = 4,
        val_fraction: float = 0.0,
        batch_size: int = 128,
        eval_batch_size: int = 250,
        seed: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        crop_scale: Interval = (0.08, 1.0),
        crop_ratio: Interval = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        for wrong, said in (
            (samples_per_class is not None and samples_per_class < 1, f"{samples_per_class=}: it must be at least 1."),
            (image_size is not None and image_size < 1, f"{image_size=}: it must be at least 1."),
            (padding < 0, f"{padding=}: it must be at least 0."),
            (
                not 0 < crop_scale[0] <= crop_scale[1] <= 1,
                f"crop_scale={list(crop_scale)}: give the least and the largest part, above 0 and at most 1.",
            ),
            (
                not 0 < crop_ratio[0] <= crop_ratio[1],
                f"crop_ratio={list(crop_ratio)}: give the least and the largest ratio, above 0.",
            ),
            (not 0 <= val_fraction < 1, f"{val_fraction=}: it must be at least 0 and below 1."),
            ((mean is None) != (std is None), "Give both mean and std, or neither."),
            (classes == [], "classes is empty: name at least one, or leave it out for all."),
        ):
            if wrong:
                raise UserError(said)
        self.root, self.classes, self.samples_per_class = Path(root).expanduser(), classes, samples_per_class
        self.image_size, self.rgb, self.augment, self.padding = image_size, rgb, augment, padding
        self.crop_scale, self.crop_ratio = crop_scale, crop_ratio
        self.val_fraction, self.mean, self.std = val_fraction, mean, std

    @abstractmethod
    def read(self, split: SourceSplit) -> AbstractImages:
        """The whole "train" or "test" split."""

    def setup(self, stage: str | None = None) -> None:
        """Load what `stage` needs, once; what is not needed yet is loaded when it is asked for."""
        if "train" not in self._splits and self.val_fraction == 0:
            hint = "val_fraction > 0 holds out training images instead."
            rank_zero_info(f"{type(self).__name__} validates on the test split, as the papers do; {hint}")
        self.split("train")
        if self.val_fraction == 0 or stage in ("test", "predict"):
            self.split("test")

    def class_numbers(self, asked: Sequence[str | int] | None, names: Sequence[str]) -> list[int]:
        """The numbers among `names` of the classes `asked` for, see `class_number`; None: of all."""
        if asked is None:
            return list(range(len(names)))
        return [class_number(self.aliases.get(str(one), one), names) for one in asked]

    @property
    def class_names(self) -> list[str]:
        """The classes' names, by label."""
        self.split("train")
        return self._class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def val_source(self) -> str:
        return f"held-out {100 * self.val_fraction:g}% of training split" if self.val_fraction else "test split"

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """(mean, std) per channel in units of the full scale: a batch is (image / 255 - mean) / std."""
        self.split("train")
        return self._normalisation

    @property
    def validated(self) -> Split:
        """The test split, as in the papers, or what `val_fraction` holds out."""
        return "test" if self.val_fraction == 0 else "val"

    def transform(self, training: bool) -> Transform:
        """Normalisation; in training also augmentation."""
        augment = self.augment if training else "none"
        if self.locate().fallback:  # The digits that stand in cannot be mirrored: a 2 would become no digit at all.
            augment = cast(Augmentation, augment.removesuffix("_flip"))
        return Transform(*self.normalisation, augment, self.padding, self.crop_scale, self.crop_ratio)

    def load(self, name: Split) -> dict[Split, Loaded]:
        """Images of the classes asked for, uint8 (N, H, W, C), and their labels, renumbered."""
        if name != "test":
            return self._load_train()
        self.split("train")
        images = self.read("test")
        members = torch.cat([_members(images, number) for number in self._numbers])
        return {"test": self._load(images, members.sort().values)}

    def _load_train(self) -> dict[Split, Loaded]:
        images = self.read("train")
        offered = self.names or images.class_names
        numbers = self.class_numbers(self.classes, offered)
        for number in numbers:
            if numbers.count(number) > 1:
                raise UserError(f"classes names {offered[number]!r} more than once.")
        if len(offered) > len(images.class_names):  # the ten digits stand in for more classes than there are digits
            numbers = list(range(min(len(numbers), len(images.class_names))))
        divided = [self._divided(images, number) for number in numbers]
        train, held = (torch.cat(parts).sort().values for parts in zip(*divided, strict=True))
        self._numbers, self._class_names = numbers, [images.class_names[number] for number in numbers]
        loaded: dict[Split, Loaded] = {"train": self._load(images, train)}
        if self.val_fraction > 0:
            loaded["val"] = self._load(images, held)
        self._normalisation = self._constants(images.normalisation, loaded["train"].inputs)
        return loaded

    def pixels(self, images: AbstractImages, indices: Int64[Tensor, " M"], size: int | None = None) -> Tensor:
        """The images at `indices`, uint8 (M, H, W, C), resized and with the channels that are asked for."""
        pixels = images.pixels(indices, size or self.image_size)
        return pixels.expand(-1, -1, -1, 3).contiguous() if self.rgb and pixels.shape[-1] == 1 else pixels

    def _load(self, images: AbstractImages, indices: Int64[Tensor, " M"]) -> Loaded:
        renumbered = torch.full((len(images.class_names),), -1)
        renumbered[self._numbers] = torch.arange(len(self._numbers))
        return Loaded(self.pixels(images, indices), renumbered[images.labels[indices]])

    def _divided(self, images: AbstractImages, number: int) -> tuple[Tensor, Tensor]:
        """The training and the held-out members of a class: the first and the last of one permutation of them."""
        name, members = images.class_names[number], _members(images, number)
        stream = generator(self.effective_seed, "subset", name)
        members = members[torch.randperm(len(members), generator=stream)]
        rest = len(members) - round(self.val_fraction * len(members))
        if rest == 0 or (self.val_fraction > 0 and rest == len(members)):
            part = "training" if rest == 0 else "validation"
            raise UserError(f"val_fraction={self.val_fraction} leaves class {name!r} without {part} images.")
        wanted = rest if self.samples_per_class is None else self.samples_per_class
        if wanted > rest and not self.locate().fallback:
            raise UserError(f"Class {name!r} has {rest} training images, fewer than samples_per_class={wanted}.")
        return members[: min(wanted, rest)], members[rest:]

    def _constants(
        self, published: tuple[list[float], list[float]] | None, images: UInt8[Tensor, "N H W C"]
    ) -> tuple[list[float], list[float]]:
        if self.mean is None or self.std is None or self.locate().fallback:
            mean, std = published or moments(images)
        else:
            mean, std = self.mean, self.std
        channels = images.shape[-1]
        if self.rgb and len(mean) == len(std) == 1:
            mean, std = mean * channels, std * channels
        if len(mean) != channels or len(std) != channels:
            raise UserError(f"mean and std need {channels} numbers, one per channel, not {len(mean)} and {len(std)}.")
        if min(std) <= 0:
            raise UserError(f"{std=}: a channel without variation cannot be normalised; give positive mean and std.")
        return mean, std


def class_number(asked: str | int, names: Sequence[str]) -> int:
    """The number of the class `asked` for by name or, where no class has that name, by number.

    Raises a UserError where there is no such class; it names the closest one and lists all, or of many says how many.

    >>> class_number("dog", ["cat", "dog"]), class_number(1, ["cat", "dog"]), class_number(1, ["1", "2"])
    (1, 1, 0)
    """
    text = str(asked)
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names) if len(names) <= 100 else f"{', '.join(names[:5])} and {len(names) - 5} more"
    raise UserError(f"There is no class {asked!r}.{hint}\nThe classes are {listed}.")


def moments(images: UInt8[Tensor, "N H W C"]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels, in units of the full scale; exact, by histogram.

    >>> moments(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    ([0.5], [0.5])
    """
    level = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(-1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(share @ level))
        std.append(float((share @ (level - mean[-1]) ** 2).sqrt()))
    return mean, std


def _members(images: AbstractImages, number: int) -> Int64[Tensor, " M"]:
    """The images of a class, of which there must be some."""
    members = (images.labels == number).nonzero().flatten()
    if len(members) == 0:
        raise UserError(f"There are no images of class {images.class_names[number]!r}.")
    return members
