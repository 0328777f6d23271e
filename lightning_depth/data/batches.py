"""Batches of small images that live as one uint8 tensor on the training device, cropped and flipped there.

Shape letters: N images of a split, B images of a batch, H height, W width, C channels, S samples one rank sees.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler, SequentialSampler

from lightning_depth.mistakes import Mistake
from lightning_depth.seeds import generator

Augmentation = Literal["none", "crop", "crop_flip"]


class EpochOrder(Sampler[int]):
    """The order of the training samples: a pure function of (seed, epoch), the same for any number of processes.

    Global batch b is samples [b G, (b + 1) G) of the epoch's permutation, G = batch_size * world, and rank r takes the
    r-th contiguous share of it. So W processes with batch size B see exactly the batches of one process with batch
    size W B. A trailing partial global batch of R samples is split evenly: each rank takes R // world of them, and the
    R % world (< world) last ones of that epoch's order are dropped; one process drops nothing.

    Args:
        samples: number of training samples, N.
        batch_size: samples per batch and process, B.
        seed: the permutation of epoch e is drawn on the CPU from `generator(seed, "order", e)`.
        rank: this process, 0 <= rank < world.
        world: number of processes.
        reshuffle: False repeats the order of epoch 0 for ever (`Trainer(overfit_batches=...)`).

    Raises:
        Mistake: where there are fewer samples than processes.

    >>> one, left, right = EpochOrder(7, 4, seed=0), EpochOrder(7, 2, 0, 0, 2), EpochOrder(7, 2, 0, 1, 2)
    >>> list(one)[:4] == list(left)[:2] + list(right)[:2], len(one), len(left), len(right)
    (True, 7, 3, 3)
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, reshuffle: bool = True
    ) -> None:
        if samples < world:
            raise Mistake(f"{samples} training samples cannot be shared among {world} processes.")
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

    All crops are windows of one unfolded view, so a batch costs a single gather. `dy = dx = padding` changes nothing.

    >>> x = torch.arange(1, 5, dtype=torch.uint8).view(1, 2, 2, 1)
    >>> crop(x, torch.tensor([2]), torch.tensor([1]), padding=1).flatten().tolist()
    [3, 4, 0, 0]
    """
    _, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[torch.arange(len(images), device=images.device), dy, dx]


def flip(images: UInt8[Tensor, "B H W C"], mirrored: Bool[Tensor, " B"]) -> UInt8[Tensor, "B H W C"]:
    """Image b mirrored left to right where `mirrored[b]`."""
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


class TensorBatches:
    """An iterable of batches (x, y): x float32 (B, C, H, W), normalised, y int64 (B,); or tensors as they are.

    Batch k of epoch e is the pure function `batch(e, k)`: nothing here draws from a global generator. The crops and
    flips of a whole epoch come from `generator(seed, "augment", epoch)` on the CPU and belong to *positions* in the
    global order, so a picture does not depend on the device, the number of processes or the point of resumption.

    Args:
        images: the split, uint8 (N, H, W, C), on the device where batches are wanted. Floating-point inputs (N, ...)
            are served as they are, without augmentation.
        labels: int64 (N,), or any other targets, on the same device.
        batch_size: images per batch; the last one may be smaller.
        mean: per channel, in units of the full scale (0 to 1).
        std: per channel, in the same units.
        order: the training order; None runs through the images as they stand.
        augment: "crop": random crops after black padding; "crop_flip": and a horizontal flip with probability 1/2.
            Needs an order.
        padding: black pixels added on each side before cropping.
        first_epoch: the epoch that starts at batch `skip_batches`, after a resumption inside that epoch.
        skip_batches: batches of `first_epoch` already seen. `len()` stays the full length, by which Lightning counts.
    """

    batch_sampler = None  # Lightning reads it wherever there is a sampler

    def __init__(
        self,
        images: UInt8[Tensor, "N H W C"] | Float[Tensor, "N ..."],
        labels: Shaped[Tensor, "N ..."],
        batch_size: int,
        mean: list[float],
        std: list[float],
        order: EpochOrder | None = None,
        augment: Augmentation = "none",
        padding: int = 4,
        first_epoch: int = 0,
        skip_batches: int = 0,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shift = torch.tensor(mean, device=images.device).mul(255).view(1, -1, 1, 1)
        self.scale = torch.tensor(std, device=images.device).mul(255).view(1, -1, 1, 1)
        self.order, self.augment, self.padding = order, augment, padding
        self.sampler: Sampler[int] = order or SequentialSampler(range(len(labels)))
        self.first_epoch, self.skip_batches = first_epoch, skip_batches
        self._drawn: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)  # type: ignore[arg-type]  # both samplers are sized

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.order.epoch if self.order else 0  # read at the first batch: Lightning calls iter, then set_epoch
        for step in range(self.skip_batches if epoch == self.first_epoch else 0, len(self)):
            yield self.batch(epoch, step)

    def batch(self, epoch: int, step: int) -> tuple[Float[Tensor, "B ..."], Shaped[Tensor, "B ..."]]:
        """Batch `step` of `epoch`, whatever was asked for before."""
        here = slice(step * self.batch_size, (step + 1) * self.batch_size)
        if self.order is None:
            return self._normalised(self.images[here]), self.labels[here]
        indices, dy, dx, mirrored = (drawn[here] for drawn in self._draws(self.order, epoch))
        images = self.images[indices]
        if self.augment != "none":
            images = crop(images, dy, dx, self.padding)
        if self.augment == "crop_flip":
            images = flip(images, mirrored)
        return self._normalised(images), self.labels[indices]

    def _normalised(self, images: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        if images.is_floating_point():
            return images
        x = images.permute(0, 3, 1, 2).float().sub_(self.shift).div_(self.scale)
        return x.contiguous()

    def _draws(self, order: EpochOrder, epoch: int) -> tuple[Tensor, ...]:
        """Sample, crop offsets and flip at each of this rank's positions in `epoch`; the last epoch's are kept."""
        if self._drawn[0] != epoch:
            stream = generator(order.seed, "augment", epoch)
            offsets = torch.randint(2 * self.padding + 1, (2, order.samples), generator=stream)
            mirrored = torch.randint(2, (order.samples,), generator=stream).bool()
            at = order.positions
            draws = (order.indices(epoch), offsets[0, at], offsets[1, at], mirrored[at])
            self._drawn = epoch, tuple(drawn.to(self.images.device) for drawn in draws)
        return self._drawn[1]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is given at construction. Its presence tells Lightning that resuming is in hand."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
