"""Parts that the backends for the CPU have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.libraries import multiply
from ..checks import describe


def find_bags(offsets: Array, bags: int, lookups: int, mean: np.dtype | None) -> tuple[Any, Any]:
    """Return the bag of each lookup, and for means of a dtype one over its bag's size.

    Raises
    ------
    ValueError
        The offsets are not those of so many bags.
    """
    given = offsets.numpy()
    begins = given.astype(np.int64)
    if len(begins) == bags:
        begins = np.append(begins, lookups)
    sizes = np.diff(begins)
    if len(begins) != bags + 1 or begins[0] != 0 or begins[-1] != lookups or (sizes < 0).any():
        raise ValueError(
            f"offsets: found {describe(given)}, expected {bags} or {bags + 1} of them (values has {bags} rows), from "
            f"0, never falling, to {lookups} at most"
        )
    source = np.repeat(np.arange(bags), sizes)
    return source, None if mean is None else np.repeat(1 / np.maximum(sizes, 1).astype(mean), sizes)


def scale(arithmetic: Callable[[], AbstractContextManager[None]], array: Array, factor: float) -> None:
    """Multiply all elements of an array by a number, in place, in some arithmetic."""
    with arithmetic():
        multiply(array, factor)
