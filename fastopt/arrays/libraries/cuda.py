"""Arrays on a CUDA device that are no torch tensors: CuPy's, Numba's, and others that speak a protocol."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import BackendUnavailable, install_command

try:
    import numba_cuda  # noqa: F401  (before Numba's own CUDA target, in whose place it stands)
    from cuda import core  # noqa: F401
except ImportError as error:
    raise BackendUnavailable(f"numba-cuda is not installed ({error}): {install_command('cuda')}") from None

from cuda.core.utils import StridedMemoryView

from ..array import Array, Place, is_dense
from ..dtypes import BFLOAT16, widened
from . import driver

try:
    _devices = driver.count_devices()
except RuntimeError as error:
    missing = "can only be found via system search" in str(error)
    raise BackendUnavailable(
        ("no NVIDIA driver was found" if missing else f"the NVIDIA driver does not work ({error})")
        + "; it comes with the system, not with Python's packages: https://www.nvidia.com/drivers"
    ) from None
if not _devices:
    raise BackendUnavailable("no CUDA device is visible to this process; see CUDA_VISIBLE_DEVICES and nvidia-smi")


def view_cuda(x: Any, name: str) -> Array:
    """The view of an array that speaks ``__cuda_array_interface__`` or DLPack. Nothing is copied, and no stream waits.

    Raises
    ------
    TypeError
        It is of a dtype that NumPy has not, or its memory is no device's.
    """
    library = type(x).__module__.partition(".")[0]
    stream, found = 0, None
    try:
        if hasattr(x, "__cuda_array_interface__"):
            interface = x.__cuda_array_interface__
            (address, read_only), stream = interface["data"], interface.get("stream") or 0
            shape, dtype, strides = tuple(interface["shape"]), np.dtype(interface["typestr"]), interface.get("strides")
            device = driver.device_of_address(address)
        else:
            found = StridedMemoryView.from_dlpack(x, stream_ptr=-1)
            address, read_only, device = int(found.ptr), found.readonly, found.device_id
            shape, dtype, strides = tuple(found.shape), np.dtype(found.dtype), found.strides
            strides = None if strides is None else tuple(s * dtype.itemsize for s in strides)
        if min(shape, default=0) < 0 or (0 not in shape and not address):
            raise ValueError(f"it tells of shape {shape} at address {address}")
        if strides is not None and is_dense(shape, strides, dtype.itemsize):
            strides = None
    except MemoryError:
        raise
    except Exception as error:  # whatever the array's own code raises
        raise TypeError(f"{name}: found a {library} array that cannot be viewed: {error}") from None
    if "bfloat16" in (dtype.name, str(getattr(x, "dtype", ""))):
        dtype = BFLOAT16
    for what, bytes_ in (("address", address or 0), *(("stride", stride) for stride in strides or ())):
        if bytes_ % dtype.itemsize:
            raise ValueError(
                f"{name}: found the {what} {bytes_}, expected a multiple of the {dtype.itemsize} of an element"
            )
    read_only_reason = "a read-only array" if read_only else ""
    if library in ("jax", "jaxlib"):
        read_only_reason = "a JAX array, which nothing may change"
    place = Place(f"cuda:{device}", library if library == "cupy" else "", stream)
    return Array(x, address or 0, dtype, shape, strides, place, read_only_reason, found)


def new_array(like: Any, array: Array, dtype: np.dtype, shape: tuple[int, ...], value: Any) -> Any:
    """A new array on the device of `like`, whose view is `array`: CuPy's if that is, else Numba's.

    Raises
    ------
    MemoryError
        There is too little memory on the device.
    """
    if array.place.library == "cupy":
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(array.place.number):
            try:
                return cupy.full_like(like, value, dtype) if shape == array.shape else cupy.full(shape, value, dtype)
            except cupy.cuda.memory.OutOfMemoryError as error:
                raise MemoryError(str(error)) from None
    from numba import cuda

    with cuda.gpus[array.place.number]:
        try:
            found = cuda.device_array(shape, dtype)
        except cuda.cudadrv.driver.CudaAPIError as error:
            raise MemoryError(str(error)) from None
        if value == 0 and found.size:
            cuda.cudadrv.driver.device_memset(found, 0, found.nbytes)
        elif found.size:
            assign(found, value)
        return found


def assign(own: Any, value: Any) -> None:
    """Writes all elements of one of `new_array`'s arrays: of a number, or of an array here or there."""
    if hasattr(value, "__cuda_array_interface__"):
        there = view_cuda(value, "value")
        value = widened(to_host(there), there.dtype)
    values = np.empty(own.shape, own.dtype)
    values[...] = value
    if type(own).__module__.partition(".")[0] == "cupy":
        own.set(values)
    else:
        there = view_cuda(own, "own")
        driver.device_of(there.place.number).fill(there.address, values)


def join(arrays: Sequence[Array], into: Array) -> None:
    """Copy contiguous arrays, one behind the other, to another one of the same library."""
    device, stream, at = driver.device_of(into.place.number), driver.stream_of(into.place)(), into.address
    for array in arrays:
        if nbytes := array.size * array.dtype.itemsize:
            device.copy(at, array.address, nbytes, stream)
            at += nbytes


def fetch(array: Array, into: np.ndarray, begin: int, end: int) -> None:
    """Copy the bytes of neighbouring elements to the host, once they are there."""
    if not array.dense:
        into[:] = np.ascontiguousarray(to_host(array)).reshape(-1)[begin:end].view(np.uint8)
    elif into.size:
        address = array.address + begin * array.dtype.itemsize
        driver.device_of(array.place.number).download(address, into, driver.stream_of(array.place)())


def put(array: Array, values: np.ndarray) -> None:
    """Write all elements of a contiguous array, behind what its stream has to do, and wait for it."""
    driver.device_of(array.place.number).fill(array.address, values, driver.stream_of(array.place)())


def to_host(array: Array) -> np.ndarray:
    """A copy of an array's elements on the host, once they are there."""
    low, high = array.extent()
    memory = np.empty(high - low, np.uint8)
    if memory.size:
        driver.device_of(array.place.number).download(low, memory, driver.stream_of(array.place)())
    first = memory[array.address - low :] if memory.size else memory
    return (
        np.ndarray(array.shape, array.dtype, first.data, 0, array.strides)
        if memory.size
        else np.empty(array.shape, array.dtype)
    )
