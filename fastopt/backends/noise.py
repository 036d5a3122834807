"""Normal deviates by seed, step and the number of an element, as csrc/isa/random.h has them, bit for bit.

Plain functions that Numba compiles wherever they are called from, on whatever device.
"""

from __future__ import annotations

from math import sqrt

from numba.extending import register_jitable
from numpy import float32, int32, int64, uint64

from .convert import bits_of, float_of, philox_of

_ONE, _TOP, _TWO_LN_2 = float32(1), float32(31), float32(1.38629436)
_UNIT = float32(2**-31)
# P(t) = -2 ln(1 + t)/t, S(v^2) = sqrt(2) sin(pi/4 v)/v and C(v^2) = sqrt(2) cos(pi/4 v), from the lowest power.
_P0, _P1, _P2, _P3 = float32(-1.99999995), float32(1.00001101), float32(-0.666600387), float32(0.499310444)
_P4, _P5, _P6, _P7 = float32(-0.401941312), float32(0.349355195), float32(-0.286296434), float32(0.134119785)
_S0, _S1, _S2, _S3 = float32(1.11072072), float32(-0.114191193), float32(3.52121071e-3), float32(-5.07381055e-5)
_C0, _C1, _C2, _C3 = float32(1.41421352), float32(-0.436177762), float32(2.24151651e-2), float32(-4.50965121e-4)


@register_jitable
def normal_pair(first, second):
    """Two standard normal deviates from two words, by Box and Muller (1958)."""
    odd = bits_of(float32(int32(int64(first) | 1)))
    above = (odd & 0x7FFFFFFF) - 0x3F400000
    t = float_of((above & 0x7FFFFF) + 0x3F400000) - _ONE
    t2 = t * t
    p1 = ((t2 * _P7 + _P5) * t2 + _P3) * t2 + _P1
    p0 = ((t2 * _P6 + _P4) * t2 + _P2) * t2 + _P0
    square = (p1 * t + p0) * t + (_TOP - float32(int32(above >> 23))) * _TWO_LN_2
    r = float_of((odd & 0x80000000) | bits_of(float32(sqrt(square))))
    v = float32(int32(second)) * _UNIT
    w = v * v
    sine = (((w * _S3 + _S2) * w + _S1) * w + _S0) * v
    cosine = ((w * _C3 + _C2) * w + _C1) * w + _C0
    part = r * sine
    return r - part * sine, part * cosine


@register_jitable
def normals_of(group, step, seed):
    """The deviates of elements 4*group to 4*group + 3."""
    w = philox_of(uint64(group) | uint64(1 << 63), step, seed)
    x, y = normal_pair(w[0], w[1])
    z, u = normal_pair(w[2], w[3])
    return x, y, z, u
