"""Numba on the CPU: jobs run by kernels that are compiled when first used and cached on disk."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import repeat
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...arrays.blocks import QUANT_BLOCK
from ...arrays.checks import Written, check_written
from ...arrays.dtypes import CODES
from ...errors import BackendUnavailable
from ...jobs.job import DUPLICATES, NORM_BLOCK, DenseJob, RowJob, blocks_of
from ...jobs.storage import PREPARED, Storage
from ...rules import FIRST_STATE, GRADIENT, OWN, Rule
from .. import host

if TYPE_CHECKING:
    from ...jobs.job import Gradients, Job
    from .. import TensorKind, TensorReaders

try:
    from llvmlite.binding import get_host_cpu_name

    from ..fold import Folded, fold
    from ..numba_arithmetic import ieee_arithmetic
    from . import dense, tiles
    from .compiler import (
        FUSED,
        add_blocks,
        kernel,
        segments,
        square_kernel,
        stage_fold,
        tile_by_row,
        tile_measure,
        tile_update,
    )
    from .parts import Part
    from .threads import run_parallel, team_folds, whole
except ImportError as error:
    raise BackendUnavailable(f"Numba cannot be loaded ({error}); install it: pip install numba") from None

GRAIN = 16384  # elements for each thread, below which starting it costs more than it brings
ALIGN = 64
AHEAD = 2048  # bytes, measured best for Adam's traffic
LEAST_CACHED, MOST_CACHED = 4 << 20, 64 << 20  # bytes of arrays that are not prefetched, by the processor's cache
SHARE = 262144  # elements that a thread takes at a time, as it comes free
ROW_SHARE = 16384  # the same for rows, of which some have many more lookups than others


def _fused(job: Job) -> int:
    """Return the number of copies of its states that the job's kernel fuses: all, where there is a loop for as many."""
    return job.progress.copies if job.progress.copies <= FUSED else 1


class _Runner:
    def __init__(self, jobs: Sequence[Job], written: Written = ()) -> None:
        self._jobs, self._written = jobs, written
        self._stored = [_stored(job) for job in jobs]
        self._ahead = list(map(_ahead, jobs))
        self._folded: list[Folded] = []
        self._planned = all(map(_can_be_planned, jobs))
        self._step: Callable[[float, int], None] | None = None  # by one call; made when it is first asked for

    def __call__(self, grad_scale: float, threads: int) -> None:
        if self._planned:
            if self._step is None:
                self._step = self._plan()
            self._step(grad_scale, threads)
            return
        check_written(self._written)
        with whole():
            folded = [fold(job, grad_scale) for job in self._jobs]
            lookups = [_order(job) for job in self._jobs]
            rows = [_for_kernel(job, own.coefficients) for job, own in zip(self._jobs, folded, strict=True)]
            _measure(self._jobs, rows, folded, threads)
            for k, job in enumerate(self._jobs):
                self._update(k, rows[k], folded[k], lookups[k], 0, job.size, threads)
            for job, own in zip(self._jobs, folded, strict=True):
                own.advance(job)

    def _plan(self) -> Callable[[float, int], None]:
        """Packs what steps read: tables, and what the C library folds into them."""
        from ..native import CompiledSteps, CompiledUpdate

        steps = CompiledSteps(self._jobs, self._written)
        updates = []
        for job, stored, ahead, (rows, row_of) in zip(self._jobs, self._stored, self._ahead, steps.folded, strict=True):
            assert isinstance(job, DenseJob)
            rows = np.zeros((len(rows), job.progress.copies, OWN + len(job.progress.rule.coefficients)))
            folded = Folded(rows, row_of, np.empty(len(rows), np.int64), np.empty((0, 0)))
            coefficients = _for_kernel(job, rows)
            packed = Part.of(*_kernel_of(job, stored, coefficients, folded, ahead))
            how = job.size, GRAIN, SHARE, ALIGN
            fused = _fused(job) > 1
            updates.append(CompiledUpdate(packed, *how, coefficients, folded.steps, fused))
        steps.take(updates)
        return steps

    def advance(self, grad_scale: float) -> None:
        """Advances step counts and folds coefficients."""
        check_written(self._written)
        with whole():
            for job in self._jobs:
                job.check_indices()
            self._folded = [fold(job, grad_scale) for job in self._jobs]
            for job, own in zip(self._jobs, self._folded, strict=True):
                own.advance(job)

    def update(self, job: int, begin: int, end: int, threads: int) -> None:
        """Updates elements of a job with the coefficients that `advance` left."""
        with whole():
            own, folded = self._jobs[job], self._folded[job]
            rows = _for_kernel(own, folded.coefficients)
            if begin < end:
                _measure([own], [rows], [folded], threads)
            self._update(job, rows, folded, _order(own), begin, end, threads)

    def _update(
        self,
        k: int,
        coefficients: np.ndarray,
        folded: Folded,
        lookups: tiles.Lookups | None,
        begin: int,
        end: int,
        threads: int,
    ) -> None:
        job, stored = self._jobs[k], self._stored[k]
        if begin >= end:
            return
        if isinstance(job, RowJob):
            assert lookups is not None
            _run_rows(job, stored, coefficients[0], lookups, folded, threads)
        else:
            found = _kernel_of(job, stored, coefficients, folded, self._ahead[k])
            run_parallel(*found, end - begin, SHARE, GRAIN, ALIGN, threads, begin)


prepare = _Runner

prepare_captured = prepare_norms = None
prepare_sums = None
find_bags = host.find_bags
scale = partial(host.scale, ieee_arithmetic)


def array_reader() -> None:
    """Return nothing: each array is to be asked."""


def tensor_readers(kind: TensorKind) -> TensorReaders:
    """Return nothing: each tensor is to be asked."""
    return None, None


def _stored(job: Job, measures: bool = False) -> tiles.Stored:
    """Describe how a job's arrays are stored and updated, or measured."""
    progress, stored, real = job.progress, job.storage or Storage(job.codes), job.dtype.type
    rule, fused = progress.rule, _fused(job)
    of_tile = tile_measure(rule.kernel, job.dtype) if measures else tile_update(rule.kernel, fused, job.dtype)
    return tiles.Stored(
        FIRST_STATE if rule.by_row else rule.count_arrays(progress.copies),
        len(rule.inputs),
        progress.copies // fused,
        QUANT_BLOCK if stored.blocks else 1,
        stored.options,
        real(stored.average_decay),
        real(1.0 - stored.average_decay),
        np.uint64(stored.seed),
        np.uint64(0 if stored.noise is None else stored.noise.seed),
        real(stored.clip_value),
        of_tile.address,
        tile_by_row(rule.kernel, job.dtype).address if rule.by_row else 0,
    )


def _can_be_planned(job: Job) -> bool:
    """Tell whether a step of a job is to fold, as C does, and to update whole tensors by numbers that none scales."""
    rule, prepared = job.progress.rule, job.storage is not None and job.storage.options & PREPARED
    return isinstance(job, DenseJob) and rule.by_tensor is None and not prepared and team_folds(rule)


def _kernel_of(
    job: DenseJob, stored: tiles.Stored, coefficients: np.ndarray, folded: Folded, ahead: int
) -> tuple[Any, tuple[Any, ...]]:
    """The kernel that updates a job's elements, and its arguments."""
    like = np.empty(0, job.dtype)
    function: Any
    table: tuple[Any, ...]
    if job.storage is None:
        function = dense.run_kernel
        strides = job.strides if job.strides is not None else np.empty((0, 0), np.int64)
        table = (
            strides,
            job.offsets,
            job.tensor_of,
            folded.row_of,
            coefficients,
            stored.arrays,
            stored.inputs,
            stored.update,
            ahead,
            like,
        )
    else:
        function = tiles.run_kernel
        table = (*_stored_table(job, coefficients, folded, _take_noise(job, folded, coefficients)), stored, like)
    return kernel(function), (job.addresses, *table)


def _ahead(job: Job) -> int:
    """How many bytes ahead of a job's elements others are prefetched: 0 if all are in the cache."""
    arrays = job.progress.rule.count_arrays(job.progress.copies)
    return AHEAD if job.size * arrays * job.dtype.itemsize > _cached_bytes() else 0


@cache
def _cached_bytes() -> int:
    """How many bytes of arrays are better read without being prefetched: see csrc/isa.c."""
    if get_host_cpu_name().startswith("znver"):
        return 1 << 62
    last = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in getattr(os, "sysconf_names", ()) else 0
    return min(max(last, LEAST_CACHED), MOST_CACHED)


def _stored_table(job: DenseJob, coefficients: np.ndarray, folded: Folded, noise: np.ndarray) -> tuple[Any, ...]:
    """What kernels for stored arrays take behind the addresses."""
    codes = np.array(job.codes)
    sizes = np.where(codes == CODES[job.dtype], job.dtype.itemsize, 2)
    strides = job.strides if job.strides is not None else np.tile(sizes, (len(job.addresses), 1))
    elements = job.elements if job.elements is not None else job.offsets[:-1]
    return strides, job.offsets, job.tensor_of, folded.row_of, coefficients, noise, elements, folded.steps, codes


class _Measured(NamedTuple):
    """A tensor with elements, as its rule's stage folds it."""

    rule: Rule
    sums: list[float]
    singles: list[np.ndarray]
    row: np.ndarray  # of coefficients


def _measure(jobs: Sequence[Job], coefficients: Sequence[np.ndarray], folded: Sequence[Folded], threads: int) -> None:
    """Measures the tensors of jobs whose rules do, and completes their rows of coefficients."""
    together: dict[str, list[_Measured]] = {}
    for job, rows, own in zip(jobs, coefficients, folded, strict=True):
        rule = job.progress.rule
        if rule.by_tensor is None or not job.size:
            continue
        assert isinstance(job, DenseJob)
        for tensor in _measure_job(job, rows, own, threads):
            if rule.over_all:
                together.setdefault(rule.name, []).append(tensor)
            else:
                _complete([tensor])
    for tensors in together.values():
        _complete(tensors)


def _measure_job(job: DenseJob, coefficients: np.ndarray, folded: Folded, threads: int) -> list[_Measured]:
    """Measures a job's tensors."""
    rule, like = job.progress.rule, np.empty(0, job.dtype)
    blocks, width = blocks_of(job.offsets), job.addresses.shape[1]
    sums = np.empty((blocks[-1], len(rule.sums)))
    first_runs = np.searchsorted(job.tensor_of, np.arange(len(job.members) + 1))
    firsts = blocks[first_runs]
    whole = np.diff(firsts) > 0  # without elements it keeps its single states
    singles = [
        [array_of_number(address, job.dtype) for address in job.addresses[run, width - len(rule.singles) :].tolist()]
        for run in first_runs[:-1][whole]
    ]
    rows = [coefficients[row, 0] for row in folded.row_of[whole]]
    for row, own in zip(rows, singles, strict=True):
        row[OWN + len(rule.folds) :][: len(rule.read_at)] = [own[k][0] for k in rule.read_at]
    prepared = coefficients.copy()
    table = _stored_table(job, prepared, folded, _take_noise(job, folded, prepared))
    arguments = (job.addresses, *table, _stored(job, measures=True), blocks, sums, like)
    share, grain = SHARE // NORM_BLOCK, GRAIN // NORM_BLOCK
    run_parallel(kernel(tiles.measure_kernel), arguments, len(sums), share, grain, 1, threads)
    return list(map(_Measured, repeat(rule), add_blocks(sums, firsts)[whole].tolist(), singles, rows))


def _complete(tensors: Sequence[_Measured]) -> None:
    """Make further coefficients, and new single states, of what was measured of tensors; the first has those of all."""
    rule, sums, ones, _ = tensors[0]
    for other in tensors[1:]:
        sums = list(map(add, sums, other.sums))
    before, first, count = [float(one[0]) for one in ones], OWN + len(rule.folds), len(ones)
    complete = stage_fold(rule)
    folded = [complete(*sums, *before, *tensor.row[OWN:first].tolist()) for tensor in tensors]
    for tensor, found in zip(tensors, folded, strict=True):
        tensor.row[first + len(rule.read_before) :] = found[count:]
        for single, value in zip(tensor.singles, folded[0], strict=False):
            single[0] = value


def array_of_number(address: int, dtype: np.dtype) -> np.ndarray:
    """The number of a dtype at an address, as an array."""
    return np.asarray((ctypes.c_uint8 * dtype.itemsize).from_address(address)).view(dtype)


def _order(job: Job) -> tiles.Lookups | None:
    """A job's lookups, ordered; None where it is of whole tensors."""
    if not isinstance(job, RowJob):
        return None
    rows = job.rows
    kind = DUPLICATES[rows.duplicates]
    named, places, starts = segments(rows.indices, rows.count, kind == "hogwild")
    if not starts.size:
        rows.check_indices()
    source = np.empty(0, np.int64) if rows.source is None else rows.source
    weights = np.empty(0, job.dtype) if rows.weights is None else rows.weights
    return tiles.Lookups(rows.width, named, places, starts, source, weights, kind == "sum")


def _run_rows(
    job: RowJob, stored: tiles.Stored, own: np.ndarray, lookups: tiles.Lookups, folded: Folded, threads: int
) -> None:
    by_row, width = job.progress.rule.by_row, lookups.width
    like = np.empty(0, job.dtype)
    function: Any
    table: tuple[Any, ...]
    if job.storage is None:
        function = dense.whole_row_kernel if by_row else dense.row_kernel
        table = (stored.update, stored.by_row, like) if by_row else (stored.inputs, stored.update, like)
    else:
        assert job.elements is not None
        function = tiles.row_kernel
        numbers = _take_noise(job, folded, own[None]), int(job.elements[0]), int(folded.steps[0])
        codes = np.array(job.codes)
        updated = codes.copy()  # with the sum of a row's gradients, and without a rule of rows' state
        updated[GRADIENT] = CODES[job.dtype]
        if by_row:
            updated = np.delete(updated, FIRST_STATE)
        table = (*numbers, codes, updated, stored, like)
    table = (job.addresses, job.strides, lookups, own, *table)
    share, grain = ROW_SHARE // width + 1, GRAIN // width + 1
    run_parallel(kernel(function), table, len(lookups.starts) - 1, share, grain, 1, threads)


def _take_noise(job: Job, folded: Folded, coefficients: np.ndarray) -> np.ndarray:
    """The scale of each tensor's gradient, and the deviation of its noise.

    The scale of gradients that are prepared is taken out of the coefficients.
    """
    found = np.zeros((len(folded.row_of), 2), job.dtype)
    if job.storage is None:
        return found
    if job.storage.options & PREPARED:
        found[:, 0] = coefficients[folded.row_of, 0, 0]
        coefficients[:, :, 0] = 1
    if job.storage.noise is not None:
        found[:, 1] = list(map(job.storage.noise.deviation, folded.steps.tolist()))
    return found


def _for_kernel(job: Job, folded: np.ndarray) -> np.ndarray:
    """Rows of coefficients as the job's kernel takes them: of its dtype, and with its copies fused of the shape (rows,
    1, OWN + copies*coefficients).
    """
    coefficients = folded.astype(job.dtype)
    if _fused(job) > 1:
        own = coefficients[:, :, OWN:].reshape(len(folded), 1, -1)
        coefficients = np.concatenate([coefficients[:, :1, :OWN], own], 2)
    return coefficients


def square_sums(grads: Gradients, threads: int) -> np.ndarray:
    """The sums of squares of blocks of a set of gradients, in order."""
    blocks = blocks_of(grads.offsets)
    sums = np.empty(blocks[-1])
    like = np.empty(0, grads.dtype if grads.dtype.itemsize > 2 else np.uint16)
    table = (grads.addresses, grads.strides, grads.offsets, blocks, sums, like)
    with ieee_arithmetic():
        run_parallel(square_kernel(CODES[grads.dtype]), table, len(sums), len(sums), GRAIN // NORM_BLOCK, 1, threads)
    return sums
