"""Internal. A server that is a process: requests of workers as they come, each handled by its core."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from .core import Header, Op, ServerCore
from .post import Channel, Lost, Receiver, Rest, Sender
from .world import RankDied

#: The number that a worker's last request has for its `Op`.
END = 3


#: The longest rest of a server in seconds, with which an idle one takes some 3 % of a core.
IDLE = 1.5e-3
#: What a server tells at the end: what there is to say of its shard, and its parameters.
Told = tuple[dict[str, Any], list[np.ndarray]]


class Kind(IntEnum):
    """What a server sends."""

    REPLY = 0
    ERROR = 1
    RESULT = 2


def packed(what: Any) -> np.ndarray:
    """Anything as an array of bytes; of an exception that cannot be packed its message."""
    try:
        return np.frombuffer(pickle.dumps(what), np.uint8)
    except Exception:
        return np.frombuffer(pickle.dumps(RuntimeError(f"{type(what).__name__}: {what}")), np.uint8)


def unpacked(array: np.ndarray) -> Any:
    """What was packed."""
    return pickle.loads(array.tobytes())


class Server:
    """The rank that has a shard.

    Parameters
    ----------
    core : ServerCore
        The shard.
    channel : Channel
        What carries messages.
    workers : int
        The number of workers, which are the first ranks.
    others : sequence of int
        The ranks that are no workers, but this one: they are told the result too.

    Attributes
    ----------
    dead : dict of int to BaseException
        Of each worker that did not come to its end, the exception.
    """

    def __init__(self, core: ServerCore, channel: Channel, workers: int, others: Sequence[int]) -> None:
        self.core = core
        self.dead: dict[int, BaseException] = {}
        self._live = set(range(workers))  # who may still ask
        self._from = {k: Receiver(channel, k) for k in range(workers)}
        self._to = {rank: Sender(channel, rank) for rank in [*range(workers), *others]}
        self._held: deque[tuple[int, Header]] = deque()

    def serve(self) -> None:
        """Answer workers until all have ended."""
        for k in sorted(self._live):
            self._expect(k)
        rest = Rest(IDLE)
        while self._live:
            asked = [self._look(k) for k in sorted(self._live)]
            rest.after(self._handle() or any(asked))

    def result(self) -> Told:
        """What has been learned."""
        core = self.core
        about = {"version": core.version, "delays": core.delays, "dead": self.dead, "order": core.order}
        return about, core.shard.values()

    def tell(self) -> None:
        """Begin to send all others the result."""
        about, values = self.result()
        for rank in list(self._to):
            try:
                self._to[rank].send([Kind.RESULT], [packed(about), *values])
            except Lost:
                del self._to[rank]

    def told(self) -> bool:
        """Tell whether all that was sent is on its way."""
        done = True
        for rank, sender in list(self._to.items()):
            try:
                done &= sender.done()
            except Lost:
                del self._to[rank]
        return done

    def _expect(self, worker: int) -> None:
        try:
            self._from[worker].expect()
        except Lost as lost:
            self._lose(lost)

    def _look(self, worker: int) -> bool:
        """See whether a worker has asked for something."""
        if any(worker == k for k, _ in self._held):
            return False
        try:
            if not self._from[worker].arrived():
                return False
        except Lost as lost:
            self._lose(lost)
            return True
        op, number = (int(n) for n in self._from[worker].numbers[:2])
        if op == END:
            (error,) = map(unpacked, self._from[worker].items)
            self._end(worker, error)
        else:
            self._held.append((worker, Header(Op(op), number)))
        return True

    def _handle(self) -> bool:
        """Handle what can be, the oldest first."""
        for held in list(self._held):
            worker, header = held
            if worker not in self._live:
                self._held.remove(held)
                continue
            if self.core.ready(worker, header):
                self._held.remove(held)
                self._answer(worker, header)
                return True
        return False

    def _answer(self, worker: int, header: Header) -> None:
        numbers: list[int]
        try:
            reply = self.core.handle(worker, header, self._from[worker].items)
            numbers, items = [Kind.REPLY, reply.number, reply.version], reply.payload or []
        except (TypeError, ValueError) as error:
            numbers, items = [Kind.ERROR, header.number, self.core.version], [packed(error)]
        try:
            self._to[worker].send(numbers, items)
        except Lost as lost:
            self._lose(lost)
        else:
            self._expect(worker)

    def _lose(self, lost: Lost) -> None:
        self._end(lost.rank, RankDied(f"found worker {lost.rank} ended before its time"))
        self._to.pop(lost.rank, None)

    def _end(self, worker: int, error: BaseException | None) -> None:
        if worker in self._live:
            self._live.remove(worker)
            self.core.end(worker)
            if error is not None:
                self.dead[worker] = error
