"""The leaderboard: every semantic model after as many steps, from the recorded results.

A table, a picture of quality over cost as SVG, and what follows for a choice. All three are text,
which `python -m segcourse.results` puts into the page `book/leaderboard.md`.
"""

import itertools
import math
from dataclasses import dataclass
from operator import attrgetter

from segcourse.results import Record, find, markdown_table

MODELS = {
    "fcn32s_500": "FCN-32s",
    "fcn16s_500": "FCN-16s",
    "fcn8s_500": "FCN-8s",
    "unet": "U-Net",
    "attention_unet": "Attention U-Net",
    "deeplab": "DeepLabV3+",
    "setr": "SETR",
    "segformer_500": "SegFormer",
}


@dataclass(frozen=True)
class Entry:
    """A model of the leaderboard.

    miou, boundary_iou: records of the scores. parameters: number of weights. multiply_adds: of one
    image. memory: bytes that training keeps. seconds: of training once and scoring.
    """

    name: str
    miou: Record
    boundary_iou: Record
    parameters: float
    multiply_adds: float
    memory: float
    seconds: float


def entries() -> list[Entry]:
    """All models, the best mIoU first; KeyError if one of their records is missing."""
    found = []
    for experiment, name in MODELS.items():
        miou, boundary = (find(experiment, metric) for metric in ("miou", "boundary_iou"))
        costs = (find(experiment, m).value for m in ("parameters", "multiply_adds", "memory"))
        found.append(Entry(name, miou, boundary, *costs, miou.seconds))
    if len(steps := {entry.miou.steps for entry in found}) > 1:
        raise ValueError(f"the leaderboard compares equal steps; the records have {sorted(steps)}")
    return sorted(found, key=lambda entry: -entry.miou.value)


def table() -> str:
    """Scores in points with their spread, and costs, as a table in Markdown."""
    head = ["model", "mIoU", "boundary IoU", "thousand parameters", "million multiply-adds"]
    rows = [
        [e.name, e.miou.text(), e.boundary_iou.text(), f"{e.parameters / 1e3:.0f}",
         f"{e.multiply_adds / 1e6:.0f}", f"{e.memory / 1e6:.0f}", f"{e.seconds:.0f}"]
        for e in entries()
    ]  # fmt: skip
    return markdown_table([*head, "MB to train", "seconds to train"], rows)


def _equally_good(a: Entry, b: Entry, metric: str = "miou") -> bool:
    """Whether the spreads of two models, one added to the other, cover their difference."""
    one, other = getattr(a, metric), getattr(b, metric)
    return abs(one.value - other.value) <= (one.spread or 0) + (other.spread or 0)


def advice() -> str:
    """Which model to use, as a list in Markdown."""
    everyone = entries()
    best = everyone[0]
    as_good = [entry for entry in everyone if _equally_good(entry, best)]
    lines = [f"- **You want the best mask:** {_names(as_good)}, by mIoU."]
    if len(as_good) > 1:
        works, weighs = (min(as_good, key=attrgetter(c)) for c in ("multiply_adds", "parameters"))
        lines[0] += (
            " Their spreads cover the difference, so choose by cost. Of these, "
            f"{works.name} needs the fewest multiply-adds and {weighs.name} the fewest weights."
        )
    sharpest = max(everyone, key=lambda entry: entry.boundary_iou.value)
    sharp = [entry for entry in everyone if _equally_good(entry, sharpest, "boundary_iou")]
    by_outline = _names(sharp, "boundary_iou")
    lines.append(f"- **You want sharp outlines:** {by_outline}, by boundary IoU.")
    for cost, title, unit, scale in [
        ("multiply_adds", "little work", "million multiply-adds", 1e6),
        ("memory", "little memory", "MB to train", 1e6),
        ("parameters", "a small file", "thousand parameters", 1e3),
    ]:
        least = min(everyone, key=attrgetter(cost))
        amount, of_best = (f"{getattr(entry, cost) / scale:.0f}" for entry in (least, best))
        line = f"- **You want {title}:** {least.name}, with {amount} {unit}"
        if least is not best:
            gain = 100 * (best.miou.value - least.miou.value)
            more = "no more mIoU" if least in as_good else f"{gain:.1f} points of mIoU more"
            line += f"; {best.name} has {of_best}, and {more}"
        lines.append(f"{line}.")
    beaten = [entry for entry in everyone if any(_beats(other, entry) for other in everyone)]
    if beaten:
        lines.append(
            f"- **Not worth their work here:** {_names(beaten)}. For each of them another "
            "model has a better mIoU for fewer multiply-adds."
        )
    return "\n".join(lines)


def _beats(one: Entry, other: Entry) -> bool:
    """Whether a model is better than another and needs less work."""
    better = one.miou.value > other.miou.value and not _equally_good(one, other)
    return better and one.multiply_adds < other.multiply_adds


def _names(some: list[Entry], metric: str = "miou") -> str:
    """For example "U-Net (68.8 ± 1.1) and SETR (52.6 ± 0.3)"."""
    texts = [f"{entry.name} ({getattr(entry, metric).text()})" for entry in some]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


# The picture: a field of points, each with its name beside it. A letter is at most this wide.
WIDTH, HEIGHT = 600, 400
LEFT, RIGHT, TOP, BOTTOM = 48, 520, 14, 340
LINE, LETTER, RADIUS = 22, 9, 4


def plot() -> str:
    """mIoU over multiply-adds as an SVG, with a description in words.

    It takes the colours of the page around it, so that it suits light and dark.
    """
    everyone = entries()
    high = 10 * math.ceil(max(e.miou.value + (e.miou.spread or 0) for e in everyone) * 10)
    work = [e.multiply_adds / 1e6 for e in everyone]
    ticks = [m * 10**n for n in range(6) for m in (1, 2, 5)]
    first = max(tick for tick in ticks if tick <= min(work))
    last = min(tick for tick in ticks if tick >= max(work))

    def x(millions: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(millions / first) / math.log(last / first)

    def y(points: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * points / high

    parts = []
    for points in range(0, high + 1, 20):
        parts.append(f'<path class="rule" d="M{LEFT} {y(points):.1f}H{RIGHT}"/>')
        parts.append(_word(LEFT - 8, y(points) + 6, str(points), "end"))
    for tick in ticks:
        if first <= tick <= last:
            parts.append(f'<path class="rule" d="M{x(tick):.1f} {BOTTOM}v6"/>')
            parts.append(_word(x(tick), BOTTOM + 24, str(tick), "middle"))
    parts.append(_word((LEFT + RIGHT) / 2, HEIGHT - 10, "million multiply-adds", "middle"))
    parts.append(_word(LEFT + 8, TOP + 14, "mIoU, points", "start"))

    points = [
        (x(millions), y(100 * e.miou.value)) for e, millions in zip(everyone, work, strict=True)
    ]
    names = _place(points, [entry.name for entry in everyone])
    for entry, (across, up), (start, height) in zip(everyone, points, names, strict=True):
        half = 100 * (entry.miou.spread or 0)
        low, top = (y(100 * entry.miou.value + step) for step in (-half, half))
        right = start > across  # of its point
        end = start if right else start + LETTER * len(entry.name)
        if height != up:
            parts.append(f'<path class="lead" d="M{across:.1f} {up:.1f}L{end:.1f} {height:.1f}"/>')
        parts.append(
            f'<path class="spread" d="M{across:.1f} {low:.1f}V{top:.1f}"/>'
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{RADIUS}"/>'
        )
        parts.append(_word(end, height + 6, entry.name, "start" if right else "end"))
    return (
        f'<figure class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{description()}">\n' + "\n".join(parts) + "\n</svg></figure>"
    )


def description() -> str:
    """The picture in words."""
    points = ", ".join(
        f"{e.name} {100 * e.miou.value:.1f} at {e.multiply_adds / 1e6:.0f}" for e in entries()
    )
    return (
        "mIoU in points over million multiply-adds of one image, on a logarithmic scale. "
        f"From the best down: {points}."
    )


def _word(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _place(points: list[tuple[float, float]], names: list[str]) -> list[tuple[float, float]]:
    """Where each name begins, and its height: the place nearest to its point that is free."""
    taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    found = []
    for (x, y), name in zip(points, names, strict=True):
        width = LETTER * len(name)
        for line, start in itertools.product(
            sorted(range(-len(points), len(points) + 1), key=abs), (x + 10, x - 10 - width)
        ):
            height = y + line * LINE
            box = start, height - LINE / 2, start + width, height + LINE / 2
            inside = 0 <= box[0] and 0 <= box[1] and box[2] <= WIDTH and box[3] <= BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        found.append((start, height))
    return found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
