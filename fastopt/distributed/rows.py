"""Internal. Gradients of rows: they go to the ranks that have the rows, and the updated rows come back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays.libraries import floats_of
from ..binding.sparse import RowSparse
from .shards import Extent, Layout, Span
from .world import World

#: Rows of a part of a parameter: their numbers in the parameter, and their elements there.
Rows = tuple[np.ndarray, np.ndarray]


def row_range(span: Span, width: int) -> tuple[int, int]:
    """The first row that elements are of, and the last one's next."""
    return span.begin // width, -(-span.end // width)


def columns(table: Span, width: int) -> slice:
    """The elements of each row that a table has."""
    first = table.begin % width
    return slice(first, first + min(table.end - table.begin, width))


def cut_rows(grad: RowSparse, spans: Sequence[Span], width: int) -> list[Rows]:
    """The rows of a gradient that each of some spans has elements of, whole rows."""
    values = floats_of(grad.values).reshape(-1, width)
    found = []
    for span in spans:
        first, last = row_range(span, width)
        chosen = (grad.indices >= first) & (grad.indices < last)
        found.append((grad.indices[chosen], values[chosen]))
    return found


def join_rows(parts: Sequence[Rows], width: int, dtype: np.dtype) -> Rows:
    """Rows of several slices, one behind the other."""
    indices = [np.empty(0, np.int64), *(own for own, _ in parts)]
    return np.concatenate(indices), np.concatenate([np.empty((0, width), dtype), *(values for _, values in parts)])


def send_rows(grads: Sequence[RowSparse], parameter: int, layout: Layout, world: World) -> Rows:
    """Exchange the rows of a parameter's slices: those that this rank has elements of, slice by slice."""
    extent = layout.extents[parameter]
    to: list[list[Rows]] = []
    for rank in range(world.size):
        spans = [span for span in layout.spans(rank) if span.parameter == parameter]
        to.append([rows for grad in grads for rows in cut_rows(grad, spans, extent.width)])
    return join_rows([rows for sent in world.exchange(to) for rows in sent], extent.width, extent.dtype)


def own_elements(rows: Rows, span: Span | None, extent: Extent) -> np.ndarray:
    """The elements of summed rows that a span has, one row behind the other."""
    if span is None:
        return np.empty(0, extent.dtype)
    summed = RowSparse(rows[0], rows[1]).coalesced()
    values = floats_of(summed.values).reshape(-1)
    begin, end = 0, values.size
    if values.size and summed.indices[0] == span.begin // extent.width:
        begin = span.begin % extent.width
    if values.size and summed.indices[-1] == (span.end - 1) // extent.width:
        end -= -span.end % extent.width
    return values[begin:end]


def rows_of_table(rows: Rows, table: Span, shape: tuple[int, ...], width: int) -> RowSparse:
    """The rows of one table of a shard, as its gradient."""
    indices, values = rows
    first = table.begin // width
    chosen = (indices >= first) & (indices < first + shape[0])
    own = np.ascontiguousarray(values[chosen][:, columns(table, width)])
    return RowSparse(indices[chosen] - first, own.reshape(-1, *shape[1:]))
