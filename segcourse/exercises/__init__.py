"""Instant answers to a student's code.

`try_it` serves the small exercises at the end of a chapter, whose cases stand in the notebook.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch


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
            print(f"[ ] case {number}: got {_short(found)}, expected {_short(expected)}")
    print(f"{name}: {right} of {len(cases)} cases right")


def _agree(found: Any, expected: Any) -> bool:
    try:
        found, expected = torch.as_tensor(found).cpu(), torch.as_tensor(expected).cpu()
    except (TypeError, ValueError, RuntimeError):
        return type(found) is type(expected) and found == expected
    if found.shape != expected.shape or found.is_complex():
        return False
    exact = not expected.is_floating_point()
    tolerance = 0 if exact else 1e-4
    return torch.allclose(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.numel() > 6:
        return f"a tensor of shape {list(value.shape)}"
    return f"{value.tolist() if isinstance(value, torch.Tensor) else value}"
