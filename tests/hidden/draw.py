"""The hidden tests, and where they take their inputs from: a secret of the grader's, and the
name of the test."""

# canary: 5a3c0e7e-hidden-segcourse

import hashlib
import hmac
import importlib
from collections.abc import Callable

import torch

from segcourse.exercises.contract import Call, Test

Drawn = Callable[[Call, torch.Generator], None]


def generator(secret: bytes, name: str) -> torch.Generator:
    """A source of random numbers that follows from the secret and the name alone."""
    digest = hmac.new(secret, name.encode(), hashlib.sha256).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def tests(exercise: str, secret: bytes) -> dict[str, list[Test]]:
    """The hidden tests of each property of an exercise, their inputs drawn from the secret.

    `TESTS` in the exercise's `suite.py` maps a property to functions of a call and a generator.
    Each gets a generator of its own, whatever ran before it, and keeps its name.
    """

    def bound(item: str, function: Drawn) -> Test:
        def test(call: Call) -> None:
            function(call, generator(secret, f"{exercise}/{item}/{function.__name__}"))

        test.__name__ = function.__name__
        return test

    table = importlib.import_module(f"hidden.{exercise}.suite").TESTS
    return {item: [bound(item, f) for f in functions] for item, functions in table.items()}


def whole(g: torch.Generator, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=g))


def real(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=g).item()
