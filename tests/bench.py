"""Speed, as ratios measured side by side in one run: `make bench`.

Rendering is held against `skimage.draw.random_shapes`, which draws flat shapes without depth,
texture, light or instance truth: once with as many shapes as a scene has objects (3 to 9), once
with as many as it has objects and stuff on average (10). Times are CPU seconds on one thread.
"""

import statistics
import time

import torch
from skimage.draw import random_shapes

from segcourse import plots
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


def main() -> None:
    torch.set_num_threads(1)
    rows = [rendering(size) for size in (64, 128, 256)]
    columns = ["side (px)", "images/s", "rate over 3..9 shapes", "rate over 10 shapes"]
    caption = f"Rendering beside skimage.draw.random_shapes, batches of {BATCH}, one thread"
    print(plots.table(rows, columns, digits=2, caption=caption))
    seconds = cpu_seconds(lambda: Toyscape(length=2000).prerender())
    print(f"\nPre-rendering 2000 scenes of 64 px: {seconds:.2f} CPU seconds (at most 3)")


if __name__ == "__main__":
    main()
