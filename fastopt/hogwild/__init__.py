"""Hogwild: threads and processes that update the same arrays without locks (Niu, Recht, Ré and Wright 2011)."""

from .runner import Run, WorkerDied, run
from .shared import SharedArrays

__all__ = ["Run", "SharedArrays", "WorkerDied", "run"]
