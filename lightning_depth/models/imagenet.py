"""A network for images of ImageNet's size that torchvision has the parts of, but no name for."""

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


def resnet10(**arguments: Any) -> nn.Module:
    """ResNet-10 (huh2021 Table 2): torchvision's ResNet with one basic block in each of its four stages.

    For `Imported`, as torchvision's own: `network: lightning_depth.models.imagenet.resnet10`. AlexNet, ResNet-18 and
    ResNet-34 of that table are `torchvision.models.alexnet`, `resnet18` and `resnet34`. The `arguments` are those of
    `torchvision.models.resnet.ResNet`, such as `num_classes` (1,000).
    """
    net: nn.Module = ResNet(BasicBlock, [1, 1, 1, 1], **arguments)
    return net
