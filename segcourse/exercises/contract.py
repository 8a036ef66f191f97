"""What a graded exercise asks for, and the means to test an answer against it.

A `Contract` lists the properties that a right answer has, with their points. A *test* of a
property is a function of a `Call`, which stands for the student's function; it raises
AssertionError where the property does not hold. Public tests run in the notebook, hidden ones in
the grader, which hands them a `Call` that asks another process. So a test uses its call as a
black box: arguments in, tensors and gradients out.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Property:
    """One line of a contract. `points` None marks a gate: without it the exercise scores 0.

    `hint` is shown when a test of it fails. It says where to look, and never the answer.
    """

    name: str
    points: int | None
    hint: str


@dataclass(frozen=True)
class Contract:
    """A function that a student writes: its name, and the properties that it must have."""

    function: str
    properties: tuple[Property, ...]

    def __post_init__(self) -> None:
        names = [item.name for item in self.properties]
        if len(set(names)) < len(names):
            raise ValueError(f"properties: a name of {self.function} stands twice in {names}")

    @property
    def total(self) -> int:
        """The points of an answer that has every property."""
        return sum(item.points or 0 for item in self.properties)

    def score(self, passed: Mapping[str, bool]) -> int:
        """Points for the properties that passed, by name; 0 unless every gate did.

        A property that is not in `passed` counts as failed.
        """
        if not all(passed.get(item.name) for item in self.properties if item.points is None):
            return 0
        return sum(item.points or 0 for item in self.properties if passed.get(item.name))

    def __getitem__(self, name: str) -> Property:
        for item in self.properties:
            if item.name == name:
                return item
        raise KeyError(f"{self.function} has no property {name!r}")


class Call(Protocol):
    """The student's function as a test sees it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns. Arguments are copied first, since it may change them."""

    def gradient(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The value returned, a 0-d tensor, and its gradient in the first argument.

        AssertionError where nothing connects the two: that is no gradient of 0.
        """


Test = Callable[[Call], None]


class AnswerError(Exception):
    """The student's function raised. The original exception is the `__cause__`."""


def slope(value: Any, wrt: Tensor) -> Tensor | None:
    """The gradient of a value in a tensor; None if it is no 0-d tensor that depends on it."""
    if not (isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad):
        return None
    (gradient,) = torch.autograd.grad(value, wrt, allow_unused=True)
    return gradient


class LocalCall:
    """A `Call` of a function in this process."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = copy.deepcopy((args, kwargs))
        return self._run(args, kwargs)

    def gradient(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        args, kwargs = copy.deepcopy((args, kwargs))
        wrt = args[0].requires_grad_()
        value = self._run(args, kwargs)
        gradient = slope(value, wrt)
        if gradient is None:
            raise AssertionError("a 0-d tensor with a gradient in the first argument is expected")
        return value.detach(), gradient

    def _run(self, args: tuple, kwargs: dict) -> Any:
        try:
            return self.function(*args, **kwargs)
        except NotImplementedError:
            raise
        except Exception as error:
            raise AnswerError(f"{type(error).__name__}: {error}") from error


def expect_error(kind: type[Exception], call: Call, *args: Any, **kwargs: Any) -> None:
    """AssertionError unless the function raises this kind of exception."""
    try:
        call(*args, **kwargs)
    except AnswerError as error:
        if not isinstance(error.__cause__, kind):
            raise
        return
    raise AssertionError(f"{kind.__name__} is expected, and nothing was raised")


def expect_tensor(found: Any, *dtypes: torch.dtype) -> None:
    """AssertionError unless `found` is a tensor, of one of these types if any is named."""
    if not isinstance(found, Tensor):
        raise AssertionError(f"a tensor is expected; got {type(found).__name__}")
    if dtypes and found.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise AssertionError(f"{names} is expected; got {found.dtype}")


def expect_finite(found: Tensor) -> None:
    """AssertionError unless all numbers are finite."""
    if not found.isfinite().all():
        raise AssertionError("finite numbers are expected; got NaN or infinity")


def expect_close(found: Any, expected: Tensor, tolerance: float = 1e-5) -> None:
    """AssertionError unless `found` is a finite floating-point tensor close to `expected`.

    Shapes must be equal. The tolerance is absolute and relative. The message never holds the
    expected numbers.
    """
    expect_tensor(found)
    if not found.is_floating_point():
        raise AssertionError(f"a floating-point tensor is expected; got {found.dtype}")
    if found.shape != expected.shape:
        raise AssertionError(f"shape {list(expected.shape)} is expected; got {list(found.shape)}")
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    expect_finite(found)
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        raise AssertionError("the numbers differ")
