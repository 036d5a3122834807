"""Internal. Workers that do not wait for each other, simulated: events in a time of their own."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..checks import check_integer, check_number, wrong_type
from .asynchronous import Algorithm, Ask, Side
from .core import Header, ServerCore
from .workers import Result, check_algorithm, make_cores, result_of, told_of

#: Seconds as a function of random numbers and of the worker.
Seconds = Callable[[np.random.Generator, int], float]


class _Simulated:
    """A worker, and where it is."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.asking: Generator[Ask, None, Any] = side.begin()
        self.batch: Any = None
        self.wanted: Mapping[Any, Any] = {}  # rows of tables, for the batch
        self.fetching = False  # it waits for these
        self.waiting: Ask | None = None
        self.requests = 0
        self.done = False  # it has computed its last gradient


class _Simulation:
    def __init__(
        self,
        gradient: Callable[[Any, Any], Any],
        batches: Iterator[Any],
        core: ServerCore,
        sides: Iterable[Side],
        compute: Seconds,
        travel: Seconds,
        seed: int,
        rows: Callable[[Any], Mapping[Any, Any]] | None,
        watch: Callable[[float], None],
    ) -> None:
        self._watch = watch
        self._gradient, self._batches, self._core, self._rows = gradient, batches, core, rows
        self._compute, self._travel = compute, travel
        self._random = np.random.default_rng(seed)
        self._workers = [_Simulated(side) for side in sides]
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._held: deque[tuple[int, Ask, Header]] = deque()
        self.now = 0.0

    def run(self) -> None:
        """Let all happen in the order of time; what is to happen at once, in the order in which it was caused."""
        for k in range(len(self._workers)):
            self._go_on(k)
        while self._events:
            self.now, _, what, arguments = heapq.heappop(self._events)
            what(*arguments)

    def _after(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, what, arguments))

    def _go_on(self, k: int) -> None:
        """Have a worker do what it can at once."""
        own = self._workers[k]
        while True:
            try:
                ask = next(own.asking)
            except StopIteration as end:
                found = end.value
                break
            if not ask.sent:
                ask.sent = True
                own.requests += 1
                self._after(self._travel(self._random, k), self._arrive, k, ask, Header(ask.op, own.requests))
                if not ask.waits:
                    continue
            if ask.replies is None:
                own.waiting = ask
                return
        if own.done:
            self._core.end(k)
            self._try_held()
            return
        if own.fetching:
            own.fetching = False
            self._after(self._compute(self._random, k), self._computed, k, own.side.with_rows(own.wanted, found))
            return
        for own.batch in self._batches:
            if self._rows is None:
                self._after(self._compute(self._random, k), self._computed, k, own.side.params)
                return
            own.fetching, own.wanted = True, self._rows(own.batch)
            own.asking = own.side.fetch_rows(own.wanted)
            self._go_on(k)
            return
        own.done, own.asking = True, own.side.finish()
        self._go_on(k)

    def _computed(self, k: int, params: Any) -> None:
        own = self._workers[k]
        own.asking = own.side.advance(self._gradient(params, own.batch))
        self._go_on(k)
        self._watch(self.now)

    def _arrive(self, k: int, ask: Ask, header: Header) -> None:
        self._held.append((k, ask, header))
        self._try_held()

    def _try_held(self) -> None:
        """Handle what can be, the oldest first."""
        again = True
        while again:
            again = False
            for held in list(self._held):
                k, ask, header = held
                if self._core.ready(k, header):
                    self._held.remove(held)
                    reply = self._core.handle(k, header, ask.payload)
                    self._after(self._travel(self._random, k), self._answer, k, ask, reply)
                    again = True

    def _answer(self, k: int, ask: Ask, reply: Any) -> None:
        ask.replies = [reply]
        if self._workers[k].waiting is ask:
            self._workers[k].waiting = None
            self._go_on(k)


def simulate(
    gradient: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    algorithm: Algorithm,
    *,
    workers: int,
    compute: float | Seconds = 1.0,
    travel: float | Seconds = 0.0,
    rows: Callable[[Any], Mapping[Any, Any]] | None = None,
    watch: Callable[[float, Any], None] | None = None,
    max_ahead: int | None = None,
    seed: int = 0,
) -> Result:
    """Simulate a run of any number of workers in this one: what is late by how much, and what comes of it.

    Gradients are computed one after the other, each at the parameters that its worker would have, and the server is the
    one of `run`; only time is made up. The same arguments have the same bits.

    Parameters
    ----------
    gradient : callable
        ``gradient(params, batch)`` returns gradients in the structure of the parameters.
    batches : iterable
        Dealt to the workers, the next one to whoever begins to compute.
    algorithm : Downpour or EASGD
        What workers and the server do.
    workers : int
        Their number.
    compute, travel : float or callable
        The seconds that a gradient takes, and a message on its way: a number, or a function of a NumPy generator of
        random numbers and of the worker's number.
    rows : callable, optional
        ``rows(batch)`` names rows of the tables of a `Downpour`, as ``{"table": indices}``: a worker fetches them
        before it computes, and they are in the table's place in the parameters that the gradient is taken at.
    watch : callable, optional
        ``watch(seconds, params)`` is called whenever a gradient has been computed, before it is pushed, with the time
        and what has been learned by then.
    max_ahead : int, optional
        As of `run`.
    seed : int
        Of these random numbers.

    Returns
    -------
    Result
        As of `run`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt import distributed as fd
    >>> algorithm = fd.Downpour(fastopt.SGD, np.zeros(2), lr=0.01)
    >>> result = fd.simulate(lambda params, batch: params - 1, range(3000), algorithm, workers=10)
    >>> max(result.delays, key=result.delays.get), result.params.round(2).tolist()
    (9, [1.0, 1.0])
    """
    if not callable(gradient):
        raise wrong_type("gradient", gradient, "a function of parameters and a batch")
    check_algorithm(algorithm)
    workers = check_integer("workers", workers, 1, 1 << 16)
    if max_ahead is not None:
        check_integer("max_ahead", max_ahead, 0)
    seed = check_integer("seed", seed, 0)
    if not isinstance(batches, Iterable):
        raise wrong_type("batches", batches, "an iterable")
    if rows is not None and not callable(rows):
        raise wrong_type("rows", rows, "a function of a batch")
    if watch is not None and not callable(watch):
        raise wrong_type("watch", watch, "a function of seconds and parameters")
    taken = _seconds("compute", compute), _seconds("travel", travel)
    cuts = algorithm._cuts(1)
    (core,) = make_cores(algorithm, cuts, workers, max_ahead)
    sides = [algorithm._side(workers) for _ in range(workers)]

    def look(now: float) -> None:
        if watch is not None:
            watch(now, algorithm._result(core.shard.values()))

    simulation = _Simulation(gradient, iter(batches), core, sides, *taken, seed, rows, look)
    simulation.run()
    return result_of(algorithm, [told_of(core)], {}, simulation.now)


def _seconds(name: str, given: float | Seconds) -> Seconds:
    """The seconds given, as a function."""
    if callable(given):
        return lambda random, worker: check_number(f"{name}(random, {worker})", given(random, worker), 0)
    number = check_number(name, given, 0)
    return lambda random, worker: number
