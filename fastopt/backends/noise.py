"""Normal deviates by seed, step and the number of an element, as csrc/isa/random.h has them, bit for bit.

Plain functions that Numba compiles wherever they are called from, on whatever device.
"""

from __future__ import annotations

from math import sqrt

from numba.extending import register_jitable
from numpy import float32, int32, int64, uint64

from .convert import bits_of, float_of, philox_of

_HALF, _ONE = float32(0.5), float32(1)
_TWO_LN_2 = float32(1.38629436)
_BY_ANGLE = float32(2**-31)
# P(t) = -2 ln(1 + t)/t, S(v^2) = sin(pi/4 v)/v and C(v^2) = cos(pi/4 v), from the lowest power.
_P0, _P1, _P2, _P3 = float32(-1.99999989), float32(1.00000731), float32(-0.66670118), float32(0.49939820)
_P4, _P5, _P6, _P7 = float32(-0.39800331), float32(0.34501660), float32(-0.32445163), float32(0.20213793)
_S0, _S1, _S2, _S3 = float32(7.85398161e-1), float32(-8.07454325e-2), float32(2.49000102e-3), float32(-3.59504522e-5)
_C0, _C1, _C2, _C3 = float32(9.99999967e-1), float32(-3.08424166e-1), float32(1.58496842e-2), float32(-3.18727838e-4)


@register_jitable
def normal_pair(first, second):
    """Two standard normal deviates from two words, by Box and Muller (1958)."""
    scaled = float32(int32(int64(first) >> 1)) + _HALF
    above = bits_of(scaled) - 0x3F3504F3
    t = float_of((above & 0x7FFFFF) + 0x3F3504F3) - _ONE
    t2 = t * t
    halvings = float32(int32(31 - (above >> 23)))
    low = (t * _P3 + _P2) * t2 + (t * _P1 + _P0)
    high = (t * _P7 + _P6) * t2 + (t * _P5 + _P4)
    r = float32(sqrt(halvings * _TWO_LN_2 + (high * (t2 * t2) + low) * t))
    r = float_of(bits_of(r) ^ (int64(first) & 1) << 31)
    v = float32(int32(second | 1)) * _BY_ANGLE
    w = v * v
    sine = r * ((((w * _S3 + _S2) * w + _S1) * w + _S0) * v)
    cosine = r * (((w * _C3 + _C2) * w + _C1) * w + _C0)
    swap = int64(second) & 1
    return (sine if swap else cosine), (cosine if swap else sine)


@register_jitable
def normals_of(group, step, seed):
    """The deviates of elements 4*group to 4*group + 3."""
    w = philox_of(uint64(group) | uint64(1 << 63), step, seed)
    x, y = normal_pair(w[0], w[1])
    z, u = normal_pair(w[2], w[3])
    return x, y, z, u
