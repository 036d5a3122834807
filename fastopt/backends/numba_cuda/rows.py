"""Steps over some rows of a parameter: lookups ordered by row on the device, a team of threads for each row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...arrays.array import Array
from ...arrays.dtypes import CODES
from ...arrays.libraries import driver
from ...rules import FIRST_STATE
from .compiler import Plain, RowKernelSpec, integers, ptx_of
from .kernels import HOGWILD, SQUARES, SUM, THREADS, WARP
from .limits import NOT_CAPTURABLE, PutScales, Scale
from .lookups import Lookups, Plan, complain, told_by

if TYPE_CHECKING:
    from ...jobs.job import RowJob
    from ...jobs.noise import GradientNoise

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
        self._job = job
        self.current_stream = driver.stream_of(job.place)
        lookups = {"bags": rows.source is not None, "weighted": rows.weights is not None}
        self._kind = RowKernelSpec(
            rule.kernel, progress.copies, job.dtype, stored, options, duplicates=rows.duplicates, **lookups
        )
        vectors = max(1, rows.width // self._kind.lanes)
        self._team = (SQUARES - 1 if rule.by_row else min(WARP, vectors) - 1).bit_length()
        self._lookups = Lookups(job, self._team, rows.duplicates != HOGWILD, rows.duplicates == SUM)
        self._device, self._by_row = self._lookups.device, rule.by_row is not None
        self._teams = min(self._lookups.count, _TEAMS) if self._by_row else self._lookups.count
        self._memory: driver.Memory | None = None
        self._table: driver.Memory | None = None
        self._made: dict[bool, driver.Launches] = {}  # for coefficients among arguments, or in a table

    def make_ready(self, scale: Scale | None = None) -> int:
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
        stream = self.current_stream()
        if driver.is_capturing(stream):
            raise RuntimeError(NOT_CAPTURABLE)
        complain(self._device)
        self._lookups.used_on(stream)
        if self._lookups.count:
            if scale is not None:
                self._make_table(stream)
            self._launches(scale is not None)  # compiled before anything is done
            self._memory = self._device.allocate(self._nbytes, stream)
        return stream

    def _make_table(self, stream: int) -> int:
        """Has memory for coefficients that the device makes, or puts a scale into; the address."""
        if self._table is None:
            self._table = self._device.allocate(self._kind.row_bytes, stream)
            self._scales = PutScales(self._device, self._job.dtype, self._table.address, self._kind.row_bytes)
        self._table.used_on(stream)
        return self._table.address

    def _launches(self, tabled: bool) -> driver.Launches:
        """The order of lookups, the sums of groups, and the update, whose coefficients are still to be put in."""
        if tabled not in self._made:
            self._made[tabled] = self._make_launches(tabled)
        return self._made[tabled]

    def _make_launches(self, tabled: bool) -> driver.Launches:
        job, lookups, storage = self._job, self._lookups, self._job.storage
        totals = self._teams * lookups.pitch * self._by_row
        tables = 8 * len(self._order)
        plan = Plan(self._device, {"addresses": tables, "strides": tables, **lookups.sizes, "totals": totals, "end": 0})
        ordered, at = lookups.order(plan, told_by(self._device).address), plan.at
        arrays = at["addresses"], at["strides"], job.rows.width, self._team, *ordered, lookups.count, at["bad"]
        lookups.add_up(plan, arrays)
        element = 0 if job.elements is None else job.elements[0]
        seeds = 0 if storage is None else storage.seed, 0 if self._noise is None else self._noise.seed
        table = 0 if self._table is None else self._table.address
        own = *lookups.data, at["sums"], lookups.pitch, at["totals"], table, element, 0, *seeds
        self._reals = 4 + self._kind.copies * self._kind.width
        kind = replace(self._kind, tabled=tabled)
        plan.add(kind, lookups.blocks_of(self._teams), *arrays, *own, *[0] * self._reals)
        self._nbytes, launches = at["end"], plan.launches()
        decay, limit = (0.0, 0.0) if storage is None else (storage.average_decay, storage.clip_value)
        self._reals_of(launches)[:3] = decay, 1.0 - decay, limit
        return launches

    @property
    def _noise(self) -> GradientNoise | None:
        return None if self._job.storage is None else self._job.storage.noise

    def launch(
        self, stream: int, coefficients: np.ndarray, row_of: np.ndarray, several: bool, scale: Scale | None
    ) -> None:
        """Orders the lookups and puts the update on the stream, with these coefficients."""
        job, memory, self._memory = self._job, self._memory, None  # which goes once the stream is done with it
        if memory is None:
            return
        step, launches = job.progress.steps[job.members[0]], self._launches(scale is not None)
        deviation = 0.0 if self._noise is None else self._noise.deviation(int(step))
        if scale is not None and self._table is not None:
            own = np.zeros(1, self._kind.row)
            own["step"], own["own"] = step, coefficients[0]
            if self._noise is not None:
                own["deviation"] = deviation
            self._device.upload(own.view(np.uint64), self._table.address, stream)
            self._scales.launch(stream, scale, 1, job.members)
        else:
            launches.arguments[-self._reals - 3] = step
            self._reals_of(launches)[3] = deviation
            self._reals_of(launches)[4:] = coefficients[0]
        self._put_on(stream, memory, launches)

    def _reals_of(self, launches: driver.Launches) -> np.ndarray:
        """The numbers among the update's arguments."""
        dtype = self._job.dtype
        return launches.arguments[-self._reals :].view(dtype)[:: 8 // dtype.itemsize]

    def _put_on(self, stream: int, memory: driver.Memory, launches: driver.Launches) -> None:
        """Puts the launches on a stream, and before them what they find in memory."""
        job = self._job
        tables = job.addresses[self._order], job.strides[self._order].view(np.uint64)
        words = np.concatenate([*tables, np.zeros(2, np.uint64)])  # behind them, that no index is out of range yet
        self._device.upload(words, memory.address, stream)
        launches.launch(memory.address, stream)


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
