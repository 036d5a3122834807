"""What a step costs beside memory: Adam over many small tensors, or one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .. import functional
from ..optimizers import CLASSES
from .peers import load_torch
from .timing import microseconds

#: Tensors and their size, by what they are called.
SETS = {"1000 tensors of 10": (1000, 10), "1000 tensors of 1000": (1000, 1000), "1 tensor of 10": (1, 10)}


def tensors_of(count: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and gradients."""
    rng = np.random.default_rng(0)
    params, grads = rng.standard_normal((2, count, size), np.float32)
    return [row.copy() for row in params], [row.copy() for row in grads]


def measure(name: str, repeats: int, threads: int) -> dict[str, Any]:
    """Microseconds of a step over one of `SETS`, by each way of asking for it."""
    count, size = SETS[name]
    params, grads = tensors_of(count, size)
    optimizer = CLASSES["Adam"](params, threads=threads)
    plan = optimizer.bind(grads)
    lists: list[list[np.ndarray]] = [params, grads, [p * 0 for p in params], [p * 0 for p in params]]
    arrays = lists if count > 1 else [members[0] for members in lists]
    steps, adam = itertools.count(1), vars(functional)["adam"]
    calls = {
        "plan_us": plan.step,
        "step_us": lambda: optimizer.step(grads),
        "functional_us": lambda: adam(*arrays, step=next(steps)),
    }
    torch = load_torch()
    if torch is not None:
        from .. import torch as fastopt_torch

        torch.set_num_threads(threads)
        ours, theirs = ([torch.from_numpy(p.copy()).requires_grad_() for p in params] for _ in range(2))
        for leaf, grad in zip((*ours, *theirs), (*grads, *grads), strict=True):
            leaf.grad = torch.from_numpy(grad)
        calls["fastopt_torch_us"] = fastopt_torch.CLASSES["Adam"](ours, threads=threads).step
        calls["torch_us"] = torch.optim.Adam(theirs, fused=True).step
    return {"tensors": name, **{key: microseconds(call, repeats) for key, call in calls.items()}}
