"""What a right answer to each exercise does for a trained U-Net: `make results` records it.

For each exercise its `effects.py` says what is compared:

- `labels(model, seed)`: predicted labels [B, H, W] of all validation scenes, by name; each is
  scored against the truth for three networks, and recorded as `effect NAME` in `results.json`.
- `kept(found)`: what goes into the exercise's file of recorded answers, by name, from the labels
  of the network that ships with the exercises.

It stands here and not in `segcourse.experiments`, since it needs the reference solutions.
"""

# canary: 5a3c0e7e-hidden-segcourse

import importlib
import sys
import time
from functools import lru_cache

import numpy as np
from torch import nn

from segcourse import experiments, results
from segcourse.exercises import EXERCISES, RECORDED
from segcourse.exercises.model import trained_unet
from segcourse.metrics import score
from segcourse.toyscape import NUM_CLASSES


@lru_cache
def network(seed: int) -> nn.Module:
    """The network of the exercises; for another seed than theirs one that is trained alike."""
    return trained_unet() if seed == experiments.SEEDS[0] else experiments.exercise_model(seed)


def record(name: str) -> None:
    """Write the scores and the recorded answers of one exercise."""
    effects = importlib.import_module(f"hidden.{name}.effects")
    truth = experiments.scenes()["mask"]
    scores: dict[str, list[dict[str, float]]] = {}
    seconds = []
    for seed in experiments.SEEDS:
        began = time.perf_counter()
        found = effects.labels(network(seed), seed)
        seconds.append(time.perf_counter() - began)
        for variant, labels in found.items():
            scored = score(labels, truth, NUM_CLASSES)
            scores.setdefault(variant, []).append(
                {metric: getattr(scored, metric) for metric in experiments.METRICS}
            )
        if seed == experiments.SEEDS[0]:
            RECORDED.mkdir(exist_ok=True)
            kept = {key: value.byte().numpy() for key, value in effects.kept(found).items()}
            np.savez_compressed(RECORDED / f"{name}.npz", **kept)
    for variant, runs in scores.items():
        for metric in experiments.METRICS:
            values = [run[metric] for run in runs]
            made = experiments.make_record(f"effect {variant}", metric, values, 0, seconds)
            results.write([made])
            print(f"effect {variant} {metric}: {made.text()}")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or EXERCISES:
        record(chosen)
