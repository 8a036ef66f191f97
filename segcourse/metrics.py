"""Scores for semantic segmentation, computed over a whole data set.

Those for objects, AP and PQ, are in `instance_metrics.py`, and have their address here as well.

Every score starts from counts of pixels. The counts are summed over all images first and divided
once at the end, so the score of a set does not depend on how the set was cut into batches.

All scores are fractions between 0 and 1. A class that has no pixel in the truth and none in the
prediction is *absent*: its score is 0 / 0, stored as NaN and left out of every mean.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segcourse.instance_metrics import (  # noqa: F401
    AveragePrecision,
    PanopticQuality,
    average_precision,
    connected_components,
    panoptic_quality,
    panoptic_segments,
    segment_categories,
    split_by_touch,
    touching,
)


class ConfusionMatrix:
    """Count pixels by true class (row) and predicted class (column), batch after batch.

    `matrix` is int64 [num_classes, num_classes], on the device of the batches. Pixels whose truth
    is `ignore_index` (void) are not counted.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes = _check_at_least_one("num_classes", num_classes)
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch: `prediction` and `target` are int64 [B, H, W].

        Raises TypeError or ValueError, and counts nothing, when the two do not fit together or
        hold a label outside the classes.
        """
        _check_batch(prediction, target, self.num_classes, self.ignore_index)
        valid = target != self.ignore_index
        counts = _count_pairs(target[valid], prediction[valid], self.num_classes)
        self.matrix = self.matrix.to(counts.device) + counts


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of the pixels whose class is right. NaN if no pixel was counted."""
    matrix = _as_float(matrix)
    return (matrix.trace() / matrix.sum()).item()


def iou_per_class(matrix: Tensor) -> Tensor:
    """Intersection over union of each class: float64 [num_classes], NaN for an absent class.

    The intersection is the diagonal of the confusion matrix. The union is all pixels that are of
    the class in the truth (its row) or in the prediction (its column).
    """
    matrix = _as_float(matrix)
    intersection = matrix.diagonal()
    union = matrix.sum(dim=1) + matrix.sum(dim=0) - intersection
    return intersection / union


def mean_iou(matrix: Tensor) -> float:
    """Mean of the per-class IoUs over the classes that are not absent (mIoU)."""
    return iou_per_class(matrix).nanmean().item()


def frequency_weighted_iou(matrix: Tensor) -> float:
    """Mean of the per-class IoUs, each weighted by the class's share of the true pixels.

    Source: Long, Shelhamer and Darrell, 2015, section 5.
    """
    share = _as_float(matrix).sum(dim=1)
    weighted = (share * iou_per_class(matrix)).nansum()
    return (weighted / share.sum()).item()


def absent_classes(matrix: Tensor) -> list[int]:
    """Classes with no pixel in the truth and none in the prediction."""
    return iou_per_class(matrix).isnan().nonzero().flatten().tolist()


def default_boundary_width(height: int, width: int) -> int:
    """2 % of the image's diagonal in pixels, rounded, at least 1 (Cheng et al., 2021)."""
    return max(1, round(0.02 * (height**2 + width**2) ** 0.5))


def boundary_region(masks: Tensor, width: int) -> Tensor:
    """Pixels of each mask that lie at most `width` pixels from its contour, inside the mask.

    It is the mask minus its erosion by a 3x3 square, repeated `width` times. Outside the image
    nothing belongs to the mask, so a mask has a boundary where it touches the image's border.

    Args:
        masks: bool [..., H, W].
        width: in pixels, at least 1.

    Returns:
        bool [..., H, W].

    Source: Cheng, Girshick, Dollár, Berg and Kirillov, 2021 (Boundary IoU).
    """
    if masks.dtype != torch.bool:
        raise TypeError(f"masks: expected bool, got {_dtype(masks)}")
    if masks.dim() < 2 or masks.numel() == 0:
        raise ValueError(f"masks: expected a non-empty [..., H, W], got {list(masks.shape)}")
    _check_at_least_one("width", width)
    height_and_width = masks.shape[-2:]
    near = _near_another_label(masks.reshape(-1, *height_and_width), width)
    return masks & near.view_as(masks)


class BoundaryIoU:
    """IoU of the boundary regions of truth and prediction, per class, over a whole data set.

    Large regions hide errors at their contour: they have many more pixels inside than on the
    boundary. Here only the boundary regions are compared (see `boundary_region`).

    Args:
        num_classes: number of classes.
        width: of the region, in pixels. None is the paper's rule (`default_boundary_width`).
        ignore_index: the label of void in the truth. Void pixels are in neither region and act
            like the outside of the image, so a prediction there changes nothing.

    Source: Cheng, Girshick, Dollár, Berg and Kirillov, 2021. Departures: the paper scores one
    object at a time and takes the smaller of mask IoU and boundary IoU in its AP. Here the pixels
    of each class are summed over the set, as for mIoU, and boundary IoU stands alone.
    """

    def __init__(self, num_classes: int, width: int | None = None, ignore_index: int = 255):
        self.num_classes = _check_at_least_one("num_classes", num_classes)
        self.width = width if width is None else _check_at_least_one("width", width)
        self.ignore_index = ignore_index
        # One more class holds every pixel that is in no boundary region.
        self._regions = ConfusionMatrix(num_classes + 1, ignore_index=num_classes + 1)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch: `prediction` and `target` are int64 [B, H, W]. Errors as in
        `ConfusionMatrix.update`."""
        _check_batch(prediction, target, self.num_classes, self.ignore_index)
        void = target == self.ignore_index
        width = self.width or default_boundary_width(*target.shape[-2:])
        truth = self._keep_boundary(target, void, width)
        truth = truth.masked_fill(void, self._regions.ignore_index)
        self._regions.update(self._keep_boundary(prediction, void, width), truth)

    def per_class(self) -> Tensor:
        """Boundary IoU of each class: float64 [num_classes], NaN for an absent class."""
        return iou_per_class(self._regions.matrix)[: self.num_classes]

    def mean(self) -> float:
        """Mean over the classes that are not absent."""
        return self.per_class().nanmean().item()

    def _keep_boundary(self, labels: Tensor, void: Tensor, width: int) -> Tensor:
        # Each pixel has one class, so one map holds the boundary regions of all classes.
        region = _near_another_label(labels.masked_fill(void, _OUTSIDE), width)
        return labels.where(region, self.num_classes)


@dataclass(frozen=True)
class Scores:
    """Scores of one model on one data set, as fractions. NaN marks an absent class."""

    pixel_accuracy: float
    miou: float
    frequency_weighted_iou: float
    boundary_iou: float
    iou: list[float]
    boundary_iou_per_class: list[float]
    absent: list[int]


class SegmentationMetrics:
    """All scores of this file from one stream of batches.

    Arguments as in `ConfusionMatrix` and `BoundaryIoU`.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, boundary_width: int | None = None
    ) -> None:
        self.confusion = ConfusionMatrix(num_classes, ignore_index)
        self.boundary = BoundaryIoU(num_classes, boundary_width, ignore_index)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch: `prediction` and `target` are int64 [B, H, W]. Errors as in
        `ConfusionMatrix.update`."""
        self.confusion.update(prediction, target)
        self.boundary.update(prediction, target)

    def compute(self) -> Scores:
        """Scores of everything seen so far."""
        matrix = self.confusion.matrix
        return Scores(
            pixel_accuracy=pixel_accuracy(matrix),
            miou=mean_iou(matrix),
            frequency_weighted_iou=frequency_weighted_iou(matrix),
            boundary_iou=self.boundary.mean(),
            iou=iou_per_class(matrix).tolist(),
            boundary_iou_per_class=self.boundary.per_class().tolist(),
            absent=absent_classes(matrix),
        )


def score(prediction: Tensor, target: Tensor, num_classes: int) -> Scores:
    """All scores of one batch: a stream of one. Arguments as in `SegmentationMetrics`."""
    metrics = SegmentationMetrics(num_classes)
    metrics.update(prediction, target)
    return metrics.compute()


_OUTSIDE = -1


def _near_another_label(labels: Tensor, width: int) -> Tensor:
    """Where the square of side 2 * width + 1 around a pixel of [N, H, W] holds two labels or more.

    A pixel survives `width` erosions of its own class's mask exactly when that square holds one
    label, that is, when its largest and its smallest label are equal.
    """
    side = 2 * width + 1
    padded = F.pad(labels.float(), (width, width, width, width), value=_OUTSIDE)

    def largest(x: Tensor) -> Tensor:
        # The largest of a square is the largest of its columns' largest: 2 * side, not side ** 2.
        return F.max_pool2d(F.max_pool2d(x, (side, 1), stride=1), (1, side), stride=1)

    return largest(padded) != -largest(-padded)


def _count_pairs(truth: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Counts [num_classes, num_classes] of the pairs (truth, prediction) of two flat tensors."""
    pairs = truth * num_classes + prediction
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def _as_float(matrix: Tensor) -> Tensor:
    """Check a confusion matrix and make it float64, on the CPU: some devices have no float64."""
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: expected shape [C, C], got {list(matrix.shape)}")
    return matrix.cpu().double()


def _check_at_least_one(name: str, value: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value


def _check_batch(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> None:
    for name, labels in (("prediction", prediction), ("target", target)):
        if not isinstance(labels, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(labels).__name__}")
        if labels.dtype != torch.int64:
            raise TypeError(f"{name}: expected int64 labels, got {_dtype(labels)}")
        if labels.dim() != 3:
            raise ValueError(f"{name}: expected shape [B, H, W], got {list(labels.shape)}")
        if labels.numel() == 0:
            raise ValueError(f"{name}: expected at least one pixel, got {list(labels.shape)}")
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction: expected the shape of target, {list(target.shape)}, "
            f"got {list(prediction.shape)}"
        )
    if prediction.device != target.device:
        raise ValueError(
            f"prediction: expected the device of target, {target.device}, got {prediction.device}"
        )
    check_labels("prediction", prediction, num_classes)
    check_labels("target", target, num_classes, ignore_index)


def check_labels(name: str, labels: Tensor, num_classes: int, void: int | None = None) -> None:
    """Raise ValueError unless every label is a class or, where that is allowed, void."""
    if labels.numel():
        low, high = labels.aminmax()
        if 0 <= low and high < num_classes:  # the usual case, in a tenth of the time
            return
    wrong = (labels < 0) | (labels >= num_classes)
    if void is not None:
        wrong &= labels != void
    if wrong.any():
        also = "" if void is None else f" or be {void} (void)"
        raise ValueError(
            f"{name}: labels must lie in 0..{num_classes - 1}{also}; "
            f"found {labels[wrong][0].item()}"
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
