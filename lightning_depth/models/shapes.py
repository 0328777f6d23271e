"""What a network has to know of its data: shapes, as plain values."""

import math
from dataclasses import dataclass

from lightning_depth.errors import UserError


@dataclass(frozen=True)
class Shapes:
    """Shapes of one sample.

    Attributes:
        input: of an input, without the batch: (channels, height, width) of an image.
        classes: the number of classes, where targets are classes.
        target: of a target, where targets are numbers.

    Raises:
        UserError: both or neither of `classes` and `target` are given.

    >>> Shapes((3, 32, 32), classes=10).outputs, Shapes((5,), target=(2, 3)).outputs
    (10, 6)
    """

    input: tuple[int, ...]
    classes: int | None = None
    target: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.classes is None) == (self.target is None):
            raise UserError(f"Targets are classes or numbers: give one of classes and target, not {self}.")

    @property
    def outputs(self) -> int:
        """How many numbers the network returns for a sample: one for each class, or for each entry of a target."""
        return math.prod(self.target) if self.target is not None else int(self.classes or 0)
