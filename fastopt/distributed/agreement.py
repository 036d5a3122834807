"""Internal. What all ranks must have alike, compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import describe
from ..statedict import saved_value
from .world import World


def said(value: Any) -> str:
    """An argument's value as one that ranks compare: schedules by what they are, functions by name."""
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(said, value))})"
    if callable(value) and not isinstance(value, type):
        saved = saved_value(value)
        return describe(saved) if isinstance(saved, Mapping) else getattr(value, "__qualname__", type(value).__name__)
    return repr(value)


def digest(memory: np.ndarray) -> str:
    """The digest of an array's bytes."""
    return hashlib.blake2b(memory.data, digest_size=16).hexdigest()


def check_alike(own: Mapping[str, str], world: World) -> None:
    """Check that all ranks say the same.

    Raises
    ------
    ValueError
        One does not: the first difference is named, in every rank.
    """
    first, *others = world.all_gather(dict(own))
    for rank, theirs in enumerate(others, 1):
        for name in {**first, **theirs}:
            if first.get(name) != theirs.get(name):
                raise ValueError(
                    f"{name}: found {theirs.get(name, 'none')} in rank {rank}, expected {first.get(name, 'none')} as "
                    "in rank 0: all ranks are called with the same"
                )
