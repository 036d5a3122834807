"""The kernels, as Python that Numba compiles for CUDA: `compiler.py` binds in what is in capitals.

A kernel is compiled for one rule and one way of storing each array; what depends on these is decided then, and nothing
is left of what is never reached. (Where a condition begins with one of these names, Numba does not even look at it.)
A thread holds LANES elements of each array in registers, which is 16 bytes of the
narrowest: it loads them, updates them, stores them. Runs that are misaligned or have gaps, and what remains at the end
of others, go element by element.
"""

from __future__ import annotations

from math import inf, isfinite, isnan, nan, sqrt
from typing import Any

import numpy as np
from numba import cuda
from numpy import float32, float64, int32, int64, uint8, uint16, uint32, uint64

from ...arrays.blocks import BLOCK_BYTES, POSITIVE, QUANT_BLOCK, SIGNED
from ...arrays.dtypes import BFLOAT16, CODES
from ...jobs.job import DUPLICATES, NORM_BLOCK, NORM_EPS
from ...jobs.storage import AVERAGE, CLIP, DITHER, KAHAN, MASTER, NOISE, PREPARED, STOCHASTIC, ZERO_GRADS
from ...rules.base import FIRST_STATE, GRADIENT, prologue
from ...rules.base import OWN as FIRST_OWN
from ..convert import (
    BELOW_TOP,
    DITHER_STEP,
    LARGEST_FINITE,
    LEAST_SIGNED,
    SMALLEST,
    TOP_POSITIVE,
    TOP_SIGNED,
    bits_of,
    decode_bfloat16,
    decode_positive,
    decode_signed,
    dither_bfloat16,
    dither_float16,
    dither_of,
    encode_among_nonfinite,
    encode_bfloat16,
    float_of,
    nan_code,
    philox_of,
)
from ..noise import normals_of
from .instructions import (
    add_bits,
    byte_of,
    decode_float16,
    encode_float16,
    load,
    load_tuple,
    load_vector,
    low_and_high_byte,
    store,
    store_vector,
    upper_bytes,
    varying,
    with_sign_of,
)

THREADS = 256  # of a thread block: each of its warps updates a block of 256 elements that share a scale at a time
BLOCK_ELEMENTS = 4096  # elements that a thread block updates, of one run
BLOCK_BITS = QUANT_BLOCK.bit_length() - 1
WARP = 32
EVERYONE = 0xFFFFFFFF  # of a warp

# ---- bound in ----

update: Any = None  # the rule's
by_row: Any = None  # the rule's, where it is of rows
fold: Any = None  # the rule's
fold_prologue: Any = None  # the rule's
REAL: Any = float32  # the compute type
OWN = 0  # its number among `CODES`
STORED: tuple[int, ...] = ()  # how each array is stored, by `CODES`
ARRAYS = 0
OPTIONS = 0  # of the storage
STATES = 0  # arrays, of one copy
COPIES = 1
INPUTS = 0  # arrays behind the states, which are only read
COEFFICIENTS: tuple[Any, ...] = ()  # as many zeros of the compute type as there are coefficients, of all copies
LANES = 1  # elements that a thread updates at a time
ALIGNED = False  # whether these lie one behind the other, at a multiple of 16 bytes
STRIDED = False  # whether a table of strides is there
TABLED = False  # whether coefficients are in a table
ROW_BYTES = 0  # of a row there
IN_BLOCKS = False  # whether a state is in blocks
IN_HALVES = True  # whether an array has elements of 16 bits
ROWS = False  # whether the gradient is of some rows
DUPLICATE_RULE = 0  # what several lookups of one row mean: the place in `DUPLICATES`
BY_ROW: tuple[int, ...] = ()  # how the state of a rule of rows is stored
BAGS = False  # whether several lookups may have one row of the gradient
WEIGHTED = False  # whether lookups have weights
BATCH = 1  # gradients, or sums of them, that a thread loads at a time
WHOLE = True  # whether there always are as many
OF_GROUPS = False  # whether it is groups of groups that are added up
HYPER: tuple[float, ...] = ()  # as many zeros as a row of hyper-parameters has
KEPT = 0  # numbers that the rule keeps from step to step
WIDTH = 0  # coefficients of a copy, with the prologue's
FOLDED = 0  # those of them that the rule's fold makes; the others its stage
SUMS = 0  # that the rule's stage measures
SINGLES = 0  # states of one number of a tensor, which its fold writes

_FLOAT64, _BFLOAT16 = CODES[np.dtype(float64)], CODES[BFLOAT16]
_OWN = (CODES[np.dtype(float32)], _FLOAT64)  # compute types

# ---- elements of one array, in registers: row j of x ----


def _size(code):
    """Bytes of an element that is in no block."""
    if code == _FLOAT64:
        return 8
    return 4 if code in _OWN else 2


def _decode(code, bits):
    """The float32 that 16 bits stand for."""
    return decode_bfloat16(bits) if code == _BFLOAT16 else decode_float16(bits)


def _encode(code, x):
    """The nearest 16 bits for a float32."""
    return encode_bfloat16(x) if code == _BFLOAT16 else encode_float16(x)


def _dither(code, x, random):
    """The 16 bits below or above a float32, by a random number of 16 bits."""
    return dither_bfloat16(x, random) if code == _BFLOAT16 else dither_float16(x, random)


def _read_aligned(x, j, code, address):
    if not IN_HALVES or code in _OWN:
        per = 16 // _size(code)
        for h in range(LANES // per):
            found = load_vector(address + 16 * h, REAL)
            for k in range(per):
                x[j, h * per + k] = found[k]
    else:
        words = load_vector(address, uint32)
        for k in range(LANES):
            x[j, k] = _decode(code, uint16(words[k // 2] >> uint32(16 * (k % 2))))


def _value(code, address):
    """The element at an address, in the compute type."""
    if not IN_HALVES or code in _OWN:
        return load(address, REAL)
    return REAL(_decode(code, load(address, uint16)))


def read(j, x, at, strides, i, n):
    """Loads elements i, i + 1, ... of array j; zeros from n on."""
    if j == GRADIENT and ROWS:  # it is summed
        return
    if IN_BLOCKS and STORED[j] >= SIGNED:
        _read_block(x, j, STORED[j] == POSITIVE, at[j] + _block_of(i) * BLOCK_BYTES, _within(i))
    elif ALIGNED:
        _read_aligned(x, j, STORED[j], at[j] + i * _size(STORED[j]))
    else:
        for k in range(LANES):
            x[j, k] = 0
            if i + k < n:
                x[j, k] = _value(STORED[j], at[j] + (i + k) * strides[j])


def _write_aligned(bits, x, j, code, address):
    if not IN_HALVES or code in _OWN:
        per = 16 // _size(code)
        for h in range(LANES // per):
            if per == 2:
                store_vector(address + 16 * h, (x[j, 2 * h], x[j, 2 * h + 1]))
            else:
                k = 4 * h
                store_vector(address + 16 * h, (x[j, k], x[j, k + 1], x[j, k + 2], x[j, k + 3]))
    else:
        store_vector(
            address,
            (
                _pair(bits[0], bits[1]),
                _pair(bits[2], bits[3]),
                _pair(bits[4], bits[5]),
                _pair(bits[6], bits[7]),
            ),
        )


def _pair(low, high):
    return uint32(uint32(low) | uint32(high) << uint32(16))


def write(j, x, at, strides, i, n, element, step, random):
    """Stores elements i, i + 1, ..., n - 1 of array j, of which the first has the number `element`."""
    code = STORED[j]
    if IN_BLOCKS and OPTIONS & STOCHASTIC:
        i = varying(i, n)  # else addresses are kept from the loads, in registers that a third block needs
    if j == GRADIENT and (ROWS or not OPTIONS & ZERO_GRADS):
        return
    if INPUTS and 0 <= j - FIRST_STATE - COPIES * STATES < INPUTS:
        return
    if IN_BLOCKS and code >= SIGNED:
        _write_block(x, j, code == POSITIVE, at[j] + _block_of(i) * BLOCK_BYTES, _within(i), element, step)
        return
    bits = cuda.local.array(LANES, uint16)
    if IN_HALVES and code not in _OWN:
        for k in range(LANES):
            if j == 0 and OPTIONS & STOCHASTIC:
                bits[k] = _dither(code, x[j, k], uint16(random[k // 2] >> uint32(16 * (k % 2))))
            elif FIRST_STATE <= j < FIRST_STATE + COPIES * STATES and OPTIONS & DITHER:
                bits[k] = _dither(code, x[j, k], dither_of(element + k, step) >> 16)
            else:
                bits[k] = _encode(code, x[j, k])
    if ALIGNED:
        _write_aligned(bits, x, j, code, at[j] + i * _size(code))
    else:
        # In blocks addresses would be kept from the loads, in registers that others need.
        stride = varying(strides[j], i) if IN_BLOCKS else strides[j]
        for k in range(LANES):
            if i + k < n:
                if not IN_HALVES or code in _OWN:
                    store(at[j] + (i + k) * stride, x[j, k])
                else:
                    store(at[j] + (i + k) * stride, bits[k])


# ---- blocks of 8-bit floats: a warp's elements are one ----


def _block_of(i):
    """The number of the block that element i is in; a division of what might be negative takes ten instructions."""
    return i >> BLOCK_BITS


def _within(i):
    """The place of element i in its block."""
    return i & (QUANT_BLOCK - 1)


def _read_block(x, j, positive, block, i):
    scale = float32(0)
    if i == 0:  # by the one that will store it: no other may read it as late as that
        scale = load(block, float32)
    scale = cuda.shfl_sync(EVERYONE, scale, 0)
    magnitude = abs(scale)
    less = -LEAST_SIGNED * magnitude
    for h in range(2):
        # What `decode_positive` and `decode_signed` compute, in fewer instructions.
        word = load(block + 4 + i + 4 * h, uint32)
        magnitudes = word & uint32(0x7F7F7F7F)
        for k in range(4):
            if positive:
                exponent = uint32(byte_of(word, k) << uint32(20))
                x[j, 4 * h + k] = float_of(exponent + uint32(0x30000000)) * magnitude
            else:
                code = low_and_high_byte(magnitudes, word, k)
                exponent = uint32(code << uint32(20))
                value = cuda.fma(float_of(exponent + uint32(0x38000000)), magnitude, less)
                x[j, 4 * h + k] = float_of(with_sign_of(value.view(uint32), code))
    if bits_of(scale) >> 31:
        for k in range(LANES):
            if load(block + 4 + i + k, uint8) == nan_code(positive):
                x[j, k] = np.nan


def _write_block(x, j, positive, block, i, element, step):
    largest = int32(0)
    for k in range(LANES):
        largest = max(largest, int32(bits_of(x[j, k]) & 0x7FFFFFFF))
    largest = largest_of_warp(largest)
    finite = largest <= LARGEST_FINITE
    if not finite:
        largest = int32(0)
        for k in range(LANES):
            magnitude = int32(bits_of(x[j, k]) & 0x7FFFFFFF)
            if magnitude <= LARGEST_FINITE:
                largest = max(largest, magnitude)
        largest = largest_of_warp(largest)
    # The first thread needs what `scale_of` has for the scale, all need what it has for the inverse: one division each.
    size, top = float_of(int64(largest)), TOP_POSITIVE if positive else TOP_SIGNED
    quotient = (size if i == 0 else top - BELOW_TOP) / (top if i == 0 else size)
    quotient = quotient if size >= SMALLEST else float32(0)
    inverse = cuda.shfl_sync(EVERYONE, quotient, 1)
    dither = dither_of(element, step)
    for k in (0, 4):
        a = _encode_above(x[j, k], inverse, dither, k, positive)
        b = _encode_above(x[j, k + 1], inverse, dither, k + 1, positive)
        c = _encode_above(x[j, k + 2], inverse, dither, k + 2, positive)
        d = _encode_above(x[j, k + 3], inverse, dither, k + 3, positive)
        store(block + 4 + i + k, upper_bytes(a, b, c, d))
    if not finite:
        for k in range(LANES):
            code = load(block + 4 + i + k, uint8)
            store(block + 4 + i + k, uint8(encode_among_nonfinite(code, x[j, k], positive)))
        quotient = -quotient
    if i == 0:
        store(block, quotient)


def largest_of_warp(largest):
    """The largest of a warp's numbers, of 31 bits."""
    for distance in (16, 8, 4, 2, 1):
        largest = max(largest, cuda.shfl_xor_sync(EVERYONE, largest, distance))
    return largest


def _encode_above(x, inverse, dither, k, positive):
    """The code of a thread's element k in the upper byte of a word, where the first is rounded by `dither`: what
    `encode_positive` and `encode_signed` compute, in fewer instructions.
    """
    upward = uint32(dither + uint32(k * DITHER_STEP)) >> uint32(8)
    scaled = float32(x * inverse)
    if positive:
        return uint32((uint32(max(scaled.view(int32), int32(0x30000000))) << uint32(4)) + upward)
    rounded = uint32(((abs(scaled) + LEAST_SIGNED).view(uint32) << uint32(4)) + upward)
    return with_sign_of(rounded, scaled.view(uint32))


# ---- the update of a thread's elements ----


# The rule's update of lane k: ``apply(x, k, p, g, c)`` returns the parameter, and leaves its states in x.
apply: Any = None


def _draw(random, element, step, seed):
    """Random numbers of 16 bits for a thread's elements, two in a word.

    They are drawn before anything is loaded, for what draws needs as many registers as what is loaded.
    """
    if not OPTIONS & STOCHASTIC:
        return
    seed = varying(seed, uint64(element))
    if ALIGNED and not ROWS and (element - int32(cuda.laneid) * LANES) % 128 == 0:  # the same for a whole warp
        _draw_together(random, element, step, seed)
        return
    before = element % 2  # elements of the first pair that are not the thread's
    for pair in range((LANES + before + 1) // 2):  # a loop, for unrolled it takes all registers
        e = element - before + 2 * pair
        word = _one_of(philox_of(e // 128 * 16 + e % 32 // 2, step, seed), e % 128 // 32)
        for k in range(LANES):
            if (k + before) // 2 == pair:
                half = uint32(word >> uint32(16 * ((k + before) % 2)) & uint32(0xFFFF))
                random[k // 2] = half if k % 2 == 0 else uint32(random[k // 2] | half << uint32(16))


def _draw_together(random, element, step, seed):
    """The same where a warp's elements are those of 32 counters: each thread has the words of one, of which it needs
    none itself.

    Of half a warp, thread 4q + r needs word q of threads 4r to 4r + 3. In each of four turns it reads another of these,
    so that a thread is read for one word at a time.
    """
    lane = int32(cuda.laneid) % 16
    first, second = lane // 4, lane % 4
    words = philox_of(element // 128 * 16 + lane, step, seed)
    a, b, c, d = _rotated(words, second)
    begin = int32(cuda.laneid) - lane + 4 * second
    found = (
        cuda.shfl_sync(EVERYONE, int32(a), begin + first),
        cuda.shfl_sync(EVERYONE, int32(d), begin + (first + 1) % 4),
        cuda.shfl_sync(EVERYONE, int32(c), begin + (first + 2) % 4),
        cuda.shfl_sync(EVERYONE, int32(b), begin + (first + 3) % 4),
    )
    words = _rotated(found, 4 - first)
    for q in range(LANES // 2):
        random[q] = uint32(words[q])


def _one_of(four, number):
    """One of four, without the branches that an index has."""
    a, b, c, d = four
    low, high = (b if number & 1 else a), (d if number & 1 else c)
    return high if number & 2 else low


def _rotated(words, by):
    """Four words, beginning with number `by`."""
    a, b, c, d = words
    if by & 1:
        a, b, c, d = b, c, d, a
    if by & 2:
        a, b, c, d = c, d, a, b
    return a, b, c, d


def _draw_normals(deviates, element, step, seed):
    """Normal deviates for a thread's elements: four have those of a counter."""
    drawn = normals_of(element // 4, step, seed)
    for k in range(LANES):
        e = element + k
        if k > 0 and e % 4 == 0:
            drawn = normals_of(e // 4, step, seed)
        deviates[k] = _one_of(drawn, e % 4)


def _parameter(x, k):
    """The parameter in lane k, with what its dtype could not hold."""
    if OPTIONS & MASTER:
        return x[FIRST_STATE + COPIES * STATES + INPUTS, k]
    if OPTIONS & KAHAN:
        return x[0, k] + x[FIRST_STATE + COPIES * STATES + INPUTS, k]
    return x[0, k]


def _prepare(x, k, scale, limit, deviates, deviation):
    """Scales and clips the gradient in lane k, and adds noise."""
    g = scale * x[GRADIENT, k]
    if OPTIONS & CLIP:
        g = limit if limit < g else g
        g = -limit if -limit > g else g
    if OPTIONS & NOISE:
        g = g + deviation * REAL(deviates[k])
    x[GRADIENT, k] = g


def update_lane(k, x, c, i, n, decay, rest, limit, deviates, deviation):
    """Updates lane k, which is of element i + k."""
    scale = c[0][0]
    if OPTIONS & PREPARED:
        _prepare(x, k, scale, limit, deviates, deviation)
        scale = REAL(1)
    companion = FIRST_STATE + COPIES * STATES + INPUTS
    weight_decay = c[0][1]
    if STATES == 0:
        weight_decay = varying(weight_decay, x[GRADIENT, k])
    p, g = prologue(_parameter(x, k), x[GRADIENT, k], scale, weight_decay, c[0][2])
    p = apply(x, k, p, g, c)
    x[0, k] = p
    if OPTIONS & AVERAGE:
        x[ARRAYS - 1, k] = decay * x[ARRAYS - 1, k] + rest * p
    if OPTIONS & MASTER:
        x[companion, k] = p
    elif OPTIONS & KAHAN:
        stored = _decode(STORED[0], _encode(STORED[0], p))
        x[companion, k] = p - stored if abs(stored) < np.inf else float32(0)  # infinity less infinity is none lost
    if OPTIONS & ZERO_GRADS:
        x[GRADIENT, k] = 0
    if IN_BLOCKS and not ALIGNED and i + k >= n:  # what remains of a run's last block
        for j in range(FIRST_STATE, FIRST_STATE + COPIES * STATES):
            x[j, k] = 0


# The three above for each array, or lane: loops that no compiler could leave rolled, for registers have no index.
read_all: Any = None
write_all: Any = None
update_lanes: Any = None


def update_elements(at, strides, i, n, c, element, step, seed, noise_seed, decay, rest, limit, deviation):
    """Updates a thread's elements i, i + 1, ..., as far as they are below n, of arrays that begin at the addresses
    `at`; the run's first element has the number `element`.
    """
    x, random = cuda.local.array((ARRAYS, LANES), REAL), cuda.local.array(LANES, uint32)
    _draw(random, element + i, step, seed)
    read_all(x, at, strides, i, n)
    _update_and_write(x, at, strides, i, n, c, element + i, step, random, noise_seed, decay, rest, limit, deviation)


def _update_and_write(x, at, strides, i, n, c, element, step, random, noise_seed, decay, rest, limit, deviation):
    deviates = cuda.local.array(LANES, float32)
    if OPTIONS & NOISE:
        _draw_normals(deviates, element, step, varying(noise_seed, uint64(element)))
    update_lanes(x, c, i, n, decay, rest, limit, deviates, deviation)
    write_all(x, at, strides, i, n, element, step, random)


update_aligned: Any = None  # `update_elements` of LANES elements, ALIGNED
update_any: Any = None  # the same of elements that need not be: of one, or of a block's part


# ---- runs ----


def _index(address, wide, i):
    """Element i of integers of 64 bits, or of 32."""
    return load(address + 8 * i, int64) if wide else int64(load(address + 4 * i, int32))


def find_run(firsts, wide, runs, at):
    """The run that holds part `at`, by bisection over the runs' first parts: empty runs hold none."""
    low, high = int64(0), runs - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _index(firsts, wide, middle) <= at:
            low = middle
        else:
            high = middle - 1
    return low


def map_chunks(first, run_of, runs, chunks):
    """Finds for each chunk the run that it is of, once: an update would have to wait for each step of the search."""
    chunk = int64(cuda.grid(1))
    if chunk < chunks:
        store(run_of + 4 * chunk, int32(find_run(first, True, runs, chunk)))


def update_runs(
    addresses,
    strides,
    offsets,
    elements,
    first,
    run_of,
    row_of,
    rows,
    runs,
    step,
    seed,
    noise_seed,
    decay,
    rest,
    limit,
    deviation,
    own,
):
    """Updates a chunk of a run.

    The first seven are the addresses of tables: of arrays' addresses and strides [arrays, runs], offsets and numbers of
    runs' first elements, runs' first chunks, chunks' runs, runs' rows of coefficients; `rows` of these themselves, each
    behind a step, which where it is negative has nothing updated. Where there are no rows, coefficients are `own`.
    """
    chunk = int64(cuda.blockIdx.x)
    run = int64(load(run_of + 4 * chunk, int32))
    c = own
    if TABLED:
        row = rows + ROW_BYTES * load(row_of + 4 * run, int32)
        step, c = load(row, int64), load_tuple(row + 8, COEFFICIENTS)
        if OPTIONS & NOISE:
            deviation = load(row + ROW_BYTES - 8, REAL)
        if step < 0:
            return
    begin = (chunk - load(first + 8 * run, int64)) * BLOCK_ELEMENTS
    offset = load(offsets + 8 * run, int64)
    n = min(load(offsets + 8 * (run + 1), int64) - offset - begin, BLOCK_ELEMENTS)
    element = offset + begin if elements == 0 else load(elements + 8 * run, int64) + begin
    at, stride = cuda.local.array(ARRAYS, int64), cuda.local.array(ARRAYS, int64)
    misaligned = int64(0)
    for j in range(ARRAYS):
        at[j] = load(addresses + 8 * (run + j * runs), int64)
        if STORED[j] >= SIGNED:
            at[j] += begin // QUANT_BLOCK * BLOCK_BYTES
        else:
            stride[j] = load(strides + 8 * (run + j * runs), int64) if STRIDED else _size(STORED[j])
            at[j] += begin * stride[j]
            misaligned |= at[j] % 16 | stride[j] ^ _size(STORED[j])
    thread = int64(cuda.threadIdx.x)
    if IN_BLOCKS:
        for i in range(thread * LANES, -(-n // QUANT_BLOCK) * QUANT_BLOCK, THREADS * LANES):
            if misaligned == 0 and i - _within(i) + QUANT_BLOCK <= n:  # the same for a whole warp
                update_aligned(at, stride, i, n, c, element, step, seed, noise_seed, decay, rest, limit, deviation)
            else:
                update_any(at, stride, i, n, c, element, step, seed, noise_seed, decay, rest, limit, deviation)
    else:
        together = WARP * LANES if OPTIONS & STOCHASTIC else LANES  # the threads of a warp exchange random numbers
        whole = n // together * together if misaligned == 0 else int64(0)
        for i in range(thread * LANES, whole, THREADS * LANES):
            update_aligned(at, stride, i, n, c, element, step, seed, noise_seed, decay, rest, limit, deviation)
        for i in range(whole + thread, n, THREADS):
            update_any(at, stride, i, n, c, element, step, seed, noise_seed, decay, rest, limit, deviation)


# ---- steps that a graph records: counted and folded on the device ----


def fold_steps(steps, scalars, hyper, rates, groups, parameters, rows, tensors, scale, skip, grad_scale):
    """Advances tensors' step counts and scalars, and folds a row of coefficients for each.

    The first six are the addresses of what parameters keep: steps, scalars, rows of hyper-parameters, where learning
    rates are that are on the device (and their bytes), parameters' groups, tensors' parameters. At `scale` is what
    gradients are to be divided by; at `skip`, whether nothing is to be done.
    """
    i = int64(cuda.grid(1))
    if i >= tensors:
        return
    row = rows + ROW_BYTES * i
    if skip and load(skip, float32) != 0:
        store(row, int64(-1))
        return
    if scale:
        grad_scale /= float64(load(scale, float32))
    at = int64(load(parameters + 4 * i, int32))
    group = int64(load(groups + 4 * at, int32))
    step = int64(load(steps + 8 * at, float64)) + 1
    store(steps + 8 * at, float64(step))
    store(row, step)
    for copy in range(COPIES):
        own = load_tuple(hyper + 8 * len(HYPER) * (group * COPIES + copy), HYPER)
        lr, rate = own[0], load(rates + 16 * group, int64)
        if rate:
            lr = float64(load(rate, float32)) if load(rates + 16 * group + 8, int64) == 4 else load(rate, float64)
        to = row + 8 + copy * WIDTH * _size(OWN)
        first = fold_prologue(lr, own, grad_scale)
        for k in range(FIRST_OWN):
            store(to + k * _size(OWN), REAL(first[k]))
        kept = scalars + 8 * KEPT * at
        found = fold_row(float64(step), lr, own, kept)
        for k in range(FOLDED):
            store(to + (FIRST_OWN + k) * _size(OWN), REAL(found[k]))
        for k in range(KEPT):
            store(kept + 8 * k, found[FOLDED + k])


# The rule's fold: ``fold_row(t, lr, own, kept)``, from a row of hyper-parameters and the address of what it keeps.
fold_row: Any = None


# ---- stages over tensors: a reading pass, and further coefficients from its sums ----

PARTS = THREADS  # partial sums of a tensor's blocks


def _element(j, at, strides, i):
    """Element i of array j, in the compute type."""
    code = STORED[j]
    if IN_BLOCKS and code >= SIGNED:
        block, positive = at[j] + _block_of(i) * BLOCK_BYTES, code == POSITIVE
        scale, number = load(block, float32), load(block + 4 + _within(i), uint8)
        value = decode_positive(number, abs(scale)) if positive else decode_signed(number, abs(scale))
        return float32(np.nan) if bits_of(scale) >> 31 and number == nan_code(positive) else value
    return _value(code, at[j] + i * strides[j])


def read_element(j, x, at, strides, i):
    """Loads an element of array j."""
    x[j, 0] = _element(j, at, strides, i)


read_elements: Any = None  # the same for each array

# ``add_products(x, p, g, c, before, partial)``: adds the products that the rule's stage measures to partial sums.
add_products: Any = None
# ``load_before(at)``: the single states that it measures with; `at` is the address of the addresses of single states.
load_before: Any = None
measure: Any = None  # the rule's stage's
# Its fold: ``stage(sums, at, c)`` returns new single states, those of `load_before`, and further coefficients. Over all
# tensors `at` is the address of the single states in float64.
stage: Any = None


def measure_runs(
    addresses, strides, offsets, elements, first, run_of, row_of, rows, runs, chunks, sums, singles, noise_seed, limit
):  # fmt: skip
    """Adds up what a stage measures of each of `chunks` chunks: sixteen partial sums each, a thread for each.

    The first eight are addresses as for `update_runs`; `singles` is as for `fold_sums`.
    """
    thread = int64(cuda.grid(1))
    lane, chunk = thread % 16, min(thread // 16, chunks - 1)  # all threads of a warp take part to the end
    run = int64(load(run_of + 4 * chunk, int32))
    tensor = int64(load(row_of + 4 * run, int32))
    row, before = rows + ROW_BYTES * tensor, load_before(singles + 8 * SINGLES * tensor)
    step, c = load(row, int64), load_tuple(row + 8, COEFFICIENTS)
    deviation = load(row + ROW_BYTES - 8, REAL) if OPTIONS & NOISE else REAL(0)
    begin = (chunk - load(first + 8 * run, int64)) * BLOCK_ELEMENTS
    offset = load(offsets + 8 * run, int64)
    n = min(load(offsets + 8 * (run + 1), int64) - offset - begin, BLOCK_ELEMENTS)
    element = offset + begin if elements == 0 else load(elements + 8 * run, int64) + begin
    at, stride = cuda.local.array(ARRAYS, int64), cuda.local.array(ARRAYS, int64)
    for j in range(ARRAYS):
        at[j] = load(addresses + 8 * (run + j * runs), int64)
        if STORED[j] >= SIGNED:
            at[j] += begin // QUANT_BLOCK * BLOCK_BYTES
        else:
            stride[j] = load(strides + 8 * (run + j * runs), int64) if STRIDED else _size(STORED[j])
            at[j] += begin * stride[j]
    x, partial = cuda.local.array((ARRAYS, 1), REAL), cuda.local.array(SUMS, float64)
    for k in range(SUMS):
        partial[k] = 0
    for i in range(lane, n, 16):
        read_elements(x, at, stride, i)
        scale = c[0][0]
        deviates = cuda.local.array(1, float32)
        if OPTIONS & NOISE:
            _draw_normals(deviates, element + i, step, noise_seed)
        if OPTIONS & PREPARED:
            _prepare(x, 0, scale, limit, deviates, deviation)
            scale = REAL(1)
        p, g = prologue(_parameter(x, 0), x[GRADIENT, 0], scale, c[0][1], c[0][2])
        add_products(x, p, g, c, before, partial)
    for k in range(SUMS):
        total = 0.0
        for other in range(16):
            total += cuda.shfl_sync(EVERYONE, partial[k], int32(cuda.laneid) // 16 * 16 + other)
        if lane == 0 and thread // 16 < chunks:
            store(sums + 8 * (chunk * SUMS + k), total)


def _total(parts, sums, k, first, last, thread):
    """Sum k of a tensor's chunks, for the first thread of a block: all of them call it, and share `parts`."""
    part = 0.0
    for chunk in range(first + thread, last, PARTS):
        part += load(sums + 8 * (chunk * SUMS + k), float64)
    parts[thread] = part
    cuda.syncthreads()
    total = 0.0
    if thread == 0:
        for other in range(min(int64(PARTS), last - first)):
            total += parts[other]
    cuda.syncthreads()
    return total


def fold_sums(firsts, rows, sums, singles):
    """Makes further coefficients of each tensor's sums, a thread block for each, in its row, and writes single states.

    `firsts` is the address of each tensor's first chunk, and of the end of the last's; `singles` that of a table of the
    addresses of single states [tensors, SINGLES]. A tensor without elements keeps these.
    """
    parts = cuda.shared.array(PARTS, float64)
    totals = cuda.local.array(SUMS, float64)
    tensor, thread = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x)
    first, last = load(firsts + 8 * tensor, int64), load(firsts + 8 * (tensor + 1), int64)
    for k in range(SUMS):
        totals[k] = _total(parts, sums, k, first, last, thread)
    row = rows + ROW_BYTES * tensor
    if thread == 0 and first < last and load(row, int64) >= 0:
        at = singles + 8 * SINGLES * tensor
        found = stage(totals, at, load_tuple(row + 8, COEFFICIENTS))
        for k in range(SINGLES):
            store(load(at + 8 * k, int64), REAL(found[k]))
        for k in range(WIDTH - FIRST_OWN - FOLDED):
            store(row + 8 + (FIRST_OWN + FOLDED + k) * _size(OWN), REAL(found[SINGLES + k]))


def add_sums(firsts, sums, totals, singles, before, first):
    """Adds up the sums of each tensor, a thread block for each, and copies the single states of the `first` one, if it
    is there.

    `firsts`, `sums` and `singles` are as for `fold_sums`; `totals` is the address of the tensors' sums, `before` of
    the copies, in float64.
    """
    parts = cuda.shared.array(PARTS, float64)
    tensor, thread = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x)
    begin, end = load(firsts + 8 * tensor, int64), load(firsts + 8 * (tensor + 1), int64)
    for k in range(SUMS):
        total = _total(parts, sums, k, begin, end, thread)
        if thread == 0:
            store(totals + 8 * (tensor * SUMS + k), total)
    if thread == 0 and tensor == first:
        for k in range(SINGLES):
            at = load(singles + 8 * (SINGLES * tensor + k), int64)
            store(before + 8 * k, float64(load(at, REAL)))


def fold_all(totals, count, before, first_row, firsts, rows, written, tensors):
    """Makes further coefficients of the sums of all tensors in the row of each, and writes single states, a thread for
    each tensor of a job.

    `totals` is the address of the sums of all `count` tensors of all jobs, `before` that of the single states,
    `first_row` that of the coefficients by which these go on, `written` that of a table like `singles`, 0 where another
    tensor writes the state; the others are as for `fold_sums`.
    """
    tensor = int64(cuda.grid(1))
    if tensor >= tensors or load(firsts + 8 * tensor, int64) == load(firsts + 8 * (tensor + 1), int64):
        return
    if load(first_row, int64) < 0:  # the step is skipped
        return
    sums = cuda.local.array(SUMS, float64)
    for k in range(SUMS):
        sums[k] = 0
        for other in range(count):
            sums[k] += load(totals + 8 * (other * SUMS + k), float64)
    row = rows + ROW_BYTES * tensor
    found = stage(sums, before, load_tuple(row + 8, COEFFICIENTS))
    for k in range(WIDTH - FIRST_OWN - FOLDED):
        store(row + 8 + (FIRST_OWN + FOLDED + k) * _size(OWN), REAL(found[SINGLES + k]))
    kept = stage(sums, before, load_tuple(first_row + 8, COEFFICIENTS))
    for k in range(SINGLES):
        at = load(written + 8 * (SINGLES * tensor + k), int64)
        if at:
            store(at, REAL(kept[k]))


# ---- norms ----


def square_sums(addresses, strides, offsets, blocks, sums, runs, count):
    """The sum of squares of each of `count` blocks of 4096 elements of runs: sixteen partial sums, a thread for each.

    `blocks` is the address of the number of blocks before each run.
    """
    thread = int64(cuda.grid(1))
    lane, block = thread % 16, min(thread // 16, count - 1)  # all threads of a warp take part to the end
    run = find_run(blocks, True, runs, block)
    first = (block - load(blocks + 8 * run, int64)) * NORM_BLOCK
    n = min(load(offsets + 8 * (run + 1), int64) - load(offsets + 8 * run, int64) - first, NORM_BLOCK)
    stride = load(strides + 8 * run, int64)
    address = load(addresses + 8 * run, int64) + first * stride
    partial = 0.0
    for i in range(lane, n, 16):
        x = float64(_value(STORED[0], address + i * stride))
        partial += x * x
    total = 0.0
    for k in range(16):
        total += cuda.shfl_sync(EVERYONE, partial, int32(cuda.laneid) // 16 * 16 + k)
    if lane == 0 and thread // 16 < count:
        store(sums + 8 * block, total)


# Sums of squares are added up exactly, and rounded once, as ``math.fsum`` does: as integers of LIMBS limbs of 32 bits,
# of which the first begins at 2^-1074, each in a word that has room for carries. The last word counts what is not
# finite: infinities, and 2^32 times the NaNs.
LIMBS = 68
ADDERS = 64  # threads that add up a part, each with limbs of its own
PART_SUMS = 1024  # sums that are a part
LIMITERS = 96  # threads that add up the limbs of parts, one for each limb
LOW = 0xFFFFFFFF
ONE = 0x3F800000  # the bits of 1 as float32

# What limits make of norms, in cells: a float32 that is not 0 where the step is skipped, and float64 numbers.
NORM, GIVEN, SCALES = 8, 16, 24  # the bytes of the global norm, of the scale that was given, of each norm's scale
NO_LIMIT, OF_ALL, OF_EACH = 0, 1, 2


def begin_limits(cells, divisor, skip, scale):
    """Writes the scale as it is given, over what is at `divisor`, and whether to skip by what is at `skip`.

    There are float32 numbers at these addresses, or nothing where they are 0.
    """
    if divisor:
        scale /= float64(load(divisor, float32))
    store(cells, load(skip, float32) if skip else float32(0))
    store(cells + GIVEN, scale)
    store(cells + SCALES, scale)


def add_exactly(sums, firsts, parts, groups, limbs):
    """Adds up the sums of a part, a thread block for each.

    The sums of `groups` groups are one behind the other; `firsts` and `parts` are the addresses of each group's first
    sum and first part, and of the ends. A part has LIMBS words at `limbs`.
    """
    own = cuda.shared.array((LIMBS, ADDERS), uint64)
    part, thread = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x)
    for k in range(LIMBS):
        own[k, thread] = uint64(0)
    group = find_run(parts, True, groups, part)
    begin = load(firsts + 8 * group, int64) + (part - load(parts + 8 * group, int64)) * PART_SUMS
    end = min(begin + PART_SUMS, load(firsts + 8 * (group + 1), int64))
    for i in range(begin + thread, end, ADDERS):
        _add_limbs(own, thread, load(sums + 8 * i, uint64))
    cuda.syncthreads()
    for k in range(thread, LIMBS, ADDERS):
        total = uint64(0)
        for other in range(ADDERS):
            total = uint64(total + own[k, (thread + other) % ADDERS])
        store(limbs + 8 * (part * LIMBS + k), total)


def _add_limbs(own, thread, bits):
    """Adds a float64 that is not negative, as its bits, to a thread's limbs."""
    exponent = int64(bits >> uint64(52)) & 2047
    fraction = uint64(bits & uint64((1 << 52) - 1))
    if exponent == 2047:
        own[LIMBS - 1, thread] += uint64(1 << 32) if fraction else uint64(1)
        return
    if exponent:
        fraction = uint64(fraction | uint64(1 << 52))
        exponent -= 1
    limb, shift = exponent >> 5, uint64(exponent & 31)
    low = uint64(uint64(fraction & uint64(LOW)) << shift)
    high = uint64(uint64(fraction >> uint64(32)) << shift)
    own[limb, thread] += uint64(low & uint64(LOW))
    own[limb + 1, thread] += uint64(uint64(low >> uint64(32)) + uint64(high & uint64(LOW)))
    own[limb + 2, thread] += uint64(high >> uint64(32))


def _rounded(limbs):
    """The float64 nearest to what limbs say, ties to even."""
    if limbs[LIMBS - 1]:
        return nan if limbs[LIMBS - 1] >> uint64(32) else inf
    carry, top = uint64(0), int64(0)
    for k in range(LIMBS - 1):
        carry = uint64(carry + limbs[k])
        limbs[k] = uint64(carry & uint64(LOW))
        carry = uint64(carry >> uint64(32))
        if limbs[k]:
            top = int64(k)
    upper = uint64(uint64(limbs[top] << uint64(32)) | (limbs[top - 1] if top > 0 else uint64(0)))
    lower = limbs[top - 2] if top > 1 else uint64(0)
    rest = uint64(0)
    for k in range(top - 2):
        rest = uint64(rest | limbs[k])
    if upper == 0:
        return 0.0
    last = 32 * top - 32  # what the lowest bit of `upper` counts is 2^(last - 1074)
    while not upper >> uint64(63):
        lower = uint64(lower << uint64(1))
        upper = uint64(uint64(upper << uint64(1)) | uint64(lower >> uint64(32)))
        lower = uint64(lower & uint64(LOW))
        last -= 1
    if last <= -11:  # no more than 53 bits from 2^-1074 on
        return uint64(upper >> uint64(-last)).view(float64)
    found = uint64(upper >> uint64(11))
    below, half = uint64(upper & uint64(0x7FF)), uint64(0x400)
    if below > half or (below == half and (lower | rest | uint64(found & uint64(1)))):
        found = uint64(found + uint64(1))
    found = uint64(found + uint64(uint64(last + 11) << uint64(52)))
    return inf if last + 11 >= 2046 else found.view(float64)


def limit_norms(limbs, parts, cells, limit, which, check):
    """The norm of each group, a thread block for each, and the scale that limits it.

    `which` is NO_LIMIT, or OF_ALL where the norm is the global one, or OF_EACH. With `check` a norm that is not finite
    has the step skipped; without a limit, a sum of squares that is not.
    """
    own = cuda.shared.array(LIMBS, uint64)
    group, thread = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x)
    if thread < LIMBS:
        total = uint64(0)
        for part in range(load(parts + 8 * group, int64), load(parts + 8 * (group + 1), int64)):
            total = uint64(total + load(limbs + 8 * (part * LIMBS + thread), uint64))
        own[thread] = total
    cuda.syncthreads()
    if thread == 0:
        finite, norm, given = own[LIMBS - 1] == 0, sqrt(_rounded(own)), load(cells + GIVEN, float64)
        if which != NO_LIMIT:
            finite = isfinite(norm)
        if check and not finite:
            add_bits(cells, uint32(ONE))
        norm *= abs(given)
        factor = 1.0
        if which == OF_ALL:
            store(cells + NORM, norm)
            factor = limit / (norm + NORM_EPS)
            factor = factor if factor < 1.0 or isnan(factor) else 1.0
        if which == OF_EACH:
            factor = 1.0 if norm <= limit else limit / norm
        store(cells + SCALES + 8 * group, given * factor)


def put_scales(rows, row_bytes, count, scale_of, cells):
    """Puts scales into rows of coefficients that were folded with a scale of 1, and has nothing updated in a step that
    is skipped; `scale_of` is the address of the number of each row's scale, 0 where all have the first.
    """
    i = int64(cuda.grid(1))
    if i < count:
        row, number = rows + row_bytes * i, int64(0)
        if scale_of:
            number = int64(load(scale_of + 4 * i, int32))
        scale = load(cells + SCALES + 8 * number, float64)
        store(row + 8, REAL(float64(load(row + 8, REAL)) * scale))
        if load(cells, float32) != 0:
            store(row, int64(-1))


# ---- rows ----

SUM, HOGWILD = DUPLICATES.index("sum"), DUPLICATES.index("hogwild")
DIGIT = 8  # bits that lookups are ordered by at a time
DIGITS = 1 << DIGIT  # of which a block's threads have one each
PART = 1024  # lookups that a thread block orders, each of its warps a stretch of them
GROUP_BITS = 5
GROUP = 1 << GROUP_BITS  # lookups of a row whose gradients are added one after the other, and sums of groups
SQUARES = 16  # partial sums of a row's squares, each a thread's

_WARPS, _ROUNDS = THREADS // WARP, PART // THREADS
_COUNTS = _WARPS * DIGITS
_UP_TO_GRADIENT = GRADIENT + 1  # arrays, where others are not needed


def begin_rows(indices, wide, rows, places, lookups, count, bad, told):
    """Takes lookups as they are, or each row once where their address is 0.

    Of one that is out of range the device is told at `bad`, and the host at `told`.
    """
    i = int64(cuda.grid(1))
    if i < lookups:
        row = _index(indices, wide, i) if indices else i
        if row < 0 or row >= count:  # more than one thread may say so; any of them will do
            store(bad, int64(1))
            store(told, row)
            store(told + 8, int64(1))
        store(rows + 8 * i, row)
        store(places + 8 * i, i)


def _digit_of(row, shift):
    return (row >> shift) & (DIGITS - 1)


def count_digits(rows, counters, lookups, blocks, shift):
    """Counts each digit among a thread block's lookups, in counters by digit and block."""
    counts = cuda.shared.array(DIGITS, int32)
    thread, block = int64(cuda.threadIdx.x), int64(cuda.blockIdx.x)
    counts[thread] = 0
    cuda.syncthreads()
    for i in range(block * PART + thread, min((block + 1) * PART, lookups), THREADS):
        cuda.atomic.add(counts, _digit_of(load(rows + 8 * i, int64), shift), int32(1))
    cuda.syncthreads()
    store(counters + 4 * (thread * blocks + block), counts[thread])


def _sum_before(sums, thread, number):
    """The sum of the numbers of a block's threads before this one; all of them call it, and `sums` then ends with the
    sum of all.
    """
    sums[thread] = number
    cuda.syncthreads()
    distance = 1
    while distance < THREADS:
        before = sums[thread - distance] if thread >= distance else int32(0)
        cuda.syncthreads()
        sums[thread] += before
        cuda.syncthreads()
        distance *= 2
    return int32(sums[thread] - number)


def add_up_counters(counters, totals, blocks):
    """Makes of each of a digit's counters the sum of those before, and their total: a thread block for each digit."""
    sums = cuda.shared.array(THREADS, int32)
    digit, thread = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x)
    total = int32(0)
    for first in range(0, blocks, THREADS):
        counter = counters + 4 * (digit * blocks + first + thread)
        there = first + thread < blocks
        before = _sum_before(sums, thread, load(counter, int32) if there else int32(0))
        if there:
            store(counter, int32(total + before))
        total = int32(total + sums[THREADS - 1])
        cuda.syncthreads()
    if thread == 0:
        store(totals + 4 * digit, total)


def _alike(digit, there):
    """The threads of the warp with the same digit, as bits; only of those that are there."""
    same = uint32(cuda.ballot_sync(EVERYONE, there))
    for k in range(DIGIT):
        bit = (digit >> k) & 1
        votes = uint32(cuda.ballot_sync(EVERYONE, bit != 0))
        same &= votes if bit else ~votes
    return same


def order_by_digit(rows, places, other_rows, other_places, counters, totals, lookups, blocks, shift):
    """Moves a thread block's lookups to where their digit's are to be; those of one digit stay in their order.

    Each warp counts the digits of its lookups, 32 at a time, and with that numbers those of the same digit.
    """
    sums, counts = cuda.shared.array(THREADS, int32), cuda.shared.array(_COUNTS, int32)
    found, numbers = cuda.local.array(_ROUNDS, int64), cuda.local.array(_ROUNDS, int32)
    thread, block = int64(cuda.threadIdx.x), int64(cuda.blockIdx.x)
    warp, lane = thread // WARP, thread % WARP
    for digit in range(lane, DIGITS, WARP):
        counts[warp * DIGITS + digit] = 0
    cuda.syncwarp()
    first = block * PART + warp * (PART // _WARPS) + lane
    for k in range(_ROUNDS):
        there = first + k * WARP < lookups
        found[k] = load(rows + 8 * (first + k * WARP), int64) if there else 0
        digit = _digit_of(found[k], shift)
        same = _alike(digit, there)
        earlier = int32(cuda.popc(same & uint32((1 << lane) - 1)))
        numbers[k] = counts[warp * DIGITS + digit] + earlier
        cuda.syncwarp()
        if there and earlier == 0:
            counts[warp * DIGITS + digit] += int32(cuda.popc(same))
        cuda.syncwarp()
    # From here on a thread's digit is its number.
    to = _sum_before(sums, thread, load(totals + 4 * thread, int32))
    to = int32(to + load(counters + 4 * (thread * blocks + block), int32))
    for other in range(_WARPS):
        count = counts[other * DIGITS + thread]
        counts[other * DIGITS + thread] = to
        to = int32(to + count)
    cuda.syncthreads()
    for k in range(_ROUNDS):
        if first + k * WARP < lookups:
            at = 8 * int64(counts[warp * DIGITS + _digit_of(found[k], shift)] + numbers[k])
            store(other_rows + at, found[k])
            store(other_places + at, load(places + 8 * (first + k * WARP), int64))


def count_rows(rows, counters, lookups):
    """Counts the rows that begin among a thread block's lookups, which are ordered."""
    sums = cuda.shared.array(THREADS, int32)
    thread, block, count = int64(cuda.threadIdx.x), int64(cuda.blockIdx.x), int32(0)
    for i in range(block * PART + thread, min((block + 1) * PART, lookups), THREADS):
        count = int32(count + int32(_is_first(rows, i)))
    _sum_before(sums, thread, count)
    if thread == 0:
        store(counters + 4 * block, sums[THREADS - 1])


def number_rows(rows, numbers, counters, total, lookups, width, bad, end):
    """Numbers rows in their order, where their lookups begin, by what `add_up_counters` made of their counts; at `end`
    it tells the elements of all, or none where an index is out of range.
    """
    sums = cuda.shared.array(THREADS, int32)
    thread, block = int64(cuda.threadIdx.x), int64(cuda.blockIdx.x)
    number = load(counters + 4 * block, int32)
    for first in range(block * PART, min((block + 1) * PART, lookups), THREADS):
        i = first + thread
        begins = i < lookups and _is_first(rows, min(i, lookups - 1))
        before = _sum_before(sums, thread, int32(begins))
        if begins:
            store(numbers + 8 * i, int64(number + before))
        number = int32(number + sums[THREADS - 1])
        cuda.syncthreads()
    if block == 0 and thread == 0:
        store(end, int64(0) if load(bad, int64) else int64(load(total, int32)) * width)


def find_bags(offsets, wide, bags, source, weights, lookups):
    """The bag of each lookup, and one over its bag's size where there is a place for that."""
    i = int64(cuda.grid(1))
    if i < lookups:
        bag = find_run(offsets, wide, bags, i)
        store(source + 8 * i, bag)
        if weights:
            end = _index(offsets, wide, bag + 1) if bag + 1 < bags else lookups
            size = max(end - _index(offsets, wide, bag), 1)
            store(weights + _size(OWN) * i, REAL(1) / REAL(size))


# ---- sums of a row's gradients ----
#
# They are a tree: GROUP lookups are added one after the other, then the groups' sums in the same way, until one is
# left. A thread adds up its elements; it loads BATCH gradients at a time, to wait for memory that much less often.


def _read_elements(x, j, code, address):
    """Loads LANES elements from an address on."""
    if ALIGNED:
        _read_aligned(x, j, code, address)
    else:
        x[j, 0] = _value(code, address)


def _write_elements(x, j, address):
    """Stores LANES elements in the compute type from an address on."""
    if ALIGNED:
        per = 16 // _size(OWN)
        for h in range(LANES // per):
            k = h * per
            if per == 2:
                store_vector(address + 16 * h, (x[j, k], x[j, k + 1]))
            else:
                store_vector(address + 16 * h, (x[j, k], x[j, k + 1], x[j, k + 2], x[j, k + 3]))
    else:
        store(address, x[j, 0])


def _within_batch(q, last):
    """Item q of a batch, or the last one that there is."""
    return q if WHOLE else min(q, last - 1)


def _add_batch(x, batch, q, last):
    """Adds to the gradient what is in a batch of items from q on, as far as there are some."""
    for b in range(BATCH):
        for k in range(LANES):
            x[GRADIENT, k] += batch[b, k] if WHOLE or q + b < last else REAL(-0.0)


def _add_lookups(x, address, stride, i, first, last, places, source, weights):
    """Adds to the gradient, for a thread's elements, what lookups have, each times its weight."""
    batch, weight = cuda.local.array((BATCH, LANES), REAL), cuda.local.array(BATCH, REAL)
    of = cuda.local.array(BATCH, int64)
    for q in range(first, last, BATCH):
        for b in range(BATCH):
            of[b] = load(places + 8 * _within_batch(q + b, last), int64)
        for b in range(BATCH):
            if WEIGHTED:
                weight[b] = load(weights + _size(OWN) * of[b], REAL)
            if BAGS:
                of[b] = load(source + 8 * of[b], int64)
        for b in range(BATCH):
            _read_elements(batch, b, STORED[GRADIENT], address + of[b] * stride + i * _size(STORED[GRADIENT]))
        if WEIGHTED:
            for b in range(BATCH):
                for k in range(LANES):
                    batch[b, k] *= weight[b]
        _add_batch(x, batch, q, last)


def _add_sums(x, sums, count, pitch, i):
    """Adds to the gradient, for a thread's elements, so many groups' sums, one every `pitch` bytes."""
    batch = cuda.local.array((BATCH, LANES), REAL)
    for first in range(0, count, BATCH):
        for b in range(BATCH):
            _read_elements(batch, b, OWN, sums + _within_batch(first + b, count) * pitch + i * _size(OWN))
        _add_batch(x, batch, first, count)


def _begin_sum(x):
    """Makes the gradient what changes nothing that is added to it."""
    for k in range(LANES):
        x[GRADIENT, k] = REAL(-0.0)


def sum_group_elements(address, stride, i, first, last, places, source, weights, pitch, to):
    """Adds up a thread's elements of a group: of lookups, or of sums from `address` on."""
    x = cuda.local.array((_UP_TO_GRADIENT, LANES), REAL)
    _begin_sum(x)
    if OF_GROUPS:
        _add_sums(x, address + first * pitch, last - first, pitch, i)
    else:
        _add_lookups(x, address, stride, i, first, last, places, source, weights)
    _write_elements(x, GRADIENT, to + i * _size(OWN))


sum_aligned: Any = None  # `sum_group_elements` of LANES elements, ALIGNED
sum_any: Any = None  # the same of one


def _first_of(rows, q):
    """The first of a row's lookups, of which q is one."""
    row, before, first = load(rows + 8 * q, int64), int64(-1), q
    while first - before > 1:
        middle = (before + first) >> 1
        if load(rows + 8 * middle, int64) == row:
            first = middle
        else:
            before = middle
    return first


def _end_of(rows, q, lookups):
    """The end of a row's lookups, of which q is one: it looks twice as far each time, then between."""
    row, last, end = load(rows + 8 * q, int64), q, q + 1
    while end < lookups and load(rows + 8 * end, int64) == row:
        last, end = end, end + 2 * (end - q)
    end = min(end, lookups)
    while end - last > 1:
        middle = (last + end) >> 1
        if load(rows + 8 * middle, int64) == row:
            last = middle
        else:
            end = middle
    return end


def sum_groups(
    addresses, strides, width, team, rows, places, lookups, bad, source, weights, sums, pitch, below, bits
):  # fmt: skip
    """Adds up the gradients of groups of `1 << bits` lookups of one row, which are GROUP, or GROUP groups of those
    `below`; a team of `1 << team` threads each.

    A row's groups begin at its first lookup. The sum of one that begins at lookup q is number `q >> bits`, at so many
    times `pitch` bytes from `sums` on.
    """
    thread, size = int64(cuda.grid(1)), int64(1) << bits
    number, threads = thread >> team, int64(1) << team
    lane, q = thread & (threads - 1), (number + 1) * size - 1  # of whichever group begins where its sum has this number
    if q >= lookups or load(bad, int64):
        return
    first = q - ((q - _first_of(rows, q)) & (size - 1))
    last = first + size
    if last > lookups or load(rows + 8 * (last - 1), int64) != load(rows + 8 * q, int64):
        return  # those left are no whole group
    if OF_GROUPS:
        address, stride = below, pitch
        first >>= bits - GROUP_BITS
        last = first + GROUP
    else:
        address, stride = load(addresses + 8 * GRADIENT, int64), load(strides + 8 * GRADIENT, int64)
    to, whole = sums + number * pitch, width & -LANES if (address | stride) & 15 == 0 else int64(0)
    i = lane * LANES
    while i < whole:
        sum_aligned(address, stride, i, first, last, places, source, weights, pitch, to)
        i += threads * LANES
    i = whole + lane
    while i < width:
        sum_any(address, stride, i, first, last, places, source, weights, pitch, to)
        i += threads


def _sum_gradients(x, address, stride, i, first, last, places, source, weights, sums, pitch, lookups):
    """Makes the gradient the sum of what a row's lookups have for a thread's elements.

    Of more lookups than a group has, the sums of whole groups are there: those of GROUP lookups from `sums` on, behind
    them those of GROUP times as many, and so on.
    """
    _begin_sum(x)
    last = varying(last, i)  # what is a row's alone would be kept in registers that its elements need
    count = last - first
    left = count if count <= GROUP else count & (GROUP - 1)
    _add_lookups(x, address, stride, i, last - left, last, places, source, weights)
    if DUPLICATE_RULE != SUM or count <= GROUP:
        return
    total, bits = cuda.local.array((_UP_TO_GRADIENT, LANES), REAL), int64(GROUP_BITS)
    while count >> bits:
        groups = count >> bits
        left = groups & (GROUP - 1)  # those before are in groups of groups
        _begin_sum(total)
        _add_sums(total, sums + ((first >> bits) + groups - left) * pitch, left, pitch, i)
        for k in range(LANES):
            x[GRADIENT, k] = total[GRADIENT, k] + x[GRADIENT, k]
        sums += (lookups >> bits) * pitch
        bits += GROUP_BITS


# ---- updates of rows ----


def sum_row_elements(address, stride, i, first, last, places, source, weights, sums, pitch, lookups, to):
    """Leaves the sum of a row's gradients, for a thread's elements, from the address `to` on."""
    x = cuda.local.array((_UP_TO_GRADIENT, LANES), REAL)
    _sum_gradients(x, address, stride, i, first, last, places, source, weights, sums, pitch, lookups)
    _write_elements(x, GRADIENT, to + i * _size(OWN))


def sum_rows(
    addresses, strides, width, team, rows, places, lookups, bad, source, weights, sums, pitch, numbers, to
):  # fmt: skip
    """Leaves the sum of each row's gradients at `to`, one behind the other by their numbers, a team of `1 << team`
    threads each.
    """
    thread, threads = int64(cuda.grid(1)), int64(1) << team
    u, lane = thread >> team, thread & (threads - 1)
    if u >= lookups or load(bad, int64) or not _is_first(rows, u):
        return
    address, stride = load(addresses + 8 * GRADIENT, int64), load(strides + 8 * GRADIENT, int64)
    end = _end_of(rows, u, lookups)
    to += load(numbers + 8 * u, int64) * width * _size(OWN)
    whole = width & -LANES if (address | stride | to) & 15 == 0 else int64(0)
    i = lane * LANES
    while i < whole:
        row_sum_aligned(address, stride, i, u, end, places, source, weights, sums, pitch, lookups, to)
        i += threads * LANES
    i = whole + lane
    while i < width:
        row_sum_any(address, stride, i, u, end, places, source, weights, sums, pitch, lookups, to)
        i += threads


row_sum_aligned: Any = None  # `sum_row_elements` of LANES elements, ALIGNED
row_sum_any: Any = None  # the same of one


def update_row_elements(
    at, strides, i, n, c, element, step, seed, noise_seed, decay, rest, limit, deviation, stride, first, last, places,
    source, weights, sums, pitch, lookups, to,
):  # fmt: skip
    """Updates a thread's elements of a row of n with the sum of its gradients, which by row is there already."""
    x, random = cuda.local.array((ARRAYS, LANES), REAL), cuda.local.array(LANES, uint32)
    _draw(random, element + i, step, seed)
    read_all(x, at, strides, i, n)
    if BY_ROW:
        _read_elements(x, GRADIENT, OWN, to + i * _size(OWN))
    else:
        _sum_gradients(x, at[GRADIENT], stride, i, first, last, places, source, weights, sums, pitch, lookups)
    _update_and_write(x, at, strides, i, n, c, element + i, step, random, noise_seed, decay, rest, limit, deviation)


def square_of(at, strides, i, n, c, element, step, noise_seed, limit, deviation, to):
    """The square of an element's gradient, after the prologue."""
    x = cuda.local.array((ARRAYS, LANES), REAL)
    read_all(x, at, strides, i, n)
    x[GRADIENT, 0] = load(to + i * _size(OWN), REAL)
    scale = c[0][0]
    deviates = cuda.local.array(1, float32)
    if OPTIONS & NOISE:
        _draw_normals(deviates, element + i, step, noise_seed)
    if OPTIONS & PREPARED:
        _prepare(x, 0, scale, limit, deviates, deviation)
        scale = REAL(1)
    g = float64(prologue(_parameter(x, 0), x[GRADIENT, 0], scale, c[0][1], c[0][2])[1])
    return g * g


def _mean_square(lane, begin, everyone, at, strides, width, c, element, step, noise_seed, limit, deviation, to):
    """The mean square of a row's gradient: a partial sum of each thread, added up by every one of the team, which is
    `everyone` of the warp from lane `begin` on.
    """
    partial, total = 0.0, 0.0
    for i in range(varying(lane, to), width, SQUARES):  # else what is the same for all rows would be kept, in registers
        partial += square_of(at, strides, i, width, c, element, step, noise_seed, limit, deviation, to)
    for k in range(SQUARES):
        total += cuda.shfl_sync(everyone, partial, begin + k)
    return REAL(total / width)


def update_rows(
    addresses, strides, width, team, rows, places, lookups, bad, source, weights, sums, pitch, totals, table, element,
    step, seed, noise_seed, decay, rest, limit, deviation, own,
):  # fmt: skip
    """Updates the rows that lookups name, ordered by row, a team of `1 << team` threads each.

    The first two are the addresses of tables: of each array's first row, and of the bytes from row to row. At `totals`
    a team of a rule of rows keeps the sum of a row's gradients: there may be fewer teams than lookups. At `table` are
    coefficients, as `update_runs` has them, or they are `own`.
    """
    c = own
    if TABLED:
        step, c = load(table, int64), load_tuple(table + 8, COEFFICIENTS)
        if OPTIONS & NOISE:
            deviation = load(table + ROW_BYTES - 8, REAL)
        if step < 0:
            return
    u = int64(cuda.grid(1)) >> team
    to = totals + u * pitch
    while u < lookups:
        # Whoever has a row's first lookup has all of them, unless each is by itself.
        if not load(bad, int64) and (DUPLICATE_RULE == HOGWILD or _is_first(rows, u)):
            update_row(
                u, addresses, strides, width, team, rows, places, lookups, source, weights, sums, pitch, to, element,
                step, seed, noise_seed, decay, rest, limit, deviation, c,
            )  # fmt: skip
        u += int64(cuda.gridsize(1)) >> team


def _is_first(rows, u):
    """Whether a row's lookups begin with u."""
    return u == 0 or load(rows + 8 * u, int64) != load(rows + 8 * (u - 1), int64)


def update_row(
    u, addresses, strides, width, team, rows, places, lookups, source, weights, sums, pitch, to, element,
    step, seed, noise_seed, decay, rest, limit, deviation, own,
):  # fmt: skip
    """Updates the row whose lookups begin with u."""
    row, threads = load(rows + 8 * u, int64), int64(1) << team
    lane, end = int64(cuda.threadIdx.x) & (threads - 1), u + 1
    if DUPLICATE_RULE != HOGWILD:
        end = _end_of(rows, u, lookups)
    at, inner = cuda.local.array(ARRAYS, int64), cuda.local.array(ARRAYS, int64)
    misaligned = int64(0)
    for j in range(ARRAYS):
        at[j] = load(addresses + 8 * j, int64)
        inner[j] = _size(STORED[j])
        misaligned |= at[j] | load(strides + 8 * j, int64)
        if j != GRADIENT:
            at[j] += row * load(strides + 8 * j, int64)
    stride = load(strides + 8 * GRADIENT, int64)
    element += row * width
    whole = width & -LANES if misaligned & 15 == 0 else int64(0)
    first = u
    while first < end:
        last, c = end if DUPLICATE_RULE == SUM else first + 1, own
        if BY_ROW:
            i = lane * LANES
            while i < whole:
                row_sum_aligned(at[GRADIENT], stride, i, first, last, places, source, weights, sums, pitch, lookups, to)
                i += threads * LANES
            i = whole + lane
            while i < width:
                row_sum_any(at[GRADIENT], stride, i, first, last, places, source, weights, sums, pitch, lookups, to)
                i += threads
            begin = int32(cuda.laneid) & -SQUARES
            everyone = int32(((1 << SQUARES) - 1) << int64(begin))  # of the team
            cuda.syncwarp(everyone)  # others read elements for their squares than wrote them, here or before
            square = _mean_square(
                lane, begin, everyone, at, inner, width, own, element, step, noise_seed, limit, deviation, to
            )
            rate = REAL(0)
            if lane == 0:
                address = load(addresses + 8 * ARRAYS, int64) + row * load(strides + 8 * ARRAYS, int64)
                state, rate = by_row(square, _value(BY_ROW[0], address), *own[0][FIRST_OWN:])
                if BY_ROW[0] in _OWN:
                    store(address, state)
                else:
                    store(address, _encode(BY_ROW[0], state))
            c = ((own[0][0], own[0][1], own[0][2], cuda.shfl_sync(everyone, rate, begin)),)
            cuda.syncwarp(everyone)  # and before others write the row
        i = lane * LANES
        while i < whole:
            update_aligned(
                at, inner, i, width, c, element, step, seed, noise_seed, decay, rest, limit, deviation, stride,
                first, last, places, source, weights, sums, pitch, lookups, to,
            )  # fmt: skip
            i += threads * LANES
        i = whole + lane
        while i < width:
            update_any(
                at, inner, i, width, c, element, step, seed, noise_seed, decay, rest, limit, deviation, stride,
                first, last, places, source, weights, sums, pitch, lookups, to,
            )  # fmt: skip
            i += threads
        first = last


def scale(addresses, strides, offsets, runs, count, factor):
    """Multiplies each of `count` elements of runs."""
    i = int64(cuda.grid(1))
    if i < count:
        run = find_run(offsets, True, runs, i)
        address = load(addresses + 8 * run, int64) + (i - load(offsets + 8 * run, int64)) * load(
            strides + 8 * run, int64
        )
        x = REAL(factor) * _value(STORED[0], address)
        if STORED[0] in _OWN:
            store(address, x)
        else:
            store(address, _encode(STORED[0], x))
