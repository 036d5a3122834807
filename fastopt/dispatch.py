"""From arrays to a backend: checks, the table of addresses, the choice."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from numbers import Number
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import settings
from .arrays import CPU, Array, Place, check_device, check_overlap, check_tensor, replace_shape, row_stride, runs_of
from .checks import wrong_type, wrong_value
from .errors import BackendUnavailable
from .rules import MAX_COPIES, Rule
from .storage import BLOCK, BLOCK_BYTES, CODES, Precision, Storage, block_bytes, code_of, compute_dtype

_MODULES = {"native": "native", "numba": "numba_cpu", "numba-cuda": "numba_cuda"}


class Runner(Protocol):
    """Jobs made ready by a backend."""

    def __call__(self, grad_scale: float, threads: int) -> None:
        """Does one step: advances step counts, folds, updates. Once begun it is done whole."""

    def advance(self, grad_scale: float) -> None:
        """Does a step's first part: advances step counts and folds."""

    def update(self, job: int, begin: int, end: int, threads: int) -> None:
        """Does some of the rest: updates elements of a job, of tensors in blocks whole blocks."""


class Backend(Protocol):
    """What a backend's module offers."""

    def prepare(self, jobs: Sequence[Job]) -> Runner:
        """Makes jobs ready to be run, any number of times."""

    def square_sums(self, grads: Gradients, threads: int) -> np.ndarray:
        """The sums of squares of blocks of a set of gradients, in order."""


#: The last that can be counted.
MAX_STEP = 2**63 - 1


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

    def check_steps(self) -> None:
        """Whether a step more of every parameter can be counted.

        Raises
        ------
        ValueError
            One has done as many as can be, or fewer than none.
        """
        for done in self.steps.tolist():
            if not 0 <= done < MAX_STEP:
                raise ValueError(f"step: found {done} steps done, expected 0 to {MAX_STEP - 1}, to count another")


@dataclass
class Rows:
    """Which rows of a parameter a gradient is of: lookup i is of row ``indices[i]``.

    The tables are NumPy's on the CPU, and on a CUDA device `fastopt.arrays.Array`.
    """

    count: int  # of the parameter's rows
    width: int  # elements of a row
    indices: Any  # int32 or int64 [lookups]
    duplicates: int  # the place in DUPLICATES
    source: Any = None  # int64 [lookups]: the gradient's row that each has; None: its own
    weights: Any = None  # of the job's dtype, [lookups]
    names: tuple[str, str] = ("param", "grad")  # what the caller calls parameter and gradient

    def check_indices(self) -> None:
        """Whether the indices, on the CPU, are those of rows.

        Raises
        ------
        ValueError
            One is not: it is named, with the range.
        """
        if not self.indices.size:
            return
        # As unsigned numbers negative ones are the largest: one pass finds whatever is out of range.
        unsigned = self.indices.view(f"u{self.indices.itemsize}")
        if int(unsigned.max()) >= self.count:
            found, (of, name) = self.indices[unsigned.argmax()], self.names
            expected = f"0 to {self.count - 1}" if self.count else "none"
            raise ValueError(f"{name}: found index {found}, expected {expected}, as {of} has {self.count} rows")


#: The elements of a run whose squares are added up together: part of what a norm is.
NORM_BLOCK = 4096

#: What several lookups of one row can mean.
DUPLICATES = ("sum", "sequential", "hogwild")


@dataclass
class Job:
    """Tensors of one rule and dtype, as what all backends take: a table of runs.

    With `rows` it is one tensor of which some rows have a gradient: the only run's addresses are those of the arrays'
    first rows and its strides those from row to row; within a row elements are contiguous.
    """

    parameters: Parameters
    dtype: np.dtype  # that of computing
    addresses: np.ndarray  # uint64 [runs, arrays]: parameter, gradient, states, what storage adds
    strides: np.ndarray | None  # int64 [runs, arrays], in bytes; None: every run is contiguous
    offsets: np.ndarray  # int64 [runs + 1]
    tensor_of: np.ndarray  # int32 [runs]
    parameter: np.ndarray  # int32 [tensors]
    owners: list[Array] = field(repr=False)  # views that keep the arrays, and their memory in place
    rows: Rows | None = None
    storage: Storage | None = None  # None: every array is of the dtype
    elements: np.ndarray | None = None  # int64 [runs]: the number of the run's first element, where storage needs it
    place: Place = CPU  # of the first parameter

    @property
    def codes(self) -> tuple[int, ...]:
        """How each array is stored, by `fastopt.storage.CODES`."""
        if self.storage is not None:
            return self.storage.dtypes
        return (CODES[self.dtype],) * (2 + self.parameters.copies * len(self.parameters.rule.states))

    @property
    def units(self) -> list[tuple[int, int]]:
        """For each array, how many bytes so many of its elements take."""
        return [(BLOCK_BYTES, BLOCK) if code not in _DTYPES else (_DTYPES[code].itemsize, 1) for code in self.codes]

    def with_option(self, option: int) -> Job:
        """The same job with one more option of its storage."""
        storage = self.storage or Storage(self.codes)
        return replace(self, storage=replace(storage, options=storage.options | option))

    def of(self, chosen: np.ndarray) -> Job:
        """The part of the job that belongs to some parameters, of which `chosen` has a bool for each."""
        tensors = chosen[self.parameter]
        runs = tensors[self.tensor_of]
        return Job(
            self.parameters,
            self.dtype,
            _by_column(self.addresses[runs], self.place),
            None if self.strides is None else self.strides[runs],
            _offsets(np.diff(self.offsets)[runs]),
            (np.cumsum(tensors, dtype=np.int32) - 1)[self.tensor_of[runs]],
            self.parameter[tensors],
            self.owners,
            self.rows,
            self.storage,
            None if self.elements is None else self.elements[runs],
            self.place,
        )

    def gradients(self) -> Gradients:
        """Its gradients alone."""
        dtype = _DTYPES[self.codes[1]]
        strides = np.full_like(self.addresses, dtype.itemsize, np.int64) if self.strides is None else self.strides
        tables = self.addresses[:, 1:2].copy(), strides[:, 1:2].copy()
        return Gradients(dtype, *tables, self.offsets, self.owners, self.place)


@dataclass
class Gradients:
    """Arrays to be read, of one dtype, as a table of runs."""

    dtype: np.dtype
    addresses: np.ndarray
    strides: np.ndarray
    offsets: np.ndarray
    owners: list[Array] = field(repr=False)
    place: Place = CPU


_DTYPES: dict[int, np.dtype] = {code: dtype for dtype, code in CODES.items()}
FLOAT64 = np.dtype(np.float64)
_LARGEST = {dtype: float(np.finfo(dtype).max) for dtype in (np.dtype(np.float32), FLOAT64)}


class Tensor(NamedTuple):
    """A parameter with its gradient and states, to be checked and tabled."""

    which: int  # its set of parameters
    parameter: int  # its place there
    arrays: list[Any]  # parameter, gradient (or a `RowSparse`), states, what storage adds
    options: int = 0  # of its storage
    average_decay: float = 0.0
    seed: int = 0
    element: int = 0  # the number of its first element

    @classmethod
    def of(cls, precision: Precision, which: int, parameter: int, arrays: list[Any], element: int) -> Tensor:
        """A tensor of an optimizer that was told `precision`."""
        decay = precision.ema_decay or 0.0
        return cls(which, parameter, arrays, precision.options(arrays[0]), decay, precision.seed, element)


def hyper_row(
    rule: Rule,
    values: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    dtype: np.dtype = FLOAT64,
    t: int = 1,
) -> np.ndarray:
    """Checked hyper-parameters as backends take them, of shape (copies, row).

    Parameters
    ----------
    rule : Rule
        The rule.
    values : mapping
        Every hyper-parameter of the rule.
    names : mapping, optional
        What the caller calls them, where that differs.
    dtype : numpy.dtype
        In which updates are computed.
    t : int
        The step that they are for.

    Raises
    ------
    TypeError, ValueError
        A value is no number, or outside its domain, or `dtype` cannot hold it or what becomes of it at step `t`.
    """
    names = names or {}
    for name in rule.initial.values():
        if name in values:
            rule.hyper[name].check(names.get(name, name), values[name])
    copies = count_copies(rule, values)
    columns: list[list[float]] = []
    for name in rule.row:
        if name == "copies":
            columns.append([copies] * copies)
        elif name == rule.vector:
            label = names.get(name, name)
            columns.append([rule.hyper[name].check(f"{label}[{i}]", beta) for i, beta in enumerate(values[name])])
        else:
            columns.append([rule.hyper[name].check(names.get(name, name), values[name])] * copies)
    rows = list(zip(*columns, strict=True))
    _check_range(rule, rows, names, dtype, t)
    return np.array(rows, np.float64)


def frozen(values: Iterable[Any]) -> tuple[Any, ...] | None:
    """Hyper-parameters to compare with later ones; None where one may change unseen: an array, or a callable."""
    fixed = []
    for value in values:
        if isinstance(value, (list, tuple)):
            value = tuple(value)
        for leaf in value if isinstance(value, tuple) else (value,):
            if not isinstance(leaf, _FIXED):
                return None
        fixed.append(value)
    return tuple(fixed)


_FIXED = (type(None), int, float, np.generic, Number)


def check_held(name: str, value: float, dtype: np.dtype) -> None:
    """Whether a dtype can hold a number.

    Raises
    ------
    ValueError
        The number is finite, and beyond it.
    """
    if _LARGEST[dtype] < abs(value) < math.inf:
        expected = f"a number that {dtype} holds, in which the update is computed: at most {_LARGEST[dtype]:.8g}"
        raise wrong_value(name, value, expected)


def _check_range(
    rule: Rule, rows: Sequence[tuple[float, ...]], names: Mapping[str, str], dtype: np.dtype, t: int
) -> None:
    """Whether a dtype can hold hyper-parameters and the coefficients of step t: infinity times 0 would be NaN."""
    largest = _LARGEST[dtype]
    for row in rows:
        if row[0] > 1e-15 and max(row) < 1e15 and min(row) > -1e15:  # whose products and quotients all can hold
            continue
        coefficients, _ = rule.fold_row(float(t), row, tuple(rule.scalars.values()))
        if max(map(abs, (*row, *coefficients))) <= largest:
            continue
        for name, value in zip(rule.row, row, strict=True):
            check_held(names.get(name, name), value, dtype)
        for name, value in zip(rule.coefficients, coefficients, strict=True):
            if not abs(value) <= largest:
                raise ValueError(
                    f"{names.get('lr', 'lr')}: found {row[0]!r}, which with the other hyper-parameters makes {name} "
                    f"{value:g} at step {t}, expected a number that {dtype} holds: at most {largest:.8g}"
                )


def count_copies(rule: Rule, values: Mapping[str, Any]) -> int:
    """How many copies of its states the rule has with these hyper-parameters."""
    if rule.vector is None:
        return 1
    vector = values[rule.vector]
    try:
        copies = None if isinstance(vector, (str, bytes)) else len(vector)
    except Exception:  # it has no length
        copies = None
    if copies is None:
        raise wrong_type(rule.vector, vector, rule.hyper[rule.vector].domain)
    if not 1 <= copies <= MAX_COPIES:
        raise ValueError(f"{rule.vector}: found {copies} values, expected 1 to {MAX_COPIES}")
    return copies


def split_copies(rule: Rule, copies: int, array: Array, param: Array, name: str) -> list[Array]:
    """A state of shape (copies, *parameter's shape) as its copies; other rules' states as they are."""
    if rule.vector is None:
        return [array]
    shape = (block_bytes(param.size),) if array.dtype == np.uint8 else param.shape
    if array.shape != (copies, *shape):
        raise ValueError(f"{name}: found shape {array.shape}, expected {(copies, *shape)}, one for each beta")
    stride = array.strides[0]
    strides = None if array.dense else array.strides[1:]
    owners = array.owner if isinstance(array.owner, np.ndarray) else [array.owner] * copies
    return [
        Array(owners[k], array.address + k * stride, array.dtype, shape, strides, array.place, array.locked, array.pin)
        for k in range(copies)
    ]


def make_jobs(
    parameters: Sequence[Parameters],
    tensors: Sequence[Tensor],
    names: Sequence[Sequence[str]],
) -> list[Job]:
    """Checks tensors and tables them: one job for each rule and storage, and one for each gradient of rows.

    Parameters
    ----------
    parameters : sequence of Parameters
        The sets of parameters.
    tensors : sequence of Tensor
        The tensors.
    names : sequence of sequence of str
        The arrays' names, for error messages.

    Raises
    ------
    TypeError, ValueError
        As `fastopt.arrays.check_tensor`, `check_device`, `check_overlap` and `RowSparse.check`.
    """
    dense: dict[tuple[int, np.dtype, Storage | None], list[tuple[Tensor, Sequence[str]]]] = {}
    sparse: list[Job] = []
    checked: list[list[Array]] = []
    for tensor, labels in zip(tensors, names, strict=True):
        rule, arrays = parameters[tensor.which].rule, tensor.arrays
        if isinstance(arrays[1], Array) and not rule.by_row:
            blocks = (block_bytes(arrays[0].size),)
            shapes = [None, None, *[blocks] * (parameters[tensor.which].copies * len(rule.states))]
            check_tensor(arrays, labels, shapes=shapes)
            storage = _storage(parameters[tensor.which], tensor, arrays)
            key = (tensor.which, compute_dtype(arrays[0].dtype), storage)
            dense.setdefault(key, []).append((tensor, labels))
        else:
            arrays, rows = check_rows(rule, arrays, labels)
            sparse.append(make_row_job(parameters[tensor.which], tensor._replace(arrays=arrays), rows))
        checked.append(arrays)
    check_device([arrays[0] for arrays in checked], [labels[0] for labels in names])
    check_overlap(
        [a for arrays in checked for a in arrays],
        [name for labels in names for name in labels],
        [j != 1 for arrays in checked for j in range(len(arrays))],
    )
    made = [
        _make_job(parameters[which], dtype, storage, *map(list, zip(*members, strict=True)))
        for (which, dtype, storage), members in dense.items()
    ]
    return [*made, *sparse]


def _storage(parameters: Parameters, tensor: Tensor, arrays: Sequence[Array]) -> Storage | None:
    """How a tensor's arrays are stored; None where all are of the dtype of computing, and nothing is asked for."""
    rule = parameters.rule
    states = rule.states * parameters.copies
    named = [None, None, *states, *[None] * (len(arrays) - 2 - len(states))]
    codes = tuple(code_of(rule, state, array) for state, array in zip(named, arrays, strict=True))
    if not tensor.options and set(codes) == {CODES[compute_dtype(arrays[0].dtype)]}:
        return None
    return Storage(codes, tensor.options, tensor.average_decay, tensor.seed)


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
    for array, name in zip(arrays[2:], names[2:], strict=True):
        if array.dtype == np.uint8:
            raise TypeError(
                f"{name}: found 8-bit blocks, expected float32, bfloat16 or float16: rows are not updated in blocks; "
                'its group may have a state_dtype of its own, as {"params": ..., "state_dtype": "float32"}'
            )
    states = 2 + len(rule.states) if rule.by_row else len(arrays)
    shape = rule.state_shape(param.shape, 1) if rule.by_row else param.shape
    check_tensor([param, *arrays[2:states]], [names[0], *names[2:states]], read_only=-1, shape=shape)
    check_tensor([param, *arrays[states:]], [names[0], *names[states:]], read_only=-1)
    if isinstance(gradient, Array):
        check_tensor([param, gradient], names[:2])
        every: Any = np.arange(param.shape[0])
        if param.place.kind == "cuda":  # at no address: they are their own numbers
            every = Array(None, 0, every.dtype, every.shape, None, param.place)
        values, rows = gradient, Rows(param.shape[0], math.prod(param.shape[1:]), every, DUPLICATES.index("sum"))
    else:
        values, rows = gradient.check(param, names)
    checked = [param, values, *arrays[2:]]
    for array, name in zip(checked, names, strict=True):
        if row_stride(array) is None:
            raise ValueError(f"{name}: found rows whose elements are not contiguous, expected contiguous ones")
    return checked, rows


def make_row_job(parameters: Parameters, tensor: Tensor, rows: Rows) -> Job:
    """The job of a tensor that `check_rows` has checked."""
    arrays = tensor.arrays
    return Job(
        parameters,
        compute_dtype(arrays[0].dtype),
        np.array([[a.address for a in arrays]], np.uint64),
        np.array([[row_stride(a) for a in arrays]], np.int64),
        np.array([0, rows.indices.size * rows.width]),
        np.zeros(1, np.int32),
        np.array([tensor.parameter], np.int32),
        list(arrays),
        rows,
        _storage(parameters, tensor, arrays),
        np.array([tensor.element]),
        arrays[0].place,
    )


def _make_job(
    parameters: Parameters,
    dtype: np.dtype,
    storage: Storage | None,
    tensors: Sequence[Tensor],
    names: Sequence[Sequence[str]],
) -> Job:
    parameter = np.array([tensor.parameter for tensor in tensors], np.int32)
    numbered = storage is not None and storage.numbered
    addresses, strides, offsets, tensor_of = _table([tensor.arrays for tensor in tensors], numbered)
    elements = None
    if numbered:
        first = np.searchsorted(tensor_of, np.arange(len(tensors)))  # each tensor's first run
        elements = np.array([tensor.element for tensor in tensors], np.int64)[tensor_of]
        elements = elements + offsets[:-1] - offsets[first[tensor_of]]
    if storage is not None and storage.blocks:
        for tensor, labels, runs in zip(tensors, names, np.bincount(tensor_of, minlength=len(tensors)), strict=True):
            if runs > 1:
                grad = tensor.arrays[1]
                raise ValueError(
                    f"{labels[1]}: found strides {grad.strides}, expected elements in the order in memory of "
                    f"{labels[0]}, whose strides are {tensor.arrays[0].strides}: its states are in blocks of neighbours"
                )
    owners = [a for tensor in tensors for a in tensor.arrays]
    place = tensors[0].arrays[0].place
    table = _by_column(addresses, place), strides, offsets, tensor_of, parameter, owners
    return Job(parameters, dtype, *table, None, storage, elements, place)


def _by_column(addresses: np.ndarray, place: Place) -> np.ndarray:
    """A table of addresses as the backend wants it: in C a run's are together, on a CUDA device an array's are."""
    return addresses if place.kind == "cpu" else np.asfortranarray(addresses)


def _table(
    tensors: Sequence[Sequence[Array]], ordered: bool = False
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """The runs of tensors: addresses, strides (None where all are contiguous), offsets, tensor of each."""
    if all(a.dense for arrays in tensors for a in arrays):
        addresses = np.array([[a.address for a in arrays] for arrays in tensors], np.uint64)
        lengths = np.array([arrays[0].size for arrays in tensors], np.int64)
        return addresses, None, _offsets(lengths), np.arange(len(tensors), dtype=np.int32)
    tables = [_runs(arrays, ordered) for arrays in tensors]
    counts = [len(table) for table, _, _ in tables]
    strides = np.repeat(np.array([steps for _, steps, _ in tables], np.int64), counts, axis=0)
    offsets = _offsets(np.repeat(np.array([length for _, _, length in tables], np.int64), counts))
    tensor_of = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
    contiguous = bool((strides == [a.dtype.itemsize for a in tensors[0]]).all())
    return np.concatenate([table for table, _, _ in tables]), None if contiguous else strides, offsets, tensor_of


def _runs(arrays: Sequence[Array], ordered: bool) -> tuple[np.ndarray, list[int], int]:
    """As `runs_of`, with states in blocks, which lie as the first array does."""
    blocks = [a.dtype == np.uint8 for a in arrays]
    if not any(blocks):
        return runs_of(arrays, ordered)
    found, strides, length = runs_of([a for a, block in zip(arrays, blocks, strict=True) if not block], ordered)
    addresses = np.zeros((len(found), len(arrays)), np.uint64)
    addresses[:, np.flatnonzero(~np.array(blocks))] = found
    for j in np.flatnonzero(blocks).tolist():
        addresses[:, j] = arrays[j].address
        strides.insert(j, 1)
    return addresses, strides, length


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def make_gradients(arrays: Sequence[Array], names: Sequence[str]) -> list[Gradients]:
    """Tables arrays that are to be read only, one table for each dtype."""
    kinds: dict[np.dtype, list[list[Array]]] = {}
    check_device(arrays, names)
    for array, name in zip(arrays, names, strict=True):
        if array.dtype not in CODES:
            raise TypeError(
                f"{name}: found dtype {array.dtype}, expected float32, float64, bfloat16 or float16 in native byte "
                "order"
            )
        kinds.setdefault(array.dtype, []).append([array])
    tables = []
    for dtype, members in kinds.items():
        addresses, strides, offsets, _ = _table(members)
        if strides is None:
            strides = np.full(addresses.shape, dtype.itemsize, np.int64)
        owners = [array for (array,) in members]
        tables.append(Gradients(dtype, addresses, strides, offsets, owners, arrays[0].place))
    return tables


# ---- the choice of a backend ----


@cache
def _import(name: str) -> Any:
    """The backend's module, or the `BackendUnavailable` that says why there is none."""
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


@cache
def cpu_backend() -> str:
    """The name of the first backend for CPU arrays that is available; warns, once, if that is not the C library."""
    reason = _import("native")
    if not isinstance(reason, BackendUnavailable):
        return "native"
    if not isinstance(_import("numba"), BackendUnavailable):
        warnings.warn(
            f"fastopt: updates are done by Numba, which compiles for seconds when first used: {reason}; "
            "FASTOPT_BACKEND=numba chooses it without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
    return "numba"


def ieee_arithmetic() -> AbstractContextManager[None]:
    """Until the block's end this thread's arithmetic, Python's and NumPy's too, is IEEE 754's: it rounds to nearest and
    keeps subnormal numbers, which others may have set it not to do.
    """
    backend: Any = load_backend(cpu_backend())
    context: AbstractContextManager[None] = backend.ieee_arithmetic()
    return context


def watch_writable(arrays: Sequence[np.ndarray]) -> Callable[[], int]:
    """What tells whether arrays, which must live as long, all are writable still."""
    native = _import("native")
    watch = None if isinstance(native, BackendUnavailable) else native.watch(arrays)
    return watch or (lambda: all(array.flags.writeable for array in arrays))


def choose_backend(name: str | None, place: Place = CPU) -> Backend:
    """The backend that the call asks for, else the thread or task, else the first that is there for such arrays.

    Raises
    ------
    ValueError
        The one asked for is not for arrays there.
    BackendUnavailable
        It is not available, or none is.
    """
    chosen = settings.check_backend("backend", name) or settings.get_backend()
    on_cuda = place.kind == "cuda"
    if chosen is None:
        chosen = "numba-cuda" if on_cuda else cpu_backend()
    backend = load_backend(chosen)
    if (chosen == "numba-cuda") != on_cuda:
        expected = "'numba-cuda'" if on_cuda else "'native' or 'numba'"
        raise ValueError(f"backend: found {chosen!r}, expected {expected} for arrays on {place.device}")
    return backend


def available_backends() -> Mapping[str, str]:
    """Every backend with ``"available"``, or the reason why it is not."""
    status = {}
    for name in settings.BACKENDS:
        found = _import(name)
        status[name] = str(found) if isinstance(found, BackendUnavailable) else "available"
    return MappingProxyType(status)
