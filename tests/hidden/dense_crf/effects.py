"""The CRF after the network, with the settings of the paper and with those for small scenes."""

# canary: 5a3c0e7e-hidden-segcourse

import torch
from hidden.dense_crf.reference import dense_crf
from torch import Tensor, nn

from segcourse import experiments
from segcourse.training import predict, predict_logits

SETTINGS = {
    "crf_default": {},
    "crf": {"w_bilateral": 4.0, "sxy": 10.0, "srgb": 13.0, "w_gauss": 1.0, "sg": 1.0},
}


def refined(model: nn.Module, **options: float) -> Tensor:
    images = experiments.scenes()["image"]
    pictures = (255 * images).round().byte().movedim(1, -1)
    probabilities = predict_logits(model, images).softmax(dim=1)
    return torch.stack([
        dense_crf(picture, p, **options).argmax(dim=0)
        for picture, p in zip(pictures, probabilities, strict=True)
    ])  # fmt: skip


def labels(model: nn.Module, seed: int) -> dict[str, Tensor]:
    before = predict(model, experiments.scenes()["image"])
    return {"crf_none": before} | {
        name: refined(model, **options) for name, options in SETTINGS.items()
    }


def kept(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: found[name] for name in SETTINGS}
