"""Threads that share the elements of a table."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastopt.backends.numba_cpu import threads


def test_threads_that_have_not_begun_are_not_waited_for(monkeypatch):
    """All is done by the caller where the others are busy, as on a machine with more to do than processors."""
    free, took = threading.Event(), []

    def kernel(counter, share):
        while counter[0] < 10:
            took.append((threading.current_thread(), int(counter[0])))
            counter[0] += share

    with ThreadPoolExecutor(1) as pool:
        pool.submit(free.wait, 60)
        monkeypatch.setattr(threads, "_pool", pool)
        done = threading.Thread(target=threads.run_parallel, args=(kernel, (), 10, 2, 1, 1, 2), daemon=True)
        done.start()
        done.join(10)
        finished = not done.is_alive()
        free.set()
    assert finished
    assert [begin for _, begin in took] == list(np.arange(0, 10, 2)) and {thread for thread, _ in took} == {done}
