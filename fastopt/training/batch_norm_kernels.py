"""The loops of batch normalization, compiled by Numba.

Sums are added in one order, whatever the number of threads: of blocks in the arrays' dtype, and of these in float64.
Examples by features are read block by block, as they lie in memory, planes feature by feature.
"""

import numpy as np
from numba import njit

from ..backends.numba_cache import INNER
from ..backends.numba_cpu.memory import fetch_add, on_stack
from ..backends.numba_cpu.parts import parallel

BLOCK = 32  # rows that are summed in the arrays' dtype; a multiple of 4
STRIPE = 1024  # features of a block that a thread takes at a time
MERGED = 256  # features whose coefficients a thread computes at a time
_SPINS = 2000  # looks at what other threads have done, of some 20 ns
_LANES = 16  # sums side by side along a row, which the processor adds at once


# ---- examples by features: (n, features) ----
#
# A pass has phases: sums of blocks, coefficients of stripes of features, the blocks' results. Threads claim the units
# of a phase, and begin the next when all of them are done.


def cut(x):
    """The number of blocks of rows, of units of work, of the elements of such a unit, and of stripes to merge."""
    blocks = -(-len(x) // BLOCK)
    return blocks, blocks * -(-x.shape[1] // STRIPE), BLOCK * min(x.shape[1], STRIPE), -(-x.shape[1] // MERGED)


@njit(**INNER)
def _part(unit, shape):
    """The rows and columns of a block: begin and end of each."""
    stripes = -(-shape[1] // STRIPE)
    row, column = unit // stripes * BLOCK, unit % stripes * STRIPE
    return row, min(row + BLOCK, shape[0]), column, min(column + STRIPE, shape[1])


@njit(**INNER)
def _claim(claims, unit):
    """True for the first thread that asks for a unit."""
    return fetch_add(claims[unit : unit + 1], 1) == 0


@njit(**INNER)
def _reached(done, phase, units):
    """True once all units of a phase are done, False where that takes long: a thread lost its processor."""
    left = _SPINS
    while left and fetch_add(done[phase : phase + 1], 0) < units:
        left -= 1
    return left > 0


@njit(**INNER)
def _block_moments(x, unit, sums, squares):
    """Sum a block's columns: distances from the block's first row, and their squares.

    That row is one of those that are summed. So the squares are at most 33 times those about the block's mean, and no
    data lose more than that in the difference of the two.
    """
    first, last, left, right = _part(unit, x.shape)
    width, whole = right - left, last - (last - first) % 4
    total, square, origin = sums[first // BLOCK, left:right], squares[first // BLOCK, left:right], x[first, left:right]
    total[:] = 0
    square[:] = 0
    for i in range(first, whole, 4):
        a, b, c, d = x[i, left:right], x[i + 1, left:right], x[i + 2, left:right], x[i + 3, left:right]
        for j in range(width):
            a0, b0, c0, d0 = a[j] - origin[j], b[j] - origin[j], c[j] - origin[j], d[j] - origin[j]
            total[j] += (a0 + b0) + (c0 + d0)
            square[j] += (a0 * a0 + b0 * b0) + (c0 * c0 + d0 * d0)
    for i in range(whole, last):
        a = x[i, left:right]
        for j in range(width):
            a0 = a[j] - origin[j]
            total[j] += a0
            square[j] += a0 * a0


@njit(**INNER)
def _merge_moments(x, sums, squares, left, right, mean, var):
    """Mean and variance of some columns from those of their blocks (Chan, Golub and LeVeque 1983)."""
    n, features = len(x), right - left
    mean[:] = 0
    var[:] = 0
    for k in range(len(sums)):
        size = min(BLOCK, n - k * BLOCK)
        origin, total = x[k * BLOCK, left:right], sums[k, left:right]
        for j in range(features):
            mean[j] += size * np.float64(origin[j]) + total[j]
    for j in range(features):
        mean[j] /= n
    for k in range(len(sums)):
        size = min(BLOCK, n - k * BLOCK)
        part = 1.0 / size
        origin, total, square = x[k * BLOCK, left:right], sums[k, left:right], squares[k, left:right]
        for j in range(features):
            step = total[j] * part  # from the origin to the block's mean
            off = (origin[j] - mean[j]) + step
            var[j] += (square[j] - total[j] * step) + size * off * off
    for j in range(features):
        var[j] = max(var[j] / n, 0.0)


@njit(**INNER)
def _fold_forward(weight, bias, mean, var, eps, centre, scale, shift):
    """The coefficients of each feature."""
    for j in range(len(centre)):
        factor = weight[j] / np.sqrt(var[j] + eps)
        centre[j] = mean[j]
        scale[j] = factor
        shift[j] = bias[j] - (mean[j] - centre[j]) * factor


@njit(**INNER)
def _forward_rows(x, unit, centre, scale, shift, y):
    """Each column of a block less its centre, times its scale, plus its shift."""
    first, last, left, right = _part(unit, x.shape)
    u, v, w = centre[left:right], scale[left:right], shift[left:right]
    for i in range(first, last):
        a, b = x[i, left:right], y[i, left:right]
        for j in range(right - left):
            b[j] = (a[j] - u[j]) * v[j] + w[j]


@parallel
def forward_table(
    x, weight, bias, mean, var, eps, measure, sums, squares, centre, scale, shift, y, claims, done, begin, end
):
    """Normalize each column, by its own mean and variance where these are to be measured.

    A thread goes back over the blocks in the order in which it came: those that it read last are still in its cache.
    """
    units, stripes = -(-len(x) // BLOCK) * -(-x.shape[1] // STRIPE), -(-x.shape[1] // MERGED)
    if measure:
        for k in range(units):
            unit = (begin + k) % units
            if _claim(claims[0], unit):
                _block_moments(x, unit, sums, squares)
                fetch_add(done[0:1], 1)
        if not _reached(done, 0, units):
            return
    for k in range(stripes):
        if _claim(claims[1], k):
            left, right = k * MERGED, min((k + 1) * MERGED, x.shape[1])
            part = slice(left, right)
            if measure:
                _merge_moments(x, sums, squares, left, right, mean[part], var[part])
            _fold_forward(weight[part], bias[part], mean[part], var[part], eps, centre[part], scale[part], shift[part])
            fetch_add(done[1:2], 1)
    if not _reached(done, 1, stripes):
        return
    for k in range(units):
        unit = (end - 1 - k) % units
        if _claim(claims[2], unit):
            _forward_rows(x, unit, centre, scale, shift, y)
            fetch_add(done[2:3], 1)


@njit(**INNER)
def _block_products(g, x, unit, centre, sums, products):
    """Sum a block's columns: gradients, and their products with the distances from the centre."""
    first, last, left, right = _part(unit, x.shape)
    width, whole = right - left, last - (last - first) % 2
    total, product, mean = sums[first // BLOCK, left:right], products[first // BLOCK, left:right], centre[left:right]
    total[:] = 0
    product[:] = 0
    for i in range(first, whole, 2):
        a, b, u, v = x[i, left:right], x[i + 1, left:right], g[i, left:right], g[i + 1, left:right]
        for j in range(width):
            total[j] += u[j] + v[j]
            product[j] += u[j] * (a[j] - mean[j]) + v[j] * (b[j] - mean[j])
    for i in range(whole, last):
        a, u = x[i, left:right], g[i, left:right]
        for j in range(width):
            total[j] += u[j]
            product[j] += u[j] * (a[j] - mean[j])


@njit(**INNER)
def _fold_backward(
    n, sums, products, left, right, weight, mean, var, eps, measured, dweight, dbias, centre, up, down, constant
):
    """The coefficients of some features' gradients, and the gradients of weight and bias."""
    features = right - left
    total, product = on_stack(features, np.float64), on_stack(features, np.float64)
    total[:] = 0
    product[:] = 0
    for k in range(len(sums)):
        a, b = sums[k, left:right], products[k, left:right]
        for j in range(features):
            total[j] += a[j]
            product[j] += b[j]
    for j in range(features):
        off = mean[j] - centre[j]
        rstd = 1 / np.sqrt(var[j] + eps)
        slope = (product[j] - off * total[j]) * rstd
        dbias[j] = total[j]
        dweight[j] = slope
        factor = weight[j] * rstd
        up[j] = factor
        down[j] = factor * slope * rstd / n if measured else 0.0
        constant[j] = factor * (off * slope * rstd - total[j]) / n if measured else 0.0


@njit(**INNER)
def _backward_rows(g, x, unit, centre, up, down, constant, dx, measured):
    """Each column's gradients times `up`, less its distances from the centre times `down`, plus a constant."""
    first, last, left, right = _part(unit, x.shape)
    u, v, w, z = centre[left:right], up[left:right], down[left:right], constant[left:right]
    for i in range(first, last):
        a, b, c = x[i, left:right], g[i, left:right], dx[i, left:right]
        if measured:
            for j in range(right - left):
                c[j] = (b[j] * v[j] - (a[j] - u[j]) * w[j]) + z[j]
        else:
            for j in range(right - left):
                c[j] = b[j] * v[j]


@parallel
def backward_table(
    g, x, n, weight, mean, var, eps, measured, sums, products, dweight, dbias, centre, up, down, constant, dx,
    claims, done, begin, end,
):  # fmt: skip
    """Gradients of each column, through its mean and variance where these were measured."""
    units, stripes = -(-len(x) // BLOCK) * -(-x.shape[1] // STRIPE), -(-x.shape[1] // MERGED)
    for k in range(units):
        unit = (begin + k) % units
        if _claim(claims[0], unit):
            _block_products(g, x, unit, centre, sums, products)
            fetch_add(done[0:1], 1)
    if not _reached(done, 0, units):
        return
    for k in range(stripes):
        if _claim(claims[1], k):
            left, right = k * MERGED, min((k + 1) * MERGED, x.shape[1])
            part = slice(left, right)
            _fold_backward(
                n, sums, products, left, right, weight[part], mean[part], var[part], eps, measured, dweight[part],
                dbias[part], centre[part], up[part], down[part], constant[part],
            )  # fmt: skip
            fetch_add(done[1:2], 1)
    if not _reached(done, 1, stripes):
        return
    for k in range(units):
        unit = (end - 1 - k) % units
        if _claim(claims[2], unit):
            _backward_rows(g, x, unit, centre, up, down, constant, dx, measured)
            fetch_add(done[2:3], 1)


# ---- features before other axes: (n, features, places) ----


@njit(**INNER)
def _row_sum(a, lanes):
    """The sum of a row."""
    total = 0.0
    whole = a.size - a.size % _LANES
    for first in range(0, whole, BLOCK * _LANES):
        lanes[:] = 0
        for k in range(first, min(first + BLOCK * _LANES, whole), _LANES):
            piece = a[k : k + _LANES]
            for j in range(_LANES):
                lanes[j] += piece[j]
        for j in range(_LANES):
            total += lanes[j]
    for k in range(whole, a.size):
        total += a[k]
    return total


@njit(**INNER)
def _row_squares(a, centre, lanes):
    """The sum of the squares of a row's distances from a centre."""
    total = 0.0
    whole = a.size - a.size % _LANES
    for first in range(0, whole, BLOCK * _LANES):
        lanes[:] = 0
        for k in range(first, min(first + BLOCK * _LANES, whole), _LANES):
            piece = a[k : k + _LANES]
            for j in range(_LANES):
                lanes[j] += (piece[j] - centre) * (piece[j] - centre)
        for j in range(_LANES):
            total += lanes[j]
    for k in range(whole, a.size):
        total += (a[k] - centre) * (a[k] - centre)
    return total


@njit(**INNER)
def _row_products(g, a, centre, lanes):
    """The sum of a row's gradients times the distances from a centre."""
    total = 0.0
    whole = a.size - a.size % _LANES
    for first in range(0, whole, BLOCK * _LANES):
        lanes[:] = 0
        for k in range(first, min(first + BLOCK * _LANES, whole), _LANES):
            piece, other = a[k : k + _LANES], g[k : k + _LANES]
            for j in range(_LANES):
                lanes[j] += other[j] * (piece[j] - centre)
        for j in range(_LANES):
            total += lanes[j]
    for k in range(whole, a.size):
        total += g[k] * (a[k] - centre)
    return total


@parallel
def forward_planes(x, weight, bias, mean, var, y, eps, measure, begin, end):
    """Normalizes each feature of planes, by its own mean and variance where these are to be measured."""
    n, _, places = x.shape
    lanes, real = on_stack(_LANES, x), on_stack(3, x)
    for k in range(begin, end):
        if measure:
            total = 0.0
            for i in range(n):
                total += _row_sum(x[i, k], lanes)
            mean[k] = total / (n * places)
            real[0] = mean[k]
            total = 0.0
            for i in range(n):
                total += _row_squares(x[i, k], real[0], lanes)
            var[k] = max(total / (n * places) - (mean[k] - real[0]) ** 2, 0.0)
        f = weight[k] / np.sqrt(var[k] + eps)
        real[0] = mean[k]
        real[1] = f
        real[2] = bias[k] - (mean[k] - real[0]) * f
        centre, scale, shift = real[0], real[1], real[2]
        for i in range(n):
            a, b = x[i, k], y[i, k]
            for j in range(places):
                b[j] = (a[j] - centre) * scale + shift


@parallel
def backward_planes(g, x, weight, mean, var, dx, dweight, dbias, eps, measured, begin, end):
    """Gradients of each feature of planes, through its mean and variance where these were measured."""
    n, _, places = x.shape
    lanes, real = on_stack(_LANES, x), on_stack(4, x)
    for k in range(begin, end):
        real[0] = mean[k]
        total = product = 0.0
        for i in range(n):
            total += _row_sum(g[i, k], lanes)
            product += _row_products(g[i, k], x[i, k], real[0], lanes)
        off = mean[k] - real[0]
        rstd = 1 / np.sqrt(var[k] + eps)
        product -= off * total
        dbias[k] = total
        dweight[k] = product * rstd
        f = weight[k] * rstd
        real[1] = f
        real[2] = f * product * rstd * rstd / (n * places)
        real[3] = f * (off * product * rstd * rstd - total) / (n * places)
        centre, up, down, constant = real[0], real[1], real[2], real[3]
        for i in range(n):
            a, b, c = x[i, k], g[i, k], dx[i, k]
            if measured:
                for j in range(places):
                    c[j] = (b[j] * up - (a[j] - centre) * down) + constant
            else:
                for j in range(places):
                    c[j] = b[j] * up
