"""Internal. What a run's workers and servers are, whoever carries messages between them, and the file of its order."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..checks import wrong_type, wrong_value
from .asynchronous import Algorithm, Ask, Side
from .core import Header, Op, ServerCore
from .world import RankDied

#: What is told of a shard at the end: what there is to say of it, and its parameters.
Told = tuple[dict[str, Any], list[np.ndarray]]
_FORMAT = 1


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes
    ----------
    params : object
        The parameters that have been learned, in the structure of those given.
    pushes : int
        What the first server has applied.
    delays : dict of int to int
        How often so many pushes came between a worker's reading and its push, there.
    dead : dict of int to BaseException
        Of each worker that did not come to its end, the exception.
    seconds : float
        The time that it took; of a simulation, its own.
    lost : int
        The gradients that servers had applied and not saved when they ended before their time.
    """

    params: Any
    pushes: int
    delays: dict[int, int]
    dead: dict[int, BaseException]
    seconds: float
    lost: int = 0


class Worker:
    """One of the workers, as the function of it sees it.

    Attributes
    ----------
    params : object
        Its parameters, in the structure of those given: gradients are taken there.
    rank, workers : int
        Its number, and how many there are.
    """

    def __init__(
        self,
        side: Side,
        rank: int,
        workers: int,
        ask: Callable[[Ask], None],
        wait: Callable[[Ask], None] | None = None,
        before: Sequence[Sequence[int]] = (),
    ) -> None:
        self._side, self._ask, self._wait = side, ask, wait
        self.params, self.rank, self.workers = side.params, rank, workers
        self._before = side.steps
        self._left = [list(steps) for steps in before]  # of runs before with other workers: what is to be left out

    def deal(self, batches: Iterable[Any]) -> Iterator[Any]:
        """This worker's part of batches, which are the same for all: each `workers`-th.

        In a run that goes on from a checkpoint those are left out whose gradients it has.
        """
        for left in self._left:
            batches = _but(batches, left)
        for number, batch in enumerate(batches):
            if number % self.workers == self.rank:
                if self._before:
                    self._before -= 1
                else:
                    yield batch

    def step(self, grads: Any) -> None:
        """Go on with gradients at ``params``, which are others then.

        Parameters
        ----------
        grads : array, nested sequences and mappings, or list of groups
            In the structure of ``params``; None skips a parameter, and of a `fastopt.RowSparse` only rows are pushed.

        Raises
        ------
        TypeError, ValueError
            A gradient is not what it must be: nothing has been pushed.
        """
        self._drive(self._side.advance(grads))

    def fetch_rows(self, name: Any, indices: Any) -> np.ndarray:
        """Fetch rows of a table of a `Downpour`, as they are now: each travels once.

        Parameters
        ----------
        name : str
            The table, as ``tables`` names it.
        indices : array of integers, or list
            The rows, of any shape, some of them several times.

        Returns
        -------
        numpy.ndarray
            Their elements, of the shape of `indices` and then of a row: this worker's own.

        Raises
        ------
        TypeError, ValueError
            There is no such table, or no such row: nothing has been asked for.
        """
        found: list[np.ndarray] = self._drive(self._side.fetch_rows({name: indices}))
        return found[0]

    def _work(self, function: Callable[[Worker], Any]) -> None:
        """Do all that a worker does."""
        self._drive(self._side.resume() if self._before or self._left else self._side.begin())
        function(self)
        self._drive(self._side.finish())

    def _drive(self, asking: Generator[Ask, None, Any]) -> Any:
        """Have a side's requests answered; return what it returns."""
        while True:
            try:
                ask = next(asking)
            except StopIteration as done:
                return done.value
            if not ask.sent:
                ask.sent = True
                self._ask(ask)
                if not ask.waits:
                    continue
            if ask.replies is None and self._wait is not None:
                self._wait(ask)


class Numbers:
    """The numbers of a worker's requests to servers that may end, of which each is handled once.

    Parameters
    ----------
    side : Side
        What asks.
    number : int
        The number of its last request.

    Attributes
    ----------
    pushed : int
        The gradients of which it is known that they have been pushed.
    """

    def __init__(self, side: Side, number: int) -> None:
        self._side, self._number, self._resumes = side, number, number > 0
        self.pushed, self._pushes = side.steps, side.steps

    def header(self, op: Op) -> Header:
        """The next request. The first one of a worker that resumes is a reading that has been, and has its number."""
        self._number += not self._resumes
        self._resumes, steps = False, self._side.steps
        self._pushes = steps if op in (Op.PUSH, Op.EXCHANGE) else self.pushed
        return Header(op, self._number, steps, self.pushed)

    def answered(self) -> None:
        """Take notice that all servers have done what was asked for."""
        self.pushed = self._pushes


def silent_too_long(worker: int) -> RankDied:
    """The error for a worker that is taken for ended."""
    return RankDied(f"found nothing of worker {worker} within the timeout, expected it to ask or to end")


def _but(batches: Iterable[Any], left: list[int]) -> Iterator[Any]:
    """Batches that some workers shared, but the first ones of each: so many are left, and fewer afterwards."""
    for number, batch in enumerate(batches):
        worker = number % len(left)
        if left[worker]:
            left[worker] -= 1
        else:
            yield batch


def check_algorithm(algorithm: Any) -> None:
    """Check that an argument is an algorithm.

    Raises
    ------
    TypeError
        It is none.
    """
    if not isinstance(algorithm, Algorithm):
        raise wrong_type("algorithm", algorithm, "a Downpour or an EASGD")


def make_cores(
    algorithm: Algorithm,
    cuts: Sequence[int],
    workers: int,
    max_ahead: int | None = None,
    orders: Sequence[Sequence[int]] | None = None,
) -> list[ServerCore]:
    """Servers as they begin, of the parameters between cuts."""
    followed = [None] * (len(cuts) - 1) if orders is None else orders
    return [
        make_core(algorithm, begin, end, workers, max_ahead, own)
        for (begin, end), own in zip(pairwise(cuts), followed, strict=True)
    ]


def make_core(
    algorithm: Algorithm,
    begin: int,
    end: int,
    workers: int,
    max_ahead: int | None = None,
    order: Sequence[int] | None = None,
) -> ServerCore:
    """A server as it begins, of neighbouring parameters."""
    return ServerCore(
        algorithm._shard(begin, end, workers),
        workers,
        max_ahead=max_ahead,
        warm_start=algorithm._warm_pushes,
        order=order,
    )


def told_of(core: ServerCore) -> Told:
    """What has been learned of a shard."""
    about = {"version": core.version, "delays": core.delays, "order": core.order, "lost": core.lost}
    return about, core.shard.values()


def result_of(algorithm: Algorithm, told: Sequence[Told], dead: dict[int, BaseException], seconds: float) -> Result:
    """The result of a run, of what is told of all shards."""
    first: dict[str, Any] = told[0][0]
    params = algorithm._result([array for _, values in told for array in values])
    delays: Counter[int] = first["delays"]
    lost = sum(about["lost"] for about, _ in told)
    return Result(params, first["version"], dict(sorted(delays.items())), dict(sorted(dead.items())), seconds, lost)


def write_order(file: Any, workers: int, orders: Sequence[Sequence[int]]) -> None:
    """Write a line that says what there is, and then the orders of all servers."""
    head = {"format": _FORMAT, "workers": workers, "requests": [len(own) for own in orders]}
    file.write(json.dumps(head).encode() + b"\n")
    for own in orders:
        file.write(np.array(own, _dtype(workers)).tobytes())


def read_order(path: Any) -> tuple[int, list[list[int]]]:
    """Read the number of workers, and each server's order.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is none that is whole.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        line, rest = file.readline(1 << 20), file.read()
    try:
        head = json.loads(line)
        workers, requests = head["workers"], head["requests"]
        if head["format"] != _FORMAT:
            raise ValueError
        found = np.frombuffer(rest, _dtype(workers))
        if len(found) != sum(requests):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise wrong_value("order", name, "a file that run() wrote whole") from None
    return workers, [own.tolist() for own in np.split(found, np.cumsum(requests)[:-1])]


def _dtype(workers: int) -> np.dtype:
    """The dtype of a worker's number."""
    return np.dtype("u1") if workers <= 256 else np.dtype("<u2")
