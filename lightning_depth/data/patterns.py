"""Test patterns for networks that learnt from one example (zhang2019 Figures 1 to 4, 6, 10, 14)."""

from collections.abc import Sequence
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import Source
from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.data.single_example import SingleExample, others
from lightning_depth.errors import UserError
from lightning_depth.results import Split

Generated = Literal[
    "constant", "horizontal_stripes", "vertical_stripes", "checkerboard", "gradient", "square", "disc", "noise"
]
Kind = Literal["example", "translated", "mixture", "images", "foreign", Generated]


def patterns(kind: Generated, shape: Sequence[int], stream: torch.Generator) -> Float[Tensor, "n C H W"]:
    """Generated pictures of one kind, shape (n, C, H, W), values from 0 to 1, none of them black.

    - `constant`: one grey level from 0.2 to 1;
    - `horizontal_stripes`, `vertical_stripes`: 1 and 0 in turn, 1 to H/4 pixels wide, at any phase;
    - `checkerboard`: fields of 1 and 0, 1 to H/4 pixels wide, at any phase;
    - `gradient`: a ramp from 0 to 1 in a random direction;
    - `square`, `disc`: filled with 1, of side or diameter H/4 to H/2 (at least 1.5), anywhere inside;
    - `noise`: each pixel and channel uniform.

    The channels of a picture are equal, but for noise. zhang2019 shows such patterns and does not define them.

    Raises a UserError where a size is below 1, or height or width below 2.
    """
    n, channels, height, width = shape
    if min(n, channels) < 1 or min(height, width) < 2:
        raise UserError(f"shape={list(shape)}: patterns need at least 1 picture, 1 channel and 2 x 2 pixels.")
    if kind == "noise":
        return torch.rand(n, channels, height, width, generator=stream)
    # Five uniform numbers a picture, whatever the size: the same picture at another resolution is nearly the same.
    u, v, w, a, b = torch.rand(5, n, 1, 1, generator=stream, dtype=torch.float64)
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)
    field = 1 + (u * max(1, min(height, width) // 4)).floor()
    rows, columns = ((y + (v * 2 * field).floor()) / field).floor(), ((x + (w * 2 * field).floor()) / field).floor()
    extent = (min(height, width) * (1 + u) / 4).clamp_min(1.5)  # a disc of diameter sqrt 2 holds a pixel
    from_centre_y = (y + 0.5 - extent / 2 - v * (height - extent)).abs()
    from_centre_x = (x + 0.5 - extent / 2 - w * (width - extent)).abs()
    slope_y, slope_x = 2 * a - 1, 2 * b - 1
    lowest = slope_y.clamp_max(0) + slope_x.clamp_max(0)
    ramp = slope_y * y / (height - 1) + slope_x * x / (width - 1) - lowest
    one = {
        "constant": 0.2 + 0.8 * u,
        "horizontal_stripes": 1 - rows % 2,
        "vertical_stripes": 1 - columns % 2,
        "checkerboard": 1 - (rows + columns) % 2,
        "gradient": ramp / (slope_y.abs() + slope_x.abs()),
        "square": (from_centre_y <= extent / 2) & (from_centre_x <= extent / 2),
        "disc": from_centre_y**2 + from_centre_x**2 <= extent**2 / 4,
    }[kind]
    grey: Tensor = one.expand(n, height, width)[:, None].float()
    return grey.expand(-1, channels, -1, -1).contiguous()


def translated(images: Float[Tensor, "n C H W"], dy: Sequence[int], dx: Sequence[int]) -> Float[Tensor, "n C H W"]:
    """Image i moved dy[i] pixels down and dx[i] to the right; black comes in from outside.

    >>> translated(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), [1], [0]).flatten().tolist()
    [0.0, 0.0, 1.0, 2.0]
    """
    height, width = images.shape[2:]
    moved = torch.zeros_like(images)
    for to, image, down, right in zip(moved, images, dy, dx, strict=True):
        if abs(down) < height and abs(right) < width:
            to.copy_(F.pad(image, (right, -right, down, -down)))
    return moved


@final
class Patterns(AbstractTensorData):
    """Train on the example, look at anything else: the top rows of zhang2019 Figures 1 to 4 and 6 as a data set.

    The training split is that of `example`. Validation, test and prediction show pictures of each kind in turn, each
    its own target; `captions` says which. Beside the generated kinds of `patterns` there are

    - `example`: the training examples themselves;
    - `translated`: moved by up to a quarter of the size;
    - `mixture`: half a training example and half another image of its data set's test split;
    - `images`: other images of that test split;
    - `foreign`: test images of another data set, such as Fashion-MNIST.

    Raises a UserError where a kind is not there, or the foreign images have other channels.

    Args:
        example: what is trained on.
        foreign: another data set; resized to the same size, and its channels must be as many.
        kinds: which, in this order. None: all (`foreign` only where it is given).
        per_kind: pictures of each kind.
        test_size: height and width of the pictures; None: that of the training example. Networks without fully
            connected layers take any (Figures 10 and 11).
        eval_batch_size: pictures per batch and process.
        seed: of all draws. None: that of the run.
    """

    def __init__(
        self,
        example: SingleExample,
        foreign: AbstractImageData | None = None,
        kinds: list[Kind] | None = None,
        per_kind: int = 2,
        test_size: int | None = None,
        eval_batch_size: int = 250,
        seed: int | None = None,
    ) -> None:
        if kinds is None:
            kinds = [kind for kind in get_args(Kind) if kind != "foreign" or foreign is not None]
        if not kinds or per_kind < 1:
            raise UserError(f"{kinds=}, {per_kind=}: there must be at least one picture.")
        if "foreign" in kinds and foreign is None:
            raise UserError("The kind `foreign` needs the argument `foreign`: a data set, such as Fashion-MNIST.")
        if test_size is not None and test_size < 2:
            raise UserError(f"{test_size=}: it must be at least 2.")
        super().__init__(example.train_samples, per_kind * len(kinds), example.batch_size, eval_batch_size, seed)
        self.example, self.foreign, self.kinds = example, foreign, kinds
        self.per_kind, self.test_size = per_kind, test_size

    def find(self) -> Source:
        return self.example.find()

    @property
    def val_source(self) -> str:
        return f"patterns: {', '.join(self.kinds)}"

    @property
    def captions(self) -> list[str]:
        """The kind of each test picture, in their order."""
        return [kind for kind in self.kinds for _ in range(self.per_kind)]

    def make(self, split: Split, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        self.locate()
        if split == "train":
            return self.example.make(split, samples, stream)
        trained = self.example.examples(self.test_size)
        trained = trained[torch.arange(self.per_kind) % len(trained)]
        # A stream for each kind: what is shown of one does not depend on the others.
        x = torch.cat([self._kind(kind, trained, self.shared(f"{split} {kind}")) for kind in self.kinds])
        return x, x

    def _kind(self, kind: Kind, trained: Float[Tensor, "n C H W"], stream: torch.Generator) -> Float[Tensor, "n C H W"]:
        n, _, height, width = trained.shape
        if kind == "example":
            return trained
        if kind == "translated":
            by = 1 + min(height, width) // 4
            return translated(trained, *torch.randint(1 - by, by, (2, n), generator=stream).tolist())
        if kind == "mixture" or kind == "images" or kind == "foreign":
            data = self.foreign if kind == "foreign" else self.example.images
            assert data is not None, "checked in __init__"
            other = self._others(data, trained, stream)
            return 0.5 * trained + 0.5 * other if kind == "mixture" else other
        return patterns(kind, trained.shape, stream)

    def _others(
        self, data: AbstractImageData, like: Float[Tensor, "n C H W"], stream: torch.Generator
    ) -> Float[Tensor, "n C H W"]:
        """As many other images as there are in `like`, of their shape; some twice if there are fewer."""
        height, width = like.shape[2:]
        found = others(data, len(like), stream, height if height == width else None)
        if found.shape[1:] != like.shape[1:]:
            shapes = f"are {tuple(found.shape[1:])}, the training example is {tuple(like.shape[1:])}"
            advice = "rgb (three channels from one) or image_size may help."
            raise UserError(f"Images of {data.source.name} {shapes}.\n{advice}")
        return found[torch.arange(len(like)) % len(found)]
