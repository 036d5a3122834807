"""NumPy: the rule's own expressions over whole arrays, as one would write them."""

from __future__ import annotations

from types import FunctionType

import numpy as np

from .base import Competitor, Peer, Task, coefficients, new_arrays

_NUMPY = {"sqrt": np.sqrt, "where": np.where, "maximum": np.maximum, "isnan": np.isnan}


def build(task: Task) -> Peer:
    """The rule's update, its primitives bound to NumPy's."""
    rule, grad = task.rule, task.grad
    update = FunctionType(rule.update.__code__, {**rule.update.__globals__, **_NUMPY})
    param, *states = arrays = new_arrays(task)
    real = param.dtype.type
    decay, steps = coefficients(task)

    def step() -> None:
        if decay != 1:
            param[...] *= real(decay)
        for k, own in enumerate(next(steps)):
            mine = [state[k] for state in states] if rule.vector else states
            with np.errstate(all="ignore"):
                updated = update(param, grad, *mine, *map(real, own))
            for array, value in zip((param, *mine), updated if mine else (updated,), strict=True):
                array[...] = value

    return Peer(step, lambda: arrays)


NUMPY = Competitor("numpy", "NumPy", build, "numpy", temporaries=6)
