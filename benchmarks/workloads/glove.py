"""GloVe embeddings of the identifiers in the Python standard library's sources, by Hogwild.

Pennington, Socher and Manning 2014: weighted least squares on the logarithms of co-occurrence counts, with Adagrad.
Words within ten of one another count 1/distance. At the end it prints the nearest neighbours of a few identifiers.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import median

import common

try:
    import numpy as np
    from numba import njit

    from fastopt.hogwild import Run, run
    from fastopt.numba import adagrad
except ModuleNotFoundError as missing:
    common.explain(missing)

VOCABULARY = 4000
WINDOW = 10
WIDTH = 50
X_MAX, ALPHA, LR = 10.0, 0.75, 0.05  # the authors have an x_max of 100 for texts a thousand times as long
SHOWN = ("self", "open", "write", "socket", "dict", "float", "assertEqual", "int", "import", "thread")


@njit
def add_pairs(words, counts):
    """Adds 1/distance to the counts of words and those within the window before them."""
    for i in range(words.size):
        for distance in range(1, min(WINDOW, i) + 1):
            a, b = words[i], words[i - distance]
            counts[a, b] += np.float32(1) / np.float32(distance)
            counts[b, a] += np.float32(1) / np.float32(distance)


def build(share: float) -> dict[str, np.ndarray]:
    """The vocabulary, commonest first, and the counts of its pairs that there are."""
    identifier = re.compile(common.IDENTIFIER)
    texts = [identifier.findall(text) for _, text in common.sources(share)]
    vocabulary = [word for word, _ in Counter(word for text in texts for word in text).most_common(VOCABULARY)]
    number = {word: k for k, word in enumerate(vocabulary)}
    counts = np.zeros((len(vocabulary), len(vocabulary)), np.float32)
    for text in texts:
        add_pairs(np.array([number[word] for word in text if word in number], np.int64), counts)
    first, second = counts.nonzero()
    return {
        "vocabulary": np.array(vocabulary),
        "first": first.astype(np.int32),
        "second": second.astype(np.int32),
        "count": counts[first, second],
    }


@njit(nogil=True, fastmath={"reassoc"})
def dot(a, b):
    """The inner product, in the order that is fastest."""
    total = np.float32(0)
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@njit(nogil=True)
def learn(order, lr, u, v, su, sv, first, second, weight, target):
    """Adagrad's updates for some pairs, and the sum of their losses. A row's last element is the word's bias."""
    c = adagrad.fold(np.float32, 1, lr)
    width = u.shape[1] - 1
    loss = 0.0
    for n in order:
        p, q, sp, sq = u[first[n]], v[second[n]], su[first[n]], sv[second[n]]
        difference = dot(p[:width], q[:width]) + p[width] + q[width] - target[n]
        e = weight[n] * difference
        for k in range(width):
            gp, gq = e * q[k], e * p[k]
            p[k], sp[k] = adagrad.update(p[k], gp, sp[k], c)
            q[k], sq[k] = adagrad.update(q[k], gq, sq[k], c)
        p[width], sp[width] = adagrad.update(p[width], e, sp[width], c)
        q[width], sq[width] = adagrad.update(q[width], e, sq[width], c)
        loss += 0.5 * e * difference
    return loss


def start(words: int) -> list[np.ndarray]:
    """Vectors of words and of contexts, small and random, and Adagrad's sums, which begin at 1 as the authors' do."""
    rng = np.random.default_rng(0)
    vectors = (rng.random((2, words, WIDTH + 1), np.float32) - np.float32(0.5)) / np.float32(WIDTH)
    return [*vectors, *np.ones_like(vectors)]


def advance(arrays: list[np.ndarray], workers: int, epoch: int) -> Run:
    """An epoch."""
    return run(learn, len(arrays[-1]), arrays, lr=LR, workers=workers, epochs=1, seed=epoch)


def neighbours(vectors: np.ndarray, vocabulary: list[str], word: str, many: int = 6) -> list[str]:
    """The words whose vectors point most nearly where this word's does."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-vectors @ vectors[vocabulary.index(word)])
    return [vocabulary[k] for k in nearest[1 : many + 1]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains with each number of workers, prints losses, times and neighbours, and draws the losses."""
    options = common.parser(__doc__, epochs=25)
    common.add_workers(options)
    common.add_size(options, "the library's files")
    options = options.parse_args(arguments)
    data = common.cached("glove", options.size, lambda: build(options.size))
    vocabulary = data["vocabulary"].tolist()
    pairs = len(data["count"])
    weight = np.minimum(1, (data["count"] / X_MAX) ** ALPHA).astype(np.float32)
    given = [data["first"], data["second"], weight, np.log(data["count"])]
    common.progress(f"{len(vocabulary):,} words, {pairs:,} pairs")
    learn(np.arange(1), LR, *start(len(vocabulary)), *given)  # compiles it

    trainings = {workers: [*start(len(vocabulary)), *given] for workers in options.workers}
    runs = common.in_turns(
        options.epochs, {workers: partial(advance, arrays, workers) for workers, arrays in trainings.items()}
    )
    common.show(
        f"GloVe: {len(vocabulary):,} words, {pairs:,} pairs, vectors of {WIDTH}, {options.epochs} epochs",
        ["workers", "loss, first epoch", "loss, last epoch", "s an epoch", "million pairs/s"],
        [
            [
                str(workers),
                f"{done.loss[0]:.5f}",
                f"{done.loss[-1]:.5f}",
                f"{median(done.seconds):.2f}",
                f"{pairs / median(done.seconds) / 1e6:.2f}",
            ]
            for workers, done in runs.items()
        ],
    )
    workers, (words, contexts, *_) = trainings.popitem()
    vectors = (words + contexts)[:, :WIDTH]
    rows = [[word, ", ".join(neighbours(vectors, vocabulary, word))] for word in SHOWN if word in vocabulary]
    common.show(f"Nearest by cosine, as {common.plural(workers)} learnt them", ["word", "neighbours"], rows, words=2)
    if options.plot:
        curves = common.against_time({common.plural(workers): done for workers, done in runs.items()})
        panel = common.Panel(curves, "seconds of training", "loss, mean over pairs")
        common.draw(options.plot, f"GloVe on {pairs:,} pairs of identifiers", panel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
