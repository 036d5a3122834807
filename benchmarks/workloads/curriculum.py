"""A small recurrent network in NumPy learns to add, without a curriculum and with each strategy of one.

It reads two binary numbers of the same length together, their highest bits first, and then writes their sum, the
lowest bit first: it has to remember all bits, and to carry. The length is the difficulty. Each strategy has as many
steps of as many sums; "none" is the longest numbers from the beginning on. A level is left once nine of ten of its sums
are right, or four looks at it saw no progress (`fastopt.training.Curriculum`, `EarlyStopping`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import mean
from time import perf_counter

import common

try:
    import numpy as np
    from threadpoolctl import threadpool_limits

    import fastopt
    from fastopt.training import Curriculum, EarlyStopping
except ModuleNotFoundError as missing:
    common.explain(missing)

STRATEGIES = ("none", "naive", "mixed", "combined")
UNITS, BATCH, LR = 64, 64, 3e-3
LOOK = 50  # steps from one look at the accuracy to the next
LOOKED_AT, TESTED = 200, 500  # sums


def sums_of(random: np.random.Generator, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of numbers of so many bits: the input of each step, the sums' bits, lowest first, and which of them count.

    Shorter numbers begin later than the longest, so that all are read at the same step.
    """
    n, rows = int(lengths.max()), len(lengths)
    places = np.arange(n + 1)
    there = places[:n] < lengths[:, None]
    one, other = random.integers(0, 2, (2, rows, n)) * there
    total = (one + other) @ (1 << places[:n])
    read = np.zeros((2 * n + 1, rows, 6), np.float32)
    for k in range(n):
        for first, bits in ((0, one), (2, other)):
            read[n - 1 - k, there[:, k], first + bits[there[:, k], k]] = 1
        read[n - 1 - k, ~there[:, k], 4] = 1
    read[n:, :, 5] = 1  # it is to write
    return read, total[:, None] >> places & 1, places <= lengths[:, None]


def new_network(seed: int) -> dict[str, np.ndarray]:
    """Weights to begin with: what is remembered is neither lost nor multiplied."""
    random = np.random.default_rng(seed)
    params = {
        "read": random.standard_normal((6, UNITS)) / np.sqrt(3),
        "keep": np.linalg.qr(random.standard_normal((UNITS, UNITS)))[0],
        "bias": np.zeros(UNITS),
        "write": random.standard_normal((UNITS, 2)) / np.sqrt(UNITS),
        "offset": np.zeros(2),
    }
    return {name: param.astype(np.float32) for name, param in params.items()}


def forward(params: dict[str, np.ndarray], read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The units at each step, zeros before the first, and the logits of the bits that are written."""
    steps, rows, _ = read.shape
    units = np.zeros((steps + 1, rows, UNITS), params["keep"].dtype)
    drive = read @ params["read"] + params["bias"]
    for t in range(steps):
        units[t + 1] = np.tanh(drive[t] + units[t] @ params["keep"])
    return units, units[steps // 2 + 1 :] @ params["write"] + params["offset"]


def cross_entropy(logits: np.ndarray, bits: np.ndarray, counts: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean over the bits that count, and its gradient."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    weights = counts.T[..., None] / counts.sum()
    right = np.eye(2)[bits.T]
    loss = -float((weights * right * np.log(np.maximum(shares, 1e-30))).sum())
    return loss, ((shares - right) * weights).astype(logits.dtype)


def backward(
    params: dict[str, np.ndarray], read: np.ndarray, bits: np.ndarray, counts: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and its gradients, back through all steps."""
    units, logits = forward(params, read)
    loss, slopes = cross_entropy(logits, bits, counts)
    steps, written = len(read), len(read) // 2
    back = slopes @ params["write"].T
    drive = np.empty_like(units[1:])
    carried = np.zeros_like(units[0])
    for t in reversed(range(steps)):
        if t >= written:
            carried = carried + back[t - written]
        drive[t] = carried * (1 - units[t + 1] ** 2)
        carried = drive[t] @ params["keep"].T
    both = ([0, 1], [0, 1])
    return loss, {
        "read": np.tensordot(read, drive, both),
        "keep": np.tensordot(units[:-1], drive, both),
        "bias": drive.sum(axis=(0, 1)),
        "write": np.tensordot(units[written + 1 :], slopes, both),
        "offset": slopes.sum(axis=(0, 1)),
    }


def accuracy(params: dict[str, np.ndarray], length: int, sums: int, seed: int) -> float:
    """The share of sums of this length of which each bit is right."""
    read, bits, _ = sums_of(np.random.default_rng(seed), np.full(sums, length))
    written = forward(params, read)[1].argmax(axis=-1)
    return float(np.equal(written.T, bits).all(axis=1).mean())


def train(strategy: str, bits: int, steps: int, seed: int) -> tuple[dict[str, np.ndarray], list[float], int]:
    """The weights after so many steps, the accuracy on the longest numbers at each look, the level that was reached."""
    params, random = new_network(seed), np.random.default_rng((seed, 1))
    opt = fastopt.Adam(params, lr=LR)
    curriculum = Curriculum(range(1, bits + 1), "naive" if strategy == "none" else strategy, seed=seed)
    while strategy in ("none", "mixed") and curriculum.level < bits:
        curriculum.advance()
    stopping = EarlyStopping(4, mode="max", restore_best=False)
    path = []
    for step in range(1, steps + 1):
        opt.step(backward(params, *sums_of(random, 1 + curriculum.draw(BATCH)))[1], max_norm=1.0)
        if step % LOOK == 0:
            path.append(accuracy(params, bits, LOOKED_AT, step))
            now = accuracy(params, curriculum.level, LOOKED_AT, step)
            if stopping.step(now) or now > 0.9:
                curriculum.advance()
                stopping = EarlyStopping(4, mode="max", restore_best=False)
    return params, path, curriculum.level


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains with each strategy, in rounds, and prints the accuracy by strategy."""
    options = common.parser(__doc__)
    options.add_argument("--bits", type=common.count, default=8, help="of the longest numbers (default %(default)s)")
    options.add_argument("--steps", type=common.count, default=1000, help="of each training (default %(default)s)")
    common.add_rounds(options, 3)
    given = options.parse_args(arguments)
    lengths = range(1, given.bits + 1)
    found: dict[str, list[list[float]]] = {strategy: [] for strategy in STRATEGIES}
    paths: dict[str, list[list[float]]] = {strategy: [] for strategy in STRATEGIES}
    levels, seconds = dict.fromkeys(STRATEGIES, 0), dict.fromkeys(STRATEGIES, 0.0)
    for seed in range(given.rounds):
        for strategy in STRATEGIES:
            began = perf_counter()
            with threadpool_limits(1):  # for matrices so small threads cost more than they bring
                params, path, level = train(strategy, given.bits, given.steps, seed)
            seconds[strategy] += perf_counter() - began
            levels[strategy] += level
            paths[strategy].append(path)
            found[strategy].append([accuracy(params, length, TESTED, 0) for length in lengths])
            common.progress(f"[{seed + 1}/{given.rounds}] {strategy}: {found[strategy][-1][-1]:.1%} right")
    rows = []
    for strategy, rounds in found.items():
        longest = [round_[-1] for round_ in rounds]
        rows.append(
            [
                strategy,
                f"{mean(longest):.1%}",
                f"{min(longest):.1%} to {max(longest):.1%}",
                f"{mean(map(mean, rounds)):.1%}",
                "" if strategy in ("none", "mixed") else f"{levels[strategy] / given.rounds:.1f}",
                f"{seconds[strategy] / given.rounds:.1f}",
            ]
        )
    common.show(
        f"Sums of {given.bits}-bit numbers that are wholly right, after {given.steps} steps of {BATCH}",
        ["strategy", f"{given.bits} bits", "of the rounds", "1 bit up, mean", "level reached", "seconds"],
        rows,
        f"Means of {given.rounds} trainings, each from weights of its own; {TESTED} sums of each length.",
    )
    if given.plot and given.steps >= LOOK:
        x = [LOOK * (k + 1) for k in range(given.steps // LOOK)]
        curves = {name: (x, np.mean(rounds, axis=0)) for name, rounds in paths.items()}
        title = f"Addition of {given.bits}-bit numbers by strategy"
        common.draw(given.plot, title, common.Panel(curves, "steps", "sums that are right"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
