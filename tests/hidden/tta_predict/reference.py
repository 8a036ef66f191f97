"""A right answer to exercise 2, and others that a student may as well give."""

# canary: 5a3c0e7e-hidden-segcourse

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tta_predict(
    model: nn.Module,
    x: Tensor,
    *,
    scales: tuple[float, ...] = (0.75, 1.0, 1.25),
    flip: bool = True,
) -> Tensor:
    """Mean probabilities [B,C,H,W] over scaled and mirrored views of images [B,3,H,W]."""
    if len(scales) == 0 or min(scales) <= 0:
        raise ValueError(f"scales: expected at least one, all above 0; got {scales}")
    sides = x.shape[2:]
    total, views = 0, 0
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            for scale in scales:
                size = [max(1, math.floor(side * scale + 0.5)) for side in sides]
                view = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
                for mirrored in (False, True) if flip else (False,):
                    logits = model(view.flip(3) if mirrored else view).float()
                    if mirrored:
                        logits = logits.flip(3)
                    logits = F.interpolate(logits, sides, mode="bilinear", align_corners=False)
                    total = total + logits.softmax(dim=1)
                    views += 1
    finally:
        for module, training in modes:
            module.training = training  # train(mode) would set those below it too
    return total / views


def one_batch_for_each_scale(model, x, *, scales=(0.75, 1.0, 1.25), flip=True):
    """A view and its mirror image in one call; the model is a copy, so that no mode changes."""
    if not scales or any(s <= 0 for s in scales):
        raise ValueError("scales")
    model = copy.deepcopy(model).eval()
    batch, _, height, width = x.shape
    probabilities = []
    for s in scales:
        rows, columns = max(int(height * s + 0.5), 1), max(int(width * s + 0.5), 1)
        both = torch.cat([x, x.flip(-1)]) if flip else x
        both = F.interpolate(both, (rows, columns), mode="bilinear")
        with torch.inference_mode():
            logits = F.interpolate(model(both).float(), (height, width), mode="bilinear")
        p = torch.softmax(logits, 1)
        probabilities.append(p[:batch])
        if flip:
            probabilities.append(p[batch:].flip(-1))
    return torch.stack(probabilities).mean(0)


@torch.no_grad()
def one_image_at_a_time(model, x, *, scales=(0.75, 1.0, 1.25), flip=True):
    """Images in a loop, the mirror image taken before the resize, the sum in float64."""
    scales = list(scales)
    if not scales:
        raise ValueError("scales")
    for s in scales:
        if not s > 0:
            raise ValueError("scales")
    training = {name: module.training for name, module in model.named_modules()}
    device = next(model.parameters()).device
    try:
        for module in model.modules():
            module.training = False
        results = []
        for image in x.to(device).split(1):
            views = []
            for s in sorted(scales):
                size = [max(math.floor(n * s + 0.5), 1) for n in image.shape[2:]]
                for axes in [(), (3,)][: 1 + flip]:
                    view = F.interpolate(image.flip(axes), size, mode="bilinear")
                    logits = F.interpolate(
                        model(view).double(), tuple(image.shape[2:]), mode="bilinear"
                    )
                    views.append(logits.flip(axes).softmax(1))
            results.append(sum(views) / len(views))
        return torch.cat(results).float()
    finally:
        for name, module in model.named_modules():
            module.training = training[name]


ALSO_RIGHT = (one_batch_for_each_scale, one_image_at_a_time)
