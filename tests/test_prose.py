"""No result is typed into prose: cells print it, or it is filled in from the recorded results."""

import re

import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell

from segcourse.results import fill

PAGES = [*sorted((ROOT / "book").rglob("*.md")), *sorted(ROOT.glob("*.md"))]

# What is no prose. A citation survives as a word, since it allows the numbers beside it.
NOT_PROSE = [
    (r"<!-- result: .*?<!-- /result -->", ""),
    (r"<!--.*?-->", ""),
    (r"^(```+|~~~+).*?^\1", ""),
    (r"\{cite[^}]*\}`[^`]*`", " https://cited "),
    (r"`[^`\n]*`", ""),
    (r"\$\$.*?\$\$", ""),
    (r"\$[^$\n]*\$", ""),
    (r"\]\((https?://)[^)]*\)", r"] \1cited "),
    (r"\]\([^)]*\)", "]"),
    (r"<[a-zA-Z/][^>]*>", " "),
    (r"\b(Python|PyTorch|CUDA|make|version|CC BY|WCAG) [\d.]+( to [\d.]+)?", ""),
]
UNITS = (
    r"(s|ms|µs|seconds?|minutes?|min|hours?|GiB|MiB|KiB|GB|MB|kB|TB|points?|percentage points?|"
    r"m?IoU|times|fold|fps|(images|scenes|steps) (per|a) second|"
    r"(thousand|million|billion|[kMG])? ?(parameters|weights|multiply-adds|FLOPs|MACs))"
)
NUMBERS = "two|three|four|five|six|seven|eight|nine|ten|twenty|fifty|ninety|a hundred"
RESULTS = [
    r"(?<![\w.])\d+\.\d+(?!\w|\.\d)",
    r"\d\s?(%|percent\b|per cent\b)",
    rf"(?<![\w.])(?<![A-Za-z]-)\d[\d,.]*[\s-]?{UNITS}(?!\w)",  # but not FCN-8s
    r"IoU(:| of| is| was| rises to| falls to| from| reaches)? \d",
    r"\d[\s-](percent|per cent)\b",
    r"(?<![\w.])\.\d",
    rf"\b({NUMBERS})\s(percent|per cent|times (better|faster|more|less|worse)\b)",
    r"\d\s?(x|×)\s(as|faster|slower|more|less|fewer|larger|smaller|better|worse)\b",
]


def typed_results(text):
    """The results that stand as typed numbers in a Markdown text, citations aside."""
    for pattern, word in NOT_PROSE:
        text = re.sub(pattern, word, text, flags=re.S | re.M)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        if not re.search(r"https?://", paragraph):
            found += [m[0] for p in RESULTS for m in re.finditer(p, paragraph)]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "FCN-8s reaches 0.57.",
        "It gains 12 % over the baseline.",
        "About 30 percent of the pixels are sky.",
        "Training takes 20 s.",
        "You wait 3 minutes.",
        "The step took 41 ms.",
        "This needs 1,024 MiB.",
        "The boundary is 3 points better.",
        "57 mIoU",
        "It reaches an mIoU of 57.",
        "Its mIoU rises to 57.",
        "A 57-percent gain.",
        "An accuracy of .57.",
        "It is three times better.",
        "It is 4 times better.",
        "It is 2x faster.",
        "It renders 1200 images per second.",
        "It has 134 M parameters and 2 million weights.",
        "A [link inside the book](other.md) allows nothing: 57 mIoU.",
        "One paragraph is cited, https://arxiv.org/abs/1411.4038.\n\nThe next is not: 57 mIoU.",
        "<!-- result: a -->57 mIoU<!-- /result --> and 58 mIoU",
    ],
)
def test_a_typed_result_is_found(text):
    assert typed_results(text)


@pytest.mark.parametrize(
    "text",
    [
        "FCN-8s fuses the pool3 and pool4 scores; VGG-16 has 5 stages.",
        "Scenes of 64 px hold ten classes, 4 stuff and 6 things, under 3x3 windows.",
        "It runs on Python 3.10 to 3.13, under CC BY 4.0.",
        "The paper reports 62.2 mIoU, https://arxiv.org/abs/1411.4038.",
        "The paper reports 62.2 mIoU {cite}`long2015fcn`.",
        "The [paper](https://arxiv.org/abs/1411.4038) reports 62.2 mIoU.",
        "Set `lr=0.01` and $x = 0.5$ and $$y = 0.5$$.",
        "```python\nx = 0.5  # 20 s\n```",
        "<!-- result: model-table -->\n| FCN-8s | 57.0 |\n\n57 mIoU\n<!-- /result -->",
        "Take 8 steps, 3 seeds, a batch of 4.",
    ],
)
def test_other_numbers_are_allowed(text):
    assert typed_results(text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_filled_in_results_are_the_recorded_ones(page):
    text = page.read_text(encoding="utf-8")
    assert fill(text) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_result_is_typed_into_a_page(page):
    assert typed_results(page.read_text(encoding="utf-8")) == []


# Beside a figure, settings such as a scale are numbers too: only what has a score's unit counts.
SCORES = [
    r"(?<![\w.-])\d[\d.,]*\s?(points?|m?IoU|s|seconds?|minutes?|[kKMG]i?B)\b",
    r"IoU( of| is| was| near)? \d",
]


def typed_scores(cell):
    """The results that stand in the alt text or the caption of a cell's figure."""
    shown = cell.metadata.get("mystnb", {})
    words = (
        shown.get("image", {}).get("alt", "") + "\n" + shown.get("figure", {}).get("caption", "")
    )
    return [m[0] for pattern in SCORES for m in re.finditer(pattern, words)]


def test_no_result_is_typed_into_a_notebook(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    faults = {cell.id: typed_results(cell.source) for cell in cells}
    assert {id: found for id, found in faults.items() if found} == {}


def test_no_result_is_typed_beside_a_figure(notebook):
    faults = {cell.id: typed_scores(cell) for cell in notebook.cells}
    assert {id: found for id, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    ("alt", "caption", "found"),
    [
        ("A curve that ends at 57 mIoU", "", 1),
        ("A curve", "After 20 s it is flat.", 1),
        ("A curve that ends at an IoU of 57", "It gains 3 points.", 2),
        ("A curve over scales from 0.5 to 2, of 24 values", "Its peak is at 1.", 0),
    ],
)
def test_a_result_typed_beside_a_figure_is_found(alt, caption, found):
    figure = {"image": {"alt": alt}, "figure": {"caption": caption}}
    cell = new_code_cell("plot()", metadata={"mystnb": figure})
    assert len(typed_scores(cell)) == found
