"""Simulated workers: events in a time of their own, over the server that runs have."""

import numpy as np
import pytest

import fastopt
from fastopt import distributed as fd
from fastopt import functional

from ..support import assert_same_bits


def pull(params, k):
    return params - 1 + 0.1 * np.random.default_rng(k).standard_normal(params.shape)


def test_one_worker_has_the_bits_of_one_process():
    p = np.zeros(5)
    result = fd.simulate(pull, range(30), fd.Downpour(fastopt.Adam, p, lr=0.1), workers=1, travel=0.5)
    opt = fastopt.Adam(p, lr=0.1)
    for k in range(30):
        opt.step(pull(p, k))
    assert_same_bits([result.params], [p])
    assert (result.pushes, result.delays, result.seconds) == (30, {0: 30}, 30 * 2 + 1)  # and a fetch at first


@pytest.mark.parametrize("workers", [2, 10, 100])
def test_workers_of_one_speed_are_late_by_one_another(workers):
    """In order each gradient comes after those of all the others: AdaptiveRevision by hand, with the same bits."""
    algorithm = fd.Downpour(fastopt.AdaptiveRevision, np.zeros(3), lr=0.2)
    result = fd.simulate(pull, range(5 * workers), algorithm, workers=workers)
    assert result.delays == dict.fromkeys(range(workers - 1), 1) | {workers - 1: 4 * workers + 1}
    p, common = np.zeros(3), [np.zeros(3), np.ones(3), np.ones(3)]
    copies, snapshots = np.zeros((workers, 3)), np.zeros((workers, 3))
    for k in range(5 * workers):
        own = k % workers
        grad = pull(copies[own], k)
        functional.adaptive_revision(p, grad, *common, snapshots[own], step=k + 1, lr=0.2)
        copies[own] = p
    assert_same_bits([result.params], [p])


def test_the_same_seed_has_the_same_bits():
    def compute(random, worker):
        return random.lognormal(0, 0.3) * (10 if worker == 0 else 1)

    algorithm = fd.EASGD(fastopt.SGD, np.zeros(3), lr=0.1, every=2)
    first, again, other = (
        fd.simulate(pull, range(200), algorithm, workers=7, compute=compute, travel=0.2, seed=seed)
        for seed in (3, 3, 4)
    )
    assert_same_bits([first.params], [again.params])
    assert (first.delays, first.seconds) == (again.delays, again.seconds) != (other.delays, other.seconds)
    assert max(first.delays) > 7  # the slow one's


def test_nobody_is_further_ahead_than_allowed():
    def compute(random, worker):
        return 10.0 if worker == 0 else 1.0

    algorithm, made = fd.Downpour(fastopt.SGD, np.zeros(3), lr=0.01), {}
    for ahead in (None, 2):
        made[ahead] = fd.simulate(pull, range(400), algorithm, workers=4, compute=compute, max_ahead=ahead)
        assert made[ahead].pushes == 400
    assert max(made[2].delays) <= 3 * 4 < max(made[None].delays)
    assert made[2].seconds > 2 * made[None].seconds


def test_a_warm_start_is_worker_0_alone():
    algorithm = fd.Downpour(fastopt.SGD, np.zeros(3), warm_start=20)
    result = fd.simulate(pull, range(60), algorithm, workers=4)
    assert result.pushes == 60 and result.delays[0] >= 20 and result.seconds > 20


def test_rows_are_fetched_before_a_worker_computes():
    """Each lookup's row is drawn to its number: what a worker has of the table is what it asked for, and takes time."""

    def gradient(params, k):
        assert params["t"].shape == (3, 2)
        which = np.array([k % 7, 3, k % 5])
        return {"t": fastopt.RowSparse(which, params["t"] - which[:, None]), "b": params["b"] - 1}

    given = {"t": np.zeros((7, 2)), "b": np.zeros(2)}
    algorithm = fd.Downpour(fastopt.SGD, given, lr=0.1, tables={"t": 2})
    result = fd.simulate(
        gradient, range(300), algorithm, workers=5, travel=0.5, rows=lambda k: {"t": np.array([k % 7, 3, k % 5])}
    )
    np.testing.assert_allclose(result.params["t"], np.arange(7)[:, None] * np.ones(2), atol=0.1)
    assert result.pushes == 300 and result.seconds == 60 * (1 + 2 * 2 * 0.5) + 1


def test_what_has_been_learned_can_be_watched():
    seen = []
    algorithm = fd.Downpour(fastopt.SGD, np.zeros(2), lr=0.5)
    result = fd.simulate(
        lambda params, k: params - 1, range(6), algorithm, workers=2, watch=lambda *now: seen.append(now)
    )
    assert [seconds for seconds, _ in seen] == [1, 1, 2, 2, 3, 3]
    assert [params[0] for _, params in seen] == [0, 0, 1, 1, 1.25, 1.25]  # pushes are on their way
    assert result.params.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gradient": 3}, TypeError, "gradient: found 3"),
        ({"batches": 3}, TypeError, "batches: found 3"),
        ({"algorithm": fastopt.SGD}, TypeError, "algorithm: found"),
        ({"workers": 0}, ValueError, "workers: found 0"),
        ({"compute": -1.0}, ValueError, "compute: found -1.0"),
        ({"travel": "far"}, TypeError, "travel: found 'far'"),
        ({"compute": lambda random, worker: -1.0}, ValueError, r"compute\(random, 0\): found -1.0"),
        ({"rows": 3}, TypeError, "rows: found 3"),
        ({"watch": 3}, TypeError, "watch: found 3"),
        ({"seed": 0.5}, TypeError, "seed: found 0.5"),
        ({"max_ahead": -1}, ValueError, "max_ahead: found -1"),
    ],
)
def test_what_is_wrong_is_told(change, error, message):
    given = {"gradient": pull, "batches": range(3), "algorithm": fd.Downpour(fastopt.SGD, np.zeros(3)), "workers": 2}
    with pytest.raises(error, match=message):
        fd.simulate(**{**given, **change})
