"""What a right answer to each exercise does for a trained U-Net: `make results` records it.

It stands here and not in `segcourse.experiments`, since it needs the reference solutions.
"""

# canary: 5a3c0e7e-hidden-segcourse

import copy
import time
from collections.abc import Callable

import torch
from hidden.boundary_loss.reference import boundary_loss
from hidden.dense_crf.reference import dense_crf
from hidden.tta_predict.reference import tta_predict
from torch import Tensor, nn

from segcourse import experiments, losses, results
from segcourse.exercises.model import FEATURES
from segcourse.metrics import SegmentationMetrics
from segcourse.models.unet import UNet
from segcourse.toyscape import NUM_CLASSES
from segcourse.training import fit, pixel_loss, predict, predict_logits

CRF = {"w_bilateral": 4.0, "sxy": 10.0, "srgb": 13.0, "w_gauss": 1.0, "sg": 1.0}  # for 64 px


def trained(seed: int) -> nn.Module:
    """The network of the exercises, from this seed."""
    train, _, weights = experiments._data()
    torch.manual_seed(seed)
    model = UNet(3, NUM_CLASSES, FEATURES)
    fit(model, train, pixel_loss(losses.cross_entropy, weight=weights), 500, seed=seed)
    return model


def tuned(model: nn.Module, loss: Callable, seed: int) -> nn.Module:
    """A copy after 200 more steps with this loss of logits and masks."""
    train, _, weights = experiments._data()
    model = copy.deepcopy(model)
    name = "class_weight" if loss is boundary_loss else "weight"
    fit(model, train, pixel_loss(loss, **{name: weights}), 200, lr=5e-3, seed=seed + 1)
    return model


def with_crf(model: nn.Module, images: Tensor) -> Tensor:
    """Labels [B, H, W] after the CRF, image by image."""
    pictures = (255 * images).round().byte().movedim(1, -1)
    probabilities = predict_logits(model, images).softmax(dim=1)
    return torch.stack([
        dense_crf(picture, p, **CRF).argmax(dim=0)
        for picture, p in zip(pictures, probabilities, strict=True)
    ])  # fmt: skip


def main() -> None:
    _, val, _ = experiments._data()
    every = val.batch(torch.arange(len(val)))
    found: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in experiments.SEEDS:
        model = trained(seed)
        answers = {
            "plain": lambda m=model: predict(m, every["image"]),
            "tta": lambda m=model: tta_predict(m, every["image"]).argmax(dim=1),
            "crf": lambda m=model: with_crf(m, every["image"]),
            "more_ce": lambda m=model, s=seed: predict(
                tuned(m, losses.cross_entropy, s), every["image"]
            ),
            "boundary_loss": lambda m=model, s=seed: predict(
                tuned(m, boundary_loss, s), every["image"]
            ),
        }
        for name, answer in answers.items():
            began = time.perf_counter()
            metrics = SegmentationMetrics(num_classes=NUM_CLASSES)
            metrics.update(answer(), every["mask"])
            scores = metrics.compute()
            seconds.setdefault(name, []).append(time.perf_counter() - began)
            found.setdefault(name, []).append(
                {metric: getattr(scores, metric) for metric in experiments.METRICS}
            )
    for name, runs in found.items():
        for metric in experiments.METRICS:
            values = [run[metric] for run in runs]
            record = experiments.make_record(f"effect {name}", metric, values, 0, seconds[name])
            results.write([record])
            print(f"effect {name} {metric}: {record.text()}")


if __name__ == "__main__":
    main()
