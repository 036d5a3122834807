"""Threads that share the elements of a kernel: those of the C library, and Python's where it is missing."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ...errors import BackendUnavailable
from ...rules import Rule
from ..interrupts import held_back
from ..numba_arithmetic import ieee_arithmetic
from .parts import Part

if TYPE_CHECKING:  # which is loaded once Python's threads are used
    from concurrent.futures import Future, ThreadPoolExecutor

try:
    from .. import native

    _team = native.run_parts
except BackendUnavailable:
    _team = 0  # the address of what runs parts in the C library's threads; 0: there are none

_WORTH = 4  # times the work that pays for one of the library's threads pays for one of Python's

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _after_fork() -> None:
    """A forked child has none of its parent's threads. (The library knows, and starts others.)"""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_RUN_PARTS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, *4 * [ctypes.c_int64], ctypes.c_int32)


def has_team() -> bool:
    """Tell whether there are threads of the C library."""
    return bool(_team)


def team_folds(rule: Rule) -> bool:
    """Tell whether the C library has threads, and the rule that is to be folded."""
    return has_team() and native.knows(rule)


def run_parallel(
    kernel: Any, table: tuple[Any, ...], n: int, share: int, grain: int, align: int, threads: int, begin: int = 0
) -> None:
    """Runs a kernel over n elements from `begin` on in threads, the caller's own among them, with `grain` elements each
    at least: each takes a part of at most `share` as it comes free. The others do arithmetic in IEEE's mode; the
    caller's is the caller's to set.
    """
    if not n:
        return
    packed = Part.of(kernel, table, begin)
    context = packed.context.ctypes.data
    if _team:
        _RUN_PARTS(_team)(packed.function, context, n, grain, share, align, threads)
        return
    part = _PART(packed.function)
    if threads == 1 or n < 2 * _WORTH * grain:
        part(context, 0, n)
        return
    threads = min(threads, n // (_WORTH * grain))
    share = -(-n // (threads * align)) * align
    parts = [(first, min(first + share, n)) for first in range(0, n, share)]

    def work(first: int, end: int) -> None:
        with ieee_arithmetic():
            part(context, first, end)

    others = _submit(work, parts[1:])
    part(context, *parts[0])
    for k, other in enumerate(parts[1:]):  # what no other thread has begun is done here
        if k >= len(others) or others[k].cancel():
            part(context, *other)
    for future in others:
        if not future.cancelled():
            future.exception()  # once it is done


def _submit(work: Callable[[int, int], None], parts: list[tuple[int, int]]) -> list[Future[None]]:
    """Have Python's threads do parts: fewer of them where no more threads are to be had, or Python ends."""
    global _pool
    begun: list[Future[None]] = []
    with _pool_lock, suppress(RuntimeError):
        from concurrent.futures import ThreadPoolExecutor

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
