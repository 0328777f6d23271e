"""Toy images with one coloured pixel: easy for convolutions, not for minimum-norm regression (nichani2020)."""

from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.errors import UserError
from lightning_depth.results import Split

RED, BLUE = 0, 2  # channels


def sign_accuracy(scores: Float[Tensor, "n 1"], signs: Float[Tensor, "n 1"], tie: float = 0.5) -> float:
    """The share of scores with the sign of their targets +-1; a score of exactly 0 counts as `tie` right.

    nichani2020's 50 % for the minimum-norm solution, whose scores are all 0, is the convention tie = 0.5.

    >>> sign_accuracy(torch.tensor([[0.0], [0.2]]), torch.tensor([[1.0], [1.0]]))
    0.75
    """
    return float(torch.where(scores == 0, tie, (scores * signs > 0).double()).mean())


@final
class ToyPixels(AbstractTensorData):
    """Black images (3, size, size) with one pixel that is red or blue (nichani2020 4.1, Figure 7; D.7, Figure 19).

    The training pixels lie in the upper left quadrant, the test pixels in the lower right one, half of the images of
    each colour. A convolution tells the colours apart wherever they are; the minimum-norm linear map
    (`measures.linear_networks.minimum_norm_solution`, `sign_accuracy`) does not. Raises a UserError where an argument
    is out of its range, more than one image of a colour in one corner, or more than places.

    Args:
        positions: where the training pixel is: `corner`, in the upper left corner (Figure 7), or `quadrant`, at places
            of that quadrant drawn without repetition for each colour (Figure 19; that they differ is our reading).
        samples_per_class: training images of each colour; Figure 7 has 1, Figure 19 has 4.
        test_samples: test images, and as many validation images, at places drawn with repetition. The paper has 200.
        targets: `signs`: the paper's numbers, +1 for blue and -1 for red, of shape (1,); `classes`: red is 0, blue 1.
        size: height and width, even. The paper has 6.
        batch_size: training images per batch and process; 0: all in one.
        tensors: other arguments of `AbstractTensorData`.
    """

    label_count = 2

    def __init__(
        self,
        positions: Literal["corner", "quadrant"] = "corner",
        samples_per_class: int = 1,
        test_samples: int = 200,
        targets: Literal["signs", "classes"] = "signs",
        size: int = 6,
        batch_size: int = 0,
        **tensors: Any,
    ) -> None:
        super().__init__(2 * samples_per_class, test_samples, batch_size, **tensors)
        if size < 2 or size % 2:
            raise UserError(f"{size=}: it must be even, and at least 2.")
        places = 1 if positions == "corner" else (size // 2) ** 2
        if samples_per_class > places:
            advice = "\nGive positions=quadrant." if positions == "corner" else ""
            raise UserError(f"{samples_per_class=}, but there are {places} places.{advice}")
        self.positions, self.targets, self.size = positions, targets, size

    def make(self, split: Split, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        half = self.size // 2
        blue = torch.arange(samples) % 2
        if split != "train":
            places = torch.randint(half**2, (samples,), generator=stream)
        elif self.positions == "corner":
            places = torch.zeros(samples, dtype=torch.int64)
        else:
            each = [torch.randperm(half**2, generator=stream)[: samples // 2] for _ in range(2)]
            places = torch.stack(each, dim=1).flatten()
        shift = 0 if split == "train" else half
        images = torch.zeros(samples, 3, self.size, self.size)
        channels = torch.where(blue == 1, BLUE, RED)
        images[torch.arange(samples), channels, shift + places // half, shift + places % half] = 1
        if self.targets == "signs":
            return images, (2.0 * blue - 1)[:, None]
        return images, blue
