"""Internal. The cutting of parameters into shards, one for each rank, and of a shard into units."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from ..arrays.array import Array
from ..arrays.dtypes import compute_dtype
from ..jobs.job import NORM_BLOCK

#: The most elements of a unit: what is received, summed, updated and sent at once.
UNIT = 1 << 18


class Extent(NamedTuple):
    """The extent of a parameter: what its cutting depends on."""

    size: int
    width: int  # elements of a row; of a parameter of one dimension 1
    dtype: np.dtype  # in which it is computed
    by_row: bool = False  # its states are of rows: it is cut between rows only
    in_blocks: bool = False  # a state of it is in blocks of 8-bit floats
    whole: bool = False  # its rule measures whole parameters: it is not cut

    @classmethod
    def of(cls, array: Array, by_row: bool = False, in_blocks: bool = False, whole: bool = False) -> Extent:
        """The extent of an array."""
        return cls(array.size, math.prod(array.shape[1:]), compute_dtype(array.dtype), by_row, in_blocks, whole)

    @property
    def step(self) -> int:
        """The elements between places where it may be cut."""
        return self.size if self.whole else self.width if self.by_row else NORM_BLOCK


class Span(NamedTuple):
    """Neighbouring elements of a parameter."""

    parameter: int
    begin: int
    end: int


class Range(NamedTuple):
    """Neighbouring elements of the gradients that are computed in one dtype, one parameter behind the other."""

    dtype: np.dtype
    begin: int
    end: int


class Layout:
    """The elements of all parameters, one behind the other, cut into a shard for each rank.

    A shard ends at a multiple of 4096 elements within a parameter, where blocks of norms and of 8-bit states end, with
    no fewer behind it; between two rows, where states are of rows. What a rule measures whole is not cut.

    Parameters
    ----------
    extents : sequence of Extent
        Of each parameter.
    ranks : int
        The number of shards.

    Attributes
    ----------
    cuts : list of int
        Where shards begin, and where the last one ends.
    sizes : dict
        The number of elements that are computed in each dtype.
    """

    def __init__(self, extents: Sequence[Extent], ranks: int) -> None:
        self.extents = extents
        self._starts = list(accumulate((extent.size for extent in extents), initial=0))
        self.sizes: dict[np.dtype, int] = {}
        self._offsets = []
        for extent in extents:
            self._offsets.append(self.sizes.get(extent.dtype, 0))
            self.sizes[extent.dtype] = self._offsets[-1] + extent.size
        total = self._starts[-1]
        self.cuts = [0, *(self._cut(total * rank // ranks) for rank in range(1, ranks)), total]

    def _cut(self, wanted: int) -> int:
        """The place nearest to `wanted` where a shard may end."""
        i = min(bisect_right(self._starts, wanted), len(self.extents)) - 1
        if i < 0:
            return 0
        start, extent = self._starts[i], self.extents[i]
        last = extent.size // extent.step - 1  # the cuts within it are at 1 to `last` steps
        steps = min((wanted - start + extent.step // 2) // extent.step, last)
        places = [start, start + extent.size, *([start + steps * extent.step] if steps > 0 else [])]
        return min(places, key=lambda place: abs(place - wanted))

    def spans(self, rank: int) -> list[Span]:
        """The elements of a rank's shard, in order."""
        begin, end = self.cuts[rank], self.cuts[rank + 1]
        found = []
        for i, start in enumerate(self._starts[:-1]):
            low, high = max(begin, start), min(end, start + self.extents[i].size)
            if low < high:
                found.append(Span(i, low - start, high - start))
        return found

    def whole(self, i: int) -> list[Span]:
        """All elements of a parameter."""
        return [Span(i, 0, self.extents[i].size)]

    def units(self, rank: int, chosen: Sequence[bool]) -> list[list[Span]]:
        """The elements of chosen parameters in a rank's shard, in order, by units."""
        units: list[list[Span]] = []
        room = 0
        for span in self.spans(rank):
            if not chosen[span.parameter]:
                continue
            for part in self._parts(span):
                if part.end - part.begin > room:
                    units.append([])
                    room = UNIT
                units[-1].append(part)
                room -= part.end - part.begin
        return units

    def _parts(self, span: Span) -> Iterator[Span]:
        if self.extents[span.parameter].by_row or self.extents[span.parameter].whole:
            yield span
            return
        for begin in range(span.begin, span.end, UNIT):
            yield Span(span.parameter, begin, min(begin + UNIT, span.end))

    def ranges(self, spans: Iterable[Span]) -> list[Range]:
        """Where the gradients of spans are, joined where they are neighbours."""
        found: list[Range] = []
        for span in spans:
            dtype, offset = self.extents[span.parameter].dtype, self._offsets[span.parameter]
            own = Range(dtype, offset + span.begin, offset + span.end)
            if found and found[-1].dtype == dtype and found[-1].end == own.begin:
                own = Range(dtype, found.pop().begin, own.end)
            found.append(own)
        return found

    def tables(self, span: Span) -> list[tuple[Span, tuple[int, ...]]]:
        """A span as parameters of an optimizer, with their shapes: whole rows together, and what is left of others.

        Such as cannot be updated by rows are of one dimension.
        """
        extent = self.extents[span.parameter]
        width = extent.width
        if extent.in_blocks or (width <= 1 and not extent.by_row):
            return [(span, (span.end - span.begin,))]
        first, last = -(-span.begin // width) * width, span.end // width * width
        ends = [span.begin, first, last, span.end] if first <= last else [span.begin, span.end]
        found: list[tuple[Span, tuple[int, ...]]] = []
        for begin, end in pairwise(ends):
            if begin < end:
                rows = max((end - begin) // width, 1)
                found.append((Span(span.parameter, begin, end), (rows, (end - begin) // rows)))
        return found
