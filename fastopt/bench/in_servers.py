"""Internal. A program for `fastopt run -n 2`: rounds of a ping-pong by MPI alone, and of exchanges with a server.

Its arguments are the elements, the rounds, the seconds for them, and the classes. Rank 0 prints the times as JSON::

    fastopt run -n 2 fastopt/bench/in_servers.py 1000000 41 30 SGD Adagrad AdaptiveRevision
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
from mpi4py import MPI

import fastopt
from fastopt.distributed import Downpour, mpi
from fastopt.distributed.asynchronous import Ask
from fastopt.distributed.client import Client
from fastopt.distributed.core import Op
from fastopt.distributed.post import Peers
from fastopt.distributed.roll import Roll
from fastopt.distributed.server import Server
from fastopt.distributed.workers import make_core


def exchange_with(rule: str, size: int) -> Callable[[], object]:
    """One exchange of a worker, which is rank 0, with a server, which is rank 1."""
    algorithm = Downpour(getattr(fastopt, rule), np.zeros(size, np.float32), lr=0.1)
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
    client = Client(peers, roll, [0, 1], algorithm._side(1), 0)
    grad = np.random.default_rng(0).standard_normal(size, np.float32)

    def exchange() -> None:
        ask = Ask(Op.EXCHANGE, [grad])
        client.ask(ask)
        client.wait(ask)

    return exchange


def main(size: int, rounds: int, budget: float, rules: Sequence[str]) -> None:
    """Time the rounds, and print seconds of each."""
    comm = MPI.COMM_WORLD
    sent, received = np.ones(size, np.float32), np.ones(size, np.float32)

    def bare() -> None:
        if comm.rank:
            comm.Recv(received, 0)
            comm.Send(sent, 0)
        else:
            comm.Send(sent, 1)
            comm.Recv(received, 1)

    calls: dict[str, Callable[[], object]] = {"bare": bare}
    calls |= {rule: exchange_with(rule, size) for rule in rules}
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
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
