"""Arrays as runs of elements, as rows, as one run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .array import Array


def row_stride(array: Array) -> int | None:
    """The bytes from one row to the next, None where a row's own elements are not contiguous."""
    if array.dense:
        return math.prod(array.shape[1:]) * array.dtype.itemsize
    step = array.dtype.itemsize
    for n, stride in zip(reversed(array.shape[1:]), reversed(array.strides[1:]), strict=True):
        if n != 1 and stride != step:
            return None
        step *= n
    return array.strides[0]


def runs_of(arrays: Sequence[Array], ordered: bool = False) -> tuple[np.ndarray, list[int], int]:
    """Cuts a tensor into one-dimensional runs: as few as there can be, or `ordered` as the first array lies in memory.

    Returns
    -------
    addresses : numpy.ndarray, uint64, shape (runs, arrays)
        Where each run begins in each array.
    strides : list of int
        The runs' stride in each array, in bytes.
    length : int
        The runs' length.
    """
    base = [a.address for a in arrays]
    dims: list[tuple[int, tuple[int, ...]]] = []
    for n, *strides in zip(arrays[0].shape, *(a.strides for a in arrays), strict=True):
        if n == 0:
            return np.zeros((0, len(arrays)), np.uint64), [a.dtype.itemsize for a in arrays], 0
        if strides[0] < 0:  # walk the other way
            base = [b + s * (n - 1) for b, s in zip(base, strides, strict=True)]
            strides = [-s for s in strides]
        if n > 1:
            dims.append((n, tuple(strides)))
    dims.sort(key=lambda dim: -dim[1][0])
    merged: list[tuple[int, tuple[int, ...]]] = []
    for n, strides_ in dims:
        if merged and all(outer == n * inner for outer, inner in zip(merged[-1][1], strides_, strict=True)):
            merged[-1] = (merged[-1][0] * n, strides_)
        else:
            merged.append((n, strides_))
    if not merged:
        merged = [(1, tuple(a.dtype.itemsize for a in arrays))]
    inner = len(merged) - 1 if ordered else max(range(len(merged)), key=lambda k: merged[k][0])
    length, inner_strides = merged.pop(inner)
    addresses = np.array([base], dtype=np.int64)
    for n, strides_ in merged:
        steps = np.arange(n, dtype=np.int64)[:, None] * np.array(strides_, dtype=np.int64)
        addresses = (addresses[:, None, :] + steps).reshape(-1, len(arrays))
    return addresses.astype(np.uint64), list(inner_strides), length


def is_one_run(array: Array) -> bool:
    """Tell whether an array's elements are contiguous in some order of its axes."""
    step = array.dtype.itemsize
    for stride, n in sorted((s, n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride != step:
            return False
        step *= n
    return True
