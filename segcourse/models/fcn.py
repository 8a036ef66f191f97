"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s.

Source: J. Long, E. Shelhamer, T. Darrell, "Fully Convolutional Networks for Semantic
Segmentation", CVPR 2015.

The idea in four steps:

1. Take a classifier, VGG-16, and read its fully connected layers as convolutions: fc6 becomes a
   7x7 convolution, fc7 a 1x1 convolution. Now it accepts an image of any size and gives a map.
2. Score each place of that map, one channel per class: `score_fr`, one place every 32 pixels.
3. Score two earlier and finer maps too, `score_pool4` and `score_pool3`, and add the scores.
4. Enlarge the scores to the image with transposed convolutions that start as bilinear
   interpolation.

FCN-32s takes steps 1, 2 and 4. FCN-16s adds the scores of pool4, FCN-8s those of pool4 and pool3.
The three networks share the names of their layers, so the weights of a coarser one start a finer
one, as in the paper: `fcn16s.load_state_dict(fcn32s.state_dict(), strict=False)`.

**Two ways to pad.** fc6 has no padding in VGG-16, so it makes a map 6 places smaller. The paper
pads the image by 100 pixels to make up for it (`pad_image=True`). That is little work on a
500-pixel photograph, but a 64-pixel image becomes 262 pixels wide, with 17 times the area.
With `pad_image=False` fc6 pads its own input by 3 instead. The weights are the same in both ways;
only the crops, and what a pixel near the border sees, differ.

Other departures from the paper are named where they occur: `upscore`, and `batch_norm` of `VGG16`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segcourse.models.layers import check_counts, check_image


@dataclass(frozen=True)
class Grid:
    """Where a feature map lies: its pixel i is centred on image coordinate `start + step * i`.

    Unit: pixels of the image, whose own centres are at 0, 1, 2, ... Every crop in this file
    follows from `after`.
    """

    start: float = 0.0
    step: float = 1.0

    def after(self, *layers: nn.Conv2d | nn.MaxPool2d | nn.ConvTranspose2d) -> "Grid":
        """The grid of the map that these layers make of a map on this grid.

        The first window of k pixels with padding p is centred on input pixel (k - 1) / 2 - p, and
        each next one lies a stride further. A transposed convolution is the same relation with
        input and output exchanged.
        """
        grid = self
        for layer in layers:
            kernel, stride, padding = (
                sides if isinstance(sides, int) else sides[0]
                for sides in (layer.kernel_size, layer.stride, layer.padding)
            )
            centre = (kernel - 1) / 2 - padding
            if isinstance(layer, nn.ConvTranspose2d):
                step = grid.step / stride
                grid = Grid(grid.start - step * centre, step)
            else:
                grid = Grid(grid.start + grid.step * centre, grid.step * stride)
        return grid

    def offset_in(self, other: "Grid") -> int:
        """The pixel of `other` on which pixel 0 of this grid falls, for grids of equal step."""
        return int((self.start - other.start) / other.step)

    def common(self, other: "Grid") -> "Grid":
        """The grid of what two maps have in common: it starts where the later one starts."""
        return max(self, other, key=lambda grid: grid.start)


def bilinear_kernel(factor: int) -> Tensor:
    """Kernel [2 * factor, 2 * factor] that makes a transposed convolution interpolate linearly."""
    taps = torch.arange(2 * factor, dtype=torch.float32)
    triangle = 1 - (taps - (2 * factor - 1) / 2).abs() / factor
    return torch.outer(triangle, triangle)


def upscore(num_classes: int, factor: int, *, learned: bool) -> nn.ConvTranspose2d:
    """A transposed convolution that enlarges the map of each class `factor` times.

    It starts as bilinear interpolation. The paper keeps the last one of a network fixed and learns
    those in between (the files that the authors released keep all of them fixed).

    Departure: `groups=num_classes`, each class by itself. The paper's kernel also has weights from
    one class to another, which are zero at the start. Where the kernel is fixed they stay zero, so
    that leaving them out saves work and changes nothing; where it is learned they stay zero here
    only.
    """
    layer = nn.ConvTranspose2d(
        num_classes, num_classes, 2 * factor, stride=factor, groups=num_classes, bias=False
    )
    with torch.no_grad():
        layer.weight.copy_(bilinear_kernel(factor))
    return layer.requires_grad_(learned)


def score(in_channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution that gives each class a score, all zero at the start as in the paper."""
    layer = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def fuse(scores: Tensor, skip: Tensor, offset: int) -> Tensor:
    """Sum of two score maps where both exist; pixel 0 of `scores` is pixel `offset` of `skip`."""
    scores = scores[:, :, max(-offset, 0) :, max(-offset, 0) :]
    skip = skip[:, :, max(offset, 0) :, max(offset, 0) :]
    height, width = (min(sides) for sides in zip(scores.shape[2:], skip.shape[2:], strict=True))
    return scores[:, :, :height, :width] + skip[:, :, :height, :width]


def crop(scores: Tensor, offset: int, image: Tensor) -> Tensor:
    """The part of `scores` that lies over the image, whose pixel 0 is their pixel `offset`."""
    height, width = image.shape[2:]
    return scores[:, :, offset : offset + height, offset : offset + width]


class ConvStage(nn.Sequential):
    """Stage `number` of VGG-16: `depth` 3x3 convolutions, conv<number>_1, ..., each with a ReLU.

    `padding` is that of the first convolution; the others pad by 1.
    """

    def __init__(
        self,
        number: int,
        in_channels: int,
        out_channels: int,
        depth: int,
        *,
        padding: int = 1,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        for i in range(1, depth + 1):
            conv = nn.Conv2d(in_channels, out_channels, 3, padding=padding, bias=not batch_norm)
            self.add_module(f"conv{number}_{i}", conv)
            if batch_norm:
                self.add_module(f"norm{number}_{i}", nn.BatchNorm2d(out_channels))
            self.add_module(f"relu{number}_{i}", nn.ReLU(inplace=True))
            in_channels, padding = out_channels, 1


class VGG16(nn.Module):
    """VGG-16 (Simonyan and Zisserman, 2015) without its last layer, fully convolutional.

    Image [B, 3, H, W] -> `pool3` [B, 4w, ., .], `pool4` [B, 8w, ., .] and `fc7` [B, 64w, ., .],
    where w is `width`. They have a pixel every 8, 16 and 32 image pixels; `pool3_grid`,
    `pool4_grid` and `fc7_grid` say exactly where. Pooling rounds up, as in the authors' framework,
    so that the maps reach the last row and column of the image.

    Departures: the paper starts from weights trained on ImageNet. Here the weights are random (He
    et al., 2015). `batch_norm` puts a normalisation after each 3x3 convolution, which the paper's
    network does not have; training from scratch is much slower without it.
    """

    def __init__(self, width: int, *, pad_image: bool, batch_norm: bool) -> None:
        super().__init__()
        w, bn = width, batch_norm
        self.conv1 = ConvStage(1, 3, w, 2, padding=100 if pad_image else 1, batch_norm=bn)
        self.pool1 = nn.MaxPool2d(2, ceil_mode=True)
        self.conv2 = ConvStage(2, w, 2 * w, 2, batch_norm=bn)
        self.pool2 = nn.MaxPool2d(2, ceil_mode=True)
        self.conv3 = ConvStage(3, 2 * w, 4 * w, 3, batch_norm=bn)
        self.pool3 = nn.MaxPool2d(2, ceil_mode=True)
        self.conv4 = ConvStage(4, 4 * w, 8 * w, 3, batch_norm=bn)
        self.pool4 = nn.MaxPool2d(2, ceil_mode=True)
        self.conv5 = ConvStage(5, 8 * w, 8 * w, 3, batch_norm=bn)
        self.pool5 = nn.MaxPool2d(2, ceil_mode=True)
        self.fc6 = nn.Conv2d(8 * w, 64 * w, 7, padding=0 if pad_image else 3)
        self.relu6 = nn.ReLU(inplace=True)
        self.drop6 = nn.Dropout(0.5)
        self.fc7 = nn.Conv2d(64 * w, 64 * w, 1)
        self.relu7 = nn.ReLU(inplace=True)
        self.drop7 = nn.Dropout(0.5)

        self.pool3_grid = Grid().after(self.conv1.conv1_1, self.pool1, self.pool2, self.pool3)
        self.pool4_grid = self.pool3_grid.after(self.pool4)
        self.fc7_grid = self.pool4_grid.after(self.pool5, self.fc6)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pool1 = self.pool1(self.conv1(image))
        pool2 = self.pool2(self.conv2(pool1))
        pool3 = self.pool3(self.conv3(pool2))
        pool4 = self.pool4(self.conv4(pool3))
        pool5 = self.pool5(self.conv5(pool4))
        fc6 = self.drop6(self.relu6(self.fc6(pool5)))
        fc7 = self.drop7(self.relu7(self.fc7(fc6)))
        return pool3, pool4, fc7


class FCN32s(nn.Module):
    """FCN-32s: image [B, 3, H, W] -> logits [B, num_classes, H, W], scored every 32 pixels.

    `width` scales every layer; the paper's is 64. `pad_image`: see the top of this file.
    `batch_norm`: see `VGG16`. Raises ValueError for counts below 1 and images that are not
    floating point, have other than 3 channels or a side below 32.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 64,
        pad_image: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, width=width)
        self.vgg = VGG16(width, pad_image=pad_image, batch_norm=batch_norm)
        self.score_fr = score(64 * width, num_classes)
        self.upscore32 = upscore(num_classes, 32, learned=False)

        upscore32_grid = self.vgg.fc7_grid.after(self.upscore32)
        self.score_offset = Grid().offset_in(upscore32_grid)

    def forward(self, image: Tensor) -> Tensor:
        check_image(image)
        _, _, fc7 = self.vgg(image)
        upscore32 = self.upscore32(self.score_fr(fc7))
        return crop(upscore32, self.score_offset, image)


class FCN16s(nn.Module):
    """FCN-16s: as `FCN32s`, plus the scores of pool4, every 16 pixels."""

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 64,
        pad_image: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, width=width)
        self.vgg = VGG16(width, pad_image=pad_image, batch_norm=batch_norm)
        self.score_fr = score(64 * width, num_classes)
        self.upscore2 = upscore(num_classes, 2, learned=True)
        self.score_pool4 = score(8 * width, num_classes)
        self.upscore16 = upscore(num_classes, 16, learned=False)

        upscore2_grid = self.vgg.fc7_grid.after(self.upscore2)
        self.pool4_offset = upscore2_grid.offset_in(self.vgg.pool4_grid)
        upscore16_grid = upscore2_grid.common(self.vgg.pool4_grid).after(self.upscore16)
        self.score_offset = Grid().offset_in(upscore16_grid)

    def forward(self, image: Tensor) -> Tensor:
        check_image(image)
        _, pool4, fc7 = self.vgg(image)
        upscore2 = self.upscore2(self.score_fr(fc7))
        fuse_pool4 = fuse(upscore2, self.score_pool4(pool4), self.pool4_offset)
        upscore16 = self.upscore16(fuse_pool4)
        return crop(upscore16, self.score_offset, image)


class FCN8s(nn.Module):
    """FCN-8s: as `FCN16s`, plus the scores of pool3, every 8 pixels."""

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 64,
        pad_image: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, width=width)
        self.vgg = VGG16(width, pad_image=pad_image, batch_norm=batch_norm)
        self.score_fr = score(64 * width, num_classes)
        self.upscore2 = upscore(num_classes, 2, learned=True)
        self.score_pool4 = score(8 * width, num_classes)
        self.upscore_pool4 = upscore(num_classes, 2, learned=True)
        self.score_pool3 = score(4 * width, num_classes)
        self.upscore8 = upscore(num_classes, 8, learned=False)

        upscore2_grid = self.vgg.fc7_grid.after(self.upscore2)
        self.pool4_offset = upscore2_grid.offset_in(self.vgg.pool4_grid)
        upscore_pool4_grid = upscore2_grid.common(self.vgg.pool4_grid).after(self.upscore_pool4)
        self.pool3_offset = upscore_pool4_grid.offset_in(self.vgg.pool3_grid)
        upscore8_grid = upscore_pool4_grid.common(self.vgg.pool3_grid).after(self.upscore8)
        self.score_offset = Grid().offset_in(upscore8_grid)

    def forward(self, image: Tensor) -> Tensor:
        check_image(image)
        pool3, pool4, fc7 = self.vgg(image)
        upscore2 = self.upscore2(self.score_fr(fc7))
        fuse_pool4 = fuse(upscore2, self.score_pool4(pool4), self.pool4_offset)
        upscore_pool4 = self.upscore_pool4(fuse_pool4)
        fuse_pool3 = fuse(upscore_pool4, self.score_pool3(pool3), self.pool3_offset)
        upscore8 = self.upscore8(fuse_pool3)
        return crop(upscore8, self.score_offset, image)
