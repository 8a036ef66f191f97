"""Instant answers to a student's code.

`try_it` serves the small exercises of a chapter, whose cases stand in the notebook. `task`,
`check` and `answers` serve the three graded exercises, each with a module here that holds its
contract and the public test of each property.
"""

import copy
import importlib
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segcourse.exercises.contract import LocalCall

EXERCISES = ("boundary_loss", "tta_predict", "dense_crf")
RECORDED = Path(__file__).with_name("recorded")  # an .npz for each exercise, by `make results`


def try_it(function: Callable, *cases: tuple[tuple, Any]) -> None:
    """Run a student's function on cases and print, case by case, whether it is right.

    Args:
        function: what the student wrote. One that raises NotImplementedError was not attempted.
        cases: pairs (arguments, expected). Numbers with a fraction must agree to 1e-4, NaN agrees
            with NaN; all else must be equal, tensors also in shape.
    """
    name = getattr(function, "__name__", "your function")
    right = 0
    for number, (arguments, expected) in enumerate(cases, start=1):
        try:
            found = function(*copy.deepcopy(arguments))  # which the function may change
        except NotImplementedError:
            print(f"{name}: not attempted yet")
            return
        except Exception as error:
            print(f"[ ] case {number}: {type(error).__name__}: {error}")
            continue
        if _agree(found, expected):
            right += 1
            print(f"[x] case {number}: right")
        else:
            print(f"[ ] case {number}: {_contrast(found, expected)}")
    print(f"{name}: {right} of {len(cases)} cases right")


def check(name: str, function: Callable) -> None:
    """Run the public tests of a graded exercise and print, property by property, what holds.

    Args:
        name: of the exercise, one of `EXERCISES`. An unknown one raises ValueError.
        function: what the student wrote. One that raises NotImplementedError was not attempted.

    A property that does not hold comes with a hint, an exception with the lines of the student's
    code that it went through. The grader tests the same properties on other inputs.
    """
    public_checks(name, function)


def public_checks(name: str, function: Callable) -> bool:
    """As `check`, and whether all public tests passed."""
    exercise = _exercise(name)
    if not callable(function):
        raise TypeError(f"function: expected a function; got {type(function).__name__}")
    results, seen = [], set()
    for item, test in exercise.PUBLIC.items():
        try:
            test(LocalCall(function))
        except Exception as error:
            if not results and is_stub(function, error):
                print(f"{name}: not attempted yet")
                return False
            fault = _fault(function, error)
            print(f"[ ] {item}: {fault if fault not in seen else 'the same error as above'}")
            print(f"      hint: {exercise.CONTRACT[item].hint}")
            if not isinstance(error, AssertionError):
                seen.add(fault)
            results.append(False)
        else:
            print(f"[x] {item}: passed")
            results.append(True)
    if all(results):
        print(f"{name}: public checks passed")
    else:
        print(f"{name}: {sum(results)} of {len(results)} passed")
    return all(results)


class Page(str):
    """Text that a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return self


def task(name: str) -> Page:
    """What a graded exercise asks for, and the points of each property, for a notebook to show."""
    exercise = _exercise(name)
    title, _, text = exercise.__doc__.partition("\n")
    contract = exercise.CONTRACT
    rows = [
        f"| {item.name} | {'needed' if item.points is None else item.points} |"
        for item in contract.properties
    ]
    return Page(
        f"**{title}**\n{text}\n"
        f"**Points**, {contract.total} in all, and none without what is needed:\n\n"
        + "\n".join(["| property | points |", "| --- | ---: |", *rows])
    )


def answers(name: str, run: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `run` returns, which calls the student's function; recorded answers as long as it is a
    stub, so that the rest of the chapter has something to show.

    Args:
        name: of the exercise, one of `EXERCISES`.
        run: gives tensors by name. It must be written in the notebook, like the function.
    """
    try:
        return run()
    except NotImplementedError as error:
        if not is_stub(run, error):
            raise
        print(f"{name}: not attempted yet. What follows was recorded with a right answer.")
        return recorded(name)


def recorded(name: str) -> dict[str, Tensor]:
    """Tensors that belong to an exercise, by name: figures of its contract, and what a right
    answer gave in its chapter."""
    _exercise(name)
    with np.load(RECORDED / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def _exercise(name: str) -> ModuleType:
    if name not in EXERCISES:
        raise ValueError(f"name: expected one of {', '.join(EXERCISES)}; got {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def _fault(function: Callable, error: Exception) -> str:
    """What went wrong, without anything of the package's code."""
    if isinstance(error, AssertionError):
        return f"failed, {error}" if str(error) else "failed"
    error = error.__cause__ or error  # the student's own, if it is an AnswerError
    frames = traceback.StackSummary.extract(_own_frames(function, error))
    lines = [f"\n      line {frame.lineno} of {frame.name}: {frame.line}" for frame in frames]
    return f"{type(error).__name__}: {error}{''.join(lines)}"


def is_stub(function: Callable, error: Exception) -> bool:
    """Whether the student's code says that it is not written yet.

    torch, too, raises NotImplementedError, for numbers of a type that it cannot compute with.
    """
    if not isinstance(error, NotImplementedError):
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    (last,) = traceback.StackSummary.extract([(frame, line)])
    # The line is empty where the code came from no file.
    return (frame, line) in _own_frames(function, error) and "raise" in (last.line or "raise")


def _own_frames(function: Callable, error: Exception) -> list[tuple]:
    """Where in the student's code an error came by: frames and line numbers, outermost first.

    The student's code is what shares the global names of the function, so all cells of a notebook
    belong to it.
    """
    own = getattr(inspect.unwrap(function), "__globals__", None)
    return [place for place in traceback.walk_tb(error.__traceback__) if place[0].f_globals is own]


def _agree(found: Any, expected: Any) -> bool:
    try:
        found, expected = torch.as_tensor(found).cpu(), torch.as_tensor(expected).cpu()
    except (TypeError, ValueError, RuntimeError):
        return type(found) is type(expected) and found == expected
    if found.shape != expected.shape or found.is_complex():
        return False
    return bool(_close(found, expected).all())


def _close(found: Tensor, expected: Tensor) -> Tensor:
    """Which elements of two real tensors of one shape agree."""
    tolerance = 1e-4 if expected.is_floating_point() else 0
    return torch.isclose(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def _contrast(found: Any, expected: Any) -> str:
    """A wrong answer beside the right one; of a large tensor, how many elements are wrong."""
    tensors = isinstance(found, Tensor) and isinstance(expected, Tensor)
    if not tensors or found.shape != expected.shape or found.numel() <= 6 or found.is_complex():
        return f"got {_short(found)}, expected {_short(expected)}"
    wrong = (~_close(found.cpu(), expected.cpu())).sum()
    return f"got {_short(found)} as expected, but {wrong} of its {found.numel()} elements differ"


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.numel() > 6:
        return f"a tensor of shape {list(value.shape)}"
    return f"{value.tolist() if isinstance(value, torch.Tensor) else value}"
