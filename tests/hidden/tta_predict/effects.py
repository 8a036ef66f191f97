"""Predictions over more and more views."""

# canary: 5a3c0e7e-hidden-segcourse

from hidden.tta_predict.reference import tta_predict
from torch import Tensor, nn

from segcourse import experiments

VIEWS = {
    "tta_none": ((1.0,), False),
    "tta_flip": ((1.0,), True),
    "tta_scales": ((0.75, 1.0, 1.25), False),
    "tta": ((0.75, 1.0, 1.25), True),
}


def labels(model: nn.Module, seed: int) -> dict[str, Tensor]:
    images = experiments.scenes()["image"]
    return {
        name: tta_predict(model, images, scales=scales, flip=flip).argmax(dim=1)
        for name, (scales, flip) in VIEWS.items()
    }


def kept(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: found[name] for name in ("tta_flip", "tta_scales", "tta")}
