"""Internal. A program for `fastopt run -n 2`: rounds of a ping-pong by MPI alone, and of exchanges with a server.

Its arguments are the elements of a parameter, or a table's rows and their elements and lookups, the rounds, the seconds
for them, and the classes, among which Ray stands for a call of one of its actors, and an exchange with a server that is
one. Rank 0 prints the times as JSON::

    fastopt run -n 2 fastopt/bench/in_servers.py 1000000 41 30 SGD Adagrad AdaptiveRevision Ray
    fastopt run -n 2 fastopt/bench/in_servers.py 1000000,64,82000 41 30 SGD Adagrad AdaptiveRevision
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from time import perf_counter, sleep
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI

import fastopt
from fastopt.bench.sparse import zipf
from fastopt.distributed import Downpour, mpi
from fastopt.distributed.asynchronous import Asking, Side
from fastopt.distributed.client import Client
from fastopt.distributed.post import Peers
from fastopt.distributed.roll import Roll
from fastopt.distributed.server import Server
from fastopt.distributed.workers import make_core


class Exchanged(Protocol):
    """What goes there and back.

    Attributes
    ----------
    params, options
        The arguments of `Downpour`.
    there, back : list of numpy.ndarray
        What the worker sends and receives, as it is.
    """

    params: Any
    options: dict[str, Any]
    there: list[np.ndarray]
    back: list[np.ndarray]

    def asks(self, side: Side) -> Asking:
        """A worker's requests in a round."""


class Whole:
    """A parameter: its gradient there, and it back."""

    def __init__(self, size: int) -> None:
        self.params, self.options = [np.zeros(size, np.float32)], dict[str, Any]()
        self.there = [np.random.default_rng(0).standard_normal(size, np.float32)]
        self.back = [np.ones(size, np.float32)]

    def asks(self, side: Side) -> Asking:
        """One step."""
        yield from side.advance(self.there)


class Lookups:
    """Rows of a table: which there, they back, and their gradients there, a row for each lookup."""

    def __init__(self, rows: int, width: int, lookups: int) -> None:
        self.params, self.options = {"table": np.zeros((rows, width), np.float32)}, {"tables": {"table": 1}}
        grad = np.random.default_rng(0).standard_normal((lookups, width), np.float32)
        self.there, self.back = [zipf(lookups, rows), grad], [np.ones_like(grad)]

    def asks(self, side: Side) -> Asking:
        """A fetch of rows, and a push."""
        indices, grad = self.there
        yield from side.fetch_rows({"table": indices})
        yield from side.advance({"table": fastopt.RowSparse(indices, grad)})


def exchange_with(rule: str, what: Exchanged) -> Callable[[], object]:
    """A round of a worker, which is rank 0, with a server, which is rank 1."""
    algorithm = Downpour(getattr(fastopt, rule), what.params, lr=0.1, **what.options)
    peers = Peers(mpi.world_of_processes().channel())
    roll = Roll(peers, [1], [], [0], 600.0)
    if peers.rank:
        core = make_core(algorithm, 0, 1, 1)
        server = Server(core, peers, roll, 1, None, 0.0)
        server.begin()

        def answer() -> None:
            version = core.version
            while core.version == version:
                server.look()
            while not peers.to(0).done():
                pass

        return answer
    side = algorithm._side(1)
    client = Client(peers, roll, [0, 1], side, 0)

    def exchange() -> None:
        for ask in what.asks(side):
            client.ask(ask)
            client.wait(ask)

    return exchange


def exchanges_by_ray(what: Exchanged) -> dict[str, Callable[[], object]]:
    """A call of an actor with as many bytes both ways, and a round of rank 0 with a server that is an actor.

    Rank 1 sleeps meanwhile: what it waited with would be the actor's time.
    """
    comm, woken = MPI.COMM_WORLD, np.zeros(1, np.uint8)
    if comm.rank:

        def wait() -> None:
            request = comm.Irecv(woken, 0)
            while not request.Test():
                sleep(1e-3)

        return {"Ray": wait, "SGD by Ray": wait}
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())  # of this cluster alone
    import ray

    from fastopt.distributed.actors import ServerActor, WorkerActor

    class Bare:
        def __init__(self, *back: np.ndarray) -> None:
            self.back = list(back)

        def trip(self, there: list[np.ndarray]) -> list[np.ndarray]:
            return self.back

    def start(kind: type, *arguments: Any) -> Any:
        return ray.remote(kind).options(num_cpus=0).remote(*arguments)

    room = max(10 * sum(array.nbytes for array in what.there), 100 << 20)
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=room, logging_level=logging.ERROR)
    algorithm = Downpour(fastopt.SGD, what.params, lr=0.1, **what.options)
    packed = ray.cloudpickle.dumps((None, algorithm))
    server = start(ServerActor, packed, 0, 1, 1, None, None, 0.0)
    worker, bare = WorkerActor(packed, [server], 0, 1), start(Bare, *what.back)

    def trip() -> None:
        ray.get(bare.trip.remote(what.there))
        comm.Send(woken, 1)

    def exchange() -> None:
        for ask in what.asks(worker._side):
            worker._ask(ask)
            worker._wait(ask)
        comm.Send(woken, 1)

    return {"Ray": trip, "SGD by Ray": exchange}


def main(what: Exchanged, rounds: int, budget: float, rules: Sequence[str]) -> None:
    """Time the rounds, and print seconds of each."""
    comm = MPI.COMM_WORLD

    def bare() -> None:
        arrays = [*((0, array) for array in what.there), *((1, array) for array in what.back)]
        for sender, array in arrays:
            if comm.rank == sender:
                comm.Send(array, 1 - sender)
            else:
                comm.Recv(array, sender)

    calls: dict[str, Callable[[], object]] = {"bare": bare}
    calls |= {rule: exchange_with(rule, what) for rule in rules if rule != "Ray"}
    calls |= exchanges_by_ray(what) if "Ray" in rules else {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = perf_counter()
    for k in range(rounds + 3):
        if k == 3:  # those before it touch memory for the first time
            start = perf_counter()
        for name, call in calls.items():
            comm.Barrier()
            begin = perf_counter()
            call()
            if k >= 3:
                times[name].append(perf_counter() - begin)
        if comm.bcast(k >= 5 and perf_counter() - start > budget):
            break
    if comm.rank == 0:
        print(json.dumps(times))


if __name__ == "__main__":
    numbers = [int(number) for number in sys.argv[1].split(",")]
    exchanged: Exchanged = Whole(*numbers) if len(numbers) == 1 else Lookups(*numbers)
    main(exchanged, int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
