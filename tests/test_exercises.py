"""The instant check of the small exercises: it must tell right from wrong, and say so."""

import nbformat
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from segcourse import metrics
from segcourse.exercises import try_it

CASES = [((torch.tensor([1.0, 2.0]),), 3.0), ((torch.tensor([-1.0]),), -1.0)]


def stub(x):
    raise NotImplementedError


def first_only(x):
    return x[0]


def broken(x):
    return x + "a"


def keeps_a_dimension(x):
    return x.sum(0, keepdim=True)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (torch.sum, ["[x] case 1: right", "[x] case 2: right", "sum: 2 of 2 cases right"]),
        (stub, ["stub: not attempted yet"]),
        (first_only, ["[ ] case 1: got 1.0, expected 3.0", "first_only: 1 of 2 cases right"]),
        (broken, ["[ ] case 1: TypeError", "broken: 0 of 2 cases right"]),
        (keeps_a_dimension, ["keeps_a_dimension: 0 of 2 cases right"]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_it_says_what_is_right_and_what_is_not(function, words, capsys):
    try_it(function, *CASES)
    printed = capsys.readouterr().out
    for line in words:
        assert line in printed


def test_nan_is_right_only_where_nan_is_expected(capsys):
    def always_nan(x):
        return float("nan")

    try_it(always_nan, ((1,), float("nan")), ((1,), 1.0))
    printed = capsys.readouterr().out
    assert "[x] case 1" in printed and "[ ] case 2: got nan" in printed


def test_integers_must_be_equal_and_arguments_may_be_changed(capsys):
    def almost(x):
        x += 1
        return 884_786

    ones = torch.ones(2)
    try_it(almost, ((ones,), 884_736), ((ones,), 884_786))
    printed = capsys.readouterr().out
    assert "almost: 1 of 2 cases right" in printed and ones.tolist() == [1, 1]


def test_values_that_are_no_numbers_are_compared_too(capsys):
    def upper(word):
        return word.upper()

    try_it(upper, (("a",), "A"), (("b",), "b"))
    assert "upper: 1 of 2 cases right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        # As many as differ, by the rules by which an answer is right.
        (torch.tensor([True, False, True, True, True, True, True, False]), torch.ones(8).bool(),
         "got a tensor of shape [8] as expected, but 2 of its 8 elements differ"),
        (torch.tensor([1.0, 1.00001, 1.1, float("nan"), 1, 1, 1]), torch.ones(7),
         "got a tensor of shape [7] as expected, but 2 of its 7 elements differ"),
        (torch.ones(1, 8), torch.ones(8),
         "got a tensor of shape [1, 8], expected a tensor of shape [8]"),
        (torch.ones(8) + 1j, torch.ones(8),
         "got a tensor of shape [8], expected a tensor of shape [8]"),
        (torch.zeros(2), torch.ones(2), "got [0.0, 0.0], expected [1.0, 1.0]"),
        ("[1, 1]", torch.ones(2).long(), "got [1, 1], expected [1, 1]"),
    ],
)  # fmt: skip
def test_of_a_large_tensor_it_says_how_many_elements_are_wrong(found, expected, words, capsys):
    try_it(lambda: found, ((), expected))
    assert f"[ ] case 1: {words}\n" in capsys.readouterr().out


# A right answer for each small exercise of the chapters, to be put in place of the stub's `raise`.
SOLUTIONS = {
    ("00_pixels_and_metrics", "pix-try-iou"): """
        union = (a | b).sum().item()
        return (a & b).sum().item() / union if union else float("nan")""",
    ("00_pixels_and_metrics", "pix-try-weighted"): """
        iou = metrics.iou_per_class(matrix).nan_to_num()
        return (matrix.sum(1) / matrix.sum() * iou).sum().item()""",
    ("00_pixels_and_metrics", "pix-try-rim"): """
        outside = F.pad((~mask).float()[None, None], (1, 1, 1, 1), value=1.0)
        return mask & (F.max_pool2d(outside, 3, stride=1)[0, 0] > 0)""",
    ("01_fcn", "fcn-try-side"): """
        for _ in range(5):
            n = -(-n // 2)
        return n""",
    ("01_fcn", "fcn-try-cost"): """
        return c_in * c_out * k * k * h * w""",
    ("02_unet", "une-try-side"): """
        for _ in range(4):
            n = (n - 4) // 2
        n -= 4
        for _ in range(4):
            n = 2 * n - 4
        return n""",
    ("02_unet", "une-try-box"): """
        x1, y1, x2, y2 = box
        return width - x2, y1, width - x1, y2""",
    ("06_losses", "los-try-focal"): """
        return -((1 - p) ** gamma) * torch.tensor(p).log().item()""",
    ("06_losses", "los-try-dice"): """
        return 2 * iou / (1 + iou)""",
}


@pytest.mark.parametrize(("chapter", "cell"), SOLUTIONS)
def test_each_small_exercise_of_a_chapter_can_be_solved(chapter, cell, capsys):
    notebook = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4)
    (source,) = (c.source for c in notebook.cells if c.id == cell)
    solution = SOLUTIONS[chapter, cell].replace("\n    ", "\n").strip()
    names = {"torch": torch, "F": F, "metrics": metrics, "try_it": try_it}
    names["T"] = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) > 0.3
    exec(source, dict(names))
    assert "not attempted yet" in capsys.readouterr().out
    exec(source.replace("raise NotImplementedError", solution), names)
    right, _, total = capsys.readouterr().out.splitlines()[-1].split(": ")[1].split()[:3]
    assert right == total and int(total) >= 2
