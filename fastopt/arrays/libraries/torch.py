"""torch's tensors."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..array import CPU, Array, Place
from ..checks import require_backend
from ..dtypes import BFLOAT16

#: The name of this library in a `Place`.
LIBRARY = "torch"

_DTYPES = {
    f"torch.{name}": np.dtype(name)
    for name in ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
}
_DTYPES["torch.bfloat16"] = BFLOAT16


def view_torch(x: Any, name: str) -> Array:
    """The view of a tensor."""
    torch = sys.modules[LIBRARY]
    if torch.nn.parameter.is_lazy(x):
        raise TypeError(
            f"{name}: found a {type(x).__name__}, expected a tensor that has its shape: call the lazy module once first"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: found a torch tensor of layout {x.layout}, expected a dense one")
    dtype = _DTYPES.get(str(x.dtype))
    if dtype is None:
        raise TypeError(f"{name}: found dtype {x.dtype}, expected float32, float64, bfloat16 or float16")
    device, place = x.device.type, CPU
    if device != "cpu":
        require_backend(name, x, device)
        place = place_of(x)
    read_only_reason = "a tensor that requires grad and is no leaf" if x.requires_grad and not x.is_leaf else ""
    if x.is_neg():  # its memory has the other sign
        x, read_only_reason = x.detach().resolve_neg(), "a lazily negated tensor (its resolve_neg() is a plain one)"
    elif x._is_zerotensor():
        x, read_only_reason = (
            torch.zeros(x.shape, dtype=x.dtype, device=x.device),
            "a tensor of zeros that has no memory",
        )
    try:
        address = x.data_ptr()
    except RuntimeError:
        address = 0
    if x.is_nested or (address == 0 and x.numel()):  # a wrapper, one of torch.func, or one whose memory was freed
        hint = ": x.to_local() is this process's shard" if type(x).__name__ == "DTensor" else ""
        raise TypeError(f"{name}: found a {type(x).__name__} that has no memory of its own, expected a plain one{hint}")
    strides = None if x.is_contiguous() else tuple(s * dtype.itemsize for s in x.stride())
    array = Array(x, address, dtype, tuple(x.shape), strides, place, read_only_reason)
    if array.size:
        storage = x.untyped_storage()
        end = address + x.nbytes if strides is None else array.extent()[1]
        if end > storage.data_ptr() + storage.nbytes():
            raise TypeError(f"{name}: found a tensor beyond its storage, which has {storage.nbytes()} bytes")
    return array


def place_of(x: Any) -> Place:
    """Return the place of a tensor."""
    return CPU if x.device.type == "cpu" else Place(str(x.device), LIBRARY)


def is_tensor(x: Any) -> bool:
    """Tell whether something is a tensor of torch."""
    torch = sys.modules.get(LIBRARY)
    return torch is not None and isinstance(x, torch.Tensor)


def detached(x: Any) -> Any:
    """Detach a tensor from autograd; return anything else as it is."""
    return x.detach() if is_tensor(x) else x


def full_like(like: Any, dtype: str, shape: tuple[int, ...], value: Any) -> Any:
    """A new tensor on the device of `like`, of its memory order if of its shape."""
    torch = sys.modules[LIBRARY]
    like, kind = like.detach(), getattr(torch, dtype)
    if shape == tuple(like.shape):
        return torch.full_like(like, value, dtype=kind)
    return like.new_full(shape, value, dtype=kind)


def pinned_like(x: Any) -> Any:
    """A new tensor like one on a CUDA device, in the host's memory, which the device copies from and to directly."""
    torch = sys.modules[LIBRARY]
    return torch.empty(tuple(x.shape), dtype=x.dtype, pin_memory=torch.cuda.is_available())


def coo_rows(tensor: Any, name: str) -> tuple[Any, Any] | None:
    """The indices and values of a sparse COO tensor; None for one of another layout.

    Raises
    ------
    TypeError
        Not exactly its first dimension is sparse.
    """
    if tensor.layout is not sys.modules[LIBRARY].sparse_coo:
        return None
    if tensor.sparse_dim() != 1:
        raise TypeError(f"{name}: found {tensor.sparse_dim()} sparse dimensions, expected 1: rows")
    return tensor._indices()[0], tensor._values()


def current_stream(device: int) -> Callable[[], int]:
    """Return a function for the caller's current stream on a CUDA device."""
    return partial(sys.modules[LIBRARY]._C._cuda_getCurrentRawStream, device)


def torch_layout(x: Any) -> tuple[Any, ...]:
    """Return a key that changes when the owner moves a tensor or lays it out anew."""
    return x.data_ptr(), x.stride(), x.nbytes, x.is_neg(), x.untyped_storage().nbytes()


def offset_in_object() -> int:
    """Where in the object of a tensor torch's own is: behind what older versions note of its owner."""
    torch = sys.modules[LIBRARY]
    tensor = torch.empty(0, device="cpu")
    words = (ctypes.c_size_t * (torch.Tensor.__basicsize__ // ctypes.sizeof(ctypes.c_size_t))).from_address(id(tensor))
    return list(words).index(tensor._cdata) * ctypes.sizeof(ctypes.c_size_t)


def locating_function() -> int:
    """The address of the function of torch's stable C interface for where the memory of a tensor is; 0: it has none."""
    try:
        function = ctypes.CDLL(sys.modules[LIBRARY]._C.__file__).aoti_torch_get_data_ptr
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def tensor_of(array: np.ndarray) -> Any:
    """View the memory of a NumPy array as a tensor; bfloat16 too."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class Operations:
    """Operations of tensors: products of matrices, functions of elements."""

    @property
    def functions(self) -> Any:
        """Functions of elements and of axes, under NumPy's names."""
        return sys.modules[LIBRARY]

    def computing(self) -> Any:
        """Return a context to compute in, in which tensors of inference mode and others can be written."""
        return sys.modules[LIBRARY].inference_mode()

    def array(self, own: Array) -> Any:
        """Return the tensor without its history."""
        return own.owner.detach()

    def norm(self, own: Array, dtype: np.dtype, most: int) -> float:
        """Return the root of the sum of the squares of a tensor's elements, in a dtype."""
        torch = sys.modules[LIBRARY]
        return float(torch.linalg.vector_norm(own.owner.detach(), dtype=getattr(torch, dtype.name)))

    def new(self, make: Callable[[], Any]) -> Any:
        """Make a tensor that can be written in inference mode and out of it."""
        with sys.modules[LIBRARY].inference_mode(False):
            return make()

    def normalize(self, x: Any, eps: float) -> None:
        """Divide a matrix by its Frobenius norm, or by `eps` where that is more."""
        torch = sys.modules[LIBRARY]
        norm = torch.linalg.vector_norm(x, dtype=torch.float64)  # float32 cannot hold squares of numbers above 1e19
        x.div_(norm.to(x.dtype).clamp_(min=eps))

    def product(self, a: Any, b: Any, out: Any) -> None:
        """Write a @ b."""
        sys.modules[LIBRARY].mm(a, b, out=out)

    def add_product(self, c: Any, a: Any, b: Any, beta: float, alpha: float, out: Any) -> None:
        """Write beta*c + alpha*(a @ b)."""
        sys.modules[LIBRARY].addmm(c, a, b, beta=beta, alpha=alpha, out=out)
