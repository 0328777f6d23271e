"""Autoencoding from a single example, or a few (zhang2019)."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import AbstractImages, Source
from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.errors import UserError
from lightning_depth.results import Split


def pictures(
    data: AbstractImageData, images: AbstractImages, indices: Int64[Tensor, " n"], size: int | None
) -> Float[Tensor, "n C H W"]:
    """The images at `indices` with values from 0 to 1, resized to size x size; None: to the data's own size."""
    return (data.pixels(images, indices, size).permute(0, 3, 1, 2).float() / 255).contiguous()


@final
class SingleExample(AbstractTensorData):
    """Learn the identity from one image or a few: inputs (C, H, W) from 0 to 1, the targets are the inputs (zhang2019).

    Validation and test are images of the data set's test split, also their own targets. zhang2019 trains on one MNIST
    digit, a 7, and says nothing of a normalisation: pixel values stay from 0 to 1. Its small-image experiments resize
    the same picture (`images.image_size`; Figure 13). Raises a UserError where there is no such class or image, one is
    named twice, or `images` is given options that would have no effect.

    Args:
        images: where the images come from. Its `image_size`, `rgb` and `classes` (those to validate on) count.
        labels: classes of the training examples, by name or number. None: 7, MNIST's digit.
        indices: which images of each of these classes, in the data set's own numbering of its training split. None: 0.
        test_samples: validation images, and as many test images, drawn from the test split; all if there are fewer.
        batch_size: training examples per batch and process; 0: all in one.
        eval_batch_size: images per batch and process elsewhere.
        seed: of the choice of test images. None: that of the run.
    """

    def __init__(
        self,
        images: AbstractImageData,
        labels: list[str | int] | None = None,
        indices: list[int] | None = None,
        test_samples: int = 1000,
        batch_size: int = 0,
        eval_batch_size: int = 250,
        seed: int | None = None,
    ) -> None:
        self.labels: list[str | int] = [7] if labels is None else labels
        self.indices = [0] if indices is None else indices
        if not self.labels or not self.indices:
            raise UserError("labels and indices must name at least one training example.")
        if len(set(self.indices)) < len(self.indices) or min(self.indices) < 0:
            raise UserError(f"indices={self.indices}: they must be different, and count from 0.")
        super().__init__(len(self.labels) * len(self.indices), test_samples, batch_size, eval_batch_size, seed)
        self.images = images
        vain = {
            "samples_per_class": images.samples_per_class is not None,
            "val_fraction": images.val_fraction > 0,
            "augment": images.augment != "none",
            "mean and std": images.mean is not None,
        }
        if said := ", ".join(name for name, given in vain.items() if given):
            raise UserError(f"{said} of `images` would have no effect in {type(self).__name__}: leave it out.")

    def find(self) -> Source:
        return self.images.locate(announce=False)  # a stand-in is announced once, by this data set

    @property
    def val_source(self) -> str:
        return "other images, of the test split"

    def make(self, split: Split, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        x = self.examples() if split == "train" else others(self.images, samples, stream)
        return x, x

    def examples(self, size: int | None = None) -> Float[Tensor, "n C H W"]:
        """The training examples, resized to size x size; None: to the size that is trained on."""
        self.locate()
        images = self.images.read("train")
        chosen = []
        for number in _numbers(self.images, self.labels, images):
            members = (images.labels == number).nonzero().flatten()
            if max(self.indices) >= len(members):
                absent = f"There is no image {max(self.indices)} of class {images.class_names[number]!r}"
                raise UserError(f"{absent}: its {len(members)} training images count from 0.")
            chosen.append(members[self.indices])
        return pictures(self.images, images, torch.cat(chosen), size)


def others(
    data: AbstractImageData, samples: int, stream: torch.Generator, size: int | None = None
) -> Float[Tensor, "n C H W"]:
    """Test images of the classes of `data`, chosen at random, all if there are fewer; resized as by `pictures`."""
    images = data.read("test")
    members = torch.arange(len(images.labels))
    if data.classes is not None:
        members = torch.isin(images.labels, torch.tensor(_numbers(data, data.classes, images))).nonzero().flatten()
    if len(members) == 0:
        raise UserError(f"There are no test images in {data.source.path}.")
    chosen = members[torch.randperm(len(members), generator=stream)[:samples]]
    return pictures(data, images, chosen, size)


def _numbers(data: AbstractImageData, asked: Sequence[str | int], images: AbstractImages) -> list[int]:
    """The numbers of the classes that are asked for, each once."""
    numbers = data.class_numbers(asked, images.class_names)
    for number in numbers:
        if numbers.count(number) > 1:
            raise UserError(f"Class {images.class_names[number]!r} is named more than once.")
    return numbers
