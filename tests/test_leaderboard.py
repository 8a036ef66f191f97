"""The leaderboard: its table, its picture and its advice say what the records say."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest
from test_results import record

from segcourse import experiments, leaderboard

SCORES = {  # mIoU, million multiply-adds
    "fcn32s_500": (0.168, 26),
    "fcn16s_500": (0.441, 30),
    "fcn8s_500": (0.559, 33),
    "unet": (0.688, 57),
    "attention_unet": (0.689, 58),
    "deeplab": (0.678, 24),
    "setr": (0.526, 47),
    "segformer_500": (0.617, 7),
}


@pytest.fixture
def known(monkeypatch):
    """Records by experiment and metric, in place of the recorded ones."""
    found = {}
    for name, (miou, millions) in SCORES.items():
        values = {"miou": miou, "boundary_iou": miou / 2, "parameters": 66346}
        values |= {"multiply_adds": millions * 1e6, "memory": 1e6 * (100 - millions)}
        for metric, value in values.items():
            found[name, metric] = record(
                metric, experiment=name, value=value, spread=0.01, seconds=27.4
            )
    monkeypatch.setattr(leaderboard, "find", lambda *key: found[key])
    return found


def test_the_models_are_those_whose_costs_are_recorded():
    assert leaderboard.MODELS.keys() == experiments.LEADERBOARD.keys()
    assert leaderboard.MODELS.keys() <= experiments.EXPERIMENTS.keys()


def test_the_table_has_the_best_model_first_and_every_cost(known):
    rows = leaderboard.table().splitlines()
    assert "| million multiply-adds |" in rows[0]
    assert rows[2] == "| Attention U-Net | 68.9 ± 1.0 | 34.4 ± 1.0 | 66 | 58 | 42 | 27 |"
    assert [row.split(" |")[0][2:] for row in rows[-2:]] == ["FCN-16s", "FCN-32s"]


def test_other_steps_are_no_fair_comparison(known):
    known["setr", "miou"] = dataclasses.replace(known["setr", "miou"], steps=650)
    with pytest.raises(ValueError, match="equal steps"):
        leaderboard.table()


def test_the_picture_shows_each_model_where_its_numbers_say(known):
    text = leaderboard.plot()
    assert "\n\n" not in text  # in Markdown a blank line would end it
    figure = ElementTree.fromstring(text)
    points = [(float(c.get("cx")), float(c.get("cy"))) for c in figure.iter("circle")]
    names = [t for t in figure.iter("text") if t.text in leaderboard.MODELS.values()]
    entries = leaderboard.entries()
    assert [name.text for name in names] == [entry.name for entry in entries]
    assert points == sorted(points, key=lambda point: point[1])  # the best is highest
    by_work = sorted(range(8), key=lambda i: entries[i].multiply_adds)
    assert sorted(points) == [points[i] for i in by_work]
    (deeplab,) = (point for entry, point in zip(entries, points, strict=True)
                  if entry.name == "DeepLabV3+")  # fmt: skip
    ticks = {t.text: float(t.get("x")) for t in figure.iter("text") if t.text in ("20", "50")}
    assert ticks["20"] < deeplab[0] < ticks["50"]


def boxes(figure):
    """The names of the picture as rectangles (x1, y1, x2, y2), by name."""
    found = {}
    for text in figure.iter("text"):
        if text.text in leaderboard.MODELS.values():
            width = leaderboard.LETTER * len(text.text)
            x = float(text.get("x")) - (width if text.get("text-anchor") == "end" else 0)
            y = float(text.get("y")) - 6
            found[text.text] = x, y - leaderboard.LINE / 2, x + width, y + leaderboard.LINE / 2
    return found


@pytest.mark.parametrize("value", [None, 0.05, 0.9])  # all of them at one height, low or high
@pytest.mark.parametrize("millions", [None, 7, 95])  # and at one side
def test_no_two_names_of_the_picture_overlap_and_none_leaves_it(known, value, millions):
    for name in SCORES:
        if value:
            known[name, "miou"] = dataclasses.replace(known[name, "miou"], value=value)
        if millions:
            work = known[name, "multiply_adds"]
            jitter = {"unet": 1, "setr": 5}.get(name, 0)  # equal work alone has no scale
            known[name, "multiply_adds"] = dataclasses.replace(
                work, value=1e6 * (millions + jitter)
            )
    figure = ElementTree.fromstring(leaderboard.plot())
    names = list(boxes(figure).values())
    assert len(names) == len(SCORES)
    for i, (x1, y1, x2, y2) in enumerate(names):
        assert 0 <= x1 and x2 <= leaderboard.WIDTH and 0 <= y1 and y2 <= leaderboard.BOTTOM
        for other in names[:i]:
            apart = x1 - other[2], other[0] - x2, y1 - other[3], other[1] - y2
            assert max(apart) >= -0.2  # the picture's numbers are rounded


def test_the_description_has_every_number_of_the_picture(known):
    described = ElementTree.fromstring(leaderboard.plot())[0].get("aria-label")
    assert "DeepLabV3+ 67.8 at 24, SegFormer 61.7 at 7" in described
    assert all(name in described for name in leaderboard.MODELS.values())


def test_the_advice_names_ties_the_cheapest_and_those_that_are_beaten(known):
    best, outlines, work, memory, weights, beaten = leaderboard.advice().splitlines()
    assert "Attention U-Net (68.9 ± 1.0), U-Net (68.8 ± 1.0) and DeepLabV3+" in best
    assert "spreads cover" in best and "DeepLabV3+ needs the fewest multiply-adds and" in best
    assert "SegFormer" not in best
    assert "Attention U-Net (34.4 ± 1.0), U-Net (34.4 ± 1.0) and DeepLabV3+ (33.9" in outlines
    assert "SegFormer, with 7 million multiply-adds; Attention U-Net has 58, and 7.2" in work
    assert memory.endswith("Attention U-Net, with 42 MB to train.")
    assert "Attention U-Net, with 66 thousand" in weights
    named = re.findall(r"(\S[\w +-]*?) \(", beaten.partition(":** ")[2].replace(" and ", ", "))
    named = [name.removeprefix(", ") for name in named]
    assert named == ["FCN-8s", "SETR", "FCN-16s", "FCN-32s"]


def test_a_single_best_model_is_no_tie(known):
    known["unet", "miou"] = dataclasses.replace(known["unet", "miou"], value=0.75)
    best = leaderboard.advice().splitlines()[0]
    assert best == "- **You want the best mask:** U-Net (75.0 ± 1.0), by mIoU."
