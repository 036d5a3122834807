"""Internal. The fixed binary tree along which the gradients of a batch's slices are added.

Leaf (s, 1) is the gradient of slice s, and node (a, k) = node (a, k/2) + node (a + k/2, k/2) the sum of slices a to
a + k - 1, where k is a power of two that divides a. The root has the same bits whoever adds which part.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def additions(nodes: Sequence[Node]) -> tuple[list[tuple[int, int, int]], int]:
    """The additions that make the root of nodes.

    Parameters
    ----------
    nodes : sequence of Node
        Such as together are all slices, each once. Where their number is no power of two, a node without a second half
        is its first.

    Returns
    -------
    list of (int, int, int)
        Of each addition the places of both terms and of the sum: nodes are at places 0 to n - 1, sums from place n on,
        the root at place n. A single node is the root itself, and nothing is added.
    int
        The places of sums that are needed.
    """
    place = {node: i for i, node in enumerate(nodes)}
    slices = sum(width for _, width in nodes)
    steps: list[tuple[int, int, int]] = []

    def add(start: int, width: int, into: int) -> int:
        if (start, width) in place:
            return place[start, width]
        half = width // 2
        left = add(start, half, into)
        if start + half >= slices:
            return left
        right = add(start + half, half, into + (left == into))
        steps.append((left, right, into))
        return into

    add(0, 1 << max(slices - 1, 0).bit_length(), len(place))
    return steps, len({into for _, _, into in steps})
