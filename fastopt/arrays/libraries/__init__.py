"""Arrays by their libraries: views of them, new ones, values written and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import BackendUnavailable
from ..array import CPU, Array
from ..checks import require_backend
from ..dtypes import BFLOAT16, compute_dtype, dtype_name, numpy_dtype, widened
from .dlpack import view_dlpack
from .numpy import buffer_of, view_numpy
from .torch import LIBRARY, detached, full_like, is_tensor, pinned_like, tensor_of, torch_layout, view_torch

_CPU, _CUDA = 1, 2  # DLPack's device types


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
        return view_numpy(x, name)
    if is_tensor(x):
        return view_torch(x, name)
    device = _ask(x, name, _device_of)
    if device is not None:
        kind, index = device
        if kind == _CUDA:
            return _of_cuda(x, name)
        require_backend(name, x, "cpu" if kind == _CPU else f"DLPack's device {kind}:{index}")
        return _ask(x, name, view_dlpack)
    buffer = _ask(x, name, buffer_of)
    if buffer is not None:
        return view_numpy(buffer, name)._replace(owner=x, pin=buffer)
    advice = _ask(x, name, _advice)
    raise TypeError(
        f"{name}: found {type(x).__name__}, expected an array "
        f"(NumPy, torch, CuPy, or an object with DLPack, __cuda_array_interface__ or the buffer protocol){advice}"
    )


def _ask(x: Any, name: str, question: Callable[[Any], Any]) -> Any:
    """Ask an array's own code, which may raise anything; its errors become TypeErrors."""
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


def _advice(x: Any) -> str:
    """Suggest how to make an array of what is none."""
    if hasattr(x, "to_numpy"):
        return "; x.to_numpy(copy=True) makes one"
    if isinstance(x, (list, tuple, float, int)):
        return "; np.array(x, dtype) makes one"
    if hasattr(x, "toarray"):
        return "; x.toarray() makes one"
    return "; np.array(x) makes one" if hasattr(x, "__array__") or hasattr(x, "__array_interface__") else ""


def _of_cuda(x: Any, name: str) -> Array:
    try:
        from .cuda import view_cuda
    except BackendUnavailable as reason:
        library = type(x).__module__.partition(".")[0]
        raise BackendUnavailable(f"{name}: found a {library} array on a CUDA device; numba-cuda: {reason}") from None
    return view_cuda(x, name)


def new_array(like: Any, array: Array, dtype: np.dtype, shape: tuple[int, ...], value: Any) -> Any:
    """A new array of the kind of `like`, whose view is `array`: of its memory order if of its shape.

    Raises
    ------
    MemoryError
        There is too little memory. (torch's own error is a RuntimeError.)
    ModuleNotFoundError
        NumPy's bfloat16 is needed, which ml_dtypes brings.
    """
    if type(like) is not np.ndarray and is_tensor(like):
        return full_like(like, dtype_name(dtype), shape, value)
    real = numpy_dtype(dtype) if dtype == BFLOAT16 else dtype
    if array.place is not CPU:
        from . import cuda

        return cuda.new_array(like, array, real, shape, value)
    # np.zeros takes fresh pages, zeroed when first touched; an order is kept where full_like can keep it.
    if value == 0 and (array.dense or shape != array.shape):
        return np.zeros(shape, real)
    if shape != array.shape:
        return np.full(shape, value, real)
    return np.full_like(array.numpy(), value, real, subok=False)


def same_library(values: np.ndarray, like: Any) -> Any:
    """View the same memory as a tensor where `like` is one."""
    return tensor_of(values) if is_tensor(like) else values


def cast(values: np.ndarray, like: Any, dtype: np.dtype) -> Any:
    """Floats in another dtype, that of `like`, and of its library: each is rounded to the nearest."""
    if is_tensor(like):
        return tensor_of(values).to(like.dtype)
    return values.astype(numpy_dtype(dtype))


def layout_of(x: Any) -> Any:
    """Return a key that changes when the owner moves an array on a device; None if there is no such key."""
    if is_tensor(x):  # a lazily negated one is copied for each call
        return None if x.is_neg() else torch_layout(x)
    interface = getattr(x, "__cuda_array_interface__", None)
    return interface and (interface["data"], interface["shape"], interface.get("strides"))


def assign(own: Any, value: Any) -> None:
    """Writes all elements of an array that `new_array` made: a number, or an array of any kind."""
    if isinstance(own, np.ndarray) or is_tensor(own):
        own[...] = value
        return
    from . import cuda

    cuda.assign(own, value)


def join(arrays: Sequence[Array]) -> Any:
    """A new array on a device: of contiguous ones of `new_array`, one behind the other."""
    first = arrays[0]
    shape = (sum(array.shape[0] for array in arrays), *first.shape[1:])
    made = new_array(first.owner, first, first.dtype, shape, 0)
    from . import cuda

    cuda.join(arrays, view(made, "joined"))
    return made


def multiply(array: Array, factor: float) -> None:
    """Multiply all elements of an array on the CPU by a number, in place, each rounded once."""
    if array.dtype == BFLOAT16 and is_tensor(array.owner):  # NumPy alone does not know torch's
        detached(array.owner).mul_(factor)
        return
    values, compute = array.numpy().view(numpy_dtype(array.dtype)), compute_dtype(array.dtype)
    np.multiply(values, compute.type(factor), out=values, dtype=compute, casting="unsafe")


def set_to_zero(array: Array) -> None:
    """Sets all elements of an array to zero."""
    if array.place.kind == "cpu":
        array.numpy()[...] = 0
    else:
        assign(detached(array.owner), 0)


def host_like(array: Array) -> Any:
    """A new array in the host's memory like one on a device: torch's of a tensor, else NumPy's."""
    if array.place.library == LIBRARY:
        return pinned_like(array.owner)
    return np.empty(array.shape, numpy_dtype(array.dtype))


def fetch(array: Array, into: Any, begin: int, end: int) -> None:
    """Copy neighbouring elements of an array on a device to a contiguous one of `host_like`; this waits for them."""
    own = into.reshape(-1)[begin:end]
    if array.place.library == LIBRARY:
        own.copy_(array.owner.detach().reshape(-1)[begin:end])
        return
    from . import cuda

    cuda.fetch(array, own.view(np.uint8), begin, end)


def put(array: Array, values: Any) -> None:
    """Copy all elements of a contiguous array of `host_like` to one on a device, where they are when this returns."""
    if array.place.library == LIBRARY:
        array.owner.detach().copy_(values)
        return
    from . import cuda

    cuda.put(array, values)


def to_host(array: Array) -> np.ndarray:
    """An array's elements on the CPU: the same memory if that is there, else a copy, for which this waits."""
    if array.place.kind != "cuda":
        return array.numpy()
    if array.place.library == LIBRARY:
        return view(array.owner.detach().cpu(), "").numpy()
    from . import cuda

    return cuda.to_host(array)


def floats_of(array: Array) -> np.ndarray:
    """An array's elements on the CPU, contiguous, in the dtype in which they are computed with."""
    return widened(to_host(array), array.dtype)


def numpy_of(tensor: Any) -> np.ndarray:
    """A tensor's elements as a NumPy array, of bfloat16 too: the same memory if that is on the CPU."""
    array = view(tensor.detach(), "tensor")
    values = to_host(array)
    return values.view(numpy_dtype(BFLOAT16)) if array.dtype == BFLOAT16 else values
