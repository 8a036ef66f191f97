"""Scores for objects: average precision (AP) of boxes and masks, and panoptic quality (PQ).

Both first decide which predicted objects are right, by their IoU with the true ones, and count
over the whole data set. All scores are fractions between 0 and 1; a class that does not occur
scores NaN and is left out of every mean.

Sources: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and its
evaluation code, pycocotools; A. Kirillov, K. He, R. Girshick, C. Rother, P. Dollár, "Panoptic
Segmentation", CVPR 2019, and its evaluation code, panopticapi.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

IOU_THRESHOLDS = torch.from_numpy(np.linspace(0.5, 0.95, 10))
RECALLS = torch.from_numpy(np.linspace(0, 1, 101))
# Of the objects that count, in pixels: all, small, medium and large ones.
AREAS = torch.tensor([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], dtype=torch.float64)
MOST_DETECTIONS = 100  # of a class in an image
VOID = 255


@dataclass(frozen=True)
class APScores:
    """COCO's average precisions, as fractions. NaN where no object counts.

    `ap` is the mean over the IoU thresholds .50, .55, ..., .95 and over the classes; `ap50` and
    `ap75` are of one threshold; `small` (up to 32 x 32 pixels), `medium` and `large` (from 96 x 96
    on) are of objects by area. `per_class` and `ap50_per_class` are of the labels 1, 2, ... .
    """

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    per_class: list[float]
    ap50_per_class: list[float]


class AveragePrecision:
    """COCO's AP of detections, from one stream of images.

    **What is right.** In each image and class, from the best score down, a detection takes the
    true object with which it has the largest IoU, if that reaches the threshold and no detection
    before took it. A detection that finds none is wrong.

    **What does not count.** A true object marked as a crowd, or outside the range of areas, is
    nobody's fault: not to find it, or to find it, changes nothing. Any number of detections may
    lie in one crowd, and their IoU is the share of them that does. Unmatched detections outside
    the range of areas do not count either. The area of a true object is that of its mask where
    the truth has masks, also for boxes.

    **One number.** Take the detections of a class over all images from the best score down: after
    each one, precision is the share that is right, and recall the share of the true objects that
    are found. AP is the mean, over the recalls 0, 0.01, ..., 1, of the best precision at that
    recall or a higher one; it is 0 at a recall that is not reached.

    Args:
        num_classes: with background, as in `MaskRCNN`: labels are 1 .. num_classes - 1.
        kind: compare "masks" or "boxes".
    """

    def __init__(self, num_classes: int, kind: Literal["masks", "boxes"] = "masks") -> None:
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(
                f"num_classes: expected a whole number of at least 2; got {num_classes!r}"
            )
        if kind not in ("masks", "boxes"):
            raise ValueError(f"kind: expected 'masks' or 'boxes'; got {kind!r}")
        self.num_classes, self.kind = num_classes, kind
        # For each class: of each image, the scores [D], whether each detection found an object and
        # whether it counts [areas, thresholds, D], and the number of true objects [areas].
        self._seen: list[list[tuple[Tensor, Tensor, Tensor, Tensor]]] = [
            [] for _ in range(num_classes)
        ]

    def update(
        self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Add images: for each a dict of N detections and a dict of M true objects.

        Both have `labels` int64 and `boxes` float [., 4] or `masks` [., H, W] or [., 1, H, W],
        bool, or float and true from 0.5 on. Detections have `scores` [N]; the truth may have
        `iscrowd` [M].

        Raises ValueError, and adds nothing, when the two do not fit together.
        """
        if len(predictions) != len(targets):
            raise ValueError(
                f"predictions: expected one for each of the {len(targets)} targets; "
                f"got {len(predictions)}"
            )
        found = []
        for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            prediction = self._checked(f"predictions[{i}]", prediction, "scores")
            target = self._checked(f"targets[{i}]", target)
            for label in {*prediction["labels"].tolist(), *target["labels"].tolist()}:
                found.append((label, self._match(prediction, target, label)))
        for label, matches in found:
            self._seen[label].append(matches)

    def compute(self) -> APScores:
        """AP of everything seen so far."""
        # [classes, areas, thresholds]
        ap = torch.stack([self._of_class(label) for label in range(1, self.num_classes)])
        small, medium, large = (ap[:, i].nanmean().item() for i in (1, 2, 3))
        ap = ap[:, 0]
        return APScores(
            ap=ap.nanmean().item(),
            ap50=ap[:, 0].nanmean().item(),
            ap75=ap[:, 5].nanmean().item(),
            small=small,
            medium=medium,
            large=large,
            per_class=ap.nanmean(dim=1).tolist(),
            ap50_per_class=ap[:, 0].tolist(),
        )

    def _checked(self, name: str, objects: Mapping[str, Tensor], *more: str) -> dict[str, Tensor]:
        """What is needed of a prediction or target, on the CPU, masks bool [N, pixels]."""
        missing = [key for key in ("labels", self.kind, *more) if key not in objects]
        if missing:
            raise ValueError(f"{name}: expected {', '.join(missing)}; got {', '.join(objects)}")
        known = {"labels", "boxes", "masks", "scores", "iscrowd"} & set(objects)
        objects = {key: objects[key].detach().cpu() for key in known}
        labels = objects["labels"]
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(
                f"{name}: expected int64 labels [N]; got {labels.dtype} {list(labels.shape)}"
            )
        if len(labels) and not 1 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(
                f"{name}: expected labels in 1 .. {self.num_classes - 1}; "
                f"got {int(labels.min())} .. {int(labels.max())}"
            )
        for key in sorted(known):
            if len(objects[key]) != len(labels):
                raise ValueError(
                    f"{name}: expected {len(labels)} {key}, one for each label; "
                    f"got {len(objects[key])}"
                )
        if "masks" in objects:
            masks = objects["masks"]
            objects["masks"] = (masks if masks.dtype == torch.bool else masks >= 0.5).flatten(1)
        return objects

    def _match(
        self, prediction: dict[str, Tensor], target: dict[str, Tensor], label: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The detections of a class in an image beside its true objects, as in `_seen`."""
        mine = (prediction["labels"] == label).nonzero().flatten()
        best = prediction["scores"][mine].argsort(descending=True, stable=True)[:MOST_DETECTIONS]
        mine, true = mine[best], (target["labels"] == label).nonzero().flatten()

        found, real = prediction[self.kind][mine], target[self.kind][true]
        intersection, area, real_area = _overlaps(found, real)
        crowd = torch.zeros(len(true), dtype=torch.bool)
        if "iscrowd" in target:
            crowd = target["iscrowd"][true].bool()
        union = area[:, None] + torch.where(crowd, 0, real_area - intersection)
        iou = intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
        if "masks" in target:
            real_area = target["masks"][true].sum(dim=1).double()

        outside = (real_area < AREAS[:, :1]) | (real_area > AREAS[:, 1:])
        ignored = (outside | crowd)[:, None]  # [areas, 1, objects]
        shape = (len(AREAS), len(IOU_THRESHOLDS), len(mine))
        taken = torch.zeros(*shape[:2], len(true), dtype=torch.bool)
        hit = torch.zeros(shape, dtype=torch.bool)
        counts = torch.zeros(shape, dtype=torch.bool)
        for d in range(len(mine) if len(true) else 0):
            reached = iou[d] >= IOU_THRESHOLDS.clamp(max=1 - 1e-10)[:, None]
            free = reached & (~taken | crowd)
            # An object that counts goes before all that do not; the last of equal IoUs.
            preferred = free & ~ignored
            choice = torch.where(preferred.any(dim=-1, keepdim=True), preferred, free)
            rank = torch.where(choice, iou[d], -1.0).flip(-1).argmax(dim=-1, keepdim=True)
            chosen = torch.zeros_like(taken).scatter(
                -1, len(true) - 1 - rank, choice.any(-1, True)
            )
            taken |= chosen
            hit[..., d] = chosen.any(dim=-1)
            counts[..., d] = (chosen & ~ignored).any(dim=-1)
        small_or_large = (area < AREAS[:, :1]) | (area > AREAS[:, 1:])
        counts |= ~hit & ~small_or_large[:, None]
        return prediction["scores"][mine], hit, counts, (~ignored).sum(dim=-1).flatten()

    def _of_class(self, label: int) -> Tensor:
        """AP of one class for each range of areas and threshold: [areas, thresholds]."""
        ap = torch.full((len(AREAS), len(IOU_THRESHOLDS)), math.nan, dtype=torch.float64)
        if not self._seen[label]:
            return ap
        scores, hit, counts, objects = zip(*self._seen[label], strict=True)
        order = torch.cat(scores).argsort(descending=True, stable=True)
        hit, counts = (torch.cat(parts, dim=-1)[..., order] for parts in (hit, counts))
        right, wrong = ((x & counts).cumsum(dim=-1).double() for x in (hit, ~hit))
        objects = sum(objects)
        recall = right / objects[:, None, None]
        precision = right / (right + wrong).clamp(min=1)
        # The best precision at this recall or a higher one, and 0 beyond the highest recall.
        precision = precision.flip(-1).cummax(dim=-1).values.flip(-1) if len(order) else precision
        precision = torch.cat([precision, torch.zeros(*ap.shape, 1)], dim=-1)
        first = torch.searchsorted(recall, RECALLS.expand(*ap.shape, -1).contiguous())
        present = objects > 0
        ap[present] = precision.gather(-1, first)[present].mean(dim=-1)
        return ap


def average_precision(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    num_classes: int,
    kind: Literal["masks", "boxes"] = "masks",
) -> APScores:
    """AP of one batch: a stream of one. Arguments as in `AveragePrecision`."""
    metric = AveragePrecision(num_classes, kind)
    metric.update(predictions, targets)
    return metric.compute()


def _overlaps(found: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersections float64 [D, G] and the two areas, of masks bool [., pixels] or boxes."""
    if found.dtype == torch.bool:
        if found.shape[1] != real.shape[1]:
            raise ValueError(
                f"masks: expected as many pixels as in the truth, {real.shape[1]}; "
                f"got {found.shape[1]}"
            )
        found, real = found.float(), real.float()  # exact up to 2**24 pixels
        return (found @ real.T).double(), found.sum(1).double(), real.sum(1).double()
    found, real = found.double(), real.double()
    top_left = torch.maximum(found[:, None, :2], real[:, :2])
    bottom_right = torch.minimum(found[:, None, 2:], real[:, 2:])
    areas = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (found, real))
    return (bottom_right - top_left).clamp(min=0).prod(dim=-1), *areas


@dataclass(frozen=True)
class Quality:
    """PQ = SQ * RQ: how well segments are found, as fractions. NaN where there are none.

    SQ (segmentation quality) is the mean IoU of the matched segments, RQ (recognition quality) the
    F1 score of finding them.
    """

    pq: float
    sq: float
    rq: float


@dataclass(frozen=True)
class PanopticScores:
    """Means over the categories that occur, over those that are things or stuff, and each one."""

    all: Quality
    things: Quality
    stuff: Quality
    per_category: list[Quality]


class PanopticQuality:
    """PQ from one stream of images.

    **What is right.** A predicted and a true segment match if they are of one category and their
    IoU is above 1/2. No segment can match twice, because segments do not overlap. In each
    category TP is the number of matches, FP that of the predicted segments left over, FN that of
    the true ones:

        PQ = (sum of the IoUs of the matches) / (TP + FP / 2 + FN / 2)

    **Void and crowds.** Pixels that are void in the truth leave the union of the IoU. Crowds in
    the truth match nothing and are no FN. A predicted segment that is left over is no FP if more
    than half of it lies in void or in a crowd of its own category. Void in the prediction is no
    segment: it costs what it leaves uncovered.

    The sums run over all images before they are divided. The mean of the images' own PQs is
    another number.

    Args:
        num_categories: categories are 0 .. num_categories - 1.
        things: the categories whose segments are objects; the others are stuff.

    Attributes, one value for each category: `iou` float64, `tp`, `fp` and `fn` int64.

    Departure from panopticapi: of several crowds of a category in one image it sees only the last.
    """

    def __init__(self, num_categories: int, things: Iterable[int]) -> None:
        if not isinstance(num_categories, int) or num_categories < 1:
            raise ValueError(
                f"num_categories: expected a whole number of at least 1; got {num_categories!r}"
            )
        self.things = sorted(things)
        if not set(self.things) <= set(range(num_categories)):
            raise ValueError(
                f"things: expected categories in 0 .. {num_categories - 1}; got {self.things}"
            )
        self.num_categories = num_categories
        self.iou = torch.zeros(num_categories, dtype=torch.float64)
        self.tp, self.fp, self.fn = torch.zeros(3, num_categories, dtype=torch.int64)

    def update(
        self,
        prediction: Tensor,
        prediction_segments: Sequence[Mapping[str, Any]],
        target: Tensor,
        target_segments: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add an image: id maps int64 [H, W], 0 for void, and what is known of each id.

        Segments are dicts with `id` and `category_id`, and in the truth `iscrowd` if it is one:
        COCO's format of panoptic segmentation. Raises ValueError, and counts nothing, when a map
        holds another set of ids than its segments, or a category is out of range.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction: expected the shape of target, {list(target.shape)}; "
                f"got {list(prediction.shape)}"
            )
        mine, my_category = self._numbered("prediction", prediction, prediction_segments)
        true, true_category = self._numbered("target", target, target_segments)
        crowd = torch.tensor([bool(s.get("iscrowd", 0)) for s in target_segments]).bool()

        # Pixels by true segment (row) and predicted segment (column); the first of both is void.
        shape = len(true_category) + 1, len(my_category) + 1
        pixels = (
            (true * shape[1] + mine).flatten().bincount(minlength=math.prod(shape)).view(shape)
        )
        area, true_area = pixels.sum(dim=0)[1:], pixels.sum(dim=1)[1:]
        in_void, both = pixels[0, 1:], pixels[1:, 1:]

        same = true_category[:, None] == my_category
        iou = both / (true_area[:, None] + area - both - in_void).double()
        match = (iou > 0.5) & same & ~crowd[:, None]
        in_crowd = (both * (same & crowd[:, None])).sum(dim=0)
        excused = (in_void + in_crowd) / area.double() > 0.5
        wrong, missed = ~match.any(dim=0) & ~excused, ~match.any(dim=1) & ~crowd
        found, _ = match.nonzero(as_tuple=True)
        self.iou.index_add_(0, true_category[found], iou[match])
        for counter, categories in (
            (self.tp, true_category[found]),
            (self.fp, my_category[wrong]),
            (self.fn, true_category[missed]),
        ):
            counter += categories.bincount(minlength=self.num_categories)

    def compute(self) -> PanopticScores:
        """PQ of everything seen so far."""
        total = self.tp + self.fp / 2 + self.fn / 2
        pq, rq = self.iou / total, self.tp / total.double()  # 0 / 0 is NaN: an absent category
        sq = torch.where(total > 0, self.iou / self.tp.clamp(min=1), math.nan)
        thing = torch.zeros(self.num_categories, dtype=torch.bool)
        thing[self.things] = True

        def mean(chosen: Tensor) -> Quality:
            return Quality(*(score[chosen].nanmean().item() for score in (pq, sq, rq)))

        return PanopticScores(
            all=mean(torch.ones_like(thing)),
            things=mean(thing),
            stuff=mean(~thing),
            per_category=[
                Quality(*(x.item() for x in row)) for row in zip(pq, sq, rq, strict=True)
            ],
        )

    def _numbered(
        self, name: str, ids: Tensor, segments: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, Tensor]:
        """The map with ids replaced by 1, 2, ... in the order of the segments; the categories."""
        if ids.dtype != torch.int64 or ids.ndim != 2:
            raise ValueError(f"{name}: expected int64 [H, W]; got {ids.dtype} {list(ids.shape)}")
        listed = torch.tensor([0, *(segment["id"] for segment in segments)])
        categories = torch.tensor([segment["category_id"] for segment in segments]).long()
        in_order, order = listed.sort()
        present = ids.cpu().unique()
        if in_order.tolist() != sorted({0, *present.tolist()}):
            raise ValueError(
                f"{name}: expected the ids of its segments, {sorted(listed[1:].tolist())}, and 0; "
                f"got {present.tolist()}"
            )
        if len(categories) and not 0 <= categories.min() <= categories.max() < self.num_categories:
            raise ValueError(
                f"{name}: expected categories in 0 .. {self.num_categories - 1}; "
                f"got {int(categories.min())} .. {int(categories.max())}"
            )
        return order[torch.searchsorted(in_order, ids.cpu())], categories


Segments = tuple[Tensor, Sequence[Mapping[str, Any]]]  # ids [H, W], and what is known of each


def panoptic_quality(
    predictions: Sequence[Segments],
    targets: Sequence[Segments],
    num_categories: int,
    things: Iterable[int],
) -> PanopticScores:
    """PQ of one batch: for each image the ids and segments of `PanopticQuality.update`."""
    metric = PanopticQuality(num_categories, things)
    for prediction, target in zip(predictions, targets, strict=True):
        metric.update(*prediction, *target)
    return metric.compute()


def panoptic_segments(mask: Tensor, instances: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """The id map and the segments, in COCO's format, of a mask and its instance numbers.

    Pixels of one class and one instance number are one segment.

    Args: mask and instances, int64 [H, W]; instances are 0 for stuff, else 1, 2, ... .

    Returns ids, int64 [H, W], 0 where the mask is void; and for each id a dict with `id`,
    `category_id`, `area` (pixels), `bbox` (x, y, width, height) and `iscrowd`, which is 0.
    """
    for name, values in (("mask", mask), ("instances", instances)):
        if values.dtype != torch.int64 or values.ndim != 2 or values.shape != mask.shape:
            raise ValueError(
                f"{name}: expected int64 [H, W], both of one shape; "
                f"got {values.dtype} {list(values.shape)}"
            )
    numbers = int(instances.max()) + 1
    ids = torch.where(mask == VOID, 0, mask * numbers + instances + 1)
    segments = []
    for segment in ids.unique().tolist():
        if segment == 0:
            continue
        y, x = (ids == segment).nonzero(as_tuple=True)
        left, top = int(x.min()), int(y.min())
        segments.append({
            "id": segment,
            "category_id": (segment - 1) // numbers,
            "area": len(x),
            "bbox": [left, top, int(x.max()) + 1 - left, int(y.max()) + 1 - top],
            "iscrowd": 0,
        })  # fmt: skip
    return ids, segments


def segment_categories(ids: Tensor, segments: Sequence[Mapping[str, Any]]) -> Tensor:
    """The category of each pixel of `ids`, int64 [H, W]; 255 (void) where there is no segment."""
    categories = torch.full((int(ids.max()) + 1,), VOID, device=ids.device)
    for segment in segments:
        categories[segment["id"]] = segment["category_id"]
    return categories[ids]


def connected_components(mask: Tensor, things: Sequence[int]) -> Tensor:
    """Instances from a semantic mask: pixels of one thing that touch are taken for one object.

    Corners touch as well. Args: mask, int64 [B, H, W], and the classes that are things.

    Returns instance numbers, int64 [B, H, W]: 1, 2, ... in each image, 0 where nothing is a thing.
    """
    is_thing = torch.isin(mask, torch.tensor(things, device=mask.device))
    pairs = _touching_pixels(mask)
    pairs = pairs[:, is_thing.flatten()[pairs[0]]]
    # Each pixel starts with its own place as its number, and takes a higher one from what it
    # touches. A number is the place of a pixel, which may have found a higher one already.
    number = torch.arange(mask.numel(), device=mask.device)
    while True:
        highest = number
        for ours, theirs in (pairs, pairs.flip(0)):
            highest = highest.scatter_reduce(0, ours, number[theirs], "amax")
        highest = highest[highest]
        if torch.equal(highest, number):
            break
        number = highest
    number = torch.where(is_thing, number.view_as(mask), -1)
    return torch.stack([torch.searchsorted(image[image >= 0].unique(), image, right=True)
                        for image in number])  # fmt: skip


def split_by_touch(mask: Tensor, things: Sequence[int], *, least: int = 1) -> list[Segments]:
    """Panoptic segments without a detector: the `connected_components` of masks [B, H, W].

    Objects of fewer than `least` pixels are dropped; their pixels get no segment.
    """
    found = []
    for image in zip(mask, connected_components(mask, things), strict=True):
        ids, segments = panoptic_segments(*image)
        kept = [s for s in segments if s["category_id"] not in things or s["area"] >= least]
        known = torch.tensor([s["id"] for s in kept], dtype=torch.int64, device=ids.device)
        found.append((torch.where(torch.isin(ids, known), ids, 0), kept))
    return found


def touching(mask: Tensor, instances: Tensor) -> Tensor:
    """Whether two objects of one class touch, if only at a corner: bool [B].

    Args: mask and instances, int64 [B, H, W]; instances are 0 for stuff, else 1, 2, ... .
    """
    ours, theirs = _touching_pixels(mask)
    number = instances.flatten()
    met = (number[ours] != number[theirs]) & (number[ours] > 0) & (number[theirs] > 0)
    image = ours[met] // mask[0].numel()
    return torch.zeros(len(mask), dtype=torch.bool, device=mask.device).index_fill(0, image, True)


def _touching_pixels(mask: Tensor) -> Tensor:
    """Pairs of pixels of one class that touch, if only at a corner: flat places, int64 [2, E]."""
    if mask.dtype != torch.int64 or mask.ndim != 3:
        raise ValueError(f"mask: expected int64 [B, H, W]; got {mask.dtype} {list(mask.shape)}")
    _, height, width = mask.shape
    place = torch.arange(mask.numel(), device=mask.device).view_as(mask)
    pairs = []
    for down, right in ((1, 0), (0, 1), (1, 1), (1, -1)):
        rows, columns = slice(height - down), slice(max(0, -right), width - max(0, right))
        ours = place[:, rows, columns].flatten()
        theirs = ours + down * width + right
        same = mask.flatten()[ours] == mask.flatten()[theirs]
        pairs.append(torch.stack([ours[same], theirs[same]]))
    return torch.cat(pairs, dim=1)
