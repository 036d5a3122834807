"""Types and arithmetic of PTX that NumPy lacks: exact fma, conversions, canonical NaNs."""

import ctypes
import ctypes.util
import struct

import numpy as np

F16, F32, F64 = np.dtype("f2"), np.dtype("f4"), np.dtype("f8")
U8, U16, U32, U64 = (np.dtype(f"u{n}") for n in (1, 2, 4, 8))
S64, BOOL = np.dtype("i8"), np.dtype(bool)
UNSIGNED = {1: U8, 2: U16, 4: U32, 8: U64}
SIGNED = {n: np.dtype(f"i{n}") for n in (1, 2, 4, 8)}

TYPES = {
    f"{kind}{8 * n}": np.dtype(f"{code}{n}") for kind, code in zip("bus", "uui", strict=True) for n in (1, 2, 4, 8)
}
TYPES |= {"f16": F16, "f32": F32, "f64": F64, "pred": BOOL, "bf16": U16, "f16x2": U32, "bf16x2": U32}

# float64 keeps the payload that the processor gives, as GPUs do.
_CANONICAL_NAN = {F16: np.uint16(0x7FFF), F32: np.uint32(0x7FFFFFFF)}


def bits(values: np.ndarray) -> np.ndarray:
    """Numbers as unsigned integers. Computed NaNs become the canonical one, as they would be on a GPU.

    Arrays have a float type only where they were computed; what was loaded or moved is integers, and keeps its bits.
    """
    kind = values.dtype
    if kind.kind == "u" or kind is BOOL:
        return values
    found = values.view(UNSIGNED[kind.itemsize])
    canonical = _CANONICAL_NAN.get(kind)
    if canonical is not None:
        nan = np.isnan(values)
        if nan.any():
            return np.where(nan, canonical, found)
    return found


def literal(text: str, dtype: np.dtype) -> np.ndarray:
    """A constant as an array of one element."""
    if text[:2] in ("0f", "0F"):
        number: int | float = int(text[2:], 16)
        if dtype.kind == "f" and dtype.itemsize == 8:
            number = struct.unpack("f", struct.pack("I", number))[0]
    elif text[:2] in ("0d", "0D"):
        number = int(text[2:], 16)
        if dtype is F32:
            number = struct.unpack("d", struct.pack("Q", number))[0]
    elif any(c in text for c in ".eE") and not text.lower().startswith("0x"):
        number = float(text)
    else:
        digits = text.rstrip("U").lower()
        sign = -1 if digits.startswith("-") else 1
        digits = digits.lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
        number = sign * int(digits, 8 if octal else 0)
    if isinstance(number, float):
        return np.array([number], dtype if dtype.kind == "f" else F64).view(dtype)
    if dtype is BOOL:
        return np.array([bool(number)])
    mask = (1 << 8 * dtype.itemsize) - 1
    return np.array([number & mask], UNSIGNED[dtype.itemsize]).view(dtype)


def extended(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The bits of numbers in a wider register: signed integers by their sign, all else by zeros."""
    if values.dtype.kind == "i":
        return values.astype(SIGNED[dtype.itemsize]).view(dtype)
    return bits(values).astype(dtype)


def flushed(values: np.ndarray) -> np.ndarray:
    """`.ftz`: subnormal float32 numbers become zeros of their sign."""
    if values.dtype is not F32:
        return values
    return np.where(np.abs(values) < np.float32(2.0**-126), np.copysign(np.float32(0), values), values)


# ---- fma ----


def odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The float64 sum rounded to odd: where inexact, the neighbour of odd significand; rounding it again is exact."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    error = np.where(np.isfinite(total), error, 0.0)
    words = total.view(S64)
    toward = np.where((error > 0) == (total > 0), 1, -1)
    return np.where((error != 0) & (words & 1 == 0), words + toward, words).view(F64)


_libm_fma = ctypes.CDLL(ctypes.util.find_library("m")).fma
_libm_fma.restype, _libm_fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a·b + c, rounded once."""
    if a.dtype is F32:  # the product of two float32 is exact in float64
        return odd_sum(a.astype(F64) * b.astype(F64), c.astype(F64)).astype(F32)
    if a.dtype is F16:
        return odd_sum(a.astype(F64) * b.astype(F64), c.astype(F64)).astype(F16)
    return np.array([_libm_fma(*numbers) for numbers in np.broadcast(a, b, c)], F64)


# ---- minimum, maximum ----


def minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The lesser, the other one where one is NaN; -0 is less than +0."""
    if a.dtype.kind != "f":
        return np.minimum(a, b)
    words = UNSIGNED[a.itemsize]
    return np.where(a == b, (a.view(words) | b.view(words)).view(a.dtype), np.fmin(a, b))


def maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The greater, the other one where one is NaN; +0 is greater than -0."""
    if a.dtype.kind != "f":
        return np.maximum(a, b)
    words = UNSIGNED[a.itemsize]
    return np.where(a == b, (a.view(words) & b.view(words)).view(a.dtype), np.fmax(a, b))


# ---- integers ----


def multiply_high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of the product."""
    if a.itemsize < 8:
        wide = (UNSIGNED if a.dtype.kind == "u" else SIGNED)[2 * a.itemsize]
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(8 * a.itemsize)).astype(a.dtype)
    x, y = a.view(U64), b.view(U64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    carried = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> half) + (carried >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def multiply_wide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The whole product, twice as wide."""
    wide = (UNSIGNED if a.dtype.kind == "u" else SIGNED)[2 * a.itemsize]
    return a.astype(wide) * b.astype(wide)


def _magnitude(a: np.ndarray) -> np.ndarray:
    return np.abs(a).view(UNSIGNED[a.itemsize])  # that of the least integer, too


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quotient rounded toward zero; all bits set where the divisor is 0, which PTX leaves open."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        quotient = a // safe
    else:
        quotient = (_magnitude(a) // _magnitude(safe)).view(a.dtype)
        quotient = np.where((a < 0) != (safe < 0), -quotient, quotient)
    return np.where(b == 0, ~np.zeros_like(quotient), quotient)


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Remainder of `divide`, with the sign of the dividend; the dividend where the divisor is 0."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, a, a - divide(a, safe) * safe)


def shift_left(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
    return a << np.minimum(amount, np.uint32(8 * a.itemsize)).astype(a.dtype)


def shift_right(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
    return a >> np.minimum(amount, np.uint32(8 * a.itemsize)).astype(a.dtype)


def count_ones(a: np.ndarray) -> np.ndarray:
    octets = np.ascontiguousarray(a).view(U8).reshape(-1, a.itemsize)
    return np.unpackbits(octets, axis=1).sum(axis=1, dtype=U32)


def highest_bit(a: np.ndarray) -> np.ndarray:
    """The place of the highest bit that is set; all bits set where none is."""
    place = np.zeros(a.shape, U32)
    rest = a.astype(U64)
    for step in (32, 16, 8, 4, 2, 1):
        more = rest >> np.uint64(step)
        place += np.where(more != 0, np.uint32(step), np.uint32(0))
        rest = np.where(more != 0, more, rest)
    return np.where(a == 0, np.uint32(0xFFFFFFFF), place)


def reverse_bits(a: np.ndarray) -> np.ndarray:
    octets = np.ascontiguousarray(a).view(U8).reshape(-1, a.itemsize)
    turned = np.packbits(np.unpackbits(octets[:, ::-1], axis=1)[:, ::-1].reshape(-1, 8 * a.itemsize), axis=1)
    return np.ascontiguousarray(turned[:, ::-1]).view(a.dtype)[:, 0]


# ---- conversions ----

_TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_INTEGRAL_OF = {"rn": "rni", "rz": "rzi", "rm": "rmi", "rp": "rpi"}


def saturated(a: np.ndarray) -> np.ndarray:
    """`.sat`: floats clipped to 0 and 1."""
    return np.where(a > 0, np.minimum(a, a.dtype.type(1)), a.dtype.type(0))  # of NaN: +0


def narrowed(a: np.ndarray, dtype: np.dtype, rounding: str) -> np.ndarray:
    """Float to narrower float."""
    found = a.astype(dtype)
    if rounding == "rn":
        return found
    back = found.astype(a.dtype)
    toward = {"rz": 0.0, "rm": -np.inf, "rp": np.inf}[rounding]
    beyond = {"rz": np.abs(back) > np.abs(a), "rm": back > a, "rp": back < a}[rounding]
    return np.where(beyond, np.nextafter(found, dtype.type(toward)), found)


def to_bfloat16(a: np.ndarray, rounding: str = "rn") -> np.ndarray:
    """float32 as the bits of bfloat16."""
    words = a.view(U32)
    if rounding == "rn":
        rounded = words + (np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1)))
    elif rounding == "rz":
        rounded = words
    else:
        raise NotImplementedError(f"bfloat16 rounded by .{rounding}")
    return np.where(np.isnan(a), np.uint16(0x7FFF), (rounded >> np.uint32(16)).astype(U16))


def from_bfloat16(words: np.ndarray) -> np.ndarray:
    return (words.astype(U32) << np.uint32(16)).view(F32)


def _to_integer(a: np.ndarray, dtype: np.dtype, integral: str) -> np.ndarray:
    whole = _TO_INTEGRAL[integral](a.astype(F64))
    limits = np.iinfo(dtype)
    # 2⁶³ and 2⁶⁴ are floats, the limits below them are not: clip by comparison.
    inside = (whole >= float(limits.min)) & (whole < float(limits.max) + (1.0 if dtype.itemsize < 8 else 0.0))
    found = np.where(inside, whole, 0.0).astype(dtype)
    found = np.where(whole >= float(limits.max), dtype.type(limits.max), found)
    found = np.where(whole < float(limits.min), dtype.type(limits.min), found)
    indefinite = 1 << (8 * dtype.itemsize - 1) if a.dtype is F64 or dtype.itemsize == 8 else 0
    nan = np.array([indefinite], UNSIGNED[dtype.itemsize]).view(dtype)
    return np.where(np.isnan(a), nan, found)


def converter(to: str, of: str, modifiers: tuple[str, ...]):
    """The function of a `cvt` from one type to another, both given by name."""
    target, source = TYPES[to], TYPES[of]
    saturate = "sat" in modifiers
    rounding = next((m for m in modifiers if m in _INTEGRAL_OF), "rn")
    integral = next((m for m in modifiers if m in _TO_INTEGRAL), None)

    def convert(a: np.ndarray) -> np.ndarray:
        if of == "bf16":
            a = from_bfloat16(a)
        if a.dtype.kind == "f" and target.kind != "f" and to != "bf16":
            return _to_integer(a, target, integral or _INTEGRAL_OF[rounding])
        if to == "bf16" or target.kind == "f":
            if a.dtype.kind == "f":
                if integral is not None:
                    a = _TO_INTEGRAL[integral](a)
                if saturate:
                    a = saturated(a)
            elif rounding != "rn":
                raise NotImplementedError(f"cvt.{rounding} from integers")
            elif target is not F64 and a.itemsize < 8:
                a = a.astype(F64)  # exact
            if to == "bf16":
                return to_bfloat16(a.astype(F32), rounding)
            return a.astype(target) if target.itemsize >= a.itemsize else narrowed(a, target, rounding)
        if saturate:
            limits = np.iinfo(target)
            low, high = max(limits.min, np.iinfo(source).min), min(limits.max, np.iinfo(source).max)
            a = np.clip(a, source.type(low), source.type(high))
        return a.astype(target)

    return convert
