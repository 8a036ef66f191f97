"""Augmentation: new training images from old ones, with masks that still fit them.

One draw turns an image into another that could have been taken as well: mirrored, nearer or
farther, cut differently, under other light. `resample` moves image and labels through one map of
coordinates, and `adjust_colour` changes the image alone. Both are pure functions of their
arguments. `Augmented` draws the arguments at random, anew for each image of each batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

VOID = 255
OUTSIDE = {"mask": VOID, "instances": 0}  # the label of a pixel that no source pixel covers
GREY = (0.299, 0.587, 0.114)  # the share of red, green and blue in luma (ITU-R BT.601)


class Augmented:
    """A data set for `fit` whose batches come out augmented. Not for validation or testing.

    Args:
        data: has `len()` and `batch(indices)`, which returns a dict of image [B,3,H,W] and, where
            there are any, mask and instances [B,H,W] (see `resample`).
        flip: mirror half of the images left to right.
        scale: least and greatest magnification, drawn log-uniformly: 2 is as likely as 1/2. The
            window, as large as the image, lies anywhere in an enlarged image; an image made
            smaller lies anywhere in the window, in void. A window never misses the image.
        colour: brightness, contrast and saturation are each multiplied by a number drawn
            uniformly from 1 - colour .. 1 + colour; 0 .. 1.

    The numbers come from torch's global CPU generator, whatever the device of the data. `fit`
    seeds it in every step, so its runs can be repeated, and resumed to the same numbers.

    TypeError for `data` without `batch`, ValueError for other wrong arguments.

    Random mirroring and scales of 0.5 .. 2: Chen et al., 2017 (DeepLabv3). The paper names no
    distribution of the scales and no change of colours.
    """

    def __init__(
        self,
        data: Any,
        *,
        flip: bool = True,
        scale: tuple[float, float] = (0.5, 2.0),
        colour: float = 0.2,
    ) -> None:
        if not hasattr(data, "batch") or not hasattr(data, "__len__"):
            raise TypeError(f"data: expected len() and batch(indices); got {type(data).__name__}")
        if not isinstance(flip, bool):
            raise ValueError(f"flip: expected True or False; got {flip!r}")
        numbers = isinstance(scale, (tuple, list)) and all(map(_is_number, scale))
        if not (numbers and len(scale) == 2 and 0 < scale[0] <= scale[1]):
            raise ValueError(
                f"scale: expected (least, greatest) with 0 < least <= greatest; got {scale!r}"
            )
        if not (_is_number(colour) and 0 <= colour <= 1):
            raise ValueError(f"colour: expected a number in 0 .. 1; got {colour!r}")
        self.data, self.flip, self.scale, self.colour = data, flip, tuple(scale), colour

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The scenes `indices` (int64 [B]), augmented: keys, shapes and dtypes as in `data`."""
        batch = self.data.batch(indices)
        _check_batch(batch)
        count, _, height, width = batch["image"].shape
        # All are drawn whatever the settings, so that one switched off leaves the others alike.
        for_flip, for_scale, x, y, *for_colour = torch.rand(7, count)

        least, greatest = self.scale
        scale = least * (greatest / least) ** for_scale
        # How far the window's centre may lie from the image's, on both sides together.
        room = 1 - 1 / scale
        centre = [width * (0.5 + room * (x - 0.5)), height * (0.5 + room * (y - 0.5))]
        batch = resample(
            batch,
            flip=for_flip < 0.5 * self.flip,
            scale=scale,
            centre=torch.stack(centre, dim=1),
        )

        if self.colour == 0:
            return batch
        brightness, contrast, saturation = (1 + self.colour * (2 * u - 1) for u in for_colour)
        image = adjust_colour(
            batch["image"], brightness=brightness, contrast=contrast, saturation=saturation
        )
        return batch | {"image": image}


def resample(
    batch: dict[str, Tensor], *, flip: Tensor, scale: Tensor, centre: Tensor
) -> dict[str, Tensor]:
    """Look at each image through a window: mirrored or not, magnified, round another centre.

    Args:
        batch: image floating [B,C,H,W] and, if there, mask and instances int64 [B,H,W].
        flip: bool [B], mirror the window left to right.
        scale: floating [B], the magnification, above 0; at 2 an object is twice as wide.
        centre: floating [B,2], the point (x, y) of the image in the middle of the window, in
            pixels from the top left corner. As for boxes, pixel j covers j .. j + 1 and has its
            centre at j + 0.5, so (W/2, H/2) is the middle of the image.

    Returns a new batch with the same keys, shapes and dtypes. The window is H x W pixels, and its
    pixel (x, y) shows the image at centre + ((x, y) - (W/2, H/2)) / scale, x negated in a flip.
    The image is interpolated linearly between pixel centres, without a low-pass filter: at small
    scales fine texture aliases. A label is that of the pixel which covers the point, so no new
    label can arise. Outside the image the mask is void (255), instances are 0 and the image
    repeats its border. With scale 1 and a centre at whole pixels from the middle, every value is
    a copy of one in the batch, to the bit.

    Instances keep their numbers, which may have gaps: an object can leave the window. Boxes and
    lists with a row for each object are refused: they do not follow a window that cuts objects.

    ValueError for a batch or an argument of another form.
    """
    _check_batch(batch)
    image = batch["image"]
    count, _, height, width = image.shape
    _check_per_image("scale", scale, [count])
    _check_per_image("centre", centre, [count, 2])
    if not isinstance(flip, Tensor) or flip.dtype != torch.bool or flip.shape != (count,):
        raise ValueError(f"flip: expected bool [{count}]; got {_form(flip)}")
    if not scale.min() > 0:
        raise ValueError(f"scale: expected numbers above 0; got {scale.min().item()}")

    # Half precision could not even name the pixels of a large image.
    exact = torch.promote_types(image.dtype, torch.float32)
    scale, centre = scale.to(image.device, exact), centre.to(image.device, exact)
    sign = torch.where(flip.to(image.device), -1, 1)
    x = _places(width, sign / scale, centre[:, 0])
    y = _places(height, 1 / scale, centre[:, 1])

    # The map keeps rows and columns apart, so each axis is resampled on its own.
    resampled = {"image": _interpolate(_interpolate(image, y, dim=2), x, dim=3)}
    inside_x, inside_y = (x >= 0) & (x < width), (y >= 0) & (y < height)
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    column, row = x.floor().clamp(0, width - 1).long(), y.floor().clamp(0, height - 1).long()
    for name in _labels(batch):
        labels = _take(_take(batch[name], row, dim=1), column, dim=2)
        resampled[name] = torch.where(inside, labels, OUTSIDE[name])
    return resampled


def adjust_colour(
    image: Tensor, *, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Tensor:
    """Multiply brightness, contrast and saturation, in this order; 1 leaves each as it is.

    Args:
        image: floating [B,3,H,W] in 0 .. 1.
        brightness: floating [B], the factor of all values.
        contrast: floating [B], the factor of the distance to the mean grey of the image.
        saturation: floating [B], the factor of the distance to the grey of the same pixel.

    Returns the new image [B,3,H,W], clamped once at the end, so that what one step pushes out of
    0 .. 1 the next can bring back. Hue stays: in a toy world it is most of what tells the classes
    apart. ValueError for an image or a factor of another form.
    """
    _check_image(image)
    if image.shape[1] != 3:
        raise ValueError(f"image: expected 3 channels; got {_form(image)}")
    low, high = (value.item() for value in image.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"image: expected values in 0 .. 1; got {low} .. {high}")
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, factor in factors.items():
        _check_per_image(name, factor, [len(image)])
    brightness, contrast, saturation = (
        factor.to(image)[:, None, None, None] for factor in factors.values()
    )
    image = image * brightness
    image = torch.lerp(_grey(image).mean((2, 3), keepdim=True), image, contrast)
    image = torch.lerp(_grey(image), image, saturation)
    return image.clamp(0, 1)


def _places(size: int, step: Tensor, centre: Tensor) -> Tensor:
    """Where the pixel centres of a window lie in the image along one axis: [B, size], in px."""
    from_middle = torch.arange(size, device=step.device) + 0.5 - size / 2
    return centre[:, None] + step[:, None] * from_middle


def _interpolate(image: Tensor, places: Tensor, dim: int) -> Tensor:
    """The values of image [B,C,H,W] at `places` [B, N] along `dim`, linear between pixels."""
    last = image.shape[dim] - 1
    index = (places - 0.5).clamp(0, last)  # beyond the outermost centre: the value there
    before = index.floor()
    shape = [len(image), 1, 1, 1]
    shape[dim] = -1
    weight = (index - before).to(image.dtype).view(shape)
    before = before.long()
    after = (before + 1).clamp(max=last)
    return torch.lerp(_take(image, before, dim), _take(image, after, dim), weight)


def _take(values: Tensor, index: Tensor, dim: int) -> Tensor:
    """Rows or columns of each item: `values` [B,...] at `index` [B, N] along `dim`."""
    shape = [len(values)] + [1] * (values.ndim - 1)
    shape[dim] = -1
    full = list(values.shape)
    full[dim] = index.shape[1]
    return values.gather(dim, index.view(shape).expand(full))


def _grey(image: Tensor) -> Tensor:
    """The luma of image [B,3,H,W]: [B,1,H,W]."""
    red, green, blue = GREY
    return red * image[:, :1] + green * image[:, 1:2] + blue * image[:, 2:]


def _labels(batch: dict[str, Tensor]) -> list[str]:
    return [name for name in batch if name != "image"]


def _check_batch(batch: dict[str, Tensor]) -> None:
    if "image" not in batch or not OUTSIDE.keys() >= set(_labels(batch)):
        raise ValueError(
            "batch: expected image and, if there, mask and instances, nothing else; "
            f"got {', '.join(batch)}"
        )
    image = batch["image"]
    _check_image(image)
    shape = [len(image), *image.shape[2:]]
    for name in _labels(batch):
        labels = batch[name]
        form = isinstance(labels, Tensor) and (labels.dtype, list(labels.shape))
        if form != (torch.int64, shape):
            raise ValueError(f"{name}: expected int64 {shape}, as the image; got {_form(labels)}")


def _check_image(image: Tensor) -> None:
    floating = isinstance(image, Tensor) and image.is_floating_point()
    if not floating or image.ndim != 4 or image.numel() == 0:
        raise ValueError(f"image: expected floating [B,C,H,W], not empty; got {_form(image)}")


def _check_per_image(name: str, value: Tensor, shape: list[int]) -> None:
    form = isinstance(value, Tensor) and value.is_floating_point() and list(value.shape)
    if form != shape:
        raise ValueError(f"{name}: expected floating {shape}; got {_form(value)}")
    if not value.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers; got {value.tolist()}")


def _form(value: Any) -> str:
    """What an argument is, for a message."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
