"""The CRF after the network, with the settings of the paper and with those for small scenes."""

# canary: 5a3c0e7e-hidden-segcourse

import importlib.util
from functools import lru_cache

import numpy as np
import torch
from hidden.dense_crf.reference import dense_crf
from torch import Tensor, nn

from segcourse import exercises, experiments
from segcourse.calibration import Calibration
from segcourse.exercises.model import trained_unet
from segcourse.metrics import score
from segcourse.toyscape import NUM_CLASSES
from segcourse.training import predict, predict_logits

# For small scenes, found on scenes 2000..2099 of the training split, on which nothing is trained,
# with the network that ships: by mIoU + boundary IoU the best of those with both kernels, among
# 240. They were w_bilateral 2, 4, 8, 16; sxy 5, 10, 20, 40, 80; srgb 5, 10, 20, 40; w_gauss 0, or
# w_gauss and sg both 1, or both 3.
SETTINGS = {
    "crf_default": {},
    "crf": {"w_bilateral": 8.0, "sxy": 10.0, "srgb": 20.0, "w_gauss": 1.0, "sg": 1.0},
}
ITERATIONS = (0, 1, 2, 5, 10)
SCENE = 104  # the one that the chapter looks at
WATCHED, STEPS = 8, (0, 1, 2, 3, 4, 5, 7, 10)  # the scene of its slider, and the iterations there


@lru_cache(maxsize=1)  # each setting and number of iterations asks for those of one network
def pictures_and_probabilities(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What the CRF gets for each validation scene: uint8 [H,W,3] and float32 [C,H,W]."""
    images = experiments.scenes()["image"]
    pictures = (255 * images).round().byte().movedim(1, -1)
    return list(zip(pictures, predict_logits(model, images).softmax(dim=1), strict=True))


def refined(model: nn.Module, **options: float) -> Tensor:
    """Q of all validation scenes, [B,C,H,W]."""
    return torch.stack([
        dense_crf(picture, probs, **options)
        for picture, probs in pictures_and_probabilities(model)
    ])  # fmt: skip


def labels(model: nn.Module, seed: int) -> dict[str, Tensor]:
    before = predict(model, experiments.scenes()["image"])
    return {"crf_none": before} | {
        name: refined(model, **options).argmax(dim=1) for name, options in SETTINGS.items()
    }


def packed(fractions: Tensor) -> Tensor:
    """Numbers of 0..1 as whole 30000ths, two bytes each: uint8, twice as long at the end."""
    return (30000 * fractions.double()).round().to(torch.int16).contiguous().view(torch.uint8)


def kept(found: dict[str, Tensor]) -> dict[str, Tensor]:
    model = trained_unet()
    truth = experiments.scenes()["mask"]
    scores, sure = [], [_sure(refined(model, iters=0), truth)]
    for options in SETTINGS.values():
        q = {n: refined(model, **options, iters=n) for n in ITERATIONS}
        scores.append([_scores(q[n].argmax(dim=1), truth) for n in ITERATIONS])
        sure.append(_sure(q[5], truth))
    colours, row = _row()
    picture, probs = pictures_and_probabilities(model)[SCENE]
    q = dense_crf(picture, probs, **SETTINGS["crf"])
    watched = pictures_and_probabilities(model)[WATCHED]
    steps = [dense_crf(*watched, **SETTINGS["crf"], iters=n).argmax(dim=0) for n in STEPS]
    return {name: found[name] for name in SETTINGS} | {
        "iterations": packed(torch.tensor(scores)),  # settings, iterations, mIoU and boundary IoU
        "calibration": packed(torch.tensor(sure)),  # none, then each setting
        "row_colours": colours,
        "row": packed(row),  # iterations 0 to 10, columns
        "scene": packed(q),
        "steps": torch.stack(steps),  # labels
        "pydensecrf": _pydensecrf(picture, probs, q),
    }


def _scores(answer: Tensor, truth: Tensor) -> tuple[float, float]:
    found = score(answer, truth, NUM_CLASSES)
    return found.miou, found.boundary_iou


def _sure(q: Tensor, truth: Tensor) -> tuple[float, float]:
    """The mean confidence, and the calibration error."""
    counted = Calibration()
    counted.update(q.clamp_min(1e-12).log(), truth)
    return q.amax(dim=1).mean().item(), counted.error()


def _row() -> tuple[Tensor, Tensor]:
    """24 grey pixels, dark then bright, and Q of the bright class after 0 to 10 iterations.

    Its first guess has the edge three pixels too far left, and one wrong pixel on either side.
    """
    column = torch.arange(24)
    colours = torch.where(column < 12, 70, 170) + 3 * (column * 5 % 4)
    bright = torch.sigmoid(0.5 * (column - 8.5)).clamp(0.15, 0.85)
    bright[3], bright[17] = 0.75, 0.3
    image = colours.byte()[None, :, None].expand(1, 24, 3).contiguous()
    probs = torch.stack([1 - bright, bright])[:, None]
    options = {"w_bilateral": 3.0, "sxy": 6.0, "srgb": 20.0, "w_gauss": 0.5, "sg": 1.0}
    q = [dense_crf(image, probs.double(), **options, iters=n)[1, 0] for n in range(11)]
    return colours, torch.stack(q)


def _pydensecrf(picture: Tensor, probs: Tensor, q: Tensor) -> Tensor:
    """What pydensecrf2 1.1 gives for a scene; where it is not installed, what it gave before."""
    if importlib.util.find_spec("pydensecrf"):
        from pydensecrf.densecrf import DenseCRF2D

        classes, height, width = probs.shape
        options = SETTINGS["crf"]
        crf = DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(-probs.clamp(1e-5, 1).log().flatten(1).numpy())
        crf.addPairwiseGaussian(sxy=options["sg"], compat=options["w_gauss"])
        crf.addPairwiseBilateral(
            sxy=options["sxy"],
            srgb=options["srgb"],
            rgbim=picture.contiguous().numpy(),
            compat=options["w_bilateral"],
        )
        return packed(torch.from_numpy(np.array(crf.inference(5))).view(probs.shape))
    before = exercises.recorded("dense_crf")["pydensecrf"]
    if (before.view(torch.int16) / 30000 - q).abs().mean() > 1e-4:
        raise RuntimeError("the network has changed: record once with pydensecrf installed")
    return before
