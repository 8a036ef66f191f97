"""Lets the tests import torchvision where its compiled operators do not load.

The wheel of torchvision is compiled against one build of torch. Beside another build, such as the
small one for CPUs, `import torchvision` fails, and with it all that imports it (torchmetrics,
segmentation-models-pytorch, kornia). Its Python code runs as soon as the operators that it
annotates exist by name; they stay without code, and calling one fails, until a test asks for
`operators`. `COMPILED` says whether the operators are torchvision's own.
"""

import functools
import importlib.util
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

COMPILED, OPERATORS = False, None
torchvision = importlib.util.find_spec("torchvision")
if torchvision is not None:
    try:
        torch.ops.load_library(next(Path(torchvision.origin).parent.glob("_C.*")))
        COMPILED = True
    except OSError:
        OPERATORS = torch.library.Library("torchvision", "DEF")
        OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        OPERATORS.define(
            "roi_align(Tensor input, Tensor rois, float scale, int rows, int columns, "
            "int sampling_ratio, bool aligned) -> Tensor"
        )


def nms(boxes, scores, iou_threshold):
    """The best box that is left stays, and what overlaps it leaves, until none is left."""
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        top_left = boxes[left, :2].maximum(boxes[best, :2])
        bottom_right = boxes[left, 2:].minimum(boxes[best, 2:])
        both = (bottom_right - top_left).clamp(min=0).prod(dim=1)
        area, areas = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes[best], boxes[left]))
        left = left[~((both / (area + areas - both)).double() > iou_threshold)]
    return torch.stack(kept) if kept else scores.new_zeros(0, dtype=torch.int64)


def roi_align(features, rois, scale, rows, columns, sampling_ratio, aligned):
    """Each box by torch's grid_sample, whose samples outside the map are those of its edge."""
    sides = features.shape[:1:-1]  # width and height
    pooled = [features.new_zeros(0, features.shape[1], rows, columns)]
    for image, *box in rois.tolist():
        grid, inside, samples = [], [], []
        for side, bins, start, end in zip(sides, (columns, rows), box[:2], box[2:], strict=True):
            start, length = start * scale - 0.5 * aligned, (end - start) * scale
            length = length if aligned else max(length, 1.0)
            n = sampling_ratio if sampling_ratio > 0 else -int(-length / bins // 1)
            samples.append(max(n, 1))
            step = torch.arange(samples[-1] * bins, dtype=features.dtype) + 0.5
            place = start + step * (length / bins / samples[-1])
            inside.append((place >= -1) & (place <= side) & (n > 0))
            grid.append(2 * place / max(side - 1, 1) - 1)
        x, y = torch.meshgrid(*grid, indexing="xy")
        sampled = F.grid_sample(
            features[int(image)][None],
            torch.stack([x, y], dim=-1)[None],
            padding_mode="border",
            align_corners=True,
        )
        sampled = torch.where(inside[1][:, None] & inside[0], sampled, 0)
        pooled.append(F.avg_pool2d(sampled, samples[::-1]))
    return torch.cat(pooled)


@functools.cache
def operators():
    """torchvision's operators, compiled or as above, and its Python code made to call them."""
    if not COMPILED:
        for name, function in (("nms", nms), ("roi_align", roi_align)):
            OPERATORS.impl(name, function, "CompositeImplicitAutograd")
        for module in ("torchvision.extension", "torchvision.ops.roi_align"):
            sys.modules[module]._has_ops = lambda: True
    return torch.ops.torchvision
