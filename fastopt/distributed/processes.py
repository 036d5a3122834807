"""Internal. Runs of workers that do not wait for each other and are processes, as the servers are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .agreement import check_alike, said
from .asynchronous import Algorithm
from .checkpoint import agree
from .client import Client
from .core import ServerCore
from .mpi import world_of_processes
from .post import Channel, Receiver, Rest
from .runs import Result, Worker, make_core, write_order
from .server import IDLE, Server, Told, unpacked
from .world import RankDied


def run_processes(
    function: Callable[[Worker], Any],
    algorithm: Algorithm,
    *,
    workers: int | None,
    servers: int,
    max_ahead: int | None,
    order: Any,
) -> Result:
    """Do a run; all ranks call it. The first ones are workers, those behind them servers.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be, or not alike in all ranks; or all workers ended by exceptions.
    OSError
        The order cannot be written.
    RankDied
        A server has ended.
    """
    algorithm._check_servers(servers)
    world = world_of_processes()
    if servers >= world.size:
        raise ValueError(f"servers: found {servers} of {world.size} processes, expected one at least that works")
    if workers not in (None, world.size - servers):
        raise ValueError(
            f"workers: found {workers}, expected {world.size - servers}: all {world.size} processes but {servers} that "
            "serve"
        )
    workers = world.size - servers
    numbers = {name.strip("_"): said(x) for name, x in vars(algorithm).items() if isinstance(x, int | float)}
    called = {"algorithm": type(algorithm).__name__, "optimizer": algorithm._class.__name__, **numbers}
    called |= {name: said(value) for name, value in algorithm._options.items()}
    called |= {"servers": said(servers), "max_ahead": said(max_ahead), "order": said(order)}
    check_alike({**called, **algorithm._held.said()}, world)
    agree(world, lambda: open(order, "wb").close() if order is not None and world.rank == workers else None)

    began, cuts, ranks = time.perf_counter(), algorithm._cuts(servers), range(workers, world.size)
    if world.rank < workers:
        told = _work(function, algorithm, Client(world.channel, ranks, cuts), world.rank, workers)
    else:
        s = world.rank - workers
        core = make_core(algorithm, cuts[s], cuts[s + 1], workers, max_ahead)
        told = _serve(core, world.channel, world.rank, workers, ranks, order)
    dead: dict[int, BaseException] = {}
    for about, _ in told:
        dead = {**about["dead"], **dead}
    if len(dead) == workers:
        raise dead[world.rank] if world.rank in dead else next(iter(dead.values()))
    first: dict[str, Any] = told[0][0]
    params = algorithm._result([array for _, values in told for array in values])
    delays: Counter[int] = first["delays"]
    seconds = time.perf_counter() - began
    return Result(params, first["version"], dict(sorted(delays.items())), dict(sorted(dead.items())), seconds)


def _work(
    function: Callable[[Worker], Any], algorithm: Algorithm, client: Client, rank: int, workers: int
) -> list[Told]:
    """Be a worker; return what servers tell at the end."""
    error: BaseException | None = None
    try:
        Worker(algorithm._side(workers), rank, workers, client.ask, client.wait)._work(function)
    except RankDied:
        raise
    except Exception as own:
        error = own
    return client.end(error)


def _serve(core: ServerCore, channel: Channel, rank: int, workers: int, ranks: Sequence[int], order: Any) -> list[Told]:
    """Be a server; return what all tell at the end."""
    others = {other: Receiver(channel, other) for other in ranks if other != rank}
    for receiver in others.values():
        receiver.expect()
    server = Server(core, channel, workers, list(others))
    server.serve()
    first = rank == ranks[0]
    if not first:
        server.tell()
    rest = Rest(IDLE)
    while not (all(receiver.arrived() for receiver in others.values()) and server.told()):
        rest.after(False)
    told = [
        server.result() if other == rank else (unpacked(others[other].items[0]), others[other].items[1:])
        for other in ranks
    ]
    if first:  # whoever knows the result finds the order written
        if order is not None:
            with open(order, "wb") as file:
                write_order(file, workers, [about["order"] for about, _ in told])
        server.tell()
        while not server.told():
            rest.after(False)
    return told
