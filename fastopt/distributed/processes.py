"""Internal. Runs of workers that do not wait for each other and are processes, as the servers are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..checks import wrong_value
from .agreement import check_alike, said
from .asynchronous import Algorithm
from .client import Client
from .mpi import world_of_processes
from .post import Peers
from .roll import Roll
from .server import Results, Server, announce, conclude, linger, stand_by
from .shelf import shelf_of
from .workers import Result, Told, Worker, make_core, result_of, write_order
from .world import RankDied, World, machine_of


def run_processes(
    function: Callable[[Worker], Any],
    algorithm: Algorithm,
    *,
    workers: int | None,
    servers: int,
    spares: int,
    max_ahead: int | None,
    order: Any,
    checkpoint: Any,
    every: float,
    timeout: float,
) -> Result:
    """Do a run; all ranks call it. The first ones are workers, those behind them servers, the last ones spares.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be, or not alike in all ranks; or all workers ended by exceptions.
    OSError
        The order or a checkpoint cannot be written, or a checkpoint not be read.
    RankDied
        A server has ended, and no spare is left.
    """
    world, began = world_of_processes(), time.perf_counter()
    workers = _check_workers(workers, servers, spares, world.size)
    if spares and checkpoint is None:
        raise wrong_value("checkpoint", None, "a directory, from which spares take over")
    numbers = {name.strip("_"): said(x) for name, x in vars(algorithm).items() if isinstance(x, int | float)}
    called = {"algorithm": type(algorithm).__name__, "optimizer": algorithm._class.__name__, **numbers}
    called |= {name: said(value) for name, value in algorithm._options.items()}
    called |= {"servers": said(servers), "spares": said(spares), "max_ahead": said(max_ahead), "order": said(order)}
    called |= {"checkpoint": said(checkpoint), "tables": said(algorithm._tables)}
    check_alike({**called, **algorithm._held.said()}, world)

    cuts, rank = algorithm._cuts(servers), world.rank
    ranks, others = range(workers, workers + servers), [other for other in range(world.size) if other != world.rank]
    shelves = [shelf_of(algorithm, cuts, s, workers, checkpoint) for s in range(servers)] if checkpoint else []
    core, epochs, progress = None, [], []

    def prepare() -> tuple[int, Any]:
        """Do all that may fail, before anybody begins."""
        nonlocal core
        if rank not in ranks:
            return 0, None
        shard = rank - workers
        if order is not None and not shard:
            open(order, "wb").close()
        core = make_core(algorithm, cuts[shard], cuts[shard + 1], workers, max_ahead)
        epoch = shelves[shard].take(core, rank) if shelves else 0
        return epoch, [core.progress(k) for k in range(workers)]

    for epoch, known in _together(world, prepare)[workers : workers + servers]:
        epochs.append(epoch)
        progress.append(known)
    if shelves and rank == ranks[0]:
        shelves[0].tidy()
    known_as = world.all_gather(_process(os.getpid()))
    peers = Peers(world.channel())
    seen = [other for other in machine_of(world) if _is_there(*known_as[other])]  # not in another container

    def ended() -> list[int]:  # MPI does not tell of one that ends by exit() before its time
        return [other for other in seen if not _is_there(*known_as[other])]

    roll = Roll(peers, ranks, range(workers + servers, world.size), epochs, timeout, ended)
    if rank < workers:
        side = algorithm._side(workers)
        number, side.steps, before = min(known[rank] for known in progress)
        client = Client(peers, roll, cuts, side, number)
        told = client.end(_work(function, Worker(side, rank, workers, client.ask, client.wait, before)))
        roll.say_bye()
    else:
        results = Results(peers, roll)
        shard: int | None = rank - workers
        if core is None:
            shard = stand_by(peers, roll, results, shelves)
            if shard is not None:
                core = make_core(algorithm, cuts[shard], cuts[shard + 1], workers, max_ahead)
                shelves[shard].load(core)
                announce(peers, roll, shard, others)
        if core is None or shard is None:
            told = [results.told[s] for s in range(servers)]
            roll.say_bye()
        else:
            server = Server(core, peers, roll, workers, shelves[shard] if shelves else None, every)
            server.serve()
            told = conclude(
                server, shard, peers, roll, results, others, lambda told: _write_order(order, workers, told)
            )
            roll.say_bye()
            linger(peers, roll, others)
    silent = roll.silent.union(*(about["silent"] for about, _ in told))
    for other in silent.intersection(seen):
        _end(*known_as[other])
    return _result(algorithm, told, rank, workers, time.perf_counter() - began)


def _process(number: int) -> tuple[int, str]:
    """A process of this machine: its number, and when it began, where that is known."""
    try:
        return number, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return number, ""


def _is_there(number: int, began: str) -> bool:
    """Tell whether a process goes on, as far as is known: its number may be another one's by now."""
    return _process(number) == (number, began)


def _end(number: int, began: str) -> None:
    """End a process, if it is that which it was: one that never wakes up would have its launcher wait for ever."""
    if began and _is_there(number, began):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def _check_workers(workers: int | None, servers: int, spares: int, size: int) -> int:
    """The number of workers."""
    left = size - servers - spares
    if left < 1:
        found = f"{servers} and {spares} spares" if spares else f"{servers}"
        raise ValueError(f"servers: found {found} of {size} processes, expected one at least that works")
    if workers not in (None, left):
        raise ValueError(f"workers: found {workers}, expected {left}: all {size} processes but {size - left}")
    return left


def _together(world: World, work: Callable[[], Any]) -> list[Any]:
    """Do something in each rank, and return what each returned; if one fails, raise that in all.

    Raises
    ------
    Exception
        That of the first rank that failed.
    """
    failed: Exception | None = None
    done: Any = None
    try:
        done = work()
    except Exception as error:
        failed = error
    found = world.all_gather((done, failed))
    for _, other in found:
        if other is not None:
            raise failed or other
    return [own for own, _ in found]


def _work(function: Callable[[Worker], Any], worker: Worker) -> Exception | None:
    """Be a worker; return how it failed."""
    try:
        worker._work(function)
    except RankDied:
        raise
    except Exception as error:
        return error
    return None


def _write_order(order: Any, workers: int, told: Sequence[Told]) -> None:
    if order is not None:
        with open(order, "wb") as file:
            write_order(file, workers, [about["order"] for about, _ in told])


def _result(algorithm: Algorithm, told: Sequence[Told], rank: int, workers: int, seconds: float) -> Result:
    """The result, of what all servers have told."""
    dead: dict[int, BaseException] = {}
    for about, _ in told:
        dead = {**about["dead"], **dead}
    if len(dead) == workers:
        raise dead[rank] if rank in dead else next(iter(dead.values()))
    return result_of(algorithm, told, dead, seconds)
