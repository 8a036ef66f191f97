"""The leaderboard: every semantic model after as many steps, from the recorded results.

A table, a picture of quality over cost as SVG, and what follows for a choice. All three are text,
which `python -m segcourse.results` puts into the page `book/leaderboard.md`.
"""

import math
from dataclasses import dataclass

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


def _equally_good(a: Entry, b: Entry) -> bool:
    """Whether the spreads of two models, one added to the other, cover their difference."""
    both = (a.miou.spread or 0) + (b.miou.spread or 0)
    return abs(a.miou.value - b.miou.value) <= both


def advice() -> str:
    """Which model to use, as a list in Markdown."""
    everyone = entries()
    best = everyone[0]
    as_good = [entry for entry in everyone if _equally_good(entry, best)]
    lines = [f"- **The best mask:** {_names(as_good)}."]
    if len(as_good) > 1:
        lines[0] += " Their spreads cover the difference; choose by cost."
    for cost, title, unit, scale in [
        ("multiply_adds", "The least work", "million multiply-adds", 1e6),
        ("memory", "The least memory", "MB to train", 1e6),
        ("parameters", "The fewest weights", "thousand parameters", 1e3),
    ]:
        least = min(everyone, key=lambda entry: getattr(entry, cost))
        amount, of_best = (f"{getattr(entry, cost) / scale:.0f}" for entry in (least, best))
        if least is best:
            line = f"{best.name} again, with {amount} {unit}"
        else:
            line = f"{least.name}, with {amount} {unit}; {best.name} has {of_best}"
        lines.append(f"- **{title}:** {line}.")
    worth = [
        entry
        for entry in everyone
        if not any(
            other.multiply_adds < entry.multiply_adds and other.miou.value >= entry.miou.value
            for other in everyone
        )
    ]
    lines.append(
        f"- **Worth their work:** {_names(worth)}. For each other model one of these is at least "
        "as good and needs fewer multiply-adds."
    )
    return "\n".join(lines)


def _names(some: list[Entry]) -> str:
    """For example "U-Net (68.8 ± 1.1) and SETR (52.6 ± 0.3)"."""
    texts = [f"{entry.name} ({entry.miou.text()})" for entry in some]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


# The picture: a field of points and, to the right of it, their names
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 48, 455, 14, 340
LINE = 24  # at least between two names


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

    heights = _apart([y(100 * e.miou.value) for e in everyone])
    for entry, millions, height in zip(everyone, work, heights, strict=True):
        middle, half = 100 * entry.miou.value, 100 * (entry.miou.spread or 0)
        across, up, low, top = x(millions), y(middle), y(middle - half), y(middle + half)
        parts.append(
            f'<path class="lead" d="M{across:.1f} {up:.1f}L{RIGHT + 8} {height:.1f}"/>'
            f'<path class="spread" d="M{across:.1f} {low:.1f}V{top:.1f}"/>'
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="6"/>'
        )
        parts.append(_word(RIGHT + 14, height + 6, entry.name, "start"))
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


def _apart(heights: list[float]) -> list[float]:
    """Rising heights, moved so that no two are closer than a line; the last stays on the field."""
    moved = []
    for height in heights:
        moved.append(max(height, moved[-1] + LINE) if moved else height)
    floor = float(BOTTOM)
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], floor)
        floor = moved[i] - LINE
    return moved
