"""DeepSpeed's CPU optimizers, which it compiles when they are first used."""

from __future__ import annotations

import os
from typing import Any

from .base import Competitor, Peer, Task, hyper_of, limit_threads, load
from .pytorch import leaf, load_torch

#: Its third, Lion, is not measured.
CLASSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adam": ("adam", "DeepSpeedCPUAdam", {"adamw_mode": False}),
    "adamw": ("adam", "DeepSpeedCPUAdam", {"adamw_mode": True, "weight_decay": 0.01}),
    "adagrad": ("adagrad", "DeepSpeedCPUAdagrad", {}),
}


def build(task: Task) -> Peer:
    """The optimizer's ``step``, over a torch parameter."""
    load_torch(task.threads)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it looks for others, and warns, otherwise
    module, name, options = CLASSES[task.rule.name]
    ops = load(f"deepspeed.ops.{module}", "deepspeed")
    hyper = hyper_of(task.rule)
    param, array = leaf(task.start, task.grad)
    optimizer = getattr(ops, name)([param], lr=hyper["lr"], eps=hyper["eps"], **options)
    limit_threads(task.threads)
    return Peer(optimizer.step, lambda: [array])


DEEPSPEED = Competitor("deepspeed", "DeepSpeed", build, "deepspeed", rules=CLASSES, dtypes=("float32",))
