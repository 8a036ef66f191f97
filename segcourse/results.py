"""Recorded results: read them, hold a live number against them, fill pages with them.

`results.json` holds what `make results` measured, one record for each (experiment, preset,
metric):

    experiment  what was run, for example "fcn8s"; `experiments.py` has the code
    preset      smoke, cpu or gpu
    seed        the seeds, one run each
    steps       training steps of one run (0 where nothing is trained)
    metric      for example "miou"; scores are fractions in 0..1, "seconds" are seconds, and
                "time_ratio" is our time over that of another implementation (`make bench`);
                "parameters", "multiply_adds" and "memory" are counts, the last in bytes
    value       mean over the seeds
    spread      sample standard deviation over the seeds, null for one seed
    values      the value of each seed
    seconds     mean time of one run
    device      the processor that ran it, and its number of threads
    versions    Python, torch, segcourse and the commit
"""

import difflib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from segcourse.training import preset

FILE = Path(__file__).with_name("results.json")
# What PQ is measured of: the model's segments, or components of its masks.
_KINDS = {
    "": "",
    "_components": ", components",
    "_large_components": ", large components",
    "_forgotten": ", numbers forgotten",
}
_POINTS = {
    "miou": "mIoU",
    "boundary_iou": "boundary IoU",
    "pixel_accuracy": "pixel accuracy",
    "star_iou": "star IoU",
    "miou_x1": "mIoU of the whole scene",
    "miou_x4": "mIoU at four times the size",
    "calibration_error": "calibration error",
    "scaled_error": "error after scaling",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    **{
        f"pq{part}{kind}": f"PQ{' of ' if part else ''}{part[1:].replace('_', ' ')}{kind_name}"
        for part in ("", "_things", "_stuff", "_things_touching")
        for kind, kind_name in _KINDS.items()
    },
}
_USUAL = ("miou", "boundary_iou", "pixel_accuracy")


@dataclass(frozen=True)
class Record:
    """One line of `results.json`; the fields are explained at the top of this file."""

    experiment: str
    preset: str
    seed: list[int]
    steps: int
    metric: str
    value: float
    spread: float | None
    values: list[float]
    seconds: float
    device: str
    versions: dict[str, str]

    def text(self) -> str:
        """Points with their spread, seconds or a ratio, for example "58.1 ± 0.4"."""
        if self.metric not in _POINTS:
            return f"{self.value:.2f}" if self.metric == "time_ratio" else f"{self.value:.0f}"
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        return f"{100 * self.value:.1f}{spread}"

    def band(self) -> tuple[float, float]:
        """Where a run with another seed or on another machine is expected.

        Three standard deviations, and at least 2 points, since three seeds say little about rare
        outcomes.
        """
        half = max(3 * (self.spread or 0.0), 0.02)
        return max(0.0, self.value - half), self.value + half


@lru_cache
def records() -> tuple[Record, ...]:
    """All records of `results.json`."""
    if not FILE.exists():
        return ()
    return tuple(Record(**record) for record in json.loads(FILE.read_text(encoding="utf-8")))


def write(new: list[Record]) -> None:
    """Put records into `results.json`, in the place of older ones of the same name."""
    records.cache_clear()  # another process may have written since
    kept = {(r.experiment, r.preset, r.metric): r for r in (*records(), *new)}
    lines = [json.dumps(asdict(kept[key]), ensure_ascii=False) for key in sorted(kept)]
    unfinished = FILE.with_suffix(".part")
    unfinished.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    os.replace(unfinished, FILE)
    records.cache_clear()


def find(experiment: str, metric: str, preset: str = "cpu") -> Record:
    """The record of an experiment; KeyError that lists the nearest names."""
    for record in records():
        if (record.experiment, record.metric, record.preset) == (experiment, metric, preset):
            return record
    wanted = f"{experiment} {metric} ({preset})"
    known = [f"{r.experiment} {r.metric} ({r.preset})" for r in records()]
    near = difflib.get_close_matches(wanted, known, n=4) or ["nothing like it"]
    raise KeyError(f"no record of {wanted}; results.json has: {', '.join(near)}")


def compare(experiment: str, **values: float) -> None:
    """Print where live scores fall among the recorded ones of the same preset.

    `values` are scores by metric: `compare("fcn8s", miou=scores.miou)`. The expected band is
    `Record.band`.
    """
    if unknown := set(values) - set(_POINTS):
        raise ValueError(
            f"values: expected {', '.join(_POINTS)}; got {', '.join(sorted(unknown))}"
        )
    budget = preset().name
    if budget == "smoke":
        print(f"{experiment}: the smoke preset trains too briefly to compare with anything.")
        return
    print(f"{experiment}, live and expected:")
    for metric, value in values.items():
        live = f"  {_POINTS[metric]:17} {100 * value:.1f}"
        try:
            record = find(experiment, metric, budget)
        except KeyError:
            print(f"{live}, nothing recorded for the {budget} preset yet")
            continue
        low, high = record.band()
        verdict = "inside" if low <= value <= high else "OUTSIDE"
        print(
            f"{live}, {verdict} {100 * low:.1f} .. {100 * high:.1f} "
            f"({record.text()} over {len(record.seed)} seeds)"
        )


def scores(
    experiments: Mapping[str, str], metrics: Sequence[str] = _USUAL, preset: str = "cpu"
) -> list[list[str]]:
    """Rows of recorded scores: a name, then each metric in points, with its spread.

    `experiments` maps an experiment to the name that its row gets.
    """
    return [
        [name, *(find(experiment, metric, preset).text() for metric in metrics)]
        for experiment, name in experiments.items()
    ]


def runtime(chapter: str) -> None:
    """Print how long a chapter takes on a CPU and on a GPU, as far as it was recorded."""
    times = []
    for budget, place in (("cpu", "one CPU thread"), ("gpu", "a GPU")):
        try:
            times.append(f"{find(f'chapter {chapter}', 'seconds', budget).text()} s on {place}")
        except KeyError:
            times.append(f"not yet measured on {place}")
    now = preset()
    print("Time for this chapter:", ",\n  ".join(times))
    print(f"You run it with the {now.name} preset, on {now.device.type}.")
    if now.name != "cpu":
        print("The text describes the cpu preset; your numbers will differ.")


# ---------------------------------------------------------------------------------------------
# Pages: text between `<!-- result: KEY -->` and `<!-- /result -->` is filled from the records
# ---------------------------------------------------------------------------------------------

_MARKED = re.compile(r"(<!-- result: (?P<key>[\w .-]+?) -->).*?(<!-- /result -->)", re.DOTALL)


def fill(page: str) -> str:
    """Fill the marked places of a Markdown page.

    KEY is "EXPERIMENT METRIC" for one number, or names a table: "model-table", "object-table",
    "chapter-times"; or a part of the leaderboard: "leaderboard", "leaderboard-plot",
    "leaderboard-advice".
    """
    from segcourse import leaderboard  # which reads the records of this module

    def text(match: re.Match) -> str:
        key = match["key"]
        tables = {
            "model-table": _model_table,
            "object-table": _object_table,
            "chapter-times": _chapter_times,
            "leaderboard": leaderboard.table,
            "leaderboard-plot": leaderboard.plot,
            "leaderboard-advice": leaderboard.advice,
        }
        body = f"\n\n{tables[key]()}\n\n" if key in tables else _find_by_key(key).text()
        return match[1] + body + match[3]

    return _MARKED.sub(text, page)


def _find_by_key(key: str) -> Record:
    experiment, _, metric = key.rpartition(" ")
    return find(experiment, metric)


_MODELS = {
    "fcn32s": "FCN-32s",
    "fcn16s": "FCN-16s",
    "fcn8s": "FCN-8s",
    "fcn8s_500": "FCN-8s",
    "unet": "U-Net",
    "attention_unet": "Attention U-Net",
    "deeplab": "DeepLabV3+",
    "segformer": "SegFormer",
    "setr": "SETR",
}


def _model_table() -> str:
    steps = [find(model, "miou").steps for model in _MODELS]
    rows = [[row[0], n, *row[1:]] for row, n in zip(scores(_MODELS), steps, strict=True)]
    return markdown_table(["model", "steps", *(_POINTS[metric] for metric in _USUAL)], rows)


def _object_table() -> str:
    models = {"mask_rcnn": "Mask R-CNN", "panoptic_fpn": "Panoptic FPN"}
    metrics = ("box_ap50", "mask_ap50", "mask_ap", "pq", "pq_things")
    known = {(r.experiment, r.metric): r.text() for r in records() if r.preset == "cpu"}
    rows = [
        [name, find(model, "mask_ap").steps, *(known.get((model, m), "–") for m in metrics)]
        for model, name in models.items()
    ]
    return markdown_table(["model", "steps", *(_POINTS[metric] for metric in metrics)], rows)


def _chapter_times() -> str:
    times = [r for r in records() if r.experiment.startswith("chapter ") and r.preset == "cpu"]
    rows = [[r.experiment.removeprefix("chapter ")[:2], r.text()] for r in times]
    return markdown_table(["chapter", "seconds"], sorted(rows))


def markdown_table(head: list[str], rows: list[list]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main(pages: list[str]) -> None:
    """Fill the pages named on the command line in place."""
    for page in map(Path, pages):
        before = page.read_text(encoding="utf-8")
        after = fill(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"filled {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
