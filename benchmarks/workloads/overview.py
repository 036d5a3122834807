"""All of an overview of gradient descent in one training: a network in NumPy reads digits, with every optimizer.

The network normalizes its hidden units by batch (`fastopt.training.BatchNorm`); its gradient is checked against
differences before anything is trained. Each optimizer then has the same batches: in the first third of the epochs those
of a curriculum, from the images that are most like their kind to all of them, and after that the whole set, shuffled
anew in each epoch. The learning rate warms up and falls along a cosine, gradients have noise that fades (Neelakantan et
al. 2015, arXiv:1511.06807), and a training ends early where the loss on images of its own no longer falls.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import common

try:
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress
    from sklearn.datasets import load_digits
    from threadpoolctl import threadpool_limits

    from fastopt.palette import rule_look
    from fastopt.rules import RULES
    from fastopt.schedules import Cosine, Schedule, WarmUp
    from fastopt.training import BatchNorm, Curriculum, EarlyStopping, check_gradient, minibatches
    from fastopt.trajectories.descent import optimizer_class
except ModuleNotFoundError as missing:
    common.explain(missing)

UNITS, BATCH, LEVELS = 64, 64, 4
HELD_OUT, VALIDATED = 360, 180  # of 1797 images
PATIENCE = 6  # epochs
ETA, GAMMA = 1e-6, 0.55  # the noise's variance at step t, from 0, is ETA/(1 + t)^GAMMA

#: The highest learning rates; 1e-2 for whoever is not here.
LR = {
    "sgd": 0.5, "asgd": 0.5, "schedule_free_sgd": 0.5, "qhm": 0.5, "momentum": 0.05, "nesterov": 0.05, "aggmo": 0.05,
    "adagrad": 0.05, "rowwise_adagrad": 0.05, "adaptive_revision": 0.5, "adadelta": 1.0, "ftrl": 0.1, "lars": 10.0,
    "prodigy": 1.0, "dc_asgd": 0.5, "dc_asgd_adaptive": 0.5,
}  # fmt: skip


@dataclass
class Digits:
    """Images of handwritten digits and what they are: to learn from, to stop by, and held out until the end."""

    learnt: tuple[np.ndarray, np.ndarray]
    validated: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]

    @classmethod
    def load(cls) -> Digits:
        """Load scikit-learn's images, always in the same order."""
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        images, labels = (images[order] / 16).astype(np.float32), labels[order]
        cuts = [HELD_OUT, HELD_OUT + VALIDATED]
        held_out, validated, learnt = zip(np.split(images, cuts), np.split(labels, cuts), strict=True)
        return cls(learnt, validated, held_out)

    def difficulty(self) -> np.ndarray:
        """Return how much farther each training image is from the mean of its kind than from the nearest of another."""
        images, labels = self.learnt
        means = np.stack([images[labels == kind].mean(axis=0) for kind in range(10)])
        away = np.linalg.norm(images[:, None] - means, axis=2)
        own = np.arange(10) == labels[:, None]
        return away[own] - np.where(own, np.inf, away).min(axis=1)


class Network:
    """64 pixels, 64 rectified units normalized by batch, 10 classes."""

    def __init__(self, dtype: Any = np.float32) -> None:
        random = np.random.default_rng(0)
        self.norm = BatchNorm(UNITS, dtype=dtype, threads=1)
        self.params = {
            "hidden": (random.standard_normal((64, UNITS)) / np.sqrt(32)).astype(dtype),
            **self.norm.params,
            "classes": (random.standard_normal((UNITS, 10)) / np.sqrt(UNITS)).astype(dtype),
            "offset": np.zeros(10, dtype),
        }

    def state(self) -> list[Any]:
        """All that the best epoch is remembered by: the running statistics too."""
        return [self.params, self.norm.running_mean, self.norm.running_var]

    def forward(self, images: np.ndarray, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """The rectified units, and the classes' logits."""
        units = np.maximum(self.norm.forward(images @ self.params["hidden"], training), 0)
        return units, units @ self.params["classes"] + self.params["offset"]

    def loss(self, images: np.ndarray, labels: np.ndarray, training: bool = False) -> float:
        """The mean cross-entropy."""
        return _cross_entropy(self.forward(images, training)[1], labels)[0]

    def backward(self, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of the mean cross-entropy of a batch, in the order of `params`."""
        units, logits = self.forward(images, training=True)
        slopes = _cross_entropy(logits, labels)[1]
        hidden = self.norm.backward(slopes @ self.params["classes"].T * (units > 0))
        return {
            "hidden": images.T @ hidden,
            **self.norm.grads,
            "classes": units.T @ slopes,
            "offset": slopes.sum(axis=0),
        }

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of images that are read rightly."""
        return float((self.forward(images, training=False)[1].argmax(axis=1) == labels).mean())


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean, and its gradient."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -float(np.log(np.maximum(shares[rows, labels], 1e-30)).mean())
    shares[rows, labels] -= 1
    return loss, shares / len(labels)


def check(digits: Digits) -> str:
    """Check the network's gradient and return the result in words; a wrong one ends the command."""
    network = Network(np.float64)
    images, labels = digits.learnt[0][:BATCH].astype(np.float64), digits.learnt[1][:BATCH]

    def loss(params: dict[str, np.ndarray]) -> float:
        for name, param in params.items():
            network.params[name][...] = param
        return network.loss(images, labels, training=True)

    start = {name: param.copy() for name, param in network.params.items()}
    found = check_gradient(loss, start, network.backward(images, labels))
    if not found:
        sys.exit(str(found))
    return str(found)


def batches(digits: Digits, epochs: int) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
    """The batches of each epoch: a curriculum's, whose level rises, and then those of the whole set."""
    images, labels = digits.learnt
    curriculum = Curriculum(digits.difficulty(), "naive", levels=LEVELS, seed=0)
    whole = minibatches(images, labels, batch_size=BATCH, seed=0)
    guided = epochs // 3
    for epoch in range(epochs):
        if epoch >= guided:
            yield iter(whole)
            continue
        while curriculum.level <= LEVELS * epoch // guided:
            curriculum.advance()
        yield ((images[rows], labels[rows]) for rows in (curriculum.draw(BATCH) for _ in range(len(whole))))


@dataclass
class Training:
    """A training with one optimizer: the validation loss after each epoch, the best one's number, and the end."""

    losses: list[float] = field(default_factory=list)
    best: int = 0
    accuracy: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of each update


def steps_of(digits: Digits, epochs: int) -> int:
    """The steps of so many epochs."""
    return epochs * -(-len(digits.learnt[0]) // BATCH)


def schedule(rule: str, steps: int) -> Schedule:
    """The learning rate: up along a line in a tenth of the steps, and down along a cosine."""
    warm = steps // 10
    return WarmUp(warm, Cosine(LR.get(rule, 1e-2), steps - warm))


def noise(step: Any) -> Any:
    """The standard deviation of the gradients' noise at a step, from 0, or at each of several."""
    return np.sqrt(ETA / (1 + step) ** GAMMA)


def train(rule: str, digits: Digits, epochs: int) -> Training:
    """A network trained with the optimizer of a rule."""
    network, done, random = Network(), Training(), np.random.default_rng(1)
    base = {"base_lr": LR.get(rule, 1e-2)} if "base_lr" in RULES[rule].hyper else {}  # at the first step it is 0
    opt = optimizer_class(rule)(network.params, lr=schedule(rule, steps_of(digits, epochs)), threads=1, **base)
    stopping = EarlyStopping(PATIENCE)
    for epoch in batches(digits, epochs):
        for images, labels in epoch:
            grads = network.backward(images, labels)
            for grad in grads.values():
                grad += noise(len(done.seconds)) * random.standard_normal(grad.shape, np.float32)
            begin = perf_counter()
            opt.step(grads)
            done.seconds.append(perf_counter() - begin)
        done.losses.append(network.loss(*digits.validated))
        if stopping.step(done.losses[-1], network.state()):
            break
    stopping.restore(network.state())  # where it did not stop too
    done.best, done.accuracy = stopping.best_step or 0, network.accuracy(*digits.held_out)
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the gradient, trains with each optimizer, and prints what came of it."""
    options = common.parser(__doc__, epochs=30).parse_args(arguments)
    digits = Digits.load()
    common.progress(check(digits))
    found: dict[str, Training] = {}
    with threadpool_limits(1), Progress(console=Console(stderr=True)) as bar:  # matrices too small for threads
        for k, rule in enumerate(bar.track(RULES, description="optimizers"), 1):
            found[rule] = train(rule, digits, options.epochs)
            bar.console.print(f"[{k}/{len(RULES)}] {rule}: {found[rule].accuracy:.1%}", markup=False, highlight=False)
    common.show(
        f"Handwritten digits: a 64-{UNITS}-10 network with batch normalization, at most {options.epochs} epochs of "
        f"batches of {BATCH}",
        ["optimizer", "highest lr", "held out, right", "validation loss", "of epoch", "epochs", "µs an update"],
        [
            [
                rule,
                f"{LR.get(rule, 1e-2):g}",
                f"{done.accuracy:.1%}",
                f"{min(done.losses):.3f}",
                f"{done.best}",
                f"{len(done.losses)}",
                f"{1e6 * median(done.seconds):.1f}",
            ]
            for rule, done in found.items()
        ],
        f"{HELD_OUT} images are held out, {VALIDATED} tell when to stop, {len(digits.learnt[0])} are learnt from.",
    )
    if options.plot:
        shown = np.arange(steps_of(digits, options.epochs))
        rate = schedule("adam", len(shown))
        common.draw(
            options.plot,
            "Handwritten digits, with every optimizer",
            common.Panel(
                {rule: (range(1, len(done.losses) + 1), done.losses) for rule, done in found.items()},
                "epochs", "validation loss", "log", {rule: rule_look(rule) for rule in found},
            ),
            common.Panel(
                {
                    "learning rate": (shown, [rate(step + 1) / LR.get("adam", 1e-2) for step in shown]),
                    "noise of the gradients": (shown, noise(shown) / noise(0)),
                },
                "steps", "share of the highest",
            ),
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
