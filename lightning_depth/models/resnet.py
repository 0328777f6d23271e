"""The ResNets of growing depth of nichani2020 3.2, App. B (Figure 10) and App. C (Table 1)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import PointwiseConv2d
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.shapes import Shapes

# nichani2020 Table 1: blocks in each of the four stages, by depth.
TABLE_1 = {
    10: (1, 1, 1, 1), 12: (1, 1, 2, 1), 14: (1, 2, 2, 1), 16: (2, 2, 2, 1), 18: (2, 2, 2, 2), 20: (2, 2, 3, 2),
    22: (2, 3, 3, 2), 26: (3, 3, 3, 3), 30: (3, 4, 4, 3), 34: (3, 4, 6, 3), 38: (3, 4, 8, 3), 42: (3, 4, 10, 3),
    46: (3, 4, 12, 3), 50: (3, 4, 14, 3),
}  # fmt: skip


class BasicBlock(nn.Module):
    """Two convolutions, each with BatchNorm, around a residual connection (He et al. 2016).

    The shortcut is the identity, or a 1x1 convolution with BatchNorm where the shape changes.
    """

    def __init__(self, channels_in: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        first = PointwiseConv2d if kernel_size == 1 else nn.Conv2d
        self.conv1 = first(channels_in, channels, kernel_size, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size, 1, padding, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            conv = PointwiseConv2d(channels_in, channels, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Stem(nn.Module):
    """The convolution before the first stage, with BatchNorm and ReLU; it keeps the image's size."""

    def __init__(self, channels_in: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class ResNetNetwork(nn.Module):
    """Stem, four stages of basic blocks (widths w, 2w, 4w, 8w; strides 1, 2, 2, 2), mean over pixels, linear head."""

    def __init__(self, channels_in: int, num_classes: int, blocks: Sequence[int], width: int, kernel_size: int) -> None:
        super().__init__()
        self.stem = Stem(channels_in, width, kernel_size)
        channels = width
        for index, count in enumerate(blocks):
            stage: list[nn.Module] = []
            for block in range(count):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(BasicBlock(channels, width * 2**index, kernel_size, stride))
                channels = width * 2**index
            self.add_module(f"stage{index + 1}", nn.Sequential(*stage))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index in range(1, 5):
            x = self.get_submodule(f"stage{index}")(x)
        out: Tensor = self.head(x.mean(dim=(-2, -1)))
        return out


class ResNet(AbstractFamily):
    """ResNet of depth 2 + 2 (n1 + n2 + n3 + n4) and width w (nichani2020 3.2).

    Args:
        depth: one of Table 1: 10, 12, 14, 16, 18, 20, 22, 26, 30, 34, 38, 42, 46, 50. Left out where `blocks` is given.
        blocks: basic blocks in each of the four stages, for any other depth.
        extra_blocks: so many more blocks in one stage, two layers each (App. D.3, Fig. 15).
        extra_stage: 1 to 4, the stage that gets them; 1 or 3 in the paper.
        width: filters in the first stage; the others have 2, 4 and 8 times as many.
        kernel_size: odd; of every convolution but the shortcuts, which are 1x1 (Fig. 17).
        **recipe: see `AbstractFamily`.

    Raises:
        UserError: neither of `depth` and `blocks`, or both where they disagree, a depth that Table 1 lacks, extra
            blocks without a stage or in none of the four, an even kernel size.
    """

    def __init__(
        self,
        depth: int | None = None,
        blocks: Sequence[int] | None = None,
        width: int = 64,
        kernel_size: int = 3,
        extra_blocks: int | None = None,
        extra_stage: int | None = None,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.save_hyperparameters()
        self.blocks = _extended(_blocks(depth, blocks), extra_blocks, extra_stage)
        if width < 1:
            raise UserError(f"ResNet width must be at least 1, not {width}.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            why = "an even one has no middle"
            raise UserError(f"ResNet kernel_size must be odd and positive, not {kernel_size}: {why}.")
        self.width, self.kernel_size = width, kernel_size

    def build(self, shapes: Shapes) -> nn.Module:
        return ResNetNetwork(shapes.input[0], shapes.outputs, self.blocks, self.width, self.kernel_size)


def _blocks(depth: int | None, blocks: Sequence[int] | None) -> tuple[int, ...]:
    if blocks is not None:
        if len(blocks) != 4 or min(blocks) < 1:
            raise UserError(f"ResNet blocks must be four positive numbers, one a stage, not {list(blocks)}.")
        if depth not in (None, of_blocks := 2 + 2 * sum(blocks)):
            raise UserError(f"ResNet depth {depth} and blocks {list(blocks)} (depth {of_blocks}) disagree: give one.")
        return tuple(blocks)
    if depth not in TABLE_1:
        known = f"Table 1 of nichani2020 ({', '.join(map(str, TABLE_1))})"
        raise UserError(f"ResNet depth {depth} is not in {known}.\nGive blocks=[n1, n2, n3, n4] instead.")
    return TABLE_1[depth]


def _extended(blocks: tuple[int, ...], extra: int | None, stage: int | None) -> tuple[int, ...]:
    if extra is None and stage is None:
        return blocks
    if extra is None or stage is None or extra < 0 or not 1 <= stage <= 4:
        both = "a number of blocks and one of the stages 1 to 4"
        raise UserError(f"ResNet extra_blocks={extra}, extra_stage={stage}: give both, {both}.")
    return tuple(count + (extra if index == stage else 0) for index, count in enumerate(blocks, start=1))
