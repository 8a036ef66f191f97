"""ResNet as a backbone: features at several scales, and no classifier at its end.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
Dilated last stages: L.-C. Chen et al., "Rethinking Atrous Convolution for Semantic Image
Segmentation", 2017.

The rows of table 1 of the ResNet paper, and their names here. The names of the layers are those
of torchvision, so that its state dicts load: `resnet50().load_torchvision(state_dict)`.

    7x7 convolution, stride 2     conv1     3x3 max pooling, stride 2     maxpool
    conv2_x, a pixel every 4      layer1    conv3_x, a pixel every 8      layer2
    conv4_x, a pixel every 16     layer3    conv5_x, a pixel every 32     layer4
    the shortcut that changes the shape     downsample

Departures from the ResNet paper:

- **Stride.** In a bottleneck the 3x3 convolution has the stride, not the 1x1 before it, as in
  torchvision and in almost all published weights.
- **Output stride.** With `output_stride=16` or 8 the last stage, or the last two, keep their
  resolution, and the convolutions that follow are dilated instead: they read the same places as
  before, from a map with four times the pixels. The convolution that would have had the stride
  keeps the old rate, since its input is as before. With the same weights every second pixel of
  the larger map is a pixel of the plain network's.
- **No classifier.** The average pooling over the image and the fully connected layer are gone.
"""

from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segcourse.models.layers import BatchNorm2d, check_counts, check_image, conv1x1

Norm = Callable[[int], nn.Module]


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, rate: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size but for its stride; a norm follows, so no bias."""
    return nn.Conv2d(
        in_channels, out_channels, 3, stride=stride, padding=rate, dilation=rate, bias=False
    )


def shortcut(
    in_channels: int, out_channels: int, stride: int, norm: Norm, *, average: bool
) -> nn.Sequential | None:
    """Takes the input of a unit to the shape of its output; None if that is the same.

    A 1x1 convolution and a norm. `average` halves the map by 2x2 averages before the convolution,
    in place of its stride: a strided 1x1 convolution skips three pixels of four (He et al., 2019,
    who call it ResNet-D). There is a practical reason too: with fewer than 16 channels, stored
    channels last, the gradient of such a convolution crashed on a CPU.
    """
    if stride == 1 and in_channels == out_channels:
        return None
    if average:
        # Rounds up, as the padded 3x3 convolutions do. The Identity keeps the layers' numbers.
        halve = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        pool = halve if stride == 2 else nn.Identity()
        return nn.Sequential(pool, conv1x1(in_channels, out_channels), norm(out_channels))
    conv = conv1x1(in_channels, out_channels)
    if stride == 2:
        conv = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
    return nn.Sequential(conv, norm(out_channels))


class BasicBlock(nn.Module):
    """The unit of ResNet-18: two 3x3 convolutions beside a shortcut.

    [B, in_channels, H, W] -> [B, width, H / stride, W / stride], rounded up. `rates` are the
    dilations of the two.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        rates: tuple[int, int],
        norm: Norm,
        *,
        average: bool,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride=stride, rate=rates[0])
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, rate=rates[1])
        self.bn2 = norm(width)
        self.downsample = shortcut(in_channels, width, stride, norm, average=average)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(identity), inplace=True)


class Bottleneck(nn.Module):
    """The unit of ResNet-50 and 101: 1x1, 3x3 and 1x1 convolutions beside a shortcut.

    [B, in_channels, H, W] -> [B, 4 * width, H / stride, W / stride], rounded up. The first of the
    `rates` is the dilation of the 3x3 convolution; nothing after it has one.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        rates: tuple[int, int],
        norm: Norm,
        *,
        average: bool,
    ) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, stride=stride, rate=rates[0])
        self.bn2 = norm(width)
        self.conv3 = conv1x1(width, 4 * width)
        self.bn3 = norm(4 * width)
        self.downsample = shortcut(in_channels, 4 * width, stride, norm, average=average)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)).add_(identity), inplace=True)


class ResNet(nn.Module):
    """Image [B, 3, H, W] -> the maps of `layer1`, `layer2`, ..., finest first.

    Map i is [B, channels[i], H / strides[i], W / strides[i]], rounded up. `depths` are the units
    of each stage, of which the paper has four; `width` scales every layer, the paper's is 64.
    `norm(channels)` makes a normalisation.

    `output_stride` is the stride of the last map: that of the plain network, or half or a quarter
    of it, with dilated convolutions in place of the strides that are left out.

    `small_images` makes the toy's stem, a 3x3 convolution with stride 2 and no max pooling, so
    that all strides are half as large, and shortcuts that average (see `shortcut`).

    Raises ValueError for counts below 1 and for an output stride that cannot be had.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        width: int = 64,
        output_stride: int = 32,
        norm: Norm = BatchNorm2d,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        check_counts(width=width, **{f"depths[{i}]": depth for i, depth in enumerate(depths)})
        stride = 2 if small_images else 4
        plain = stride * 2 ** (len(depths) - 1)
        possible = [plain // less for less in (1, 2, 4) if plain // less >= stride]
        if output_stride not in possible:
            raise ValueError(f"output_stride: expected one of {possible}; got {output_stride!r}")
        if small_images:
            self.conv1 = conv3x3(3, width, stride=2)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = norm(width)

        self.channels = tuple(block.expansion * width * 2**i for i in range(len(depths)))
        self.strides = tuple(min(stride * 2**i, output_stride) for i in range(len(depths)))
        in_channels, rate = width, 1
        for i, depth in enumerate(depths):
            step, rates = self.strides[i] // stride, (rate, rate)
            if i > 0 and step == 1:  # a stride is left out: dilate all that would follow it
                rates, rate = (rate, 2 * rate), 2 * rate
            stage = nn.Sequential()
            for _ in range(depth):
                stage.append(
                    block(in_channels, width * 2**i, step, rates, norm, average=small_images)
                )
                in_channels, step, rates = self.channels[i], 1, (rate, rate)
            self.add_module(f"layer{i + 1}", stage)
            stride = self.strides[i]

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        check_image(image, min_side=1)
        x = self.maxpool(F.relu(self.bn1(self.conv1(image)), inplace=True))
        maps = []
        for i in range(len(self.channels)):
            x = getattr(self, f"layer{i + 1}")(x)
            maps.append(x)
        return tuple(maps)

    def load_torchvision(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the weights of torchvision's ResNet of the same kind, without its classifier `fc`.

        torch raises a RuntimeError that lists what is missing, foreign or of another shape.
        """
        kept = {name: value for name, value in state_dict.items() if not name.startswith("fc.")}
        self.load_state_dict(kept)


def resnet18(output_stride: int = 32, norm: Norm = BatchNorm2d) -> ResNet:
    """ResNet-18 of the paper: 11.2 million parameters without the classifier."""
    return ResNet(BasicBlock, (2, 2, 2, 2), output_stride=output_stride, norm=norm)


def resnet50(output_stride: int = 32, norm: Norm = BatchNorm2d) -> ResNet:
    """ResNet-50 of the paper: 23.5 million parameters without the classifier."""
    return ResNet(Bottleneck, (3, 4, 6, 3), output_stride=output_stride, norm=norm)


def resnet101(output_stride: int = 32, norm: Norm = BatchNorm2d) -> ResNet:
    """ResNet-101 of the paper: 42.5 million parameters without the classifier."""
    return ResNet(Bottleneck, (3, 4, 23, 3), output_stride=output_stride, norm=norm)


def toy_resnet(width: int = 12, output_stride: int = 8, *, stages: int = 4) -> ResNet:
    """The smallest ResNet of this kind, for images of 64 pixels: a basic block for each stage.

    Without dilation the maps have strides 2, 4, 8 and 16.
    """
    return ResNet(
        BasicBlock, [1] * stages, width=width, output_stride=output_stride, small_images=True
    )
