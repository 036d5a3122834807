"""Updates of stored arrays by Numba on the CPU: tile by tile, whatever the rule.

Elements of each array are loaded into a tile of the compute type, the rule's update runs over the tiles, they are
stored again. The update is called by its address, so that all this is compiled once and not with every rule. Arrays
that are of the compute type already are updated where they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from ... import rules
from ...arrays.blocks import BLOCK_BYTES, POSITIVE, QUANT_BLOCK, SIGNED
from ...arrays.dtypes import BFLOAT16, CODES
from ...jobs.job import NORM_BLOCK
from ...jobs.storage import AVERAGE, DITHER, KAHAN, MASTER, NOISE, PREPARED, STOCHASTIC, ZERO_GRADS
from ...rules import FIRST_STATE, GRADIENT, OWN
from .. import convert
from ..noise import normals_of
from ..numba_cache import INNER
from .memory import (
    address_of,
    array_at,
    call,
    gather,
    load,
    on_stack,
    prefetch,
    scatter,
    store,
    unaligned_at,
)

TILE = 1024  # elements, whole blocks; the tiles of a rule's arrays fit the first-level cache
GROUP = 32  # lookups of a row whose gradients are added one after the other, and sums of groups
LEVELS = 6  # of sums of groups: 32**7 lookups are more than there can be
_DRAWN = 128  # elements that have their random numbers from the same counters
_COUNTERS = _DRAWN // 8
_FLOAT32, _FLOAT64, _BFLOAT16 = CODES[np.dtype(np.float32)], CODES[np.dtype(np.float64)], CODES[BFLOAT16]

prologue: Any = njit(**INNER)(rules.prologue)


class Stored(NamedTuple):
    """Storage formats and options of a job's arrays."""

    arrays: int  # those of the update; after them come the parameter's companion and its average, if there are
    inputs: int  # the last of them, which are only read
    copies: int  # rows of coefficients
    block: int  # elements that are updated together
    options: int
    decay: Any  # of the average, in the compute type
    rest: Any  # 1 - decay, rounded once
    seed: Any  # uint64
    noise_seed: Any  # uint64
    limit: Any  # of scaled gradients' magnitudes, in the compute type
    update: int  # the address of the rule's update of a tile; to measure, that of the stage's measure of it
    by_row: int  # that of what a rule of rows makes of a row's mean square; 0 for others


class Lookups(NamedTuple):
    """The lookups of a job of rows, in the order in which they are updated."""

    width: int  # elements of a row
    rows: np.ndarray  # int64: the parameter's row of each
    places: np.ndarray  # int64: the number that each was given with
    starts: np.ndarray  # int64: where each row's begin, and the end
    source: np.ndarray  # int64: of each number the row of gradients; empty where it is that number
    weights: np.ndarray  # of the compute type: of each number; empty where all are 1
    summed: bool  # True where a row's gradients are summed first


class Space(NamedTuple):
    """Scratch memory of a thread."""

    tiles: np.ndarray  # of the compute type [arrays, TILE]
    raw: np.ndarray  # the same for elements, as they are stored, of strided arrays
    places: np.ndarray  # int64 [arrays]: where each array's elements are in the compute type
    shared: np.ndarray  # of the compute type [TILE]
    random: np.ndarray  # uint32 [words]: numbers of 16 bits, two in each
    deviates: np.ndarray  # float32 [TILE + 8]


@njit(inline="always", **INNER)  # what is on the stack is its caller's
def _space(arrays, like):
    return Space(
        on_stack(arrays * TILE, like).reshape(arrays, TILE),
        on_stack(arrays * TILE, like).reshape(arrays, TILE),
        on_stack(arrays, np.int64),
        on_stack(TILE, like),
        on_stack((TILE + 2 * _DRAWN) // 2, np.uint32),
        on_stack(TILE + 8, np.float32),
    )


@njit(**INNER)
def _own(like):
    """The code of the compute type."""
    return _FLOAT32 if like.itemsize == 4 else _FLOAT64


@njit(**INNER)
def _size(code, like):
    """Bytes of an element that is not in a block."""
    return np.int64(like.itemsize) if code == _own(like) else 2


# ---- from memory to a tile, and back ----


@njit(**INNER)
def _load_block(tile, block, positive):
    scale = load(block, np.float32)
    codes = unaligned_at(block + 4, QUANT_BLOCK, np.uint8)
    magnitude = abs(scale)
    if positive:
        for k in range(QUANT_BLOCK):
            tile[k] = convert.decode_positive(codes[k], magnitude)
    else:
        for k in range(QUANT_BLOCK):
            tile[k] = convert.decode_signed(codes[k], magnitude)
    if convert.bits_of(scale) >> 31:
        for k in range(QUANT_BLOCK):
            if codes[k] == convert.nan_code(positive):
                tile[k] = np.nan


@njit(**INNER)
def _store_block(tile, block, positive, element, step):
    most = 0
    for k in range(QUANT_BLOCK):
        most = max(most, convert.bits_of(tile[k]) & 0x7FFFFFFF)
    finite = most <= convert.LARGEST_FINITE
    if not finite:
        most = 0
        for k in range(QUANT_BLOCK):
            bits = convert.bits_of(tile[k]) & 0x7FFFFFFF
            most = max(most, bits if bits <= convert.LARGEST_FINITE else 0)
    scale, inverse = convert.scale_of(convert.float_of(most), positive)
    codes = unaligned_at(block + 4, QUANT_BLOCK, np.uint8)
    if positive:
        for k in range(QUANT_BLOCK):
            codes[k] = convert.encode_positive(tile[k], inverse, convert.dither_of(element + k, step) >> 12)
    else:
        for k in range(QUANT_BLOCK):
            codes[k] = convert.encode_signed(tile[k], inverse, convert.dither_of(element + k, step) >> 12)
    if not finite:
        scale = convert.float_of(convert.bits_of(scale) | 0x80000000)
        for k in range(QUANT_BLOCK):
            codes[k] = convert.encode_among_nonfinite(codes[k], tile[k], positive)
    store(block, scale)


@njit(**INNER)
def _load_tile(code, tile, address, n):
    """Return the address of n elements in the compute type: their own, or the tile into which they are loaded."""
    if code == _own(tile):
        if address % tile.itemsize == 0:
            return address
        own = unaligned_at(address, n, tile)
        for i in range(n):
            tile[i] = own[i]
    elif code >= SIGNED:
        for i in range(0, n, QUANT_BLOCK):
            _load_block(tile[i : i + QUANT_BLOCK], address + i // QUANT_BLOCK * BLOCK_BYTES, code == POSITIVE)
    else:
        h = unaligned_at(address, n, np.uint16)
        if code == _BFLOAT16:
            for i in range(n):
                tile[i] = convert.decode_bfloat16(h[i])
        else:
            for i in range(n):
                tile[i] = convert.decode_float16(h[i])
    return address_of(tile)


@njit(**INNER)
def _store_tile(code, place, address, n, like):
    """Stores n elements, which are in the compute type at `place`, rounded to the nearest; not in blocks."""
    if place == address:
        return
    tile = array_at(place, n, like)
    if code == _own(like):
        own = unaligned_at(address, n, like)
        for i in range(n):
            own[i] = tile[i]
        return
    h = unaligned_at(address, n, np.uint16)
    if code == _BFLOAT16:
        for i in range(n):
            h[i] = convert.encode_bfloat16(tile[i])
    else:
        for i in range(n):
            h[i] = convert.encode_float16(tile[i])


@njit(**INNER)
def _store_dithered(code, place, address, n, random, like):
    """Store elements of 16 bits, rounded at random: a number of 16 bits is added before the lower bits are dropped."""
    tile = array_at(place, n, like)
    h = unaligned_at(address, n, np.uint16)
    if code == _BFLOAT16:
        for i in range(n):
            h[i] = convert.dither_bfloat16(tile[i], random[i])
    else:
        for i in range(n):
            h[i] = convert.dither_float16(tile[i], random[i])


@njit(**INNER)
def _store_blocks(code, tile, address, n, element, step):
    """Stores n elements of a tile, and zeros behind them, in whole blocks."""
    for i in range(n, -(-n // QUANT_BLOCK) * QUANT_BLOCK):
        tile[i] = 0
    for i in range(0, n, QUANT_BLOCK):
        block = address + i // QUANT_BLOCK * BLOCK_BYTES
        _store_block(tile[i : i + QUANT_BLOCK], block, code == POSITIVE, element + i, step)


@njit(**INNER)
def _random(words, element, n, step, seed):
    """Random numbers of 16 bits for n elements."""
    first = element // _DRAWN
    for group in range(first, (element + n - 1) // _DRAWN + 1):
        at = (group - first) * _DRAWN // 2
        for k in range(_COUNTERS):
            w = convert.philox_of(group * _COUNTERS + k, step, seed)
            for q in range(4):
                words[at + q * _COUNTERS + k] = w[q]
    return array_at(address_of(words) + element % _DRAWN * 2, n, np.uint16)


@njit(**INNER)
def _dither(words, element, n, step):
    """The upper 16 bits of n elements' dither."""
    dither = array_at(address_of(words), n, np.uint16)
    for i in range(n):
        dither[i] = convert.dither_of(element + i, step) >> 16
    return dither


@njit(**INNER)
def _prepare(tile, place, n, s, scale, deviation, element, step, deviates):
    """Writes n gradients from an address to a tile, scaled, clipped and with noise; returns the tile's address."""
    grads = array_at(place, n, tile)
    for i in range(n):
        g = scale * grads[i]
        g = s.limit if s.limit < g else g
        tile[i] = -s.limit if -s.limit > g else g
    if not s.options & NOISE:
        return address_of(tile)
    first = element // 4
    for group in range(first, (element + n - 1) // 4 + 1):
        at = (group - first) * 4
        deviates[at], deviates[at + 1], deviates[at + 2], deviates[at + 3] = normals_of(group, step, s.noise_seed)
    before = element - first * 4
    for i in range(n):
        tile[i] = tile[i] + deviation * tile.dtype.type(deviates[before + i])
    return address_of(tile)


# ---- a tile ----


@njit(**INNER)
def _load_param(n, at, codes, s, space):
    """The parameter with what its dtype could not hold; where it is."""
    tiles, arrays = space.tiles, s.arrays
    if s.options & MASTER:
        return _load_tile(_own(tiles), tiles[0], at[arrays], n)
    place = _load_tile(codes[0], tiles[0], at[0], n)
    if s.options & KAHAN:
        _load_tile(codes[arrays], tiles[arrays], at[arrays], n)
        for i in range(n):
            tiles[0, i] += tiles[arrays, i]
    return place


@njit(**INNER)
def _store_param(n, at, codes, s, place, element, step, space):
    tiles, arrays, like = space.tiles, s.arrays, space.shared
    if s.options & MASTER:
        _store_tile(_own(like), place, at[arrays], n, like)
    if s.options & STOCHASTIC:
        _store_dithered(codes[0], place, at[0], n, _random(space.random, element, n, step, s.seed), like)
    else:
        _store_tile(codes[0], place, at[0], n, like)
    if s.options & KAHAN:
        p, lost = tiles[0], tiles[arrays]
        _load_tile(codes[0], lost, at[0], n)
        for i in range(n):  # infinity less infinity is none lost
            lost[i] = p[i] - lost[i] if np.isfinite(lost[i]) else np.float32(0)
        _store_tile(codes[arrays], address_of(lost), at[arrays], n, like)


@njit(**INNER)
def _update_tile(n, at, codes, s, own, scale, deviation, element, step, space):
    """Updates n elements, TILE of them at most, of contiguous arrays of any alignment that begin at the addresses `at`.

    `own` is the address of their coefficients, `element` the number of the first. A gradient that is clipped, or has
    noise of that deviation, is scaled here, and not by the coefficients.
    """
    places, tiles, like = space.places, space.tiles, space.shared
    places[0] = _load_param(n, at, codes, s, space)
    for j in range(1, s.arrays):
        places[j] = _load_tile(codes[j], tiles[j], at[j], n)
    if s.options & PREPARED:
        tile, place = tiles[GRADIENT], places[GRADIENT]
        places[GRADIENT] = _prepare(tile, place, n, s, scale, deviation, element, step, space.deviates)
    call(s.update, n, address_of(places), own, s.copies, address_of(like))
    if s.options & AVERAGE:
        j = len(codes) - 1
        place = _load_tile(codes[j], tiles[j], at[j], n)
        average, p = array_at(place, n, like), array_at(places[0], n, like)
        for i in range(n):
            average[i] = s.decay * average[i] + s.rest * p[i]
        _store_tile(codes[j], place, at[j], n, like)
    if s.options & ZERO_GRADS:
        unaligned_at(at[GRADIENT], n * _size(codes[GRADIENT], like), np.uint8)[:] = 0
    _store_param(n, at, codes, s, places[0], element, step, space)
    for j in range(FIRST_STATE, s.arrays - s.inputs):
        if codes[j] >= SIGNED:
            _store_blocks(codes[j], tiles[j], at[j], n, element, step)
        elif s.options & DITHER and codes[j] != _own(like):
            _store_dithered(codes[j], places[j], at[j], n, _dither(space.random, element, n, step), like)
        else:
            _store_tile(codes[j], places[j], at[j], n, like)


@njit(**INNER)
def _move_in(raw, address, stride, n, size):
    if size == 2:
        gather(array_at(address_of(raw), n, np.uint16), address, stride, n)
    else:
        gather(raw, address, stride, n)
    return address_of(raw)


@njit(**INNER)
def _move_out(raw, address, stride, n, size):
    if size == 2:
        scatter(array_at(address_of(raw), n, np.uint16), address, stride, n)
    else:
        scatter(raw, address, stride, n)


# ---- runs ----


@njit(**INNER)
def _writes(j, s):
    """Tell whether array j is written."""
    if j == GRADIENT:
        return s.options & ZERO_GRADS != 0
    return j < s.arrays - s.inputs or j >= s.arrays


@njit(**INNER)
def _prefetch(address, n):
    """Fetches n bytes, while others are worked on."""
    for line in range(0, n, 64):
        prefetch(address + line)


def run_kernel(
    addresses,
    strides,
    offsets,
    tensor_of,
    row_of,
    coefficients,
    noise,
    elements,
    steps,
    codes,
    s,
    like,
    begin,
    end,
):
    """Updates elements [begin, end) of a table of runs.

    Of runs in blocks that is the blocks that begin there, counted within each run.
    """
    arrays, codes = len(codes), array_at(address_of(codes), len(codes), codes)  # here without counts of references
    space, at = _space(arrays, like), on_stack(arrays, np.int64)
    r = np.searchsorted(offsets, begin, side="right") - 1
    while r < len(offsets) - 1 and offsets[r] < end:
        first, tensor = offsets[r], tensor_of[r]
        own, step = address_of(coefficients[row_of[tensor]]), steps[tensor]
        scale, deviation = noise[tensor, 0], noise[tensor, 1]
        last = min(-(-(end - first) // s.block) * s.block, offsets[r + 1] - first)
        for i in range(-(-max(begin - first, 0) // s.block) * s.block, last, TILE):
            n = min(TILE, last - i)
            after = min(TILE, last - i - n)  # elements of the next tile
            for j in range(arrays):
                address, stride, size = np.int64(addresses[r, j]), strides[r, j], _size(codes[j], like)
                if codes[j] >= SIGNED:
                    at[j] = address + i // QUANT_BLOCK * BLOCK_BYTES
                    _prefetch(at[j] + n // QUANT_BLOCK * BLOCK_BYTES, after)
                elif stride == size:
                    at[j] = address + i * size
                    _prefetch(at[j] + n * size, after * size)
                else:
                    at[j] = _move_in(space.raw[j], address + i * stride, stride, n, size)
            _update_tile(n, at, codes, s, own, scale, deviation, elements[r] + i, step, space)
            for j in range(arrays):
                stride, size = strides[r, j], _size(codes[j], like)
                if codes[j] < SIGNED and stride != size and _writes(j, s):
                    _move_out(space.raw[j], np.int64(addresses[r, j]) + i * stride, stride, n, size)
        r += 1


def measure_kernel(
    addresses,
    strides,
    offsets,
    tensor_of,
    row_of,
    coefficients,
    noise,
    elements,
    steps,
    codes,
    s,
    blocks,
    sums,
    like,
    begin,
    end,
):
    """Writes the sums of blocks [begin, end) of runs: it only reads the arrays."""
    arrays, codes = s.arrays, array_at(address_of(codes), len(codes), codes)  # here without counts of references
    space, at = _space(len(codes), like), on_stack(len(codes), np.int64)
    lanes = on_stack(16 * sums.shape[1], np.float64)
    for b in range(begin, end):
        r = np.searchsorted(blocks, b, side="right") - 1
        first, tensor = (b - blocks[r]) * NORM_BLOCK, tensor_of[r]
        own, step = address_of(coefficients[row_of[tensor]]), steps[tensor]
        last = min(first + NORM_BLOCK, offsets[r + 1] - offsets[r])
        lanes[:] = 0
        plain = s.options == 0
        for j in range(arrays):
            aligned = np.int64(addresses[r, j]) % like.itemsize == 0
            plain = plain and aligned and codes[j] == _own(like) and strides[r, j] == like.itemsize
        if plain:  # the block where it is, without the calls for each tile
            for j in range(arrays):
                space.places[j] = np.int64(addresses[r, j]) + first * like.itemsize
            call(s.update, last - first, address_of(space.places), own, address_of(lanes), 0)
        for i in range(last if plain else first, last, TILE):
            n = min(TILE, last - i)
            for j in range(len(codes)):
                address, stride, size = np.int64(addresses[r, j]), strides[r, j], _size(codes[j], like)
                if codes[j] >= SIGNED:
                    at[j] = address + i // QUANT_BLOCK * BLOCK_BYTES
                elif stride == size:
                    at[j] = address + i * size
                else:
                    at[j] = _move_in(space.raw[j], address + i * stride, stride, n, size)
            space.places[0] = _load_param(n, at, codes, s, space)
            for j in range(1, arrays):
                space.places[j] = _load_tile(codes[j], space.tiles[j], at[j], n)
            if s.options & PREPARED:
                tile, place, number = space.tiles[GRADIENT], space.places[GRADIENT], elements[r] + i
                scale, deviation = noise[tensor, 0], noise[tensor, 1]
                space.places[GRADIENT] = _prepare(tile, place, n, s, scale, deviation, number, step, space.deviates)
            call(s.update, n, address_of(space.places), own, address_of(lanes), 0)
        for k in range(sums.shape[1]):
            total = 0.0
            for lane in range(16):
                total += lanes[16 * k + lane]
            sums[b, k] = total


# ---- rows ----


@njit(**INNER)
def add_group(sums, tile, n, g, groups):
    """Adds a tile, the sum of group g of a row's lookups, to the sums of groups of groups, level by level: the tree of
    sums that all backends have. After the last of the groups the tile is the sum of all.
    """
    level, at = 0, g
    while True:  # at: which of its level's sums it is
        to, last = sums[level], g == groups - 1
        for i in range(n):
            tile[i] = tile[i] if at % GROUP == 0 else to[i] + tile[i]
            to[i] = tile[i]
        if at < GROUP if last else at % GROUP < GROUP - 1:
            return
        level, at = level + 1, at // GROUP


@njit(**INNER)
def _sum_gradients(tile, sums, converted, code, address, stride, n, places, source, weights):
    """The sum of what lookups have, each times its weight; of each gradient's row n elements from where the first row's
    begin.
    """
    groups = -(-places.size // GROUP)
    for g in range(groups):
        for q in range(g * GROUP, min((g + 1) * GROUP, places.size)):
            row = source[places[q]] if source.size else places[q]
            weight = weights[places[q]] if weights.size else weights.dtype.type(1)
            x = array_at(_load_tile(code, converted, address + row * stride, n), n, tile)
            for i in range(n):
                y = weight * x[i]
                tile[i] = y if q % GROUP == 0 else tile[i] + y
        if groups > 1:
            add_group(sums, tile, n, g, groups)


@njit(**INNER)
def _find_row(at, addresses, strides, row, column, stored, like):
    """Return the addresses of a row from a column on, in each array but the gradient and a row rule's state."""
    for j in range(len(at)):
        k = j if j < FIRST_STATE else j + len(stored) - len(at)
        if j != GRADIENT:
            at[j] = np.int64(addresses[k]) + row * strides[k] + column * _size(stored[k], like)


@njit(**INNER)
def _add_squares(lanes, p, grads, n, c):
    """Adds the squares of gradients that have been through the prologue to sixteen partial sums."""
    for i in range(n):
        x = np.float64(prologue(p[i], grads[i], c[0], c[1], c[2])[1])
        lanes[i % 16] += x * x


def row_kernel(addresses, strides, lookups, own, noise, element, step, stored, codes, s, like, begin, end):
    """Updates the rows of segments [begin, end).

    `stored` are the codes of all arrays, `codes` those of what is updated element by element, with a gradient that has
    been summed: of a rule of rows without its state, which is the third array and has an element for each row.
    """
    arrays, codes = len(codes), array_at(address_of(codes), len(codes), codes)  # here without counts of references
    width, rows, places, starts, source, weights, summed = lookups
    space, at = _space(arrays, like), on_stack(arrays, np.int64)
    grads, converted = on_stack(TILE, like), on_stack(TILE, like)
    sums = on_stack(LEVELS * TILE, like).reshape(LEVELS, TILE)
    state, square, lanes = on_stack(1, like), on_stack(1, like), on_stack(16, np.float64)
    rate, size = on_stack(OWN + 1, like), _size(stored[GRADIENT], like)
    for k in range(OWN):
        rate[k] = own[0, k]
    coefficients = address_of(rate) if s.by_row else address_of(own)
    scale, deviation = noise[0, 0], noise[0, 1]
    for u in range(begin, end):
        row = rows[starts[u]]
        together = starts[u + 1] - starts[u] if summed else 1
        for q in range(starts[u], starts[u + 1], together):
            mine = places[q : q + together]
            if s.by_row:
                lanes[:] = 0
                for column in range(0, width, TILE):
                    n = min(TILE, width - column)
                    _find_row(at, addresses, strides, row, column, stored, like)
                    gradients = np.int64(addresses[GRADIENT]) + column * size
                    _sum_gradients(
                        grads, sums, converted, stored[GRADIENT], gradients, strides[GRADIENT], n, mine, source,
                        weights,
                    )  # fmt: skip
                    if s.options & PREPARED:
                        number, place = element + row * width + column, address_of(grads)
                        _prepare(grads, place, n, s, scale, deviation, number, step, space.deviates)
                    _add_squares(lanes, array_at(_load_param(n, at, codes, s, space), n, like), grads, n, own[0])
                total = 0.0
                for lane in range(16):
                    total += lanes[lane]
                square[0] = total / width
                address = np.int64(addresses[FIRST_STATE]) + row * strides[FIRST_STATE]
                state[0] = array_at(_load_tile(stored[FIRST_STATE], state, address, 1), 1, like)[0]
                call(s.by_row, address_of(state), address_of(own), address_of(rate), address_of(square), 0)
                _store_tile(stored[FIRST_STATE], address_of(state), address, 1, like)
            for column in range(0, width, TILE):
                n = min(TILE, width - column)
                _find_row(at, addresses, strides, row, column, stored, like)
                gradients = np.int64(addresses[GRADIENT]) + column * size
                _sum_gradients(
                    grads, sums, converted, stored[GRADIENT], gradients, strides[GRADIENT], n, mine, source, weights
                )
                at[GRADIENT] = address_of(grads)
                number = element + row * width + column
                _update_tile(n, at, codes, s, coefficients, scale, deviation, number, step, space)
