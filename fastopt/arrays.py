"""One view of any array: where it is, what it holds, how it is laid out; and what arrays of one update must satisfy."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from _cffi_backend import FFI  # cffi's own core: the package's front would load a C parser

from .dlpack import export
from .errors import BackendUnavailable

COMPUTE_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
#: What bfloat16 is here, be it torch's or ml_dtypes', which need not be installed.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
_STORED_DTYPES = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))  # of what is updated in float32
_from_buffer = FFI().from_buffer
_cast = FFI().cast
_UINTPTR = FFI().typeof("uintptr_t")
_CPU, _CUDA = 1, 2  # DLPack's device types
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
_TORCH_DTYPES = {
    f"torch.{name}": np.dtype(name)
    for name in ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
}
_TORCH_DTYPES["torch.bfloat16"] = BFLOAT16


class Place(NamedTuple):
    """Where an array is: its device, as ``"cuda:0"``, the library that it is of, and on which of the device's streams
    it says to be used, if its library has no current one.
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
    locked: str  # what keeps it from being written, if anything does
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
        locked: str = "",
        pin: Any = None,
    ) -> Array:
        """Takes what there is to know of an array; `strides` are None for a C-contiguous one."""
        size, dense = math.prod(shape), strides is None
        return tuple.__new__(cls, (owner, address, dtype, shape, strides, place, locked, pin, size, dense))

    def __reduce__(self) -> Any:
        raise TypeError("a view of an array cannot be copied or pickled: its address would be another array's")

    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes."""
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
        """The same memory as a NumPy array, which on the CPU only can be read."""
        if isinstance(self.owner, np.ndarray):
            return self.owner
        return np.asarray(_Interface(self))

    def host(self) -> np.ndarray:
        """Its elements on the CPU: the same memory if that is there, else a copy, for which this waits."""
        if self.place.kind != "cuda":
            return self.numpy()
        if self.place.library == "torch":
            return view(self.owner.detach().cpu(), "").numpy()
        from .backends import numba_cuda

        return numba_cuda.to_host(self)


class _Interface:
    """Hands an `Array` to NumPy, which keeps this object, and with it the owner, alive."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = {
            "version": 3,
            "data": (array.address, bool(array.locked)),
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
    """Where a C-contiguous, float32 or float64, non-empty array begins, in a tenth of the time of x.ctypes.data."""
    return int(_cast(_UINTPTR, _from_buffer(x)))


def dtype_name(dtype: np.dtype) -> str:
    """A dtype's name for error messages."""
    return "bfloat16" if dtype == BFLOAT16 else str(dtype)


def pin_of(x: np.ndarray) -> Any:
    """What keeps the memory of a NumPy array where it is, for as long as it lives itself and the array does.

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
    """Those that keep memory in place without keeping anything alive."""
    return [pin for pin in pins if isinstance(pin, weakref.ref)]


def _of_numpy(x: np.ndarray, name: str) -> Array:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: found a masked array, expected a plain one: x.filled(0), or x.data without the mask")
    flags, dtype = x.flags, x.dtype
    address = address_of(x) if flags.c_contiguous and dtype in COMPUTE_DTYPES and x.size else x.ctypes.data
    if dtype.kind == "V" and dtype.isnative and dtype.name == "bfloat16":
        dtype = BFLOAT16
    locked = "" if flags.writeable else "a read-only array"
    return Array(x, address, dtype, x.shape, None if flags.c_contiguous else x.strides, CPU, locked, pin_of(x))


def _of_torch(x: Any, name: str) -> Array:
    torch = sys.modules["torch"]
    if torch.nn.parameter.is_lazy(x):
        raise TypeError(
            f"{name}: found a {type(x).__name__}, expected a tensor that has its shape: call the lazy module once first"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: found a torch tensor of layout {x.layout}, expected a dense one")
    dtype = _TORCH_DTYPES.get(str(x.dtype))
    if dtype is None:
        raise TypeError(f"{name}: found dtype {x.dtype}, expected float32, float64, bfloat16 or float16")
    device = x.device.type
    _require_backend(name, x, device)
    place = CPU if device == "cpu" else Place(str(x.device), "torch")
    locked = "a tensor that requires grad and is no leaf" if x.requires_grad and not x.is_leaf else ""
    if x.is_neg():  # its memory has the other sign
        x, locked = x.detach().resolve_neg(), "a lazily negated tensor (its resolve_neg() is a plain one)"
    elif x._is_zerotensor():
        x, locked = torch.zeros(x.shape, dtype=x.dtype, device=x.device), "a tensor of zeros that has no memory"
    address = _torch_address(x)
    if address is None:
        hint = "; DTensor is not supported" if type(x).__name__ == "DTensor" else ""
        raise TypeError(f"{name}: found a {type(x).__name__} that has no memory of its own, expected a plain one{hint}")
    strides = None if x.is_contiguous() else tuple(s * dtype.itemsize for s in x.stride())
    array = Array(x, address, dtype, tuple(x.shape), strides, place, locked)
    if array.size:
        storage = x.untyped_storage()
        if array.extent()[1] > storage.data_ptr() + storage.nbytes():
            raise TypeError(f"{name}: found a tensor beyond its storage, which has {storage.nbytes()} bytes")
    return array


def _torch_address(x: Any) -> int | None:
    """Where a tensor begins; None for wrappers, nested ones, those of torch.func and those whose memory was freed."""
    if x.is_nested:
        return None
    try:
        address = int(x.data_ptr())
    except RuntimeError:
        return None
    return address if address or x.numel() == 0 else None


def is_tensor(x: Any) -> bool:
    """Whether something is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def torch_layout(x: Any) -> tuple[Any, ...]:
    """What tells that a tensor is where it was and laid out as it was, which its owner can change."""
    return x.data_ptr(), x.stride(), x.nbytes, x.is_neg(), x.untyped_storage().nbytes()


def view(x: Any, name: str) -> Array:
    """The view of an array: NumPy's (``memmap`` and ``ml_dtypes`` too), torch's, CuPy's, Numba's on a CUDA device, or
    whatever speaks DLPack, ``__cuda_array_interface__`` or the buffer protocol. Nothing is copied.

    Parameters
    ----------
    x : array
        On any device.
    name : str
        What the caller calls it, for error messages.

    Raises
    ------
    TypeError
        `x` is no array.
    BackendUnavailable
        `x` is on a device for which there is no backend.
    """
    if isinstance(x, np.ndarray):
        return _of_numpy(x, name)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _of_torch(x, name)
    device = _ask(x, name, _device_of)
    if device is not None:
        kind, index = device
        if kind == _CUDA:
            return _of_cuda(x, name)
        _require_backend(name, x, "cpu" if kind == _CPU else f"DLPack's device {kind}:{index}")
        return _ask(x, name, _of_dlpack)
    buffer = _ask(x, name, _buffer_of)
    if buffer is not None:
        return _of_numpy(buffer, name)._replace(owner=x, pin=buffer)
    advice = _ask(x, name, _advice)
    raise TypeError(
        f"{name}: found {type(x).__name__}, expected an array "
        f"(NumPy, torch, CuPy, or an object with DLPack, __cuda_array_interface__ or the buffer protocol){advice}"
    )


def _ask(x: Any, name: str, question: Callable[[Any], Any]) -> Any:
    """What an array's own code answers, whose errors can be any."""
    try:
        return question(x)
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(f"{name}: found {type(x).__name__} that cannot be viewed: {error or repr(error)}") from error


def _device_of(x: Any) -> tuple[int, int] | None:
    """DLPack's type and number of the device of what says that it is on one."""
    if hasattr(x, "__cuda_array_interface__"):
        return _CUDA, 0
    if not (hasattr(x, "__dlpack_device__") and hasattr(x, "__dlpack__")):
        return None
    kind, index = x.__dlpack_device__()
    return int(kind), int(index)


def _of_dlpack(x: Any) -> Array:
    found = export(x)
    dtype = BFLOAT16 if found.dtype == "bfloat16" else np.dtype(found.dtype)
    strides = found.strides
    if strides is not None and is_dense(found.shape, strides, dtype.itemsize):
        strides = None
    locked = _IMMUTABLE.get(type(x).__module__.partition(".")[0], "a read-only array" if found.read_only else "")
    return Array(x, found.address, dtype, found.shape, strides, CPU, locked, found.capsule)


def _buffer_of(x: Any) -> np.ndarray | None:
    """What speaks the buffer protocol, as NumPy's array, which keeps the buffer as it is; None if it does not."""
    if isinstance(x, (str, bytes, bytearray)):
        return None
    try:
        buffer = memoryview(x)
    except TypeError:
        return None
    return np.asarray(buffer)


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...], step: int) -> bool:
    """Whether elements lie one behind the other, the last axis innermost."""
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return 0 in shape
        step *= n
    return True


def _advice(x: Any) -> str:
    """How to make an array of what is none."""
    if hasattr(x, "to_numpy"):
        return "; x.to_numpy(copy=True) makes one"
    if isinstance(x, (list, tuple, float, int)):
        return "; np.array(x, dtype) makes one"
    if hasattr(x, "toarray"):
        return "; x.toarray() makes one"
    return "; np.array(x) makes one" if hasattr(x, "__array__") or hasattr(x, "__array_interface__") else ""


def _of_cuda(x: Any, name: str) -> Array:
    try:
        from .backends import numba_cuda
    except BackendUnavailable as reason:
        library = type(x).__module__.partition(".")[0]
        raise BackendUnavailable(f"{name}: found a {library} array on a CUDA device; numba-cuda: {reason}") from None
    return numba_cuda.view_cuda(x, name)


def _require_backend(name: str, x: Any, kind: str) -> None:
    if kind not in ("cpu", "cuda"):
        raise BackendUnavailable(
            f"{name}: found {type(x).__module__.split('.')[0]} array on {kind}, and no backend works there; move it to "
            "the CPU (torch: .cpu()) or to a CUDA device"
        )


def check_tensor(
    arrays: Sequence[Array],
    names: Sequence[str],
    read_only: int = 1,
    shape: tuple[int, ...] | None = None,
    shapes: Sequence[tuple[int, ...] | None] = (),
) -> None:
    """Whether arrays can be one tensor of an update: parameter, gradient, states.

    `read_only` is the place of the one that is not written; states have the parameter's shape, or `shape`; arrays of
    bytes have those of `shapes`.

    Raises
    ------
    TypeError
        A dtype is none that can be stored beside the parameter's.
    ValueError
        A shape is not the parameter's, or an array to be written is read-only or overlaps itself.
    """
    param = arrays[0]
    if param.dtype not in COMPUTE_DTYPES and param.dtype not in _STORED_DTYPES:
        raise TypeError(
            f"{names[0]}: found dtype {dtype_name(param.dtype)}, expected float32, float64, bfloat16 or float16 in "
            "native byte order"
        )
    fitting = COMPUTE_DTYPES[1:] if param.dtype == np.float64 else _STORED_DTYPES
    if len(arrays) > 1:
        check_device(arrays, names)
    for j, (array, name) in enumerate(zip(arrays, names, strict=True)):
        expected = param.shape if shape is None or j <= max(read_only, 0) else shape
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
        if j == read_only:
            continue
        check_writable(array, name, "updated in place")


def check_device(arrays: Sequence[Array], names: Sequence[str]) -> None:
    """Whether arrays are on one device.

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


def check_writable(array: Array, name: str, purpose: str) -> None:
    """Whether each element can be written.

    Raises
    ------
    ValueError
        The array is read-only or overlaps itself.
    """
    if array.locked:
        raise ValueError(f"{name}: found {array.locked}, expected a writable one, for it is {purpose}")
    if not array.dense and _overlaps_itself(array):
        raise ValueError(f"{name}: found a view whose elements share memory, expected distinct elements")


def check_distinct(arrays: Sequence[Array], names: Sequence[str], purpose: str) -> None:
    """Whether each element of arrays can be written once.

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
    """Whether any array to be written shares memory with another.

    Raises
    ------
    ValueError
        Two arrays overlap, and one of them at least is to be written; it names both.
    """
    extents = np.array([a.extent() for a in arrays], dtype=np.uint64).reshape(-1, 2)
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


def replace_shape(array: Array, shape: tuple[int, ...]) -> Array:
    """A contiguous array's elements in another shape."""
    return Array(array.owner, array.address, array.dtype, shape, None, array.place, array.locked, array.pin)


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
