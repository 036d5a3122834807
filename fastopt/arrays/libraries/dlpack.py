"""Arrays on the CPU that speak DLPack, read from their capsule: NumPy's own reader knows no bfloat16, nor, before its
version 2.1, an array that may be written.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np

from ..array import CPU, Array, is_dense
from ..dtypes import BFLOAT16

_MOST_DIMENSIONS = 64  # NumPy's
_READ_ONLY = 1  # a flag
_FROM_OBJECT = 3  # of the functions of an exchange API: the one for an object's DLTensor
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_name_of = ctypes.pythonapi.PyCapsule_GetName
_name_of.restype, _name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _ExchangeAPI(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("older", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 5),
    )


def exchange_of(kind: type) -> int:
    """The address of what tells in C where an array of a type is, and how it is laid out; 0 where there is nothing."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None or _name_of(capsule) != b"dlpack_exchange_api":
        return 0
    api = _ExchangeAPI.from_address(_pointer_of(capsule, b"dlpack_exchange_api"))
    return api.functions[_FROM_OBJECT] or 0 if api.version[0] == 1 else 0


class _Exported(NamedTuple):
    """The fields of a capsule's DLTensor."""

    capsule: Any  # which keeps the memory
    address: int
    dtype: str  # as "float32", "bfloat16"
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in bytes; None: C-contiguous
    read_only: bool  # as far as it tells


def export(x: Any) -> _Exported:
    """Asks an array on the CPU for its capsule, and reads that.

    Raises
    ------
    TypeError, ValueError
        It returns no capsule, or one that cannot be true.
    """
    try:
        capsule = x.__dlpack__(max_version=(1, 0))
    except TypeError:  # older than versions
        capsule = x.__dlpack__()
    name = _name_of(capsule)
    if name not in (b"dltensor", b"dltensor_versioned"):
        raise TypeError(f"its capsule is named {name!r}, not 'dltensor'")
    pointer = _pointer_of(capsule, name)
    read_only = False
    if name == b"dltensor_versioned":
        managed = _Versioned.from_address(pointer)
        if managed.version[0] != 1:
            raise TypeError(f"its capsule is of DLPack {managed.version[0]}, not 1")
        tensor, read_only = managed.tensor, bool(managed.flags & _READ_ONLY)
    else:
        tensor = _Tensor.from_address(pointer)
    if not 0 <= tensor.ndim <= _MOST_DIMENSIONS or (tensor.ndim and not tensor.shape):
        raise ValueError(f"its capsule tells of {tensor.ndim} dimensions")
    kind = _KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1 or tensor.bits % 8:
        raise TypeError(f"its elements are of DLPack's type {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = None
    if tensor.strides:
        strides = tuple(stride * (tensor.bits // 8) for stride in tensor.strides[: tensor.ndim])
    address, size = (tensor.data or 0) + tensor.byte_offset, math.prod(shape)
    reach = size * max(map(abs, strides or ()), default=tensor.bits // 8)
    if min(shape, default=0) < 0 or max(address, reach) >= 2**62 or (size and not tensor.data):
        raise ValueError(f"its capsule tells of shape {shape} and strides {strides} at address {tensor.data}")
    dtype = kind if kind == "bool" else f"{kind}{tensor.bits}"
    return _Exported(capsule, address, dtype, shape, strides, read_only)


#: Arrays of libraries whose capsules do not say that nothing may change them.
_IMMUTABLE = {
    library: f"{kind}, which nothing may change (np.array(x) is a copy that may be),"
    for library, kind in (
        ("jax", "a JAX array"),
        ("jaxlib", "a JAX array"),
        ("tensorflow", "a TensorFlow tensor"),
        ("pyarrow", "an Arrow array"),
    )
}


def view_dlpack(x: Any) -> Array:
    """The view of an array that speaks DLPack."""
    found = export(x)
    dtype = BFLOAT16 if found.dtype == "bfloat16" else np.dtype(found.dtype)
    strides = found.strides
    if strides is not None and is_dense(found.shape, strides, dtype.itemsize):
        strides = None
    read_only_reason = _IMMUTABLE.get(
        type(x).__module__.partition(".")[0], "a read-only array" if found.read_only else ""
    )
    return Array(x, found.address, dtype, found.shape, strides, CPU, read_only_reason, found.capsule)
