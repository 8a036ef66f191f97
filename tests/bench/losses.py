"""Speed of the losses beside other libraries, as ratios measured side by side in one run.

Each loss goes forward and backward on logits [8, 21, 256, 256]; checks of the arguments are part
of the time.
"""

import functools
import statistics

import torchvision_shim  # noqa: F401  before the libraries that import torchvision

# isort: split
import kornia.losses as kornia
import monai.losses as monai
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from bench.timing import ratio, record, take_turns

from segcourse import losses, plots

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


def run(loss, logits: torch.Tensor, target: torch.Tensor) -> None:
    if type(loss).__module__.startswith("monai"):
        target = target.unsqueeze(1)
    logits.grad = None
    loss(logits, target).backward()


def comparison(name: str, logits: torch.Tensor, target: torch.Tensor) -> list[list]:
    """A row for each library: the loss, the library, both times in ms, ours over theirs."""
    ours, theirs = COMPARISONS[name]
    functions = {"ours": ours} | theirs
    times = take_turns({
        library: functools.partial(run, loss, logits, target)
        for library, loss in functions.items()
    })  # fmt: skip
    ms = {library: 1e3 * statistics.median(seconds) for library, seconds in times.items()}
    ratios = {library: ratio(times["ours"], times[library]) for library in theirs}
    record(f"loss {name}", max(ratios.values()), times["ours"])  # over the fastest of them
    return [[name, library, ms["ours"], ms[library], ratios[library]] for library in theirs]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SHAPE, generator=generator).requires_grad_()
    target = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=generator)
    rows = [row for name in COMPARISONS for row in comparison(name, logits, target)]
    columns = ["loss", "library", "ours (ms)", "theirs (ms)", "ours / theirs"]
    caption = f"Losses forward and backward on logits {list(SHAPE)}, one thread"
    print(plots.table(rows, columns, digits=2, caption=caption))


if __name__ == "__main__":
    main()
