"""Internal. Ranks, as what they do together knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class RankDied(RuntimeError):
    """Another rank has ended before its time: what ranks do together cannot go on."""


class Request(Protocol):
    """A message that is under way."""

    def wait(self) -> None:
        """Return when the array has been sent, so that it may be written anew, or received."""


class World(Protocol):
    """The ranks of a run as one of them sees it. What is said of all is to be called by all, in the same order.

    Attributes
    ----------
    rank : int
        The number of this rank.
    size : int
        The number of ranks.
    """

    rank: int
    size: int

    @property
    def machines(self) -> Sequence[Sequence[int]]:
        """The ranks of each machine, in order: those that can read each other's memory."""

    def all_gather(self, item: Any) -> list[Any]:
        """Return what each rank gave; all call it. Nobody may change what is returned."""

    def gather(self, item: Any) -> list[Any] | None:
        """Return what each rank gave on rank 0, and None elsewhere; all call it."""

    def exchange(self, items: Sequence[Any]) -> list[Any]:
        """Give each rank an item, and return what each gave this one; all call it."""

    def meet(self) -> None:
        """Wait until all on this machine have called it, and what each wrote in shared memory is there for them."""

    def send(self, to: int, array: np.ndarray) -> Request:
        """Begin to send a contiguous array, which another rank receives in the order of sending."""

    def receive(self, source: int, array: np.ndarray) -> Request:
        """Begin to receive into an array of the size that is sent. Receives are waited for in order."""

    def share(self, size: int) -> list[np.ndarray]:
        """Return memory of each rank on this machine, in order, of this one so many bytes of zeros; all call it."""


def machine_of(world: World) -> Sequence[int]:
    """The ranks on this rank's machine."""
    return next(machine for machine in world.machines if world.rank in machine)
