"""DeepLabV3 and DeepLabV3+: keep the resolution, and see far.

Sources: L.-C. Chen, G. Papandreou, F. Schroff, H. Adam, "Rethinking Atrous Convolution for
Semantic Image Segmentation", 2017 (DeepLabV3). L.-C. Chen, Y. Zhu, G. Papandreou, F. Schroff,
H. Adam, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV
2018 (DeepLabV3+).

The boxes of figure 2 of the DeepLabV3+ paper, and their names here:

    DCNN with atrous convolution    backbone, see backbones.py    output stride 16 or 8
    1x1 Conv                        aspp.conv1x1
    3x3 Conv, rate 6, 12, 18        aspp.atrous
    Image Pooling                   aspp.image_pooling            averages over the image
    1x1 Conv after their join       aspp.project
    1x1 Conv of the low level       low_level                     48 channels
    Upsample by 4, Concat, 3x3      decoder                       two 3x3 convolutions
    1x1 Conv to the classes         head                          then upsampled to the image

Departures from the papers:

- **Any size.** Where two maps meet, the coarser one is enlarged bilinearly to the size of the
  finer one, whatever the factor. Pixels count by their areas (`align_corners=False`), as in
  torchvision; the authors' code aligns the corner pixels of images of 513 pixels.
- **Atrous separable convolutions** have one batch normalisation, at their end. The authors' code
  puts another one, with a ReLU, between the depthwise and the pointwise convolution.
- **No multi-grid.** In DeepLabV3 the units of the last stage can have different rates.
- **The 3x3 convolution after the pyramid** of `DeepLabV3` stands in torchvision's model, not in
  the paper, which has a 1x1 convolution there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcourse.models.backbones import ResNet, resnet101
from segcourse.models.layers import BatchNorm2d, check_counts, check_image, conv1x1


def enlarge(x: Tensor, size: torch.Size) -> Tensor:
    """The map `x` as large as `size`, (height, width), by bilinear interpolation."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class AtrousConv(nn.Conv2d):
    """A dilated convolution: [B, in_channels, H, W] -> [B, out_channels, H, W], the same size.

    Tap k of the kernel reads the pixel `dilation` * k away from the middle, so that a 3x3 kernel
    spans 2 * dilation + 1 pixels with nine weights. Beyond the border it reads zeros.

    Raises ValueError for an even kernel, which has no middle, and for counts below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        check_counts(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            dilation=dilation,
        )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number; got {kernel_size}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=bias,
        )


class ConvNormReLU(nn.Sequential):
    """A convolution that keeps the size, batch normalisation and a ReLU.

    With `rate` None it is a 1x1 convolution, else an atrous 3x3 convolution. `separable` splits
    the latter into `depthwise`, one kernel for each channel, and `pointwise`, which is 1x1 from
    all channels to all.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rate: int | None = None,
        *,
        separable: bool = False,
    ) -> None:
        super().__init__()
        if rate is None:
            self.conv = conv1x1(in_channels, out_channels)
        elif separable:
            self.depthwise = AtrousConv(
                in_channels, in_channels, dilation=rate, groups=in_channels, bias=False
            )
            self.pointwise = conv1x1(in_channels, out_channels)
        else:
            self.conv = AtrousConv(in_channels, out_channels, dilation=rate, bias=False)
        self.norm = BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: [B, in_channels, H, W] -> [B, out_channels, H, W].

    Branches side by side look at the same map: a 1x1 convolution, a 3x3 convolution for each of
    the `rates`, and `image_pooling`, the average over the whole map, which every pixel gets. Each
    gives `out_channels`; `project` mixes them.

    The average of one image is one value per channel: see `BatchNorm2d` in layers.py.

    `rates=()` and `image_pooling=False` leave branches out. Raises ValueError for counts and rates
    below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        *,
        separable: bool = False,
        image_pooling: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_counts(
            in_channels=in_channels,
            out_channels=out_channels,
            **{f"rates[{i}]": rate for i, rate in enumerate(rates)},
        )
        self.conv1x1 = ConvNormReLU(in_channels, out_channels)
        self.atrous = nn.ModuleList(
            ConvNormReLU(in_channels, out_channels, rate, separable=separable) for rate in rates
        )
        self.image_pooling = ConvNormReLU(in_channels, out_channels) if image_pooling else None
        branches = 1 + len(rates) + image_pooling
        self.project = ConvNormReLU(branches * out_channels, out_channels)
        self.dropout = nn.Dropout(dropout)

    def branches(self, x: Tensor) -> list[Tensor]:
        """What each branch makes of `x`: maps [B, out_channels, H, W], in the order above."""
        maps = [self.conv1x1(x), *(conv(x) for conv in self.atrous)]
        if self.image_pooling is not None:
            mean = self.image_pooling(x.mean(dim=(2, 3), keepdim=True))
            maps.append(mean.expand_as(maps[0]))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.project(torch.cat(self.branches(x), dim=1)))


def rates_at(output_stride: int, rates: Sequence[int]) -> list[int]:
    """`rates` for output stride 16 as they are at another one, in the same pixels of the image.

    At output stride 8 they double, as in the papers.
    """
    return [rate * 16 // output_stride for rate in rates]


class DeepLabV3(nn.Module):
    """DeepLabV3: image [B, 3, H, W] -> logits [B, num_classes, H, W].

    `backbone` is a `ResNet` of backbones.py with the output stride that is wanted; the default is
    the paper's ResNet-101 at output stride 16. `channels` is the width of the pyramid; `rates`
    are those for output stride 16, and double at 8.

    In train mode a batch of one image works too. Raises ValueError for counts below 1 and for
    images that are not floating point, have other than 3 channels or a side below 32.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: ResNet | None = None,
        *,
        channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, channels=channels)
        self.backbone = resnet101(output_stride=16) if backbone is None else backbone
        self.aspp = ASPP(
            self.backbone.channels[-1],
            channels,
            rates_at(self.backbone.strides[-1], rates),
            dropout=dropout,
        )
        self.conv = ConvNormReLU(channels, channels, 1)
        self.head = conv1x1(channels, num_classes, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        check_image(image)
        coarse = self.backbone(image)[-1]
        return enlarge(self.head(self.conv(self.aspp(coarse))), image.shape[2:])


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+: image [B, 3, H, W] -> logits [B, num_classes, H, W].

    As `DeepLabV3`, with a decoder that joins the pyramid with the backbone's finest map, reduced
    to `low_level_channels`; 0 leaves that branch out, to show what it does: the decoder then
    works on the enlarged map alone. The 3x3 convolutions of pyramid and decoder are atrous
    separable, or full ones with `separable=False`. `image_pooling`: see `ASPP`.

    In train mode a batch of one image works too. Raises ValueError for counts below 1 and for
    images that are not floating point, have other than 3 channels or a side below 32.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: ResNet | None = None,
        *,
        channels: int = 256,
        low_level_channels: int = 48,
        rates: Sequence[int] = (6, 12, 18),
        separable: bool = True,
        image_pooling: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, channels=channels)
        self.backbone = resnet101(output_stride=16) if backbone is None else backbone
        self.aspp = ASPP(
            self.backbone.channels[-1],
            channels,
            rates_at(self.backbone.strides[-1], rates),
            separable=separable,
            image_pooling=image_pooling,
            dropout=dropout,
        )
        self.low_level = None
        if low_level_channels:
            check_counts(low_level_channels=low_level_channels)
            self.low_level = ConvNormReLU(self.backbone.channels[0], low_level_channels)
        self.decoder = nn.Sequential(
            ConvNormReLU(channels + low_level_channels, channels, 1, separable=separable),
            ConvNormReLU(channels, channels, 1, separable=separable),
        )
        self.head = conv1x1(channels, num_classes, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        check_image(image)
        fine, *_, coarse = self.backbone(image)
        x = enlarge(self.aspp(coarse), fine.shape[2:])
        if self.low_level is not None:
            x = torch.cat([x, self.low_level(fine)], dim=1)
        return enlarge(self.head(self.decoder(x)), image.shape[2:])
