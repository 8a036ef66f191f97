"""NMS, RoIAlign and RoIPool: torchvision's compiled operators, and slow loops.

The answers of torchvision 0.27.1 are recorded in data/boxes.npz (see record.py), because its
operators do not load beside every build of torch. Where they load, they answer here as well;
where they do not, what the tests of whole models have in their place is held to these answers.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops.poolers import LevelMapper
from torchvision_shim import COMPILED, operators

from segcourse.models.boxes import (
    box_area,
    box_iou,
    cell_anchors,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    grid_anchors,
    nms,
    paste_masks,
    pyramid_levels,
    roi_align,
    roi_pool,
)

CASES = 200
RECORDED = Path(__file__).parent / "data" / "boxes.npz"


def nms_case(seed):
    """Boxes, scores and a threshold, with equal scores, and IoUs that are equal to the threshold.

    Corners lie on a coarse grid in every other case, so that boxes repeat or have no area.
    """
    rng = np.random.RandomState(seed)
    n = rng.randint(0, 41)
    corner, size = rng.uniform(0, 12, (n, 2)), rng.uniform(0, 12, (n, 2))
    scores = rng.uniform(size=n)
    if seed % 2:
        corner, size, scores = corner.round(), size.round(), scores.round(1)
    threshold = rng.choice([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    return boxes, scores.astype(np.float32), float(threshold)


def roi_case(seed):
    """Features, boxes, the image of each and the options; boxes stick out of the image.

    Some have no area, and some end before they begin.
    """
    rng = np.random.RandomState(1000 + seed)
    shape = [rng.randint(low, high) for low, high in ((1, 3), (1, 4), (2, 13), (2, 13))]
    features = rng.normal(size=shape).astype(np.float32)
    k = rng.randint(0, 5)
    scale = float(rng.choice([0.25, 0.37, 0.5, 1.0]))
    side = np.array([shape[3], shape[2]]) / scale
    corner = rng.uniform(-0.6, 1.2, (k, 2)) * side
    size = rng.uniform(-0.1, 1.2, (k, 2)) * side
    size[rng.uniform(size=k) < 0.1] = 0
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    if seed % 2:
        boxes = boxes.round()  # samples on the very edge of what counts
    options = {
        "output_size": (int(rng.randint(1, 5)), int(rng.randint(1, 5))),
        "spatial_scale": scale,
        "sampling_ratio": int(rng.randint(0, 4)),
        "aligned": bool(rng.randint(2)),
    }
    return features, boxes, rng.randint(0, shape[0], k), options


def ours_nms(boxes, scores, threshold):
    return nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()


def ours_roi(features, boxes, image, options):
    tensors = (torch.from_numpy(array) for array in (features, boxes, image))
    return roi_align(*tensors, **options).numpy()


def torchvision_nms(boxes, scores, threshold):
    return operators().nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()


def torchvision_roi(features, boxes, image, options):
    rois = np.concatenate([image[:, None].astype(np.float32), boxes], axis=1)
    return (
        operators()
        .roi_align(
            torch.from_numpy(features),
            torch.from_numpy(rois),
            options["spatial_scale"],
            *options["output_size"],
            options["sampling_ratio"],
            options["aligned"],
        )
        .numpy()
    )


def ours_pool(features, boxes, image, options):
    options = {key: options[key] for key in ("output_size", "spatial_scale")}
    tensors = (torch.from_numpy(array) for array in (features, boxes, image))
    return roi_pool(*tensors, **options).numpy()


def torchvision_pool(features, boxes, image, options):
    rois = np.concatenate([image[:, None].astype(np.float32), boxes], axis=1)
    size, scale = options["output_size"], options["spatial_scale"]
    return ops.roi_pool(torch.from_numpy(features), torch.from_numpy(rois), size, scale).numpy()


def slow_nms(boxes, scores, threshold, *, best_first=lambda i, score: (-score, i), equal=False):
    """One box after the other, each beside those that stay. `equal`: an equal IoU suppresses."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: best_first(i, scores[i])):
        for j in kept:
            x1, y1 = np.maximum(boxes[i, :2], boxes[j, :2])
            x2, y2 = np.minimum(boxes[i, 2:], boxes[j, 2:])
            both = max(np.float32(0), x2 - x1) * max(np.float32(0), y2 - y1)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[j], boxes[i])]
            union = areas[0] + areas[1] - both
            iou = float(both / union) if union > 0 else 0.0
            if iou > threshold or (equal and iou == threshold):
                break
        else:
            kept.append(i)
    return np.array(kept, dtype=np.int64)


def sample(plane, y, x, outside):
    """The value of a map [H, W] between its places."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        if outside == "zero":
            return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = plane[top, left] * (1 - across) + plane[top, right] * across
    lower = plane[bottom, left] * (1 - across) + plane[bottom, right] * across
    return upper * (1 - down) + lower * down


def slow_roi(features, boxes, image, options, *, outside="zero", half=0.5, least=1.0):
    """One box, one bin and one sample after the other, in float64.

    What a plausible mistake would change is an argument: samples outside the map, the shift of
    the aligned operator, the least side of the other.
    """
    rows, columns = options["output_size"]
    pooled = np.zeros((len(boxes), features.shape[1], rows, columns))
    for k, box in enumerate(boxes.astype(np.float64)):
        box = box * options["spatial_scale"] - (half if options["aligned"] else 0)
        size = np.array([box[3] - box[1], box[2] - box[0]])
        if not options["aligned"]:
            size = np.maximum(size, least)
        bins = size / (rows, columns)
        grid = np.full(2, options["sampling_ratio"])
        if options["sampling_ratio"] == 0:
            grid = np.maximum(np.ceil(bins), 0).astype(int)
        for c, plane in enumerate(features[image[k]].astype(np.float64)):
            for i in range(rows):
                for j in range(columns):
                    values = [
                        sample(
                            plane,
                            box[1] + bins[0] * (i + (u + 0.5) / grid[0]),
                            box[0] + bins[1] * (j + (v + 0.5) / grid[1]),
                            outside,
                        )
                        for u in range(grid[0])
                        for v in range(grid[1])
                    ]
                    pooled[k, c, i, j] = sum(values) / max(len(values), 1)
    return pooled


def slow_pool(features, boxes, image, options, *, last=1, outwards=np.ceil):
    """RoIPool, one bin after the other, in float32.

    `last` is 1 if the right and lower edges are in the box; `outwards` rounds those of the bins.
    """
    size, scale = np.float32(options["output_size"]), np.float32(options["spatial_scale"])
    pooled = np.zeros((len(boxes), features.shape[1], *options["output_size"]))
    for k, box in enumerate(boxes):
        x1, y1, x2, y2 = np.sign(box) * np.floor(np.abs(box * scale) + np.float32(0.5))
        start = np.array([y1, x1])
        step = np.float32([max(y2 - y1 + last, 1), max(x2 - x1 + last, 1)]) / size
        for i, j in np.ndindex(options["output_size"]):
            bin_ = np.float32([i, j])
            corners = np.floor(bin_ * step) + start, outwards((bin_ + 1) * step) + start
            top, left, bottom, right = np.clip(corners, 0, features.shape[2:]).astype(int).flat
            values = features[image[k], :, top:bottom, left:right]
            if values.size:
                pooled[k][:, i, j] = values.max(axis=(1, 2))
    return pooled


def recorded(name):
    """The answers of all cases, one array each, from one flat array and the sizes."""
    with np.load(RECORDED) as data:
        return np.split(data[name], data[f"{name}_sizes"].cumsum()[:-1])


NMS_ORACLES = {
    "recorded": lambda: recorded("nms"),
    "slow": lambda: [slow_nms(*nms_case(seed)) for seed in range(CASES)],
}
ROI_ORACLES = {
    "recorded": lambda: recorded("roi"),
    "slow": lambda: [slow_roi(*roi_case(seed)).ravel() for seed in range(CASES)],
}
POOL_ORACLES = {
    "recorded": lambda: recorded("pool"),
    "slow": lambda: [slow_pool(*roi_case(seed)).ravel() for seed in range(CASES)],
}
if COMPILED:
    NMS_ORACLES["compiled"] = lambda: [torchvision_nms(*nms_case(seed)) for seed in range(CASES)]
    ROI_ORACLES["compiled"] = lambda: [
        torchvision_roi(*roi_case(seed)).ravel() for seed in range(CASES)
    ]
    POOL_ORACLES["compiled"] = lambda: [
        torchvision_pool(*roi_case(seed)).ravel() for seed in range(CASES)
    ]


@pytest.mark.parametrize("oracle", NMS_ORACLES)
def test_nms_keeps_the_same_boxes_in_the_same_order(oracle):
    expected = NMS_ORACLES[oracle]()
    assert len(expected) == CASES
    for seed in range(CASES):
        assert ours_nms(*nms_case(seed)).tolist() == expected[seed].tolist(), seed
    assert sum(map(len, expected)) > 1000


@pytest.mark.parametrize("oracle", ROI_ORACLES)
def test_roi_align_pools_the_same_values(oracle):
    expected = ROI_ORACLES[oracle]()
    assert len(expected) == CASES
    for seed in range(CASES):
        found = ours_roi(*roi_case(seed)).ravel()
        np.testing.assert_allclose(found, expected[seed], rtol=0, atol=1e-5, err_msg=str(seed))
    assert sum(map(np.count_nonzero, expected)) > 1000


@pytest.mark.parametrize("oracle", POOL_ORACLES)
def test_roi_pool_takes_the_same_values(oracle):
    expected = POOL_ORACLES[oracle]()
    assert len(expected) == CASES
    for seed in range(CASES):
        assert ours_pool(*roi_case(seed)).ravel().tolist() == expected[seed].tolist(), seed
    assert sum(map(np.count_nonzero, expected)) > 1000


@pytest.mark.parametrize("mistake", [{"last": 0}, {"outwards": np.floor}])
def test_the_cases_tell_a_wrong_roi_pool(mistake):
    expected = recorded("pool")
    wrong = [slow_pool(*roi_case(seed), **mistake).ravel() for seed in range(CASES)]
    assert sum(map(np.array_equal, wrong, expected)) < CASES - 5


@pytest.mark.parametrize(
    "mistake",
    [
        {"equal": True},
        {"best_first": lambda i, score: (-score, -i)},
        {"best_first": lambda i, score: i},
    ],
)
def test_the_cases_tell_a_wrong_nms(mistake):
    expected = recorded("nms")
    wrong = [slow_nms(*nms_case(seed), **mistake) for seed in range(CASES)]
    assert sum(map(np.array_equal, wrong, expected)) < CASES - 5


@pytest.mark.parametrize("mistake", [{"outside": "edge"}, {"half": 0.0}, {"least": 0.0}])
def test_the_cases_tell_a_wrong_roi_align(mistake):
    expected = recorded("roi")
    wrong = [slow_roi(*roi_case(seed), **mistake).ravel() for seed in range(CASES)]
    right = [np.allclose(a, b, rtol=0, atol=1e-3) for a, b in zip(wrong, expected, strict=True)]
    assert sum(right) < CASES - 5


def test_the_operators_of_the_tests_answer_as_recorded():
    for seed, (kept, pooled) in enumerate(zip(recorded("nms"), recorded("roi"), strict=True)):
        assert torchvision_nms(*nms_case(seed)).tolist() == kept.tolist()
        found = torchvision_roi(*roi_case(seed)).ravel()
        np.testing.assert_allclose(found, pooled, rtol=0, atol=1e-5, err_msg=str(seed))


def boxes_of(seed, n, *, side=60, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, n, 2, generator=generator, dtype=dtype) * side
    return torch.cat([corner - side / 6, corner + size + 0.01], dim=1)


def equal(ours, theirs):
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_iou_area_and_clipping_are_torchvisions():
    boxes, others = boxes_of(0, 30), boxes_of(1, 20)
    equal(box_area(boxes), ops.box_area(boxes))
    equal(box_iou(boxes, others), ops.box_iou(boxes, others))
    equal(clip_boxes(boxes, 40, 50), ops.clip_boxes_to_image(boxes, (40, 50)))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_the_coding_of_boxes_is_torchvisions(weights):
    boxes, anchors, coder = boxes_of(2, 30), boxes_of(3, 30), BoxCoder(weights)
    deltas = encode_boxes(boxes, anchors, weights)
    equal(deltas, coder.encode_single(boxes, anchors))
    deltas = 10 * deltas  # some too large to decode without a limit
    equal(decode_boxes(deltas, anchors, weights), coder.decode_single(deltas, anchors))


def test_the_anchors_are_torchvisions():
    sizes, ratios = ((32, 48), (64, 90)), (0.5, 1.0, 2.0)
    generator = AnchorGenerator(sizes, (ratios,) * 2)
    images = ImageList(torch.zeros(1, 3, 96, 64), [(96, 64)])
    # The second map is the coarsest of a pyramid: 96 / 64 places, rounded up.
    (theirs,) = generator(images, [torch.zeros(1, 1, 24, 16), torch.zeros(1, 1, 2, 1)])
    cells = [cell_anchors(size, ratios) for size in sizes]
    ours = [grid_anchors(cells[0], (24, 16), (96, 64)), grid_anchors(cells[1], (2, 1), (96, 64))]
    equal(torch.cat(ours), theirs)


def test_the_levels_of_boxes_are_torchvisions():
    special = torch.tensor([[0.0, 0, 112, 112], [0, 0, 111.99996, 111.99996], [9, 9, 9, 20]])
    boxes = torch.cat([boxes_of(4, 300, side=500, dtype=torch.float32), special])
    theirs = LevelMapper(2, 5)([boxes]) + 2
    assert torch.equal(pyramid_levels(boxes, 2, 5), theirs)
    assert set(theirs.tolist()) == {2, 3, 4, 5}


@pytest.mark.parametrize("side", (14, 28))
def test_pasted_masks_are_torchvisions(side):
    boxes = boxes_of(5, 40)
    boxes[:, :2].clamp_(max=40)  # torchvision refuses boxes that lie outside
    boxes[1, 2:] = boxes[1, :2]  # no area
    masks = torch.rand(40, side, side, generator=torch.Generator().manual_seed(6)).double()
    theirs = paste_masks_in_image(masks[:, None], boxes, (45, 53))[:, 0]
    equal(paste_masks(masks, boxes, 45, 53), theirs)
