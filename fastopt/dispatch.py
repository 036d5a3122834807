"""From arrays to a backend: checks, the table of addresses, the choice."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from . import settings
from .arrays import Array, check_overlap, check_tensor, replace_shape, row_stride, runs_of
from .errors import BackendUnavailable
from .rules import MAX_COPIES, Rule

_MODULES = {"native": "native", "numba": "numba_cpu"}


class Runner(Protocol):
    """Jobs made ready by a backend."""

    def __call__(self, grad_scale: float, threads: int) -> None:
        """Does one step: advances step counts, folds, updates. Once begun it is done whole."""


class Backend(Protocol):
    """What a backend's module offers."""

    def prepare(self, jobs: Sequence[Job]) -> Runner:
        """Makes jobs ready to be run, any number of times."""

    def square_sums(self, grads: Gradients, threads: int) -> np.ndarray:
        """The sums of squares of blocks of a set of gradients, in order."""


@dataclass
class Parameters:
    """What a set of parameters under one rule keeps beside arrays; rows are by parameter or by group.

    Backends read `hyper` and advance `steps` and `scalars` in place.
    """

    rule: Rule
    copies: int
    group: np.ndarray  # int32 [parameters]: the parameter's row of hyper
    steps: np.ndarray  # int64 [parameters]
    scalars: np.ndarray  # float64 [parameters, scalars]
    hyper: np.ndarray  # float64 [rows, copies, hyper-parameters]

    @classmethod
    def of(cls, rule: Rule, copies: int, parameters: int, rows: int, steps: np.ndarray | None = None) -> Parameters:
        """Parameters that have made no step."""
        return cls(
            rule,
            copies,
            np.zeros(parameters, np.int32),
            np.zeros(parameters, np.int64) if steps is None else steps,
            np.tile(np.array(list(rule.scalars.values())), (parameters, 1)),
            np.zeros((rows, copies, len(rule.row))),
        )


@dataclass
class Rows:
    """Which rows of a parameter a gradient is of: lookup i is of row ``indices[i]``."""

    count: int  # of the parameter's rows
    width: int  # elements of a row
    indices: np.ndarray  # int32 or int64 [lookups]
    duplicates: int  # the place in DUPLICATES
    source: np.ndarray | None = None  # int64 [lookups]: the gradient's row that each has; None: its own
    weights: np.ndarray | None = None  # of the job's dtype, [lookups]


#: What several lookups of one row can mean.
DUPLICATES = ("sum", "sequential", "hogwild")


@dataclass
class Job:
    """Tensors of one rule and dtype, as what all backends take: a table of runs.

    With `rows` it is one tensor of which some rows have a gradient: the only run's addresses are those of the arrays'
    first rows and its strides those from row to row; within a row elements are contiguous.
    """

    parameters: Parameters
    dtype: np.dtype
    addresses: np.ndarray  # uint64 [runs, arrays]
    strides: np.ndarray | None  # int64 [runs, arrays], in bytes; None: every run is contiguous
    offsets: np.ndarray  # int64 [runs + 1]
    tensor_of: np.ndarray  # int32 [runs]
    parameter: np.ndarray  # int32 [tensors]
    owners: list[Any] = field(repr=False)
    rows: Rows | None = None

    def of(self, chosen: np.ndarray) -> Job:
        """The part of the job that belongs to some parameters, of which `chosen` has a bool for each."""
        tensors = chosen[self.parameter]
        runs = tensors[self.tensor_of]
        return Job(
            self.parameters,
            self.dtype,
            self.addresses[runs],
            None if self.strides is None else self.strides[runs],
            _offsets(np.diff(self.offsets)[runs]),
            (np.cumsum(tensors, dtype=np.int32) - 1)[self.tensor_of[runs]],
            self.parameter[tensors],
            self.owners,
            self.rows,
        )

    def gradients(self) -> Gradients:
        """Its gradients alone."""
        strides = np.full_like(self.addresses, self.dtype.itemsize, np.int64) if self.strides is None else self.strides
        return Gradients(self.dtype, self.addresses[:, 1:2].copy(), strides[:, 1:2].copy(), self.offsets, self.owners)


@dataclass
class Gradients:
    """Arrays to be read, of one dtype, as a table of runs."""

    dtype: np.dtype
    addresses: np.ndarray
    strides: np.ndarray
    offsets: np.ndarray
    owners: list[Any] = field(repr=False)


def hyper_row(rule: Rule, values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> np.ndarray:
    """Checked hyper-parameters as backends take them, of shape (copies, row).

    Parameters
    ----------
    rule : Rule
        The rule.
    values : mapping
        Every hyper-parameter of the rule.
    names : mapping, optional
        What the caller calls them, where that differs.

    Raises
    ------
    TypeError, ValueError
        A value is no number, or outside its domain.
    """
    names = names or {}
    for name in rule.initial.values():
        if name in values:
            rule.hyper[name].check(names.get(name, name), values[name])
    copies = count_copies(rule, values)
    row = np.empty((copies, len(rule.row)))
    for k, name in enumerate(rule.row):
        if name == "copies":
            row[:, k] = copies
        elif name == rule.vector:
            label = names.get(name, name)
            row[:, k] = [rule.hyper[name].check(f"{label}[{i}]", beta) for i, beta in enumerate(values[name])]
        else:
            row[:, k] = rule.hyper[name].check(names.get(name, name), values[name])
    return row


def count_copies(rule: Rule, values: Mapping[str, Any]) -> int:
    """How many copies of its states the rule has with these hyper-parameters."""
    if rule.vector is None:
        return 1
    vector = values[rule.vector]
    if isinstance(vector, (str, bytes)) or not hasattr(vector, "__len__"):
        raise TypeError(f"{rule.vector}: found {vector!r}, expected {rule.hyper[rule.vector].domain}")
    if not 1 <= len(vector) <= MAX_COPIES:
        raise ValueError(f"{rule.vector}: found {len(vector)} values, expected 1 to {MAX_COPIES}")
    return len(vector)


def split_copies(rule: Rule, copies: int, array: Array, param: Array, name: str) -> list[Array]:
    """A state of shape (copies, *parameter's shape) as its copies; other rules' states as they are."""
    if rule.vector is None:
        return [array]
    if array.shape != (copies, *param.shape):
        raise ValueError(f"{name}: found shape {array.shape}, expected {(copies, *param.shape)}, one for each beta")
    stride = array.strides[0]
    strides = None if array.dense else array.strides[1:]
    return [
        Array(array.owner[k], array.address + k * stride, array.dtype, param.shape, strides, locked=array.locked)
        for k in range(copies)
    ]


def make_jobs(
    parameters: Sequence[Parameters],
    tensors: Sequence[tuple[int, int, list[Any]]],
    names: Sequence[Sequence[str]],
) -> list[Job]:
    """Checks tensors and tables them: one job for each rule and dtype, and one for each gradient of rows.

    Parameters
    ----------
    parameters : sequence of Parameters
        The sets of parameters.
    tensors : sequence of (set, parameter, arrays)
        For each tensor the index of its set, its index there, and its arrays: parameter, gradient, states. The gradient
        may be a `RowSparse`.
    names : sequence of sequence of str
        The arrays' names, for error messages.

    Raises
    ------
    TypeError, ValueError
        As `fastopt.arrays.check_tensor`, `fastopt.arrays.check_overlap` and `RowSparse.check`.
    """
    dense: dict[tuple[int, np.dtype], list[tuple[int, list[Array]]]] = {}
    sparse: list[Job] = []
    checked: list[list[Array]] = []
    for (which, parameter, arrays), labels in zip(tensors, names, strict=True):
        rule = parameters[which].rule
        if isinstance(arrays[1], Array) and not rule.by_row:
            check_tensor(arrays, labels)
            dense.setdefault((which, arrays[0].dtype), []).append((parameter, arrays))
        else:
            arrays, rows = check_rows(rule, arrays, labels)
            sparse.append(make_row_job(parameters[which], parameter, arrays, rows))
        checked.append(arrays)
    check_overlap(
        [a for arrays in checked for a in arrays],
        [name for labels in names for name in labels],
        [j != 1 for arrays in checked for j in range(len(arrays))],
    )
    return [*(_make_job(parameters[which], dtype, members) for (which, dtype), members in dense.items()), *sparse]


def check_rows(rule: Rule, arrays: Sequence[Any], names: Sequence[str]) -> tuple[list[Array], Rows]:
    """Checks a tensor that is updated by rows: its arrays, with the gradient's rows among them, and which they are.

    The gradient is a `RowSparse`, or for a rule of rows a dense one too: it has all rows.

    Raises
    ------
    TypeError, ValueError
        As `fastopt.arrays.check_tensor` and `RowSparse.check`; or an array's rows are not contiguous.
    """
    if isinstance(arrays[1], Array):  # a number is one row
        arrays = [array if array.shape else replace_shape(array, (1,)) for array in arrays]
    param, gradient = arrays[:2]
    if not param.shape:
        raise ValueError(f"{names[0]}: found a parameter without rows, expected one dimension at least")
    shape = rule.state_shape(param.shape, 1) if rule.by_row else param.shape
    check_tensor([param, *arrays[2:]], [names[0], *names[2:]], read_only=-1, shape=shape)
    if isinstance(gradient, Array):
        check_tensor([param, gradient], names[:2])
        every = np.arange(param.shape[0])
        values, rows = gradient, Rows(param.shape[0], math.prod(param.shape[1:]), every, DUPLICATES.index("sum"))
    else:
        values, rows = gradient.check(param, names)
    checked = [param, values, *arrays[2:]]
    for array, name in zip(checked, names, strict=True):
        if row_stride(array) is None:
            raise ValueError(f"{name}: found rows whose elements are not contiguous, expected contiguous ones")
    return checked, rows


def make_row_job(parameters: Parameters, parameter: int, arrays: Sequence[Array], rows: Rows) -> Job:
    """The job of a tensor that `check_rows` has checked."""
    return Job(
        parameters,
        arrays[0].dtype,
        np.array([[a.address for a in arrays]], np.uint64),
        np.array([[row_stride(a) for a in arrays]], np.int64),
        np.array([0, len(rows.indices) * rows.width]),
        np.zeros(1, np.int32),
        np.array([parameter], np.int32),
        [a.owner for a in arrays],
        rows,
    )


def _make_job(parameters: Parameters, dtype: np.dtype, members: Sequence[tuple[int, list[Array]]]) -> Job:
    parameter = np.array([index for index, _ in members], np.int32)
    addresses, strides, offsets, tensor_of = _table([arrays for _, arrays in members], dtype)
    owners = [a.owner for _, arrays in members for a in arrays]
    return Job(parameters, dtype, addresses, strides, offsets, tensor_of, parameter, owners)


def _table(
    tensors: Sequence[Sequence[Array]], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """The runs of tensors: addresses, strides (None where all are contiguous), offsets, tensor of each."""
    if all(a.dense for arrays in tensors for a in arrays):
        addresses = np.array([[a.address for a in arrays] for arrays in tensors], np.uint64)
        lengths = np.array([arrays[0].size for arrays in tensors], np.int64)
        return addresses, None, _offsets(lengths), np.arange(len(tensors), dtype=np.int32)
    tables = [runs_of(arrays) for arrays in tensors]
    counts = [len(table) for table, _, _ in tables]
    strides = np.repeat(np.array([steps for _, steps, _ in tables], np.int64), counts, axis=0)
    offsets = _offsets(np.repeat(np.array([length for _, _, length in tables], np.int64), counts))
    tensor_of = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
    contiguous = bool((strides == dtype.itemsize).all())
    return np.concatenate([table for table, _, _ in tables]), None if contiguous else strides, offsets, tensor_of


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def make_gradients(arrays: Sequence[Array], names: Sequence[str]) -> list[Gradients]:
    """Tables arrays that are to be read only, one table for each dtype."""
    kinds: dict[np.dtype, list[list[Array]]] = {}
    for array, name in zip(arrays, names, strict=True):
        if array.dtype not in (np.float32, np.float64) or not array.dtype.isnative:
            raise TypeError(f"{name}: found dtype {array.dtype}, expected float32 or float64 in native byte order")
        kinds.setdefault(array.dtype, []).append([array])
    tables = []
    for dtype, members in kinds.items():
        addresses, strides, offsets, _ = _table(members, dtype)
        if strides is None:
            strides = np.full(addresses.shape, dtype.itemsize, np.int64)
        tables.append(Gradients(dtype, addresses, strides, offsets, [array.owner for (array,) in members]))
    return tables


# ---- the choice of a backend ----


@cache
def _import(name: str) -> Any:
    """The backend's module, or the `BackendUnavailable` that says why there is none."""
    if name not in _MODULES:
        return BackendUnavailable("not in this version of fastopt; CPU arrays have the backends native and numba")
    try:
        return importlib.import_module(f"fastopt.backends.{_MODULES[name]}")
    except BackendUnavailable as reason:
        return reason


def load_backend(name: str) -> Backend:
    """The backend of that name.

    Raises
    ------
    BackendUnavailable
        It is not available here; the message says why, and what would make it so.
    """
    found = _import(name)
    if isinstance(found, BackendUnavailable):
        raise BackendUnavailable(f"backend {name}: {found}")
    return found


def choose_backend(name: str | None) -> Backend:
    """The backend asked for by the call, else for the process, else the first that is available for CPU arrays."""
    name = check = settings.check_backend("backend", name) or settings.get_backend()
    if check is None:
        name = "numba" if isinstance(_import("native"), BackendUnavailable) else "native"
    assert name is not None
    return load_backend(name)


def available_backends() -> Mapping[str, str]:
    """Every backend with ``"available"``, or the reason why it is not."""
    status = {}
    for name in settings.BACKENDS:
        found = _import(name)
        status[name] = str(found) if isinstance(found, BackendUnavailable) else "available"
    return MappingProxyType(status)
