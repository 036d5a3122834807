"""Steps over some rows of a parameter: lookups ordered by row on the device, a few threads for each row."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays.array import Array
from ...arrays.dtypes import CODES
from ...arrays.libraries import driver
from ...rules import GRADIENT
from .compiler import Plain, RowKernelSpec, groups_of, integers, ptx_of
from .kernels import DIGIT, GROUP, HOGWILD, PART, SCANNERS, SUM, THREADS, WARP

if TYPE_CHECKING:
    from ...jobs.job import RowJob

_BEGIN, _COUNT = Plain("begin_rows", integers(8)), Plain("count_digits", integers(5))
_ADD_UP, _ORDER = Plain("add_up_counters", integers(2)), Plain("order_by_digit", integers(8))
_THREADS_OF_SUMS = WARP  # that add up the gradients of a group
_FIRST_REAL = 15  # among the arguments of `kernels.update_rows`


class RowLaunch:
    """A job of rows, and its kernels: what they need on the device lasts for a step."""

    def __init__(self, job: RowJob) -> None:
        progress, rule, rows = job.progress, job.progress.rule, job.rows
        options = 0 if job.storage is None else job.storage.options
        stored, self._order = job.codes, np.arange(len(job.codes))
        if rule.by_row:  # its state goes behind what has a row's elements
            self._order = np.array([*(j for j in self._order if j != 2), 2])
            stored = tuple(stored[j] for j in self._order)
        self._job, self._rows = job, rows
        self._stream_of = driver.stream_of(job.place)
        self._device = driver.device_of(job.place.number)
        self._kind = RowKernelSpec(rule.kernel, progress.copies, job.dtype, stored, options, duplicates=rows.duplicates)
        self._of_groups = groups_of(job.dtype, job.codes[GRADIENT])
        vectors = max(1, rows.width // self._kind.lanes)
        self._threads = WARP if rule.by_row else min(WARP, 1 << (vectors - 1).bit_length())
        self._lookups = rows.indices.size if rows.width else 0
        self._sizes = _sizes_of_groups(self._lookups) if rows.duplicates == SUM else []
        self._workers = -(-self._lookups // PART)
        self._memory: driver.Memory | None = None

    def make_ready(self) -> int:
        """Takes the memory that the step needs; the caller's current stream.

        Raises
        ------
        MemoryError
            There is too little memory on the device.
        ValueError
            A step before had an index out of range.
        RuntimeError
            The stream is being recorded in a graph.
        """
        stream = self._stream_of()
        if driver.is_capturing(stream):
            raise RuntimeError("gradients of some rows cannot be captured in a CUDA graph: leave them out there")
        _complain(self._device)
        for array in (self._rows.source, self._rows.weights):
            if array is not None and isinstance(array.owner, driver.Memory):  # `find_bags` made it
                array.owner.used_on(stream)
        for kind in (self._kind, self._of_groups)[: 2 if self._sizes else 1]:
            ptx_of(kind, self._device.capability)  # compiled before anything is done
        if self._lookups:
            # Two words that are zero, tables of addresses and strides, rows and places twice, counters.
            words = 2 + 2 * len(self._order) + 4 * self._lookups
            counters = 4 * (self._workers << DIGIT)
            sums = sum(map(self._bytes_of_sums, self._sizes))
            self._memory = self._device.allocate(8 * words + counters + sums, stream)
        return stream

    def launch(self, stream: int, coefficients: np.ndarray, row_of: np.ndarray, several: bool) -> None:
        """Orders the lookups and puts the update on the stream, with these coefficients."""
        job, rows, device = self._job, self._rows, self._device
        memory, self._memory = self._memory, None  # it goes with this call, once the stream is done with it
        if memory is None:
            return
        lookups, width, workers = self._lookups, rows.width, self._workers
        tables = np.concatenate([job.addresses[self._order], job.strides[self._order].view(np.uint64)])
        bad = memory.address
        device.upload(np.concatenate([np.zeros(2, np.uint64), tables]), bad, stream)
        at = bad + 16 + 8 * len(tables)
        ordered, other = (at, at + 8 * lookups), (at + 16 * lookups, at + 24 * lookups)
        counters_at = at + 32 * lookups
        told = _told(device)
        wide = rows.indices.dtype.itemsize == 8
        each, parts = -(-lookups // THREADS), -(-workers // THREADS)
        self._run(_BEGIN, each, stream, rows.indices.address, wide, *ordered, lookups, rows.count, bad, told.address)
        if rows.duplicates != HOGWILD:
            for shift in range(0, max(rows.count - 1, 1).bit_length(), DIGIT):
                self._run(_COUNT, parts, stream, ordered[0], counters_at, lookups, workers, shift)
                self._run(_ADD_UP, 1, stream, counters_at, workers << DIGIT, threads=SCANNERS)
                self._run(_ORDER, parts, stream, *ordered, *other, counters_at, lookups, workers, shift)
                ordered, other = other, ordered
        source = 0 if rows.source is None else rows.source.address
        weights = 0 if rows.weights is None else rows.weights.address
        half = bad + 16 + 4 * len(tables)
        sums = counters_at + 4 * (workers << DIGIT)
        to, below = sums, 0
        for size in self._sizes:
            self._run(
                self._of_groups, -(-(lookups // size) * _THREADS_OF_SUMS // THREADS), stream,
                bad + 16, half, width, _THREADS_OF_SUMS, *ordered, lookups, bad, source, weights, to, below, size,
            )  # fmt: skip
            to, below = to + self._bytes_of_sums(size), to
        kind = self._kind
        kernel = device.kernel(
            ptx_of(kind, device.capability), kind.name, _FIRST_REAL + 4 + coefficients[0].size, THREADS
        )
        element = 0 if job.elements is None else job.elements[0]
        storage, step = job.storage, job.progress.steps[job.members[0]]
        noise = None if storage is None else storage.noise
        numbers = (step, 0 if storage is None else storage.seed, 0 if noise is None else noise.seed)
        kernel.arguments[:_FIRST_REAL] = np.array(
            [bad + 16, half, width, self._threads, *ordered, lookups, bad, source, weights, sums, element, *numbers],
            object,
        ).astype(np.uint64)
        reals = kernel.arguments[_FIRST_REAL:].view(job.dtype)[:: 8 // job.dtype.itemsize]
        decay, limit = (0.0, 0.0) if storage is None else (storage.average_decay, storage.clip_value)
        deviation = 0.0 if noise is None else noise.deviation(int(step))
        reals[:] = [decay, 1.0 - decay, limit, deviation, *coefficients[0]]
        kernel.launch(-(-lookups * self._threads // THREADS), stream)

    def _bytes_of_sums(self, size: int) -> int:
        """The bytes of as many sums as there can be groups of so many lookups."""
        return self._lookups // size * self._rows.width * self._job.dtype.itemsize

    def _run(self, kind: Plain, blocks: int, stream: int, *arguments: int, threads: int = THREADS) -> None:
        kernel = self._device.kernel(ptx_of(kind, self._device.capability), kind.name, len(kind.arguments), threads)
        kernel.arguments[:] = arguments
        kernel.launch(blocks, stream)


def _sizes_of_groups(lookups: int) -> list[int]:
    """How many lookups a row's groups have whose sums are added up by themselves, by level."""
    sizes: list[int] = []
    while (size := GROUP ** (len(sizes) + 1)) <= lookups:
        sizes.append(size)
    return sizes


def bags_of(real: np.dtype) -> Plain:
    """The kernel that finds bags, and means of a dtype."""
    return Plain("find_bags", integers(6), (("OWN", CODES[real]), ("REAL", real.type)), real.name)


def find_bags(offsets: Array, bags: int, lookups: int, mean: np.dtype | None) -> tuple[Array, Array | None]:
    """Return the bag of each lookup, and for means of a dtype one over its bag's size.

    Raises
    ------
    ValueError
        The offsets are not as many as bags.
    """
    if offsets.size not in (bags, bags + 1) or (not bags and lookups):
        raise ValueError(f"offsets: found {offsets.size} of them, expected {bags} or {bags + 1} as values has rows")
    place = offsets.place
    device, stream = driver.device_of(place.number), driver.stream_of(place)()
    itemsize = 0 if mean is None else mean.itemsize
    memory = device.allocate((8 + itemsize) * lookups, stream)
    source = Array(memory, memory.address, np.dtype(np.int64), (lookups,), None, place)
    shares = None if mean is None else Array(memory, memory.address + 8 * lookups, mean, (lookups,), None, place)
    if lookups:
        real = np.dtype(np.float32) if mean is None else mean
        kind = bags_of(real)
        kernel = device.kernel(ptx_of(kind, device.capability), kind.name, 6, THREADS)
        wide, to = offsets.dtype.itemsize == 8, 0 if shares is None else shares.address
        kernel.arguments[:] = offsets.address, wide, bags, source.address, to, lookups
        kernel.launch(-(-lookups // THREADS), stream)
    return source, shares


@cache
def _told(device: driver.Device) -> driver.HostWords:
    """Error cell of a device: an index that is out of range, and a flag that there is one."""
    return device.host_words(2)


def _complain(device: driver.Device) -> None:
    """Raises what a device has told."""
    told: Any = _told(device).words
    if told[1]:
        told[1] = 0
        raise ValueError(
            f"indices: found index {told[0]} in a step before, which is beyond the parameter's rows: that step updated "
            "no row"
        )
