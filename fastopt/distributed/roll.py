"""Internal. Who has each shard: its server, or a spare that has taken over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Any

from .post import Lost, Peers
from .world import RankDied


class Kind(IntEnum):
    """What a parcel is."""

    REPLY = 0
    ERROR = 1
    RESULT = 2  # of a shard, at the end
    NEWS = 3  # a spare has taken over
    BYE = 4  # the results of all are known
    END = 5  # a worker asks for nothing more
    BEAT = 6  # this rank has not stopped: a server to spares, and a worker that waits for another server
    ASK = 7  # and what is asked for


class Watch:
    """How long others have said nothing, in time in which this rank has not been stopped itself.

    Parameters
    ----------
    timeout : float
        The seconds after which a rank is taken for ended.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._tick = min(timeout / 10, 1.0)
        self._now, self._looked, self._due = 0.0, time.perf_counter(), self._tick
        self._heard: dict[Any, float] = {}

    def due(self) -> bool:
        """Count the time; tell whether it is time to look who is silent, and to say that this rank is not."""
        looked = time.perf_counter()
        self._now += min(looked - self._looked, self._tick)
        self._looked = looked
        if self._now < self._due:
            return False
        self._due = self._now + self._tick
        return True

    def heard(self, whom: Any) -> None:
        """Count from now on."""
        self._heard[whom] = self._now

    def silent(self, whom: Any, times: int = 1) -> bool:
        """Tell whether somebody is to be taken for ended; of who is new it is counted from now on."""
        return self._now - self._heard.setdefault(whom, self._now) > times * self._timeout


class Roll:
    """Who has each shard, as a rank knows.

    Parameters
    ----------
    peers : Peers
        This rank's parcels.
    servers, spares : sequence of int
        The ranks that have a shard at first, and those that have none.
    epochs : sequence of int
        Of each shard how many servers have had it.
    timeout : float
        The seconds after which a rank is taken for ended.
    ended : callable
        It returns ranks whose processes are known to have ended, by other means than messages.

    Attributes
    ----------
    holders : list of int or None
        Of each shard the rank that has it; None while nobody is known to have it.
    epochs : list of int
        Of each shard how many servers have had it, as far as is known.
    gone : set of int
        The spares that have ended.
    left : set of int
        Those that know all results.
    silent : set of int
        Those that this rank took for ended, as they said nothing.
    watch : Watch
        How long others have said nothing.
    replaces : bool
        True where a spare may take over a shard, though its server has only stopped.
    """

    def __init__(
        self,
        peers: Peers,
        servers: Sequence[int],
        spares: Sequence[int],
        epochs: Sequence[int],
        timeout: float,
        ended: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self.holders: list[int | None] = list(servers)
        self.epochs = list(epochs)
        self.gone: set[int] = set()
        self.left: set[int] = set()
        self.silent: set[int] = set()
        self.watch = Watch(timeout)
        self.replaces = bool(spares)
        self._peers, self._ended, self._free = peers, ended, set(spares) - {peers.rank}
        self._waits = peers.rank in spares
        for rank in self._free:
            peers.of(rank).expect()

    def due(self) -> bool:
        """Count the time; tell whether it is time to look who is silent, and see then who has ended."""
        due = self.watch.due()
        if due:
            self._peers.channel.lost.update(self._ended())
        return due

    def look(self) -> None:
        """See whether spares have something to say.

        Raises
        ------
        RankDied
            A shard is lost, and no spare is left.
        """
        for rank in sorted(self._free):
            receiver = self._peers.of(rank)
            try:
                if not receiver.arrived():
                    continue
                kind, shard, epoch = receiver.numbers[:3].tolist()
                if kind == Kind.NEWS and epoch > self.epochs[shard]:  # else it stopped, and another one has taken over
                    self.holders[shard], self.epochs[shard] = rank, epoch
                elif kind == Kind.BYE:
                    self.left.add(rank)
            except Lost:
                self.gone.add(rank)
            self._free.remove(rank)
        if None in self.holders and not self._waits:
            shard = self.holders.index(None)
            found = f"found the server of shard {shard} ended, and no spare"
            if not self._free:
                raise RankDied(f"{found} left, expected one that goes on")
            if self.watch.silent(("shard", shard), 1 + len(self._free)):  # each of them may have stopped over it
                raise RankDied(f"{found} that has taken over, expected one that goes on")

    def beat(self, to: Iterable[int] | None = None) -> None:
        """Tell ranks, by default the spares, that this one has not stopped."""
        for rank in self._free if to is None else to:
            with suppress(Lost):  # which is seen by looking for what they say
                if self._peers.to(rank).done():
                    self._peers.to(rank).send([Kind.BEAT])

    def give_up(self, rank: int) -> None:
        """Take a rank for ended."""
        self.silent.add(rank)
        self._peers.channel.lost.add(rank)

    def lose(self, rank: int) -> None:
        """Take notice of the end of a rank."""
        for shard, holder in enumerate(self.holders):
            if rank == holder:
                self.watch.heard(("shard", shard))
        self.holders = [None if rank == holder else holder for holder in self.holders]

    def say_bye(self) -> None:
        """Tell all that have a shard that this rank knows all results: they may end."""
        for holder in {rank for rank in self.holders if rank is not None} - {self._peers.rank}:
            with suppress(Lost):
                self._peers.to(holder).send([Kind.BYE])
                while not self._peers.to(holder).done():
                    time.sleep(1e-4)
