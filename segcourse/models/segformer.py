"""SegFormer: a transformer on four scales that needs no position embedding, and an all-MLP head.

Sources: E. Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers", NeurIPS 2021. Its attention, with fewer keys and values than queries, is that of W.
Wang et al., "Pyramid Vision Transformer", ICCV 2021.

The boxes of figure 2 of the SegFormer paper, and their names here. Stage 0 is the finest.

    transformer block 1 to 4        encoder.stages[i]     a pixel every 4, 8, 16 and 32
      overlap patch embeddings        patch_embedding       7x7 stride 4, then 3x3 stride 2
      efficient self-attention        blocks[j].attention   keys and values: one every R x R pixels
      Mix-FFN                         blocks[j].ffn         a 3x3 depth-wise convolution within
    MLP layer of each scale         head.linear[i]        to `channels` channels
    the MLP that fuses, and norm    head.fuse, head.norm  see AllMLPHead
    MLP to the classes              head.classifier       at a quarter of the image's size

Linear layers and layer norms work on the last axis, so inside the network a map is [B, H, W, C].
Convolutions see it as [B, C, H, W], which is another view of the same memory.

What the paper leaves open, or says in two ways, is as in the authors' code (NVlabs/SegFormer):

- **Sizes.** The hidden layer of each Mix-FFN is four times as wide as its block, and the depths
  are those of `VARIANTS`. This gives the parameters of the paper's table 2, 3.8 to 84.7 million
  with 150 classes. Its table 6 has eight times in the first two stages of B0 to B4, and one block
  less in the second of B2 and B3.
- **Norms.** Patch embeddings, stages and reductions end with a layer norm. A batch norm and a ReLU
  follow the fusing layer.
- **Training.** Branches of blocks drop out (see `DropPath`), and channels before the classifier.

Departures: the head fuses in another order, see `AllMLPHead`. The logits are enlarged to the
image's own size, bilinearly, as the authors do when they train and test. The weights are random;
the paper starts from an encoder that was trained on ImageNet.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

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

# Widths and depths of the four stages, and the head's channels.
VARIANTS = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}


def channels_first(x: Tensor) -> Tensor:
    """[B, H, W, C] seen as [B, C, H, W]."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """[B, C, H, W] seen as [B, H, W, C]."""
    return x.permute(0, 2, 3, 1)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, some images do without a branch.

    Each image of a batch loses the branch with probability `rate`. The others have it divided by
    1 - rate, so that its mean stays. In eval mode nothing happens.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        kept = branch.new_empty(len(branch), 1, 1, 1).bernoulli_(keep)
        return branch * (kept / keep)


class OverlapPatchEmbedding(nn.Module):
    """A convolution that is wider than its stride, and a layer norm.

    [B, in_channels, H, W] -> [B, H', W', width]. H' is H / stride, rounded up.
    """

    def __init__(self, in_channels: int, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, patch, stride=stride, padding=patch // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(channels_last(self.conv(x)))


class EfficientSelfAttention(nn.Module):
    """Self-attention on [B, H, W, width] that reads from a map of H // R x W // R pixels.

    R is `sr_ratio`. The smaller map is a linear function of each square of R x R pixels; rows and
    columns that fill no square are left out. So attention costs 1 / R ** 2 of what it does with
    R = 1, where it is plain. The paper's equation 2 calls R what is R ** 2 here.
    """

    def __init__(self, width: int, heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.reduce = nn.Conv2d(width, width, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        source = x
        if self.sr_ratio > 1:
            source = self.norm(channels_last(self.reduce(channels_first(x))))
        read = self.attention(x.flatten(1, 2), source.flatten(1, 2))
        return read.unflatten(1, x.shape[1:3])


class MixFFN(nn.Module):
    """The MLP of a block, [B, H, W, width] to the same, with a look at the neighbours inside.

    Equation 3 of the paper: MLP(GELU(Conv3x3(MLP(x)))). The convolution pads with zeros, which
    tells the network where the border is, and so where a pixel lies.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.fc1 = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(self.conv(channels_first(self.fc1(x))))
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """Attention, then Mix-FFN, each after a layer norm and added to what came in: [B, H, W, C]."""

    def __init__(self, width: int, heads: int, sr_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = EfficientSelfAttention(width, heads, sr_ratio)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.ffn = MixFFN(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class Stage(nn.Module):
    """Patch embedding, blocks and a norm: [B, in_channels, H, W] -> [B, width, H', W'].

    It has a block for each rate in `drop_paths`.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        heads: int,
        sr_ratio: int,
        drop_paths: Sequence[float],
        patch: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.patch_embedding = OverlapPatchEmbedding(in_channels, width, patch, stride)
        self.blocks = nn.Sequential(*(Block(width, heads, sr_ratio, p) for p in drop_paths))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(self.norm(self.blocks(self.patch_embedding(x))))


class MixTransformer(nn.Module):
    """The encoder, MiT: image [B, 3, H, W] -> a map of each stage, finest first.

    Map i is [B, widths[i], H', W'], with a pixel every 4 * 2 ** i pixels of the image: H' is H
    divided by that, rounded up. The arguments are those of `SegFormer`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        sr_ratios: Sequence[int],
        drop_path: float,
    ) -> None:
        super().__init__()
        sides = [4 * 2**i * sr_ratio for i, sr_ratio in enumerate(sr_ratios)]
        self.min_side = max(MIN_SIDE, *sides)
        self.stages = nn.ModuleList()
        count = sum(depths)
        rates = [drop_path * i / max(count - 1, 1) for i in range(count)]
        for i, (before, width) in enumerate(pairwise((3, *widths))):
            patch, stride = (7, 4) if i == 0 else (3, 2)
            here, rates = rates[: depths[i]], rates[depths[i] :]
            self.stages.append(Stage(before, width, heads[i], sr_ratios[i], here, patch, stride))
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        check_image(image, min_side=self.min_side)
        maps, x = [], image
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def init_weights(layer: nn.Module) -> None:
    """Start a layer of the encoder as in the authors' code, where a layer norm starts as usual."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Conv2d):
        outgoing = layer.weight[:, 0].numel() / layer.groups
        nn.init.normal_(layer.weight, std=(2 / outgoing) ** 0.5)
        nn.init.zeros_(layer.bias)


class AllMLPHead(nn.Module):
    """The decoder: the encoder's maps, finest first -> logits [B, num_classes, H / 4, W / 4].

    Equation 4 of the paper takes each map to `channels` channels, enlarges all to the finest grid,
    joins them, and fuses what is joined by one linear layer. The result is the sum of what that
    layer makes of each map. And enlarging, which averages pixels, gives the same after a linear
    layer as before it. So `fuse[i]` is the part of the layer that reads map i. It works on the
    grid of that map; its results are enlarged and added. Up to rounding these are the paper's
    logits, for a third of the work of fusing.
    """

    def __init__(
        self, widths: Sequence[int], channels: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(width, channels) for width in widths)
        self.fuse = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in widths)
        self.norm = BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        parts = [
            channels_first(fuse(linear(channels_last(x))))
            for x, linear, fuse in zip(maps, self.linear, self.fuse, strict=True)
        ]
        fused = parts[0]
        for part in parts[1:]:
            fused = fused + F.interpolate(part, fused.shape[2:], mode="bilinear")
        x = self.dropout(F.relu(self.norm(fused)))
        return channels_first(self.classifier(channels_last(x)))


class SegFormer(nn.Module):
    """SegFormer: image [B, 3, H, W] -> logits [B, num_classes, H, W].

    `widths`, `depths`, `heads` and `sr_ratios` have one number for each stage, `channels` is the
    width of the head; the defaults are SegFormer-B0. `sr_ratios=(1, 1, 1, 1)` is plain attention.
    `drop_path` is the rate of the last block, from 0 in the first in equal steps; `dropout` that
    of the head.

    `encoder` and `head` are modules of their own. An encoder that learned elsewhere moves to a
    new model by `model.encoder.load_state_dict(other.encoder.state_dict())`.

    The sides of the image are at least 32 pixels, and so many that each stage has a square of
    sr_ratio x sr_ratio pixels to read: `encoder.min_side`. In train mode a batch of one smallest
    image works too.

    Raises ValueError for settings that are not whole numbers of at least 1 or differ in length,
    heads that do not divide the width, rates outside [0, 1), and images that are too small, not
    floating point or have other than 3 channels.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        channels: int = 256,
        drop_path: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, channels=channels)
        check_stages(widths=widths, depths=depths, heads=heads, sr_ratios=sr_ratios)
        for name, rate in (("drop_path", drop_path), ("dropout", dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name}: expected a rate in [0, 1); got {rate}")
        self.encoder = MixTransformer(widths, depths, heads, sr_ratios, drop_path)
        self.head = AllMLPHead(widths, channels, num_classes, dropout)

    @classmethod
    def from_variant(cls, variant: str, num_classes: int) -> "SegFormer":
        """One of the paper's networks, "b0" to "b5". ValueError for another name."""
        if variant not in VARIANTS:
            raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}; got {variant!r}")
        widths, depths, channels = VARIANTS[variant]
        return cls(num_classes, widths=widths, depths=depths, channels=channels)

    def forward(self, image: Tensor) -> Tensor:
        logits = self.head(self.encoder(image))
        return F.interpolate(logits, image.shape[2:], mode="bilinear")

    def attention(self, image: Tensor) -> tuple[Tensor, ...]:
        """What each pixel reads from where, a map for each block, first block first.

        The map of a block is [B, heads, N, M] with rows that sum to 1: N = H' * W' pixels of its
        stage, row by row, read from M = (H' // R) * (W' // R) squares. The model runs in the mode
        it is in.
        """
        return attention_maps(self.encoder, image)

    def load_transformers(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict of `SegformerForSemanticSegmentation` of the `transformers` library.

        Published files have other names than the networks of its newer versions; both load. The
        published networks expect images normalised by ImageNet's mean and standard deviation.

        Raises ValueError, which lists the tensors that are missing, foreign or of another shape,
        named as in `SegFormer.state_dict()`. The model is then as it was. TypeError for what is
        no state dict.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a state dict; got {type(state).__name__}")
        given = from_transformers(state, stages=len(self.encoder.stages))
        own = self.state_dict()
        reshaped = [n for n in own if n in given and own[n].shape != given[n].shape]
        wrong = {
            "missing": [name for name in own if name not in given],
            "foreign": [name for name in given if name not in own],
            "of another shape": reshaped,
        }
        if any(wrong.values()):
            found = "; ".join(f"{kind}: {listed(names)}" for kind, names in wrong.items() if names)
            raise ValueError(f"state: expected the tensors of this SegFormer; {found}")
        self.load_state_dict(given)


def check_stages(*, widths: Sequence[int], **others: Sequence[int]) -> None:
    """Raise ValueError unless all are sequences of whole numbers above 0, and equally long."""
    for name, numbers in {"widths": widths, **others}.items():
        whole = isinstance(numbers, Sequence) and all(isinstance(n, int) for n in numbers)
        if not whole or not numbers or min(numbers) < 1 or len(numbers) != len(widths):
            raise ValueError(
                f"{name}: expected whole numbers above 0, one for each stage and so as many as "
                f"widths; got {numbers!r}"
            )


def listed(names: Sequence[str], most: int = 10) -> str:
    """The names, with commas between; of many, the first ones and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# What to replace by what in a name of `transformers`, in this order. Files have the names of its
# first versions: for them are the first three rules, and the first of two forms in the others.
RENAMING = (
    (r"encoder\.patch_embeddings\.(\d+)", r"stages.\1.patch_embeddings"),
    (r"encoder\.block\.(\d+)", r"stages.\1.blocks"),
    (r"encoder\.layer_norm\.(\d+)", r"stages.\1.layer_norm"),
    (r"^segformer\.stages", "encoder.stages"),
    (r"patch_embeddings\.proj", "patch_embedding.conv"),
    (r"patch_embeddings\.layer_norm", "patch_embedding.norm"),
    (r"layernorm_before|layer_norm_1", "norm1"),
    (r"layernorm_after|layer_norm_2", "norm2"),
    (r"attention\.(self\.sr|sequence_reduction\.sequence_reduction)", "attention.reduce"),
    (r"attention\.(self|sequence_reduction)\.layer_norm", "attention.norm"),
    (r"attention\.(self\.query|q_proj)", "attention.attention.q"),
    (r"attention\.(self\.key|k_proj)", "attention.attention.k"),
    (r"attention\.(self\.value|v_proj)", "attention.attention.v"),
    (r"attention\.(output\.dense|o_proj)", "attention.attention.proj"),
    (r"mlp\.(dense|fc)(\d)", r"ffn.fc\2"),
    (r"mlp\.dwconv\.dwconv", "ffn.conv"),
    (r"layer_norm", "norm"),
    (r"^decode_head\.(linear_c|linear_projections)\.(\d+)\.proj", r"head.linear.\2"),
    (r"^decode_head\.linear_fuse", "head.fuse"),
    (r"^decode_head\.batch_norm", "head.norm"),
    (r"^decode_head\.classifier", "head.classifier"),
)


def from_transformers(state: Mapping[str, Tensor], stages: int) -> dict[str, Tensor]:
    """The tensors of a state dict of `transformers` under the names that they have here."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, ours in RENAMING:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor
    # Two of the linear layers are 1x1 convolutions there. Fusing reads the coarsest map first.
    if "head.classifier.weight" in renamed:
        renamed["head.classifier.weight"] = renamed["head.classifier.weight"].flatten(1)
    if "head.fuse.weight" in renamed:
        parts = renamed.pop("head.fuse.weight").flatten(1).chunk(stages, dim=1)
        renamed |= {f"head.fuse.{i}.weight": part for i, part in enumerate(reversed(parts))}
    return renamed
