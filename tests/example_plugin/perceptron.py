"""A network family that lives outside lightning_depth."""

import math
from itertools import pairwise

from torch import nn

from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.shapes import Shapes


class Perceptron(AbstractFamily):
    """`depth` linear layers with ReLU between them."""

    def __init__(self, depth: int = 2, width: int = 16, **recipe) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        self.depth, self.width = depth, width

    def build(self, shapes: Shapes) -> nn.Module:
        sizes = [math.prod(shapes.input), *[self.width] * (self.depth - 1), shapes.outputs]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes[:-1])]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(*sizes[-2:]))
