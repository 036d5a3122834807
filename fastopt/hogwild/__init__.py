"""Hogwild: threads and processes that update the same arrays without locks (Niu, Recht, Ré and Wright 2011)."""

from .engine import async_adagrad
from .models import Factorization, LinearModel
from .runner import Run, WorkerDied, run
from .shared import SharedArrays

__all__ = ["Factorization", "LinearModel", "Run", "SharedArrays", "WorkerDied", "async_adagrad", "run"]


def __dir__() -> list[str]:
    return sorted(__all__)
