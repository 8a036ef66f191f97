"""Rendering beside `skimage.draw.random_shapes`.

random_shapes draws flat shapes without depth, texture, light or instance truth. It draws once as
many shapes as a scene has objects (3 to 9), once as many as it has objects and stuff on average
(10).
"""

import statistics
import time

import torch
from bench.timing import ROUNDS, ratio, record, take_turns
from skimage.draw import random_shapes

from segcourse import plots
from segcourse.toyscape import Toyscape

BATCH = 64


def rendering(size: int) -> list:
    """A row: image side, our images per second, and our rate over that of random_shapes."""
    scenes = Toyscape(size=size, length=(ROUNDS + 1) * BATCH)
    indices = torch.arange(len(scenes)).split(BATCH)
    batches = {name: iter(indices) for name in ("ours", "objects", "all")}

    def ours() -> None:
        scenes.render(next(batches["ours"]))

    def shapes(name: str, fewest: int, most: int) -> None:
        for seed in next(batches[name]).tolist():
            random_shapes(
                (size, size), min_shapes=fewest, max_shapes=most, allow_overlap=True, rng=seed
            )

    times = take_turns({
        "ours": ours,
        "objects": lambda: shapes("objects", 3, 9),
        "all": lambda: shapes("all", 10, 10),
    })  # fmt: skip
    record(f"rendering {size}", ratio(times["ours"], times["objects"]), times["ours"])
    rates = (1 / ratio(times["ours"], times[name]) for name in ("objects", "all"))
    return [size, BATCH / statistics.median(times["ours"]), *rates]


def main() -> None:
    rows = [rendering(size) for size in (64, 128, 256)]
    columns = ["side (px)", "images/s", "rate over 3..9 shapes", "rate over 10 shapes"]
    caption = f"Rendering beside skimage.draw.random_shapes, batches of {BATCH}, one thread"
    print(plots.table(rows, columns, digits=2, caption=caption))
    began = time.process_time()
    Toyscape(length=2000).prerender()
    seconds = time.process_time() - began
    print(f"\nPre-rendering 2000 scenes of 64 px: {seconds:.2f} CPU seconds (at most 3)\n")


if __name__ == "__main__":
    main()
