"""200 more steps with the boundary loss, beside 200 more steps with cross entropy."""

# canary: 5a3c0e7e-hidden-segcourse

import copy
from functools import lru_cache, partial
from typing import Any

import torch
from hidden.boundary_loss.reference import boundary_loss
from torch import Tensor, nn

from segcourse import experiments
from segcourse.toyscape import NUM_CLASSES
from segcourse.training import fit, pixel_loss, predict

FARTHEST = 5  # pixels from an edge; a pixel that lies farther is recorded with this distance


def weights(masks: Tensor, **options: Any) -> Tensor:
    """Each pixel's weight, read off the gradient where all classes are equally likely."""
    logits = torch.zeros(len(masks), NUM_CLASSES, *masks.shape[1:], requires_grad=True)
    boundary_loss(logits, masks, **options).backward()
    pull = logits.grad.abs().sum(dim=1)
    return pull / pull.min()  # which lies in no band


def distance() -> Tensor:
    """Pixels from the nearest edge pixel, of each pixel of the validation scenes, [B, H, W]."""
    masks = experiments.scenes()["mask"]
    bands = [weights(masks, width=width) > 2 for width in range(1, FARTHEST + 1)]
    return sum(~band for band in bands)


@lru_cache
def implied() -> Tensor:
    """What a pixel of each class weighs on average, over the training scenes, [C]."""
    train, _, _ = experiments.data()
    masks = train.batch(torch.arange(len(train)))["mask"]
    found = torch.cat([weights(part) for part in masks.split(200)]).double()
    sums = found.new_zeros(NUM_CLASSES).index_add_(0, masks.flatten(), found.flatten())
    return (sums / masks.flatten().bincount(minlength=NUM_CLASSES)).float()


def tuned(model: nn.Module, seed: int, **options: Any) -> Tensor:
    """Labels of a copy after 200 more steps; with boundary_weight 0 the loss is cross entropy."""
    train, _, _ = experiments.data()
    model = copy.deepcopy(model)
    fit(model, train, pixel_loss(boundary_loss, **options), 200, lr=5e-3, seed=seed + 1)
    return predict(model, experiments.scenes()["image"])


def labels(model: nn.Module, seed: int) -> dict[str, Tensor]:
    _, _, classes = experiments.data()
    run = partial(tuned, model, seed)
    return {
        "boundary_start": predict(model, experiments.scenes()["image"]),
        "boundary_ce": run(boundary_weight=0.0),
        "boundary_2": run(boundary_weight=2.0),
        "boundary_5": run(),
        "boundary_20": run(boundary_weight=20.0),
        "boundary_5_wide": run(width=2),
        "boundary_ce_classes": run(boundary_weight=0.0, class_weight=classes),
        "boundary_5_classes": run(class_weight=classes),
        "boundary_ce_implied": run(boundary_weight=0.0, class_weight=implied()),
    }


def kept(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"boundary loss": found["boundary_5"], "distance": distance()}
