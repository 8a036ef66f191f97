"""What `task`, `check` and `answers` show to a student who works on a graded exercise."""

import importlib
import linecache

import pytest
import torch
from conftest import right_answer
from hidden.boundary_loss import wrong

from segcourse.exercises import EXERCISES, answers, check, recorded, task

each_exercise = pytest.mark.parametrize("name", EXERCISES)

CELL = '''
def stub(*args, **kwargs):
    """To be written."""
    raise NotImplementedError

def stub_that_calls(*args, **kwargs):
    return stub()

def helper(x):
    return x + "a"

def broken(*args, **kwargs):
    y = args[0]
    return helper(y)

def typed(pred, target, **options):
    return torch.bincount(pred.flatten())

def run():
    return {"stub": stub()}

def run_typed():
    return {"typed": typed(torch.eye(2), None)}
'''


@pytest.fixture
def cell():
    """Functions as a notebook's cell defines them: their lines can be shown."""
    space = {"torch": torch}
    lines = CELL.splitlines(keepends=True)
    linecache.cache["<cell>"] = (len(CELL), None, lines, "<cell>")
    exec(compile(CELL, "<cell>", "exec"), space)
    yield space
    del linecache.cache["<cell>"]


@each_exercise
def test_a_right_answer_gets_a_line_for_each_property(name, capsys):
    check(name, right_answer(name))
    lines = capsys.readouterr().out.splitlines()
    contract = importlib.import_module(f"segcourse.exercises.{name}").CONTRACT
    expected = [f"[x] {item.name}: passed" for item in contract.properties]
    assert lines == [*expected, f"{name}: public checks passed"]


@each_exercise
@pytest.mark.parametrize("function", ["stub", "stub_that_calls"])
def test_a_stub_was_not_attempted(name, function, cell, capsys):
    check(name, cell[function])
    assert capsys.readouterr().out == f"{name}: not attempted yet\n"


def test_a_wrong_answer_gets_the_property_and_a_hint(capsys):
    function, item = wrong.WRONG["void in the divisor"]
    check("boundary_loss", function)
    printed = capsys.readouterr().out
    from segcourse.exercises.boundary_loss import CONTRACT

    assert f"[ ] {item}: failed" in printed and f"hint: {CONTRACT[item].hint}" in printed
    assert "passed" in printed.splitlines()[-1] and "public checks passed" not in printed


def test_an_exception_shows_the_students_lines_and_no_others(cell, capsys):
    check("boundary_loss", cell["broken"])
    printed = capsys.readouterr().out
    assert "TypeError" in printed
    assert "of broken: return helper(y)" in printed
    assert 'of helper: return x + "a"' in printed
    assert "contract.py" not in printed and "_run" not in printed and "LocalCall" not in printed
    assert printed.count('of helper: return x + "a"') == 1  # said once, not for each property
    assert "the same error as above" in printed


def test_an_operation_that_torch_lacks_is_no_stub(cell, capsys):
    check("boundary_loss", cell["typed"])
    printed = capsys.readouterr().out
    assert "not attempted" not in printed
    assert "torch.bincount" in printed


def test_no_answer_is_in_what_a_failure_prints(capsys):
    """A function that returns a wrong number sees neither the right one nor the input."""
    check("boundary_loss", lambda pred, target, **options: pred.sum())
    printed = capsys.readouterr().out
    for number in ("1.67454", "1.8540145", "1.7158687", "1.4746892", "tensor("):
        assert number not in printed


@each_exercise
def test_the_task_shows_contract_and_points(name):
    exercise = importlib.import_module(f"segcourse.exercises.{name}")
    text = task(name)._repr_markdown_()
    assert exercise.__doc__.splitlines()[-1].strip() in text
    for item in exercise.CONTRACT.properties:
        assert f"| {item.name} | {'needed' if item.points is None else item.points} |" in text
    assert "20 in all" in text


def test_answers_are_the_students_or_the_recorded_ones(cell, capsys):
    mine = {"mine": torch.tensor([1])}
    assert answers("tta_predict", lambda: mine) is mine
    assert capsys.readouterr().out == ""
    found = answers("tta_predict", cell["run"])
    assert capsys.readouterr().out == (
        "tta_predict: not attempted yet. What follows was recorded with a right answer.\n"
    )
    expected = recorded("tta_predict")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_answers_hide_no_error_of_the_student(cell):
    with pytest.raises(NotImplementedError, match="bincount"):
        answers("tta_predict", cell["run_typed"])
    with pytest.raises(ZeroDivisionError):
        answers("tta_predict", lambda: 1 / 0)


@pytest.mark.parametrize("function", [task, recorded])
def test_an_unknown_exercise_is_named(function):
    with pytest.raises(ValueError, match="expected one of boundary_loss, .* got 'crf'"):
        function("crf")
    with pytest.raises(ValueError, match="name: "):
        check("crf", len)
    with pytest.raises(TypeError, match="function: expected a function; got int"):
        check("dense_crf", 3)


def test_the_exercises_are_those_with_hidden_tests():
    assert EXERCISES == ("boundary_loss", "tta_predict", "dense_crf")
