"""AdaptiveRevision and DC-ASGD with several workers, against their definitions by brute force."""

import numpy as np
import pytest

from fastopt import functional
from fastopt.backends import native
from fastopt.rules import RULES

from .support import assert_same_bits, gradients, parameter

KNOWN = ["native"] if native.isa_supported() else []


def scripts(workers, pushes, seed, fifo):
    """Which worker pushes, and whether it reads after it; in order of reading where `fifo`."""
    random = np.random.default_rng(seed)
    queue = list(range(workers))
    for _ in range(pushes):
        worker = queue.pop(0) if fifo else int(random.integers(workers))
        queue.append(worker)
        yield worker, True if fifo else bool(random.integers(4))


def by_definition(p0, grads, script, lr, initial=1.0):
    """Parameter after all pushes: p0 less each gradient at its rate, and each state z.

    A push gives itself the rate of its time, and so it does to all that were applied since its worker read.
    """
    read: dict[int, int] = {}
    rates = np.zeros_like(grads)
    z = largest = np.full_like(p0, initial)
    for t, (worker, reads) in enumerate(script):
        since = range(read.setdefault(worker, 0), t)
        behind = sum((grads[s] for s in since), np.zeros_like(p0))
        z = z + grads[t] ** 2 + 2 * grads[t] * behind
        largest = np.maximum(largest, z)
        for s in (*since, t):
            rates[s] = lr / np.sqrt(largest)
        if reads:
            read[worker] = t + 1
    return p0 - (rates * grads).sum(axis=0), z


def by_formula(p0, grads, script, lr, initial=1.0):
    """As `by_definition` where pushes come in order of reading; else what is behind loses the rate of the push before,
    whichever it has.
    """
    read: dict[int, int] = {}
    p, z, rate = p0, np.full_like(p0, initial), lr / np.sqrt(np.full_like(p0, initial))
    largest = z
    for t, (worker, reads) in enumerate(script):
        behind = grads[read.setdefault(worker, 0) : t].sum(axis=0)
        z = z + grads[t] ** 2 + 2 * grads[t] * behind
        largest = np.maximum(largest, z)
        before, rate = rate, lr / np.sqrt(largest)
        p = p + before * behind - rate * (behind + grads[t])
        if reads:
            read[worker] = t + 1
    return p, z


@pytest.mark.parametrize("backend", [*KNOWN, "numba"])
@pytest.mark.parametrize("fifo", [True, False], ids=["in order", "out of order"])
def test_it_is_what_its_definition_says(fifo, backend):
    negative = False
    for seed in range(20):
        random = np.random.default_rng(seed)
        workers, pushes, n = int(random.integers(1, 8)), 60, 9
        grads, p0 = random.standard_normal((pushes, n)), random.standard_normal(n)
        script = list(scripts(workers, pushes, seed, fifo))
        p, grad_sum, z, z_max = p0.copy(), np.zeros(n), np.ones(n), np.ones(n)
        snapshots = np.zeros((workers, n))
        for t, (worker, reads) in enumerate(script, 1):
            own = snapshots[worker]
            before = own.copy()
            functional.adaptive_revision(
                p, grads[t - 1], grad_sum, z, z_max, own, step=t, lr=0.3, read=reads, backend=backend
            )
            assert_same_bits([own], [grad_sum if reads else before])
        want, square = (by_definition if fifo else by_formula)(p0, grads, script, 0.3)
        np.testing.assert_allclose(p, want, rtol=0, atol=1e-13)
        np.testing.assert_allclose(z, square, rtol=0, atol=1e-11)
        negative |= bool((z < 0).any())
    assert negative or fifo  # so z needs a sign, in 8 bits too


@pytest.mark.parametrize("backend", [*KNOWN, "numba"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_without_delay_it_has_the_bits_of_adagrad(dtype, backend):
    p0, grads = parameter(301).astype(dtype), gradients(301, 100).astype(dtype)
    p0[::50] = -0.0
    one = [p0, *(np.full_like(p0, begin) for begin in (0, 1, 1, 0))]
    two = [p0.copy(), np.ones_like(p0)]
    for t, g in enumerate(grads, 1):
        functional.adaptive_revision(one[0], g, *one[1:], step=t, lr=0.1, backend=backend)
        functional.adagrad(two[0], g, two[1], step=t, lr=0.1, eps=0.0, backend=backend)
    assert_same_bits([one[0], one[2], one[3]], [two[0], two[1], two[1]])


def test_its_states_begin_as_the_paper_says():
    begins = RULES["adaptive_revision"].begins
    assert begins == dict.fromkeys(("z", "z_max"), "initial_accumulator_value")


def compensated(p0, grads, script, lr, factor):
    """Parameter after each push of DC-ASGD, and before the first; ``factor(t)`` is lambda at the t-th, from 0 on."""
    read, path = dict[int, int](), [p0]
    for t, (worker, reads) in enumerate(script):
        g, now, then = grads[t], path[-1], path[read.setdefault(worker, 0)]
        path.append(now - lr * (g + factor(t) * g * g * (now - then)))
        if reads:
            read[worker] = t + 1
    return np.array(path)


@pytest.mark.parametrize("backend", [*KNOWN, "numba"])
@pytest.mark.parametrize("name", ["dc_asgd", "dc_asgd_adaptive"])
@pytest.mark.parametrize("fifo", [True, False], ids=["in order", "out of order"])
def test_gradients_are_compensated_for_the_way_since_they_were_taken(fifo, name, backend):
    for seed in range(20):
        random = np.random.default_rng(seed)
        workers, pushes, n = int(random.integers(1, 8)), 60, 9
        grads, p0 = random.standard_normal((pushes, n)), random.standard_normal(n)
        script = list(scripts(workers, pushes, seed, fifo))
        if name == "dc_asgd":
            hyper, before, factors = {"lambd": 0.3}, [], np.full((pushes, n), 0.3)
        else:
            hyper, before = {"lambd0": 0.2, "alpha": 0.8}, [np.zeros(n)]
            weights = 0.2 * 0.8 ** np.arange(pushes)
            averages = np.array([weights[: t + 1] @ grads[t::-1] ** 2 for t in range(pushes)])
            factors = 0.2 / np.sqrt(averages + 1e-7)
        path = compensated(p0, grads, script, 0.1, factors.__getitem__)
        p, backups, read = p0.copy(), np.tile(p0, (workers, 1)), dict.fromkeys(range(workers), 0)
        for t, (worker, reads) in enumerate(script, 1):
            own = backups[worker]
            step = getattr(functional, name)
            step(p, grads[t - 1], *before, own, step=t, lr=0.1, read=reads, backend=backend, **hyper)
            if reads:
                read[worker] = t
                assert_same_bits([own], [p])
            np.testing.assert_allclose(p, path[t], rtol=0, atol=1e-13)
            np.testing.assert_allclose(own, path[read[worker]], rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", [*KNOWN, "numba"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ["dc_asgd", "dc_asgd_adaptive"])
def test_without_delay_they_have_the_bits_of_sgd(name, dtype, backend):
    p0, grads = parameter(301).astype(dtype), gradients(301, 100).astype(dtype)
    p0[::50], p0[7] = -0.0, np.inf
    grads[:, ::3] *= -0.0
    one, two = [p0, *([np.zeros_like(p0)] if name == "dc_asgd_adaptive" else []), p0.copy()], p0.copy()
    for t, g in enumerate(grads, 1):
        getattr(functional, name)(one[0], g, *one[1:], step=t, lr=0.1, backend=backend)
        functional.sgd(two, g, step=t, lr=0.1, backend=backend)
    assert_same_bits([one[0], one[-1]], [two, two])
