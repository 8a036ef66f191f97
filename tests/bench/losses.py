"""Speed of the losses beside other libraries, as ratios measured side by side in one run.

Each loss goes forward and backward on logits [8, 21, 256, 256], on one thread; checks of the
arguments are part of the time. In every round each function runs once, so that a slow moment of
the machine meets all of them. Times are CPU seconds.
"""

import functools
import statistics
import time

import parity.conftest  # noqa: F401  lets torchvision load, which the libraries import

# isort: split
import kornia.losses as kornia
import monai.losses as monai
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F

from segcourse import losses, plots

ROUNDS = 9
SHAPE = (8, 21, 256, 256)

monai_options = {"to_onehot_y": True, "softmax": True}
jaccard_loss = functools.partial(losses.tversky_loss, alpha=1, beta=1)
smoothed = functools.partial(losses.cross_entropy, label_smoothing=0.1)

# Ours, and what comes next to it: torch, or a library's loss of the same name.
COMPARISONS = {
    "cross entropy": (
        losses.cross_entropy,
        {
            "torch": F.cross_entropy,
            "smp": smp.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255),
            "monai": monai.DiceCELoss(lambda_dice=0, **monai_options),
        },
    ),
    "label smoothing": (
        smoothed,
        {
            "torch": functools.partial(F.cross_entropy, label_smoothing=0.1),
            "smp": smp.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
        },
    ),
    "focal": (
        losses.focal_loss,
        {
            "smp": smp.FocalLoss("multiclass"),
            "kornia": functools.partial(kornia.focal_loss, alpha=None, reduction="mean"),
            "monai": monai.FocalLoss(to_onehot_y=True, use_softmax=True),
        },
    ),
    "Dice": (
        losses.dice_loss,
        {
            "smp": smp.DiceLoss("multiclass"),
            "kornia": functools.partial(kornia.dice_loss, average="macro"),
            "monai": monai.DiceLoss(batch=True, **monai_options),
        },
    ),
    "Jaccard": (
        jaccard_loss,
        {
            "smp": smp.JaccardLoss("multiclass"),
            "monai": monai.DiceLoss(batch=True, jaccard=True, **monai_options),
        },
    ),
    "Tversky": (
        losses.tversky_loss,
        {
            "smp": smp.TverskyLoss("multiclass", alpha=0.3, beta=0.7),
            "kornia": functools.partial(kornia.tversky_loss, alpha=0.3, beta=0.7),
            "monai": monai.TverskyLoss(batch=True, alpha=0.3, beta=0.7, **monai_options),
        },
    ),
    "Lovász": (
        losses.lovasz_softmax,
        {"smp": smp.LovaszLoss("multiclass"), "kornia": kornia.lovasz_softmax_loss},
    ),
}


def cpu_seconds(loss, logits: torch.Tensor, target: torch.Tensor) -> float:
    if type(loss).__module__.startswith("monai"):
        target = target.unsqueeze(1)
    logits.grad = None
    began = time.process_time()
    loss(logits, target).backward()
    return time.process_time() - began


def comparison(name: str, logits: torch.Tensor, target: torch.Tensor) -> list[list]:
    """A row for each library: the loss, the library, both times in ms, ours over theirs."""
    ours, theirs = COMPARISONS[name]
    functions = {"ours": ours} | theirs
    rounds = [
        {library: cpu_seconds(loss, logits, target) for library, loss in functions.items()}
        for _ in range(ROUNDS + 1)
    ][1:]  # the first warms up

    def median(library: str) -> float:
        return statistics.median(times[library] for times in rounds)

    ratios = {
        library: statistics.median(times["ours"] / times[library] for times in rounds)
        for library in theirs
    }
    return [
        [name, library, 1e3 * median("ours"), 1e3 * median(library), ratios[library]]
        for library in theirs
    ]


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SHAPE, generator=generator).requires_grad_()
    target = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=generator)
    rows = [row for name in COMPARISONS for row in comparison(name, logits, target)]
    columns = ["loss", "library", "ours (ms)", "theirs (ms)", "ours / theirs"]
    caption = f"Losses forward and backward on logits {list(SHAPE)}, one thread"
    print(plots.table(rows, columns, digits=2, caption=caption))


if __name__ == "__main__":
    main()
