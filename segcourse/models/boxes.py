"""What detectors do with boxes: compare, code, suppress, pool features from them, paste masks.

Sources: R. Girshick, "Fast R-CNN", ICCV 2015 (how boxes are coded); S. Ren, K. He, R. Girshick,
J. Sun, "Faster R-CNN", NIPS 2015 (anchors); K. He, G. Gkioxari, P. Dollár, R. Girshick, "Mask
R-CNN", ICCV 2017 (RoIAlign); T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection",
CVPR 2017 (which level a box is pooled from).

A box is x1, y1, x2, y2 in pixels of the image. The top left corner of the image is 0, 0 and the
right and lower edges of a box are outside it, so that its width is x2 - x1. Boxes are floating
point [N, 4]. The conventions are those of torchvision, and so are the results.

Nothing here loops over boxes or pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_STEP = math.log(1000 / 16)  # of a decoded width or height: 62.5 times that of the anchor
BLOCK = 2**23  # feature vectors that RoIAlign adds up at a time, unless one box needs more


def box_area(boxes: Tensor) -> Tensor:
    """The areas [N] of boxes [N, 4]."""
    check_boxes("boxes", boxes)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each of `boxes` [N, 4] with each of `others` [M, 4]: [N, M].

    0 for two boxes without an area, where the fraction is 0 / 0.
    """
    check_boxes("boxes", boxes)
    check_boxes("others", others)
    top_left = torch.maximum(boxes[:, None, :2], others[:, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    intersection = width * height
    union = box_area(boxes)[:, None] + box_area(others) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """The parts of boxes [N, 4] that lie in an image; those outside keep no area."""
    check_boxes("boxes", boxes)
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def encode_boxes(
    boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)
) -> Tensor:
    """What a network shall answer at `anchors` [N, 4] to give `boxes` [N, 4]: deltas [N, 4].

    The shift of the centre in widths and heights of the anchor, and the logarithms of what the
    width and height grow by; each times its weight. All boxes and anchors must have an area.
    """
    x, y, width, height = _centre_and_size(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centre_and_size(anchors)
    deltas = [
        (x - anchor_x) / anchor_width,
        (y - anchor_y) / anchor_height,
        (width / anchor_width).log(),
        (height / anchor_height).log(),
    ]
    return torch.stack(deltas, dim=1) * boxes.new_tensor(weights)


def decode_boxes(
    deltas: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)
) -> Tensor:
    """The inverse of `encode_boxes`: deltas [N, 4] at anchors [N, 4] -> boxes [N, 4].

    No side grows by more than the factor exp(`LARGEST_STEP`), so that nothing overflows.
    """
    anchor_x, anchor_y, anchor_width, anchor_height = _centre_and_size(anchors)
    dx, dy, dw, dh = (deltas / deltas.new_tensor(weights)).unbind(1)
    x, y = dx * anchor_width + anchor_x, dy * anchor_height + anchor_y
    half_width = 0.5 * (dw.clamp(max=LARGEST_STEP).exp() * anchor_width)
    half_height = 0.5 * (dh.clamp(max=LARGEST_STEP).exp() * anchor_height)
    corners = [x - half_width, y - half_height, x + half_width, y + half_height]
    return torch.stack(corners, dim=1)


def match_boxes(
    boxes: Tensor, truth: Tensor, low: float, high: float, *, keep_best: bool = False
) -> Tensor:
    """Which of the true boxes [M, 4] each box [N, 4] is on: int64 [N].

    The one with the largest IoU if that is at least `high`; -1, background, if it is below `low`;
    -2, undecided, in between. With `keep_best` the boxes that have the largest IoU with some true
    box, however small, are decided too: they are on the one that they overlap most.
    """
    if not len(truth):
        return torch.full((len(boxes),), -1, device=boxes.device)
    iou = box_iou(truth, boxes)
    best, matched = iou.max(dim=0)
    decided = torch.where(best < low, -1, torch.where(best < high, -2, matched))
    if keep_best:
        is_best = (iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)
        decided = torch.where(is_best.any(dim=0), matched, decided)
    return decided


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: the indices of the boxes that stay, best score first, int64 [K].

    From the best score down, a box stays unless its IoU with one that stays is above the
    threshold. Of equal scores the first comes first.

    Start with all boxes and drop those that a box which is left suppresses, again and again from
    the whole list, until nothing changes. After round r at least the first r boxes are decided as
    the one-by-one procedure decides them, so that the end is the same; a few rounds are enough.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    # In float64, because a threshold like 0.3 is no float32 and an IoU can be equal to its
    # rounded value.
    suppresses = (box_iou(boxes, boxes).double() > iou_threshold).triu(diagonal=1)
    stays = torch.ones_like(order, dtype=torch.bool)
    while True:
        stayed, stays = stays, ~suppresses[stays].any(dim=0)
        if torch.equal(stays, stayed):
            return order[stays]


def nms_per_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """`nms` in which only boxes of equal label, int64 [N], suppress each other."""
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        (members,) = (labels == label).nonzero(as_tuple=True)
        kept[members[nms(boxes[members], scores[members], iou_threshold)]] = True
    (kept,) = kept.nonzero(as_tuple=True)
    return kept[scores[kept].argsort(descending=True, stable=True)]


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """The anchors of one place, centred on 0, 0: float32 [len(ratios) * len(sizes), 4].

    Each has the area size * size and the height ratio * width, and is rounded to whole pixels as
    in torchvision. All sizes of the first ratio come first.
    """
    size, root = torch.tensor(sizes).float(), torch.tensor(ratios).float().sqrt()
    width, height = (1 / root[:, None] * size).flatten(), (root[:, None] * size).flatten()
    return (torch.stack([-width, -height, width, height], dim=1) / 2).round()


def grid_anchors(cell: Tensor, places: tuple[int, int], image: tuple[int, int]) -> Tensor:
    """The anchors `cell` [A, 4] at every place of a feature map: [rows * columns * A, 4].

    `places` are the rows and columns of the map, `image` the height and width of the image. The
    places are as many whole pixels apart as fit, and the first one is at the image's corner 0, 0.
    """
    y, x = (
        torch.arange(number, device=cell.device) * (side // number)
        for number, side in zip(places, image, strict=True)
    )
    y, x = (grid.flatten() for grid in torch.meshgrid(y, x, indexing="ij"))
    return (torch.stack([x, y, x, y], dim=1)[:, None] + cell).view(-1, 4)


def roi_align(
    features: Tensor,
    boxes: Tensor,
    image: Tensor,
    output_size: tuple[int, int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign: the features in each box, resampled to one size: [K, C, *output_size].

    A box is cut into `output_size` bins, and each bin is the mean of samples on a regular grid in
    it. A sample is interpolated between the four nearest places of the map; nothing is rounded.
    Up to one place outside the map a sample is that of the map's edge; further out it is 0.

    Args:
        features: [B, C, H, W].
        boxes: [K, 4] in pixels of the image. They get no gradient.
        image: int64 [K], which of the B maps each box is of.
        output_size: rows and columns of bins.
        spatial_scale: size of the map over size of the image, 1 / stride.
        sampling_ratio: samples a bin along each side. 0: as many as the bin is wide or high in
            places of the map, rounded up.
        aligned: whether place i of the map is centred on i + 0.5, in units of places. False: on
            i, as in the first versions of the operator, and the sides of a box are at least 1.

    Every value is a weighted sum of feature vectors: (2 * samples) ** 2 for each bin. That is an
    embedding bag, which adds up the rows of a table without keeping what it adds.
    """
    check_rois(features, boxes, image)
    _, channels, height, width = features.shape
    if not len(boxes):
        return features.new_zeros(0, channels, *output_size)
    dtype = torch.promote_types(features.dtype, boxes.dtype)
    table = features.movedim(1, -1).reshape(-1, channels).to(dtype)
    x1, y1, x2, y2 = (boxes.detach() * spatial_scale - (0.5 if aligned else 0)).unbind(1)
    roi_width, roi_height = x2 - x1, y2 - y1
    if not aligned:
        roi_width, roi_height = roi_width.clamp(min=1), roi_height.clamp(min=1)
    y, share_y = _bin_samples(y1, roi_height, output_size[0], sampling_ratio, height)
    x, share_x = _bin_samples(x1, roi_width, output_size[1], sampling_ratio, width)

    y = image[:, None, None] * height + y
    bins, addends = output_size[0] * output_size[1], y.shape[2] * x.shape[2]
    block = max(1, BLOCK // (bins * addends))  # boxes at a time
    pooled = []
    for part in torch.arange(len(boxes), device=y.device).split(block):
        place = y[part, :, None, :, None] * width + x[part, None, :, None, :]
        share = share_y[part, :, None, :, None] * share_x[part, None, :, None, :]
        pooled.append(
            F.embedding_bag(
                place.view(-1, addends),
                table,
                per_sample_weights=share.view(-1, addends).to(dtype),
                mode="sum",
            )
        )
    pooled = torch.cat(pooled).view(len(boxes), *output_size, channels).movedim(-1, 1)
    return pooled.to(features.dtype)


def roi_pool(
    features: Tensor,
    boxes: Tensor,
    image: Tensor,
    output_size: tuple[int, int],
    *,
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoIPool, what RoIAlign replaced: the features in each box [K, C, *output_size], rounded.

    The corners of a box are rounded to places of the map, its right and lower edges included, and
    so are the edges of its bins, outwards. A bin is the largest value of its places, 0 if it has
    none. Arguments as in `roi_align`. R. Girshick, "Fast R-CNN", ICCV 2015.
    """
    check_rois(features, boxes, image)
    batch, channels, height, width = features.shape
    # Half a place is rounded away from 0, as in C.
    corners = boxes.detach() * spatial_scale
    corners = (corners.abs() + 0.5).floor() * corners.sign()
    x1, y1, x2, y2 = corners.unbind(1)
    y, inside_y = _bin_places(y1, (y2 - y1 + 1).clamp(min=1), output_size[0], height)
    x, inside_x = _bin_places(x1, (x2 - x1 + 1).clamp(min=1), output_size[1], width)
    y = image[:, None, None] * height + y
    place = y[:, :, None, :, None] * width + x[:, None, :, None, :]
    inside = inside_y[:, :, None, :, None] & inside_x[:, None, :, None, :]
    # The last row of the table stands for what is outside; a bag leaves it out.
    outside = batch * height * width
    table = features.movedim(1, -1).reshape(-1, channels)
    pooled = F.embedding_bag(
        torch.where(inside, place, outside).flatten(3).flatten(0, 2),
        torch.cat([table, table.new_zeros(1, channels)]),
        mode="max",
        padding_idx=outside,
    )
    return pooled.view(len(boxes), *output_size, channels).movedim(-1, 1)


def image_of(boxes: Sequence[Tensor]) -> Tensor:
    """The image of each box, int64 [K], of boxes [N, 4] for image 0, 1, ... ."""
    numbers = torch.arange(len(boxes), device=boxes[0].device)
    return numbers.repeat_interleave(torch.tensor([len(b) for b in boxes], device=numbers.device))


def pyramid_levels(
    boxes: Tensor, lowest: int, highest: int, *, canonical_size: float = 224
) -> Tensor:
    """The level of the pyramid that each box [N, 4] is pooled from: int64 [N].

    Level k has stride 2 ** k. A box with the area of a square of `canonical_size` pixels goes to
    level 4, one with half as long sides to level 3; `lowest` and `highest` bound the answer.
    Equation 1 of the paper on pyramids.
    """
    level = 4 + (box_area(boxes).sqrt() / canonical_size).log2()
    # A box of exactly a power of two shall not fall a level because of a rounded logarithm.
    return (level + 1e-6).floor().clamp(lowest, highest).long()


def pyramid_roi_align(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    image: Tensor,
    output_size: tuple[int, int],
    *,
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224,
) -> Tensor:
    """`roi_align` of boxes [K, 4] from the level of `pyramid_levels`: [K, C, *output_size].

    `maps` [B, C, ., .] have the strides 2 ** k, 2 ** (k + 1), ... of `strides`; the rest as in
    `roi_align`.
    """
    lowest = int(math.log2(strides[0]))
    highest = lowest + len(strides) - 1
    levels = pyramid_levels(boxes, lowest, highest, canonical_size=canonical_size) - lowest
    pooled = maps[0].new_zeros(len(boxes), maps[0].shape[1], *output_size)
    for i, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        (here,) = (levels == i).nonzero(as_tuple=True)
        part = roi_align(
            features,
            boxes[here],
            image[here],
            output_size,
            spatial_scale=1 / stride,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        pooled = pooled.index_copy(0, here, part)
    return pooled


def paste_masks(
    masks: Tensor, boxes: Tensor, height: int, width: int, *, aligned: bool = False
) -> Tensor:
    """Masks [N, M, M], each the content of its box [N, 4], in an image: [N, height, width].

    A mask is interpolated between the centres of its bins, and fades out to 0 over its outermost
    half bin and as much beyond it.

    aligned: whether the bins lie exactly where the box is. False: as in torchvision, the mask is
    framed by zeros, its box enlarged to match, and the corners of that cut to whole pixels
    (towards 0), the last one included. The difference is up to a pixel on each side.

    Rows and columns are interpolated separately: two matrix products for each mask.
    """
    check_boxes("boxes", boxes)
    if masks.ndim != 3 or len(masks) != len(boxes):
        raise ValueError(f"masks: expected [{len(boxes)}, M, M]; got {list(masks.shape)}")
    start, end = boxes[:, :2], boxes[:, 2:]
    if not aligned:
        centre, half_size = (start + end) * 0.5, (end - start) * 0.5
        half_size = half_size * ((masks.shape[-1] + 2) / masks.shape[-1])
        start, end = (centre - half_size).trunc(), (centre + half_size).trunc() + 1
        masks = F.pad(masks, (1, 1, 1, 1))
    columns, rows = (
        _pixel_weights(start[:, i], end[:, i], pixels, masks.shape[-1])
        for i, pixels in enumerate((width, height))
    )
    return rows @ masks @ columns.transpose(1, 2)


def check_boxes(name: str, boxes: Tensor) -> None:
    """Raise TypeError or ValueError unless `boxes` is a floating-point tensor [N, 4]."""
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{name}: expected a tensor; got {type(boxes).__name__}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(
            f"{name}: expected a floating-point [N, 4]; got {boxes.dtype} {list(boxes.shape)}"
        )


def check_rois(features: Tensor, boxes: Tensor, image: Tensor) -> None:
    """Raise TypeError or ValueError unless `image` has the number of a map for each box [K, 4]."""
    check_boxes("boxes", boxes)
    if image.shape != boxes.shape[:1] or image.dtype != torch.int64:
        raise ValueError(
            f"image: expected int64 [{len(boxes)}], one for each box; "
            f"got {image.dtype} {list(image.shape)}"
        )
    if image.numel() and not 0 <= int(image.min()) <= int(image.max()) < len(features):
        raise ValueError(
            f"image: expected 0 .. {len(features) - 1}; "
            f"got {int(image.min())} .. {int(image.max())}"
        )


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y of the centres, widths and heights, [N] each."""
    check_boxes("boxes", boxes)
    x1, y1, x2, y2 = boxes.unbind(1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def _bin_samples(
    start: Tensor, length: Tensor, bins: int, sampling_ratio: int, side: int
) -> tuple[Tensor, Tensor]:
    """Along one side of K boxes: places of the map, int64 [K, bins, 2 S], and their shares.

    S samples a bin, each between two places. A bin is the sum of what is at its places, each
    times its share.
    """
    bin_length = (length / bins)[:, None, None]
    samples = bin_length.ceil().clamp(min=0)
    if sampling_ratio > 0:
        samples = torch.full_like(samples, sampling_ratio)
    sample = torch.arange(max(1, int(samples.max())), device=start.device)
    first = start[:, None, None] + torch.arange(bins, device=start.device)[:, None] * bin_length
    position = first + (sample + 0.5) * bin_length / samples.clamp(min=1)
    counts = (sample < samples) & (position >= -1) & (position <= side)
    position = position.clamp(0, side - 1)
    before = position.floor()
    beyond = position - before
    share = torch.cat([1 - beyond, beyond], dim=2) * counts.repeat(1, 1, 2)
    places = torch.cat([before, (before + 1).clamp(max=side - 1)], dim=2).long()
    return places, share / samples.clamp(min=1)


def _bin_places(start: Tensor, length: Tensor, bins: int, side: int) -> tuple[Tensor, Tensor]:
    """Along one side of K boxes: places of the map, int64 [K, bins, S], and which ones count."""
    edge = torch.arange(bins, device=start.device)
    bin_length = (length / bins)[:, None]
    first = (edge * bin_length).floor() + start[:, None]
    last = ((edge + 1) * bin_length).ceil() + start[:, None]
    first, last = first.clamp(0, side), last.clamp(0, side)
    longest = max(1, int((last - first).max())) if len(start) else 1
    places = first[..., None] + torch.arange(longest, device=start.device)
    return places.clamp(max=side - 1).long(), places < last[..., None]


def _pixel_weights(start: Tensor, end: Tensor, pixels: int, bins: int) -> Tensor:
    """What each pixel of a row takes from bins between `start` and `end`: [N, pixels, bins]."""
    bin_length = ((end - start) / bins).clamp(min=1e-6)[:, None, None]
    pixel = torch.arange(pixels, device=start.device)[:, None] + 0.5
    bin_ = torch.arange(bins, device=start.device) + 0.5
    distance = (pixel - start[:, None, None]) / bin_length - bin_
    return (1 - distance.abs()).clamp(min=0)
