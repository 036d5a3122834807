"""Internal. Runs of workers that do not wait for each other: threads of one process, and such runs again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from ..checks import check_integer, check_number, wrong_type, wrong_value
from .asynchronous import Algorithm, Ask
from .carriers import Alone, Threads, current
from .core import Header, OutOfOrder, Reply, ServerCore
from .workers import Result, Worker, check_algorithm, make_cores, read_order, result_of, told_of, write_order


class _Stopped(BaseException):
    """The run has been interrupted."""


class _Servers:
    """Servers whose requests are handled by the threads that have them, one at a time."""

    def __init__(self, cores: Sequence[ServerCore], cuts: Sequence[int], workers: int) -> None:
        self._cores, self._cuts = cores, cuts
        self._locks = [threading.Lock() for _ in cores]
        self._changed, self._changes = threading.Condition(), 0
        self._numbers = [0] * workers
        self.stopped = False

    def ask(self, worker: int, ask: Ask) -> None:
        """Have a request answered."""
        self._numbers[worker] += 1
        header, replies = Header(ask.op, self._numbers[worker]), dict[int, Reply]()
        while len(replies) < len(self._cores):  # in any order: servers that are processes are asked at once
            seen, before = self._changes, len(replies)
            for s, (core, lock) in enumerate(zip(self._cores, self._locks, strict=True)):
                part = None if ask.payload is None else ask.payload[self._cuts[s] : self._cuts[s + 1]]
                with lock:
                    if s not in replies and core.ready(worker, header):
                        replies[s] = core.handle(worker, header, part)
            if len(replies) > before:
                self._change()
            else:
                with self._changed:
                    while not self.stopped and self._changes == seen:
                        self._changed.wait()
            if self.stopped:
                raise _Stopped
        ask.replies = [replies[s] for s in sorted(replies)]

    def end(self, worker: int) -> None:
        """Wait for a worker no more."""
        for core, lock in zip(self._cores, self._locks, strict=True):
            with lock:
                core.end(worker)
        self._change()

    def stop(self) -> None:
        """Have all who ask end."""
        self.stopped = True
        self._change()

    def _change(self) -> None:
        """Wake those who wait for what others do."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()


def run(
    worker: Callable[[Worker], Any],
    algorithm: Algorithm,
    *,
    carrier: str | None = None,
    workers: int | None = None,
    servers: int | None = None,
    spares: int | None = None,
    max_ahead: int | None = None,
    order: Any = None,
    checkpoint: Any = None,
    checkpoint_every: float = 30.0,
    timeout: float = 600.0,
) -> Result:
    """Train with workers that do not wait for each other: processes, or threads of one, or Ray's actors.

    Where several processes were started together, all call it: the first ones are workers, those behind them servers,
    and all have the result. In one process workers are threads, which run in turn where Python computes, and at once in
    NumPy and other libraries. A worker that ends by an exception costs the others nothing; if all do, that of the first
    one is raised.

    Parameters
    ----------
    worker : callable
        Called in each worker with its `Worker`: ``for batch in opt.deal(batches): opt.step(gradient(opt.params,
        batch))``.
    algorithm : Downpour or EASGD
        What workers and servers do.
    carrier : str, optional
        ``"ray"``: workers and servers are actors in the cluster of Ray that this process is in, or that Ray finds or
        begins for it. A worker begins as soon as there is a CPU for it: those for which there is none wait until
        another one has ended, or a machine has joined the cluster.
    workers, servers : int
        Their numbers: by default two threads, all processes that are no servers, or as many actors as the cluster has
        CPUs; and those of ``fastopt run --servers``, or one. Each parameter is whole on one server, which handles one
        request at a time.
    spares : int, optional
        The processes that wait for a server to end before its time, and take over from its checkpoint; by default those
        of ``fastopt run --spares``, or none. Ray needs none: with checkpoints it starts a server anew.
    max_ahead : int, optional
        The most requests that a worker may be ahead of the slowest one that has not ended: then it waits.
    order : path, optional
        A file for the order in which requests were handled: all that is left to chance, a byte each. With it `replay`
        does the same again.
    checkpoint : path, optional
        A directory, which all processes reach, for checkpoints of servers. A run goes on from those that it finds
        there, with any number of workers and servers: workers leave out the batches whose gradients have been pushed.
        `read_checkpoint` reads them in one process.
    checkpoint_every : float
        The seconds between checkpoints; there is one at the end too.
    timeout : float
        The seconds after which a process that is silent is taken for ended: a worker that neither asks for anything nor
        ends, and a server, if there is a spare. Others go on then; if it wakes up, a RankDied is raised there. An actor
        is killed, if it is a worker.

    Returns
    -------
    Result
        What has been learned, and what happened.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be, before any worker begins; or all workers ended by exceptions.
    OSError
        The order cannot be written.
    RankDied
        A server that is a process or an actor has ended, and none takes over; or this process was taken for ended.
    BackendUnavailable
        There is no Ray.

    Examples
    --------
    See `Downpour` and `EASGD`.
    """
    if not callable(worker):
        raise wrong_type("worker", worker, "a function of a Worker")
    check_algorithm(algorithm)
    if workers is not None:
        check_integer("workers", workers, 1, 1 << 16)
    processes = not isinstance(current(), Alone | Threads)
    if carrier is not None and (carrier != "ray" or processes):
        expected = "None, for they are the workers and servers" if processes else "'ray', or None"
        raise wrong_value("carrier", carrier, expected)
    servers = algorithm._check_servers(_told("SERVERS", 1) if servers is None else servers)
    spares = check_integer("spares", _told("SPARES", 0) * processes if spares is None else spares, 0)
    if max_ahead is not None:
        check_integer("max_ahead", max_ahead, 0)
    check_number("checkpoint_every", checkpoint_every, 0)
    check_number("timeout", timeout, 0, above=True)
    if order is not None and checkpoint is not None:
        raise wrong_value("order", os.fspath(order), "None with a checkpoint: a run is done again from its beginning")
    if processes:
        from .processes import run_processes  # which imports mpi4py

        return run_processes(
            worker,
            algorithm,
            workers=workers,
            servers=servers,
            spares=spares,
            max_ahead=max_ahead,
            order=order,
            checkpoint=checkpoint,
            every=checkpoint_every,
            timeout=timeout,
        )
    if spares:
        raise wrong_value("spares", spares, "none but among processes, which fastopt run starts")
    if carrier == "ray":
        from .actors import run_actors  # which imports Ray

        return run_actors(
            worker,
            algorithm,
            workers=workers,
            servers=servers,
            max_ahead=max_ahead,
            order=order,
            checkpoint=checkpoint,
            every=checkpoint_every,
            timeout=timeout,
        )
    if checkpoint is not None:
        raise wrong_value("checkpoint", checkpoint, "none in one process: start several by fastopt run")
    workers, cuts = workers or 2, algorithm._cuts(servers)
    if order is None:
        return _run(worker, algorithm, make_cores(algorithm, cuts, workers, max_ahead), cuts, workers)
    with open(order, "wb") as file:
        cores = make_cores(algorithm, cuts, workers, max_ahead)
        try:
            return _run(worker, algorithm, cores, cuts, workers)
        finally:
            write_order(file, workers, [core.order for core in cores])


def _told(name: str, otherwise: int) -> int:
    """A number of processes that `fastopt run` was told."""
    return int(os.environ.get(f"FASTOPT_{name}") or otherwise)


def replay(worker: Callable[[Worker], Any], algorithm: Algorithm, order: Any) -> Result:
    """Do a run again, with the same bits: requests are handled in the order in which they were.

    Parameters
    ----------
    worker : callable
        As of `run`, and the same: of the same parameters it computes the same gradients.
    algorithm : Downpour or EASGD
        The same, with the same parameters.
    order : path
        The file that `run` wrote.

    Returns
    -------
    Result
        As of `run`.

    Raises
    ------
    OSError
        The file cannot be read.
    TypeError, ValueError
        An argument is not what it must be, or a worker asks for what it did not ask then.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, fastopt
    >>> from fastopt import distributed as fd
    >>> def worker(opt):
    ...     for k in opt.deal(range(100)):
    ...         opt.step(opt.params - k % 7)
    >>> algorithm = fd.Downpour(fastopt.Adam, np.zeros(3), lr=0.1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     order = os.path.join(directory, "order")
    ...     first = fd.run(worker, algorithm, workers=3, order=order)
    ...     again = fd.replay(worker, algorithm, order)
    >>> np.array_equal(first.params, again.params)
    True
    """
    if not callable(worker):
        raise wrong_type("worker", worker, "a function of a Worker")
    check_algorithm(algorithm)
    workers, orders = read_order(order)
    cuts = algorithm._cuts(algorithm._check_servers(len(orders)))
    cores = make_cores(algorithm, cuts, workers, orders=orders)
    result = _run(worker, algorithm, cores, cuts, workers)
    for error in result.dead.values():
        if isinstance(error, OutOfOrder):
            raise error
    for core, own in zip(cores, orders, strict=True):
        if len(core.order) < len(own):
            raise OutOfOrder(f"order: found {len(core.order)} requests, expected {len(own)}, as the run had")
    return result


def _run(
    function: Callable[[Worker], Any], algorithm: Algorithm, cores: Sequence[ServerCore], cuts: Sequence[int], n: int
) -> Result:
    servers, dead = _Servers(cores, cuts, n), dict[int, BaseException]()
    began = time.perf_counter()

    def work(rank: int) -> None:
        try:
            side = algorithm._side(n)
            Worker(side, rank, n, lambda ask: servers.ask(rank, ask))._work(function)
        except _Stopped:
            pass
        except BaseException as error:
            dead[rank] = error
        finally:
            servers.end(rank)

    threads = [threading.Thread(target=copy_context().run, args=(work, rank)) for rank in range(n)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        servers.stop()
        for thread in threads:
            with suppress(RuntimeError):  # it was not started
                thread.join()
        raise
    if len(dead) == n:
        raise next(iter(dead.values()))
    return result_of(algorithm, [told_of(core) for core in cores], dead, time.perf_counter() - began)
