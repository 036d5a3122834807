"""Text classification at the shape of RCV1: which parts of the standard library's sources are from its tests?

Chunks of 30 lines become the TF-IDF of their identifiers: some 29,500 rows of 45,000 columns with 45 nonzeros each. Two
linear models learn from nine tenths of them by Hogwild, the support vector machine of the Hogwild paper and logistic
regression. Beside them is scikit-learn's SGDClassifier, with the same loss, penalty and number of epochs. Chunks held
out come from the same files as the others: they are easier than files never seen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from time import perf_counter

import common

try:
    import numpy as np
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    from fastopt.hogwild import LinearModel, Run
except ModuleNotFoundError as missing:
    common.explain(missing)

LINES = 30
COLUMNS = 45_000
HELD_OUT = 0.1
DECAY = 0.8
MODELS = {  # by loss
    "hinge": {"rule": "sgd", "lr": 1.0, "l2": 0.3},
    "logistic": {"rule": "adagrad", "lr": 0.3, "l2": 0.03},
}
PEER = {"hinge": "hinge", "logistic": "log_loss"}  # the losses' names in scikit-learn


def build(share: float) -> dict[str, np.ndarray]:
    """The chunks' TF-IDF in CSR form and their labels, 1 for tests and -1, in random order."""
    chunks, labels = [], []
    for test, text in common.sources(share):
        lines = text.splitlines()
        chunks += ["\n".join(lines[k : k + LINES]) for k in range(0, len(lines), LINES)]
        labels += [1 if test else -1] * (len(chunks) - len(labels))
    vectorizer = TfidfVectorizer(token_pattern=common.IDENTIFIER, min_df=2, max_features=COLUMNS, dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(chunks))
    rows = vectorizer.fit_transform(chunks)[order]
    return {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr, "labels": np.array(labels)[order]}


def mean_loss(loss: str, z: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean loss of predictions z."""
    margin = labels * z
    return float((np.maximum(0, 1 - margin) if loss == "hinge" else np.logaddexp(0, -margin)).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains both models with each number of workers, prints times and accuracies, and draws the losses."""
    options = common.parser(__doc__, epochs=12)
    common.add_workers(options)
    common.add_rounds(options, 9)
    common.add_size(options, "the library's files")
    options = options.parse_args(arguments)
    data = common.cached("text", options.size, lambda: build(options.size))
    rows, labels = csr_matrix((data["data"], data["indices"], data["indptr"])), data["labels"]
    split = round(HELD_OUT * len(labels))
    unseen, learnt = rows[:split], rows[split:]
    common.progress(f"{len(labels):,} chunks, {split:,} held out")

    models, fits = {}, {}
    for loss, settings in MODELS.items():
        for workers in options.workers:
            name = f"{loss}, {settings['rule']}, {common.plural(workers)}"
            models[name] = loss, LinearModel(loss, decay=DECAY, **settings)
            fits[name] = partial(fit, models[name][1], learnt, labels[split:], workers, options.epochs)
            models[name][1].fit(learnt[:8], labels[split : split + 8], workers=workers, epochs=1)  # compiles it
        name = f"{loss}, SGDClassifier"
        alpha = settings["l2"] / learnt.shape[0]  # of the mean loss, as fastopt's is of an epoch's
        peer = SGDClassifier(loss=PEER[loss], alpha=alpha, max_iter=options.epochs, tol=None, fit_intercept=False)
        models[name] = loss, peer
        fits[name] = partial(fit_peer, loss, peer, learnt, labels[split:])
    runs = common.repeated(options.rounds, fits)

    table = []
    for name, (loss, model) in models.items():
        seconds = sum(runs[name].seconds) / options.epochs
        z = model.decision_function(unseen)
        accuracy = np.mean((z > 0) == (labels[:split] > 0))
        speed = learnt.nnz / seconds / 1e6
        held_out = mean_loss(loss, z, labels[:split])
        table.append([name, f"{1e3 * seconds:.2f}", f"{speed:.0f}", f"{held_out:.4f}", f"{accuracy:.2%}"])
    chunks, identifiers = learnt.shape
    common.show(
        f"{chunks:,} chunks of text, {identifiers:,} identifiers, {learnt.nnz / chunks:.1f} a chunk; "
        f"{options.epochs} epochs",
        ["model", "ms an epoch", "million nonzeros/s", "held-out loss", "held-out accuracy"],
        table,
        f"Times: medians of {options.rounds} trainings of each, in turns; SGDClassifier's are of the whole fit().\n"
        f"{np.mean(labels[:split] > 0):.1%} of the chunks held out are from tests.",
    )
    if options.plot:
        panels = []
        for loss in MODELS:
            curves = common.against_time(
                {name: run for name, run in runs.items() if len(run.loss) > 1 and loss in name}
            )
            curves = {name: ([1e3 * x for x in seconds], losses) for name, (seconds, losses) in curves.items()}
            panels.append(common.Panel(curves, "milliseconds of training", "loss, mean over an epoch's chunks"))
        common.draw(options.plot, "Which chunks of the standard library are from its tests?", *panels)
    return 0


def fit(model: LinearModel, rows: csr_matrix, labels: np.ndarray, workers: int, epochs: int) -> Run:
    """A training."""
    return model.fit(rows, labels, workers=workers, epochs=epochs).run_


def fit_peer(loss: str, model: SGDClassifier, rows: csr_matrix, labels: np.ndarray) -> Run:
    """A training by scikit-learn: all its epochs as one."""
    start = perf_counter()
    model.fit(rows, labels)
    seconds = perf_counter() - start
    return Run((mean_loss(loss, model.decision_function(rows), labels),), (seconds,))


if __name__ == "__main__":
    sys.exit(main())
