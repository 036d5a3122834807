"""Internal. What carries messages among ranks: one process alone, threads of one, processes by MPI."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from .world import RankDied, Request, World, machine_of


class Alone:
    """The one rank of a process that is alone."""

    rank, size, machines = 0, 1, ((0,),)

    def all_gather(self, item: Any) -> list[Any]:
        """Return what was given."""
        return [item]

    def gather(self, item: Any) -> list[Any]:
        """Return what was given."""
        return [item]

    def exchange(self, items: Sequence[Any]) -> list[Any]:
        """Return what was given."""
        return list(items)

    def meet(self) -> None:
        """Do nothing."""

    def send(self, to: int, array: np.ndarray) -> Request:
        """Refuse: there is no other rank."""
        raise ValueError(f"to: found rank {to}, expected one of the other 0 ranks")

    def receive(self, source: int, array: np.ndarray) -> Request:
        """Refuse: there is no other rank."""
        raise ValueError(f"source: found rank {source}, expected one of the other 0 ranks")

    def share(self, size: int) -> list[np.ndarray]:
        """Return memory of its own."""
        return [np.zeros(size, np.uint8)]


class _Hub:
    """The common part of ranks that are threads."""

    def __init__(self, machine_of: Sequence[int]) -> None:
        self.size = size = len(machine_of)
        self.machines = [[r for r in range(size) if machine_of[r] == machine] for machine in sorted({*machine_of})]
        self.barrier = threading.Barrier(size)
        self.near = [threading.Barrier(len(machine)) for machine in self.machines]
        self.board: list[Any] = [None] * size
        self.mail: dict[tuple[int, int, int], np.ndarray] = {}  # by source, receiver and number
        self.changed = threading.Condition()
        self.failed = False

    def fail(self) -> None:
        """Wake all who wait for a rank that has ended."""
        with self.changed:
            self.failed = True
            self.changed.notify_all()
        for barrier in (self.barrier, *self.near):
            barrier.abort()

    def wait(self, for_what: Callable[[], bool]) -> None:
        """Wait, with `changed` held."""
        self.changed.wait_for(lambda: self.failed or for_what())
        if self.failed:
            raise RankDied("found another rank's thread ended by an exception, expected all to go on")


class _Sent:
    def __init__(self, hub: _Hub, key: tuple[int, int, int]) -> None:
        self._hub, self._key = hub, key

    def wait(self) -> None:
        with self._hub.changed:
            self._hub.wait(lambda: self._key not in self._hub.mail)


class _Received:
    def __init__(self, hub: _Hub, key: tuple[int, int, int], array: np.ndarray) -> None:
        self._hub, self._key, self._array = hub, key, array

    def wait(self) -> None:
        with self._hub.changed:
            self._hub.wait(lambda: self._key in self._hub.mail)
            np.copyto(self._array, self._hub.mail.pop(self._key), casting="no")
            self._hub.changed.notify_all()


class Threads:
    """A rank that is a thread, among others of one process."""

    def __init__(self, hub: _Hub, rank: int) -> None:
        self.rank, self.size, self.machines, self._hub = rank, hub.size, hub.machines, hub
        self._near = next(barrier for barrier, own in zip(hub.near, hub.machines, strict=True) if rank in own)
        self._sent, self._received = [0] * hub.size, [0] * hub.size

    def all_gather(self, item: Any) -> list[Any]:
        """Return what each rank gave."""
        self._hub.board[self.rank] = item
        self._wait(self._hub.barrier)
        found = list(self._hub.board)
        self._wait(self._hub.barrier)
        return found

    def gather(self, item: Any) -> list[Any] | None:
        """Return what each rank gave on rank 0, and None elsewhere."""
        found = self.all_gather(item)
        return None if self.rank else found

    def exchange(self, items: Sequence[Any]) -> list[Any]:
        """Give each rank an item, and return what each gave this one."""
        return [given[self.rank] for given in self.all_gather(items)]

    def meet(self) -> None:
        """Wait until all on this machine have called it."""
        self._wait(self._near)

    def _wait(self, barrier: threading.Barrier) -> None:
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            raise RankDied("found another rank's thread ended by an exception, expected all to go on") from None

    def send(self, to: int, array: np.ndarray) -> Request:
        """Leave an array for another rank."""
        key = (self.rank, to, self._sent[to])
        self._sent[to] += 1
        with self._hub.changed:
            self._hub.mail[key] = array
            self._hub.changed.notify_all()
        return _Sent(self._hub, key)

    def receive(self, source: int, array: np.ndarray) -> Request:
        """Copy what another rank leaves."""
        key = (source, self.rank, self._received[source])
        self._received[source] += 1
        return _Received(self._hub, key, array)

    def share(self, size: int) -> list[np.ndarray]:
        """Return memory of each rank on this machine."""
        memory = self.all_gather(np.zeros(size, np.uint8))
        return [memory[rank] for rank in machine_of(self)]


_world: ContextVar[World | None] = ContextVar("fastopt_world", default=None)
_alone = Alone()


def current() -> World:
    """The ranks of this process, or of this thread where ranks are threads."""
    world = _world.get()
    if world is not None:
        return world
    if processes() < 2:
        return _alone
    from .mpi import world_of_processes  # which imports mpi4py

    return world_of_processes()


def processes() -> int:
    """The number of processes that a launcher has said."""
    return max(int(os.environ.get(name) or 1) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))


def run_threads(ranks: int, function: Callable[[], Any], *, machines: Sequence[int] | None = None) -> list[Any]:
    """Call a function in each of some threads, which are ranks; return what each returned.

    Parameters
    ----------
    ranks : int
        Their number.
    function : callable
        Of no argument.
    machines : sequence of int, optional
        The machine that each is to be on, as if it could not read the memory of others; by default all are on one.

    Raises
    ------
    Exception
        That of the first rank that failed; the others have ended too.
    """
    hub = _Hub(machines or [0] * ranks)
    results: list[Any] = [None] * ranks
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        _world.set(Threads(hub, rank))
        try:
            results[rank] = function()
        except BaseException as error:
            errors.append(error)
            hub.fail()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
