"""Checks of arguments."""

from __future__ import annotations

import math
from operator import index
from typing import Any


def check_integer(name: str, value: Any, low: int, high: float = math.inf) -> int:
    """`value` as an integer within bounds.

    Raises
    ------
    TypeError, ValueError
        It is none, or outside.
    """
    domain = f"an integer >= {low}" + (f" and <= {high}" if high < math.inf else "")
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name}: found {value!r} of type {type(value).__name__}, expected {domain}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: found {number}, expected {domain}")
    return number


def check_number(name: str, value: Any, high: float = math.inf, *, above: bool = False) -> float:
    """`value` as a finite number >= 0, or above 0, and at most `high`.

    Raises
    ------
    TypeError, ValueError
        It is none, or outside.
    """
    sign = ">" if above else ">="
    domain = f"a finite number {sign} 0" + (f" and <= {high:g}" if high < math.inf else "")
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: found {value!r} of type {type(value).__name__}, expected {domain}")
    number = float(value)
    if not 0 <= number <= high or math.isinf(number) or (above and number == 0):
        raise ValueError(f"{name}: found {value!r}, expected {domain}")
    return number
