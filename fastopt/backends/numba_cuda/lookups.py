"""Lookups of rows on the device: ordered by row, and gradients of one row added up in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ...arrays.dtypes import CODES
from ...arrays.libraries import driver
from ...jobs.job import NORM_BLOCK
from ...rules import GRADIENT
from .compiler import GroupSums, Plain, RowKernelSpec, RowSums, integers, ptx_of, squares_of
from .kernels import DIGIT, DIGITS, GROUP_BITS, PART, THREADS, WARP

if TYPE_CHECKING:
    from ...jobs.job import RowJob

BEGIN, COUNT = Plain("begin_rows", integers(8)), Plain("count_digits", integers(5))
ADD_UP, ORDER = Plain("add_up_counters", integers(3)), Plain("order_by_digit", integers(9))
COUNT_ROWS, NUMBER = Plain("count_rows", integers(3)), Plain("number_rows", integers(8))

#: The kinds of kernels that steps of rows launch.
Kind: TypeAlias = Plain | GroupSums | RowSums | RowKernelSpec


class Plan:
    """The launches of a step, as they are put together, and the parts of the memory that these have while it lasts.

    Parameters
    ----------
    device : driver.Device
        Where they are launched.
    sizes : mapping of str to int
        The bytes of each part, in order.
    """

    def __init__(self, device: driver.Device, sizes: Mapping[str, int]) -> None:
        self._device = device
        self._launches: list[tuple[int, int, int, Sequence[int]]] = []
        self.at = dict(zip(sizes, map(driver.Within, accumulate(sizes.values(), initial=0)), strict=False))

    def add(self, kind: Kind, blocks: int, *arguments: int) -> None:
        """Add a launch of so many thread blocks."""
        address = self._device.load(ptx_of(kind, self._device.capability), kind.name)
        self._launches.append((address, blocks, THREADS, arguments))

    def launches(self) -> driver.Launches:
        """All of them."""
        return driver.Launches(self._device, self._launches)


class Lookups:
    """The lookups of a job of rows.

    Parameters
    ----------
    job : RowJob
        The job.
    team : int
        So many threads add up a row, or a group of its lookups, as a power of two.
    ordered, added_up : bool
        Whether they are ordered by row, and whether those of one row are added up.

    Attributes
    ----------
    count : int
        How many there are, of rows that have elements.
    """

    def __init__(self, job: RowJob, team: int, ordered: bool = True, added_up: bool = True) -> None:
        self._job, self._rows, self._team, self._ordered = job, job.rows, team, ordered
        self.device = driver.device_of(job.place.number)
        self.count = self._rows.indices.size if self._rows.width else 0
        self.kinds = {"bags": self._rows.source is not None, "weighted": self._rows.weights is not None}
        bits = range(GROUP_BITS, self.count.bit_length(), GROUP_BITS)
        self._levels = list(bits) if added_up else []  # of groups with sums of their own: their lookups, powers of two
        self._blocks = -(-self.count // PART)
        self.pitch = -(-self._rows.width * job.dtype.itemsize // 16) * 16  # bytes from sum to sum
        self.data = tuple(0 if array is None else array.address for array in (self._rows.source, self._rows.weights))

    @property
    def sizes(self) -> dict[str, int]:
        """The parts of the memory that they need, of which the groups' sums want to begin at a multiple of 16 bytes."""
        return {
            "bad": 16,
            "counters": 4 * self._blocks * DIGITS * self._ordered,
            "digits": 4 * DIGITS,
            "sums": sum(self.count >> bits for bits in self._levels) * self.pitch,
            **dict.fromkeys(("rows", "places"), 8 * self.count),
            **dict.fromkeys(("other rows", "other places"), 8 * self.count * self._ordered),
        }

    def used_on(self, stream: int) -> None:
        """Tells on which stream arrays are used that `rows.find_bags` made."""
        for array in (self._rows.source, self._rows.weights):
            if array is not None and isinstance(array.owner, driver.Memory):
                array.owner.used_on(stream)

    def order(self, plan: Plan, told: int) -> tuple[int, int]:
        """Plans their order; where rows are then, and which lookups these are of.

        At `told` is what `complain` looks at, or nothing that is needed.
        """
        rows, at = self._rows, plan.at
        ordered, other = (at["rows"], at["places"]), (at["other rows"], at["other places"])
        wide = rows.indices.dtype.itemsize == 8
        each = -(-self.count // THREADS)
        plan.add(BEGIN, each, rows.indices.address, wide, *ordered, self.count, rows.count, at["bad"], told)
        if self._ordered:
            blocks, counters, digits = self._blocks, at["counters"], at["digits"]
            for shift in range(0, max(rows.count - 1, 1).bit_length(), DIGIT):
                plan.add(COUNT, blocks, ordered[0], counters, self.count, blocks, shift)
                plan.add(ADD_UP, DIGITS, counters, digits, blocks)
                plan.add(ORDER, blocks, *ordered, *other, counters, digits, self.count, blocks, shift)
                ordered, other = other, ordered
        return ordered

    def add_up(self, plan: Plan, arrays: Sequence[int]) -> None:
        """Plans the sums of groups, of which those of lookups come first; `arrays` as kernels begin with them."""
        job = self._job
        groups, to, below = GroupSums(job.dtype, job.codes[GRADIENT], **self.kinds), plan.at["sums"], 0
        for bits in self._levels:
            sums = self.count >> bits
            plan.add(groups, self.blocks_of(sums), *arrays, *self.data, to, self.pitch, below, bits)
            groups, to, below = GroupSums(job.dtype, CODES[job.dtype], of_groups=True), to + sums * self.pitch, to

    def number(self, plan: Plan, rows: int, end: int) -> None:
        """Plans the numbers of rows in their order, where their lookups begin; at `end` their elements are told."""
        at, blocks = plan.at, self._blocks
        plan.add(COUNT_ROWS, blocks, rows, at["counters"], self.count)
        plan.add(ADD_UP, 1, at["counters"], at["digits"], blocks)
        own = rows, at["numbers"], at["counters"], at["digits"], self.count, self._rows.width, at["bad"], end
        plan.add(NUMBER, blocks, *own)

    def blocks_of(self, teams: int) -> int:
        """The thread blocks of so many teams."""
        return -(-(teams << self._team) // THREADS)


class Summed:
    """The rows of a gradient, each once and in order, with the sum of its lookups: of these the squares' sums.

    Attributes
    ----------
    blocks : int
        The sums of squares: those beyond the last row are 0.
    """

    def __init__(self, job: RowJob) -> None:
        self._job, width = job, job.rows.width
        self._kind = RowSums(job.dtype, job.codes[GRADIENT], job.rows.source is not None, job.rows.weights is not None)
        self._team = (min(WARP, max(1, width // self._kind.lanes)) - 1).bit_length()
        self._lookups = Lookups(job, self._team)
        elements = self._lookups.count * width
        self.blocks, self._nbytes = -(-elements // NORM_BLOCK), -(-elements * job.dtype.itemsize // 16) * 16

    @cached_property
    def _plan(self) -> Plan:
        numbers = 8 * self._lookups.count
        head = {"values": self._nbytes, "tables": 8 * _TABLES}
        return Plan(self._lookups.device, {**head, **self._lookups.sizes, "numbers": numbers, "end": 0})

    def make_ready(self, sums: int) -> None:
        """Plans what leaves their squares' sums at that address."""
        job, lookups, plan = self._job, self._lookups, self._plan
        at, width, tables = plan.at, job.rows.width, plan.at["tables"]
        rows, places = lookups.order(plan, at["digits"])
        arrays = tables, tables + 16, width, self._team, rows, places, lookups.count, at["bad"]
        lookups.add_up(plan, arrays)
        lookups.number(plan, rows, tables + 56)
        own = *lookups.data, at["sums"], lookups.pitch, at["numbers"], at["values"]
        plan.add(self._kind, lookups.blocks_of(lookups.count), *arrays, *own)
        squares = tables + 32, tables + 40, tables + 48, tables + 64, sums, 1, self.blocks
        plan.add(squares_of(job.dtype), -(-16 * self.blocks // THREADS), *squares)
        self._launches = plan.launches()

    def run(self, stream: int) -> None:
        """Puts it on a stream, with memory that lasts for this call."""
        job, device, at = self._job, self._lookups.device, self._plan.at
        self._lookups.used_on(stream)
        memory = device.allocate(at["end"], stream)
        tables = np.zeros(_TABLES + 2, np.uint64)
        tables[[1, 3]] = job.addresses[GRADIENT], job.strides[GRADIENT]
        tables[[4, 5, 9]] = memory.address + at["values"], job.dtype.itemsize, self.blocks
        device.upload(tables, memory.address + at["tables"], stream)
        self._launches.launch(memory.address, stream)


# Words: where the arrays are up to the gradient, and how far their rows are apart; of the run that the sums are, its
# address, stride, offsets and blocks. Behind them is whether an index is out of range.
_TABLES = 10


@cache
def told_by(device: driver.Device) -> driver.HostWords:
    """Error cell of a device: an index that is out of range, and a flag that there is one."""
    return device.host_words(2)


def complain(device: driver.Device) -> None:
    """Raises what a device has told."""
    told: Any = told_by(device).words
    if told[1]:
        told[1] = 0
        raise ValueError(
            f"indices: found index {told[0]} in a step before, which is beyond the parameter's rows: that step updated "
            "no row"
        )
