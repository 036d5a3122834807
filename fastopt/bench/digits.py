"""The real thing: a small network, written out in NumPy, learns to read digits with each optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from ..optimizers import CLASSES
from ..rules import RULES
from .section import Options, Row, Section, Table, named, table, value_of

BATCH = 64
HELD_OUT = 360  # of 1797

#: Learning rates; 1e-2 for whoever is not here.
LR = {
    "SGD": 0.5,
    "ASGD": 0.5,
    "ScheduleFreeSGD": 0.5,
    "Momentum": 0.05,
    "NAG": 0.05,
    "QHM": 0.5,
    "AggMo": 0.05,
    "LARS": 10.0,
    "Adadelta": 1.0,
    "Prodigy": 1.0,
    "AdaptiveRevision": 0.5,
    "DCASGD": 0.5,
}


#: FTRL, for linear models, forgets the weights that it begins with, and from zero such a network learns nothing.
LEFT_OUT = ("FTRL",)


@cache
def _data() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype(np.float32), labels[order]


class Network:
    """64 pixels, 64 rectified units, 10 classes; `grads` holds the loss's gradients under the names of `params`."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.params = {
            "w1": rng.standard_normal((64, 64), np.float32) / np.float32(np.sqrt(32)),
            "b1": np.zeros(64, np.float32),
            "w2": rng.standard_normal((64, 10), np.float32) / np.float32(np.sqrt(32)),
            "b2": np.zeros(10, np.float32),
        }
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hidden units and the classes' logits."""
        hidden = np.maximum(x @ self.params["w1"] + self.params["b1"], 0)
        return hidden, hidden @ self.params["w2"] + self.params["b2"]

    def backward(self, x: np.ndarray, y: np.ndarray) -> None:
        """Writes the gradients of the mean cross-entropy."""
        hidden, delta = self.forward(x)
        delta = np.exp(delta - delta.max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(y)), y] -= 1
        delta /= len(y)
        np.matmul(hidden.T, delta, out=self.grads["w2"])
        delta.sum(axis=0, out=self.grads["b2"])
        delta = (delta @ self.params["w2"].T) * (hidden > 0)
        np.matmul(x.T, delta, out=self.grads["w1"])
        delta.sum(axis=0, out=self.grads["b1"])

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """The share of images read rightly."""
        return float((self.forward(x)[1].argmax(axis=1) == y).mean())


def train(name: str, epochs: int = 15, threads: int | None = None) -> dict[str, Any]:
    """Trains with an optimizer class.

    Parameters
    ----------
    name : str
        The class.
    epochs : int
        Passes over the 1437 images to learn from.
    threads : int, optional
        Threads of an update.

    Returns
    -------
    dict
        The optimizer's name, its lr, its accuracy on the 360 images held out, steps, seconds spent in updates.
    """
    images, labels = _data()
    rng = np.random.default_rng(0)
    network, lr = Network(), LR.get(name, 1e-2)
    optimizer: Any = CLASSES[name](network.params, lr=lr, threads=threads)
    plan = optimizer.bind(network.grads)
    steps, seconds = 0, 0.0
    for _ in range(epochs):
        order = HELD_OUT + rng.permutation(len(images) - HELD_OUT)
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            network.backward(images[batch], labels[batch])
            start = perf_counter()
            plan.step()
            seconds += perf_counter() - start
            steps += 1
    if optimizer._arguments.evaluated:
        optimizer.eval()
    accuracy = network.accuracy(images[:HELD_OUT], labels[:HELD_OUT])
    return {"name": name, "lr": lr, "accuracy": accuracy, "steps": steps, "seconds": seconds}


def section(options: Options) -> Section:
    """The section of trainings."""
    title = "Handwritten digits: a 64-64-10 network in NumPy, 15 epochs of batches of 64"
    names = [name for name in dict.fromkeys(RULES[rule].optimizer for rule in options.rules) if name not in LEFT_OUT]
    columns = {
        "optimizer": named,
        "lr": value_of("lr", 3),
        "held-out accuracy": value_of("accuracy", 1, " %", 100),
        "steps": value_of("steps", 0),
        "updates ms": value_of("seconds", 2, scale=1e3),
        "µs an update": lambda row: f"{1e6 * row['seconds'] / row['steps']:.1f}",
    }

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        yield table(title, columns, rows)

    return Section("digits", title, names, lambda name, _: train(name, threads=options.threads), tables, seconds=0.5)
