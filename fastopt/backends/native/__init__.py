"""The C library: loops compiled for each instruction set, OpenMP threads."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ...arrays.checks import check_written
from ...arrays.dtypes import CODES
from ...checks import did_you_mean, wrong_value
from ...errors import BackendUnavailable, install_command
from ...jobs.job import RowJob, blocks_of
from ...rules import OWN, Rule
from .. import _sources, host

if TYPE_CHECKING:
    from ...arrays.checks import Written
    from ...jobs.job import Gradients, Job, Rows, Sum
    from .. import Reader, TensorKind, TensorReaders

try:
    from ._native import ffi, lib
except ImportError as error:
    raise BackendUnavailable(
        f"the C extension cannot be loaded ({error}); build it with a C compiler (Debian: apt install "
        f"gcc): {install_command(options='--force-reinstall --no-deps')}"
    ) from None

_sources_now = _sources.digest()
if _sources_now and (not hasattr(lib, "built_from") or ffi.string(lib.built_from()).decode() != _sources_now):
    raise BackendUnavailable(
        "the C library was built from other sources than are here now, whose rules it may not know; build it again: "
        + install_command(options="--no-deps")
    )
del _sources_now


def _text(value: Any) -> str:
    return ffi.string(value).decode()


def set_isa(name: str | None) -> None:
    """Chooses the instruction set, by default the highest that the processor has.

    Raises
    ------
    ValueError
        It is not compiled in, or the processor lacks it.
    """
    if lib.fastopt_set_isa((name or "").encode()):
        known = isa_supported()
        raise wrong_value("FASTOPT_ISA", name, f"one of {', '.join(known)}{did_you_mean(name, known)}")


def isa() -> str:
    """The instruction set in use."""
    return _text(lib.fastopt_isa())


def isa_compiled() -> list[str]:
    """The instruction sets compiled in, from the lowest."""
    return _text(lib.fastopt_isa_compiled()).split(",")


def isa_supported() -> list[str]:
    """List the instruction sets that this processor has."""
    return _text(lib.fastopt_isa_supported()).split(",")


def compiler() -> str:
    """The compiler that built the library."""
    return _text(lib.fastopt_compiler())


#: The address of the C library's `fastopt_run_parts`.
run_parts = int(ffi.cast("intptr_t", ffi.addressof(lib, "fastopt_run_parts")))


class ieee_arithmetic:
    """Until the block's end this thread rounds to nearest and keeps subnormal numbers; then it is as it was."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = lib.fastopt_enter_ieee()

    def __exit__(self, *_: object) -> None:
        lib.fastopt_leave_ieee(self._before)


def _pointer(kind: str, array: np.ndarray | None) -> Any:
    return ffi.NULL if array is None else ffi.from_buffer(kind, array)


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"fastopt: {_text(lib.fastopt_message(code))}")


def _put_rows(c: Any, rows: Rows) -> None:
    """Writes the C library's view of rows."""
    c.rows, c.width, c.count = rows.count, rows.width, len(rows.indices)
    c.indices, c.index_size = _pointer("char[]", rows.indices), rows.indices.itemsize
    c.duplicates = rows.duplicates
    c.source, c.weights = _pointer("int64_t[]", rows.source), _pointer("char[]", rows.weights)


def knows(rule: Rule) -> bool:
    """Tell whether the library has a rule: it has none that came after it was built."""
    return bool(lib.fastopt_find_rule(rule.name.encode()) >= 0)


class _Runner:
    __slots__ = ("_ask", "_count", "_jobs", "_keep", "_own", "_written", "folded")

    def __init__(self, jobs: Sequence[Job], written: Written = (), sums: Sequence[Sum] = ()) -> None:
        self._count = len(jobs)
        self._jobs = ffi.new("fastopt_job[]", len(jobs))
        self._keep: list[Any] = [jobs]
        self.folded: list[tuple[np.ndarray, np.ndarray]] = []  # of each job, coefficients and the tensors' rows there
        for c, job in zip(self._jobs, jobs, strict=True):
            progress, rule = job.progress, job.progress.rule
            width = progress.copies * (OWN + len(rule.coefficients))
            coefficients = np.empty((len(job.members), width))
            row_of = np.empty(len(job.members), np.int32)
            self.folded.append((coefficients, row_of))
            c.rule = lib.fastopt_find_rule(rule.name.encode())
            c.dtype = CODES[job.dtype]
            c.copies = progress.copies
            if isinstance(job, RowJob):
                offsets, tensor_of = self._kept(np.array([0, job.size])), self._kept(np.zeros(1, np.int32))
                c.rows = self._kept(ffi.new("fastopt_rows *"))
                _put_rows(c.rows, job.rows)
            else:
                offsets, tensor_of = job.offsets, job.tensor_of
            c.runs, c.tensors = len(tensor_of), len(job.members)
            c.addresses = _pointer("void *[]", job.addresses)
            c.strides = _pointer("int64_t[]", job.strides)
            c.offsets = _pointer("int64_t[]", offsets)
            c.tensor_of = _pointer("int32_t[]", tensor_of)
            c.parameter = _pointer("int32_t[]", job.members)
            c.group = _pointer("int32_t[]", progress.group)
            c.steps = _pointer("int64_t[]", progress.steps)
            c.factors = _pointer("double[]", progress.factors)
            c.scalars = _pointer("double[]", progress.scalars if rule.scalars else None)
            c.hyper = _pointer("double[]", progress.hyper)
            c.coefficients = _pointer("double[]", coefficients)
            c.row_of = _pointer("int32_t[]", row_of)
            c.elements = _pointer("int64_t[]", job.elements)
            if rule.by_tensor:
                blocks = self._kept(blocks_of(offsets))
                c.blocks = _pointer("int64_t[]", blocks)
                c.sums = _pointer("double[]", self._kept(np.empty((blocks[-1], len(rule.sums)))))
            if job.storage is not None:
                dtypes = self._kept(ffi.new("int32_t[]", job.storage.dtypes))
                stored, noise = job.storage, job.storage.noise
                added = (0.0, 0.0, 0) if noise is None else astuple(noise)
                values = (dtypes, stored.options, stored.average_decay, stored.seed, 0, *added, stored.clip_value)
                c.storage = self._kept(ffi.new("fastopt_storage *", values))
        for c, own in zip(self._jobs, self._kept(sums), strict=False):  # none: every gradient is one array
            tables = _pointer("int64_t[]", own.distances), _pointer("int32_t[]", own.joins)
            c.sum = self._kept(ffi.new("fastopt_sum *", (len(own.joins), *tables)))
        self._written = written
        self._ask = bool(written) and not _can_read_arrays()  # each array, for C cannot
        flags = [] if self._ask else [id(array) + _FLAGS for array, _, _ in written]
        flags = self._kept(ffi.new("uintptr_t[]", flags))
        self._own = ffi.new("writable_jobs *", (self._jobs, len(jobs), flags, len(flags)))

    def _kept(self, value: Any) -> Any:
        self._keep.append(value)
        return value

    def put_rows(self, job: int) -> None:
        """Takes over the table of a job's rows."""
        own, c = self._keep[0][job], self._jobs[job]
        c.offsets[1] = own.size
        _put_rows(c.rows, own.rows)

    def advance(self, grad_scale: float) -> None:
        """Advances step counts and folds coefficients."""
        check_written(self._written)
        self._check(lib.fastopt_advance(self._jobs, self._count, grad_scale))

    def update(self, job: int, begin: int, end: int, threads: int) -> None:
        """Updates elements of a job with the coefficients that `advance` left."""
        self._check(lib.fastopt_update_part(ffi.addressof(self._jobs, job), begin, end, threads))

    def __call__(self, grad_scale: float, threads: int, _step: Any = lib.step_writable) -> None:
        if self._ask:
            check_written(self._written)
        code = _step(self._own, grad_scale, threads)
        if code:
            self._check(code)

    def _check(self, code: int) -> None:
        if code == lib.READ_ONLY:
            check_written(self._written)
        for job in self._keep[0]:  # which can name what has been written since they were made
            if code == lib.FASTOPT_BAD_INDEX:
                job.check_indices()
            if code == lib.FASTOPT_BAD_STEP:
                job.progress.check_steps()
        _check(code)


prepare = prepare_sums = _Runner

prepare_captured = prepare_norms = None
find_bags = host.find_bags
scale = partial(host.scale, ieee_arithmetic)


# The offset of a NumPy array's flags: behind data, nd, dimensions, strides, base and descr, in every version.
_FLAGS = object.__basicsize__ + struct.calcsize("PiPPPP")


_functions: dict[str, Reader] = {}
if sys.implementation.name == "cpython":
    lib.put_functions(id(_functions), id(np.ndarray))

#: The layouts of NumPy arrays, and their addresses, in a tenth of the time of asking each: see `_can_read_arrays`.
#: Layouts are equal where dtypes, shapes, strides, alignment and being writable are. None among the arrays stands for
#: itself; for subclasses and other objects there is no answer.
read_arrays = _functions.get("read_arrays")


def tensor_readers(kind: TensorKind) -> TensorReaders:
    """Return what reads tensors in C, as far as it is known how."""
    lib.know_tensors(ffi.new("tensor_kind *", (list(map(id, kind.types)), kind.describe, kind.offset, kind.locate)))
    look, locate = map(_functions.get, ("read_tensors", "read_places"))
    return look if kind.describe else None, locate if kind.locate else None


def array_reader() -> Reader | None:
    """Return what reads layouts and addresses of NumPy arrays; None where each is to be asked."""
    return read_arrays if _can_read_arrays() else None


@cache
def _can_read_arrays() -> bool:
    """Tell whether the fields of NumPy's array objects are where the C code reads them."""
    if read_arrays is None or np.ndarray.__basicsize__ < _FLAGS + 4:
        return False
    dense, other = np.zeros((2, 3), np.float32), np.zeros((3, 4), ">f8")[:, ::2]
    other.flags.writeable = False
    expected: list[int] = []
    for x in (dense, other):
        if ffi.cast("int32_t *", id(x) + _FLAGS)[0] != x.flags.num:
            return False
        if ffi.cast("uintptr_t *", id(x) + _FLAGS)[-1] != id(x.dtype):
            return False
        kind = (x.flags.num & 0x0501) << 16 | ord(x.dtype.byteorder) << 8 | x.ndim + 1
        expected += x.dtype.num << 32 | kind, *x.shape, *(() if x is dense else x.strides)
    layouts = np.array([*expected, 0], np.uint64).tobytes()
    addresses = np.array([dense.ctypes.data, other.ctypes.data, 0], np.uint64).tobytes()
    return read_arrays((dense, other, None)) == (layouts, addresses)


def _without_arrays(job: Job) -> Job:
    """A job of the same tensors that is to be folded only."""
    none = np.empty(0, np.int64)
    if isinstance(job, RowJob):
        rows = replace(job.rows, count=0, indices=none, source=None, weights=None)
        return replace(job, rows=rows, storage=None)
    tables: dict[str, Any] = {"addresses": job.addresses[:0], "tensor_of": job.tensor_of[:0]}
    return replace(job, **tables, offsets=np.zeros(1, np.int64), strides=None, elements=None, storage=None)


class Folds:
    """The first part of steps that another backend does: advances step counts and folds."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._runner = _Runner(list(map(_without_arrays, jobs)))

    def __call__(self, grad_scale: float) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        """Return for each job its rows of coefficients in float64, each tensor's row, and whether there are several."""
        self._runner.advance(grad_scale)
        return [(rows, row_of, bool(row_of[-1])) for rows, row_of in self._runner.folded]


class Compiled(Protocol):
    """A function that others compiled, with what it takes: see `fastopt_part` in csrc/internal.h."""

    @property
    def function(self) -> int:
        """Its address."""

    @property
    def context(self) -> np.ndarray:
        """Its argument."""


class CompiledUpdate(NamedTuple):
    """A job's update by a function that others compiled.

    Attributes
    ----------
    part : Compiled
        The function, which does elements.
    n, grain, share, align : int
        How threads share them, as `fastopt_run_parts` has it.
    coefficients, steps : numpy.ndarray
        What it reads of each tensor in a step, of the job's dtype and int64.
    fused : bool
        Whether copies of states stand together.
    """

    part: Compiled
    n: int
    grain: int
    share: int
    align: int
    coefficients: np.ndarray
    steps: np.ndarray
    fused: bool


class CompiledSteps(_Runner):
    """Steps by functions that others compiled, in one call: nothing of Python's is between a step's parts.

    `folded` is before the first step, too, what these write: coefficients, and the row of each tensor.
    """

    __slots__ = ("_updates",)

    def __init__(self, jobs: Sequence[Job], written: Written) -> None:
        super().__init__(list(map(_without_arrays, jobs)), written)

    def take(self, updates: Sequence[CompiledUpdate]) -> None:
        """Takes over what updates the jobs."""
        self._updates = ffi.new("compiled_update[]", len(updates))
        for c, own, job in zip(self._updates, self._kept(updates), self._keep[0], strict=True):
            c.function, c.context = ffi.cast("fastopt_part", own.part.function), _pointer("char[]", own.part.context)
            c.n, c.grain, c.share, c.align, c.fused = own.n, own.grain, own.share, own.align, own.fused
            c.own, c.width = OWN, OWN + len(job.progress.rule.coefficients)
            c.coefficients = _pointer("char[]", own.coefficients)
            c.steps = _pointer("int64_t[]", own.steps)

    def __call__(self, grad_scale: float, threads: int, _step: Any = lib.step_compiled) -> None:
        """Do one step."""
        if self._ask:
            check_written(self._written)
        code = _step(self._own, self._updates, grad_scale, threads)
        if code:
            self._check(code)


def square_sums(grads: Gradients, threads: int) -> np.ndarray:
    """The sums of squares of blocks of a set of gradients, in order."""
    blocks = blocks_of(grads.offsets)
    sums = np.empty(blocks[-1])
    _check(
        lib.fastopt_square_sums(
            CODES[grads.dtype],
            len(grads.addresses),
            _pointer("void *[]", grads.addresses),
            _pointer("int64_t[]", grads.strides),
            _pointer("int64_t[]", grads.offsets),
            _pointer("int64_t[]", blocks),
            _pointer("double[]", sums),
            threads,
        )
    )
    return sums


def copy(to: np.ndarray, array: np.ndarray) -> None:
    """Copy an array of bytes into another one of as many, which is not kept in caches."""
    lib.fastopt_copy(ffi.from_buffer(to, require_writable=True), ffi.from_buffer(array), to.size)


def stream_rows(
    arrays: Sequence[np.ndarray], rows: np.ndarray, starts: np.ndarray, places: np.ndarray, threads: int
) -> None:
    """The ceiling of updates of rows, whose order is given: see fastopt.h."""
    addresses = ffi.new("float *[]", [_pointer("float[]", array) for array in arrays])
    tables = [_pointer("int64_t[]", table) for table in (rows, starts, places)]
    _check(lib.fastopt_stream_rows(len(rows), *tables, arrays[0].shape[1], len(arrays), addresses, threads))


set_isa(os.environ.get("FASTOPT_ISA"))
