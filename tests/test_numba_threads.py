"""Threads that share the elements of a kernel, with the C library and without."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastopt
from fastopt.backends.numba_cpu import memory, parts, threads

fetch_add = memory.fetch_add  # of this module: kernels are compiled from what they find here


def mark(took, calls, begin, end):
    for i in range(begin, end):
        took[i] += i
    fetch_add(calls, 1)


@pytest.fixture(scope="module")
def marking():
    return parts.parallel(mark)


@pytest.mark.parametrize("team", [True, False])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_each_element_is_done_once(monkeypatch, marking, team, n, wanted):
    if not team:
        monkeypatch.setattr(threads, "_team", 0)
    took, calls = np.zeros(1100, np.int64), np.zeros(1, np.int64)
    threads.run_parallel(marking, (took, calls), n, 128, 1, 64, wanted, 50)
    assert (took[50 : 50 + n] == np.arange(50, 50 + n)).all()
    assert took.sum() == sum(range(50, 50 + n))
    if not team:
        assert (calls[0] > 1) == (wanted > 1 and n > 64)


def test_threads_that_have_not_begun_are_not_waited_for(monkeypatch, marking):
    """Without the C library all is done by the caller where Python's other threads are busy."""
    free = threading.Event()
    took, calls = np.zeros(10, np.int64), np.zeros(1, np.int64)
    monkeypatch.setattr(threads, "_team", 0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(free.wait, 60)
        monkeypatch.setattr(threads, "_pool", pool)
        done = threading.Thread(
            target=threads.run_parallel, args=(marking, (took, calls), 10, 10, 1, 1, 2), daemon=True
        )
        done.start()
        done.join(30)
        finished = not done.is_alive()
        free.set()
    assert finished
    assert took.tolist() == list(range(10)) and calls[0] == 2


def test_without_the_library_the_bits_are_the_same(monkeypatch):
    found = []
    for team in (threads._team, 0):
        monkeypatch.setattr(threads, "_team", team)
        p, g = np.random.default_rng(0).standard_normal((2, 300_001), np.float32)
        optimizer = fastopt.Adam(p, backend="numba", threads=3)
        optimizer.step(g)
        found.append(p)
    assert (found[0] == found[1]).all()


PLANNED = {
    "Adam": ("Adam", {}, "f4"),
    "float64": ("AdamW", {"weight_decay": 0.1}, "f8"),
    "scalars": ("NAdam", {}, "f4"),
    "fused copies": ("AggMo", {"betas": (0.0, 0.9)}, "f4"),
    "copies": ("AggMo", {"betas": (0.0, 0.9, 0.99, 0.999)}, "f4"),
    "stored": ("Adam", {"state_dtype": "8bit", "rounding": "kahan"}, "f4"),
    "16 bits": ("Adam", {"state_dtype": "bfloat16", "ema_decay": 0.9}, "f4"),
}


@pytest.mark.skipif(not threads.has_team(), reason="the library was built without threads")
@pytest.mark.parametrize("name", PLANNED)
def test_a_step_by_one_call_leaves_the_bits_of_one_in_parts(name):
    """With groups of their own hyper-parameters, tensors without elements and others that join late."""
    cls, options, dtype = PLANNED[name]
    found = []
    for by_one_call in (True, False):
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(n).astype(dtype) for n in (5000, 0, 33, 256)]
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.5}]
        optimizer = getattr(fastopt, cls)(groups, lr=0.1, backend="numba", threads=2, **options)
        for t in range(4):
            grads = [rng.standard_normal(p.shape).astype(dtype) for p in params]
            grads = [grads[:3], grads[3:]] if t else [[grads[0], None, grads[2]], [grads[3]]]
            plan = optimizer.bind(grads)
            runner = plan._bound.runner
            assert runner._planned
            runner._planned = by_one_call
            plan.step()
        found.append([*params, *(x for own in optimizer.state for x in own.values())])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.skipif(not threads.has_team(), reason="the library was built without threads")
def test_a_step_by_one_call_is_refused_whole():
    p, g = np.ones(10, np.float32), np.ones(10, np.float32)
    optimizer = fastopt.Adam(p, lr=1.0, backend="numba")
    plan = optimizer.bind(g)
    plan.step()
    before = p.copy()
    p.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        plan.step()
    assert optimizer.state[0]["step"] == 1 and (p == before).all()
