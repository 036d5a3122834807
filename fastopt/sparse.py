"""Gradients of some rows of a parameter: of embedding tables, factorisation machines, linear models on sparse data."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import BFLOAT16, Array, check_device, dtype_name, row_stride, view
from .dispatch import DUPLICATES, Rows
from .storage import CODES, compute_dtype


class RowSparse:
    """A gradient of some rows of a parameter: it may stand wherever a dense gradient may.

    The rows that it names are updated, with their states; the others are not touched, whatever the rule does to rows
    whose gradient is zero ("lazy": moments do not decay and weights do not either). Any rule will do.

    Parameters
    ----------
    indices : array of int32 or int64, shape (k,)
        The row of the parameter that each of the k rows is of, in any order.
    values : array of float32, float64, bfloat16 or float16, shape (k, ...)
        The rows, of the shape that the parameter's rows have; for a parameter of one dimension, numbers. They are
        copied only where a row's own elements are not contiguous.
    duplicates : str
        What a row that is named several times means.

        ``"sum"``, the default
            its gradients are summed first, in their order: the same bits whatever the number of threads
            (as torch's ``coalesce``, FBGEMM, TorchBigGraph).
        ``"sequential"``
            a step for each of its gradients, in their order (as TensorFlow's raw operation).
        ``"hogwild"``
            a step for each as threads come to them, without locks (Niu et al. 2011): fastest where rows are named once
            or a lost update does no harm. With one thread it is ``"sequential"``.

    On a CUDA device all arrays are to be there, and to stay as they are until the step has run. An index that is out of
    range is found when the device comes to it: that step updates no row, and a later step says so, as waiting for the
    device would cost more than the step.

    Raises
    ------
    TypeError, ValueError
        An array is not what it must be; the message names it.
    """

    __slots__ = ("__weakref__", "_source", "_weights", "duplicates", "indices", "values")

    def __init__(self, indices: Any, values: Any, *, duplicates: str = "sum") -> None:
        self.indices = _integers(indices, "indices")
        self.values = _rows(values)
        self.duplicates = _check_duplicates(duplicates)
        self._source: Any = None
        self._weights: Any = None
        if not self.values.shape or self.values.shape[0] != self.indices.size:
            raise ValueError(
                f"values: found shape {self.values.shape}, expected ({self.indices.size}, ...), a row for each index"
            )
        _check_together(self.values, indices=self.indices)

    @classmethod
    def bags(
        cls,
        indices: Any,
        offsets: Any,
        values: Any,
        weights: Any = None,
        *,
        mode: str = "sum",
        duplicates: str = "sum",
    ) -> RowSparse:
        """The gradient of an embedding bag, from the gradient of its output: the expanded gradient is never made.

        Parameters
        ----------
        indices : array of int32 or int64, shape (k,)
            The rows that were looked up, bag after bag.
        offsets : array of int32 or int64, shape (bags,)
            Where each bag begins in `indices`, from 0 on (as ``torch.nn.functional.embedding_bag``); a last entry of k
            more (as its ``include_last_offset``) is recognised by `values` having a row less. On a CUDA device their
            values are not checked.
        values : array of float32, float64, bfloat16 or float16, shape (bags, ...)
            The gradient of each bag's output.
        weights : array of the dtype of `values`, shape (k,), optional
            What each row was multiplied by (``per_sample_weights``), with ``mode="sum"`` only.
        mode : str
            ``"sum"`` or ``"mean"``.
        duplicates : str
            As `RowSparse`.

        Raises
        ------
        TypeError, ValueError
            An array is not what it must be; the message names it.
        """
        self = cls.__new__(cls)
        self.indices = _integers(indices, "indices")
        self.values = _rows(values)
        self.duplicates = _check_duplicates(duplicates)
        given_offsets, count = _integers(offsets, "offsets"), self.indices.size
        bags = self.values.shape[0] if self.values.shape else 0
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode: found {mode!r}, expected 'sum' or 'mean'")
        if mode == "mean" and weights is not None:
            raise ValueError("weights: found some with mode 'mean', expected none: they go with mode 'sum'")
        given = None if weights is None else view(weights, "weights")
        if given is not None and (given.shape != (count,) or given.dtype != self.values.dtype):
            raise ValueError(
                f"weights: found {given.dtype} of shape {given.shape}, expected {self.values.dtype} of shape ({count},)"
            )
        _check_together(self.values, indices=self.indices, offsets=given_offsets, weights=given)
        if isinstance(given_offsets, Array):
            self._find_bags(given_offsets, bags, given, mode)
            return self
        begins = given_offsets.astype(np.int64)
        if len(begins) == bags:
            begins = np.append(begins, count)
        sizes = np.diff(begins)
        if len(begins) != bags + 1 or begins[0] != 0 or begins[-1] != count or (sizes < 0).any():
            raise ValueError(
                f"offsets: found {offsets!r}, expected {bags} or {bags + 1} of them (values has {bags} rows), from 0, "
                f"never falling, to {count} at most"
            )
        self._source = np.repeat(np.arange(bags), sizes)
        self._weights = None if given is None else floats_of(given)
        if mode == "mean":
            shares = 1 / np.maximum(sizes, 1).astype(compute_dtype(self.values.dtype))
            self._weights = np.repeat(shares, sizes)
        return self

    def _find_bags(self, offsets: Array, bags: int, weights: Array | None, mode: str) -> None:
        """The same on a CUDA device."""
        from .backends import numba_cuda

        if offsets.size not in (bags, bags + 1) or (not bags and self.indices.size):
            raise ValueError(f"offsets: found {offsets.size} of them, expected {bags} or {bags + 1} as values has rows")
        real = compute_dtype(self.values.dtype)
        if weights is not None and weights.dtype != real:
            raise TypeError(f"weights: found dtype {dtype_name(weights.dtype)}, expected {real} on a CUDA device")
        self._source, shares = numba_cuda.find_bags(offsets, bags, self.indices.size, real if mode == "mean" else None)
        self._weights = weights or shares

    def coalesced(self) -> RowSparse:
        """The same gradient with each row once, in order, summed: as ``"sum"`` understands it."""
        from . import functional

        if isinstance(self.indices, Array):
            return self._on_host().coalesced()
        unique, place = np.unique(self.indices, return_inverse=True)
        summed = np.zeros((len(unique), *self.values.shape[1:]), compute_dtype(self.values.dtype))
        lookups = RowSparse.__new__(RowSparse)
        lookups.indices, lookups.values, lookups.duplicates = place.reshape(-1), self.values, "sum"
        lookups._source, lookups._weights = self._source, self._weights
        vars(functional)["sgd"](summed, lookups, step=1, lr=1.0, maximize=True)
        return RowSparse(unique, summed)

    def _on_host(self) -> RowSparse:
        """A copy on the CPU, of a gradient on a CUDA device, once it is there."""
        copy = RowSparse.__new__(RowSparse)
        copy.indices, copy.duplicates = self.indices.host(), self.duplicates
        copy.values = view(self.values.host(), "values")
        copy._source = None if self._source is None else self._source.host()
        copy._weights = None if self._weights is None else self._weights.host()
        return copy

    def check(self, param: Array, names: Sequence[str]) -> tuple[Array, Rows]:
        """As backends take it: the array of rows, and which rows of the parameter they are.

        Raises
        ------
        TypeError, ValueError
            It does not fit the parameter: a row's shape, the dtype, or an index that is out of range.
        """
        name, of = names[1], names[0]
        check_device([param, self.values], names[:2])
        if self.values.shape[1:] != param.shape[1:]:
            raise ValueError(
                f"{name}: found rows of shape {self.values.shape[1:]}, expected {param.shape[1:]} as {of} has"
            )
        if compute_dtype(self.values.dtype) != compute_dtype(param.dtype):
            found, expected = dtype_name(self.values.dtype), dtype_name(compute_dtype(param.dtype))
            raise TypeError(f"{name}: found dtype {found}, expected {expected} beside {of}, which is {param.dtype}")
        kind = DUPLICATES.index(self.duplicates)
        width = math.prod(param.shape[1:])
        rows = Rows(param.shape[0], width, self.indices, kind, self._source, self._weights, (of, name))
        if not isinstance(self.indices, Array):
            rows.check_indices()
        return self.values, rows

    def __repr__(self) -> str:
        return (
            f"RowSparse({self.indices.size} of {self.values.dtype} rows of shape {self.values.shape[1:]}, "
            f"duplicates={self.duplicates!r})"
        )


def view_gradient(grad: Any, name: str) -> Array | RowSparse:
    """A gradient of any kind: the view of an array, or a `RowSparse`.

    Raises
    ------
    TypeError, BackendUnavailable
        As `fastopt.arrays.view`.
    """
    return as_row_sparse(grad, name) or view(grad, name)


def as_row_sparse(grad: Any, name: str) -> RowSparse | None:
    """A gradient that is sparse, in whatever library's terms; None for one that is not.

    torch's sparse COO tensors, with one sparse dimension, and ``scipy.sparse`` matrices: a matrix's rows that have
    entries, or, where there is only one row, its entries as rows of a parameter of one dimension.
    """
    if isinstance(grad, RowSparse):
        return grad
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(grad, torch.Tensor):
        if grad.layout is not torch.sparse_coo:
            return None
        if grad.sparse_dim() != 1:
            raise TypeError(f"{name}: found {grad.sparse_dim()} sparse dimensions, expected 1: rows")
        return RowSparse(grad._indices()[0], grad._values())
    sparse = sys.modules.get("scipy.sparse")
    if sparse is not None and sparse.issparse(grad):
        rows = grad.tocsr()
        if rows.ndim == 1 or rows.shape[0] == 1:
            return RowSparse(rows.indices, rows.data)
        named = np.flatnonzero(np.diff(rows.indptr))
        return RowSparse(named, rows[named].toarray())
    return None


def _integers(x: Any, name: str) -> Any:
    """NumPy's array of integers, or on a CUDA device the view of one."""
    array = view(x, name)
    if array.dtype not in (np.int32, np.int64) or not array.dtype.isnative:
        raise TypeError(f"{name}: found dtype {array.dtype}, expected int32 or int64")
    if len(array.shape) != 1:
        raise ValueError(f"{name}: found shape {array.shape}, expected one dimension")
    if array.place.kind != "cuda":
        return np.ascontiguousarray(array.numpy())
    if not array.dense:
        raise ValueError(f"{name}: found strides {array.strides}, expected a contiguous array on a CUDA device")
    return array


def _check_together(values: Array, **arrays: Any) -> None:
    """Whether a gradient's arrays are on one device."""
    given = {name: array for name, array in arrays.items() if array is not None}
    places = [array if isinstance(array, Array) else view(array, name) for name, array in given.items()]
    check_device([values, *places], ["values", *given])


def floats_of(array: Array) -> np.ndarray:
    """An array's elements, contiguous, in the dtype in which they are computed with."""
    values = np.ascontiguousarray(array.host())
    if array.dtype == BFLOAT16:
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values.astype(compute_dtype(array.dtype), copy=False)


def _rows(values: Any) -> Array:
    array = values if isinstance(values, Array) else view(values, "values")
    if array.dtype not in CODES:
        raise TypeError(f"values: found dtype {array.dtype}, expected float32, float64, bfloat16 or float16")
    if row_stride(array) is not None:
        return array
    if array.place.kind == "cuda":
        raise ValueError(
            f"values: found strides {array.strides}, expected rows whose elements are contiguous on a CUDA device"
        )
    return view(np.ascontiguousarray(array.numpy()), "values")


def _check_duplicates(duplicates: Any) -> str:
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates: found {duplicates!r}, expected one of {', '.join(DUPLICATES)}")
    return str(duplicates)
