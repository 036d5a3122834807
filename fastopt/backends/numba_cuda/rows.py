"""Steps over some rows of a parameter: lookups ordered by row on the device, a team of threads for each row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays.array import Array
from ...arrays.dtypes import CODES
from ...arrays.libraries import driver
from ...rules import FIRST_STATE, GRADIENT
from .compiler import GroupSums, Plain, RowKernelSpec, integers, ptx_of
from .kernels import DIGIT, DIGITS, GROUP_BITS, HOGWILD, PART, SQUARES, SUM, THREADS, WARP

if TYPE_CHECKING:
    from ...jobs.job import RowJob
    from ...jobs.noise import GradientNoise

BEGIN, COUNT = Plain("begin_rows", integers(8)), Plain("count_digits", integers(5))
ADD_UP, ORDER = Plain("add_up_counters", integers(3)), Plain("order_by_digit", integers(9))
#: Teams that update rows by a rule of rows, at most: some more than a device has at a time, for each needs memory.
_TEAMS = 1 << 13


class RowLaunch:
    """A job of rows, and its launches: the memory that they need on the device lasts for a step."""

    def __init__(self, job: RowJob) -> None:
        progress, rule, rows = job.progress, job.progress.rule, job.rows
        options = 0 if job.storage is None else job.storage.options
        stored, self._order = job.codes, list(range(len(job.codes)))
        if rule.by_row:  # its state goes behind what has a row's elements
            self._order = [*(j for j in self._order if j != FIRST_STATE), FIRST_STATE]
            stored = tuple(stored[j] for j in self._order)
        self._job, self._rows = job, rows
        self._stream_of = driver.stream_of(job.place)
        self._device = driver.device_of(job.place.number)
        lookups = {"bags": rows.source is not None, "weighted": rows.weights is not None}
        self._kind = RowKernelSpec(
            rule.kernel, progress.copies, job.dtype, stored, options, duplicates=rows.duplicates, **lookups
        )
        self._of_lookups = GroupSums(job.dtype, job.codes[GRADIENT], **lookups)
        self._of_groups = GroupSums(job.dtype, CODES[job.dtype], of_groups=True)
        vectors = max(1, rows.width // self._kind.lanes)
        self._team = (SQUARES - 1 if rule.by_row else min(WARP, vectors) - 1).bit_length()
        self._lookups = rows.indices.size if rows.width else 0
        self._teams = min(self._lookups, _TEAMS) if rule.by_row else self._lookups
        self._levels = _levels_of(self._lookups) if rows.duplicates == SUM else []
        self._blocks = -(-self._lookups // PART)
        self._pitch = -(-rows.width * job.dtype.itemsize // 16) * 16  # bytes from sum to sum
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
        if self._lookups:
            self._launches  # noqa: B018 (compiled before anything is done)
            self._memory = self._device.allocate(self._nbytes, stream)
        return stream

    @cached_property
    def _parts(self) -> dict[str, driver.Within]:
        """The parts of a step's memory, where they begin, and its end: sums begin at a multiple of 16."""
        ordered, by_row = self._rows.duplicates != HOGWILD, self._job.progress.rule.by_row
        sizes = {
            "bad": 16,
            "addresses": 8 * len(self._order),
            "strides": 8 * len(self._order),
            "counters": 4 * self._blocks * DIGITS * ordered,
            "digits": 4 * DIGITS,
            "sums": sum(self._lookups >> bits for bits in self._levels) * self._pitch,
            "totals": self._teams * self._pitch * bool(by_row),
            **dict.fromkeys(("rows", "places"), 8 * self._lookups),
            **dict.fromkeys(("other rows", "other places"), 8 * self._lookups * ordered),
        }
        return dict(zip([*sizes, "end"], map(driver.Within, accumulate(sizes.values(), initial=0)), strict=True))

    @property
    def _nbytes(self) -> int:
        return int(self._parts["end"])

    @cached_property
    def _launches(self) -> driver.Launches:
        """The order of lookups, the sums of groups, and the update, whose coefficients are still to be put in."""
        job, rows, device, at = self._job, self._rows, self._device, self._parts
        found: list[tuple[int, int, int, Sequence[int]]] = []

        def add(kind: Plain | GroupSums | RowKernelSpec, blocks: int, *arguments: int) -> None:
            address = device.load(ptx_of(kind, device.capability), kind.name)
            found.append((address, blocks, THREADS, arguments))

        lookups, pitch = self._lookups, self._pitch
        ordered, other = (at["rows"], at["places"]), (at["other rows"], at["other places"])
        wide, told = rows.indices.dtype.itemsize == 8, _told(device).address
        each = -(-lookups // THREADS)
        add(BEGIN, each, rows.indices.address, wide, *ordered, lookups, rows.count, at["bad"], told)
        if rows.duplicates != HOGWILD:
            blocks, counters, digits = self._blocks, at["counters"], at["digits"]
            for shift in range(0, max(rows.count - 1, 1).bit_length(), DIGIT):
                add(COUNT, blocks, ordered[0], counters, lookups, blocks, shift)
                add(ADD_UP, DIGITS, counters, digits, blocks)
                add(ORDER, blocks, *ordered, *other, counters, digits, lookups, blocks, shift)
                ordered, other = other, ordered
        arrays = at["addresses"], at["strides"], rows.width, self._team, *ordered, lookups, at["bad"]
        source = 0 if rows.source is None else rows.source.address
        weights = 0 if rows.weights is None else rows.weights.address
        to, below = at["sums"], 0
        for bits in self._levels:
            groups, sums = self._of_groups if below else self._of_lookups, lookups >> bits
            add(groups, self._blocks_of(sums), *arrays, source, weights, to, pitch, below, bits)
            to, below = driver.Within(to + sums * pitch), to
        storage = job.storage
        element = 0 if job.elements is None else job.elements[0]
        seeds = 0 if storage is None else storage.seed, 0 if self._noise is None else self._noise.seed
        own = source, weights, at["sums"], pitch, at["totals"], element, 0, *seeds
        self._reals = 4 + self._kind.copies * self._kind.width
        add(self._kind, self._blocks_of(self._teams), *arrays, *own, *[0] * self._reals)
        return driver.Launches(device, found)

    @property
    def _noise(self) -> GradientNoise | None:
        return None if self._job.storage is None else self._job.storage.noise

    def launch(self, stream: int, coefficients: np.ndarray, row_of: np.ndarray, several: bool) -> None:
        """Orders the lookups and puts the update on the stream, with these coefficients."""
        job = self._job
        memory, self._memory = self._memory, None  # it goes with this call, once the stream is done with it
        if memory is None:
            return
        tables = job.addresses[self._order], job.strides[self._order].view(np.uint64)
        self._device.upload(np.concatenate([np.zeros(2, np.uint64), *tables]), memory.address, stream)
        storage, step, arguments = job.storage, job.progress.steps[job.members[0]], self._launches.arguments
        decay, limit = (0.0, 0.0) if storage is None else (storage.average_decay, storage.clip_value)
        deviation = 0.0 if self._noise is None else self._noise.deviation(int(step))
        arguments[-self._reals - 3] = step
        reals = arguments[-self._reals :].view(job.dtype)[:: 8 // job.dtype.itemsize]
        reals[:4], reals[4:] = (decay, 1.0 - decay, limit, deviation), coefficients[0]
        self._launches.launch(memory.address, stream)

    def _blocks_of(self, teams: int) -> int:
        """The thread blocks of so many teams."""
        return -(-(teams << self._team) // THREADS)


def _levels_of(lookups: int) -> list[int]:
    """How many lookups a row's groups have whose sums are added up by themselves, by level, as powers of two."""
    return list(range(GROUP_BITS, lookups.bit_length(), GROUP_BITS))


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
