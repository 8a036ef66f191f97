"""What the models of several papers share: checks of their arguments, and a few layers."""

from contextlib import ExitStack

import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIDE = 32


def check_image(image: Tensor, *, channels: int = 3, min_side: int = MIN_SIDE) -> None:
    """Raise ValueError unless `image` is a floating-point [B, channels, H, W] with B >= 1.

    H and W are at least `min_side` pixels. TypeError for what is no tensor.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"image: expected a tensor; got {type(image).__name__}")
    if image.ndim != 4 or image.shape[0] == 0 or image.shape[1] != channels:
        raise ValueError(
            f"image: expected [B, {channels}, H, W] with B >= 1; got {list(image.shape)}"
        )
    if not image.is_floating_point():
        raise ValueError(f"image: expected a floating-point tensor; got {image.dtype}")
    height, width = image.shape[2:]
    if min(height, width) < min_side:
        raise ValueError(
            f"image: expected at least {min_side} pixels a side; got H = {height}, W = {width}"
        )


def check_counts(**counts: int) -> None:
    """Raise ValueError unless every argument is a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1; got {value!r}")


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy, 2015) that also trains on one value per channel.

    A map [1, C, 1, 1] has no variance, and torch refuses it in train mode. Here it is normalised
    by the running statistics, as in eval mode, and leaves them as they are. It happens where a
    network that sees one small image has reduced it to one pixel. Any other input, and the names
    in the state dict, are as in `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == self.num_features:  # in eval mode this is what happens anyway
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def conv1x1(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2d:
    """A 1x1 convolution, [B, in_channels, H, W] -> [B, out_channels, H, W].

    A kernel with one tap has nothing to dilate, so `dilation=2` changes no number. But on one CPU
    thread it makes torch take the kernels of oneDNN, where it otherwise takes slower ones of its
    own: a training step of DeepLabV3+ with ResNet-50 took 0.74 times as long.
    """
    return nn.Conv2d(in_channels, out_channels, 1, dilation=2, bias=bias)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017): each token of `x` reads from all of `source`.

    x [B, N, width] and source [B, M, width] -> [B, N, width]. Each of the `heads` works on its own
    d = width / heads channels of the queries q, keys k and values v:

        softmax(q k^T / sqrt(d)) v,  with q from x, and k and v from source

    With `source` equal to `x` it is self-attention. Raises ValueError for counts below 1 and for
    heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_counts(width=width, heads=heads)
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}; got {heads}")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(source)), self._split(self.v(source))
        read = F.scaled_dot_product_attention(q, k, v)
        return self.proj(read.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, source: Tensor) -> Tensor:
        """The softmax above, [B, heads, N, M]: what share of each source token a token reads.

        `forward` never holds it: `scaled_dot_product_attention` works through it piece by piece.
        """
        q, k = self._split(self.q(x)), self._split(self.k(source))
        return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3)

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, width] -> [B, heads, N, width / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def attention_maps(encoder: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    """The `Attention.weights` of each attention layer while `encoder(image)` runs, in order."""
    maps: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in encoder.modules():
            if isinstance(layer, Attention):
                look = layer.register_forward_pre_hook(
                    lambda layer, tokens: maps.append(layer.weights(*tokens))
                )
                hooks.enter_context(look)
        encoder(image)
    return tuple(maps)
