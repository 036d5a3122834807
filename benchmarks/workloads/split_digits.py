"""A network with a layer in each of two processes, which send each other activations and their gradients.

    fastopt run -n 2 benchmarks/workloads/split_digits.py

Each process has an optimizer of its own layer. One process alone, with both layers, comes to the same bits.
"""

from __future__ import annotations

import hashlib
import sys

import common

try:
    import numpy as np
    from mpi4py import MPI
    from sklearn.datasets import load_digits
    from threadpoolctl import threadpool_limits

    import fastopt
except ModuleNotFoundError as missing:
    common.explain(missing)

BATCH, EPOCHS, HIDDEN = 256, 30, 64


def main() -> None:
    """Train, and print what the layers came to."""
    comm = MPI.COMM_WORLD
    if comm.size > 2:
        sys.exit(f"found {comm.size} processes, expected one or two, for there are two layers")
    first, last = comm.rank == 0, comm.rank == comm.size - 1
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    layers = {"w1": rng.standard_normal((64, HIDDEN)) / 8, "w2": rng.standard_normal((HIDDEN, 10)) / 8}
    names = [name for name, here in (("w1", first), ("w2", last)) if here]
    params = {name: layers[name].astype(np.float32) for name in names}
    opt = fastopt.AdamW(params, lr=1e-2)
    hidden, back = np.empty((2, BATCH, HIDDEN), np.float32)
    for _ in range(EPOCHS):
        for batch in rng.permutation(len(x) // BATCH * BATCH).reshape(-1, BATCH):
            grads = {}
            if first:
                np.maximum(x[batch] @ params["w1"], 0, out=hidden)
                if not last:
                    comm.Send(hidden, 1)
            if last:
                if not first:
                    comm.Recv(hidden, 0)
                error = np.exp(hidden @ params["w2"])
                error /= error.sum(1, keepdims=True)
                error[np.arange(BATCH), y[batch]] -= 1
                grads["w2"] = hidden.T @ error / BATCH
                np.matmul(error, params["w2"].T, out=back)
                if not first:
                    comm.Send(back, 0)
            if first:
                if not last:
                    comm.Recv(back, 1)
                grads["w1"] = x[batch].T @ (back * (hidden > 0)) / BATCH
            opt.step(grads)
    whole = {name: p for own in comm.allgather(params) for name, p in own.items()}
    if first:
        print(f"parameters {hashlib.sha256(whole['w1'].tobytes() + whole['w2'].tobytes()).hexdigest()[:32]}")


if __name__ == "__main__":
    with threadpool_limits(1):  # that products do not depend on the number of processes
        main()
