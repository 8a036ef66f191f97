"""Speed, as ratios measured side by side in one run: `make bench`.

Rendering is held against `skimage.draw.random_shapes`, which draws flat shapes without depth,
texture, light or instance truth: once with as many shapes as a scene has objects (3 to 9), once
with as many as it has objects and stuff on average (10).

A training step of U-Net (forward, loss, backward) is held against one of MONAI's BasicUNet with
equal layers, as the parity tests build it.

Times are CPU seconds on one thread. What is compared takes turns, and a ratio is the median of
those of the turns.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from parity.test_unet_parity import CLASSES, monai_unet
from skimage.draw import random_shapes
from torch import nn

from segcourse import plots
from segcourse.models.unet import UNet
from segcourse.toyscape import Toyscape

ROUNDS = 9
BATCH = 64


def cpu_seconds(function, *arguments) -> float:
    began = time.process_time()
    function(*arguments)
    return time.process_time() - began


def draw_shapes(size: int, seeds: range, fewest: int, most: int) -> None:
    for seed in seeds:
        random_shapes(
            (size, size), min_shapes=fewest, max_shapes=most, allow_overlap=True, rng=seed
        )


def rendering(size: int) -> list:
    """A row: image side, our images per second, and our rate over that of random_shapes."""
    scenes = Toyscape(size=size, length=(ROUNDS + 1) * BATCH)
    ours, objects, regions = [], [], []
    for first in range(0, len(scenes), BATCH):
        batch = range(first, first + BATCH)
        ours.append(cpu_seconds(scenes.render, torch.tensor(batch)))
        objects.append(cpu_seconds(draw_shapes, size, batch, 3, 9))
        regions.append(cpu_seconds(draw_shapes, size, batch, 10, 10))
    rounds = list(zip(ours, objects, regions, strict=True))[1:]  # the first builds the textures
    return [
        size,
        BATCH / statistics.median(our for our, _, _ in rounds),
        statistics.median(theirs / our for our, theirs, _ in rounds),
        statistics.median(theirs / our for our, _, theirs in rounds),
    ]


def training_step(model: nn.Module, image: torch.Tensor, target: torch.Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(image), target).backward()


def unet(features: tuple[int, ...], size: int, batch: int) -> list:
    """A row: the setting, our seconds for a training step, and ours over MONAI's."""
    ours, theirs = UNet(3, CLASSES, features), monai_unet(features)
    image, target = torch.rand(batch, 3, size, size), torch.randint(CLASSES, (batch, size, size))
    rounds = [
        [cpu_seconds(training_step, model, image, target) for model in (ours, theirs)]
        for _ in range(ROUNDS + 1)
    ][1:]  # the first allocates
    return [
        f"{features[0]} to {features[-1]}",
        size,
        batch,
        statistics.median(our for our, _ in rounds),
        statistics.median(our / their for our, their in rounds),
    ]


def main() -> None:
    torch.set_num_threads(1)
    rows = [rendering(size) for size in (64, 128, 256)]
    columns = ["side (px)", "images/s", "rate over 3..9 shapes", "rate over 10 shapes"]
    caption = f"Rendering beside skimage.draw.random_shapes, batches of {BATCH}, one thread"
    print(plots.table(rows, columns, digits=2, caption=caption))
    seconds = cpu_seconds(lambda: Toyscape(length=2000).prerender())
    print(f"\nPre-rendering 2000 scenes of 64 px: {seconds:.2f} CPU seconds (at most 3)\n")

    toy, wide = (12, 24, 48, 96, 192), (32, 64, 128, 256, 512)
    rows = [unet(toy, 64, batch=8), unet(toy, 97, batch=8), unet(wide, 128, batch=4)]
    columns = ["features", "side (px)", "batch", "seconds", "time over MONAI's"]
    caption = "Training step of U-Net beside MONAI's BasicUNet (at most 1.05), one thread"
    print(plots.table(rows, columns, digits=3, caption=caption))


if __name__ == "__main__":
    main()
