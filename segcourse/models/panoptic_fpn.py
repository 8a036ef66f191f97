"""Panoptic FPN: a Mask R-CNN that also segments the stuff, on one feature pyramid.

Source: A. Kirillov, R. Girshick, K. He, P. Dollár, "Panoptic Feature Pyramid Networks", CVPR 2019.
How the two answers are merged: A. Kirillov, K. He, R. Girshick, C. Rother, P. Dollár, "Panoptic
Segmentation", CVPR 2019, section 7.

*Things* can be counted and have instances; *stuff* is what lies between them. The boxes of
figures 1 and 3 of the first paper, and their names here:

    feature pyramid                          fpn, see mask_rcnn.py
    instance segmentation branch             rpn, box_head, mask_head, see mask_rcnn.py
    semantic segmentation branch             semantic
        conv and 2x upsampling, 0 to 3 times     semantic.levels[i]    of P2, P3, P4 and P5
        sum, 1x1 conv, 4x upsampling             semantic.logits, and PanopticFPN.segment
    merging                                  merge

The semantic branch has a channel for each kind of stuff and one more, *other*, for all things. It
need not tell things apart, because the instance branch does. With `semantic_things` it has one for
each kind of thing instead, so that it is a semantic segmentation by itself; the merge is the same.

Departures from the paper: the losses of the instance branch have weight 1, and only the weight of
the semantic loss is an argument; the semantic loss is a mean over the batch's pixels that are not
void, as in most code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcourse.models.backbones import ResNet
from segcourse.models.layers import check_counts, conv1x1
from segcourse.models.mask_rcnn import MaskRCNN, Size, Target, toy_settings

VOID = 255


class SemanticBranch(nn.Module):
    """The levels of a pyramid, finest first -> logits [B, num_classes, H, W] on the finest grid.

    Each level passes 3x3 convolutions with group normalisation and a ReLU: level i has i of them,
    each followed by upsampling to twice the sides, and the finest has one without. Then all levels
    are of one size and are added up.
    """

    def __init__(
        self, num_levels: int, in_channels: int, channels: int, num_classes: int, *, groups: int
    ) -> None:
        super().__init__()
        check_counts(channels=channels, groups=groups)
        self.levels = nn.ModuleList()
        for level in range(num_levels):
            stages = nn.Sequential()
            for stage in range(max(1, level)):
                conv = nn.Conv2d(
                    channels if stage else in_channels, channels, 3, padding=1, bias=False
                )
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                stages.extend([conv, nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)])
                if level:
                    stages.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            self.levels.append(stages)
        self.logits = conv1x1(channels, num_classes, bias=True)
        nn.init.kaiming_normal_(self.logits.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.logits.bias)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        return self.logits(sum(level(p) for level, p in zip(self.levels, pyramid, strict=True)))


class PanopticFPN(MaskRCNN):
    """Panoptic FPN, called as `MaskRCNN` is.

    Categories are numbered 0, 1, ...: all stuff first, then the things. In train mode there is a
    sixth loss, `loss_semantic`, and the targets hold one entry more: `mask` int64 [H, W], the
    category of each pixel, 255 for void. In eval mode there are three entries more:

        semantic    float [C, H, W], logits of the stuff and of "other", or of the things
        panoptic    int64 [H, W], the id of each pixel's segment, 0 for none
        segments    list of a dict for each segment: `id`, `category_id`, `isthing`, `area` in
                    pixels, and the `score` of things; the format of COCO's results

    A thing of category c has label c - num_stuff + 1 in `labels`, since label 0 is background.

    Args:
        num_stuff, num_things: kinds of stuff and of things.
        semantic_channels, semantic_groups: width of the semantic branch, and groups of its
            normalisation.
        semantic_things: whether the semantic branch names the things.
        semantic_weight: of the semantic loss in the sum.
        thing_score, overlap, stuff_area: see `merge`.
        backbone, options: see `MaskRCNN`.
    """

    def __init__(
        self,
        num_stuff: int,
        num_things: int,
        backbone: ResNet | None = None,
        *,
        semantic_channels: int = 128,
        semantic_groups: int = 32,
        semantic_things: bool = False,
        semantic_weight: float = 0.5,
        thing_score: float = 0.5,
        overlap: float = 0.5,
        stuff_area: int = 64 * 64,
        **options: Any,
    ) -> None:
        check_counts(num_stuff=num_stuff, num_things=num_things)
        super().__init__(num_things + 1, backbone, **options)
        self.num_stuff, self.semantic_weight = num_stuff, semantic_weight
        self.thing_score, self.overlap, self.stuff_area = thing_score, overlap, stuff_area
        self.semantic_classes = num_stuff + (num_things if semantic_things else 1)
        self.semantic = SemanticBranch(
            len(self.backbone.channels),
            self.fpn.output[0].out_channels,
            semantic_channels,
            self.semantic_classes,
            groups=semantic_groups,
        )

    def segment(self, batch: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """Logits [B, C, H, W] of the semantic branch at the size of the batch."""
        return resize(self.semantic(pyramid[:-1]), batch.shape[2:])

    def prepare_targets(
        self,
        images: Sequence[Tensor] | Tensor,
        targets: Sequence[Target] | None,
        sizes: Sequence[Size],
    ) -> list[dict[str, Tensor]]:
        """As in `MaskRCNN`, with `semantic` int64 [H, W], what the semantic branch shall say."""
        prepared = super().prepare_targets(images, targets, sizes)
        categories = self.num_stuff + self.num_classes - 1
        for i, (image, target) in enumerate(zip(images, targets, strict=True)):
            check_mask(f"targets[{i}]", target, image, categories)
            mask = self.resize(target["mask"][None].to(image.dtype), mode="nearest")[0].long()
            prepared[i]["semantic"] = torch.where(
                mask == VOID, VOID, mask.clamp(max=self.semantic_classes - 1)
            )
        return prepared

    def losses(
        self,
        batch: Tensor,
        pyramid: Sequence[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN, and the cross-entropy of the semantic branch."""
        losses = super().losses(batch, pyramid, sizes, targets)
        expected = torch.full(
            (len(batch), *batch.shape[2:]), VOID, dtype=torch.int64, device=batch.device
        )
        for row, target, (height, width) in zip(expected, targets, sizes, strict=True):
            row[:height, :width] = target["semantic"]
        logits = self.segment(batch, pyramid)
        loss = F.cross_entropy(logits, expected, ignore_index=VOID, reduction="sum")
        pixels = (expected != VOID).sum().clamp(min=1)
        return losses | {"loss_semantic": self.semantic_weight * loss / pixels}

    def detect(
        self,
        batch: Tensor,
        pyramid: Sequence[Tensor],
        sizes: Sequence[Size],
        original_sizes: Sequence[Size],
    ) -> list[dict[str, Any]]:
        """The objects, the stuff and the segments of each image, in its own pixels."""
        found = super().detect(batch, pyramid, sizes, original_sizes)
        logits = self.segment(batch, pyramid)
        for image, logit, (height, width), original in zip(
            found, logits, sizes, original_sizes, strict=True
        ):
            image["semantic"] = resize(logit[None, :, :height, :width], original)[0]
            image["panoptic"], image["segments"] = merge(
                image["masks"][:, 0] > 0.5,
                image["labels"] + self.num_stuff - 1,
                image["scores"],
                image["semantic"].argmax(dim=0),
                self.num_stuff,
                thing_score=self.thing_score,
                overlap=self.overlap,
                stuff_area=self.stuff_area,
            )
        return found


def merge(
    masks: Tensor,
    categories: Tensor,
    scores: Tensor,
    semantic: Tensor,
    num_stuff: int,
    *,
    thing_score: float,
    overlap: float,
    stuff_area: int,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """One segment for each pixel, from objects that may overlap and a map of the stuff.

    1. The objects, from the best score down, take the pixels of their masks that are free. One
       with a score below `thing_score` is left out, and so is one of whose pixels more than the
       share `overlap` is taken.
    2. What is free goes to the stuff that is seen there, without kinds of which fewer than
       `stuff_area` pixels are left. Where "other" is seen, nothing is.

    Args:
        masks: bool [N, H, W], with `categories` int64 [N] and `scores` float [N].
        semantic: int64 [H, W], 0 .. num_stuff - 1, or more for "other".

    Returns the ids, int64 [H, W], and the segments: see `PanopticFPN`.
    """
    ids = torch.zeros_like(semantic)
    segments: list[dict[str, Any]] = []

    def add(mask: Tensor, **known: Any) -> None:
        segments.append({"id": len(segments) + 1, **known, "area": int(mask.sum())})
        ids[mask] = len(segments)

    for i in scores.argsort(descending=True, stable=True).tolist():
        area, free = masks[i].sum(), masks[i] & (ids == 0)
        if scores[i] < thing_score or not free.any() or (area - free.sum()) / area > overlap:
            continue
        add(free, category_id=int(categories[i]), isthing=True, score=float(scores[i]))
    for category in range(num_stuff):
        free = (semantic == category) & (ids == 0)
        if free.sum() >= max(1, stuff_area):
            add(free, category_id=category, isthing=False)
    return ids, segments


def resize(logits: Tensor, size: Size) -> Tensor:
    """Logits [B, C, h, w] at another size, interpolated between the centres of the pixels."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear")


def check_mask(name: str, target: Mapping[str, Tensor], image: Tensor, categories: int) -> None:
    """Raise ValueError unless `target` has a mask of the image's size with these categories."""
    if "mask" not in target:
        raise ValueError(f"{name}: expected a mask, the category of each pixel; got none")
    mask = target["mask"]
    if mask.dtype != torch.int64 or mask.shape != image.shape[1:]:
        raise ValueError(
            f"{name} mask: expected int64 {list(image.shape[1:])}, the size of the image; "
            f"got {mask.dtype} {list(mask.shape)}"
        )
    wrong = (mask != VOID) & ((mask < 0) | (mask >= categories))
    if wrong.any():
        raise ValueError(
            f"{name} mask: expected 0 .. {categories - 1} or {VOID} (void); "
            f"got {mask[wrong][0].item()}"
        )


def toy_panoptic_fpn(
    num_stuff: int, num_things: int, *, side: int = 64, **changes: Any
) -> PanopticFPN:
    """The toy, around the toy Mask R-CNN; `changes` are other arguments of `PanopticFPN`."""
    settings = toy_settings(side) | {
        "semantic_channels": 48,
        "semantic_groups": 8,
        "stuff_area": side**2 // 100,
    }
    return PanopticFPN(num_stuff, num_things, **settings | changes)
