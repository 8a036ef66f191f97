"""Times side by side, for the scripts of this folder."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from segcourse import experiments, results

os.environ["SEGCOURSE_PRESET"] = "cpu"  # what is timed here runs on the CPU

ROUNDS = 9


def take_turns(functions: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """CPU seconds of each function in each round, on one thread.

    In a round every function runs once, so that a slow moment of the machine meets all of them.
    The first round, which allocates memory, does not count.
    """
    torch.set_num_threads(1)
    times = {name: [] for name in functions}
    for _ in range(ROUNDS + 1):
        for name, function in functions.items():
            began = time.process_time()
            function()
            times[name].append(time.process_time() - began)
    return {name: seconds[1:] for name, seconds in times.items()}


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Our time over theirs: the median of the rounds' ratios."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def record(name: str, value: float, ours: list[float]) -> None:
    """Keep a ratio in `results.json`, as the experiment `bench NAME`, with our seconds."""
    results.write([experiments.make_record(f"bench {name}", "time_ratio", [value], 0, ours)])
