"""Internal. The fixed binary tree along which the gradients of a batch's slices are added.

Leaf (s, 1) is the gradient of slice s, and node (a, k) = node (a, k/2) + node (a + k/2, k/2) the sum of slices a to
a + k - 1, where k is a power of two that divides a. The root has the same bits whoever adds which part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: A node: its first slice, and its number of slices.
Node = tuple[int, int]


def aligned(begin: int, end: int) -> list[Node]:
    """The fewest nodes of the tree that together are the slices from `begin` to `end` - 1."""
    nodes = []
    while begin < end:
        width = 1 << (end - begin).bit_length() - 1
        if begin:
            width = min(width, begin & -begin)
        nodes.append((begin, width))
        begin += width
    return nodes


def merged(nodes: Iterable[Node]) -> dict[Node, list[Node]]:
    """The fewest nodes of the tree that are made of given ones, each with those that it is made of, in order."""
    found = {node: [node] for node in nodes}
    for start, width in sorted(found, key=lambda node: node[1]):
        node = start, width
        while node in found and (sibling := (node[0] ^ node[1], node[1])) in found:
            low, high = sorted((node, sibling))
            node = low[0], 2 * low[1]
            found[node] = found.pop(low) + found.pop(high)
    return dict(sorted(found.items()))


def joins(nodes: Sequence[Node]) -> list[int]:
    """The additions that make the root of nodes: behind each node, how often the last two sums are added.

    Parameters
    ----------
    nodes : sequence of Node
        Such as together are all slices, or those of one node, each once and in order. Where the number of all is no
        power of two, a node without a second half is its first.
    """
    origin = nodes[0][0]
    given = {(start - origin, width) for start, width in nodes}
    slices = sum(width for _, width in nodes)
    found: list[int] = []

    def add(start: int, width: int) -> None:
        if (start, width) in given:
            found.append(0)
            return
        half = width // 2
        add(start, half)
        if start + half < slices:
            add(start + half, half)
            found[-1] += 1

    add(0, 1 << max(slices - 1, 0).bit_length())
    return found
