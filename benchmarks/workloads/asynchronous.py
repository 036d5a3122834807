"""Workers that do not wait for each other, simulated: the loss against gradients and against seconds, by algorithm.

Softmax regression on handwritten digits, and logistic regression on the chunks of text of `text.py`, whose weights are
a table that stays with the server in all but EASGD. A gradient, a batch's mean on digits and its sum on text, takes a
lognormal time of some second, a message a tenth of one. Each algorithm has the rate that is best with one worker (of 1,
2, 5, 10 ... and 0.5, 0.2 ...), and keeps it with more. Losses are of what the server has, over the images, and over
chunks held out.
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


ALGORITHMS: dict[str, Make] = {
    "SGD": partial(downpour, fastopt.SGD),
    "DC-ASGD": partial(downpour, fastopt.DCASGD),
    "Adagrad": partial(downpour, fastopt.Adagrad, initial_accumulator_value=1.0, eps=0.0),
    "AdaptiveRevision": partial(downpour, fastopt.AdaptiveRevision),
    "EASGD": partial(elastic, 0.0),
    "EAMSGD": partial(elastic, 0.9),
}


class Task(Protocol):
    """What is to be learned."""

    name: str
    rate: float  # where the search for the best begins
    tables: dict[str, Any]

    def start(self) -> Any: ...

    def batches(self, passes: int) -> Iterator[np.ndarray]: ...

    def gradient(self, params: Any, batch: np.ndarray) -> Any: ...

    def rows(self, batch: np.ndarray) -> dict[str, np.ndarray]: ...

    def loss(self, params: Any) -> float: ...


class Digits:
    """Softmax regression on images of digits, with a one behind each."""

    name, rate = "digits", 2.0

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

    name, rate = "text", 20.0

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
        pulls = -labels / (1 + np.exp(labels * z))
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
    tried: dict[tuple[int, float], Curve] = {}

    def curve(n: int, lr: float) -> Curve:
        if (n, lr) not in tried:
            tried[n, lr] = Curve(task, ALGORITHMS[name], lr, n, passes)
        return tried[n, lr]

    lr = common.best_rate(lambda lr: curve(1, lr).losses[-1], task.rate)
    own = common.best_rate(lambda lr: curve(max(workers), lr).losses[-1], lr)
    return lr, {n: curve(n, lr) for n in workers}, own, curve(max(workers), own)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulates each algorithm with each number of workers, prints losses, and draws them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--plot", type=common._picture, metavar="FILE", help="draws the losses there and in FILE-text")
    common.add_tables(options)
    common.add_workers(options)
    common.add_size(options, "the library's files")
    options.add_argument("--passes", type=common.count, default=5, help="over the data (default %(default)s)")
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
            "The rate is the best with one worker; beside it what the most workers have at the best for them.",
        )
        if given.plot:
            draw(given.plot, task.name, curves)
    return 0


def draw(path: Any, name: str, curves: dict[str, dict[int, Curve]]) -> None:
    """Draw losses by gradients and by seconds, two algorithms a panel; and EASGD's centre beside its workers."""
    names = list(curves)
    panels = []
    for what in ("gradients", "seconds"):
        for k in range(0, len(names), 2):
            shown, looks = dict[str, Any](), dict[str, Look]()
            for j, algorithm in enumerate(names[k : k + 2]):
                for dashes, (workers, curve) in enumerate(curves[algorithm].items()):
                    label = f"{algorithm}, {common.plural(workers)}"
                    shown[label] = getattr(curve, what), curve.losses
                    looks[label] = look(j + len(COLOURS) * dashes)
            panels.append(common.Panel(shown, f"{'simulated ' * (what == 'seconds')}{what}", "loss", "log", looks))
    for workers, curve in curves["EASGD"].items():
        sides = (("its workers", curve.own), ("the centre", curve.losses))
        shown = {f"EASGD, {common.plural(workers)}: {who}": (curve.gradients[: len(y)], y) for who, y in sides}
        panels.append(common.Panel(shown, "gradients", "loss", "log"))
    own = path if name == "digits" else path.with_stem(f"{path.stem}-{name}")
    common.draw(own, f"{name}: workers that do not wait for each other", *panels, columns=len(names) // 2)


if __name__ == "__main__":
    sys.exit(main())
