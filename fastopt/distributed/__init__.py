"""Training by several processes, threads or machines: the same bits for any number of them."""

from .checkpoint import Checkpoint, read_checkpoint
from .synchronous import Synchronous
from .world import RankDied

__all__ = ["Checkpoint", "RankDied", "Synchronous", "read_checkpoint"]


def __dir__() -> list[str]:
    return sorted(__all__)
