"""AdaptiveRevision with several workers, against its definition by brute force."""

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
