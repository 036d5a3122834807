"""Internal. A program for `fastopt run`: rounds of an exchange by MPI alone, by its reduce-scatter, and by fastopt.

Its arguments are the way (common or messages), the elements, the rounds, the seconds for them, and the names of peers.
Rank 0 prints the times as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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
    params = shared(np.zeros(size, np.float32))
    opt = Synchronous(Adam, params, slices=1 << (MPI.COMM_WORLD.size - 1).bit_length())
    comm, ranks = MPI.COMM_WORLD, MPI.COMM_WORLD.size
    part = size // ranks
    grad = np.random.default_rng(comm.rank).standard_normal(part * ranks, np.float32)
    received, whole = np.empty((ranks, part), np.float32), np.empty(part * ranks, np.float32)
    own, states = np.empty(part, np.float32), np.zeros((2, part), np.float32)
    done = 0

    def bare() -> None:
        comm.Alltoall(grad, received)
        comm.Allgather(received[0], whole)

    def reduce_scatter() -> None:
        nonlocal done
        done += 1
        comm.Reduce_scatter_block(grad, own)
        mine = whole[comm.rank * part : (comm.rank + 1) * part]
        functional.adam(mine, own, *states, step=done, grad_scale=1 / ranks)
        comm.Allgather(MPI.IN_PLACE, whole)

    calls = {"bare": bare, "reduce-scatter": reduce_scatter, "fastopt": opt.step, **dict(peers(comm, size, names))}
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = perf_counter()
    for k in range(rounds + 2):
        for name, call in calls.items():
            for number, _ in opt.slices(opt.ranks * opt.ranks * 1024) if name == "fastopt" else ():
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
