"""U-Net, and Attention U-Net, which weighs what the skip connections carry.

Sources: O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015. O. Oktay et al., "Attention U-Net: Learning Where to Look for the
Pancreas", MIDL 2018.

The boxes and arrows of figure 1 of the U-Net paper, and their names here. Level 0 is the finest.

    two 3x3 convolutions on the way down     encoder[level]   features[level] channels
    2x2 max pooling                          pool             halves the sides, rounding down
    2x2 up-convolution                       up[level]        from level + 1 to `level`
    copy and crop                            UNet.expand      crops nothing here, see below
    two 3x3 convolutions on the way up       decoder[level]   features[level] channels
    1x1 convolution                          head             one channel per class

Departures from the U-Net paper:

- **Padding.** The paper's convolutions have none, so each takes 2 pixels off both sides: an image
  of 572 pixels gives 568 pixels at level 0, then 280, 136, 64 and 28, and on the way back 52, 100,
  196 and 388. Its skips are cropped to fit, and a large image is segmented in overlapping tiles.
  Here every 3x3 convolution pads by 1 with zeros, so an image of 572 pixels gives logits of 572
  pixels, and the border of the image is seen beside zeros.
- **Any size.** The paper picks tiles whose sides are even before every pooling. Here pooling drops
  an odd last row or column, and the up-convolved map repeats its own last one to reach the skip.
- **Batch normalisation** after each 3x3 convolution, which then needs no bias. It became common
  after the paper, and without it training from random weights is slow.
- **No dropout.** The paper has some at the end of the way down.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcourse.models.layers import BatchNorm2d, check_counts, check_image


def check_features(features: Sequence[int], levels: int) -> None:
    """Raise ValueError unless `features` are at least `levels` rising whole numbers above 0."""
    whole = isinstance(features, Sequence) and all(isinstance(width, int) for width in features)
    if not whole or len(features) < levels or [0, *features] != sorted({0, *features}):
        raise ValueError(
            f"features: expected a sequence of at least {levels} whole numbers above 0, each "
            f"larger than the one before; got {features!r}"
        )


def he_normal(layer: nn.Module) -> None:
    """Start a convolution as in section 3 of the U-Net paper: std sqrt(2 / N), biases zero.

    N is the number of inputs that reach one output value (He et al., 2015). torch's own
    initialiser takes another N for a transposed convolution.
    """
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        # The windows of an up-convolution do not overlap: one input pixel reaches an output pixel.
        up_convolution = isinstance(layer, nn.ConvTranspose2d)
        incoming = layer.in_channels if up_convolution else layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=(2 / incoming) ** 0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def extend(x: Tensor, skip: Tensor) -> Tensor:
    """Repeat the last row and column of `x` until it has the height and width of `skip`."""
    rows, columns = (goal - side for goal, side in zip(skip.shape[2:], x.shape[2:], strict=True))
    if rows or columns:  # padding by nothing would copy the map
        x = F.pad(x, (0, columns, 0, rows), mode="replicate")
    return x


class DoubleConv(nn.Sequential):
    """Twice a 3x3 convolution, batch normalisation and a ReLU, for a map [B, C, H, W].

    The sides stay, the channels become `out_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        for i in (1, 2):
            conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"norm{i}", BatchNorm2d(out_channels))
            self.add_module(f"relu{i}", nn.ReLU(inplace=True))
            in_channels = out_channels


class UNet(nn.Module):
    """U-Net: image [B, in_channels, H, W] -> logits [B, num_classes, H, W].

    `features` are the channels of the levels, finest first; the default is the paper's. Other
    depths work, and widths that do not double. The sides of the image are at least
    2 ** (levels - 1) pixels, so that each pooling leaves a pixel.

    `skips=False` leaves the skip connections out, to show what they do: the decoder then knows
    the size of each encoder map, not its content, and has half as many channels to read.

    In train mode a batch of one smallest image works too: see `BatchNorm2d` in layers.py.

    Raises ValueError for counts below 1, features that are empty, not positive or do not rise,
    and images that are too small, not floating point or have another number of channels.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        features: Sequence[int] = (64, 128, 256, 512, 1024),
        *,
        skips: bool = True,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, num_classes=num_classes)
        check_features(features, levels=1)
        self.in_channels = in_channels
        self.min_side = 2 ** (len(features) - 1)
        self.skips = skips
        self.encoder = nn.ModuleList(
            DoubleConv(before, here) for before, here in pairwise((in_channels, *features))
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarser, here, 2, stride=2) for here, coarser in pairwise(features)
        )
        self.decoder = nn.ModuleList(
            DoubleConv(2 * here if skips else here, here) for here in features[:-1]
        )
        self.head = nn.Conv2d(features[0], num_classes, 1)
        self.apply(he_normal)

    def contract(self, image: Tensor) -> list[Tensor]:
        """The encoder's map of each level, finest first: [B, features[i], H // 2^i, W // 2^i]."""
        check_image(image, channels=self.in_channels, min_side=self.min_side)
        maps = [self.encoder[0](image)]
        for block in self.encoder[1:]:
            maps.append(block(self.pool(maps[-1])))
        return maps

    def expand(self, level: int, coarser: Tensor, skip: Tensor) -> Tensor:
        """The decoder's map of `level`, as large as `skip`, from that of level + 1."""
        up = extend(self.up[level](coarser), skip)
        return self.decoder[level](torch.cat([skip, up], dim=1) if self.skips else up)

    def forward(self, image: Tensor) -> Tensor:
        *skips, x = self.contract(image)
        for level in reversed(range(len(skips))):
            x = self.expand(level, x, skips[level])
        return self.head(x)


class AttentionGate(nn.Module):
    """The additive gate: how much of each pixel of a skip connection may pass, between 0 and 1.

    skip [B, skip_channels, H, W] and gating [B, gating_channels, H // 2, W // 2], the decoder's
    map of the next coarser level, -> alpha [B, 1, H, W], to multiply the skip with:

        alpha = upsample(sigmoid(psi(relu(theta(skip) + phi(gating)))))

    The sum is taken on the coarser grid. There theta, a 2x2 convolution with stride 2, brings the
    skip: like pooling it drops an odd last row or column, so both maps always have the same size.
    `phi` and `psi` are 1x1 convolutions and hold the two biases of the paper's equation 1. The
    weights are enlarged bilinearly, pixel to 2x2 pixels, and extended as the decoder's map is.

    The paper says that the gates shall let everything pass at the start. So psi starts with a bias
    of 2, and most of alpha lies above 1/2. With its weights at zero, too, the gates of a small
    network were seen to stay wide open.

    The paper calls its linear maps 1x1x1 and does not say how the skip is brought to the coarser
    grid. The strided theta, without a bias of its own, and as many channels inside as the skip
    has are those of the authors' code (ozan-oktay/Attention-Gated-Networks). That code also sends
    the gated skip through two more 1x1 convolutions with batch normalisation, and stretches alpha
    to an odd size. Neither is in the paper or here.

    The gate of MONAI's AttentionUnet differs: its gating signal is the decoder's map after the
    up-convolution, on the skip's own grid, and each of its convolutions is batch-normalised.
    """

    def __init__(self, skip_channels: int, gating_channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(skip_channels, skip_channels, 2, stride=2, bias=False)
        self.phi = nn.Conv2d(gating_channels, skip_channels, 1)
        self.psi = nn.Conv2d(skip_channels, 1, 1)
        self.apply(he_normal)
        nn.init.constant_(self.psi.bias, 2.0)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        if gating.shape[2:] != (skip.shape[2] // 2, skip.shape[3] // 2):
            raise ValueError(
                f"gating: expected half the height and width of skip, {list(skip.shape[2:])}; "
                f"got {list(gating.shape[2:])}"
            )
        alpha = torch.sigmoid(self.psi(F.relu(self.theta(skip) + self.phi(gating))))
        alpha = F.interpolate(alpha, scale_factor=2, mode="bilinear", align_corners=False)
        return extend(alpha, skip)


class AttentionUNet(UNet):
    """Attention U-Net: a `UNet` whose skip connections pass an `AttentionGate`, but for the first.

    The finest skip is not gated, in the paper's text and in the authors' code: its maps say too
    little of the image's content. So there are levels - 2 gates, `gate[i]` on the skip of level
    i + 1, and `features` needs at least three widths. Everything else, the weights' names
    included, is as in `UNet`.

    Departures from the paper: 2D; the U-Net around the gates is the one above, so that the two
    networks differ in the gates alone, where the paper enlarges the decoder's maps by
    interpolation; no deep supervision; the deepest gating signal is the coarsest encoder map as
    it is, which the authors' code sends through a 1x1 convolution first.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        features: Sequence[int] = (64, 128, 256, 512, 1024),
    ) -> None:
        check_features(features, levels=3)
        super().__init__(in_channels, num_classes, features)
        self.gate = nn.ModuleList(
            AttentionGate(here, coarser) for here, coarser in pairwise(features[1:])
        )

    def forward(self, image: Tensor) -> Tensor:
        return self._logits_and_attention(image)[0]

    def attention(self, image: Tensor) -> tuple[Tensor, ...]:
        """What the gates let pass of each gated skip, finest first.

        Map i is [B, 1, H // 2^(i+1), W // 2^(i+1)] with values in (0, 1). The model runs in the
        mode it is in, so put it in eval mode to look at the maps of one image.
        """
        return self._logits_and_attention(image)[1]

    def _logits_and_attention(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        maps = self.contract(image)
        x = maps[-1]
        alphas: list[Tensor] = []
        for level in reversed(range(1, len(maps) - 1)):
            alpha = self.gate[level - 1](maps[level], x)
            alphas.insert(0, alpha)
            x = self.expand(level, x, alpha * maps[level])
        return self.head(self.expand(0, x, maps[0])), tuple(alphas)
