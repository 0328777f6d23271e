"""A data set that lives outside lightning_depth."""

import torch

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import Arrays, Source
from lightning_depth.seeds import generator


class Stripes(AbstractImageData):
    """Noisy 8 x 8 images that are bright in their upper or in their lower half."""

    def find(self) -> Source:
        return Source("stripes", "embedded", "depth_example")

    def read(self, split: str) -> Arrays:
        labels = torch.arange(60) % 2
        images = torch.randint(128, (60, 8, 8, 1), generator=generator(0, "stripes", split), dtype=torch.uint8)
        images.view(60, 2, 32)[torch.arange(60), labels] += 100
        return Arrays(labels, ["up", "down"], None, images)
