"""Internal. A worker that is a process, as it asks servers that are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .asynchronous import Ask
from .core import Reply
from .post import Channel, Receiver, Rest, Sender
from .server import END, Kind, Told, packed, unpacked


class _Line:
    """What is between a worker and the server of a shard."""

    def __init__(self, channel: Channel, rank: int) -> None:
        self._to, self._from = Sender(channel, rank), Receiver(channel, rank)

    def ask(self, numbers: Sequence[int], items: Sequence[Any]) -> None:
        self._from.expect()
        self._to.send(numbers, items)

    def answered(self) -> bool:
        return self._from.arrived() and self._to.done()

    @property
    def answer(self) -> tuple[list[int], list[Any]]:
        """What has been answered."""
        return self._from.numbers.tolist(), self._from.items


class Client:
    """A worker's requests to all servers.

    Parameters
    ----------
    channel : Channel
        What carries messages.
    servers : sequence of int
        The rank of each shard's server.
    cuts : sequence of int
        The first parameter of each shard, and the number of all.
    """

    def __init__(self, channel: Channel, servers: Sequence[int], cuts: Sequence[int]) -> None:
        self._lines = [_Line(channel, rank) for rank in servers]
        self._cuts = cuts
        self._number = 0
        self._asked: Ask | None = None

    def ask(self, ask: Ask) -> None:
        """Begin to ask."""
        self._number += 1
        self._asked = ask
        for s, line in enumerate(self._lines):
            part = () if ask.payload is None else ask.payload[self._cuts[s] : self._cuts[s + 1]]
            line.ask([ask.op, self._number], part)

    def wait(self, ask: Ask) -> None:
        """Wait until all have answered.

        Raises
        ------
        TypeError, ValueError
            A server could not do what it was asked for.
        RankDied
            A server has ended.
        """
        replies = []
        for numbers, items in self._answers():
            if numbers[0] == Kind.ERROR:
                raise unpacked(*items)
            replies.append(Reply(numbers[1], numbers[2], items))
        self._asked, ask.replies = None, replies

    def end(self, error: BaseException | None) -> list[Told]:
        """Tell that there is nothing more to ask, and what went wrong; wait for what all have learned."""
        if self._asked is not None:
            self._answers()
        for line in self._lines:
            line.ask([END, 0], [packed(error)])
        return [(unpacked(about), values) for _, (about, *values) in self._answers()]

    def _answers(self) -> list[tuple[list[int], list[Any]]]:
        rest = Rest(1e-4)
        while not all(line.answered() for line in self._lines):
            rest.after(False)
        self._asked = None
        return [line.answer for line in self._lines]
