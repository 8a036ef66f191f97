"""What the scores must satisfy on any input, and what they must refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcourse.metrics import (
    BoundaryIoU,
    ConfusionMatrix,
    SegmentationMetrics,
    absent_classes,
    boundary_region,
    frequency_weighted_iou,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
    score,
)

C = 4
VOID = 255
quick = settings(deadline=None, max_examples=40)


@st.composite
def label_maps(draw, void=True):
    """(prediction, target): int64 [B, H, W] in blocks, some pixels void in the truth."""
    images, rows, columns = (draw(st.integers(1, n)) for n in (4, 5, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def blocks():
        labels = torch.randint(0, C, (images, rows, columns), generator=generator)
        return labels.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)

    target = blocks()
    changed = torch.rand(target.shape, generator=generator) < draw(st.floats(0, 1))
    prediction = torch.where(changed, blocks(), target)
    if void:
        target[torch.rand(target.shape, generator=generator) < draw(st.floats(0, 0.5))] = VOID
    return prediction, target


def scores(prediction, target, batch=None):
    metrics = SegmentationMetrics(C, boundary_width=1)
    step = batch or len(target)
    for start in range(0, len(target), step):
        metrics.update(prediction[start : start + step], target[start : start + step])
    return metrics.compute()


def same(a, b):
    """Equal to rounding, NaN equal to NaN, for two Scores or two lists of fractions."""
    pairs = zip(numbers(a), numbers(b), strict=True)
    return all(x == pytest.approx(y, abs=1e-12, nan_ok=True) for x, y in pairs)


def numbers(value):
    if isinstance(value, list):
        return value
    means = [value.pixel_accuracy, value.miou, value.frequency_weighted_iou, value.boundary_iou]
    return means + value.iou + value.boundary_iou_per_class + value.absent


# Properties


@quick
@given(label_maps(void=False))
def test_a_perfect_prediction_scores_one(maps):
    _, target = maps
    result = scores(target, target)
    assert result.pixel_accuracy == result.miou == result.boundary_iou == 1.0
    assert result.frequency_weighted_iou == pytest.approx(1.0)
    present = set(target.unique().tolist())
    assert result.absent == sorted(set(range(C)) - present)


@quick
@given(label_maps())
def test_a_prediction_that_is_right_outside_the_void_scores_one(maps):
    prediction, target = maps
    prediction = torch.where(target == VOID, prediction, target)
    result = scores(prediction, target)
    for found in (result.miou, result.boundary_iou):
        assert found == 1.0 or (target == VOID).all()


@quick
@given(label_maps())
def test_what_is_predicted_in_the_void_does_not_matter(maps):
    prediction, target = maps
    other = torch.where(target == VOID, (prediction + 1) % C, prediction)
    assert same(scores(prediction, target), scores(other, target))


@quick
@given(label_maps(void=False))
def test_truth_and_prediction_may_change_places(maps):
    prediction, target = maps
    there, back = scores(prediction, target), scores(target, prediction)
    assert same(there.iou, back.iou)
    assert same(there.boundary_iou_per_class, back.boundary_iou_per_class)
    assert there.pixel_accuracy == back.pixel_accuracy


@quick
@given(label_maps(), st.integers(1, 3), st.randoms())
def test_order_and_batches_of_the_images_do_not_matter(maps, batch, random):
    prediction, target = maps
    order = list(range(len(target)))
    random.shuffle(order)
    assert same(scores(prediction, target), scores(prediction[order], target[order], batch))


def test_labels_at_once_score_as_a_stream_of_them():
    prediction, target = torch.randint(
        C, (2, 6, 20, 30), generator=torch.Generator().manual_seed(0)
    )
    stream = SegmentationMetrics(C)
    for batch in zip(prediction.split(4), target.split(4), strict=True):
        stream.update(*batch)
    assert same(score(prediction, target, C), stream.compute())


@quick
@given(label_maps(), st.permutations(range(C)))
def test_renaming_the_classes_renames_the_scores(maps, names):
    prediction, target = maps
    names = torch.tensor(names)
    renamed = target.clone()
    renamed[target != VOID] = names[target[target != VOID]]
    before, after = scores(prediction, target), scores(names[prediction], renamed)
    assert same(before.iou, [after.iou[i] for i in names])
    boundary = [after.boundary_iou_per_class[i] for i in names]
    assert same(before.boundary_iou_per_class, boundary)
    assert same([before.miou, before.boundary_iou], [after.miou, after.boundary_iou])


@quick
@given(label_maps())
def test_turning_the_images_changes_nothing(maps):
    prediction, target = maps
    turned = scores(prediction.mT.flip(1), target.mT.flip(1))
    assert same(scores(prediction, target), turned)


@quick
@given(label_maps())
def test_scores_are_fractions_and_accuracy_bounds_the_weighted_iou(maps):
    prediction, target = maps
    result = scores(prediction, target)
    if (target == VOID).all():
        assert math.isnan(result.miou) and math.isnan(result.boundary_iou)
        return
    assert all(0 <= score <= 1 for score in numbers(result)[:4])
    # The IoU of a class is at most its recall, and accuracy is recall weighted by frequency.
    assert result.frequency_weighted_iou <= result.pixel_accuracy + 1e-12
    present = [x for x in result.iou if not math.isnan(x)]
    assert min(present) <= result.miou + 1e-12 and result.miou <= max(present) + 1e-12


@quick
@given(label_maps())
def test_a_class_is_absent_for_both_ious_or_for_none(maps):
    result = scores(*maps)
    nan = [i for i, score in enumerate(result.iou) if math.isnan(score)]
    boundary_nan = [i for i, x in enumerate(result.boundary_iou_per_class) if math.isnan(x)]
    assert nan == boundary_nan == result.absent


@quick
@given(label_maps())
def test_a_region_wider_than_the_image_makes_boundary_iou_the_iou(maps):
    prediction, target = maps
    metrics = SegmentationMetrics(C, boundary_width=15)
    metrics.update(prediction, target)
    result = metrics.compute()
    assert same(result.iou, result.boundary_iou_per_class)


@quick
@given(label_maps(void=False), st.integers(1, 3))
def test_boundary_regions_grow_with_the_width_and_stay_inside_the_mask(maps, width):
    masks = maps[1] == torch.arange(C)[:, None, None, None]
    narrow, wide = boundary_region(masks, width), boundary_region(masks, width + 1)
    assert (narrow <= wide).all() and (wide <= masks).all()
    assert torch.equal(narrow.any(dim=(-2, -1)), masks.any(dim=(-2, -1)))


# Examples worked by hand


def test_scores_of_a_matrix_worked_by_hand():
    # Rows are the truth: 8 pixels of class 0, 2 of class 1, none of class 2.
    matrix = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert pixel_accuracy(matrix) == 0.7
    assert iou_per_class(matrix)[:2].tolist() == [6 / 9, 1 / 4]
    assert absent_classes(matrix) == [2]
    assert mean_iou(matrix) == pytest.approx((6 / 9 + 1 / 4) / 2)
    assert frequency_weighted_iou(matrix) == pytest.approx(0.8 * 6 / 9 + 0.2 * 1 / 4)


def test_rows_are_the_truth_and_columns_the_prediction():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[[2, 2, 0]]]), torch.tensor([[[1, 1, VOID]]]))
    assert matrix.matrix.tolist() == [[0, 0, 0], [0, 0, 2], [0, 0, 0]]
    assert matrix.matrix.dtype == torch.int64


def test_a_boundary_worked_by_hand():
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[1:6, 0:4] = True
    # The 5x4 block touches the left border of the image, where nothing is left of it.
    expected = mask.clone()
    expected[2:5, 1:3] = False
    assert torch.equal(boundary_region(mask, 1), expected)


def test_the_iou_of_a_set_is_not_the_mean_of_the_ious_of_its_images():
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[0, :, :2] = 1
    target[1, 0, 0] = 1
    prediction = target.clone()
    prediction[1, 0, 0] = 0
    per_image = [scores(prediction[i : i + 1], target[i : i + 1]).miou for i in range(2)]
    assert scores(prediction, target).miou == pytest.approx((8 / 9 + 23 / 24) / 2)
    assert sum(per_image) / 2 == pytest.approx((1 + (0 + 15 / 16) / 2) / 2)


def test_a_shifted_disc_keeps_its_iou_and_loses_its_boundary_iou():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((y - 32) ** 2 + (x - 32) ** 2 < 20**2).long()[None]
    result = scores(disc.roll(2, dims=2), disc)
    assert result.iou[1] > 0.85
    assert result.boundary_iou_per_class[1] < 0.4


# Bad input

GOOD = torch.zeros(2, 4, 4, dtype=torch.int64)
LABEL_12 = torch.full((2, 4, 4), 12)


@pytest.mark.parametrize("metric", [ConfusionMatrix, BoundaryIoU, SegmentationMetrics])
@pytest.mark.parametrize(
    ("prediction", "target", "error", "message"),
    [
        (GOOD, LABEL_12, ValueError, r"^target: .* 0\.\.9 or be 255 \(void\); found 12$"),
        (LABEL_12, GOOD, ValueError, r"^prediction: .* 0\.\.9; found 12$"),
        (GOOD, GOOD - 1, ValueError, r"^target: .* found -1$"),
        (GOOD + 255, GOOD, ValueError, r"^prediction: .* found 255$"),
        (GOOD.float(), GOOD, TypeError, "^prediction: expected int64 labels, got float32$"),
        (GOOD, GOOD.byte(), TypeError, "^target: expected int64 labels, got uint8$"),
        (GOOD.numpy(), GOOD, TypeError, "^prediction: expected a tensor, got ndarray$"),
        (GOOD[0], GOOD[0], ValueError, r"^prediction: .* \[B, H, W\], got \[4, 4\]$"),
        (GOOD[:, None], GOOD, ValueError, r"^prediction: .* got \[2, 1, 4, 4\]$"),
        (GOOD[:1], GOOD, ValueError, r"^prediction: .* target, \[2, 4, 4\], got \[1, 4, 4\]$"),
        (GOOD[:0], GOOD[:0], ValueError, r"^prediction: .* one pixel, got \[0, 4, 4\]$"),
        (GOOD.to("meta"), GOOD, ValueError, "^prediction: .* target, cpu, got meta$"),
    ],
)
def test_bad_batches_are_refused_and_leave_no_trace(metric, prediction, target, error, message):
    metric = metric(10)
    labels = torch.arange(32).view(2, 4, 4) % 10
    metric.update(labels, labels.flip(2))
    before = state(metric)
    with pytest.raises(error, match=message):
        metric.update(prediction, target)
    assert torch.equal(state(metric), before)


def state(metric):
    if isinstance(metric, SegmentationMetrics):
        return torch.cat([state(metric.confusion).flatten(), state(metric.boundary)])
    return metric.per_class() if isinstance(metric, BoundaryIoU) else metric.matrix.clone()


@pytest.mark.parametrize("metric", [ConfusionMatrix, BoundaryIoU, SegmentationMetrics])
def test_the_number_of_classes_must_be_a_positive_integer(metric):
    with pytest.raises(ValueError, match="^num_classes: expected at least 1, got 0$"):
        metric(0)
    with pytest.raises(TypeError, match="^num_classes: expected an int, got float$"):
        metric(10.0)


def test_boundary_region_refuses_what_is_not_a_mask():
    with pytest.raises(TypeError, match="^masks: expected bool, got int64$"):
        boundary_region(GOOD, 1)
    with pytest.raises(ValueError, match=r"^masks: .* \[..., H, W\], got \[4\]$"):
        boundary_region(torch.ones(4, dtype=torch.bool), 1)
    with pytest.raises(ValueError, match="^width: expected at least 1, got 0$"):
        boundary_region(GOOD == 0, 0)
    with pytest.raises(ValueError, match="^width: expected at least 1, got -2$"):
        BoundaryIoU(3, width=-2)


def test_only_square_matrices_are_scored():
    with pytest.raises(ValueError, match=r"^matrix: expected shape \[C, C\], got \[2, 3\]$"):
        mean_iou(torch.zeros(2, 3))


def test_a_class_may_be_the_one_that_is_ignored():
    metric = ConfusionMatrix(3, ignore_index=0)
    metric.update(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 1, 1]]]))
    assert metric.matrix.tolist() == [[0, 0, 0], [0, 1, 1], [0, 0, 0]]
