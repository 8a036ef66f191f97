"""The instant check of the small exercises: it must tell right from wrong, and say so."""

import pytest
import torch

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


def test_values_that_are_no_numbers_are_compared_too(capsys):
    def upper(word):
        return word.upper()

    try_it(upper, (("a",), "A"), (("b",), "b"))
    assert "upper: 1 of 2 cases right" in capsys.readouterr().out
