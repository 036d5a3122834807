"""Internal. A program for `fastopt run`: rounds of an exchange by MPI alone, by its reduce-scatter, and by fastopt.

Its arguments are the way (common or messages), the elements, the rounds, the seconds for them, and the names of peers,
among which bfloat16 is fastopt with sums that travel so. Rank 0 prints the times as JSON. Over two machines::

    fastopt run --hosts first:2,second:2 fastopt/bench/in_ranks.py common 2500000 21 30 bfloat16
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
from mpi4py import MPI

from fastopt import Adam, functional
from fastopt.bench.peers.in_ranks import peers
from fastopt.distributed import Synchronous, mpi, shared


def main(way: str, size: int, rounds: int, budget: float, names: Sequence[str]) -> None:
    """Time the rounds, and print seconds of each."""
    if way == "messages":
        mpi.Processes._neighbours = lambda self: self._all.Split(self.rank)  # type: ignore[method-assign]
    wires = {"fastopt": "float32", **({"bfloat16": "bfloat16"} if "bfloat16" in names else {})}
    slices = 1 << (MPI.COMM_WORLD.size - 1).bit_length()
    own = {
        name: Synchronous(Adam, shared(np.zeros(size, np.float32)), slices=slices, wire=wire)
        for name, wire in wires.items()
    }
    comm, ranks = MPI.COMM_WORLD, MPI.COMM_WORLD.size
    part = size // ranks
    grad = np.random.default_rng(comm.rank).standard_normal(part * ranks, np.float32)
    received, whole = np.empty((ranks, part), np.float32), np.empty(part * ranks, np.float32)
    summed, states = np.empty(part, np.float32), np.zeros((2, part), np.float32)
    done = 0

    def bare() -> None:
        comm.Alltoall(grad, received)
        comm.Allgather(received[0], whole)

    def reduce_scatter() -> None:
        nonlocal done
        done += 1
        comm.Reduce_scatter_block(grad, summed)
        mine = whole[comm.rank * part : (comm.rank + 1) * part]
        functional.adam(mine, summed, *states, step=done, grad_scale=1 / ranks)
        comm.Allgather(MPI.IN_PLACE, whole)

    calls: dict[str, Callable[[], object]] = {"bare": bare, "reduce-scatter": reduce_scatter}
    calls |= {name: opt.step for name, opt in own.items()}
    calls |= dict(peers(comm, size, [name for name in names if name not in wires]))
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = perf_counter()
    for k in range(rounds + 2):
        for name, call in calls.items():
            for opt in [own[name]] if name in own else []:
                for number, _ in opt.slices(slices):
                    opt.add(number, opt.grads)  # written where it is: what computes it is no part of this
            comm.Barrier()
            begin = perf_counter()
            call()
            comm.Barrier()
            if k >= 2:
                times[name].append(perf_counter() - begin)
        if comm.bcast(k >= 4 and perf_counter() - start > budget):
            break
    if comm.rank == 0:
        print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
