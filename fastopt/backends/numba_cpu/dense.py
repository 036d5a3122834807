"""Updates of arrays of the compute type by Numba on the CPU: in long runs, whatever the rule.

The rule's update is called by its address, so that this is compiled once and not with every rule.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ...rules import FIRST_STATE, GRADIENT, OWN
from ..numba_cache import INNER
from .memory import address_of, call, gather, load, on_stack, prefetch, scatter
from .tiles import GROUP, LEVELS, TILE, add_group, prologue

STRIP = 128  # elements between which others are prefetched: with 64 or 256 a step of 1e8 takes 5 % or 10 % longer


def run_kernel(
    addresses, strides, offsets, tensor_of, row_of, coefficients, arrays, inputs, update, ahead, like, begin, end
):
    """Updates elements [begin, end) of a table of runs.

    Of a run's addresses the first `arrays` are those of elements, of which the last `inputs` are only read; numbers of
    its tensor come behind them. Runs that are not dense, and those of rules whose copies of a state share a gradient,
    go by tiles. Where `ahead` is not 0, elements are prefetched so many bytes before they are worked on.
    """
    copies, itemsize = coefficients.shape[1], like.itemsize
    at, shared = on_stack(arrays, np.int64), on_stack(TILE, like)
    tiles = on_stack(arrays * TILE, like).reshape(arrays, TILE)
    r = np.searchsorted(offsets, begin, side="right") - 1
    while begin < end:
        start = begin - offsets[r]
        n = min(end, offsets[r + 1]) - begin
        begin += n
        own = address_of(coefficients[row_of[tensor_of[r]]])
        dense = n > 0
        for j in range(arrays):
            aligned = addresses[r, j] % itemsize == 0
            dense = dense and aligned and (strides.size == 0 or strides[r, j] == itemsize)
        step = (STRIP if ahead else n) if dense and copies == 1 else TILE
        for i in range(0, n, step):
            m = min(step, n - i)
            for j in range(arrays):
                stride = strides[r, j] if strides.size else itemsize
                at[j] = np.int64(addresses[r, j]) + (start + i) * stride
                if not dense:
                    gather(tiles[j], at[j], stride, m)
                    at[j] = address_of(tiles[j])
                elif ahead:
                    for line in range(ahead, ahead + m * itemsize, 64):
                        prefetch(at[j] + line)
            call(update, m, address_of(at), own, copies, address_of(shared))
            if not dense:
                for j in range(arrays - inputs):
                    if j != GRADIENT:
                        stride = strides[r, j] if strides.size else itemsize
                        scatter(tiles[j], np.int64(addresses[r, j]) + (start + i) * stride, stride, m)
        r += 1


@njit(**INNER)
def _sum_gradients(tile, sums, address, stride, n, places, source, weights):
    """The sum of what lookups have, each times its weight; of each gradient's row n elements from where the first row's
    begin.
    """
    groups = -(-places.size // GROUP)
    for g in range(groups):
        for q in range(g * GROUP, min((g + 1) * GROUP, places.size)):
            row = source[places[q]] if source.size else places[q]
            weight = weights[places[q]] if weights.size else weights.dtype.type(1)
            for i in range(n):
                x = weight * load(address + row * stride + i * tile.itemsize, tile)
                tile[i] = x if q % GROUP == 0 else tile[i] + x
        if groups > 1:
            add_group(sums, tile, n, g, groups)


def row_kernel(addresses, strides, lookups, own, inputs, update, like, begin, end):
    """Updates the rows of segments [begin, end) of lookups."""
    width, rows, places, starts, source, weights, summed = lookups
    arrays, copies, itemsize = len(addresses), len(own), like.itemsize
    at, shared = on_stack(arrays, np.int64), on_stack(TILE, like)
    tiles = on_stack(arrays * TILE, like).reshape(arrays, TILE)
    sums = on_stack(LEVELS * TILE, like).reshape(LEVELS, TILE)
    direct = True
    for j in range(arrays):
        direct = direct and np.int64(addresses[j]) % itemsize == 0 and strides[j] % itemsize == 0
    for u in range(begin, end):
        for column in range(0, width, TILE):
            m = min(TILE, width - column)
            for j in range(arrays):
                at[j] = np.int64(addresses[j]) + rows[starts[u]] * strides[j] + column * itemsize
                if j != GRADIENT and not direct:
                    gather(tiles[j], at[j], itemsize, m)
                    at[j] = address_of(tiles[j])
            at[GRADIENT] = address_of(tiles[GRADIENT])
            gradients = np.int64(addresses[GRADIENT]) + column * itemsize
            step = starts[u + 1] - starts[u] if summed else 1
            for q in range(starts[u], starts[u + 1], step):
                mine = places[q : q + step]
                _sum_gradients(tiles[GRADIENT], sums, gradients, strides[GRADIENT], m, mine, source, weights)
                call(update, m, address_of(at), address_of(own), copies, address_of(shared))
            if not direct:
                for j in range(arrays - inputs):
                    if j != GRADIENT:
                        address = np.int64(addresses[j]) + rows[starts[u]] * strides[j] + column * itemsize
                        scatter(tiles[j], address, itemsize, m)


def whole_row_kernel(addresses, strides, lookups, own, update, by_row, like, begin, end):
    """Update rows by a rule with one state for each row: first the row's mean square, then its elements."""
    width, rows, places, starts, source, weights, summed = lookups
    itemsize, c = like.itemsize, own[0]
    params, grads, at = on_stack(TILE, like), on_stack(TILE, like), on_stack(FIRST_STATE, np.int64)
    at[0], at[GRADIENT] = address_of(params), address_of(grads)
    state, square, rate, lanes = on_stack(1, like), on_stack(1, like), on_stack(OWN + 1, like), on_stack(16, np.float64)
    sums = on_stack(LEVELS * TILE, like).reshape(LEVELS, TILE)
    rate[:OWN] = c[:OWN]
    for u in range(begin, end):
        row = rows[starts[u]]
        step = starts[u + 1] - starts[u] if summed else 1
        for q in range(starts[u], starts[u + 1], step):
            mine = places[q : q + step]
            lanes[:] = 0
            for column in range(0, width, TILE):
                m = min(TILE, width - column)
                gather(params, np.int64(addresses[0]) + row * strides[0] + column * itemsize, itemsize, m)
                gradients = np.int64(addresses[GRADIENT]) + column * itemsize
                _sum_gradients(grads, sums, gradients, strides[GRADIENT], m, mine, source, weights)
                for i in range(m):
                    x = np.float64(prologue(params[i], grads[i], c[0], c[1], c[2])[1])
                    lanes[i % 16] += x * x
            total = 0.0
            for lane in range(16):
                total += lanes[lane]
            square[0] = total / width
            address = np.int64(addresses[FIRST_STATE]) + row * strides[FIRST_STATE]
            gather(state, address, itemsize, 1)
            call(by_row, address_of(state), address_of(own), address_of(rate), address_of(square), 0)
            scatter(state, address, itemsize, 1)
            for column in range(0, width, TILE):
                m = min(TILE, width - column)
                address = np.int64(addresses[0]) + row * strides[0] + column * itemsize
                gather(params, address, itemsize, m)
                if width > TILE:  # what the tile held is gone
                    gradients = np.int64(addresses[GRADIENT]) + column * itemsize
                    _sum_gradients(grads, sums, gradients, strides[GRADIENT], m, mine, source, weights)
                call(update, m, address_of(at), address_of(rate), 1, 0)
                scatter(params, address, itemsize, m)
