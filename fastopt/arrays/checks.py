"""Checks of arrays: that they can be one update's, that they can be written."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from ..errors import BackendUnavailable
from .array import Array
from .dtypes import COMPUTE_DTYPES, STORED_DTYPES, dtype_name


def require_backend(name: str, x: Any, kind: str) -> None:
    """Check that there is a backend for devices of that kind.

    Raises
    ------
    BackendUnavailable
        There is none.
    """
    if kind not in ("cpu", "cuda"):
        raise BackendUnavailable(
            f"{name}: found {type(x).__module__.split('.')[0]} array on {kind}, and no backend works there; move it to "
            "the CPU (torch: .cpu()) or to a CUDA device"
        )


def check_tensor(
    arrays: Sequence[Array],
    names: Sequence[str],
    read_only: Container[int] = (1,),
    shape: tuple[int, ...] | None = None,
    shapes: Sequence[tuple[int, ...] | None] = (),
) -> None:
    """Check that arrays can be one tensor of an update: the parameter first.

    `read_only` are the places of those that are not written, by default the gradient's; others than the parameter have
    its shape, or `shape`; arrays of bytes have those of `shapes`.

    Raises
    ------
    TypeError
        A dtype is none that can be stored beside the parameter's.
    ValueError
        A shape is not the parameter's, or an array to be written is read-only or overlaps itself.
    """
    param = arrays[0]
    if param.dtype not in COMPUTE_DTYPES and param.dtype not in STORED_DTYPES:
        raise TypeError(
            f"{names[0]}: found dtype {dtype_name(param.dtype)}, expected float32, float64, bfloat16 or float16 in "
            "native byte order"
        )
    fitting = COMPUTE_DTYPES[1:] if param.dtype == np.float64 else STORED_DTYPES
    if len(arrays) > 1:
        check_device(arrays, names)
    for j, (array, name) in enumerate(zip(arrays, names, strict=True)):
        expected = param.shape if shape is None or j == 0 else shape
        if j < len(shapes) and shapes[j] is not None and array.dtype == np.uint8:
            if array.shape != shapes[j]:
                raise ValueError(f"{name}: found shape {array.shape}, expected {shapes[j]}, the bytes of its blocks")
        elif array.dtype not in fitting:
            *others, last = map(dtype_name, fitting)
            dtypes = f"{', '.join(others)} or {last}" if others else last
            found, own = dtype_name(array.dtype), dtype_name(param.dtype)
            raise TypeError(f"{name}: found dtype {found}, expected {dtypes} beside {names[0]}, which is {own}")
        elif array.shape != expected:
            rows = "" if expected == param.shape else "an element for each row, "
            raise ValueError(f"{name}: found shape {array.shape}, expected {rows}{expected} as {names[0]} has")
        if j in read_only:
            continue
        if array.read_only_reason or not array.dense:
            check_writable(array, name, "updated in place")


def check_apart(
    arrays: Sequence[Array], names: Sequence[str], dtype: np.dtype, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Check that arrays can be states of shapes of their own, as one number of a tensor, and of a dtype.

    Raises
    ------
    TypeError
        One is of another dtype.
    ValueError
        One is of another shape, or read-only.
    """
    for array, name, shape in zip(arrays, names, shapes, strict=True):
        if array.dtype != dtype:
            raise TypeError(f"{name}: found dtype {dtype_name(array.dtype)}, expected {dtype_name(dtype)}")
        if array.shape != shape:
            one = "" if shape else ", one number of the tensor"
            raise ValueError(f"{name}: found shape {array.shape}, expected {shape}{one}")
        check_writable(array, name, "updated in place")


def check_device(arrays: Sequence[Array], names: Sequence[str]) -> None:
    """Check that arrays are on one device.

    Raises
    ------
    ValueError
        One is on another device than the first; both are named.
    """
    for array, name in zip(arrays, names, strict=True):
        if array.place.device != arrays[0].place.device:
            raise ValueError(
                f"{name}: found an array on {array.place.device}, expected one on {arrays[0].place.device} as "
                f"{names[0]} is"
            )


def _read_only_message(name: str, found: str, purpose: str) -> str:
    """Say that an array cannot be written."""
    return f"{name}: found {found}, expected a writable one, for it is {purpose}"


def check_writable(array: Array, name: str, purpose: str) -> None:
    """Check that each element can be written.

    Raises
    ------
    ValueError
        The array is read-only or overlaps itself.
    """
    if array.read_only_reason:
        raise ValueError(_read_only_message(name, array.read_only_reason, purpose))
    if not array.dense and _overlaps_itself(array):
        raise ValueError(f"{name}: found a view whose elements share memory, expected distinct elements")


#: NumPy arrays that steps write, whose owners can make them read-only between steps: each with its name, and with what
#: is done to it.
Written = Sequence[tuple[np.ndarray, str, str]]


def check_written(written: Written) -> None:
    """Check that all can be written still.

    Raises
    ------
    ValueError
        One has become read-only.
    """
    for array, name, purpose in written:
        if not array.flags.writeable:
            raise ValueError(_read_only_message(name, "a read-only array", purpose))


def check_distinct(arrays: Sequence[Array], names: Sequence[str], purpose: str) -> None:
    """Check that each element of arrays can be written, and is in one of them only.

    Raises
    ------
    ValueError
        An array is read-only, or shares memory with itself or another, which would then be written twice.
    """
    for array, name in zip(arrays, names, strict=True):
        check_writable(array, name, purpose)
    check_overlap(arrays, names, [True] * len(arrays))


def _overlaps_itself(array: Array) -> bool:
    reach = array.dtype.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return array.size > 0
        reach += stride * (n - 1)
    return False


def check_overlap(arrays: Sequence[Array], names: Sequence[str], written: Sequence[bool]) -> None:
    """Check that no array to be written shares memory with another.

    Raises
    ------
    ValueError
        Two arrays overlap, and one of them at least is to be written; it names both.
    """
    extents = np.array(
        [(a.address, a.address + a.size * a.dtype.itemsize) if a.dense else a.extent() for a in arrays], np.uint64
    ).reshape(-1, 2)
    order = np.argsort(extents[:, 0], kind="stable")
    low, high = extents[order, 0], extents[order, 1]
    if not (low[1:] < np.maximum.accumulate(high)[:-1]).any():
        return
    active: dict[bool, list[int]] = {True: [], False: []}
    for i in order:
        for kind in (True, False):
            active[kind] = [j for j in active[kind] if extents[j, 1] > extents[i, 0]]
        for j in active[True] + (active[False] if written[i] else []):
            if _share_memory(arrays[i], arrays[j]):
                first, second = sorted((int(i), int(j)))
                raise ValueError(f"{names[second]}: found memory shared with {names[first]}, expected distinct arrays")
        active[bool(written[i])].append(int(i))


def _share_memory(a: Array, b: Array) -> bool:
    if a.size == 0 or b.size == 0:
        return False
    try:
        return np.shares_memory(a.numpy(), b.numpy(), max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
