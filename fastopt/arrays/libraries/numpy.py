"""NumPy's arrays, and what speaks the buffer protocol."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import CPU, Array, address_of, pin_of
from ..dtypes import BFLOAT16, COMPUTE_DTYPES


def view_numpy(x: np.ndarray, name: str) -> Array:
    """The view of an array of NumPy's."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: found a masked array, expected a plain one: x.filled(0), or x.data without the mask")
    flags, dtype = x.flags, x.dtype
    address = address_of(x) if flags.c_contiguous and dtype in COMPUTE_DTYPES and x.size else x.ctypes.data
    if dtype.kind == "V" and dtype.isnative and dtype.name == "bfloat16":
        dtype = BFLOAT16
    read_only_reason = "" if flags.writeable else "a read-only array"
    return Array(
        x, address, dtype, x.shape, None if flags.c_contiguous else x.strides, CPU, read_only_reason, pin_of(x)
    )


def buffer_of(x: Any) -> np.ndarray | None:
    """View an object with the buffer protocol as a NumPy array, which locks the buffer; None if it has none."""
    if isinstance(x, (str, bytes, bytearray)):
        return None
    try:
        buffer = memoryview(x)
    except TypeError:
        return None
    return np.asarray(buffer)
