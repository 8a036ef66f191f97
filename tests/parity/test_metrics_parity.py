"""The metrics against torchmetrics, and against two more ways to write the boundary region."""

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassJaccardIndex,
)

from segcourse.calibration import Calibration
from segcourse.metrics import (
    BoundaryIoU,
    ConfusionMatrix,
    boundary_region,
    default_boundary_width,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
)

VOID = 255


def blobs(seed, shape=(6, 40, 56), num_classes=5, void=0.0):
    """Label maps with connected regions, and predictions that are wrong here and there."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num_classes, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 4, 4))
    # Few pixels of the last class, and none in most images.
    smooth[-1] -= np.quantile(smooth[:-1], 0.8)
    target = smooth.argmax(axis=0)
    prediction = (smooth + ndimage.gaussian_filter(noise[::-1], (0, 0, 3, 3))).argmax(axis=0)
    target[rng.random(shape) < void] = VOID
    return torch.from_numpy(prediction), torch.from_numpy(target)


@pytest.mark.parametrize("void", [0.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_equal_those_of_torchmetrics(seed, void):
    prediction, target = blobs(seed, void=void)
    ours = ConfusionMatrix(5)
    per_class = MulticlassJaccardIndex(5, average="none", ignore_index=VOID)
    macro = MulticlassJaccardIndex(5, average="macro", ignore_index=VOID)
    accuracy = MulticlassAccuracy(5, average="micro", ignore_index=VOID)
    for start in range(0, len(target), 4):
        batch = slice(start, start + 4)
        for metric in (ours, per_class, macro, accuracy):
            metric.update(prediction[batch], target[batch])
    expected = per_class.compute().double()
    torch.testing.assert_close(iou_per_class(ours.matrix), expected, rtol=1e-6, atol=0)
    assert mean_iou(ours.matrix) == pytest.approx(macro.compute().item(), rel=1e-6)
    assert pixel_accuracy(ours.matrix) == pytest.approx(accuracy.compute().item(), rel=1e-6)


def test_absent_classes_are_left_out_of_the_mean_as_in_torchmetrics():
    # Class 4 is in neither map, class 3 is predicted and never true. torchmetrics prints 0 for
    # both, yet its mean leaves out class 4 only. Here class 4 is NaN, so that the two differ.
    prediction = torch.tensor([[[0, 1, 2], [0, 1, 3]]])
    target = torch.tensor([[[0, 1, 2], [0, 2, 2]]])
    ours = ConfusionMatrix(5)
    ours.update(prediction, target)
    theirs = MulticlassJaccardIndex(5, average="none")(prediction, target)
    assert theirs[3:].tolist() == [0.0, 0.0]
    assert iou_per_class(ours.matrix)[3] == 0.0
    assert iou_per_class(ours.matrix)[4].isnan()
    macro = MulticlassJaccardIndex(5, average="macro")(prediction, target).item()
    assert mean_iou(ours.matrix) == pytest.approx(macro, rel=1e-6)
    assert mean_iou(ours.matrix) != pytest.approx(theirs.mean().item(), rel=1e-3)


def region_by_erosion(mask, width):
    """The definition: pad with zeros, erode `width` times by a 3x3 square, subtract."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
    return mask & (eroded[1:-1, 1:-1] == 0)


def region_by_distance(mask, width):
    """Chessboard distance to the nearest pixel outside the mask, which is at most `width`."""
    distance = ndimage.distance_transform_cdt(np.pad(mask, 1), metric="chessboard")
    return mask & (distance[1:-1, 1:-1] <= width)


def outer_region(mask, width):
    """A plausible mistake: the pixels just outside the mask."""
    return ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=width) & ~mask


def region_with_open_border(mask, width):
    """A plausible mistake: nothing is eroded from the side of the image's border."""
    square = np.ones((3, 3))
    return mask & ~ndimage.binary_erosion(mask, square, iterations=width, border_value=1)


def region_by_cross(mask, width):
    """A plausible mistake: erosion by a cross, which leaves thicker corners."""
    return mask & ~ndimage.binary_erosion(mask, iterations=width)


@pytest.mark.parametrize("width", [1, 2, 5, 60])
@pytest.mark.parametrize("oracle", [region_by_erosion, region_by_distance])
def test_boundary_region_equals_the_definition(oracle, width):
    masks = blobs(3)[1][:, None] == torch.arange(5)[None, :, None, None]
    expected = [[oracle(mask.numpy(), width) for mask in image] for image in masks]
    assert torch.equal(boundary_region(masks, width), torch.from_numpy(np.array(expected)))


def boundary_iou_over_the_set(prediction, target, width, region, num_classes=5):
    """Slow and plain: one image and one class at a time, void taken out of both masks first."""
    scores = []
    for label in range(num_classes):
        intersection = union = 0
        for guess, truth in zip(prediction.numpy(), target.numpy(), strict=True):
            seen = truth != VOID
            a, b = region((guess == label) & seen, width), region((truth == label) & seen, width)
            intersection += (a & b & seen).sum()
            union += ((a | b) & seen).sum()
        scores.append(intersection / union if union else float("nan"))
    return torch.tensor(scores, dtype=torch.float64)


def boundary_iou(prediction, target, width=None):
    metric = BoundaryIoU(5, width)
    metric.update(prediction[:4], target[:4])
    metric.update(prediction[4:], target[4:])
    return metric.per_class()


@pytest.mark.parametrize("void", [0.0, 0.02])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("oracle", [region_by_erosion, region_by_distance])
def test_boundary_iou_equals_the_definition(oracle, width, void):
    prediction, target = blobs(4, void=void)
    expected = boundary_iou_over_the_set(prediction, target, width, oracle)
    torch.testing.assert_close(boundary_iou(prediction, target, width), expected, equal_nan=True)


@pytest.mark.parametrize("wrong", [outer_region, region_with_open_border, region_by_cross])
def test_a_wrong_boundary_region_gives_another_boundary_iou(wrong):
    prediction, target = blobs(4)
    other = boundary_iou_over_the_set(prediction, target, 2, wrong)
    assert (boundary_iou(prediction, target, 2) - other).abs().max() > 0.01


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (128, 128), (96, 160), (512, 512)])
def test_default_width_is_two_percent_of_the_diagonal(size):
    height, width = size
    official = max(1, int(round(0.02 * np.sqrt(height**2 + width**2))))
    assert default_boundary_width(height, width) == official


def test_the_default_width_is_the_one_used():
    prediction, target = blobs(5, shape=(6, 96, 160))
    assert torch.equal(boundary_iou(prediction, target), boundary_iou(prediction, target, 4))
    assert not torch.equal(boundary_iou(prediction, target), boundary_iou(prediction, target, 3))


def test_the_calibration_error_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 5, 40, 40, generator=generator)
    target = torch.randint(0, 5, (3, 40, 40), generator=generator)
    target[:, :5] = 255
    theirs = MulticlassCalibrationError(5, n_bins=15, norm="l1", ignore_index=255)
    ours = Calibration()
    for i in range(3):
        ours.update(logits[i : i + 1], target[i : i + 1])
        theirs.update(logits[i : i + 1].softmax(1), target[i : i + 1])
    assert ours.error() == pytest.approx(theirs.compute().item(), abs=1e-6)
