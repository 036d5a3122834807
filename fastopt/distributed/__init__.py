"""Training by several processes, threads or machines: the same bits for any number of them."""

from .checkpoint import Checkpoint, read_checkpoint
from .commons import shared
from .periodic import DiLoCo, Elastic, LocalSGD
from .synchronous import Synchronous
from .world import RankDied

__all__ = ["Checkpoint", "DiLoCo", "Elastic", "LocalSGD", "RankDied", "Synchronous", "read_checkpoint", "shared"]


def __dir__() -> list[str]:
    return sorted(__all__)
