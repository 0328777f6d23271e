"""Small images, and a stream of random numbers, for the tests of data sets."""

import torch

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import Arrays, Source
from lightning_depth.seeds import generator


def stream(name="test"):
    return generator(0, name)


class Squares(AbstractImageData):
    """Four 8 x 8 training images of each of 10 classes and two test images; a pixel value says which image it is."""

    colours = 1
    stand_in = False

    def find(self):
        return Source("squares", "embedded", "tests", fallback=self.stand_in)

    def read(self, split):
        self.locate()
        each = 4 if split == "train" else 2
        labels = torch.arange(10 * each) % 10
        value = 5 * torch.arange(10 * each) + (1 if split == "train" else 2)
        images = value.to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, self.colours).contiguous()
        return Arrays(labels, [str(i) for i in range(10)], None, images)


class ColourSquares(Squares):
    colours = 3
