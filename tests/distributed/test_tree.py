"""The tree along which slices are added."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt.distributed.tree import aligned, joins


def whole(leaves):
    """The sum by the definition."""
    if len(leaves) == 1:
        return leaves[0]
    half = len(leaves) // 2
    return whole(leaves[:half]) + whole(leaves[half:])


def node(leaves, start, width):
    assert start % width == 0
    return whole(leaves[start : start + width])


@given(st.integers(0, 7), st.data())
def test_ranks_make_the_sum_of_one(power, data):
    slices = 2**power
    ranks = data.draw(st.integers(1, slices))
    leaves = list(np.random.default_rng(slices + ranks).standard_normal((slices, 3)).astype("f4"))
    nodes = [own for r in range(ranks) for own in aligned(slices * r // ranks, slices * (r + 1) // ranks)]
    sums, most = [], 0
    for own, additions in zip(nodes, joins(nodes), strict=True):
        sums.append(node(leaves, *own))
        most = max(most, len(sums))
        for _ in range(additions):
            right = sums.pop()
            sums[-1] = sums[-1] + right
    (root,) = sums
    assert root.tobytes() == whole(leaves).tobytes()
    assert most <= power + 1  # what the C library has room for


@given(st.integers(0, 128), st.integers(0, 128))
def test_nodes_are_the_fewest_that_cover_slices(begin, more):
    end = begin + more
    nodes = aligned(begin, end)
    assert [s for start, width in nodes for s in range(start, start + width)] == list(range(begin, end))
    assert all(width & (width - 1) == 0 and start % width == 0 for start, width in nodes)
    for (a, k), (b, m) in pairwise(nodes):
        assert (k, a % (2 * k)) != (m, 0) or b != a + k  # no two of them are one node


@pytest.mark.parametrize("slices", [8, 128])
def test_a_rank_has_few_nodes(slices):
    for ranks in range(1, slices + 1):
        for r in range(ranks):
            assert len(aligned(slices * r // ranks, slices * (r + 1) // ranks)) <= 6
