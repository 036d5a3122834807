"""Threads that share the elements of a table."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ..interrupts import held_back
from ..numba_arithmetic import ieee_arithmetic

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _forget_pool() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run_parallel(
    kernel: Any, table: tuple[Any, ...], n: int, chunk: int, grain: int, align: int, threads: int, begin: int = 0
) -> None:
    """Runs a kernel over n elements from `begin` on in threads, the caller's own among them: each takes a part as it
    comes free. The others do arithmetic in the mode of whoever started them; the caller's is the caller's to set.
    """
    global _pool
    counter = np.array([begin])
    threads = min(threads, n // grain)
    if threads <= 1:
        if n:
            kernel(*table, counter, n)
        return
    share = min(-(-n // threads), chunk)
    share = -(-share // align) * align

    def work() -> None:
        with ieee_arithmetic():
            kernel(*table, counter, share)

    others = []
    with _pool_lock, suppress(RuntimeError):  # no more threads to be had, or the interpreter ends: fewer do as well
        if _pool is None or _pool._max_workers < threads - 1:
            _pool = ThreadPoolExecutor(threads - 1, "fastopt")
        for _ in range(threads - 1):
            others.append(_pool.submit(work))
    kernel(*table, counter, share)
    others = [other for other in others if not other.cancel()]  # nothing is left for those that have not begun
    wait(others)
    for other in others:
        other.result()


@contextmanager
def whole() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done, so that a step is done whole or not at all, in IEEE arithmetic."""
    with held_back(), ieee_arithmetic():
        yield
