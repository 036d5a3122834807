"""Internal. What sums of gradients travel in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .partial import Lanes

WIRES = ("float32", "bfloat16")
_CHUNK = 1 << 14  # elements that are rounded at once: they stay in cache


class Wire:
    """The form of sums on their way.

    Parameters
    ----------
    name : str
        One of `WIRES`.
    dtypes : mapping
        The dtypes in which gradients are computed.

    Raises
    ------
    ValueError
        Gradients of float64 parameters would travel in bfloat16.
    """

    def __init__(self, name: str, dtypes: Mapping[np.dtype, int]) -> None:
        self._rounds = name == "bfloat16"
        if self._rounds and np.dtype(np.float64) in dtypes:
            raise ValueError("wire: found 'bfloat16' with a float64 parameter, expected 'float32', which is exact")

    def lanes(self, sizes: Mapping[np.dtype, int]) -> Lanes:
        """Room for what comes."""
        return {dtype: np.zeros(size, np.uint16 if self._rounds else dtype) for dtype, size in sizes.items()}

    def narrowed(self, values: np.ndarray) -> np.ndarray:
        """Values as they travel: bfloat16 is the nearest one, of two the even."""
        if not self._rounds:
            return values
        rounded, odd = np.empty(values.size, np.uint16), np.empty(_CHUNK, np.uint32)
        for begin in range(0, values.size, _CHUNK):
            own, into = values[begin : begin + _CHUNK], rounded[begin : begin + _CHUNK]
            bits, sums = own.view(np.uint32), odd[: own.size]
            np.right_shift(bits, 16, out=sums)
            np.bitwise_and(sums, 1, out=sums)
            np.add(sums, 0x7FFF, out=sums)
            np.add(sums, bits, out=sums)
            np.right_shift(sums, 16, out=into, casting="unsafe")
            if np.isnan(own.max()):
                missing = np.isnan(own)
                into[missing] = (bits[missing] >> 16 | 0x40).astype(np.uint16)
        return rounded

    def widened(self, values: np.ndarray) -> np.ndarray:
        """What travelled as numbers that can be added."""
        return (values.astype(np.uint32) << 16).view(np.float32) if self._rounds else values
