"""Internal. A worker that is a process, as it asks servers that are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .asynchronous import Ask, Side
from .core import Reply
from .post import Lost, Peers, Rest
from .roll import Kind, Roll
from .server import packed, unpacked
from .workers import Numbers, Told
from .world import RankDied


class _Asked(NamedTuple):
    """What a shard has been asked: a parcel, and where the arrays of its answer may be received."""

    numbers: list[int]
    items: Sequence[Any]
    into: Sequence[np.ndarray]


class Client:
    """A worker's requests to the servers of all shards.

    Parameters
    ----------
    peers : Peers
        What carries them.
    roll : Roll
        Who has the shards.
    cuts : sequence of int
        The first parameter of each shard, and the number of all.
    side : Side
        What asks.
    number : int
        The number of the last request.
    """

    def __init__(self, peers: Peers, roll: Roll, cuts: Sequence[int], side: Side, number: int) -> None:
        self._peers, self._roll, self._cuts, self._side = peers, roll, cuts, side
        self._numbers = Numbers(side, number)
        self._asked: dict[int, _Asked] = {}  # of each shard, until it has answered
        self._answers: dict[int, tuple[list[int], list[Any]]] = {}
        self._at: dict[int, int] = {}  # the rank that was asked

    def ask(self, ask: Ask) -> None:
        """Begin to ask."""
        op, *numbers = self._numbers.header(ask.op)
        for s in range(len(self._cuts) - 1):
            own = slice(self._cuts[s], self._cuts[s + 1])
            part = () if ask.payload is None else ask.payload[own]
            # What a server sends that stopped and was replaced may come when the worker has gone on.
            into = () if ask.into is None or self._roll.replaces else ask.into[own]
            self._ask(s, _Asked([Kind.ASK + op, *numbers], part, into))

    def wait(self, ask: Ask) -> None:
        """Wait until all have answered.

        Raises
        ------
        TypeError, ValueError
            A server could not do what it was asked for.
        RankDied
            A server has ended, and no spare is left; or this worker was taken for ended.
        """
        replies = []
        for numbers, items in self._wait():
            if numbers[0] == Kind.ERROR:
                raise unpacked(*items)
            replies.append(Reply(numbers[1], numbers[2], items))
        ask.replies = replies
        self._numbers.answered()

    def end(self, error: BaseException | None) -> list[Told]:
        """Tell that there is nothing more to ask, and what went wrong; wait for what all have learned."""
        self._wait()
        for s in range(len(self._cuts) - 1):
            self._ask(s, _Asked([Kind.END, 0, self._side.steps, self._numbers.pushed], [packed(error)], ()))
        return [(unpacked(about), values) for _, (about, *values) in self._wait()]

    def _ask(self, shard: int, asked: _Asked) -> None:
        self._asked[shard] = asked
        holder = self._roll.holders[shard]
        self._at.pop(shard, None)
        if holder is None:
            return
        self._at[shard] = holder
        try:
            self._peers.of(holder).expect(asked.into)
            self._peers.to(holder).send(asked.numbers, asked.items)
        except Lost:
            self._roll.lose(holder)

    def _wait(self) -> list[tuple[list[int], list[Any]]]:
        rest = Rest(1e-4)
        while self._asked:
            for shard in list(self._asked):
                self._look(shard)
            if self._roll.due():
                self._roll.look()
                holders = enumerate(self._roll.holders)  # some may have taken over what has been answered
                self._roll.beat({rank for s, rank in holders if s not in self._asked and rank is not None})
            rest.after(not self._asked)
        return [self._answers[s] for s in sorted(self._answers)]

    def _look(self, shard: int) -> None:
        """See whether a shard has answered; ask again who has it now, if somebody else has."""
        holder = self._roll.holders[shard]
        if holder is None:
            self._roll.look()
        elif holder != self._at.get(shard):
            self._ask(shard, self._asked[shard])
        else:
            receiver = self._peers.of(holder)
            try:
                if not receiver.arrived():
                    return
                numbers, items = receiver.numbers.tolist(), receiver.items
                if numbers[0] == Kind.ERROR and isinstance(error := unpacked(*items), RankDied):
                    raise error  # the server hears this worker no more
                if self._peers.to(holder).done():
                    del self._asked[shard]
                    self._answers[shard] = numbers, items
            except Lost:
                self._roll.lose(holder)
