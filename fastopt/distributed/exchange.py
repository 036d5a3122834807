"""Internal. What ranks sum and give to each other: each adds its own, sums a shard of all, and has all shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ..backends.choice import ieee_arithmetic
from ..jobs.job import Sum
from .partial import Lanes, Partial
from .shards import Layout, Range, Span
from .tree import Node, joins
from .wire import Wire
from .world import Request, World


class Unit(NamedTuple):
    """Elements that are summed, made new and given to all at once."""

    spans: list[Span]
    ranges: list[Range]


class Exchange:
    """An exchange of sums of arrays, and of the arrays that are made of them.

    Parameters
    ----------
    world : World
        The ranks.
    layout : Layout
        The arrays, cut into shards.
    memory : sequence of numpy.ndarray
        The bytes of each array in this rank.
    nodes : sequence of sequence of Node
        The nodes of the tree that each rank adds up.
    wire : Wire
        In what sums travel.
    common : bool
        True where the arrays are in memory once for all ranks.

    Attributes
    ----------
    partial : Partial
        What this rank has added; see `add`.
    sums : dict or None
        How the sum of all ranks is to be made of `first`, by dtype; None where sums travel rounded.
    """

    def __init__(
        self,
        world: World,
        layout: Layout,
        memory: Sequence[np.ndarray],
        nodes: Sequence[Sequence[Node]],
        wire: Wire,
        common: bool = False,
    ) -> None:
        self._world, self._layout, self._memory, self._nodes, self._wire = world, layout, memory, nodes, wire
        self.common = common
        self._items = [
            len(own) // extent.size for own, extent in zip(memory, layout.extents, strict=True)
        ]  # bytes of an element
        self._joins = joins([node for own in nodes for node in own])
        self._low, self._summed = {}, {}
        for dtype in layout.sizes:
            found = [own for own in layout.ranges(layout.spans(world.rank)) if own.dtype == dtype]
            self._low[dtype] = found[0].begin if found else 0
            self._summed[dtype] = np.zeros(found[-1].end - found[0].begin if found else 0, dtype)
        self._scratch = {dtype: np.empty((0, 0), dtype) for dtype in layout.sizes}
        self._share()
        self._received: dict[tuple[int, Node], Lanes] = {}
        if self._windows is None:
            sizes = {dtype: own.size for dtype, own in self._summed.items()}
            for rank in self._others():
                self._received |= {(rank, node): wire.lanes(sizes) for node in nodes[rank]}
        self.partial = Partial(self._blocks)
        self._terms = {dtype: list(self._find_terms(dtype)) for dtype in layout.sizes}
        rounded = any(term.dtype != dtype for dtype, terms in self._terms.items() for term in terms)
        self.sums = None if rounded else {dtype: self._sum_of(terms) for dtype, terms in self._terms.items()}

    def _find_terms(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        """The terms of the sums of this rank's shard, in the tree's order: those of others as they come."""
        mine = slice(self._low[dtype], self._low[dtype] + self._summed[dtype].size)
        for rank, nodes in enumerate(self._nodes):
            for node in nodes:
                if self._windows is not None:
                    yield self._windows[rank][node][dtype][mine]
                elif rank == self._world.rank:
                    yield self._blocks[node][dtype][mine]
                else:
                    yield self._received[rank, node][dtype]

    def _sum_of(self, terms: Sequence[np.ndarray]) -> Sum:
        """The sum of terms that are added as they are."""
        places = np.array([term.__array_interface__["data"][0] for term in terms])
        return Sum(places - places[0], np.array(self._joins, np.int32))

    def _others(self) -> list[int]:
        return [rank for rank in range(self._world.size) if rank != self._world.rank]

    def _share(self) -> None:
        """Make the memory of this rank's blocks, where the others on the machine can read it."""
        blocks, sizes = self._nodes[self._world.rank], self._layout.sizes
        each = sum(-(-size * dtype.itemsize // 64) * 64 for dtype, size in sizes.items())
        mine = self._layout.spans(self._world.rank)
        outgoing = 0 if self.common else sum(self.memory_of(span).size for span in mine)
        memory = self._world.share(each * len(blocks) + outgoing)
        self._windows: list[dict[Node, Lanes]] | None = None
        self._blocks: dict[Node, Lanes]
        self._outgoing: list[np.ndarray] = []
        if memory is None:
            self._blocks = {node: {dtype: np.zeros(n, dtype) for dtype, n in sizes.items()} for node in blocks}
            return
        self._windows = [
            {node: self._lanes(own, each * k) for k, node in enumerate(nodes)}
            for own, nodes in zip(memory, self._nodes, strict=True)
        ]
        self._outgoing = [own[each * len(nodes) :] for own, nodes in zip(memory, self._nodes, strict=True)]
        self._blocks = self._windows[self._world.rank]

    def _lanes(self, memory: np.ndarray, at: int) -> dict[np.dtype, np.ndarray]:
        lanes = {}
        for dtype, size in self._layout.sizes.items():
            lanes[dtype] = memory[at : at + size * dtype.itemsize].view(dtype)
            at += -(-size * dtype.itemsize // 64) * 64
        return lanes

    def memory_of(self, span: Span) -> np.ndarray:
        """The bytes of part of an array."""
        size = self._items[span.parameter]
        return self._memory[span.parameter][span.begin * size : span.end * size]

    def summed(self, span: Span) -> np.ndarray:
        """The sum of part of an array in this rank's shard: always the same memory."""
        return self._part(self._summed, span)

    def first(self, span: Span) -> np.ndarray:
        """The first term of that sum: always the same memory."""
        return self._part({dtype: terms[0] for dtype, terms in self._terms.items()}, span)

    def _part(self, shard: Lanes, span: Span) -> np.ndarray:
        ((dtype, begin, end),) = self._layout.ranges([span])
        return shard[dtype][begin - self._low[dtype] : end - self._low[dtype]]

    def units(self, chosen: Sequence[bool]) -> list[list[Unit]]:
        """The units of each rank's shard of chosen arrays."""
        cut = [self._layout.units(rank, chosen) for rank in range(self._world.size)]
        return [[Unit(spans, self._layout.ranges(spans)) for spans in own] for own in cut]

    @contextmanager
    def flight(self, units: Sequence[Sequence[Unit]]) -> Iterator[Flight]:
        """Exchange units, to be received and published within the block; after it all have them, `partial` nothing."""
        flight = Flight(self, units)
        yield flight
        flight.land()
        self.partial.clear()

    def give(self) -> None:
        """Give each rank's shard of the arrays to all, as it is now."""
        units = self.units([True] * len(self._memory))
        flight = Flight(self, units, sums=False)
        for k in range(len(units[self._world.rank])):
            flight.publish(k)
        flight.land()


class Flight:
    """The messages of an exchange, or what goes through shared memory in their place; made by `Exchange.flight`."""

    def __init__(self, own: Exchange, units: Sequence[Sequence[Unit]], sums: bool = True) -> None:
        self._own, self._world, self._units = own, own._world, units
        self._coming: list[list[Request]] = [[] for _ in units[self._world.rank]]
        self._arriving: list[tuple[Request, list[np.ndarray], np.ndarray]] = []
        self._going: list[Request] = []
        self._published = 0
        if own._windows is not None:
            self._world.barrier()  # all sums are there, and nobody reads what was published before
            return
        for rank in own._others():
            if sums:
                self._receive_sums(rank)
            for unit in units[rank]:
                parts = [own.memory_of(span) for span in unit.spans]
                joined = parts[0] if len(parts) == 1 else np.empty(sum(part.size for part in parts), np.uint8)
                self._arriving.append((self._world.receive(rank, joined), parts, joined))
        if sums:
            self._send_sums()

    def _receive_sums(self, rank: int) -> None:
        """Begin to receive a rank's blocks of this one's units."""
        own = self._own
        for coming, unit in zip(self._coming, self._units[self._world.rank], strict=True):
            for node in own._nodes[rank]:
                for dtype, begin, end in unit.ranges:
                    lane = own._received[rank, node][dtype][begin - own._low[dtype] : end - own._low[dtype]]
                    coming.append(self._world.receive(rank, lane))

    def _send_sums(self) -> None:
        """Begin to send this rank's blocks of the others' units: the first of each, the second, and so on."""
        own = self._own
        for k in range(max(map(len, self._units))):
            for rank in own._others():
                for unit in self._units[rank][k : k + 1]:
                    for node in own._nodes[self._world.rank]:
                        for dtype, begin, end in unit.ranges:
                            values = own._blocks[node][dtype][begin:end]
                            self._going.append(self._world.send(rank, own._wire.narrowed(values)))

    def receive(self, k: int) -> None:
        """Wait for the terms of one of this rank's units from all."""
        for request in self._coming[k]:
            request.wait()

    def add_up(self, k: int) -> None:
        """Sum one of this rank's units, whose terms have been received."""
        own, unit = self._own, self._units[self._world.rank][k]
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for dtype, begin, end in unit.ranges:
                part = slice(begin - own._low[dtype], end - own._low[dtype])
                if own._scratch[dtype].shape[1] < end - begin:
                    own._scratch[dtype] = np.empty((len(own._joins), end - begin), dtype)
                out = [own._summed[dtype][part], *own._scratch[dtype][:, : end - begin]]
                sums: list[np.ndarray] = []
                for term, joined in zip(own._terms[dtype], own._joins, strict=True):
                    sums.append(term[part] if term.dtype == dtype else own._wire.widened(term[part]))
                    for _ in range(joined):
                        right = sums.pop()
                        sums[-1] = np.add(sums[-1], right, out=out[len(sums) - 1])
                if len(own._joins) == 1:
                    out[0][:] = sums[0]

    def publish(self, k: int) -> None:
        """Give one of this rank's units, which is new, to the others."""
        own, world = self._own, self._world
        if world.size == 1 or own.common:
            return
        parts = [own.memory_of(span) for span in self._units[world.rank][k].spans]
        if own._windows is None:
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
            self._going += [world.send(rank, joined) for rank in own._others()]
            return
        for part in parts:
            own._outgoing[world.rank][self._published : self._published + part.size] = part
            self._published += part.size

    def land(self) -> None:
        """Take over what the others have published."""
        own, world = self._own, self._world
        if own._windows is not None:
            world.barrier()  # all that is new is there, and nobody reads sums any longer
            for rank in own._others() if not own.common else ():
                at = 0
                for part in (own.memory_of(span) for unit in self._units[rank] for span in unit.spans):
                    part[:] = own._outgoing[rank][at : at + part.size]
                    at += part.size
        for request, parts, joined in self._arriving:
            request.wait()
            at = 0
            for part in parts if len(parts) > 1 else ():
                part[:] = joined[at : at + part.size]
                at += part.size
        for request in self._going:
            request.wait()
