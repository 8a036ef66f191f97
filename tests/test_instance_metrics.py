"""AP and PQ on scenes worked by hand, what must hold on any scene, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from segcourse.instance_metrics import (
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

seeds = st.integers(0, 2**31)

GRASS, ROAD, CAR, BALL = range(4)
THINGS = (CAR, BALL)


def maps(text):
    """A mask and its instance numbers from rows such as 'g g c1 c2'; '.' is void."""
    classes = {"g": GRASS, "r": ROAD, "c": CAR, "b": BALL, ".": 255}
    rows = [line.split() for line in text.strip().splitlines()]
    mask = torch.tensor([[classes[word[0]] for word in row] for row in rows])
    return mask, torch.tensor([[int(word[1:] or 0) for word in row] for row in rows])


def quality(*pairs, crowds=()):
    """PQ of (prediction, truth) pairs; `crowds` are the categories whose true segments are one."""
    metric = PanopticQuality(4, THINGS)
    for prediction, truth in pairs:
        target, segments = panoptic_segments(*maps(truth))
        for segment in segments:
            segment["iscrowd"] = int(segment["category_id"] in crowds)
        metric.update(*panoptic_segments(*maps(prediction)), target, segments)
    return metric


TRUTH = """
g g g  g  g  g
g g c1 c1 c2 c2
g g c1 c1 c2 c2
"""


def test_pq_worked_by_hand():
    """One car of two is found with 4 of 5 pixels, the other is missed: IoU 4 / 5, 1 TP, 1 FN."""
    found = quality((
        """
        g g g  g  g  g
        g g c1 c1 g  g
        g c1 c1 c1 r r
        """,
        TRUTH,
    ))  # fmt: skip
    assert found.tp.tolist() == [1, 0, 1, 0]
    assert found.fp.tolist() == [0, 1, 0, 0]
    assert found.fn.tolist() == [0, 0, 1, 0]
    grass = 9 / 12
    torch.testing.assert_close(found.iou.tolist(), [grass, 0.0, 4 / 5, 0.0])
    scores = found.compute()
    car = scores.per_category[CAR]
    assert (car.pq, car.sq, car.rq) == pytest.approx((0.8 / 1.5, 0.8, 1 / 1.5))
    assert scores.per_category[ROAD] == type(car)(0.0, 0.0, 0.0)
    assert math.isnan(scores.per_category[BALL].pq)
    assert scores.things.pq == pytest.approx(car.pq)
    assert scores.stuff.pq == pytest.approx((grass + 0) / 2)
    assert scores.all.pq == pytest.approx((grass + 0 + car.pq) / 3)


def test_two_objects_in_one_segment_match_neither():
    one = TRUTH.replace("c2", "c1")
    found = quality((one, TRUTH))
    assert (found.tp[CAR], found.fp[CAR], found.fn[CAR]) == (0, 1, 2)  # IoU is 1/2, not above
    found = quality((TRUTH, one))
    assert (found.tp[CAR], found.fp[CAR], found.fn[CAR]) == (0, 2, 1)


@pytest.mark.parametrize("wrong", ["b1", "."])
def test_another_category_and_void_in_the_prediction_match_nothing(wrong):
    found = quality((TRUTH.replace("c1", wrong), TRUTH))
    assert (found.tp[CAR], found.fn[CAR]) == (1, 1)
    assert found.fp.tolist() == [0, 0, 0, int(wrong != ".")]


def test_void_in_the_truth_leaves_the_union():
    truth = TRUTH.replace("g g g  g  g  g", ". . .  .  .  .")
    found = quality((TRUTH, truth))
    assert found.iou.tolist() == [1, 0, 2, 0] and found.fp.sum() == 0
    in_void = TRUTH.replace("g g g  g  g  g", "b1 b1 b1 b1 b1 b1")
    assert quality((in_void, truth)).fp.sum() == 0
    half = in_void.replace("g g c1 c1 c2 c2", "b1 b1 b1 b1 b1 b1", 1)
    # 6 of the 12 pixels of the ball are void, which is not more than half.
    assert quality((half, truth)).fp.tolist() == [1, 0, 2, 1]


def test_a_crowd_is_no_one_to_find():
    found = quality((TRUTH, TRUTH), crowds=(CAR,))
    assert (found.tp[CAR], found.fp[CAR], found.fn[CAR]) == (0, 0, 0)
    found = quality((TRUTH.replace("c", "b"), TRUTH), crowds=(CAR,))  # of another category
    assert found.fp.tolist() == [0, 0, 0, 2]


def test_the_set_is_counted_before_it_is_divided():
    """One image without a fault, and one where the only car is missed: 1 TP and 1 FN of cars."""
    full, empty = "c1 c1 g g", "g g g g"
    scores = quality((full, full), (empty, full)).compute()
    assert scores.per_category[CAR].pq == pytest.approx(1 / 1.5)
    each = [quality(pair).compute().per_category[CAR].pq for pair in ((full, full), (empty, full))]
    assert sum(each) / 2 == 0.5


@st.composite
def scenes(draw):
    """Mask and instances of a random scene, some of it void."""
    generator = torch.Generator().manual_seed(draw(seeds))
    mask = torch.randint(0, 4, (4, 5), generator=generator)
    mask[torch.rand(4, 5, generator=generator) < 0.2] = 255
    instances = torch.randint(1, 4, (4, 5), generator=generator) * ((mask == CAR) | (mask == BALL))
    return tuple(x.repeat_interleave(2, 0).repeat_interleave(2, 1) for x in (mask, instances))


@given(scenes())
def test_the_truth_scores_one(scene):
    metric = PanopticQuality(4, THINGS)
    metric.update(*panoptic_segments(*scene), *panoptic_segments(*scene))
    scores = metric.compute()
    present = set(scene[0].unique().tolist()) - {255}
    for category, score in enumerate(scores.per_category):
        if category in present:
            assert (score.pq, score.sq, score.rq) == (1, 1, 1)
        else:
            assert math.isnan(score.pq)
    assert scores.all.pq == 1 or not present


@given(scenes(), scenes())
def test_what_is_predicted_in_the_void_of_the_truth_does_not_matter(scene, other):
    (mask, instances), (other_mask, other_instances) = scene, other
    void = mask == 255
    guess = torch.where(void, other_mask, mask), torch.where(void, other_instances, instances)
    metric = PanopticQuality(4, THINGS)
    metric.update(*panoptic_segments(*guess), *panoptic_segments(mask, instances))
    assert metric.fp.sum() == metric.fn.sum() == 0


@given(scenes(), scenes())
def test_pq_is_sq_times_rq(scene, other):
    metric = PanopticQuality(4, THINGS)
    metric.update(*panoptic_segments(*scene), *panoptic_segments(*other))
    for score in metric.compute().per_category:
        assert score.pq == pytest.approx(score.sq * score.rq, nan_ok=True)


@given(scenes())
def test_the_ids_of_segments_tell_classes_and_instances(scene):
    mask, instances = scene
    ids, segments = panoptic_segments(mask, instances)
    assert torch.equal(ids == 0, mask == 255)
    assert sum(segment["area"] for segment in segments) == (ids > 0).sum()
    for segment in segments:
        here = ids == segment["id"]
        assert mask[here].unique().tolist() == [segment["category_id"]]
        number = instances[here].unique()
        assert len(number) == 1 and segment["area"] == here.sum() and segment["iscrowd"] == 0
        assert torch.equal(here, (mask == segment["category_id"]) & (instances == number))
        x, y, width, height = segment["bbox"]
        rows, columns = here.any(dim=1), here.any(dim=0)
        assert rows[y : y + height].all() or here[y].any()
        assert rows[:y].sum() == rows[y + height :].sum() == 0 and rows[y] and rows[y + height - 1]
        assert columns[:x].sum() == columns[x + width :].sum() == 0
        assert columns[x] and columns[x + width - 1]


def test_what_does_not_fit_is_refused_and_not_counted():
    metric = PanopticQuality(4, THINGS)
    ids, segments = panoptic_segments(*maps(TRUTH))
    truth = ids, segments
    with pytest.raises(ValueError, match="prediction: expected the shape of target"):
        metric.update(ids[1:], segments, *truth)
    with pytest.raises(ValueError, match=r"prediction: expected int64 \[H, W\]; got torch.int32"):
        metric.update(ids.int(), segments, *truth)
    with pytest.raises(ValueError, match="prediction: expected the ids of its segments"):
        metric.update(ids, segments[1:], *truth)
    with pytest.raises(ValueError, match="target: expected the ids of its segments"):
        metric.update(*truth, ids, [*segments, {"id": 99, "category_id": 0}])
    with pytest.raises(ValueError, match="target: expected the ids of its segments"):
        metric.update(*truth, ids, [*segments, segments[0]])
    with pytest.raises(ValueError, match=r"target: expected categories in 0 .. 3; got 0 .. 4"):
        metric.update(*truth, ids, [*segments[:-1], segments[-1] | {"category_id": 4}])
    with pytest.raises(ValueError, match=r"things: expected categories in 0 .. 3; got \[4\]"):
        PanopticQuality(4, [4])
    with pytest.raises(ValueError, match="num_categories: expected a whole number"):
        PanopticQuality(0, [])
    with pytest.raises(ValueError, match=r"instances: expected int64 \[H, W\], both of one shape"):
        panoptic_segments(ids, ids[1:])
    assert not (metric.tp + metric.fp + metric.fn).any()
    assert math.isnan(metric.compute().all.pq)


def squares(*corners, side=10):
    """Boxes and masks of squares in an image of 40 x 40 pixels, with labels all 1."""
    boxes = torch.tensor([[x, y, x + side, y + side] for x, y in corners]).float().view(-1, 4)
    masks = torch.zeros(len(boxes), 40, 40, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return {
        "boxes": boxes,
        "masks": masks,
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.5, len(boxes)),
    }


def ap(detections, truth, kind="masks"):
    metric = AveragePrecision(3, kind)
    metric.update([detections], [truth])
    return metric.compute()


@pytest.mark.parametrize("kind", ("masks", "boxes"))
def test_ap_worked_by_hand(kind):
    """Right, wrong, right: precision 1 up to recall 1/2, then 2/3 up to recall 1.

    The third detection is shifted by 2 of 10 pixels: IoU 8 / 12, right up to the threshold .65.
    """
    truth = squares((0, 0), (20, 20))
    found = ap(squares((0, 0), (0, 20), (22, 20)), truth, kind)
    both = (51 * 1 + 50 * 2 / 3) / 101
    assert found.ap50 == pytest.approx(both)
    assert found.ap75 == pytest.approx(51 / 101)
    assert found.ap == pytest.approx((4 * both + 6 * 51 / 101) / 10)
    assert found.small == pytest.approx(found.ap)
    assert math.isnan(found.medium) and math.isnan(found.large)
    assert math.isnan(found.per_class[1]) and found.per_class[0] == pytest.approx(found.ap)


@pytest.mark.parametrize("kind", ("masks", "boxes"))
def test_an_object_is_found_once(kind):
    truth = squares((0, 0))
    twice = ap(squares((0, 0), (0, 0)), truth, kind)
    assert twice.ap == 1  # the second is wrong, but after full recall
    truth = squares((0, 0), (20, 20))
    assert ap(squares((0, 0), (0, 0), (20, 20)), truth, kind).ap == pytest.approx(
        (51 + 50 * 2 / 3) / 101
    )


def test_a_crowd_takes_any_number_of_detections_and_counts_none():
    truth = squares((0, 0), (20, 20), side=20) | {"iscrowd": torch.tensor([False, True])}
    inside = squares((22, 22), (30, 30), side=8)
    found = squares((0, 0), side=20)
    together = {key: torch.cat([inside[key], found[key]]) for key in found}
    assert ap(together, truth).ap == 1
    assert ap(together, truth | {"iscrowd": torch.zeros(2)}).ap < 0.5


def test_masks_of_the_model_are_cut_at_one_half():
    truth = squares((0, 0))
    soft = squares((0, 0)) | {"masks": squares((0, 0))["masks"][:, None] * 0.3 + 0.2}
    assert ap(soft, truth).ap == 1


@given(seeds)
def test_the_truth_has_ap_one_and_order_does_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    truth = squares(*(torch.randint(0, 30, (4, 2), generator=generator) * 1.0).tolist())
    truth["labels"] = torch.randint(1, 3, (4,), generator=generator)
    assert ap(truth, truth).ap == 1
    moved = truth | {"masks": truth["masks"].roll(3, dims=-1)}
    order = torch.randperm(4, generator=generator)
    shuffled = {key: value[order] for key, value in moved.items()}
    assert ap(shuffled, truth).ap == pytest.approx(ap(moved, truth).ap)


def test_nothing_found_is_zero_and_nothing_to_find_is_no_score():
    nothing, something = squares(), squares((0, 0))
    assert ap(nothing, something).ap == 0
    assert math.isnan(ap(something, nothing).ap)
    assert math.isnan(ap(nothing, nothing).ap)
    assert math.isnan(AveragePrecision(3).compute().ap50)


def test_ap_refuses_what_does_not_fit():
    metric, truth = AveragePrecision(3), squares((0, 0))
    for detections, message in (
        ({"labels": truth["labels"]}, r"predictions\[0\]: expected masks, scores; got labels"),
        (
            truth | {"labels": torch.tensor([3])},
            "expected labels in 1 .. 2; got 3 .. 3",
        ),
        (truth | {"labels": torch.tensor([0])}, "expected labels in 1 .. 2; got 0"),
        (truth | {"labels": torch.tensor([1.0])}, "expected int64 labels"),
        (truth | {"scores": torch.rand(2)}, "expected 1 scores, one for each label; got 2"),
        (truth | {"masks": torch.ones(1, 9, 9)}, "masks: expected as many pixels as in the truth"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update([detections], [truth])
    with pytest.raises(ValueError, match=r"predictions: expected one for each of the 1 targets"):
        metric.update([], [truth])
    with pytest.raises(ValueError, match="kind: expected 'masks' or 'boxes'; got 'mask'"):
        AveragePrecision(3, "mask")
    with pytest.raises(ValueError, match="num_classes: expected a whole number of at least 2"):
        AveragePrecision(1)
    assert math.isnan(metric.compute().ap)


@given(seeds)
def test_components_are_those_of_scipy(seed):
    mask = torch.randint(4, (2, 9, 7), generator=torch.Generator().manual_seed(seed))
    instances = connected_components(mask, THINGS)
    assert torch.equal(instances > 0, torch.isin(mask, torch.tensor(THINGS)))
    for image, found in zip(mask, instances, strict=True):
        assert set(found.unique().tolist()) | {0} == set(range(int(found.max()) + 1))
        pairs, total = set(), 0
        for thing in THINGS:
            expected, number = ndimage.label(image == thing, structure=[[1] * 3] * 3)
            pixels = zip(expected.flat, found.flatten().tolist(), strict=True)
            pairs |= {(thing, a, b) for a, b in pixels if a}
            total += number
        assert len(pairs) == total == found.max()


def test_a_long_winding_object_is_one_component():
    mask = torch.zeros(1, 41, 41, dtype=torch.int64)
    mask[:, ::2] = CAR
    mask[:, 1::4, -1] = mask[:, 3::4, 0] = CAR
    assert connected_components(mask, THINGS).max() == 1
    mask[:, 21] = GRASS
    assert connected_components(mask, THINGS).max() == 2


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("c1 c2\n g g", True),
        ("c1 g\n g c2", True),  # at a corner
        ("g c1\n c2 g", True),
        ("c1 b2\n g g", False),  # of two classes
        ("c1 g c2\n g g g", False),
        ("c1 c1\n g g", False),
        ("c1 g g\n g g c2", False),  # the row's end is no neighbour of the next row's begin
        ("g g c1\n c2 g g", False),
    ],
)
def test_touching(rows, expected):
    mask, instances = (values[None] for values in maps(rows))
    assert touching(mask, instances).tolist() == [expected]
    assert touching(mask.transpose(1, 2), instances.transpose(1, 2)).tolist() == [expected]


def test_what_touches_is_one_object_and_no_object_is_lost():
    mask, instances = maps(TRUTH)
    ((ids, segments),) = split_by_touch(mask[None], THINGS)
    assert len(segments) == 2
    assert torch.equal(segment_categories(ids, segments), mask)
    apart = panoptic_quality([(ids, segments)], [panoptic_segments(mask, instances)], 4, THINGS)
    assert apart.stuff.pq == 1 and apart.things.pq == 0  # IoU 4 / 8 with each


def test_small_objects_are_dropped_and_stuff_is_not():
    mask, instances = maps("""
    c1 c1 c1 g
    r  g  g  g
    b1 b1 g  g
    """)
    ((ids, segments),) = split_by_touch(mask[None], THINGS, least=3)
    assert [s["category_id"] for s in segments] == [GRASS, ROAD, CAR]
    assert (ids == 0).sum() == 2 and (segment_categories(ids, segments)[2, :2] == 255).all()


def test_void_stays_void_in_the_categories():
    mask, instances = maps(". c1\n g g")
    assert torch.equal(segment_categories(*panoptic_segments(mask, instances)), mask)


def test_a_batch_at_once_is_a_stream_of_one():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 2:, 1:] = True, True
    target = {"labels": torch.tensor([1, 2]), "masks": masks}
    prediction = target | {"scores": torch.tensor([0.9, 0.4]), "segments": ["not looked at"]}
    found = average_precision([prediction], [target], 3)
    metric = AveragePrecision(3)
    metric.update([prediction], [target])
    assert found.per_class == metric.compute().per_class == pytest.approx([1, 1])
