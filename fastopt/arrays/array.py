"""The view of an array of any library: an address and a layout."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from _cffi_backend import FFI  # cffi's own core: the package's front would load a C parser

_from_buffer = FFI().from_buffer
_cast = FFI().cast
_UINTPTR = FFI().typeof("uintptr_t")


class Place(NamedTuple):
    """The place of an array: its device, as ``"cuda:0"``, its library, and the stream that it names.

    Only arrays of libraries without a current stream name one.
    """

    device: str
    library: str = ""
    stream: int = 0

    @property
    def kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    @property
    def number(self) -> int:
        """The device's number."""
        return int(self.device.partition(":")[2] or 0)


CPU = Place("cpu")


class _Fields(NamedTuple):
    owner: Any
    address: int
    dtype: np.dtype
    shape: tuple[int, ...]
    given_strides: tuple[int, ...] | None
    place: Place
    read_only_reason: str  # what keeps it from being written, if anything does
    pin: Any  # what keeps its memory where it is, beside the owner
    size: int
    dense: bool  # C-contiguous


class Array(_Fields):
    """An array of any library, as an address and a layout. It keeps the array alive and its memory in place."""

    __slots__ = ()

    def __new__(
        cls,
        owner: Any,
        address: int,
        dtype: np.dtype,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        place: Place = CPU,
        read_only_reason: str = "",
        pin: Any = None,
    ) -> Array:
        """Takes what there is to know of an array; `strides` are None for a C-contiguous one."""
        size, dense = math.prod(shape), strides is None
        return tuple.__new__(cls, (owner, address, dtype, shape, strides, place, read_only_reason, pin, size, dense))

    def __reduce__(self) -> Any:
        raise TypeError("a view of an array cannot be copied or pickled: its address would be another array's")

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides in bytes."""
        return _c_strides(self.shape, self.dtype.itemsize) if self.given_strides is None else self.given_strides

    @property
    def order(self) -> tuple[int, ...]:
        """The axes, from the outermost in memory to the innermost."""
        return tuple(sorted(range(len(self.shape)), key=lambda axis: -abs(self.strides[axis])))

    def extent(self) -> tuple[int, int]:
        """The first byte's address, and that after the last."""
        if self.dense:
            return self.address, self.address + self.size * self.dtype.itemsize
        low = high = self.address
        if self.size:
            high += self.dtype.itemsize
            for n, stride in zip(self.shape, self.strides, strict=True):
                low, high = low + min(0, (n - 1) * stride), high + max(0, (n - 1) * stride)
        return low, high

    def numpy(self) -> np.ndarray:
        """View the same memory as a NumPy array; on the CPU only."""
        if isinstance(self.owner, np.ndarray):
            return self.owner
        return np.asarray(_Interface(self))


class _Interface:
    """Hands an `Array` to NumPy, which keeps this object, and with it the owner, alive."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = {
            "version": 3,
            "data": (array.address, bool(array.read_only_reason)),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": array.dtype.str,
            "descr": array.dtype.descr,
        }


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def address_of(x: np.ndarray) -> int:
    """Return the address of a C-contiguous, non-empty float32 or float64 array, ten times as fast as x.ctypes.data."""
    return int(_cast(_UINTPTR, _from_buffer(x)))


def pin_of(x: np.ndarray) -> Any:
    """Return an object that pins the memory of a NumPy array for as long as both live.

    A weak reference forbids NumPy to resize the array that has the memory; a memoryview forbids that to what else has
    it: a bytearray to grow, a memory map to close.
    """
    base: Any = x.base  # as_strided puts an object between, that has a base too
    while isinstance(inner := base if isinstance(base, np.ndarray) else getattr(base, "base", None), np.ndarray):
        x, base = inner, inner.base
    if base is None:
        return weakref.ref(x)
    try:
        return memoryview(base)
    except (BufferError, TypeError, ValueError):  # whatever else it is
        return None


def weak(pins: Iterable[Any]) -> list[Any]:
    """Keep the pins that are weak: they hold memory in place without keeping anything alive."""
    return [pin for pin in pins if isinstance(pin, weakref.ref)]


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...], step: int) -> bool:
    """Tell whether a layout is C-contiguous."""
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return 0 in shape
        step *= n
    return True


def replace_shape(array: Array, shape: tuple[int, ...]) -> Array:
    """A contiguous array's elements in another shape."""
    return Array(array.owner, array.address, array.dtype, shape, None, array.place, array.read_only_reason, array.pin)
