"""Training by several processes or machines, with the same bits for any number; and by workers that do not wait."""

from .asynchronous import EASGD, Downpour
from .checkpoint import Checkpoint
from .commons import shared
from .periodic import DiLoCo, Elastic, LocalSGD
from .reading import read_checkpoint
from .runs import replay, run
from .simulate import simulate
from .synchronous import Synchronous
from .workers import Result, Worker
from .world import RankDied

__all__ = [
    "EASGD",
    "Checkpoint",
    "DiLoCo",
    "Downpour",
    "Elastic",
    "LocalSGD",
    "RankDied",
    "Result",
    "Synchronous",
    "Worker",
    "read_checkpoint",
    "replay",
    "run",
    "shared",
    "simulate",
]


def __dir__() -> list[str]:
    return sorted(__all__)
