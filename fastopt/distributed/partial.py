"""Internal. The sums of a rank's own slices of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..backends.choice import ieee_arithmetic
from .tree import Node

#: The gradients of all parameters, one behind the other, for each dtype in which they are computed.
Lanes = Mapping[np.dtype, np.ndarray]
#: A gradient, with the place of its first element in its lane.
Placed = tuple[int, np.ndarray]


class Partial:
    """Sums of slices along the tree, up to a rank's blocks of it.

    Parameters
    ----------
    blocks : mapping of Node to Lanes
        The nodes that this rank makes, and where their sums are to be.
    """

    def __init__(self, blocks: Mapping[Node, Lanes]) -> None:
        self._blocks = blocks
        self._homes: dict[int, Lanes] = {}  # by slice
        for (start, width), lanes in blocks.items():
            self._homes.update(dict.fromkeys(range(start, start + width), lanes))
        self._nodes: dict[Node, Lanes] = {}
        self._spare: list[Lanes] = []

    def add(self, number: int, grads: Sequence[Placed]) -> None:
        """Add a slice's gradients, of the same parameters each time. Each slice is added once."""
        sibling = (number ^ 1, 1)
        node: Node = (number, 1)
        with ieee_arithmetic(), np.errstate(all="ignore"):
            if node not in self._blocks and sibling in self._nodes:
                lanes = self._nodes.pop(sibling)
                for begin, grad in grads:
                    own = lanes[grad.dtype][begin : begin + grad.size]
                    np.add(*((own, grad) if number % 2 else (grad, own)), out=own)
                node = (number & ~1, 2)
            else:
                lanes = self._room(number)
                for begin, grad in grads:
                    own = lanes[grad.dtype][begin : begin + grad.size]
                    if own.__array_interface__["data"] != grad.__array_interface__["data"]:  # else it is there
                        own[:] = grad
            while node not in self._blocks:
                start, width = node
                other = self._nodes.pop((start ^ width, width), None)
                if other is None:
                    break
                low, high = (other, lanes) if start & width else (lanes, other)
                lanes = low if low is self._homes[number] else high if high is self._homes[number] else low
                for dtype, own in lanes.items():
                    self._join(low[dtype], high[dtype], own, dtype, grads)
                self._spare.append(high if lanes is low else low)
                node = (start & ~width, 2 * width)
        self._nodes[node] = lanes

    @staticmethod
    def _join(low: np.ndarray, high: np.ndarray, into: np.ndarray, dtype: np.dtype, grads: Sequence[Placed]) -> None:
        """Add what is there of two sums; neighbouring parameters at once."""
        begin = end = 0
        for first, grad in (*grads, (-1, np.empty(0, dtype))):
            if grad.dtype != dtype:
                continue
            if first != end:
                np.add(low[begin:end], high[begin:end], out=into[begin:end])
                begin = end = first
            end += grad.size

    def _room(self, number: int) -> Lanes:
        """Memory for a sum that begins with a slice: the block's own, where it is free."""
        lanes = self.free(number)
        if self._spare and lanes is self._spare[-1]:
            self._spare.pop()
        return lanes

    def free(self, number: int) -> Lanes:
        """Memory that a slice's gradients may be written to before they are added: often where they are to be."""
        home = self._homes[number]
        if not any(lanes is home for lanes in self._nodes.values()):
            return home
        if not self._spare:
            self._spare.append({dtype: np.empty_like(lane) for dtype, lane in home.items()})
        return self._spare[-1]

    def clear(self) -> None:
        """Forget the sums; their memory is kept."""
        homes = [*self._blocks.values()]
        for lanes in self._nodes.values():
            if not any(lanes is home for home in homes):
                self._spare.append(lanes)
        self._nodes.clear()
