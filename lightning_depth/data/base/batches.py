"""Batches of small images that live as one uint8 tensor on the training device, cropped and flipped there.

Shape letters: N images of a split, B images of a batch, H height, W width, C channels, S samples one rank sees.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler, SequentialSampler

from lightning_depth.errors import UserError
from lightning_depth.seeds import generator

Interval = tuple[float, float]
Augmentation = Literal["none", "crop", "crop_flip", "random_resized_crop", "random_resized_crop_flip"]


class EpochOrder(Sampler[int]):
    """The order of the training samples: a pure function of (seed, epoch), the same for any number of processes.

    Global batch b is samples [b G, (b + 1) G) of the epoch's permutation, G = batch_size * world, and rank r takes the
    r-th contiguous share of it. So W processes with batch size B see exactly the batches of one process with batch size
    W B. A trailing partial global batch of R samples is split evenly: each rank takes R // world of them, and the R %
    world (< world) last ones of that epoch's order are dropped; one process drops nothing. Raises a UserError where
    there are fewer samples than processes.

    Args:
        samples: number of training samples, N.
        batch_size: samples per batch and process, B.
        seed: the permutation of epoch e is drawn on the CPU from `generator(seed, "order", e)`.
        rank: this process, 0 <= rank < world.
        world: number of processes.
        reshuffle: False repeats the order of epoch 0 for ever (`Trainer(overfit_batches=...)`).

    >>> one, left, right = EpochOrder(7, 4, seed=0), EpochOrder(7, 2, 0, 0, 2), EpochOrder(7, 2, 0, 1, 2)
    >>> list(one)[:4] == list(left)[:2] + list(right)[:2], len(one), len(left), len(right)
    (True, 7, 3, 3)
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, reshuffle: bool = True
    ) -> None:
        if samples < world:
            raise UserError(f"{samples} training samples cannot be shared among {world} processes.")
        self.samples, self.seed, self.reshuffle, self.epoch = samples, seed, reshuffle, 0
        full, remainder = divmod(samples, batch_size * world)
        whole = torch.arange(samples - remainder).view(full, world, batch_size)[:, rank].flatten()
        share = remainder // world
        tail = samples - remainder + rank * share + torch.arange(share)
        self.positions = torch.cat([whole, tail])
        """Where in each epoch's global order this rank's samples stand, (S,)."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through; Lightning calls it before every epoch."""
        self.epoch = epoch

    def indices(self, epoch: int) -> Int64[Tensor, " S"]:
        """The samples that this rank sees in `epoch`, in order."""
        stream = generator(self.seed, "order", epoch if self.reshuffle else 0)
        return torch.randperm(self.samples, generator=stream)[self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices(self.epoch).tolist())


def crop(
    images: UInt8[Tensor, "B H W C"], dy: Int64[Tensor, " B"], dx: Int64[Tensor, " B"], padding: int
) -> UInt8[Tensor, "B H W C"]:
    """Image b padded with `padding` black pixels on all sides and cut back to H x W from row dy[b], column dx[b].

    >>> x = torch.arange(1, 5, dtype=torch.uint8).view(1, 2, 2, 1)
    >>> crop(x, torch.tensor([2]), torch.tensor([1]), padding=1).flatten().tolist()
    [3, 4, 0, 0]
    """
    _, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    # Windows of one unfolded view: a batch costs a single gather.
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[torch.arange(len(images), device=images.device), dy, dx]


def flip(images: UInt8[Tensor, "B H W C"], mirrored: Bool[Tensor, " B"]) -> UInt8[Tensor, "B H W C"]:
    """Image b mirrored left to right where `mirrored[b]`."""
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


def resized_crop(images: UInt8[Tensor, "B H W C"], boxes: Int64[Tensor, "B 4"]) -> UInt8[Tensor, "B H W C"]:
    """Box b of image b, resized to H x W: bilinear, from the pixels inside of the box alone, rounded to whole levels.

    As torchvision's `resized_crop`, where antialiasing changes nothing because no box is larger than its image.
    A box is its top, left, height and width, and lies in its image.

    >>> x = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8).view(1, 2, 2, 1)
    >>> resized_crop(x, torch.tensor([[1, 0, 1, 2]])).flatten().tolist()
    [30, 40, 30, 40]
    """
    _, height, width, _ = images.shape
    (top, left, tall, wide), device = boxes.unbind(1), images.device

    def sampled(start: Tensor, length: Tensor, size: int) -> Tensor:
        """Where the `size` pixels of a side lie, (B, size), as -1 to 1 from the image's first pixel to its last."""
        step = (length / size)[:, None]
        inside = (torch.arange(size, device=device) + 0.5) * step - 0.5
        inside = inside.clamp(min=0).minimum(length[:, None] - 1)
        return (start[:, None] + inside) * 2 / max(size - 1, 1) - 1

    y, x = sampled(top, tall, height), sampled(left, wide, width)
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    planes = images.permute(0, 3, 1, 2).float()
    parts = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return parts.round().to(torch.uint8).permute(0, 2, 3, 1)


def resized_crop_boxes(
    samples: int, height: int, width: int, scale: Interval, ratio: Interval, stream: torch.Generator
) -> Int64[Tensor, "N 4"]:
    """Random boxes for `resized_crop`, drawn as torchvision's `RandomResizedCrop` draws them, all at once.

    The area is uniform in `scale` (in units of the image's), the logarithm of width / height uniform in that of
    `ratio`; of ten such shapes the first one that fits is put anywhere in the image. Where none fits, the box is the
    largest central one within `ratio`. `stream` is a generator on the CPU.
    """
    draws = torch.rand(2, samples, 10, generator=stream, dtype=torch.float64)
    area = height * width * (scale[0] + draws[0] * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + draws[1] * (high - low)).exp()
    wide, tall = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.long().argmax(1, keepdim=True)  # the first of several
    central = torch.tensor([min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))]).clamp(min=1)
    found = fits.any(1)
    tall = tall.gather(1, first)[:, 0].where(found, central[0])
    wide = wide.gather(1, first)[:, 0].where(found, central[1])
    places = torch.rand(2, samples, generator=stream, dtype=torch.float64)
    top = (places[0] * (height - tall + 1)).long().where(found, (height - tall) // 2)
    left = (places[1] * (width - wide + 1)).long().where(found, (width - wide) // 2)
    return torch.stack([top, left, tall, wide], dim=1)


@dataclass(frozen=True)
class Transform:
    """What happens to uint8 images between memory and network: augmentation where there is an order, normalisation.

    `mean` and `std` are per channel, in units of the full scale (0 to 1); the rest is as in `AbstractImageData`.
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    augment: Augmentation = "none"
    padding: int = 4
    crop_scale: Interval = (0.08, 1.0)
    crop_ratio: Interval = (3 / 4, 4 / 3)

    def draws(self, order: EpochOrder, epoch: int, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Crop or box, and flip, at every position of the global order in `epoch`; `size` is (H, W, ...)."""
        stream = generator(order.seed, "augment", epoch)
        windows = torch.randint(2 * self.padding + 1, (2, order.samples), generator=stream).T
        mirrored = torch.randint(2, (order.samples,), generator=stream).bool()
        if self.augment.startswith("random_resized_crop"):
            boxes = generator(order.seed, "resized crop", epoch)
            windows = resized_crop_boxes(order.samples, size[0], size[1], self.crop_scale, self.crop_ratio, boxes)
        return windows, mirrored

    def augmented(self, images: Shaped[Tensor, "B ..."], windows: Tensor, mirrored: Tensor) -> Shaped[Tensor, "B ..."]:
        """The images, each with what was drawn for it."""
        if self.augment.startswith("crop"):
            images = crop(images, windows[:, 0], windows[:, 1], self.padding)
        elif self.augment.startswith("random_resized_crop"):
            images = resized_crop(images, windows)
        return flip(images, mirrored) if self.augment.endswith("_flip") else images


class TensorBatches:
    """An iterable of batches (x, y): x float32 (B, C, H, W), normalised, y int64 (B,); or tensors as they are.

    Batch k of epoch e is the pure function `batch(e, k)`. The crops and flips of an epoch come from `generator(seed,
    "augment", epoch)` on the CPU and belong to *positions* in the global order, so a picture does not depend on the
    device, the number of processes or the point of resumption.

    Args:
        images: the split, uint8 (N, H, W, C), on the device where batches are wanted. Floating-point inputs (N, ...)
            are served as they are.
        labels: int64 (N,), or any other targets, on the same device.
        batch_size: images per batch; the last one may be smaller.
        transform: of uint8 images.
        order: the training order; None runs through the images as they stand, without augmentation.
    """

    batch_sampler = None  # Lightning reads it wherever there is a sampler

    def __init__(
        self,
        images: UInt8[Tensor, "N H W C"] | Float[Tensor, "N ..."],
        labels: Shaped[Tensor, "N ..."],
        batch_size: int,
        transform: Transform | None = None,
        order: EpochOrder | None = None,
    ) -> None:
        self.images, self.labels, self.batch_size, self.order = images, labels, batch_size, order
        self.transform = transform or Transform()
        self._shift, self._scale = (
            torch.tensor(values, device=images.device).mul(255).view(1, -1, 1, 1)
            for values in (self.transform.mean, self.transform.std)
        )
        self.sampler: Sampler[int] = order or SequentialSampler(range(len(labels)))
        self.start = (0, 0)
        """Where training goes on: epoch, and batches of it already seen, which `len()` counts as Lightning does."""
        self.at_once = 1
        """How many batches are served as one; what counts batches then counts lots of them."""
        self._drawn: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def __len__(self) -> int:
        return -(-len(self.sampler) // (self.batch_size * self.at_once))  # type: ignore[arg-type]  # both samplers are sized

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.order.epoch if self.order else 0  # read at the first batch: Lightning calls iter, then set_epoch
        first_epoch, seen = self.start
        for step in range(seen if epoch == first_epoch else 0, len(self)):
            yield self.batch(epoch, step)

    def batch(self, epoch: int, step: int) -> tuple[Float[Tensor, "B ..."], Shaped[Tensor, "B ..."]]:
        size = self.batch_size * self.at_once
        here = slice(step * size, (step + 1) * size)
        if self.order is None:
            return self._normalised(self.images[here]), self.labels[here]
        indices, windows, mirrored = (drawn[here] for drawn in self._draws(self.order, epoch))
        images = self.transform.augmented(self.images[indices], windows, mirrored)
        return self._normalised(images), self.labels[indices]

    def _normalised(self, images: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        if images.is_floating_point():
            return images
        return images.permute(0, 3, 1, 2).float().sub_(self._shift).div_(self._scale).contiguous()

    def _draws(self, order: EpochOrder, epoch: int) -> tuple[Tensor, ...]:
        """Sample, crop or box, and flip at each of this rank's positions in `epoch`; the last epoch's are kept."""
        if self._drawn[0] != epoch:
            windows, mirrored = self.transform.draws(order, epoch, self.images.shape[1:])
            draws = (order.indices(epoch), windows[order.positions], mirrored[order.positions])
            self._drawn = epoch, tuple(drawn.to(self.images.device) for drawn in draws)
        return self._drawn[1]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is given by `start`. Its presence tells Lightning that resuming is in hand."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
