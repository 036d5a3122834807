"""The floats that arrays may hold, and in which of them an update is computed."""

from __future__ import annotations

import numpy as np

COMPUTE_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
#: The dtype of bfloat16 here, torch's and ml_dtypes' alike: ml_dtypes need not be installed.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
STORED_DTYPES = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))  # of what is updated in float32


def dtype_name(dtype: np.dtype) -> str:
    """A dtype's name for error messages."""
    return "bfloat16" if dtype == BFLOAT16 else str(dtype)


#: The numbers by which backends know how an array is stored.
CODES: dict[np.dtype, int] = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, BFLOAT16: 2, np.dtype(np.float16): 3}


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which a parameter of that dtype is updated."""
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def numpy_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype by which NumPy computes with it.

    Raises
    ------
    ModuleNotFoundError
        ml_dtypes is needed and not here.
    """
    if dtype != BFLOAT16:
        return dtype
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ModuleNotFoundError("NumPy has bfloat16 from ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


#: The dtypes by these numbers.
DTYPES: dict[int, np.dtype] = {code: dtype for dtype, code in CODES.items()}


def widened(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Elements of a dtype, contiguous, in the dtype in which they are computed with."""
    values = np.asarray(values, order="C")  # np.ascontiguousarray would give a 0-dimensional array a dimension
    if dtype == BFLOAT16:
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values.astype(compute_dtype(dtype), copy=False)
