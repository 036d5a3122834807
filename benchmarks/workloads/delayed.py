"""Gradients that come late: AsyncAdaGrad against AdaptiveRevision by the number of workers, which are simulated.

Softmax regression on handwritten digits, one example a gradient. The loss is the online one: the mean over all
gradients, each at the parameters that its worker has, with the rate that is best without delay, and with the best for
so many workers (of 1, 2, 5, 10 ... and 0.5, 0.2 ...). In order all workers are as fast: with n of them a gradient comes
after n - 1 others. Stragglers, one in twenty, take ten times as long, and all take lognormal times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import common

try:
    import numpy as np
    from sklearn.datasets import load_digits

    import fastopt
    from fastopt import distributed as fd
except ModuleNotFoundError as missing:
    common.explain(missing)

RULES: dict[str, Callable[[np.ndarray, float], fd.Downpour]] = {
    "AsyncAdaGrad": lambda p, lr: fd.Downpour(fastopt.Adagrad, p, lr=lr, initial_accumulator_value=1, eps=0, threads=1),
    "AdaptiveRevision": lambda p, lr: fd.Downpour(fastopt.AdaptiveRevision, p, lr=lr, threads=1),
}


def stragglers(random: np.random.Generator, worker: int) -> float:
    return random.lognormal(0, 0.3) * (10 if worker % 20 == 7 else 1)


SPEEDS: dict[str, Any] = {"in order": 1.0, "stragglers": stragglers}


class Digits:
    """Images with a one behind them, and what they are; the loss of all gradients so far."""

    def __init__(self, size: float) -> None:
        images, labels = load_digits(return_X_y=True)
        kept = max(round(size * len(images)), 10)
        self.images = np.hstack([images[:kept] / 16, np.ones((kept, 1))]).astype(np.float32)
        self.labels = labels[:kept]
        self.total, self.count = 0.0, 0

    def gradient(self, params: np.ndarray, example: int) -> np.ndarray:
        x, label = self.images[example], self.labels[example]
        logits = params @ x
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        self.total -= float(np.log(max(shares[label], np.float32(1e-30))))
        self.count += 1
        shares[label] -= 1
        return np.outer(shares, x)


def train(rule: str, workers: int, speed: str, passes: int, size: float, lr: float) -> tuple[float, float]:
    """Return the online loss and the mean delay of a simulated training."""
    digits, random = Digits(size), np.random.default_rng(0)
    examples = [int(k) for _ in range(passes) for k in random.permutation(len(digits.labels))]
    algorithm = RULES[rule](np.zeros((10, 65), np.float32), lr)
    result = fd.simulate(digits.gradient, examples, algorithm, workers=workers, compute=SPEEDS[speed], seed=1)
    late = sum(delay * times for delay, times in result.delays.items()) / result.pushes
    return digits.total / digits.count, late


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate each number of workers with each rule and rate, and print the losses by workers."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_tables(options)
    common.add_size(options, "the images")
    options.add_argument(
        "--workers", type=common.count, nargs="+", default=(10, 100, 1000), help="beside one alone (10 100 1000)"
    )
    options.add_argument("--passes", type=common.count, default=20, help="over the images (default %(default)s)")
    given = options.parse_args(arguments)
    cases = [(1, "in order"), *((n, speed) for n in given.workers if n > 1 for speed in SPEEDS)]
    rows, alone = [], dict[str, float]()  # the rates that are best without delay
    for k, (workers, speed) in enumerate(cases, 1):
        cells, late = [], 0.0
        for rule in RULES:
            tried = cache(partial(train, rule, workers, speed, given.passes, given.size))
            best = common.best_rate(lambda lr, tried=tried: tried(lr)[0], alone.get(rule, 0.5))
            (loss, late), kept = tried(best), alone.setdefault(rule, best)
            cells += [f"{loss:.3f} ({best:g})", f"{tried(kept)[0]:.3f}"]
        rows.append([f"{workers}, {speed}" if workers > 1 else "1", f"{late:.1f}", *cells])
        common.progress(f"[{k}/{len(cases)}] {rows[-1]}")
    header = [text for rule in RULES for text in (f"{rule} (rate)", f"at {alone[rule]:g}")]
    common.show(
        f"Online loss after {given.passes} passes, by workers",
        ["workers", "delay", *header],
        rows,
        "The rate is the best for so many workers; beside it is the loss at the rate that is best without delay.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
