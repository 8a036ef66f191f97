"""Where hidden tests take their inputs from: a secret of the grader's, and the test's name."""

# canary: 5a3c0e7e-hidden-segcourse

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence

import torch

from segcourse.exercises.contract import Call, Test

Drawn = Callable[[Call, torch.Generator], None]


def generator(secret: bytes, name: str) -> torch.Generator:
    """A source of random numbers that follows from the secret and the name alone."""
    digest = hmac.new(secret, name.encode(), hashlib.sha256).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def bind(
    secret: bytes, exercise: str, table: Mapping[str, Sequence[Drawn]]
) -> dict[str, list[Test]]:
    """Tests of a call alone, made from tests that also draw their inputs.

    `table` maps a property to its tests, functions of a call and a generator. Each gets a
    generator of its own, whatever ran before it, and keeps its name.
    """

    def bound(item: str, function: Drawn) -> Test:
        def test(call: Call) -> None:
            function(call, generator(secret, f"{exercise}/{item}/{function.__name__}"))

        test.__name__ = function.__name__
        return test

    return {item: [bound(item, f) for f in functions] for item, functions in table.items()}
