"""The cuts of parameters."""

import numpy as np
import pytest

from fastopt.distributed.shards import UNIT, Extent, Layout, Span

F4, F8 = np.dtype("f4"), np.dtype("f8")


def extents(*sizes, **more):
    return [Extent(size, 1, F4, **more) for size in sizes]


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize(
    "parts",
    [
        extents(10, 20000, 5, 4097, 8192, 100000),
        extents(3),
        [],
        [Extent(700 * 30, 30, F4, by_row=True), Extent(50000, 5, F8, in_blocks=True), Extent(7, 1, F4)],
        extents(100, 20000, 70000, 30, 40000, whole=True),
    ],
    ids=["many", "one small", "none", "rows and blocks", "whole"],
)
def test_shards_are_all_elements_cut_where_blocks_end(parts, ranks):
    layout = Layout(parts, ranks)
    spans = [span for rank in range(ranks) for span in layout.spans(rank)]
    for i, extent in enumerate(parts):
        own = [span for span in spans if span.parameter == i]
        assert [span.begin for span in own] == [0, *(span.end for span in own[:-1])] and own[-1].end == extent.size
        for span in own[1:]:
            assert span.begin % extent.step == 0 and extent.size - span.begin >= extent.step
    assert spans == sorted(spans)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_shards_are_of_equal_size(ranks):
    layout = Layout(extents(10**6, 10, 3 * 10**6), ranks)
    sizes = np.diff(layout.cuts)
    assert sizes.max() <= layout.cuts[-1] / ranks * 1.05


def test_units_have_all_chosen_elements_once():
    layout = Layout([*extents(3 * UNIT + 5, 10, 20), Extent(40, 1, F8), *extents(30, 2 * UNIT)], 2)
    chosen = [True, True, False, True, True, True]
    seen = []
    for rank in range(2):
        for unit in layout.units(rank, chosen):
            assert sum(span.end - span.begin for span in unit) <= UNIT
            seen += unit
    joined = []
    for span in seen:
        if joined and joined[-1].parameter == span.parameter and joined[-1].end == span.begin:
            span = Span(span.parameter, joined.pop().begin, span.end)
        joined.append(span)
    expected = [0, 1, 3, 4, 5]
    assert joined == [Span(i, 0, layout.extents[i].size) for i in expected]
    assert [tuple(r)[1:] for r in layout.ranges(joined)] == [
        (0, 3 * UNIT + 15),
        (0, 40),
        (3 * UNIT + 35, 5 * UNIT + 65),
    ]


def test_rows_that_are_cut_are_parameters_of_their_own():
    layout = Layout([Extent(10000, 100, F4)], 2)
    (first,), (second,) = layout.spans(0), layout.spans(1)
    assert first == Span(0, 0, 4096)
    assert layout.tables(first) == [(Span(0, 0, 4000), (40, 100)), (Span(0, 4000, 4096), (1, 96))]
    assert layout.tables(second) == [(Span(0, 4096, 4100), (1, 4)), (Span(0, 4100, 10000), (59, 100))]
    assert layout.tables(Span(0, 110, 120)) == [(Span(0, 110, 120), (1, 10))]
