"""The package prodigyopt: Prodigy as its authors have it, over torch's tensors."""

from __future__ import annotations

from .base import Competitor, Peer, Task, load
from .pytorch import leaf, load_torch


def build(task: Task) -> Peer:
    """The optimizer's ``step``."""
    load_torch(task.threads)
    param, array = leaf(task.start, task.grad)
    return Peer(load("prodigyopt", "prodigyopt").Prodigy([param]).step, lambda: [array])


PRODIGYOPT = Competitor("prodigyopt", "prodigyopt", build, "prodigyopt", rules=("prodigy",), temporaries=3)
