"""``torch.optim``: its fused, foreach and plain kernels, and what ``torch.compile`` makes of a step."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .base import ALL, WIDE, Competitor, Peer, Task, hyper_of, load

#: The rules that torch has: its class, and its options beside lr.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {}),
    "adadelta": ("Adadelta", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_momentum": ("RMSprop", {"momentum": 0.9}),
    "rmsprop_centered": ("RMSprop", {"centered": True}),
    "rmsprop_centered_momentum": ("RMSprop", {"centered": True, "momentum": 0.9}),
    "adam": ("Adam", {}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "adamw": ("AdamW", {}),
    "adamw_amsgrad": ("AdamW", {"amsgrad": True}),
    "adamax": ("Adamax", {}),
    "nadam": ("NAdam", {}),
    "asgd": ("ASGD", {}),
    "radam": ("RAdam", {}),
    "rprop": ("Rprop", {}),
}
_FUSED = [name for name, (theirs, _) in CLASSES.items() if theirs in ("SGD", "Adagrad", "Adam", "AdamW")]  # on the CPU
_KERNELS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
    "compile": {"foreach": True},
}


def load_torch(threads: int | None = None) -> Any:
    """torch, told how many threads to use; raises `Skip` where it is missing."""
    torch = load("torch", "torch")
    if threads is not None:
        torch.set_num_threads(threads)
    return torch


def tensor_of(array: np.ndarray) -> Any:
    """The array as a tensor over the same memory."""
    torch = load_torch()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def leaf(start: np.ndarray, grad: np.ndarray) -> tuple[Any, np.ndarray]:
    """A leaf tensor, and the array over the same memory. The gradient is its own: some steps write into it."""
    array = start.copy()
    param = tensor_of(array).requires_grad_()
    param.grad = tensor_of(grad.copy())
    return param, array


def build(kernel: str, task: Task) -> Peer:
    """The optimizer's ``step``."""
    torch = load_torch(task.threads)
    name, options = CLASSES[task.rule.name]
    param, array = leaf(task.start, task.grad)
    optimizer = getattr(torch.optim, name)([param], lr=hyper_of(task.rule)["lr"], **_KERNELS[kernel], **options)
    step = optimizer.step
    if kernel == "compile":
        torch._dynamo.reset()  # or the ninth optimizer would be run uncompiled
        step = torch.compile(lambda: optimizer.step(), fullgraph=False)
    restore = None
    if "nesterov" in options and kernel in ("foreach", "compile"):  # they add the momentum to the gradient itself
        restore = partial(param.grad.copy_, tensor_of(task.grad))
    return Peer(step, lambda: [array], before=restore)


def _competitor(kernel: str, **more: Any) -> Competitor:
    return Competitor(f"torch-{kernel}", f"torch\n{kernel}", partial(build, kernel), "torch", **more)


TORCH = (
    _competitor("fused", rules=_FUSED, dtypes=ALL),
    _competitor("foreach", rules=CLASSES, dtypes=WIDE, temporaries=3),
    _competitor("loop", rules=CLASSES, dtypes=WIDE, temporaries=3, usual=False),
    _competitor("compile", rules=CLASSES, dtypes=("float32",), temporaries=1, usual=False),
)
