"""Threads that share the elements of a kernel: those of the C library, and Python's where it is missing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any

from ...errors import BackendUnavailable
from ..interrupts import held_back
from ..numba_arithmetic import ieee_arithmetic

try:
    from .. import native

    _team = native.run_parts if native.has_openmp() else 0
except BackendUnavailable:
    _team = 0  # the address of what runs parts in the C library's threads; 0: there are none

_WORTH = 4  # times the work that pays for one of the library's threads pays for one of Python's

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and the library would start no others."""
    global _team, _pool, _pool_lock
    _team, _pool, _pool_lock = 0, None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run_parallel(
    kernel: Any, table: tuple[Any, ...], n: int, share: int, grain: int, align: int, threads: int, begin: int = 0
) -> None:
    """Runs a kernel over n elements from `begin` on in threads, the caller's own among them, with `grain` elements each
    at least: each takes a part of at most `share` as it comes free. The others do arithmetic in IEEE's mode; the
    caller's is the caller's to set.
    """
    if _team or threads == 1 or n < 2 * _WORTH * grain:
        if n:
            kernel(begin, n, grain, share, align, threads, _team, *table)
        return
    threads = min(threads, n // (_WORTH * grain))
    share = -(-n // (threads * align)) * align
    parts = [(first, min(share, begin + n - first)) for first in range(begin, begin + n, share)]

    def work(first: int, count: int) -> None:
        with ieee_arithmetic():
            kernel(first, count, grain, share, align, 1, 0, *table)

    others = _submit(work, parts[1:])
    kernel(*parts[0], grain, share, align, 1, 0, *table)
    for k, part in enumerate(parts[1:]):  # what no other thread has begun is done here
        if k >= len(others) or others[k].cancel():
            kernel(*part, grain, share, align, 1, 0, *table)
    wait([other for other in others if not other.cancelled()])


def _submit(work: Callable[[int, int], None], parts: list[tuple[int, int]]) -> list[Future[None]]:
    """Have Python's threads do parts: fewer of them where no more threads are to be had, or Python ends."""
    global _pool
    begun: list[Future[None]] = []
    with _pool_lock, suppress(RuntimeError):
        if parts and (_pool is None or _pool._max_workers < len(parts)):
            _pool = ThreadPoolExecutor(len(parts), "fastopt")
        for part in parts:
            assert _pool is not None
            begun.append(_pool.submit(work, *part))
    return begun


@contextmanager
def whole() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done, so that a step is done whole or not at all, in IEEE arithmetic."""
    with held_back(), ieee_arithmetic():
        yield
