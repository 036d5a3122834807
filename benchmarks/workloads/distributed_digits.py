"""A network learns to read digits in several processes: its parameters have one digest for any number of them.

fastopt run -n 2 benchmarks/workloads/distributed_digits.py
"""

from __future__ import annotations

import hashlib
import sys

import common

try:
    import numpy as np
    from sklearn.datasets import load_digits
    from threadpoolctl import threadpool_limits

    import fastopt
    from fastopt import distributed as fd
except ModuleNotFoundError as missing:
    common.explain(missing)

HELD_OUT = 261  # of 1797
BATCH, SLICES, EPOCHS, HIDDEN = 256, 8, 30, 64


def images() -> tuple[np.ndarray, np.ndarray]:
    """The images of digits, and which digits they are of."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def network(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The parameters at first."""
    return {
        "w1": (rng.standard_normal((64, HIDDEN)) / 8).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": (rng.standard_normal((HIDDEN, 10)) / 8).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def forward(params: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the hidden layer has, and the logits."""
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    return hidden, hidden @ params["w2"] + params["b2"]


def gradient(params: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The gradient of the mean cross-entropy."""
    hidden, logits = forward(params, x)
    error = np.exp(logits - logits.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    back = error @ params["w2"].T * (hidden > 0)
    return {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}


def main() -> None:
    """Train, and print what the parameters came to, on rank 0."""
    x, y = images()
    rng = np.random.default_rng(0)
    params = network(rng)
    opt = fd.Synchronous(fastopt.AdamW, params, lr=1e-2, slices=SLICES)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x) - HELD_OUT)  # the same in all processes
        for batch in order.reshape(-1, BATCH):
            for number, part in opt.slices(BATCH):
                opt.add(number, gradient(params, x[batch[part]], y[batch[part]]))
            opt.step(max_norm=1.0)
    if opt.rank == 0:
        right = (forward(params, x[-HELD_OUT:])[1].argmax(1) == y[-HELD_OUT:]).mean()
        digest = hashlib.sha256(b"".join(p.tobytes() for p in params.values())).hexdigest()
        print(f"{opt.steps} steps, {100 * right:.1f} % of digits held out are read; parameters {digest[:32]}")


if __name__ == "__main__":
    with threadpool_limits(1):  # that a slice's gradient does not depend on the number of processes
        sys.exit(main())
