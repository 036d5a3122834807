"""Training by several processes, threads or machines: the same bits for any number of them."""

from .synchronous import Synchronous
from .world import RankDied

__all__ = ["RankDied", "Synchronous"]


def __dir__() -> list[str]:
    return sorted(__all__)
