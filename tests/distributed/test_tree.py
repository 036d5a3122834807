"""The tree along which slices are added."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt.distributed.tree import aligned, joins, merged


def whole(leaves):
    """The sum by the definition."""
    if len(leaves) == 1:
        return leaves[0]
    half = len(leaves) // 2
    return whole(leaves[:half]) + whole(leaves[half:])


def node(leaves, start, width):
    assert start % width == 0
    return whole(leaves[start : start + width])


def added_up(nodes, terms):
    """The sum of nodes, and how many sums there were at once."""
    sums, most = [], 0
    for term, additions in zip(terms, joins(nodes), strict=True):
        sums.append(term)
        most = max(most, len(sums))
        for _ in range(additions):
            right = sums.pop()
            sums[-1] = sums[-1] + right
    (root,) = sums
    return root, most


@given(st.integers(0, 7), st.data())
def test_ranks_make_the_sum_of_one(power, data):
    slices = 2**power
    ranks = data.draw(st.integers(1, slices))
    leaves = list(np.random.default_rng(slices + ranks).standard_normal((slices, 3)).astype("f4"))
    nodes = [own for r in range(ranks) for own in aligned(slices * r // ranks, slices * (r + 1) // ranks)]
    root, most = added_up(nodes, [node(leaves, *own) for own in nodes])
    assert root.tobytes() == whole(leaves).tobytes()
    assert most <= power + 1  # what the C library has room for


@given(st.integers(0, 6), st.data())
def test_machines_make_the_sum_of_one(power, data):
    """Each the nodes that its ranks have, wherever they are."""
    slices = 2**power
    ranks = data.draw(st.integers(1, slices))
    places = data.draw(st.lists(st.integers(0, 2), min_size=ranks, max_size=ranks))
    leaves = list(np.random.default_rng(slices + ranks).standard_normal((slices, 3)).astype("f4"))
    own = [aligned(slices * r // ranks, slices * (r + 1) // ranks) for r in range(ranks)]
    terms = {}
    for place in set(places):
        made = merged(n for nodes, where in zip(own, places, strict=True) if where == place for n in nodes)
        for (start, width), parts in made.items():
            assert (start ^ width, width) not in made and parts == sorted(parts)
            terms[start, width], _ = added_up(parts, [node(leaves, *part) for part in parts])
            assert terms[start, width].tobytes() == node(leaves, start, width).tobytes()
    order = sorted(terms)
    root, _ = added_up(order, [terms[n] for n in order])
    assert root.tobytes() == whole(leaves).tobytes()


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
