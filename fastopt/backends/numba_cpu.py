"""Numba on the CPU: the rules' own Python, compiled when first used and cached on disk.

One loop for each number of states, written once; a rule's kernel is that loop with the rule's update bound in. The
kernels take the same table of addresses as the C library, release the GIL, and are run by a pool of plain threads: no
threading layer of Numba's is involved, so nothing breaks under fork or under calls from several threads at once.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import signal
import sys
import threading
import types as pytypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import rules
from ..errors import BackendUnavailable
from ..rules import primitives

if TYPE_CHECKING:
    from ..dispatch import Gradients, Job
    from ..rules import Rule

try:
    import llvmlite.ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic
    from numba.np.unsafe.ndarray import to_fixed_tuple
except ImportError as error:
    raise BackendUnavailable(f"numba: Numba cannot be loaded ({error}); install it: pip install numba") from None

GRAIN = 65536  # elements for each thread, below which starting it costs more than it brings
ALIGN = 64
TILE = 1024
NORM_BLOCK = 4096
AHEAD = 2048  # bytes to prefetch ahead

_options: Any = {"nogil": True, "error_model": "numpy"}


# ---- memory ----


@intrinsic
def _array_at(typing, address, size, like):
    """The C-contiguous array of `size` elements at an address, of the type of the array `like`."""
    sig = types.Array(like.dtype, 1, "C")(types.int64, types.int64, like)

    def codegen(context, builder, signature, args):
        ty = signature.return_type
        array = context.make_array(ty)(context, builder)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(ty.dtype)))
        array.data = builder.inttoptr(args[0], context.get_data_type(ty.dtype).as_pointer())
        array.shape = cgutils.pack_array(builder, [args[1]])
        array.strides = cgutils.pack_array(builder, [itemsize])
        array.itemsize = itemsize
        array.nitems = args[1]
        array.meminfo = llvmlite.ir.Constant(array.meminfo.type, None)
        array.parent = llvmlite.ir.Constant(array.parent.type, None)
        return array._getvalue()

    return sig, codegen


@intrinsic
def _load(typing, address, like):
    """The element at an address of any alignment."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], context.get_data_type(signature.return_type).as_pointer())
        return builder.load(pointer, align=1)

    return like.dtype(types.int64, like), codegen


@intrinsic
def _store(typing, address, value):
    """Stores an element at an address of any alignment."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], context.get_data_type(signature.args[1]).as_pointer())
        builder.store(args[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@njit(**_options)
def _gather(tile, address, stride, n):
    for i in range(n):
        tile[i] = _load(address + i * stride, tile)


@njit(**_options)
def _scatter(tile, address, stride, n):
    for i in range(n):
        _store(address + i * stride, tile[i])


# ---- the loops, one for each number of states; `update` and `prologue` are bound to a rule's ----

update: Any = None
prologue: Any = njit(**_options)(rules.prologue)


def _loop0(n, a, c, like):
    p, grad = _array_at(a[0], n, like), _array_at(a[1], n, like)
    for i in range(n):
        x, g = prologue(p[i], grad[i], c[0], c[1], c[2])
        p[i] = update(x, g, *c[3:])


def _loop1(n, a, c, like):
    p, grad, s0 = _array_at(a[0], n, like), _array_at(a[1], n, like), _array_at(a[2], n, like)
    for i in range(n):
        x, g = prologue(p[i], grad[i], c[0], c[1], c[2])
        p[i], s0[i] = update(x, g, s0[i], *c[3:])


def _loop2(n, a, c, like):
    p, grad, s0, s1 = (
        _array_at(a[0], n, like),
        _array_at(a[1], n, like),
        _array_at(a[2], n, like),
        _array_at(a[3], n, like),
    )
    for i in range(n):
        x, g = prologue(p[i], grad[i], c[0], c[1], c[2])
        p[i], s0[i], s1[i] = update(x, g, s0[i], s1[i], *c[3:])


def _loop3(n, a, c, like):
    p, grad, s0, s1, s2 = (
        _array_at(a[0], n, like),
        _array_at(a[1], n, like),
        _array_at(a[2], n, like),
        _array_at(a[3], n, like),
        _array_at(a[4], n, like),
    )
    for i in range(n):
        x, g = prologue(p[i], grad[i], c[0], c[1], c[2])
        p[i], s0[i], s1[i], s2[i] = update(x, g, s0[i], s1[i], s2[i], *c[3:])


width: int = 0


def _as_tuple(c):
    return to_fixed_tuple(c, width)


_LOOPS = (_loop0, _loop1, _loop2, _loop3)


@njit(**_options)
def _split_gradient(n, p, grad, g, c):
    """The prologue alone, for rules with several copies of their states: they share the gradient it leaves in g."""
    for i in range(n):
        p[i], g[i] = prologue(p[i], grad[i], c[0], c[1], c[2])


# ---- runs ----

loop: Any = None
to_tuple: Any = None
states: int = 0


def _kernel(addresses, strides, offsets, tensor_of, row_of, coefficients, copies, like, begin, end):
    """Updates elements [begin, end) of a table of runs."""
    itemsize = like.itemsize
    arrays = 2 + copies * states
    part = np.empty(2 + states, np.int64)
    tiles = np.empty((arrays, TILE), like.dtype)
    shared = np.empty(TILE, like.dtype)
    r = np.searchsorted(offsets, begin, side="right") - 1
    while begin < end:
        stop = min(end, offsets[r + 1])
        start = begin - offsets[r]
        n = stop - begin
        begin = stop
        own = coefficients[row_of[tensor_of[r]]]
        first = own[0]
        if copies > 1:  # each copy gets the gradient that has been through the prologue
            own = own.copy()
            own[:, 0], own[:, 1], own[:, 2] = 1, 0, 1
        dense = n > 0
        for j in range(arrays):
            aligned = addresses[r, j] % itemsize == 0
            dense = dense and aligned and (strides.size == 0 or strides[r, j] == itemsize)
        step = n if dense and copies == 1 else TILE
        for i in range(0, n, step):
            m = min(step, n - i)
            if not dense:
                for j in range(arrays):
                    stride = strides[r, j] if strides.size else itemsize
                    _gather(tiles[j], np.int64(addresses[r, j]) + (start + i) * stride, stride, m)
            for k in range(copies):
                c = own[k]
                for j in range(2 + states):
                    which = j if j < 2 else j + k * states
                    part[j] = (
                        np.int64(addresses[r, which]) + (start + i) * itemsize if dense else tiles[which].ctypes.data
                    )
                if copies > 1:
                    if k == 0:
                        p, grad = _array_at(part[0], m, like), _array_at(part[1], m, like)
                        _split_gradient(m, p, grad, shared, first)
                    part[1] = shared.ctypes.data
                loop(m, part, to_tuple(c), like)
            if not dense:
                for j in range(arrays):
                    if j != 1:
                        stride = strides[r, j] if strides.size else itemsize
                        _scatter(tiles[j], np.int64(addresses[r, j]) + (start + i) * stride, stride, m)
        r += 1


# ---- a rule's kernel ----

_primitives = {"sqrt": primitives.sqrt, "isnan": primitives.isnan}
_primitives["where"] = njit(**_options)(primitives.where)


def _bind(function: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """The same function with other meanings for its global names; its own name keeps it apart in Numba's cache."""
    bound = pytypes.FunctionType(function.__code__, {**function.__globals__, **names}, name)
    bound.__qualname__ = name
    return bound


_primitives["maximum"] = njit(**_options)(_bind(primitives.maximum, "maximum", **_primitives))


def compile_update(rule: Rule) -> Any:
    """The rule's update as an ``njit`` function."""
    return njit(**_options)(_bind(rule.update, rule.kernel, **_primitives))


def _digest(rule: Rule) -> str:
    """Of all source that a kernel is made from: Numba's cache looks at this file only, so the name must tell."""
    sources = [
        inspect.getsource(sys.modules[f.__module__]) for f in (rule.update, rules.prologue, primitives.where, _kernel)
    ]
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:12]


@cache
def kernel(name: str) -> Any:
    """The compiled kernel of a rule, by the kernel's name. Compiled for a dtype when first called with it."""
    rule = next(rule for rule in rules.RULES.values() if rule.kernel == name)
    count = len(rule.states)
    bound = _bind(
        _kernel,
        f"{name}_{_digest(rule)}",
        loop=njit(**_options)(_bind(_LOOPS[count], f"loop_{name}", update=compile_update(rule))),
        to_tuple=njit(**_options)(_bind(_as_tuple, "as_tuple", width=3 + len(rule.coefficients))),
        states=count,
    )
    return njit(cache=True, **_options)(bound)


# ---- threads ----


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _forget_pool() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _parallel(function: Callable[[int, int], None], n: int, grain: int, align: int, threads: int) -> None:
    """Splits [0, n) among threads, the caller's own among them."""
    global _pool
    threads = min(threads, n // grain)
    if threads <= 1:
        if n:
            function(0, n)
        return
    with _pool_lock:
        if _pool is None or _pool._max_workers < threads - 1:
            _pool = ThreadPoolExecutor(threads - 1, "fastopt")
        share = -(-n // threads // align) * align
        parts = [(begin, min(begin + share, n)) for begin in range(0, n, share)]
        others = [_pool.submit(function, *part) for part in parts[1:]]
    function(*parts[0])
    wait(others)
    for other in others:
        other.result()


@contextmanager
def _whole() -> Iterator[None]:
    """Holds back Ctrl-C until the block is done, so that a step is done whole or not at all."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    held: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *event: held.append(event))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held and callable(before):
            before(*held[0])


# ---- the backend ----


class _Runner:
    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._kernels = [kernel(job.parameters.rule.kernel) for job in jobs]

    def __call__(self, grad_scale: float, threads: int) -> None:
        with _whole():
            for job, function in zip(self._jobs, self._kernels, strict=True):
                self._run(job, function, grad_scale, threads)

    @staticmethod
    def _run(job: Job, function: Any, grad_scale: float, threads: int) -> None:
        coefficients, row_of = advance(job, grad_scale)
        like = np.empty(0, job.dtype)
        strides = job.strides if job.strides is not None else np.empty((0, 0), np.int64)
        table = (job.addresses, strides, job.offsets, job.tensor_of, row_of, coefficients, job.parameters.copies, like)
        _parallel(lambda begin, end: function(*table, begin, end), int(job.offsets[-1]), GRAIN, ALIGN, threads)


prepare = _Runner


def advance(job: Job, grad_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Advances the tensors' step counts and scalars, and folds coefficients.

    Returns
    -------
    coefficients : numpy.ndarray, of the job's dtype, shape (rows, copies, 3 + coefficients)
        The distinct ones.
    row_of : numpy.ndarray, int32, shape (tensors,)
        The row of each tensor.
    """
    parameters, rule = job.parameters, job.parameters.rule
    rows: dict[tuple[Any, ...], int] = {}
    folded: list[list[tuple[float, ...]]] = []
    after: list[tuple[float, ...]] = []
    row_of = np.empty(len(job.parameter), np.int32)
    for i, at in enumerate(job.parameter):
        parameters.steps[at] += 1
        t = float(parameters.steps[at])
        scalars = tuple(parameters.scalars[at].tolist())
        key = (t, int(parameters.group[at]), scalars)
        if key not in rows:
            rows[key] = len(folded)
            copies = []
            for hyper in parameters.hyper[parameters.group[at]].tolist():
                result = rule.fold(t, hyper[0], *hyper[4:], *scalars)
                own, advanced = result[: len(rule.coefficients)], result[len(rule.coefficients) :]
                copies.append((*rule.prologue_coefficients(hyper, grad_scale), *own))
            folded.append(copies)
            after.append(advanced)
        row_of[i] = rows[key]
        parameters.scalars[at] = after[rows[key]]
    return np.array(folded).astype(job.dtype), row_of


@njit(cache=True, **_options)
def _square_sums(addresses, strides, offsets, blocks, sums, like, begin, end):
    lanes = np.empty(16)
    r = np.searchsorted(blocks, begin, side="right") - 1
    while begin < end:
        while blocks[r + 1] <= begin:
            r += 1
        first = (begin - blocks[r]) * NORM_BLOCK
        n = min(NORM_BLOCK, offsets[r + 1] - offsets[r] - first)
        lanes[:] = 0
        for i in range(n):
            x = np.float64(_load(np.int64(addresses[r, 0]) + (first + i) * strides[r, 0], like))
            lanes[i % 16] += x * x
        total = 0.0
        for lane in range(16):
            total += lanes[lane]
        sums[begin] = total
        begin += 1


def square_sums(grads: Gradients, threads: int) -> np.ndarray:
    """The sums of squares of blocks of a set of gradients, in order."""
    blocks = np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-np.diff(grads.offsets) // NORM_BLOCK))])
    sums = np.empty(blocks[-1])
    table = (grads.addresses, grads.strides, grads.offsets, blocks, sums, np.empty(0, grads.dtype))
    _parallel(lambda begin, end: _square_sums(*table, begin, end), len(sums), GRAIN // NORM_BLOCK, 1, threads)
    return sums
