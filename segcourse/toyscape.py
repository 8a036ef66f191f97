"""Toyscape: an endless set of small landscapes with exact truth, made for learning segmentation.

A scene holds four kinds of *stuff* (sky, grass, road, water) and six kinds of *things* (tree, car,
ball, ring, pole, star). It is a function of its index and the settings of the set, and of nothing
else: the same scene comes out alone, in any batch, in any worker, with any number of threads.
`rendering.py` draws it.
"""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from segcourse.rendering import render

CLASSES = ("sky", "grass", "road", "water", "tree", "car", "ball", "ring", "pole", "star")
STUFF = CLASSES[:4]
THINGS = CLASSES[4:]
NUM_CLASSES = len(CLASSES)
VOID = 255
SPLITS = ("train", "val", "test")

MIN_SIZE = 32
MAX_SIZE = 512  # the textures of a size are kept in memory: about 1 GB here


def _check_indices(indices: Tensor, length: int) -> None:
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices: expected an int64 tensor [B], got {type(indices).__name__}")
    if indices.dtype != torch.int64 or indices.dim() != 1 or not len(indices):
        raise ValueError(
            "indices: expected a non-empty int64 tensor [B]; "
            f"got {indices.dtype} {list(indices.shape)}"
        )
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= length:
        raise IndexError(f"indices: expected 0 .. {length - 1}; got {low} .. {high}")


def _unpack(images: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """Turn rendered bytes into a batch: image 0..1, mask, and instances numbered 1, 2, ... ."""
    numbers = (codes >> 4).long()
    visible = torch.zeros(len(codes), 16, dtype=torch.long, device=codes.device)
    visible.scatter_(1, numbers.flatten(1), 1)
    visible[:, 0] = 0  # 0 is "no instance" and keeps its number
    names = visible.cumsum(1) * visible
    instances = names.gather(1, numbers.flatten(1)).view_as(numbers)
    return {"image": images.float() / 255, "mask": (codes & 15).long(), "instances": instances}


class Toyscape(Dataset):
    """The data set. Scene i is a function of its index and the settings alone.

    Args:
        split: "train", "val" or "test"; no scene belongs to two of them.
        size: side of the square image in pixels, at least 32. The scene is the same at every size.
        length: number of scenes. Scene i does not depend on it.
        difficulty: 0 (a class keeps to its hue, little noise, no tiny object) to 1.
        seed: another seed is another world, 0 .. 2**23 - 1.
        star_size: makes stars, the rarest class, so many times as tall, 1 to 3.

    An item is a dict:
        image: float32 [3, H, W] in 0..1
        mask: int64 [H, W], classes as in `CLASSES`
        instances: int64 [H, W], 0 where there is no object, else 1 .. N from the deepest on
        boxes: float32 [N, 4], x1 y1 x2 y2 in pixels round the visible part; x2 and y2 exclusive
        labels: int64 [N], classes
        masks: bool [N, H, W], visible parts

    Objects that others hide completely are left out. Items differ in N, so that a DataLoader
    needs a `collate_fn` of its own; `batch` and `prerender` are the quick way to batches.

    "The same" means to the byte on one device; on a CPU the tests hold it.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 64,
        length: int = 2000,
        difficulty: float = 0.25,
        seed: int = 0,
        star_size: float = 1.0,
    ):
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}; got {split!r}")
        for name, value, low, high in (
            ("size", size, MIN_SIZE, MAX_SIZE),
            ("length", length, 1, 2**38),
            ("seed", seed, 0, 2**23 - 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__} {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name}: expected {low} .. {high}, got {value}")
        if not isinstance(difficulty, (int, float)) or not 0 <= difficulty <= 1:
            raise ValueError(f"difficulty: expected a number in 0 .. 1, got {difficulty!r}")
        if not isinstance(star_size, (int, float)) or not 1 <= star_size <= 3:
            raise ValueError(f"star_size: expected a number in 1 .. 3, got {star_size!r}")
        self.split, self.size, self.length = split, size, length
        self.difficulty, self.seed, self.star_size = float(difficulty), seed, float(star_size)

    def __repr__(self) -> str:
        return (
            f"Toyscape(split={self.split!r}, size={self.size}, length={self.length}, "
            f"difficulty={self.difficulty}, seed={self.seed}, star_size={self.star_size})"
        )

    def __len__(self) -> int:
        return self.length

    def render(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Render scenes as bytes, on the device of `indices` (int64 [B]).

        Returns images uint8 [B, 3, H, W] and codes uint8 [B, H, W]; a code is
        `class | instance << 4`, where the numbers of hidden objects are missing.
        """
        _check_indices(indices, len(self))
        split = SPLITS.index(self.split)
        return render(self.seed, split, indices, self.size, self.difficulty, self.star_size)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Render a batch: image [B, 3, H, W], mask and instances [B, H, W], as in an item."""
        return _unpack(*self.render(indices))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {k: v[0] for k, v in self.batch(torch.tensor([operator.index(index)])).items()}
        (objects,) = detection_targets(item["mask"][None], item["instances"][None])
        return item | {
            "boxes": objects["boxes"],
            "labels": objects["labels"] + len(STUFF) - 1,
            "masks": objects["masks"],
        }

    def prerender(self, device: torch.device | str = "cpu") -> "Prerendered":
        """Render the whole set once and keep it as bytes (about 4 bytes a pixel)."""
        indices = torch.arange(self.length, device=device)
        per_call = max(1, (1 << 20) // self.size**2)
        parts = [self.render(part) for part in indices.split(per_call)]
        return Prerendered(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Prerendered(Dataset):
    """Rendered scenes kept as bytes, ready for training. Made by `Toyscape.prerender`.

    Attributes:
        images: uint8 [N, 3, H, W]
        codes: uint8 [N, H, W], `class | instance << 4`
    """

    def __init__(self, images: Tensor, codes: Tensor):
        self.images, self.codes = images, codes

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Scenes `indices` int64 [B] as image [B, 3, H, W], mask and instances [B, H, W]."""
        _check_indices(indices, len(self))
        indices = indices.to(self.images.device)
        return _unpack(self.images[indices], self.codes[indices])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {k: v[0] for k, v in self.batch(torch.tensor([operator.index(index)])).items()}


def detection_targets(mask: Tensor, instances: Tensor) -> list[dict[str, Tensor]]:
    """What a detector learns of a batch, in torchvision's form: a dict for each image.

    Args: mask and instances, int64 [B, H, W]. Numbers of instances may be missing.

    Each dict has the `boxes` and `masks` of N objects as in an item of `Toyscape`, `labels` int64
    [N], 1 .. 6 in the order of `THINGS` (0 is background), and the image's own `mask` [H, W].
    """
    height, width = instances.shape[1:]
    numbers = torch.arange(1, int(instances.max()) + 1, device=instances.device)
    targets = []
    for classes, places in zip(mask, instances, strict=True):
        masks = places == numbers[:, None, None]
        masks = masks[masks.flatten(1).any(dim=1)]
        # The first True of each row and column of the image, from either side.
        x, y = masks.any(dim=1).byte(), masks.any(dim=2).byte()
        x1, y1 = x.argmax(dim=1), y.argmax(dim=1)
        x2, y2 = width - x.flip(1).argmax(dim=1), height - y.flip(1).argmax(dim=1)
        things = torch.where(masks, classes, 0).flatten(1).amax(dim=1)
        targets.append({
            "boxes": torch.stack([x1, y1, x2, y2], dim=1).float(),
            "labels": things - len(STUFF) + 1,
            "masks": masks,
            "mask": classes,
        })  # fmt: skip
    return targets


def panoptic_ids(mask: Tensor, instances: Tensor) -> Tensor:
    """One number for each segment: class * 1000 + instance (the convention of Cityscapes).

    Args: mask and instances, int64 of equal shape. Void stays `VOID`.
    """
    for name, values in (("mask", mask), ("instances", instances)):
        if values.dtype != torch.int64 or values.shape != mask.shape:
            raise ValueError(
                f"{name}: expected int64 {list(mask.shape)}, the shape of mask; "
                f"got {values.dtype} {list(values.shape)}"
            )
    if instances.numel() and not 0 <= int(instances.min()) <= int(instances.max()) < 1000:
        raise ValueError(
            f"instances: expected 0 .. 999; got {int(instances.min())} .. {int(instances.max())}"
        )
    return torch.where(mask == VOID, VOID, mask * 1000 + instances)


def void_border(mask: Tensor, width: int = 1) -> Tensor:
    """Mark pixels closer than `width` + 1 to another class as void, as many real data sets do.

    Args:
        mask: int64 [B, H, W] or [H, W].
        width: Chebyshev distance in pixels, at least 1.
    """
    if mask.dtype != torch.int64 or mask.dim() not in (2, 3):
        raise ValueError(
            f"mask: expected int64 [B, H, W] or [H, W]; got {mask.dtype} {list(mask.shape)}"
        )
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width: expected a whole number of at least 1, got {width!r}")
    values = mask.float().reshape(-1, 1, *mask.shape[-2:])
    highest = F.max_pool2d(values, 2 * width + 1, stride=1, padding=width)
    lowest = -F.max_pool2d(-values, 2 * width + 1, stride=1, padding=width)
    return torch.where((highest == lowest).view_as(mask), mask, VOID)
