"""Conversions of one element between float32 and fewer bits, as csrc/isa/convert.h has them, bit for bit.

Plain functions that Numba compiles wherever they are called from, on whatever device. Bits are computed with as int64,
in which nothing overflows, and cast to the width they have: of mixed widths Numba would make floats.
"""

from __future__ import annotations

from numba.extending import register_jitable
from numpy import float32, int32, int64, uint8, uint16, uint32, uint64

_HALF = float32(0.5)
_SMALLEST_NORMAL_FLOAT16 = float32(2**-14)
_FLOAT16_UNITS = float32(2**24)
_RANDOM_UNIT = float32(2**-16)
_ZERO = float32(0)

# Constants of states in blocks.
TOP_POSITIVE = float32(1.875)
TOP_SIGNED = float32(1.875 - 2**-15)
BELOW_TOP = float32(2**-20)  # elements are scaled to so much less than the largest code, which rounding must not pass
SMALLEST = float32(2**-100)  # a block with no larger element becomes zero
LEAST_SIGNED = float32(2**-15)
_NAN_POSITIVE, _NAN_SIGNED = 0, 0x80  # codes that stand for NaN where the block's scale is negative
LARGEST_FINITE = 0x7F7FFFFF  # in bits

DITHER_STEP = 0x6A09E667  # from an element to the next


@register_jitable
def bits_of(x):
    """The bits of a float32."""
    return int64(float32(x).view(uint32))


@register_jitable
def float_of(bits):
    """The float32 of these bits."""
    return uint32(bits).view(float32)


# ---- bfloat16: the upper half of a float32 ----


@register_jitable
def decode_bfloat16(h):
    """A bfloat16's bits as a float32."""
    return float_of(int64(h) << 16)


@register_jitable
def _upper_half(u, rounded):
    """Return the rounded bits, or a NaN if u is NaN."""
    quiet = uint32(u | 0x400000)
    return uint16((quiet if u & 0x7FFFFFFF > 0x7F800000 else uint32(rounded)) >> 16)


@register_jitable
def encode_bfloat16(x):
    """A float32 as a bfloat16's bits, rounded to nearest, ties to even."""
    u = bits_of(x)
    return _upper_half(u, u + 0x7FFF + (u >> 16 & 1))


@register_jitable
def dither_bfloat16(x, random):
    """A float32 as bfloat16, rounded up with the probability that its lower bits are of one.

    `random` is a random number of 16 bits.
    """
    u = bits_of(x)
    return _upper_half(u, u + int64(random))


# ---- float16 ----


@register_jitable
def decode_float16(h):
    """A float16's bits as a float32."""
    magnitude = (int64(h) & 0x7FFF) << 13
    exponent = magnitude & 0x0F800000
    subnormal = bits_of(float_of(magnitude + 0x38800000) - _SMALLEST_NORMAL_FLOAT16)
    normal = magnitude + (0x70000000 if exponent == 0x0F800000 else 0x38000000)
    return float_of((subnormal if exponent == 0 else normal) | (int64(h) & 0x8000) << 16)


@register_jitable
def _finish_float16(u, a, subnormal, normal):
    found = subnormal if a < 0x38800000 else normal
    beyond = 0x7E00 if a > 0x7F800000 else 0x7C00
    return uint16((found if a < 0x47800000 else beyond) | (u >> 16 & 0x8000))


@register_jitable
def encode_float16(x):
    """A float32 as a float16's bits, rounded to nearest, ties to even."""
    u = bits_of(x)
    a = u & 0x7FFFFFFF
    # A subnormal number is rounded by an addition whose last place is its last place.
    subnormal = bits_of(float_of(a) + _HALF) - 0x3F000000
    return _finish_float16(u, a, subnormal, (a - 0x38000000 + 0xFFF + (a >> 13 & 1)) >> 13)


@register_jitable
def dither_float16(x, random):
    """A float32 as float16, rounded up with the probability that its lower bits are of one.

    `random` is a random number of 16 bits.
    """
    u = bits_of(x)
    a = u & 0x7FFFFFFF
    units = (float_of(a) if a < 0x38800000 else _ZERO) * _FLOAT16_UNITS
    subnormal = int64(int32(units + float32(int32(random)) * _RANDOM_UNIT))
    return _finish_float16(u, a, subnormal, (a - 0x38000000 + (int64(random) >> 3)) >> 13)


# ---- numbers to round by ----


@register_jitable
def wide_product(a, b):
    """The upper and the lower half of the product of two uint32."""
    product = uint64(a) * uint64(b)
    return uint32(product >> uint64(32)), uint32(product)


@register_jitable
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-7 (Salmon et al. 2011): four words from a counter of four and a key of two, all uint32."""
    for _ in range(7):
        high_0, low_0 = wide_product(c0, uint32(0xD2511F53))
        high_2, low_2 = wide_product(c2, uint32(0xCD9E8D57))
        c0, c2 = uint32(high_2 ^ c1 ^ k0), uint32(high_0 ^ c3 ^ k1)
        c1, c3 = low_2, low_0
        k0, k1 = uint32(int64(k0) + 0x9E3779B9), uint32(int64(k1) + 0xBB67AE85)
    return c0, c1, c2, c3


@register_jitable
def philox_of(counter, step, seed):
    """Its words for a counter's elements.

    Of 128 elements in a row, 2l and 2l + 1 of the q-th 32 have the lower and the upper half of word q of the l-th
    counter's.
    """
    counter, step, high = uint64(counter), uint64(step), uint64(32)
    return philox(
        uint32(counter), uint32(counter >> high), uint32(step), uint32(step >> high), uint32(seed), uint32(seed >> high)
    )


@register_jitable
def dither_of(element, step):
    """32 bits, the upper of which round a state up or down: an additive recurrence over elements (the square root of 2)
    and steps (the golden ratio), which is fair to each element over time.
    """
    return uint32((int64(element) & 0xFFFFFFFF) * DITHER_STEP + (int64(step) & 0xFFFFFFFF) * 0x9E3779B9)


# ---- 8 bits, in blocks that share a scale ----


@register_jitable
def scale_of(largest, positive):
    """A block's scale, from its largest magnitude, and what elements are multiplied by before they are encoded."""
    top = TOP_POSITIVE if positive else TOP_SIGNED
    if largest < SMALLEST:
        return _ZERO, _ZERO
    return largest / top, (top - BELOW_TOP) / largest


@register_jitable
def decode_positive(code, scale):
    """The value of a code in a block of numbers that are never negative."""
    return float_of(int64(code) << 20 | 0x30000000) * scale


@register_jitable
def decode_signed(code, scale):
    """The value of a code in a block of numbers that may be negative."""
    magnitude = (float_of((int64(code) & 0x7F) << 20 | 0x38000000) - LEAST_SIGNED) * scale
    return float_of(bits_of(magnitude) | (int64(code) & 0x80) << 24)


@register_jitable
def encode_positive(x, inverse, dither):
    """The code of a number that is never negative, rounded by dither of 20 bits."""
    a = max(int64(float32(x * inverse).view(int32)), 0x30000000)
    return uint8(uint32(a + int64(dither)) >> 20)


@register_jitable
def encode_signed(x, inverse, dither):
    """The code of a number that may be negative, rounded by dither of 20 bits."""
    u = bits_of(x * inverse)
    a = bits_of(float_of(u & 0x7FFFFFFF) + LEAST_SIGNED) + int64(dither)
    return uint8((uint32(a) >> 20 & 0x7F) | (u >> 24 & 0x80))


@register_jitable
def nan_code(positive):
    """The code that stands for NaN where the block's scale is negative."""
    return uint8(_NAN_POSITIVE if positive else _NAN_SIGNED)


@register_jitable
def encode_among_nonfinite(code, x, positive):
    """Return the code of an element in a block that is not all finite."""
    if (bits_of(x) & 0x7FFFFFFF) > LARGEST_FINITE:
        return nan_code(positive)
    if code == nan_code(positive):  # the next larger one, or zero for minus zero
        return uint8(1 if positive else 0)
    return code
