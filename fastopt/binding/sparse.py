"""Gradients of some rows of a parameter: of embedding tables, factorisation machines, linear models on sparse data."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import settings
from ..arrays.array import Array
from ..arrays.checks import check_device
from ..arrays.dtypes import BFLOAT16, CODES, compute_dtype, dtype_name
from ..arrays.libraries import floats_of, to_host, view
from ..arrays.libraries.torch import coo_rows, detached, is_tensor
from ..arrays.runs import row_stride
from ..backends import Backend
from ..backends.choice import backend_of, host_backend
from ..checks import check_name
from ..jobs.job import DUPLICATES, Rows
from ..jobs.tables import Tensor, adding, make_row_job


class RowSparse:
    """A gradient of some rows of a parameter: it may stand wherever a dense gradient may.

    The rows that it names are updated, with their states; the others are not touched, whatever the rule does to rows
    whose gradient is zero ("lazy": moments do not decay and weights do not either). Any rule will do.

    It holds the arrays, not copies of them: a step reads what they hold then, and checks the indices again. What it was
    made of cannot be replaced, nor its memory moved while it is there; make a new one for other arrays. Copied when it
    is made are only lists, indices of another integer type than int32 and int64 or with gaps between them, and values
    whose rows are not contiguous in themselves; of a bag, the offsets.

    Parameters
    ----------
    indices : array of integers, or list, shape (k,)
        The row of the parameter that each of the k rows is of, in any order; on a CUDA device int32 or int64.
    values : array of float32, float64, bfloat16 or float16, shape (k, ...)
        The rows, of the shape that the parameter's rows have; for a parameter of one dimension, numbers.
    duplicates : str
        What a row that is named several times means.

        ``"sum"``, the default
            its gradients are summed first (as torch's ``coalesce``, FBGEMM, TorchBigGraph): in their order, 32 of them
            one after the other, then the sums of these groups in the same way, until one is left. So the sum has the
            same bits on every backend and for any number of threads.
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

    __slots__ = ("__weakref__", "_duplicates", "_indices", "_kept", "_shape", "_source", "_values", "_weights")

    def __init__(self, indices: Any, values: Any, *, duplicates: str = "sum") -> None:
        self._hold(_integers(indices, "indices"), _rows(values, "values"), duplicates)
        if not self._values.shape or self._values.shape[0] != self._indices.size:
            raise ValueError(
                f"values: found shape {self._values.shape}, expected ({self._indices.size}, ...), a row for each index"
            )
        check_device(self._kept[1::-1], ["values", "indices"])

    def _hold(
        self,
        indices: Array,
        values: Array,
        duplicates: str = "sum",
        source: Any = None,
        weights: Any = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Takes its parts; `shape` is that of the whole gradient, where it is known."""
        check_name("duplicates", duplicates, DUPLICATES)
        self._kept: list[Any] = [indices, values]  # what keeps memory where it is
        # A tensor can be given other memory: its own is kept by another tensor.
        self._kept += [detached(array.owner) for array in self._kept]
        self._indices = _host_or_device(indices)
        self._values = values
        self._duplicates = duplicates
        self._source = source
        self._weights = weights
        self._shape = shape

    @classmethod
    def _of(cls, indices: Array, values: Array, *others: Any, **named: Any) -> RowSparse:
        """Make one of checked parts, as `_hold` takes them."""
        made = cls.__new__(cls)
        made._hold(indices, values, *others, **named)
        return made

    @property
    def indices(self) -> Any:
        """The row that each of its rows is of: NumPy's array, or on a CUDA device a view of it."""
        return self._indices if isinstance(self._indices, Array) else self._indices.view()

    @property
    def values(self) -> Array:
        """The view of its rows."""
        return self._values

    @property
    def duplicates(self) -> str:
        """The meaning of a row that is named several times."""
        return self._duplicates

    @property
    def tables(self) -> tuple[Any, Any, Any]:
        """Its indices, the row of the values that each is of, and weights; None where it has none."""
        return self._indices, self._source, self._weights

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a parameter may ask of it but its indices: where another gradient's is the same, that fits too."""
        values, tables = self._values, (self._source is None, self._weights is None)
        return values.dtype, values.shape[1:], values.place, self._indices.dtype, self._duplicates, self._shape, tables

    @property
    def moved(self) -> str:
        """Which of the tensors it was made of have other memory now; nothing where none has."""
        for array, what in zip(self._kept, ("indices", "values"), strict=False):
            if is_tensor(array.owner) and array.owner.data_ptr() != array.address:
                return what
        return ""

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
        indices : array of integers, or list, shape (k,)
            The rows that were looked up, bag after bag.
        offsets : array of integers, or list, shape (bags,)
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
        self = cls._of(_integers(indices, "indices"), _rows(values, "values"), duplicates)
        offsets, count = _integers(offsets, "offsets"), self._indices.size
        bags = self._values.shape[0] if self._values.shape else 0
        check_name("mode", mode, ("sum", "mean"))
        if mode == "mean" and weights is not None:
            raise ValueError("weights: found some with mode 'mean', expected none: they go with mode 'sum'")
        given = None if weights is None else view(weights, "weights")
        if given is not None and (given.shape != (count,) or given.dtype != self._values.dtype):
            raise ValueError(
                f"weights: found {dtype_name(given.dtype)} of shape {given.shape}, expected "
                f"{dtype_name(self._values.dtype)} of shape ({count},)"
            )
        arrays, names = [*self._kept[1::-1], offsets], ["values", "indices", "offsets"]
        if given is not None:
            arrays, names = [*arrays, given], [*names, "weights"]
            self._kept += [given, detached(given.owner)]
        check_device(arrays, names)
        real = compute_dtype(self._values.dtype)
        if given is not None and given.place.kind == "cuda" and given.dtype != real:
            raise TypeError(f"weights: found dtype {dtype_name(given.dtype)}, expected {real} on a CUDA device")
        mean = real if mode == "mean" else None
        self._source, shares = backend_of(offsets.place).find_bags(offsets, bags, count, mean)
        self._weights = shares if given is None else given if given.place.kind == "cuda" else floats_of(given)
        return self

    def coalesced(self) -> RowSparse:
        """Return the gradient with each row once, in order, and its lookups summed as by ``"sum"``."""
        if isinstance(self._indices, Array):
            return self._on_host().coalesced()
        unique, place = each_once(self._indices)
        sums = np.zeros((len(unique), *self._values.shape[1:]), compute_dtype(self._values.dtype))
        threads = settings.get_num_threads()
        add_rows(view(sums, "sums"), self._values, place, self._source, self._weights, host_backend(), threads)
        return RowSparse(unique, sums)

    def _on_host(self) -> RowSparse:
        """A copy on the CPU, of a gradient on a CUDA device, once it is there."""
        source, weights = (None if array is None else to_host(array) for array in (self._source, self._weights))
        arrays = view(to_host(self._indices), "indices"), view(to_host(self._values), "values")
        return RowSparse._of(*arrays, self._duplicates, source, weights, self._shape)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are built anew over the copied arrays: an address is no other array's."""
        if isinstance(self._indices, Array):
            raise TypeError("a RowSparse on a CUDA device cannot be copied or pickled: make it anew of copied arrays")
        parts = self._indices, self._values.numpy(), self._duplicates, self._source, self._weights, self._shape
        return _rebuild, parts

    def check(self, param: Array, names: Sequence[str]) -> tuple[Array, Rows]:
        """Check the gradient against its parameter; return the rows' array and numbers, as backends take them.

        Raises
        ------
        TypeError, ValueError
            It does not fit the parameter: a row's shape, the dtype, or an index that is out of range.
        """
        name, of = names[1], names[0]
        check_device([param, self._values], [of, name])
        if moved := self.moved:
            raise ValueError(f"{name}: found {moved} that were given other memory, expected a new RowSparse of them")
        if self._shape is not None and self._shape != param.shape:
            raise ValueError(f"{name}: found shape {self._shape}, expected {param.shape} as {of} has")
        if self._values.shape[1:] != param.shape[1:]:
            raise ValueError(
                f"{name}: found rows of shape {self._values.shape[1:]}, expected {param.shape[1:]} as {of} has"
            )
        if compute_dtype(self._values.dtype) != compute_dtype(param.dtype):
            found, expected = dtype_name(self._values.dtype), dtype_name(compute_dtype(param.dtype))
            own = dtype_name(param.dtype)
            raise TypeError(f"{name}: found dtype {found}, expected {expected} beside {of}, which is {own}")
        kind = DUPLICATES.index(self._duplicates)
        width = math.prod(param.shape[1:])
        rows = Rows(param.shape[0], width, self._indices, kind, self._source, self._weights, (of, name))
        if not isinstance(self._indices, Array):
            rows.check_indices()
        return self._values, rows

    def __repr__(self) -> str:
        return (
            f"RowSparse({self._indices.size} of {dtype_name(self._values.dtype)} rows of shape "
            f"{self._values.shape[1:]}, duplicates={self._duplicates!r})"
        )


def add_rows(sums: Array, values: Array, place: Any, source: Any, weights: Any, backend: Backend, threads: int) -> None:
    """Add the sum of each row's lookups, of which `place` has the row in `sums`, there: zeros where none is to be."""
    rows = Rows(sums.shape[0], math.prod(sums.shape[1:]), place, DUPLICATES.index("sum"), source, weights)
    backend.prepare([make_row_job(adding(1), Tensor(0, 0, [sums, values]), rows)])(1.0, threads)


def each_once(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each index that there is once, in order, and of each lookup the place of its own among them.

    As ``numpy.unique`` with the inverse, in half its time: one sort of keys that have the lookup's number in their last
    bits, where there is room for it.
    """
    bits = indices.size.bit_length()
    if not indices.size or int(indices.min()) < 0 or int(indices.max()) >> (63 - bits):
        return np.unique(indices, return_inverse=True)
    keys = indices.astype(np.int64)
    keys <<= bits
    keys |= np.arange(indices.size)
    keys.sort()
    order = keys & ((1 << bits) - 1)
    keys >>= bits
    first = np.ones(indices.size, bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    place = np.empty(indices.size, np.int64)
    place[order] = np.cumsum(first) - 1
    return keys[first].astype(indices.dtype), place


def _rebuild(indices: Any, values: Any, duplicates: str, source: Any, weights: Any, shape: Any) -> RowSparse:
    arrays = _integers(indices, "indices"), _rows(values, "values")
    return RowSparse._of(*arrays, duplicates, source, weights, shape)


def view_gradient(grad: Any, name: str, shape: tuple[int, ...] | None = None) -> Array | RowSparse:
    """A gradient of any kind: the view of an array, or a `RowSparse`; `shape` is the parameter's, if there is one.

    Raises
    ------
    TypeError, ValueError, BackendUnavailable
        As `as_row_sparse` and `fastopt.arrays.libraries.view`.
    """
    return as_row_sparse(grad, name, shape) or view(grad, name)


def is_mapping(grads: Any) -> bool:
    """Return whether gradients are given by name. (SciPy's dok arrays are mappings too, but each is one gradient.)"""
    return isinstance(grads, Mapping) and not hasattr(grads, "tocsr")


def as_row_sparse(grad: Any, name: str, shape: tuple[int, ...] | None = None) -> RowSparse | None:
    """A gradient that is sparse, in whatever library's terms; None for one that is not.

    torch's sparse COO tensors, with one sparse dimension, and all that is ``scipy.sparse``: the rows that have entries,
    entries that are there several times summed. Of one dimension, and of a matrix of one row unless the parameter's
    `shape` is that too, the entries are the rows.

    Raises
    ------
    TypeError
        It has several sparse dimensions (torch's), or a dtype that gradients cannot have.
    """
    if isinstance(grad, RowSparse):
        return grad
    if is_tensor(grad):
        parts = coo_rows(grad, name)
        if parts is None:
            return None
        rows = _integers(parts[0], name), _rows(parts[1], name)
        return RowSparse._of(*rows, shape=tuple(grad.shape))
    sparse = sys.modules.get("scipy.sparse")
    if sparse is None or not sparse.issparse(grad):
        return None
    whole = tuple(grad.shape)
    if len(whole) == 1 or (len(whole) == 2 and whole[0] == 1 and (shape is None or len(shape) == 1)):
        flat, whole = grad.reshape(1, -1).tocsr(), whole[-1:]
        named, values = flat.indices, flat.data
    else:
        flat = grad.reshape(whole[0], -1).tocsr()
        named = np.flatnonzero(np.diff(flat.indptr))
        values = flat[named].toarray().reshape(-1, *whole[1:])
    copied = _rows(values, name)._replace(read_only_reason="rows that are copied from a scipy.sparse array")
    return RowSparse._of(_integers(named, name), copied, shape=whole)


def _integers(x: Any, name: str) -> Array:
    """Integers in one dimension, of int32 or int64; on the CPU contiguous, and of others or in a list as int64."""
    if isinstance(x, (list, tuple)):
        x = _array_of(x, name)
    array = view(x, name)
    if array.dtype.kind not in "iu" or array.dtype == BFLOAT16:
        raise TypeError(f"{name}: found dtype {dtype_name(array.dtype)}, expected int32 or int64")
    if len(array.shape) != 1:
        raise ValueError(f"{name}: found shape {array.shape}, expected one dimension")
    known = array.dtype in (np.int32, np.int64)
    if array.place.kind == "cuda":
        if not known:
            raise TypeError(f"{name}: found dtype {array.dtype}, expected int32 or int64 on a CUDA device")
        if not array.dense:
            raise ValueError(f"{name}: found strides {array.strides}, expected a contiguous array on a CUDA device")
        return array
    if array.dense and known:
        return array
    values = array.numpy()
    if array.dtype.kind == "u" and array.size and int(values.max()) >= 2**63:
        raise ValueError(f"{name}: found {values.max()}, expected integers below 2**63")
    return view(np.array(values, None if known else np.int64), name)


def _array_of(x: Any, name: str) -> np.ndarray:
    """A list of integers as an array: an empty one too."""
    try:
        array = np.array(x)
    except ValueError as error:
        raise ValueError(f"{name}: found a {type(x).__name__} that is no array: {error}") from None
    return array if array.size else array.astype(np.int64)


def _host_or_device(array: Array) -> Any:
    """An array as backends take it: NumPy's, one that nobody else can give another shape, or a device's."""
    return array if array.place.kind == "cuda" else np.asarray(array.numpy()).view()


def _rows(values: Any, name: str) -> Array:
    array = view(values, name)
    if array.dtype not in CODES:
        raise TypeError(
            f"{name}: found dtype {dtype_name(array.dtype)}, expected float32, float64, bfloat16 or float16"
        )
    if row_stride(array) is not None:
        return array
    if array.place.kind == "cuda":
        raise ValueError(
            f"{name}: found strides {array.strides}, expected rows whose elements are contiguous on a CUDA device"
        )
    return view(np.ascontiguousarray(array.numpy()), name)
