"""The effect of storage on an array, in NumPy: from the formats' definitions, sharing no code with the package."""

import numpy as np


def philox(counter, key):
    """Philox4x32-7 of Salmon et al. 2011: four words for each counter of four words."""
    a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (int(word) for word in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(7):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            (second >> np.uint64(32)) ^ b ^ np.uint64(k0),
            second & low,
            (first >> np.uint64(32)) ^ d ^ np.uint64(k1),
            first & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return a, b, c, d


def random16(elements, step, seed):
    """The 16 random bits of each element: of 128 in a row, 2l and 2l + 1 of the q-th 32 share word q of counter l."""
    elements = np.asarray(elements, np.uint64)
    counter = elements // np.uint64(128) * np.uint64(16) + elements % np.uint64(32) // np.uint64(2)
    low = np.uint64(0xFFFFFFFF)
    zeros = np.zeros_like(counter)
    words = philox(
        (counter & low, counter >> np.uint64(32), zeros + np.uint64(step % 2**32), zeros + np.uint64(step >> 32)),
        (seed % 2**32, seed >> 32),
    )
    word = np.choose((elements % np.uint64(128) // np.uint64(32)).astype(int), words)
    return (word >> (elements % np.uint64(2) * np.uint64(16)) & np.uint64(0xFFFF)).astype(np.uint32)


def dither(elements, step):
    """The additive recurrence, of 32 bits."""
    elements = np.asarray(elements, np.uint64)
    return (elements * np.uint64(0x6A09E667) + np.uint64(step) * np.uint64(0x9E3779B9)).astype(np.uint32)


def rounded(x, dtype, random=None):
    """float32 to a dtype of 16 bits: to nearest, or with 16 random bits up or down; exactly, in float64."""
    with np.errstate(all="ignore"):
        if random is None:
            return x.astype(dtype)
        mantissa, least = (7, -133) if dtype != np.float16 else (10, -24)
        exact = x.astype(np.float64)
        _, exponent = np.frexp(exact)
        unit = np.ldexp(1.0, np.maximum(exponent - 1 - mantissa, least))
        steps = np.abs(exact) / unit
        # Numbers that are not subnormal have fewer bits below the last place than there are random ones.
        below = 16 if dtype != np.float16 else np.where(np.abs(exact) < 2.0**-14, 16, 13)
        draws = random.astype(np.int64) >> np.where(below == 16, 0, 3)
        up = np.floor(steps - np.floor(steps) + draws / 2.0**below)
        if dtype == np.float16:  # below its normal numbers in float32, which rounds the sum
            sums = np.floor(steps.astype(np.float32) + draws.astype(np.float32) / np.float32(65536))
            up = np.where(below == 16, sums - np.floor(steps), up)
        result = np.copysign((np.floor(steps) + up) * unit, exact)
        return np.where(np.isfinite(x), result, x).astype(np.float32).astype(dtype)


_POSITIVE = np.array([2.0 ** (c // 8 - 31) * (1 + c % 8 / 8) for c in range(256)])
_SIGNED = np.array([2.0 ** (c // 8 - 15) * (1 + c % 8 / 8) - 2.0**-15 for c in range(128)])


def from_blocks(blocks, n, positive):
    """The values of 8-bit blocks."""
    table = np.asarray(blocks, np.uint8).reshape(-1, 260)
    scale = np.frombuffer(table[:, :4].tobytes(), np.float32)[:, None]
    codes = table[:, 4:]
    if positive:
        values = _POSITIVE.astype(np.float32)[codes] * np.abs(scale)
    else:
        values = np.where(codes & 0x80, np.float32(-1), np.float32(1)) * (
            _SIGNED.astype(np.float32)[codes & 0x7F] * np.abs(scale)
        )
    values[np.signbit(scale) & (codes == (0 if positive else 0x80))] = np.nan
    return values.reshape(-1)[:n]


def to_blocks(values, positive, elements, step):
    """8-bit blocks of values, rounded with dither; `elements` numbers the first, or all of whole blocks."""
    n = values.size
    x = np.zeros((-(-n // 256), 256), np.float32)
    x.reshape(-1)[:n] = values
    finite = np.isfinite(x)
    largest = np.abs(np.where(finite, x, 0)).max(1, keepdims=True)
    top = np.float32(1.875) if positive else np.float32(1.875 - 2.0**-15)
    with np.errstate(all="ignore"):
        none = largest < np.float32(2.0**-100)
        scale = np.where(none, np.float32(0), largest / top)
        inverse = np.where(none, np.float32(0), (top - np.float32(2.0**-20)) / largest)
        y = x * inverse
    numbers = elements if np.ndim(elements) else elements + np.arange(x.size)
    d = dither(numbers.reshape(x.shape), step) / 2.0**32  # in [0, 1)
    d = np.floor(d * 2**20) / 2**20
    magnitude = np.maximum(y, np.float32(2.0**-31)) if positive else np.abs(y) + np.float32(2.0**-15)
    _, exponent = np.frexp(np.where(finite, magnitude, 1).astype(np.float64))
    eighths = np.ldexp(np.where(finite, magnitude, 1).astype(np.float64), 4 - exponent)  # in [8, 16)
    code = np.floor(eighths + d).astype(int) + (exponent - 1) * 8  # 16 is 8 of the next power
    code = code - 8 + 8 * (31 if positive else 15)
    if not positive:
        code = code | np.signbit(y) << 7
    odd = ~finite.all(1, keepdims=True)
    nan_code = 0 if positive else 0x80
    code = np.where(odd & finite & (code == nan_code), 1 if positive else 0, code)
    code = np.where(finite, code, nan_code)
    blocks = np.zeros((len(x), 260), np.uint8)
    blocks[:, :4] = np.where(odd, -scale, scale).astype(np.float32).view(np.uint8)
    blocks[:, 4:] = code
    blocks[-1:, 4:].reshape(-1)[256 - (x.size - n) :] = 0
    return blocks.reshape(-1)
