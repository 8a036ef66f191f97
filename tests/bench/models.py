"""A training step (forward, loss, backward) of each model beside other libraries' equal layers."""

import statistics

import torch
import torch.nn.functional as F
from bench.timing import ratio, record, take_turns
from parity.test_unet_parity import CLASSES, monai_unet
from torch import nn

from segcourse import plots
from segcourse.models.unet import UNet


def training_step(model: nn.Module, image: torch.Tensor, target: torch.Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(image), target).backward()


def unet(features: tuple[int, ...], size: int, batch: int) -> list:
    """A row: the setting, our seconds for a step, and ours over MONAI's."""
    image, target = torch.rand(batch, 3, size, size), torch.randint(CLASSES, (batch, size, size))
    ours, theirs = UNet(3, CLASSES, features), monai_unet(features)
    times = take_turns({
        "ours": lambda: training_step(ours, image, target),
        "theirs": lambda: training_step(theirs, image, target),
    })  # fmt: skip
    found = ratio(times["ours"], times["theirs"])
    record(f"unet {size}", found, times["ours"])
    name = f"{features[0]} to {features[-1]}"
    return [name, size, batch, statistics.median(times["ours"]), found]


def main() -> None:
    toy, wide = (12, 24, 48, 96, 192), (32, 64, 128, 256, 512)
    rows = [unet(toy, 64, batch=8), unet(toy, 97, batch=8), unet(wide, 128, batch=4)]
    columns = ["features", "side (px)", "batch", "seconds", "time over MONAI's"]
    caption = "Training step of U-Net beside MONAI's BasicUNet (at most 1.05), one thread"
    print(plots.table(rows, columns, digits=3, caption=caption))


if __name__ == "__main__":
    main()
