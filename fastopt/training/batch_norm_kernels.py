"""The loops of batch normalization, compiled by Numba.

Sums are added in one order, whatever the number of threads: of blocks in the arrays' dtype, and of these in float64.
Examples by features are read block by block, as they lie in memory, planes feature by feature.
"""

import numpy as np
from numba import njit

from ..backends.numba_cache import INNER, compiled
from ..backends.numba_cpu.memory import fetch_add

BLOCK = 32  # rows that are summed in the arrays' dtype; a multiple of 4
STRIPE = 1024  # features of a block that a thread takes at a time
_LANES = 16  # sums side by side along a row, which the processor adds at once


# ---- examples by features: (n, features) ----


def cut(x):
    """The number of blocks of rows, of units of work, and of the elements of such a unit."""
    blocks = -(-len(x) // BLOCK)
    return blocks, blocks * -(-x.shape[1] // STRIPE), BLOCK * min(x.shape[1], STRIPE)


@njit(**INNER)
def _part(unit, shape):
    """The rows and columns of a block: begin and end of each."""
    stripes = -(-shape[1] // STRIPE)
    row, column = unit // stripes * BLOCK, unit % stripes * STRIPE
    return row, min(row + BLOCK, shape[0]), column, min(column + STRIPE, shape[1])


@compiled
def block_moments(x, sums, squares, counter, share):
    """Sum each block's columns: distances from the block's first row, and their squares.

    That row is one of those that are summed. So the squares are at most 33 times those about the block's mean, and no
    data lose more than that in the difference of the two.
    """
    units = len(sums) * -(-x.shape[1] // STRIPE)
    while True:
        begin = fetch_add(counter, share)
        if begin >= units:
            break
        for unit in range(begin, min(begin + share, units)):
            first, last, left, right = _part(unit, x.shape)
            width, whole = right - left, last - (last - first) % 4
            total, square, origin = (
                sums[first // BLOCK, left:right],
                squares[first // BLOCK, left:right],
                x[first, left:right],
            )
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


@compiled
def merge_moments(x, sums, squares, mean, var):
    """Mean and variance of each column from those of its blocks (Chan, Golub and LeVeque 1983)."""
    n, features = x.shape
    mean[:] = 0
    var[:] = 0
    for k in range(len(sums)):
        size = min(BLOCK, n - k * BLOCK)
        origin, total = x[k * BLOCK], sums[k]
        for j in range(features):
            mean[j] += size * np.float64(origin[j]) + total[j]
    for j in range(features):
        mean[j] /= n
    for k in range(len(sums)):
        size = min(BLOCK, n - k * BLOCK)
        part = 1.0 / size
        origin, total, square = x[k * BLOCK], sums[k], squares[k]
        for j in range(features):
            step = total[j] * part  # from the origin to the block's mean
            off = (origin[j] - mean[j]) + step
            var[j] += (square[j] - total[j] * step) + size * off * off
    for j in range(features):
        var[j] = max(var[j] / n, 0.0)


@compiled
def fold_forward(weight, bias, mean, var, eps, centre, scale, shift):
    """The coefficients of each feature."""
    for j in range(len(centre)):
        factor = weight[j] / np.sqrt(var[j] + eps)
        centre[j] = mean[j]
        scale[j] = factor
        shift[j] = bias[j] - (mean[j] - centre[j]) * factor


@compiled
def forward_rows(x, centre, scale, shift, y, counter, share):
    """Each column less its centre, times its scale, plus its shift."""
    units = -(-len(x) // BLOCK) * -(-x.shape[1] // STRIPE)
    while True:
        begin = fetch_add(counter, share)
        if begin >= units:
            break
        for unit in range(begin, min(begin + share, units)):
            first, last, left, right = _part(unit, x.shape)
            u, v, w = centre[left:right], scale[left:right], shift[left:right]
            for i in range(first, last):
                a, b = x[i, left:right], y[i, left:right]
                for j in range(right - left):
                    b[j] = (a[j] - u[j]) * v[j] + w[j]


@compiled
def block_products(g, x, centre, sums, products, counter, share):
    """Sum each block's columns: gradients, and their products with the distances from the centre."""
    units = len(sums) * -(-x.shape[1] // STRIPE)
    while True:
        begin = fetch_add(counter, share)
        if begin >= units:
            break
        for unit in range(begin, min(begin + share, units)):
            first, last, left, right = _part(unit, x.shape)
            width, whole = right - left, last - (last - first) % 2
            total, product, mean = (
                sums[first // BLOCK, left:right],
                products[first // BLOCK, left:right],
                centre[left:right],
            )
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


@compiled
def fold_backward(n, sums, products, weight, mean, var, eps, measured, dweight, dbias, centre, up, down, constant):
    """The coefficients of each feature's gradients, and the gradients of weight and bias."""
    features = len(centre)
    total, product = np.zeros(features, np.float64), np.zeros(features, np.float64)
    for k in range(len(sums)):
        a, b = sums[k], products[k]
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


@compiled
def backward_rows(g, x, centre, up, down, constant, dx, measured, counter, share):
    """Each column's gradients times `up`, less its distances from the centre times `down`, plus a constant."""
    units = -(-len(x) // BLOCK) * -(-x.shape[1] // STRIPE)
    while True:
        begin = fetch_add(counter, share)
        if begin >= units:
            break
        for unit in range(begin, min(begin + share, units)):
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


@compiled
def forward_planes(x, weight, bias, mean, var, y, eps, measure, counter, share):
    """Normalizes each feature of planes, by its own mean and variance where these are to be measured."""
    n, features, places = x.shape
    lanes, real = np.empty(_LANES, x.dtype), np.empty(3, x.dtype)
    while True:
        begin = fetch_add(counter, share)
        if begin >= features:
            break
        for k in range(begin, min(begin + share, features)):
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


@compiled
def backward_planes(g, x, weight, mean, var, dx, dweight, dbias, eps, measured, counter, share):
    """Gradients of each feature of planes, through its mean and variance where these were measured."""
    n, features, places = x.shape
    lanes, real = np.empty(_LANES, x.dtype), np.empty(4, x.dtype)
    while True:
        begin = fetch_add(counter, share)
        if begin >= features:
            break
        for k in range(begin, min(begin + share, features)):
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
