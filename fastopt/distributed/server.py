"""Internal. A server that is a process: requests of workers as they come, each handled by its core."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .core import Header, Op, Pairs, ServerCore
from .post import Lost, Peers, Rest
from .roll import Kind, Roll
from .shelf import Shelf
from .workers import Told, silent_too_long, told_of
from .world import RankDied

#: The longest rest of a server in seconds, with which an idle one takes some 3 % of a core.
IDLE = 2.5e-3


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
    peers : Peers
        What carries parcels.
    roll : Roll
        Who has the shards.
    workers : int
        The number of workers, which are the first ranks.
    shelf : Shelf, optional
        Where the shard is kept.
    every : float
        The seconds between checkpoints.

    Attributes
    ----------
    dead : dict of int to BaseException
        Of each worker that did not come to its end, the exception.
    """

    def __init__(
        self, core: ServerCore, peers: Peers, roll: Roll, workers: int, shelf: Shelf | None, every: float
    ) -> None:
        self.core = core
        self.dead: dict[int, BaseException] = {}
        self._peers, self._roll, self._shelf, self._every = peers, roll, shelf, every
        self._untold: set[int] = set()  # workers that are to hear that they were taken for ended
        self._live = set(range(workers))  # who may still ask
        self._held: deque[tuple[int, Header]] = deque()

    def serve(self) -> None:
        """Answer workers until all have ended.

        Raises
        ------
        OSError
            A checkpoint cannot be written.
        RankDied
            Another one has the shard.
        """
        self.begin()
        rest, saved = Rest(IDLE), time.perf_counter()
        while self._live:
            rest.after(self.look())
            if self._roll.due():
                self._watch()
            if self._shelf is not None and time.perf_counter() - saved > self._every and not self._shelf.writes:
                self._shelf.save(self.core)
                saved = time.perf_counter()
        if self._shelf is not None:
            self._shelf.save(self.core)
            self._shelf.finish()

    def begin(self) -> None:
        """Begin to hear workers."""
        for k in self._live:
            self._peers.of(k).expect()

    def _watch(self) -> None:
        """Give up workers that are silent, and see that this server is not given up.

        Raises
        ------
        RankDied
            It has been.
        """
        self._roll.look()
        self._roll.beat()
        if self._shelf is not None:
            self._shelf.check()
        for k in self._live - {k for k, _ in self._held}:
            if self._roll.watch.silent(k):
                self._untold.add(k)
                self._end(k, silent_too_long(k))
        for k in list(self._untold):
            with suppress(Lost):
                if not self._peers.to(k).done():  # it is in the midst of a reply
                    continue
                self._peers.to(k).send([Kind.ERROR], [packed(self.dead[k])])
            self._untold.remove(k)
            self._roll.give_up(k)

    def look(self) -> bool:
        """See what workers ask for, and answer one; tell whether there was something."""
        asked = [self._look(k) for k in list(self._live)]
        return self._handle() or any(asked)

    def told(self) -> Told:
        """What has been learned."""
        about, values = told_of(self.core)
        return {**about, "dead": self.dead, "silent": self._roll.silent | self._untold}, values

    def _look(self, worker: int) -> bool:
        """See whether a worker has asked for something."""
        if any(worker == k for k, _ in self._held):
            return False
        receiver = self._peers.of(worker)
        try:
            if not receiver.arrived():
                return False
            kind, number, steps, before = receiver.numbers[:4].tolist()
        except Lost:
            self._lose(worker)
            return True
        self._roll.watch.heard(worker)
        if kind == Kind.END:
            self.core.end(worker, before)  # which counts what is lost
            self._end(worker, unpacked(receiver.items[0]))
        elif kind == Kind.BYE:  # to the server before this one it was said before
            self._end(worker, None)
        elif kind == Kind.BEAT:
            receiver.expect()
        else:
            self._held.append((worker, Header(Op(kind - Kind.ASK), number, steps, before)))
        return True

    def _handle(self) -> bool:
        """Handle what can be, the oldest first."""
        for held in list(self._held):
            if self.core.ready(*held):
                self._held.remove(held)
                self._answer(*held)
                return True
        return False

    def _answer(self, worker: int, header: Header) -> None:
        replied = False

        def copy(to: Sequence[np.ndarray], pairs: Pairs) -> None:
            nonlocal replied
            replied = True
            self._reply(worker, [Kind.REPLY, header.number, self.core.version], to, pairs)

        try:
            reply = self.core.handle(worker, header, self._peers.of(worker).items, copy)
        except (TypeError, ValueError) as error:
            self._reply(worker, [Kind.ERROR, header.number, self.core.version], [packed(error)])
        else:
            if not replied:
                self._reply(worker, [Kind.REPLY, reply.number, reply.version], reply.payload or [])
        self._peers.of(worker).expect()
        self._roll.watch.heard(worker)

    def _reply(self, worker: int, numbers: Sequence[int], items: Sequence[Any], pairs: Pairs | None = None) -> None:
        """Send items, into which something is copied first if there are pairs."""
        with suppress(Lost):  # which is seen by looking for the next request
            if pairs is None:
                self._peers.to(worker).send(numbers, items)
            else:
                self._peers.to(worker).send_copied(numbers, items, pairs)

    def _lose(self, worker: int) -> None:
        self._end(worker, RankDied(f"found the process of worker {worker} ended before its time"))

    def _end(self, worker: int, error: BaseException | None) -> None:
        if worker in self._live:
            self._live.remove(worker)
            self.core.end(worker)
            if error is not None:
                self.dead[worker] = error


class Results:
    """What those that have other shards tell at the end.

    Parameters
    ----------
    peers : Peers
        What carries it.
    roll : Roll
        Who has the shards.

    Attributes
    ----------
    told : dict of int to Told
        Of each shard, once it is known.
    """

    def __init__(self, peers: Peers, roll: Roll) -> None:
        self.told: dict[int, Told] = {}
        self._peers, self._roll = peers, roll
        self._expected: dict[int, int] = {}
        self.look()

    def look(self) -> bool:
        """See what there is; tell whether all is known.

        Raises
        ------
        RankDied
            A shard is lost, and no spare is left.
        """
        self._roll.look()
        for shard, holder in enumerate(self._roll.holders):
            if shard in self.told or holder in (None, self._peers.rank):
                continue
            receiver = self._peers.of(holder)
            try:
                if self._expected.get(shard) != holder:
                    self._expected[shard] = holder
                    receiver.expect()
                if not receiver.arrived():
                    continue
                if receiver.numbers[0] == Kind.BEAT:
                    self._roll.watch.heard(holder)
                    receiver.expect()
                else:
                    about, *values = receiver.items
                    self.told[shard] = unpacked(about), values
            except Lost:
                self._roll.lose(holder)
        return len(self.told) == len(self._roll.holders)


def stand_by(peers: Peers, roll: Roll, results: Results, shelves: Sequence[Shelf]) -> int | None:
    """Be a spare, until all is done; or until a shard is this rank's, which is returned."""
    rest = Rest(IDLE)
    while not results.look():
        watches = roll.due()
        for shard, holder in enumerate(roll.holders):
            if watches and holder is not None and shard not in results.told and roll.watch.silent(holder):
                roll.give_up(holder)
            if holder is None:
                owner = shelves[shard].claim(roll.epochs[shard] + 1, peers.rank)
                if owner == peers.rank:
                    roll.epochs[shard] += 1
                    return shard
                if owner in roll.gone:  # it has not come to say that it had it
                    roll.epochs[shard] += 1
                elif watches and roll.watch.silent(("owner", shard, owner)):
                    roll.give_up(owner)
        rest.after(False)
    return None


def announce(peers: Peers, roll: Roll, shard: int, ranks: Sequence[int]) -> None:
    """Tell others that this rank has a shard now."""
    roll.holders[shard] = peers.rank
    for rank in ranks:
        try:
            peers.to(rank).send([Kind.NEWS, shard, roll.epochs[shard]])
        except Lost:
            continue


def conclude(
    server: Server,
    shard: int,
    peers: Peers,
    roll: Roll,
    results: Results,
    ranks: Sequence[int],
    write: Callable[[list[Told]], None] | None,
) -> list[Told]:
    """Tell others what a shard has learned, and hear what others' have; return it all.

    The first shard's is told when all is known, and written what there is to write: whoever knows it finds it there.
    """
    rest = Rest(IDLE)
    results.told[shard] = own = server.told()
    if shard:
        _tell(peers, ranks, own)
    while not results.look():
        if roll.due():
            roll.beat()
        rest.after(False)
    told = [results.told[s] for s in sorted(results.told)]
    if not shard:
        if write is not None:
            write(told)
        _tell(peers, ranks, own)
    return told


def _tell(peers: Peers, ranks: Sequence[int], own: Told) -> None:
    about, values = own
    for rank in ranks:
        try:
            peers.to(rank).send([Kind.RESULT], [packed(about), *values])
        except Lost:
            continue


def linger(peers: Peers, roll: Roll, ranks: Sequence[int]) -> None:
    """Stay until all others know what they need, or have ended."""
    rest = Rest(IDLE)
    there = set(ranks) - roll.left
    for rank in there:
        roll.watch.heard(rank)
    while there:
        watches = roll.due()
        for rank in list(there):
            if watches and roll.watch.silent(rank):
                roll.give_up(rank)
            receiver = peers.of(rank)
            try:
                if not receiver.arrived():
                    continue
                if receiver.numbers[0] == Kind.BYE:
                    there.remove(rank)
                else:
                    receiver.expect()
            except Lost:
                there.remove(rank)
        rest.after(False)
