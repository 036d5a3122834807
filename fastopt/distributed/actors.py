"""Internal. Runs of workers that do not wait for each other and are Ray's actors, as the servers are."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import BackendUnavailable, install_command
from .asynchronous import Algorithm, Ask
from .core import Header, Payload, Reply
from .shelf import shelf_of
from .workers import Numbers, Result, Told, Worker, make_core, result_of, silent_too_long, told_of, write_order
from .world import RankDied

try:
    import ray
    from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayError, RayTaskError
except ImportError as error:
    raise BackendUnavailable(f"found carrier='ray' and no Ray ({error}): {install_command('ray')}") from None

_REST = 0.05  # seconds until a server that is being restarted is asked again
_NEWS = 1.0  # the longest time until servers hear of who has ended: one that was restarted has to hear it again


class ServerActor:
    """A server: requests of workers, one at a time. One that has ended Ray starts anew, and it goes on from its shelf.

    Parameters
    ----------
    packed : bytes
        The worker's function and the algorithm.
    shard, servers, workers, max_ahead, checkpoint, every
        The number of the shard, and the run's.
    """

    def __init__(
        self, packed: bytes, shard: int, servers: int, workers: int, max_ahead: Any, checkpoint: Any, every: float
    ) -> None:
        _, algorithm = ray.cloudpickle.loads(packed)
        cuts = algorithm._cuts(servers)
        self._core = make_core(algorithm, cuts[shard], cuts[shard + 1], workers, max_ahead)
        self._shelf = None if checkpoint is None else shelf_of(algorithm, cuts, shard, workers, checkpoint)
        self._every, self._saved = every, time.perf_counter()
        self._heard: dict[int, float] = {}  # when each worker was answered last, unless it is waiting
        self._changed = threading.Condition()  # by it several threads that wait are one server
        self._failed: Exception | None = None
        if self._shelf is not None:
            try:
                self._shelf.take(self._core, secrets.randbits(62))
            except Exception as error:  # which whoever asks is told: Ray would lose it
                self._failed = error
        self._core.expect(())

    def check(self) -> None:
        """Tell that it serves.

        Raises
        ------
        OSError, ValueError, RankDied
            It cannot.
        """
        if self._failed is not None:
            raise self._failed

    def begin(self, worker: int) -> tuple[int, int, list[list[int]]]:
        """Wait for a worker from now on; return its progress."""
        with self._changed:
            self._go_on()
            self._core.begin(worker)
            self._heard[worker] = time.monotonic()
            return self._core.progress(worker)

    def ask(self, worker: int, header: Header, payload: Payload) -> Reply:
        """Do what a worker asks for, once.

        Raises
        ------
        TypeError, ValueError
            It cannot be done; nothing has changed.
        RankDied
            The server cannot go on.
        """
        with self._changed:
            self._heard.pop(worker, None)
            self._core.begin(worker)  # where the server has been started anew nobody has begun
            self._changed.wait_for(lambda: self._failed or self._core.ready(worker, header))
            self._go_on()
            try:
                reply = self._core.handle(worker, header, payload)
            finally:
                self._heard[worker] = time.monotonic()
            self._save()
            self._changed.notify_all()
            self._go_on()
        return reply

    def _save(self) -> None:
        """Begin to save, if it is time to."""
        late = time.perf_counter() - self._saved > self._every
        if late and self._shelf is not None and not self._shelf.writes:
            try:
                self._shelf.save(self._core)
            except Exception as error:
                self._failed = error
            self._saved = time.perf_counter()

    def _go_on(self) -> None:
        if self._failed is not None:
            raise RankDied(f"found a server that cannot go on: {self._failed}")

    def end(self, pushed: Mapping[int, int]) -> dict[int, float]:
        """Wait no more for workers that have ended, each of which had pushed so many gradients.

        Returns
        -------
        dict of int to float
            For how long others have asked for nothing.
        """
        with self._changed:
            self.check()
            for worker, before in pushed.items():
                self._core.end(worker, before)
                self._heard.pop(worker, None)
            self._changed.notify_all()
            return {worker: time.monotonic() - then for worker, then in self._heard.items()}

    def conclude(self, pushed: Mapping[int, int]) -> Told:
        """Save and tell what has been learned, when all workers have ended."""
        self.end(pushed)
        if self._shelf is not None:
            self._shelf.save(self._core)
            self._shelf.finish()
        return told_of(self._core)


class WorkerActor:
    """A worker.

    Parameters
    ----------
    packed : bytes
        Its function and the algorithm.
    servers : sequence of actor handles
        The servers.
    rank, workers : int
        Its number, and how many there are.
    """

    def __init__(self, packed: bytes, servers: Sequence[Any], rank: int, workers: int) -> None:
        self._function, algorithm = ray.cloudpickle.loads(packed)
        self._servers, self._rank, self._cuts = servers, rank, algorithm._cuts(len(servers))
        self._side, self._workers = algorithm._side(workers), workers
        self._numbers = Numbers(self._side, 0)
        self._asked: list[_Call] = []

    def work(self) -> None:
        """Do all that a worker does."""
        calls = [_Call(server.begin, self._rank) for server in self._servers]
        number, self._side.steps, before = min(call.answer() for call in calls)
        self._numbers = Numbers(self._side, number)
        Worker(self._side, self._rank, self._workers, self._ask, self._wait, before)._work(self._function)

    def pushed(self) -> int:
        """The gradients that it knows to have been pushed."""
        return self._numbers.pushed

    def _ask(self, ask: Ask) -> None:
        header, given = self._numbers.header(ask.op), ask.payload or ()
        parts = [given[begin:end] for begin, end in zip(self._cuts, self._cuts[1:], strict=False)]
        self._asked = [
            _Call(server.ask, self._rank, header, part) for server, part in zip(self._servers, parts, strict=True)
        ]

    def _wait(self, ask: Ask) -> None:
        ask.replies = [call.answer() for call in self._asked]
        self._asked = []
        self._numbers.answered()


class _Call:
    """A call of a server's method, repeated where the server has ended before it answered, and is there again."""

    def __init__(self, method: Any, *arguments: Any) -> None:
        self._method, self._arguments = method, arguments
        self._reference = method.remote(*arguments)

    def answer(self) -> Any:
        """Wait for the answer.

        Raises
        ------
        Exception
            What the method raised.
        RankDied
            The server has ended, and is not started anew.
        """
        while True:
            try:
                return ray.get(self._reference)
            except RayTaskError as error:
                raise error.cause from None
            except ActorDiedError:
                raise RankDied(
                    "found a server ended, expected one that goes on: by checkpoint= it would be started anew"
                ) from None
            except (ActorUnavailableError, ObjectLostError):
                time.sleep(_REST)
                self._reference = self._method.remote(*self._arguments)


def run_actors(
    function: Callable[[Worker], Any],
    algorithm: Algorithm,
    *,
    workers: int | None,
    servers: int,
    max_ahead: int | None,
    order: Any,
    checkpoint: Any,
    every: float,
    timeout: float,
) -> Result:
    """Do a run in the cluster that this process is in, or in one of its own.

    Raises
    ------
    TypeError, ValueError
        A checkpoint is of another run; or all workers ended by exceptions.
    OSError
        The order cannot be written, or a checkpoint not be read.
    RankDied
        A server has ended, and is not started anew.
    """
    if order is not None:
        open(order, "wb").close()
    actors: list[Any] = []

    def start(kind: type, *arguments: Any, **options: Any) -> Any:
        actors.append(ray.remote(kind).options(max_task_retries=0, **options).remote(*arguments))
        return actors[-1]

    with _cluster():
        began = time.perf_counter()
        n = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        packed = ray.put(ray.cloudpickle.dumps((function, algorithm)))  # kept here, for servers that are started anew
        kept = None if checkpoint is None else os.path.abspath(checkpoint)
        waits = max_ahead is not None or algorithm._warm_pushes > 0
        options = {"num_cpus": 0, "max_restarts": 0 if kept is None else -1, "max_concurrency": n + 1 if waits else 1}
        try:
            serving = [
                start(ServerActor, packed, s, servers, n, max_ahead, kept, every, **options) for s in range(servers)
            ]
            _all(serving, "check")
            if kept is not None:
                shelf_of(algorithm, algorithm._cuts(servers), 0, n, kept).tidy()
            working = [start(WorkerActor, packed, serving, 0, n, num_cpus=1)]
            if algorithm._warm_pushes:  # the others would have the room that it needs, and wait for it
                ray.wait([working[0].pushed.remote()])
            working += [start(WorkerActor, packed, serving, rank, n, num_cpus=1) for rank in range(1, n)]
            dead, pushed = _wait(working, serving, timeout)
            told = _all(serving, "conclude", pushed)
        finally:
            for actor in actors:
                ray.kill(actor)
        if len(dead) == n:
            raise next(iter(dead.values()))
        if order is not None:
            with open(order, "wb") as file:
                write_order(file, n, [about["order"] for about, _ in told])
        return result_of(algorithm, told, dead, time.perf_counter() - began)


@contextmanager
def _cluster() -> Iterator[None]:
    """The cluster that this process is in; else the one that Ray finds, or begins, until this is done."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _wait(
    working: Sequence[Any], serving: Sequence[Any], timeout: float
) -> tuple[dict[int, BaseException], dict[int, int]]:
    """Wait until all workers have ended; return how those that should not have, and the gradients of each."""
    dead: dict[int, BaseException] = {}
    pushed: dict[int, int] = {}
    running = {actor.work.remote(): rank for rank, actor in enumerate(working)}
    while running:
        for reference in ray.wait(list(running), timeout=_NEWS)[0]:
            rank = running.pop(reference)
            pushed[rank] = 0
            try:
                try:
                    ray.get(reference)
                except RayTaskError as error:
                    if isinstance(error.cause, RankDied):
                        _all(serving, "check")  # which says more
                        raise error.cause from None
                    dead[rank] = error
                pushed[rank] = ray.get(working[rank].pushed.remote())
            except RayError as error:
                ended = RankDied(f"found the actor of worker {rank} ended before its time")
                ended.__cause__ = error
                dead.setdefault(rank, ended)
            ray.kill(working[rank])  # others may wait for its room
        silent = _all(serving, "end", pushed)
        for rank in silent[0]:
            if all(own.get(rank, 0) > timeout for own in silent):  # else it waits for a server
                dead[rank] = silent_too_long(rank)
                ray.kill(working[rank])
    return dead, pushed


def _all(serving: Sequence[Any], name: str, *arguments: Any) -> list[Any]:
    """Call a method of all servers, and wait for the answers."""
    return [call.answer() for call in [_Call(getattr(server, name), *arguments) for server in serving]]
