"""thinc's ``NumpyOps.adam``, which uses one thread and zeroes the gradient as it goes."""

from __future__ import annotations

import itertools
from math import sqrt

import numpy as np

from .base import Competitor, Peer, Task, hyper_of, load, new_arrays


def build(task: Task) -> Peer:
    """Its update, with the bias corrections that it leaves to its caller."""
    ops = load("thinc.api", "thinc").NumpyOps()
    arrays, grad = new_arrays(task), task.grad.copy()
    hyper, count = hyper_of(task.rule), itertools.count(1)
    lr, beta1, beta2, eps = (hyper[name] for name in ("lr", "beta1", "beta2", "eps"))

    def step() -> None:
        t = next(count)
        root = sqrt(1 - beta2**t)
        ops.adam(arrays[0], grad, *arrays[1:], beta1, beta2, eps * root, lr * root / (1 - beta1**t))

    return Peer(step, lambda: arrays, before=lambda: np.copyto(grad, task.grad))


THINC = Competitor("thinc", "thinc", build, "thinc", rules=("adam",), dtypes=("float32",), temporaries=1)
