"""A network family, a data set and a probe that live outside lightning_depth."""

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import Arrays, Source
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.shapes import Shapes
from lightning_depth.probes import AbstractProbe, Key, Look, Value
from lightning_depth.seeds import generator


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


class Stripes(AbstractImageData):
    """Noisy 8 x 8 images that are bright in their upper or in their lower half."""

    def find(self) -> Source:
        return Source("stripes", "embedded", "depth_example")

    def read(self, split: str) -> Arrays:
        labels = torch.arange(60) % 2
        images = torch.randint(128, (60, 8, 8, 1), generator=generator(0, "stripes", split), dtype=torch.uint8)
        images.view(60, 2, 32)[torch.arange(60), labels] += 100
        return Arrays(labels, ["up", "down"], None, images)


class WeightScale(AbstractProbe):
    """The root mean square of every layer's weights."""

    keys = (Key("rms", title="Scale of each layer's weights", title_one="Scale of the weights of {layer}", unit="rms"),)

    def measure(self, look: Look) -> Iterable[Value]:
        for call in self.chosen(look, lambda call: isinstance(call.module, nn.Linear)):
            yield call.name, "rms", float(call.module.weight.square().mean().sqrt())
