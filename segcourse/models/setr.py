"""SETR: segmentation by a plain transformer that reads an image as a sequence of patches.

Sources: S. Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective
with Transformers", CVPR 2021. The encoder is ViT: A. Dosovitskiy et al., "An Image is Worth 16x16
Words: Transformers for Image Recognition at Scale", ICLR 2021.

The boxes of figure 1 of the SETR paper, and their names here.

    linear projection of each patch   encoder.patch_embedding     e_i of section 3.2
    position embedding                encoder.position            p_i
    transformer layer, 24 times       encoder.blocks[i]           Z^1 to Z^24
      layer norm, multi-head attention  norm1, attention
      layer norm, MLP                   norm2, mlp
    decoders of section 3.3           NaiveDecoder, PUPDecoder    PUP is figure 1 (b)

Departures from the paper:

- **Any size.** The paper's images, and the windows that it cuts from larger ones, have one size.
  Here the position embeddings are learned on the grid of one image size and resized bilinearly to
  the grid of any other; the authors' code does so once, with those of its pretrained encoder. An
  image whose sides are no multiples of the patch gets rows of zeros below and columns of zeros on
  the right to fill the last patches, and their logits are cut off. So no pixel moves.
- **Any patch size.** PUP takes as many steps as lead from patches to pixels, see `PUPDecoder`.
- **No class token.** It is ViT's, for classifying. The paper's text has none; the authors' code
  carries one along, as its encoder was trained with it, and drops it before the decoder.
- **A last layer norm**, `encoder.norm`, as in ViT. The authors' code has it in the decoder.
- **Less around it**: random weights, where the paper starts from a trained ViT; no auxiliary
  losses at layers 10, 15, 20 and 24; no third decoder, MLA.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcourse.models.layers import (
    MIN_SIDE,
    Attention,
    BatchNorm2d,
    attention_maps,
    check_counts,
    check_image,
)


class Block(nn.Module):
    """A transformer layer on tokens [B, N, width]: attention, then an MLP on each token.

    Each comes after a layer norm ("pre-norm") and is added to what came in.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm1(x)
        x = x + self.attention(tokens, tokens)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """The encoder: image [B, 3, H, W] -> [B, width, rows, columns], a token for each patch.

    H and W are rounded up to whole patches. The arguments are those of `SETR`.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.min_side = max(MIN_SIDE, patch_size)
        side = -(-image_size // patch_size)
        self.patch_embedding = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.empty(1, width, side, side))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

        nn.init.trunc_normal_(self.position, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        check_image(image, min_side=self.min_side)
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches = self.patch_embedding(image)
        grid = patches.shape[2:]
        x = patches + F.interpolate(self.position, grid, mode="bilinear")
        tokens = self.norm(self.blocks(x.flatten(2).transpose(1, 2)))
        return tokens.transpose(1, 2).unflatten(2, grid)


class NaiveDecoder(nn.Module):
    """Classify each token, then enlarge: [B, width, h, w] -> [B, num_classes, p * h, p * w].

    p is `patch_size`. A 1x1 convolution to `channels`, batch norm, ReLU, and one to the classes.
    """

    def __init__(self, width: int, channels: int, num_classes: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv = nn.Conv2d(width, channels, 1, bias=False)
        self.norm = BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(F.relu(self.norm(self.conv(x))))
        return F.interpolate(x, scale_factor=self.patch_size, mode="bilinear")


class PUPDecoder(nn.Module):
    """Progressive upsampling: [B, width, h, w] -> [B, num_classes, p * h, p * w].

    p is `patch_size`. A step is a 3x3 convolution to `channels`, batch norm, ReLU, and enlarging
    to twice the sides. Four steps undo a patch of 16; if p is no power of 2, the last step
    enlarges by less. The 1x1 convolution to the classes comes before the last enlarging, as in the
    authors' code. After it the result would be the same, as enlarging averages pixels, and the
    work four times as much.
    """

    def __init__(self, width: int, channels: int, num_classes: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        steps = max(1, (patch_size - 1).bit_length())  # the logarithm to base 2, rounded up
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, channels, 3, padding=1, bias=False),
                BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for before in (width, *[channels] * (steps - 1))
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = [self.patch_size * side for side in x.shape[2:]]
        x = self.steps[0](x)
        for step in self.steps[1:]:
            x = step(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return F.interpolate(self.classifier(x), size, mode="bilinear")


class SETR(nn.Module):
    """SETR: image [B, 3, H, W] -> logits [B, num_classes, H, W].

    The defaults are the paper's T-Large with the decoder PUP, as for Cityscapes; its T-Base has
    width 768, 12 layers and 12 heads. `image_size` is the side, in pixels, of the images to train
    on: position embeddings are learned for its patches, and resized for images of another size.
    `decoder` is `NaiveDecoder`, `PUPDecoder`, or a module that takes the same arguments;
    `channels` is its width.

    `encoder` and `decoder` are modules of their own. An encoder that learned elsewhere moves to a
    new model by `model.encoder.load_state_dict(other.encoder.state_dict())`.

    The sides of the image are at least 32 pixels and at least a patch: `encoder.min_side`. In
    train mode a batch of one smallest image works too: see `BatchNorm2d` in layers.py.

    Raises ValueError for counts below 1, heads that do not divide the width, and images that are
    too small, not floating point or have other than 3 channels. TypeError for a decoder that is
    no class of modules.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int = 768,
        patch_size: int = 16,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        decoder: type[nn.Module] = PUPDecoder,
        channels: int = 256,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, image_size=image_size, patch_size=patch_size)
        check_counts(width=width, depth=depth, heads=heads, channels=channels)
        if not isinstance(decoder, type) or not issubclass(decoder, nn.Module):
            raise TypeError(f"decoder: expected a class, such as PUPDecoder; got {decoder!r}")
        self.encoder = ViT(image_size, patch_size, width, depth, heads)
        self.decoder = decoder(width, channels, num_classes, patch_size)

    def forward(self, image: Tensor) -> Tensor:
        logits = self.decoder(self.encoder(image))
        return logits[:, :, : image.shape[2], : image.shape[3]]

    def attention(self, image: Tensor) -> tuple[Tensor, ...]:
        """What each patch reads from where, a map [B, heads, N, N] for each layer, first first.

        N is the number of patches, row by row, those filled up included. Each row of a map sums
        to 1: row i is what patch i reads.
        """
        return attention_maps(self.encoder, image)
