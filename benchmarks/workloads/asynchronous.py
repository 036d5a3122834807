"""Workers that do not wait for each other, simulated: the loss against gradients and against seconds, by algorithm.

Softmax regression on handwritten digits, and logistic regression on the chunks of text of `text.py`, whose weights are
a table that stays with the server in all but EASGD. A gradient of a batch takes a lognormal time of some second, a
message a tenth of one. Each algorithm has the rate that is best of some with one worker, and keeps it with more. Losses
are of what the server has, over the images, and over chunks held out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import common
import text

try:
    import numpy as np
    from scipy.sparse import csr_matrix
    from sklearn.datasets import load_digits

    import fastopt
    from fastopt import distributed as fd
    from fastopt.palette import COLOURS, Look, look
except ModuleNotFoundError as missing:
    common.explain(missing)

TRAVEL = 0.1
POINTS = 40  # of a curve

Make = Callable[[Any, float, dict[str, Any]], fd.Downpour | fd.EASGD]


def downpour(optimizer: Any, params: Any, lr: float, tables: dict[str, Any], **options: Any) -> fd.Downpour:
    return fd.Downpour(optimizer, params, lr=lr, threads=1, tables=tables, **options)


def elastic(momentum: float, params: Any, lr: float, tables: dict[str, Any]) -> fd.EASGD:
    """Workers have all parameters."""
    if not momentum:
        return fd.EASGD(fastopt.SGD, params, lr=lr, threads=1)
    return fd.EASGD(fastopt.NAG, params, lr=lr, momentum=momentum, lr_inside=True, threads=1)


#: Learning rates that are tried, of digits; each task and algorithm has a multiple of them.
RATES = (0.5, 1.0, 2.0, 5.0, 10.0)
ALGORITHMS: dict[str, tuple[Make, float]] = {
    "SGD": (partial(downpour, fastopt.SGD), 1.0),
    "Adagrad": (partial(downpour, fastopt.Adagrad, initial_accumulator_value=1.0, eps=0.0), 1.0),
    "AdaptiveRevision": (partial(downpour, fastopt.AdaptiveRevision), 1.0),
    "DC-ASGD": (partial(downpour, fastopt.DCASGD), 1.0),
    "EASGD": (partial(elastic, 0.0), 1.0),
    "EAMSGD": (partial(elastic, 0.9), 0.1),
}


class Task(Protocol):
    """What is to be learned."""

    name: str
    factor: float
    tables: dict[str, Any]

    def start(self) -> Any: ...

    def batches(self, passes: int) -> Iterator[np.ndarray]: ...

    def gradient(self, params: Any, batch: np.ndarray) -> Any: ...

    def rows(self, batch: np.ndarray) -> dict[str, np.ndarray]: ...

    def loss(self, params: Any) -> float: ...


class Digits:
    """Softmax regression on images of digits, with a one behind each."""

    name, factor = "digits", 1.0

    def __init__(self) -> None:
        images, self.labels = load_digits(return_X_y=True)
        self.images = np.hstack([images / 16, np.ones((len(images), 1))]).astype(np.float32)
        self.tables: dict[str, Any] = {}

    def start(self) -> np.ndarray:
        return np.zeros((65, 10), np.float32)

    def batches(self, passes: int) -> Iterator[np.ndarray]:
        return shuffled(len(self.labels), 16, passes)

    def gradient(self, params: np.ndarray, batch: np.ndarray) -> np.ndarray:
        x = self.images[batch]
        shares = softmax(x @ params)
        shares[np.arange(len(batch)), self.labels[batch]] -= 1
        return x.T @ shares / np.float32(len(batch))

    def rows(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def loss(self, params: np.ndarray) -> float:
        shares = softmax(self.images @ params)
        return -float(np.log(shares[np.arange(len(self.labels)), self.labels] + 1e-30).mean())


class Text:
    """Logistic regression: which chunks of the standard library are from its tests?"""

    name, factor = "text", 50.0

    def __init__(self, size: float) -> None:
        data = common.cached("text", size, lambda: text.build(size))
        self.all = csr_matrix((data["data"], data["indices"], data["indptr"]))
        self.labels = data["labels"].astype(np.float32)
        self.tables: dict[str, Any] = {"w": 2}
        self.held_out = round(text.HELD_OUT * len(self.labels))
        self.unseen = self.all[: self.held_out]

    def start(self) -> dict[str, np.ndarray]:
        return {"w": np.zeros(self.all.shape[1], np.float32)}

    def batches(self, passes: int) -> Iterator[np.ndarray]:
        for batch in shuffled(len(self.labels) - self.held_out, 64, passes):
            yield batch + self.held_out

    def rows(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"w": self.all[batch].indices}

    def gradient(self, params: dict[str, np.ndarray], batch: np.ndarray) -> dict[str, Any]:
        x, labels = self.all[batch], self.labels[batch]
        whole = len(params["w"]) == x.shape[1]  # a worker's own, else what it has fetched
        w = params["w"][x.indices] if whole else params["w"]
        owners = np.repeat(np.arange(len(batch)), np.diff(x.indptr))
        z = np.bincount(owners, x.data * w, len(batch)).astype(np.float32)
        pulls = -labels / (1 + np.exp(labels * z)) / np.float32(len(batch))
        values = x.data * pulls[owners]
        if whole:
            return {"w": np.bincount(x.indices, values, x.shape[1]).astype(np.float32)}
        return {"w": fastopt.RowSparse(x.indices, values)}

    def loss(self, params: dict[str, np.ndarray]) -> float:
        return text.mean_loss("logistic", self.unseen @ params["w"], self.labels[: self.held_out])


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def shuffled(examples: int, size: int, passes: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    for _ in range(passes):
        order = random.permutation(examples)
        yield from (order[k : k + size] for k in range(0, examples - size + 1, size))


def seconds(random: np.random.Generator, worker: int) -> float:
    return random.lognormal(0, 0.3)


class Curve:
    """The loss of what has been learned, by gradients and by seconds; of EASGD's workers also where they are."""

    def __init__(self, task: Task, make: Make, lr: float, workers: int, passes: int) -> None:
        algorithm, batches = make(task.start(), lr, task.tables), list(task.batches(passes))
        every, on_their_own = max(len(batches) // POINTS, 1), isinstance(algorithm, fd.EASGD)
        self.gradients, self.seconds, self.losses = [0], [0.0], [task.loss(task.start())]
        self.own = [] if not on_their_own else self.losses[:]

        done = 0

        def gradient(params: Any, batch: np.ndarray) -> Any:
            nonlocal done
            done += 1
            if on_their_own and done % every == 0:
                self.own.append(task.loss(params))
            return task.gradient(params, batch)

        def watch(now: float, params: Any) -> None:
            if done % every == 0:
                self.gradients.append(done)
                self.seconds.append(now)
                self.losses.append(task.loss(params))

        rows = task.rows if task.tables and not on_their_own else None
        given = {"workers": workers, "compute": seconds, "travel": TRAVEL, "rows": rows, "watch": watch, "seed": 1}
        with np.errstate(all="ignore"):
            fd.simulate(gradient, batches, algorithm, **given)


def train(task: Task, name: str, workers: Sequence[int], passes: int) -> tuple[float, dict[int, Curve], float, Curve]:
    """Return the rate that is best with one worker, and the curves with it; that of the most workers, and its curve."""
    make, factor = ALGORITHMS[name]
    rates, most = [task.factor * factor * rate for rate in RATES], max(workers)
    tried = {n: {lr: Curve(task, make, lr, n, passes) for lr in rates} for n in {1, most}}

    def best(n: int) -> float:
        return min(rates, key=lambda lr: np.nan_to_num(tried[n][lr].losses[-1], nan=np.inf))

    lr, own = best(1), best(most)
    curves = {n: tried[n][lr] if n in tried else Curve(task, make, lr, n, passes) for n in workers}
    return lr, curves, own, tried[most][own]


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulates each algorithm with each number of workers, prints losses, and draws them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--plot", type=common._picture, metavar="FILE", help="draws the losses there and in FILE-text")
    common.add_tables(options)
    common.add_workers(options)
    common.add_size(options, "the library's files")
    options.add_argument("--passes", type=common.count, default=10, help="over the data (default %(default)s)")
    given = options.parse_args(arguments)
    tasks: tuple[Task, ...] = Digits(), Text(given.size)
    for k, task in enumerate(tasks):
        rows, curves = [], dict[str, dict[int, Curve]]()
        for number, name in enumerate(ALGORITHMS, 1 + k * len(ALGORITHMS)):
            common.progress(f"[{number}/{len(tasks) * len(ALGORITHMS)}] {task.name}: {name}")
            lr, curves[name], own, tuned = train(task, name, given.workers, given.passes)
            cells = [f"{curve.losses[-1]:.4f}" for curve in curves[name].values()]
            spent = [f"{curve.seconds[-1]:,.0f}" for curve in curves[name].values()]
            rows.append([name, f"{lr:g}", *cells, f"{tuned.losses[-1]:.4f} ({own:g})", *spent])
        counts = [common.plural(n) for n in given.workers]
        common.show(
            f"{task.name}: loss after {given.passes} passes, and simulated seconds",
            ["algorithm", "rate", *counts, "(its rate)", *(f"s, {n}" for n in given.workers)],
            rows,
            "The rate is the best of five with one worker; beside it what the most workers have at the best for them.",
        )
        if given.plot:
            draw(given.plot, task.name, curves)
    return 0


def draw(path: Any, name: str, curves: dict[str, dict[int, Curve]]) -> None:
    """Draw losses by algorithm, of the most workers beside one; and EASGD's centre beside its workers."""
    looks: dict[str, Look] = {}
    shown: dict[str, Curve] = {}
    for k, (algorithm, found) in enumerate(curves.items()):
        for j, (workers, curve) in enumerate(found.items()):
            label = f"{algorithm}, {workers}"
            shown[label], looks[label] = curve, look(k + len(COLOURS) * j)
    panels = [
        common.Panel({label: (x(curve), curve.losses) for label, curve in shown.items()}, what, "loss", "log", looks)
        for what, x in (
            ("gradients", lambda curve: curve.gradients),
            ("simulated seconds", lambda curve: curve.seconds),
        )
    ]
    centre: dict[str, Any] = {}
    for workers, curve in curves["EASGD"].items():
        for who, losses in (("centre", curve.losses), ("its workers", curve.own)):
            centre[f"EASGD, {workers}: {who}"] = curve.gradients[: len(losses)], losses[: len(curve.gradients)]
    panels.append(common.Panel(centre, "gradients", "loss", "log"))
    own = path if name == "digits" else path.with_stem(f"{path.stem}-{name}")
    common.draw(own, f"{name}: workers that do not wait for each other (algorithm, workers)", *panels)


if __name__ == "__main__":
    sys.exit(main())
