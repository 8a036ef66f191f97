"""What holds for any boxes, and what is refused. The parity tests compare with torchvision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segcourse.models.boxes import (
    box_iou,
    cell_anchors,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    grid_anchors,
    nms,
    nms_per_class,
    paste_masks,
    pyramid_levels,
    pyramid_roi_align,
    roi_align,
)

seeds = st.integers(0, 2**31)


def random_boxes(seed, n, side=32.0):
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, n, 2, generator=generator, dtype=torch.float64) * side / 2
    return torch.cat([corner, corner + size + 0.5], dim=1)


def random_maps(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_iou_worked_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 2], [2, 0, 6, 2], [4, 0, 6, 2], [1, 1, 1, 1]])
    expected = torch.tensor([
        [1, 4 / 12, 0, 0],
        [4 / 12, 1, 4 / 8, 0],
        [0, 4 / 8, 1, 0],
        [0, 0, 0, 0],
    ])  # fmt: skip
    torch.testing.assert_close(box_iou(boxes, boxes), expected)


@given(seeds)
def test_decoding_undoes_encoding(seed):
    boxes, anchors = random_boxes(seed, 9), random_boxes(seed + 1, 9)
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = encode_boxes(boxes, anchors, weights)
    torch.testing.assert_close(decode_boxes(deltas, anchors, weights), boxes)
    same = encode_boxes(anchors, anchors, weights)
    torch.testing.assert_close(same, torch.zeros_like(same))


def test_decoding_never_overflows():
    huge = torch.full((1, 4), 1e4)
    box = decode_boxes(huge, torch.tensor([[0.0, 0, 16, 16]]))
    torch.testing.assert_close(box[:, 2:] - box[:, :2], torch.tensor([[1000.0, 1000.0]]))


@given(seeds, st.floats(0.1, 0.9))
def test_nms_keeps_a_set_that_no_box_can_join(seed, threshold):
    boxes = random_boxes(seed, 30)
    scores = random_maps(seed + 1, 30)
    kept = nms(boxes, scores, threshold)
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
    iou = box_iou(boxes, boxes)
    assert (iou[kept][:, kept].fill_diagonal_(0) <= threshold).all()
    for i in set(range(30)) - set(kept.tolist()):
        better = kept[scores[kept] > scores[i]]
        assert (iou[i, better] > threshold).any()


def test_nms_follows_a_long_chain():
    """Each box suppresses the next: of the boxes in turn, every other one stays."""
    start = torch.arange(50.0)
    boxes = torch.stack([start, 0 * start, start + 2, 0 * start + 1], dim=1)
    assert nms(boxes, -start, 0.3).tolist() == list(range(0, 50, 2))


@given(seeds)
def test_nms_per_class_is_nms_of_each_class(seed):
    boxes, scores = random_boxes(seed, 40), random_maps(seed + 1, 40)
    labels = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(seed))
    kept = nms_per_class(boxes, scores, labels, 0.3)
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
    for label in range(3):
        (members,) = (labels == label).nonzero(as_tuple=True)
        alone = members[nms(boxes[members], scores[members], 0.3)]
        assert kept[labels[kept] == label].tolist() == alone.tolist()


def test_nothing_is_left_of_nothing():
    boxes, image = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert box_iou(boxes, random_boxes(0, 3).float()).shape == (0, 3)
    assert nms(boxes, torch.zeros(0), 0.5).shape == (0,)
    assert nms_per_class(boxes, torch.zeros(0), image, 0.5).shape == (0,)
    assert roi_align(torch.rand(2, 3, 8, 8), boxes, image, (7, 5)).shape == (0, 3, 7, 5)
    maps = [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4)]
    assert pyramid_roi_align(maps, (4, 8), boxes, image, (7, 7)).shape == (0, 3, 7, 7)
    assert paste_masks(torch.zeros(0, 28, 28), boxes, 9, 8).shape == (0, 9, 8)


def test_clipping_leaves_the_part_in_the_image():
    boxes = torch.tensor([[-3.0, 2, 5, 9], [1, 1, 2, 2], [20, 20, 30, 30]])
    expected = torch.tensor([[0.0, 2, 5, 6], [1, 1, 2, 2], [8, 6, 8, 6]])
    assert torch.equal(clip_boxes(boxes, height=6, width=8), expected)


def test_anchors_lie_round_every_place_of_the_map():
    cell = cell_anchors((8, 16), (0.5, 1.0, 2.0))
    assert cell.shape == (6, 4) and torch.equal(cell[:, :2], -cell[:, 2:])
    anchors = grid_anchors(cell, places=(2, 3), image=(16, 24)).view(2, 3, 6, 4)
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    assert torch.equal(centre[1, 2], torch.tensor([[16.0, 8.0]]).expand(6, 2))
    assert torch.equal(anchors[1, 2] - anchors[0, 0], torch.tensor([16.0, 8, 16, 8]).expand(6, 4))
    heights, widths = cell[:, 3] - cell[:, 1], cell[:, 2] - cell[:, 0]
    assert (heights[4:] > widths[4:]).all() and (heights[:2] < widths[:2]).all()


@given(seeds, st.integers(1, 3), st.booleans())
def test_roi_align_of_a_plane_is_its_value_at_the_middle_of_each_bin(seed, samples, aligned):
    """Bilinear interpolation is exact on a plane, and so is the mean of a regular grid."""
    a, b, c = random_maps(seed, 3)
    y, x = torch.meshgrid(torch.arange(40.0).double(), torch.arange(40.0).double(), indexing="ij")
    plane = (a * x + b * y + c)[None, None]
    boxes = random_boxes(seed, 5) + 3
    boxes[:, 2:] += 1
    image = torch.zeros(5, dtype=torch.int64)
    options = {"sampling_ratio": samples, "aligned": aligned}
    found = roi_align(plane, boxes, image, (2, 3), **options)[:, 0]
    size = boxes[:, 2:] - boxes[:, :2]
    for i in range(2):
        for j in range(3):
            middle = boxes[:, :2] + size * size.new_tensor([(j + 0.5) / 3, (i + 0.5) / 2])
            middle -= 0.5 if aligned else 0
            torch.testing.assert_close(found[:, i, j], middle @ torch.stack([a, b]) + c)


def test_roi_align_follows_a_shift_of_half_a_pixel():
    """What rounding would lose: half a step of the box is half a step of what it sees."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    boxes = torch.tensor([[4.0, 4, 8, 8], [4.5, 4, 8.5, 8]])
    first, second = roi_align(ramp, boxes, torch.zeros(2, dtype=torch.int64), (2, 2))
    torch.testing.assert_close(second - first, torch.full((1, 2, 2), 0.5))


@pytest.mark.parametrize("aligned", (True, False))
@pytest.mark.parametrize("sampling_ratio", (0, 2))
def test_the_gradient_of_roi_align_reaches_features_and_not_boxes(aligned, sampling_ratio):
    features = random_maps(0, 2, 2, 5, 6).requires_grad_()
    boxes = (random_boxes(1, 4, side=6) - 1).requires_grad_()
    image = torch.tensor([0, 1, 1, 0])

    def pool(features):
        return roi_align(
            features, boxes, image, (2, 3), sampling_ratio=sampling_ratio, aligned=aligned
        )

    assert torch.autograd.gradcheck(pool, (features,))
    pool(features).sum().backward()
    assert boxes.grad is None and features.grad.abs().max() > 0


def test_roi_align_pools_each_box_from_its_own_image():
    features = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    boxes = torch.tensor([[1.0, 1, 5, 5]]).expand(4, 4)
    image = torch.tensor([2, 0, 1, 2])
    pooled = roi_align(features, boxes, image, (2, 2))
    assert torch.equal(pooled[:, 0, 0, 0], image.float())


def test_roi_align_runs_in_half_precision():
    features, boxes = random_maps(0, 1, 2, 8, 8), random_boxes(1, 3, side=8)
    image = torch.zeros(3, dtype=torch.int64)
    half = roi_align(features.bfloat16(), boxes.float(), image, (2, 2))
    assert half.dtype == torch.bfloat16
    exact = roi_align(features, boxes, image, (2, 2))
    torch.testing.assert_close(half.double(), exact, rtol=0.02, atol=0.02)


def test_large_boxes_are_pooled_block_by_block(monkeypatch):
    features, boxes = random_maps(0, 1, 2, 16, 16), random_boxes(1, 5, side=16)
    image = torch.zeros(5, dtype=torch.int64)
    at_once = roi_align(features, boxes, image, (3, 2))
    monkeypatch.setattr("segcourse.models.boxes.BLOCK", 1)
    torch.testing.assert_close(roi_align(features, boxes, image, (3, 2)), at_once)


def test_a_large_box_is_pooled_from_a_coarse_level():
    sides = torch.tensor([10.0, 28, 55, 56, 112, 224, 500])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    assert pyramid_levels(boxes, 1, 4).tolist() == [1, 1, 1, 2, 3, 4, 4]
    assert pyramid_levels(boxes, 1, 4, canonical_size=112).tolist() == [1, 2, 2, 3, 4, 4, 4]
    maps = [torch.full((1, 1, 512 // s, 512 // s), float(s)) for s in (4, 8, 16)]
    image = torch.zeros(7, dtype=torch.int64)
    pooled = pyramid_roi_align(maps, (4, 8, 16), boxes, image, (1, 1))
    assert pooled.flatten().tolist() == [4, 4, 4, 4, 8, 16, 16]


@given(seeds)
def test_a_full_mask_is_pasted_as_its_box(seed):
    """1 inside the box, 0 a bin of the mask outside it, in between at its edge."""
    boxes = random_boxes(seed, 6, side=30) * 2 - 8
    boxes[:, 2:] += 8
    pasted = paste_masks(torch.ones(6, 14, 14, dtype=torch.float64), boxes, 48, 50)
    assert pasted.shape == (6, 48, 50) and 0 <= pasted.min() and pasted.max() <= 1 + 1e-9
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, -x, -y], dim=-1)
    limits = torch.cat([boxes[:, :2], -boxes[:, 2:]], dim=1)[:, None, None]
    margin = (pixels - limits).amin(dim=-1)  # how far inside a pixel lies
    reach = 1.5 + (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)[:, None, None] / 14
    torch.testing.assert_close(pasted[margin > reach], torch.ones_like(pasted[margin > reach]))
    assert pasted[margin < -reach].eq(0).all()


def disc(x, y, radius, side=40):
    """The mask of a disc, and the box round it."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    mask = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2
    (i,), (j,) = (mask.any(dim=d).nonzero(as_tuple=True) for d in (1, 0))
    return mask, torch.tensor([j[0], i[0], j[-1] + 1, i[-1] + 1]).double()


@given(st.floats(8, 30), st.floats(8, 30), st.floats(1.5, 8))
def test_a_mask_that_is_pooled_and_pasted_aligned_is_the_same_mask(x, y, radius):
    mask, box = disc(x, y, radius)
    pooled = roi_align(
        mask[None, None].double(), box[None], torch.tensor([0]), (28, 28), aligned=True
    )
    pasted = paste_masks(pooled[0], box[None], 40, 40, aligned=True)[0]
    assert torch.equal(pasted > 0.5, mask)


def test_what_is_not_aligned_moves_a_small_mask():
    """Pooled and pasted as in torchvision, a thin object has an IoU of 0.65 with itself."""
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[5:30, 20:22] = True
    box = torch.tensor([[20.0, 5, 22, 30]])
    ious = []
    for aligned in (True, False):
        pooled = roi_align(
            mask[None, None].float(), box, torch.tensor([0]), (28, 28), aligned=aligned
        )
        pasted = paste_masks(pooled[0], box, 40, 40, aligned=aligned)[0] > 0.5
        ious.append(((pasted & mask).sum() / (pasted | mask).sum()).item())
    assert ious == pytest.approx([1, 0.653], abs=0.001)


def test_a_mask_outside_the_image_is_not_seen():
    boxes = torch.tensor([[-30.0, 5, -20, 9], [5, 100, 9, 120]])
    for aligned in (True, False):
        assert paste_masks(torch.ones(2, 28, 28), boxes, 40, 40, aligned=aligned).eq(0).all()


def test_a_mask_of_a_box_without_area_is_finite():
    boxes = torch.tensor([[5.5, 5.5, 5.5, 9], [7, 7, 7, 7]])
    for aligned in (True, False):
        pasted = paste_masks(torch.ones(2, 14, 14), boxes, 20, 20, aligned=aligned)
        assert pasted.isfinite().all() and pasted.max() <= 1


def test_what_is_no_box_is_refused():
    boxes, image = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="boxes: expected a tensor; got list"):
        box_iou([[0, 0, 1, 1]], boxes)
    with pytest.raises(ValueError, match=r"others: expected a floating-point \[N, 4\]; got"):
        box_iou(boxes, torch.rand(2, 5))
    with pytest.raises(ValueError, match="boxes: .* got torch.int64"):
        clip_boxes(torch.zeros(2, 4, dtype=torch.int64), 9, 9)
    with pytest.raises(ValueError, match=r"image: expected int64 \[2\], one for each box; got"):
        roi_align(torch.rand(1, 1, 8, 8), boxes, image[:1], (2, 2))
    with pytest.raises(ValueError, match="image: expected 0 .. 0; got 0 .. 1"):
        roi_align(torch.rand(1, 1, 8, 8), boxes, torch.tensor([0, 1]), (2, 2))
    with pytest.raises(ValueError, match=r"masks: expected \[2, M, M\]; got \[1, 14, 14\]"):
        paste_masks(torch.rand(1, 14, 14), boxes, 9, 9)
