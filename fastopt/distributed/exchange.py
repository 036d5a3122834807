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
from .tree import Node, joins, merged
from .wire import Wire
from .world import Request, World, machine_of


class Unit(NamedTuple):
    """Elements that are summed, made new and given to all at once."""

    spans: list[Span]
    ranges: list[Range]


class Exchange:
    """An exchange of sums of arrays, and of the arrays that are made of them.

    The ranks of a machine read each other's blocks. For each rank elsewhere one of them sends the sum of all, and gets
    that rank's shard for all: they share these out, so that none has to add and round everything by itself.

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
        True where the arrays are in memory once for all ranks of a machine.

    Attributes
    ----------
    partial : Partial
        What this rank has added; see `add`.
    sums : dict or None
        How the sum of all ranks is to be made of `first`, by dtype; None where sums travel rounded.
    near : sequence of int
        The ranks on this machine.
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
        self.near = machine_of(world)
        self._others = [machine for machine in world.machines if world.rank not in machine]
        self._served = self._served_by(world.rank)
        self._share()
        self.partial = Partial({node: self._blocks[node] for node in nodes[world.rank]})
        self._low, self._summed = {}, {}
        for dtype in layout.sizes:
            found = [own for own in layout.ranges(layout.spans(world.rank)) if own.dtype == dtype]
            self._low[dtype] = found[0].begin if found else 0
            self._summed[dtype] = np.zeros(found[-1].end - found[0].begin if found else 0, dtype)
        self._sent = [
            Addition(parts, [self._blocks[node] for node in parts], wire) for parts in self._merged(self.near).values()
        ]
        sizes = {dtype: own.size for dtype, own in self._summed.items()}
        self._received: dict[int, list[Lanes]] = {}  # of the rank of each other machine that sends to this one
        terms: dict[Node, Lanes] = {}
        for machine in self._others:
            coming = {node: wire.lanes(sizes) for node in self._merged(machine)}
            self._received[_server(machine, self.near, world.rank)] = list(coming.values())
            terms |= coming
        for node, lanes in self._blocks.items():
            terms[node] = {dtype: lanes[dtype][low : low + sizes[dtype]] for dtype, low in self._low.items()}
        self._terms = [terms[node] for node in sorted(terms)]
        self._sum = Addition(sorted(terms), self._terms, wire)
        rounded = any(term.dtype != dtype for lanes in self._terms for dtype, term in lanes.items())
        self.sums = None if rounded else {dtype: self._sum_of(dtype) for dtype in sizes}

    def _served_by(self, rank: int) -> list[int]:
        """The ranks on other machines that one on this machine deals with."""
        return [other for machine in self._others for other in machine if _server(self.near, machine, other) == rank]

    def _merged(self, machine: Sequence[int]) -> dict[Node, list[Node]]:
        """The nodes that the ranks of a machine make together, with those of each rank that they are made of."""
        return merged(node for rank in machine for node in self._nodes[rank])

    def _sum_of(self, dtype: np.dtype) -> Sum:
        """The sum of terms that are added as they are."""
        places = np.array([lanes[dtype].__array_interface__["data"][0] for lanes in self._terms])
        return Sum(places - places[0], np.array(self._sum.joins, np.int32))

    def _share(self) -> None:
        """Make the memory of this rank's blocks and of shards to be taken over, where others on the machine read it."""
        each = sum(-(-size * dtype.itemsize // 64) * 64 for dtype, size in self._layout.sizes.items())
        copied = len(self.near) > 1 and not self.common
        shards = {
            rank: {of: self._shard_size(of) for of in (rank, *self._served_by(rank)) if copied} for rank in self.near
        }
        mine = self._world.rank
        memory = self._world.share(each * len(self._nodes[mine]) + sum(shards[mine].values()))
        self._blocks: dict[Node, Lanes] = {}  # of all ranks on the machine
        self._rooms: dict[int, np.ndarray] = {}  # of all ranks, their shards: none where nobody copies them from there
        for rank, own in zip(self.near, memory, strict=True):
            at = 0
            for node in self._nodes[rank]:
                self._blocks[node] = self._lanes(own, at)
                at += each
            for of, size in shards[rank].items():
                self._rooms[of] = own[at : at + size]
                at += size

    def _shard_size(self, rank: int) -> int:
        """The bytes of a rank's shard."""
        return sum(self.memory_of(span).size for span in self._layout.spans(rank))

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
        return self._part(self._terms[0], span)

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


class Addition:
    """Sums of several arrays along the tree, part by part.

    Parameters
    ----------
    nodes : sequence of Node
        Those whose sums are added, in order.
    terms : sequence of Lanes
        Their sums.
    wire : Wire
        In what some of them have travelled.
    """

    def __init__(self, nodes: Sequence[Node], terms: Sequence[Lanes], wire: Wire) -> None:
        self.joins, self._terms, self._wire = joins(nodes), terms, wire
        self._scratch: dict[np.dtype, np.ndarray] = {}

    def add_up(self, dtype: np.dtype, part: slice, out: np.ndarray | None = None) -> np.ndarray:
        """Add up part of the terms; return the sum, which is in `out`, in new memory, or the only term's own."""
        scratch = self._scratch.get(dtype)
        size = part.stop - part.start
        if scratch is None or scratch.shape[1] < size:
            scratch = self._scratch[dtype] = np.empty((len(self.joins), size), dtype)
        if out is None and len(self.joins) > 1:
            out = np.empty(size, dtype)
        places = [out, *scratch[:, :size]]
        sums: list[np.ndarray] = []
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for lanes, joined in zip(self._terms, self.joins, strict=True):
                term = lanes[dtype][part]
                sums.append(term if term.dtype == dtype else self._wire.widened(term))
                for _ in range(joined):
                    right = sums.pop()
                    sums[-1] = np.add(sums[-1], right, out=places[len(sums) - 1])
        return sums[0]


class Flight:
    """The messages of an exchange, and what goes through shared memory in their place; made by `Exchange.flight`."""

    def __init__(self, own: Exchange, units: Sequence[Sequence[Unit]], sums: bool = True) -> None:
        self._own, self._world, self._units = own, own._world, units
        self._coming: list[list[Request]] = [[] for _ in units[self._world.rank]]
        self._arriving: list[tuple[Request, list[np.ndarray], np.ndarray]] = []
        self._going: list[Request] = []
        self._published = 0
        self._world.meet()  # all sums are there, and nobody reads what was published before
        for rank, blocks in own._received.items() if sums else ():
            self._receive_sums(rank, blocks)
        for rank in own._served:
            for parts, joined in self._landing(rank):
                self._arriving.append((self._world.receive(rank, joined), parts, joined))
        if sums:
            self._send_sums()

    def _landing(self, rank: int) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Where each of a rank's units is to be, and where it arrives: there, or from where it is copied."""
        room, at = self._own._rooms.get(rank), 0
        for unit in self._units[rank]:
            parts = [self._own.memory_of(span) for span in unit.spans]
            size = sum(part.size for part in parts)
            if room is not None:
                yield parts, room[at : at + size]
            else:
                yield parts, parts[0] if len(parts) == 1 else np.empty(size, np.uint8)
            at += size

    def _receive_sums(self, rank: int, blocks: Sequence[Lanes]) -> None:
        """Begin to receive the sums of a machine, of this rank's units, from one of its ranks."""
        own = self._own
        for coming, unit in zip(self._coming, self._units[self._world.rank], strict=True):
            for lanes in blocks:
                for dtype, begin, end in unit.ranges:
                    lane = lanes[dtype][begin - own._low[dtype] : end - own._low[dtype]]
                    coming.append(self._world.receive(rank, lane))

    def _send_sums(self) -> None:
        """Begin to send this machine's sums of others' units: the first of each, the second, and so on."""
        own = self._own
        for k in range(max((len(self._units[rank]) for rank in own._served), default=0)):
            for rank in own._served:
                for unit in self._units[rank][k : k + 1]:
                    for addition in own._sent:
                        for dtype, begin, end in unit.ranges:
                            values = addition.add_up(dtype, slice(begin, end))
                            self._going.append(self._world.send(rank, own._wire.narrowed(values)))

    def receive(self, k: int) -> None:
        """Wait for the terms of one of this rank's units from all."""
        for request in self._coming[k]:
            request.wait()

    def add_up(self, k: int) -> None:
        """Sum one of this rank's units, whose terms have been received."""
        own = self._own
        for dtype, begin, end in self._units[self._world.rank][k].ranges:
            part = slice(begin - own._low[dtype], end - own._low[dtype])
            out = own._summed[dtype][part]
            found = own._sum.add_up(dtype, part, out)
            if found is not out:
                out[:] = found

    def publish(self, k: int) -> None:
        """Give one of this rank's units, which is new, to the others."""
        own, world = self._own, self._world
        if not (own._rooms or own._received):
            return
        parts = [own.memory_of(span) for span in self._units[world.rank][k].spans]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if own._rooms:
            room = own._rooms[world.rank][self._published : self._published + joined.size]
            room[:] = joined
            joined = room
            self._published += joined.size
        self._going += [world.send(rank, joined) for rank in own._received]

    def land(self) -> None:
        """Take over what the others have published."""
        own = self._own
        for request, parts, joined in self._arriving:
            request.wait()
            if not own._rooms:
                _take_over(parts, joined)
        for request in self._going:
            request.wait()
        self._world.meet()  # all that is new is there, and nobody reads sums any longer
        for rank in own._rooms:
            for parts, room in self._landing(rank) if rank != self._world.rank else ():
                _take_over(parts, room)


def _server(machine: Sequence[int], others: Sequence[int], rank: int) -> int:
    """The rank of a machine that deals with one of those on another."""
    return machine[others.index(rank) % len(machine)]


def _take_over(parts: Sequence[np.ndarray], joined: np.ndarray) -> None:
    """Copy what has been put together, where it is not there already."""
    at = 0
    for part in parts if parts[0] is not joined else ():
        part[:] = joined[at : at + part.size]
        at += part.size
