"""The backends of fastopt, by the plan of a class: its fastest form."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...backends.choice import available_backends
from ...optimizers import CLASSES
from ..section import LABELS, Skip
from .base import ALL, DENSE, Competitor, Peer, Task, hyper_of

#: Options that make a class do a rule, where it does another by default.
_OPTIONS: dict[str, dict[str, Any]] = {
    "rmsprop_momentum": {"momentum": 0.9},
    "rmsprop_centered": {"centered": True},
    "rmsprop_centered_momentum": {"centered": True, "momentum": 0.9},
    "adamw_amsgrad": {"amsgrad": True},
    "dc_asgd_adaptive": {"adaptive": True},
}


def build(backend: str, task: Task) -> Peer:
    """The rule's class, bound to the gradient."""
    status = available_backends()[backend]
    if status != "available":
        raise Skip(status)
    rule, param = task.rule, task.start.copy()
    options = {"lr": hyper_of(rule)["lr"], **_OPTIONS.get(rule.name, {})}
    optimizer = CLASSES[rule.optimizer](param, backend=backend, threads=task.threads, **options)
    plan = optimizer.bind(task.grad)
    return Peer(plan.step, lambda: [param, *(optimizer.state[0][name] for name in rule.state_names)])


BACKENDS = tuple(
    Competitor(name, label, partial(build, name), rules=DENSE, dtypes=ALL) for name, label in LABELS.items()
)
