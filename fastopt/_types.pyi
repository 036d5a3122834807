"""Types of arguments, for type checkers and editors alone: there is nothing to import."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, SupportsFloat, TypeAlias

import numpy as np
from typing_extensions import Buffer

from .sparse import RowSparse

class DLPack(Protocol):
    """An array that speaks DLPack: NumPy's, torch's, CuPy's and others."""
    def __dlpack_device__(self) -> Any: ...

class CudaArray(Protocol):
    """An array on a CUDA device, as Numba's."""
    @property
    def __cuda_array_interface__(self) -> Any: ...

class Sparse(Protocol):
    """An array of scipy.sparse."""
    def tocsr(self) -> Any: ...

Array: TypeAlias = np.ndarray[Any, Any] | DLPack | CudaArray | Buffer
Gradient: TypeAlias = Array | RowSparse | Sparse
Params: TypeAlias = Array | Mapping[Any, Array] | Iterable[Array | Mapping[str, Any]]

# Hyper-parameters: a number may be an array or a tensor of one element; a schedule is called with the 1-based step.
Number: TypeAlias = SupportsFloat
Value: TypeAlias = Number | Callable[[int], Number]
NumberPair: TypeAlias = tuple[Number, Number] | list[Any]
ValuePair: TypeAlias = tuple[Value, Value] | list[Any] | Callable[[int], NumberPair]
Numbers: TypeAlias = tuple[Number, ...] | list[Any]
Values: TypeAlias = tuple[Value, ...] | list[Any] | Callable[[int], Numbers]

# A dtype may be NumPy's, ml_dtypes' or torch's.
StateDtype: TypeAlias = Literal["float64", "float32", "bfloat16", "float16", "8bit"] | Any
