"""Instant answers to a student's code.

`try_it` serves the small exercises at the end of a chapter, whose cases stand in the notebook.
"""

from collections.abc import Callable
from typing import Any

import torch


def try_it(function: Callable, *cases: tuple[tuple, Any]) -> None:
    """Run a student's function on cases and print, case by case, whether it is right.

    Args:
        function: what the student wrote. One that raises NotImplementedError was not attempted.
        cases: pairs (arguments, expected). Tensors and numbers must agree to 1e-4, and tensors in
            shape; all else must be equal. NaN agrees with NaN.
    """
    name = function.__name__
    right = 0
    for number, (arguments, expected) in enumerate(cases, start=1):
        try:
            found = function(*arguments)
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
            print(f"[ ] case {number}: got {_short(found)}, expected {_short(expected)}")
    print(f"{name}: {right} of {len(cases)} cases right")


def _agree(found: Any, expected: Any) -> bool:
    try:
        found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    except (TypeError, ValueError, RuntimeError):
        return found == expected
    return found.shape == expected.shape and torch.allclose(
        found.double(), expected.double(), rtol=1e-4, atol=1e-4, equal_nan=True
    )


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.numel() > 6:
        return f"a tensor of shape {list(value.shape)}"
    return f"{value.tolist() if isinstance(value, torch.Tensor) else value}"
