"""The experiments behind `results.json`. `make results` runs them all, each over three seeds.

An experiment is a function of a seed that trains with the settings of its chapter and returns
a `Run`. `python -m segcourse.experiments fcn8s` runs one of them and records it; the name of a
notebook, such as `01_fcn`, records the time that the chapter takes.
"""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import segcourse
from segcourse import results
from segcourse.models.fcn import FCN8s, FCN16s, FCN32s
from segcourse.toyscape import NUM_CLASSES, VOID, Prerendered, Toyscape
from segcourse.training import class_weights, evaluate, fit, pixel_loss, preset

SEEDS = (0, 1, 2)


@lru_cache
def _data() -> tuple[Prerendered, Prerendered, torch.Tensor]:
    """Training scenes, validation scenes and class weights, as in the chapters."""
    budget = preset()
    train = Toyscape("train", size=budget.size, length=budget.length(2000))
    val = Toyscape("val", size=budget.size, length=budget.length(200))
    train, val = train.prerender(budget.device), val.prerender(budget.device)
    return train, val, class_weights(train, NUM_CLASSES)


@dataclass(frozen=True)
class Run:
    """What one run of an experiment did: its steps, and its scores by metric."""

    steps: int
    scores: dict[str, float]


def _fcn(kind: type[nn.Module], seed: int, *, only_pool3: bool = False) -> Run:
    budget = preset()
    train, val, weights = _data()
    torch.manual_seed(seed)
    model = kind(NUM_CLASSES, width=budget.width(8), pad_image=False, batch_norm=True)
    if only_pool3:  # frozen at their zero start, these scores never take part
        model.score_fr.requires_grad_(False)
        model.score_pool4.requires_grad_(False)
    loss = pixel_loss(F.cross_entropy, weight=weights, ignore_index=VOID)
    steps = budget.steps(1000)
    fit(model, train, loss, steps, batch_size=budget.batch_size, seed=seed)
    scores = evaluate(model, val)
    metrics = ("miou", "boundary_iou", "pixel_accuracy")
    return Run(steps, {metric: getattr(scores, metric) for metric in metrics})


def fcn32s(seed: int) -> Run:
    """FCN-32s with the settings of chapter 01."""
    return _fcn(FCN32s, seed)


def fcn16s(seed: int) -> Run:
    """FCN-16s with the settings of chapter 01."""
    return _fcn(FCN16s, seed)


def fcn8s(seed: int) -> Run:
    """FCN-8s with the settings of chapter 01."""
    return _fcn(FCN8s, seed)


def fcn8s_only_pool3(seed: int) -> Run:
    """The ablation of chapter 01: FCN-8s with the scores of pool3 alone."""
    return _fcn(FCN8s, seed, only_pool3=True)


EXPERIMENTS: tuple[Callable[[int], Run], ...] = (
    fcn32s,
    fcn16s,
    fcn8s,
    fcn8s_only_pool3,
)


NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def record_chapter(name: str) -> None:
    """Execute a notebook and write how long it takes."""
    import nbformat  # of the book's environment; the experiments need neither
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    began = time.perf_counter()
    NotebookClient(notebook, timeout=None).execute()
    seconds = time.perf_counter() - began
    results.write([make_record(f"chapter {name}", "seconds", [seconds], 0, [seconds])])
    print(f"chapter {name}: {seconds:.0f} s")


def record(experiment: Callable[[int], Run]) -> None:
    """Run an experiment with every seed and write its records."""
    runs, seconds = [], []
    for seed in SEEDS:
        began = time.perf_counter()
        runs.append(experiment(seed))
        seconds.append(time.perf_counter() - began)
    values = {metric: [run.scores[metric] for run in runs] for metric in runs[0].scores}
    results.write([
        make_record(experiment.__name__, metric, numbers, runs[0].steps, seconds)
        for metric, numbers in values.items()
    ])  # fmt: skip
    for metric in values:
        found = results.find(experiment.__name__, metric, preset().name)
        print(f"{experiment.__name__} {metric}: {found.text()}")


def make_record(
    experiment: str, metric: str, values: list[float], steps: int, seconds: list[float]
) -> results.Record:
    """A record of one metric over the seeds, with the machine that measured it."""
    return results.Record(
        experiment=experiment,
        preset=preset().name,
        seed=list(SEEDS[: len(values)]),
        steps=steps,
        metric=metric,
        value=round(statistics.fmean(values), 5),
        spread=round(statistics.stdev(values), 5) if len(values) > 1 else None,
        values=[round(value, 5) for value in values],
        seconds=round(statistics.fmean(seconds), 1),
        device=_device(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "segcourse": segcourse.__version__,
            "commit": _commit(),
        },
    )


def _device() -> str:
    if preset().device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"


def _commit() -> str:
    """The commit of the checkout, with a + where the package differs from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)

    commit = git("rev-parse", "--short=10", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", ".", ":(exclude)results.json").returncode
    return f"{commit}{'+' if changed else ''}" if commit else "unknown"


def main(names: list[str]) -> None:
    """Record the experiments and chapters with these names, all of them for an empty list."""
    experiments = {experiment.__name__: experiment for experiment in EXPERIMENTS}
    chapters = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    if unknown := set(names) - set(experiments) - set(chapters):
        known = ", ".join([*experiments, *chapters])
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {known}")
    for name in names or [*experiments, *chapters]:
        if name in experiments:
            record(experiments[name])
        else:
            record_chapter(name)


if __name__ == "__main__":
    main(sys.argv[1:])
