"""Gradients that come late: AsyncAdaGrad against AdaptiveRevision by the number of workers, which are simulated.

Softmax regression on handwritten digits, one example a gradient. The loss is the online one: the mean over all
gradients, each at the parameters that its worker has. In order all workers are as fast, so that with n of them a
gradient comes after n - 1 others; with stragglers one in twenty takes ten times as long, and all take lognormal times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import common

try:
    import numpy as np
    from sklearn.datasets import load_digits

    import fastopt
    from fastopt import distributed as fd
except ModuleNotFoundError as missing:
    common.explain(missing)

#: Learning rates, of which 0.5 is the best without delay.
RATES = (0.02, 0.05, 0.1, 0.2, 0.5)
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


def train(rule: str, lr: float, workers: int, speed: str, passes: int, size: float) -> tuple[float, float]:
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
    options.add_argument("--workers", type=common.count, nargs="+", default=(1, 10, 100), help="(1 10 100)")
    options.add_argument("--passes", type=common.count, default=20, help="over the images (default %(default)s)")
    given = options.parse_args(arguments)
    cases = [(n, speed) for n in given.workers for speed in (SPEEDS if n > 1 else ["in order"])]
    rows = []
    for k, (workers, speed) in enumerate(cases, 1):
        cells, late = [], 0.0
        for rule in RULES:
            found = {}
            for lr in RATES:
                found[lr], late = train(rule, lr, workers, speed, given.passes, given.size)
            best = min(RATES, key=lambda lr, found=found: found[lr])
            cells += [f"{found[best]:.3f} ({best:g})", f"{found[RATES[-1]]:.3f}"]
        rows.append([f"{workers}, {speed}" if workers > 1 else "1", f"{late:.1f}", *cells])
        common.progress(f"[{k}/{len(cases)}] {rows[-1]}")
    header = [text for rule in RULES for text in (f"{rule} (rate)", f"at {RATES[-1]:g}")]
    common.show(
        f"Online loss after {given.passes} passes, by workers",
        ["workers", "delay", *header],
        rows,
        f"The best of the rates {', '.join(map(str, RATES))}; {RATES[-1]:g} is the best without delay.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
