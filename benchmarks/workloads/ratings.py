"""Matrix factorisation by Hogwild: two million ratings that users give to items, many by the busy and of the popular.

The ratings are made: a matrix of rank 8, and noise of deviation 0.5, below which no prediction of ratings held out can
come. Users and items are drawn with probabilities that fall as the power -0.8 of their rank.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from statistics import median

import common

try:
    import numpy as np

    from fastopt.hogwild import Factorization, Run
except ModuleNotFoundError as missing:
    common.explain(missing)

USERS, ITEMS, DRAWS = 20_000, 5_000, 3_000_000
RANK, NOISE = 8, 0.5
HELD_OUT = 0.1
SETTINGS = {"rule": "adagrad", "lr": 0.3, "decay": 0.9, "l2": 0.02}


def make_ratings(share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and ratings, each pair once, in random order."""
    rng = np.random.default_rng(0)
    sizes = [max(10, round(share * many)) for many in (USERS, ITEMS)]
    popularity = [np.arange(1, size + 1) ** -0.8 for size in sizes]
    drawn = [rng.choice(len(p), round(share * DRAWS), p=p / p.sum()) for p in popularity]
    users, items = rng.permutation(np.unique(np.stack(drawn, axis=1), axis=0)).T
    u, v = (rng.standard_normal((size, RANK)) / RANK**0.25 for size in sizes)
    return users, items, (u[users] * v[items]).sum(axis=1) + NOISE * rng.standard_normal(len(users))


def fit(model: Factorization, ratings: Sequence[np.ndarray], workers: int, epochs: int) -> Run:
    """A training."""
    return model.fit(*ratings, workers=workers, epochs=epochs).run_


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains with each number of workers, prints errors and times, and draws the losses."""
    options = common.parser(__doc__, epochs=12)
    common.add_workers(options)
    common.add_rounds(options, 3)
    common.add_size(options, "the users, the items and the ratings")
    options = options.parse_args(arguments)
    ratings = make_ratings(options.size)
    split = round(HELD_OUT * len(ratings[0]))
    (users, items, unseen), learnt = ([array[part] for array in ratings] for part in (slice(split), slice(split, None)))
    common.progress(f"{len(learnt[0]):,} ratings, {split:,} more held out")

    models = {common.plural(workers): (workers, Factorization(RANK, **SETTINGS)) for workers in options.workers}
    fit(Factorization(RANK, **SETTINGS), [array[:8] for array in learnt], 1, 1)  # compiles it
    fits = {name: partial(fit, model, learnt, workers, options.epochs) for name, (workers, model) in models.items()}
    runs = common.repeated(options.rounds, fits)

    table = []
    for name, (_, model) in models.items():
        seconds = median(runs[name].seconds)
        error = np.sqrt(np.mean((model.predict(users, items) - unseen) ** 2))
        speed = len(learnt[0]) / seconds / 1e6
        table.append([name, f"{1e3 * seconds:.0f}", f"{speed:.1f}", f"{error:.4f}", f"{error / NOISE:.3f}"])
    common.show(
        f"{len(learnt[0]):,} ratings of {learnt[1].max() + 1:,} items by {learnt[0].max() + 1:,} users, rank {RANK}; "
        f"{options.epochs} epochs of {SETTINGS['rule']}",
        ["", "ms an epoch", "million ratings/s", "held-out RMSE", "times the noise's"],
        table,
        f"The noise's RMSE is {NOISE}, that of predicting the mean {unseen.std():.4f}.\n"
        f"Times: medians of {options.rounds} trainings of each, in turns.",
    )
    if options.plot:
        panel = common.Panel(common.against_time(runs), "seconds of training", "loss, mean of error²/2 over an epoch")
        common.draw(options.plot, f"Factorisation of {len(learnt[0]):,} ratings", panel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
