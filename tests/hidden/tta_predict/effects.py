"""Predictions over more and more views, and with one mistake each."""

# canary: 5a3c0e7e-hidden-segcourse

from collections.abc import Callable

import torch
from hidden.tta_predict.reference import tta_predict
from hidden.tta_predict.wrong import WRONG
from torch import Tensor, nn

from segcourse import experiments

VIEWS = {
    "tta_none": ((1.0,), False),
    "tta_flip": ((1.0,), True),
    "tta_scales": ((0.75, 1.0, 1.25), False),
    "tta": ((0.75, 1.0, 1.25), True),
    "tta_smaller": ((0.75, 1.0), True),
    "tta_larger": ((1.0, 1.25), True),
    "tta_much_larger": ((1.0, 1.5), True),
    "tta_larger_alone": ((1.25,), True),
    "tta_wide": ((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True),
}
MISTAKES = {  # with the views of "tta"
    "tta_no_unflip": "no unflip",
    "tta_nearest": "nearest",
    "tta_votes": "votes",
    "tta_mean_logit": "mean of logits",
    "tta_early_softmax": "softmax before resize",
    "tta_corners": "corners aligned",
}


def predicted(function: Callable, model: nn.Module, **views: object) -> Tensor:
    """Labels of all validation scenes. A part at a time is quicker: it stays in the cache."""
    parts = experiments.scenes()["image"].split(25)
    return torch.cat([function(model, part, **views).argmax(dim=1) for part in parts])


def labels(model: nn.Module, seed: int) -> dict[str, Tensor]:
    right = {
        name: predicted(tta_predict, model, scales=scales, flip=flip)
        for name, (scales, flip) in VIEWS.items()
    }
    wrong = {name: predicted(WRONG[key][0], model) for name, key in MISTAKES.items()}
    return right | wrong


def kept(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels [B,H,W,4]: side by side they are almost equal, so that they pack well."""
    names = ("tta_flip", "tta_scales", "tta", "tta_larger")
    return {"labels": torch.stack([found[name] for name in names], dim=3)}
