"""Internal. Who has each shard: its server, or a spare that has taken over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum

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
    ASK = 6  # and what is asked for


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
    """

    def __init__(self, peers: Peers, servers: Sequence[int], spares: Sequence[int], epochs: Sequence[int]) -> None:
        self.holders: list[int | None] = list(servers)
        self.epochs = list(epochs)
        self.gone: set[int] = set()
        self.left: set[int] = set()
        self._peers, self._free = peers, set(spares) - {peers.rank}
        self._waits = peers.rank in spares
        for rank in self._free:
            peers.of(rank).expect()

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
                if kind == Kind.NEWS:
                    self.holders[shard], self.epochs[shard] = rank, epoch
                else:
                    self.left.add(rank)
            except Lost:
                self.gone.add(rank)
            self._free.remove(rank)
        if None in self.holders and not self._free and not self._waits:
            shard = self.holders.index(None)
            raise RankDied(f"found the server of shard {shard} ended, and no spare left, expected one that goes on")

    def lose(self, rank: int) -> None:
        """Take notice of the end of a rank."""
        self.holders = [None if rank == holder else holder for holder in self.holders]

    def say_bye(self) -> None:
        """Tell all that have a shard that this rank knows all results: they may end."""
        for holder in {rank for rank in self.holders if rank is not None} - {self._peers.rank}:
            with suppress(Lost):
                self._peers.to(holder).send([Kind.BYE])
                while not self._peers.to(holder).done():
                    time.sleep(1e-4)
