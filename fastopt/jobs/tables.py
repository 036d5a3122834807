"""Jobs from arrays: checks, and tables of addresses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, repeat
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from ..arrays.array import Array, replace_shape
from ..arrays.blocks import block_bytes
from ..arrays.checks import check_apart, check_device, check_overlap, check_tensor
from ..arrays.dtypes import CODES, compute_dtype, dtype_name
from ..arrays.libraries import view
from ..arrays.libraries.factors import Averaged, Workplace
from ..arrays.libraries.matrices import Room
from ..arrays.libraries.torch import is_tensor
from ..arrays.runs import row_stride, runs_of
from ..rules import FIRST_STATE, GRADIENT, RULES, FactoredRule, LibraryRule, Rule
from ..rules.hyper import hyper_row
from .job import DUPLICATES, AnyJob, DenseJob, Gradients, MatrixJob, Progress, RowJob, Rows, by_column, offsets_of
from .noise import GradientNoise
from .storage import DITHER, NOISE, Storage, StorageOptions, code_of


class Tensor(NamedTuple):
    """A parameter with its gradient and states, to be checked and tabled."""

    set: int  # its set of parameters
    parameter: int  # its place there
    arrays: list[Any]  # parameter, gradient (or a `RowSparse`), states, inputs, what storage adds, single states
    options: int = 0  # of its storage
    average_decay: float = 0.0
    seed: int = 0
    element: int = 0  # the number of its first element
    noise: GradientNoise | None = None

    @classmethod
    def of(cls, stored: StorageOptions, in_set: int, parameter: int, arrays: list[Any], element: int) -> Tensor:
        """A tensor of an optimizer that was told `stored`."""
        decay = stored.ema_decay or 0.0
        options = stored.options(arrays[0])
        return cls(in_set, parameter, arrays, options, decay, stored.seed, element, stored.noise)


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
        Array(
            owners[k],
            array.address + k * stride,
            array.dtype,
            shape,
            strides,
            array.place,
            array.read_only_reason,
            array.pin,
        )
        for k in range(copies)
    ]


class _Together(NamedTuple):
    """The tensors under a rule that measures all of them together."""

    dtype: np.dtype  # of the first's arithmetic
    name: str  # of the first
    known: set[tuple[int, int]]  # places and addresses of states of one number, which tensors may share

    def check(self, rule: Rule, param: Array, name: str) -> None:
        """Check that another parameter is computed in the dtype of the first."""
        if compute_dtype(param.dtype) != self.dtype:
            raise TypeError(
                f"{name}: found {dtype_name(param.dtype)}, expected a dtype that is computed in {self.dtype}, as "
                f"{self.name} is: {rule.optimizer} measures all tensors together"
            )

    def add(self, arrays: Sequence[Array], names: Sequence[str], whole: int) -> tuple[list[Array], list[str]]:
        """Return a tensor's arrays, and their names, without the states of one number that others have too."""
        places = [(j, array.address) for j, array in enumerate(arrays)]
        new = [place for place in places if place[0] < whole or place not in self.known]
        self.known.update(places[whole:])
        return [arrays[j] for j, _ in new], [names[j] for j, _ in new]


def make_jobs(
    sets: Sequence[Progress],
    tensors: Sequence[Tensor],
    names: Sequence[Sequence[str]],
) -> list[AnyJob]:
    """Checks tensors and tables them: one job for each rule and storage, each gradient of rows, and each matrix.

    Parameters
    ----------
    sets : sequence of Progress
        The sets of parameters.
    tensors : sequence of Tensor
        The tensors.
    names : sequence of sequence of str
        The arrays' names, for error messages.

    Raises
    ------
    TypeError, ValueError
        As `fastopt.arrays.checks.check_tensor`, `check_device`, `check_overlap` and `RowSparse.check`.
    """
    dense: dict[tuple[int, np.dtype, Storage | None], list[tuple[Tensor, Sequence[str]]]] = {}
    by_rows: list[RowJob] = []
    matrices: dict[int, list[tuple[Tensor, Sequence[str]]]] = {}
    checked: list[list[Array]] = []
    called: list[Sequence[str]] = []
    together: dict[str, _Together] = {}
    for tensor, labels in zip(tensors, names, strict=True):
        rule, arrays = sets[tensor.set].rule, tensor.arrays
        if isinstance(arrays[GRADIENT], Array) and not rule.by_row:
            blocks = (block_bytes(arrays[0].size),)
            shapes = [None, None, *[blocks] * (sets[tensor.set].copies * len(rule.elements))]
            first, end = _apart(rule, arrays)
            like = [*arrays[:first], *arrays[end:]], [*labels[:first], *labels[end:]]
            check_tensor(*like, sets[tensor.set].read_only, shapes=shapes)
            rule.check_shape(arrays[0].shape, labels[0])
            dtype = compute_dtype(arrays[0].dtype)
            if rule.over_all:
                together.setdefault(rule.name, _Together(dtype, labels[0], set())).check(rule, arrays[0], labels[0])
            if first < end:
                check_device(arrays, labels)
                own = [
                    rule.state_shape(name, arrays[0].shape, 1)
                    for name in rule.singles or rule.states_of(arrays[0].shape)
                ]
                check_apart(arrays[first:end], labels[first:end], dtype, own)
            if isinstance(rule, LibraryRule):
                matrices.setdefault(tensor.set, []).append((tensor, labels))
            else:
                key = (tensor.set, dtype, _storage(sets[tensor.set], tensor, arrays, dtype))
                dense.setdefault(key, []).append((tensor, labels))
            if rule.over_all:
                arrays, labels = together[rule.name].add(arrays, labels, first)
        else:
            arrays, rows = check_rows(rule, arrays, labels)
            if tensor.noise is not None and DUPLICATES[rows.duplicates] != "sum":
                raise ValueError(
                    f"{labels[GRADIENT]}: found duplicates {DUPLICATES[rows.duplicates]!r}, expected 'sum': with "
                    "gradient_noise each step of a row would have the same noise"
                )
            by_rows.append(make_row_job(sets[tensor.set], tensor._replace(arrays=arrays), rows))
        checked.append(arrays)
        called.append(labels)
    check_device([arrays[0] for arrays in checked], [labels[0] for labels in called])
    check_overlap(
        list(chain.from_iterable(checked)),
        list(chain.from_iterable(called)),
        [
            j not in read_only
            for read_only, arrays in zip([sets[tensor.set].read_only for tensor in tensors], checked, strict=True)
            for j in range(len(arrays))
        ],
    )
    made = [
        _make_dense_job(sets[k], dtype, storage, *map(list, zip(*members, strict=True)))
        for (k, dtype, storage), members in dense.items()
    ]
    return [*made, *by_rows, *chain.from_iterable(_make_matrix_jobs(sets[k], *own) for k, own in matrices.items())]


def _apart(rule: Rule, arrays: Sequence[Array]) -> tuple[int, int]:
    """Return the places, from the first to before the last, of states whose shapes are not the parameter's."""
    if isinstance(rule, FactoredRule):
        return FIRST_STATE, FIRST_STATE + len(rule.states_of(arrays[0].shape))
    return len(arrays) - len(rule.singles), len(arrays)


def _make_matrix_jobs(progress: Progress, *members: tuple[Tensor, Sequence[str]]) -> list[MatrixJob]:
    """The jobs of tensors under a rule, one for each: only one is worked on at a time, so that they share room."""
    rule = progress.rule
    assert isinstance(rule, LibraryRule)
    count = len(progress.steps)
    ends = [Progress.of(RULES[name], 1, count, count) for name in (rule.first, rule.last)]
    ends[1].steps = progress.steps  # which it counts for the rule
    for own in ends:
        own.group[:] = np.arange(count)
    alike: dict[tuple[bool, np.dtype], list[tuple[Tensor, Sequence[str]]]] = {}
    for tensor, labels in members:
        param = tensor.arrays[0]
        alike.setdefault((is_tensor(param.owner), compute_dtype(param.dtype)), []).append((tensor, labels))
    found = []
    for (_, dtype), given in alike.items():
        like, shapes = given[0][0].arrays[0], [tensor.arrays[0].shape for tensor, _ in given]
        room: Room | Workplace
        if isinstance(rule, FactoredRule):
            room = Workplace(like.owner, like, given[0][1][0], max(map(math.prod, shapes)), dtype)
        else:
            room = Room(like.owner, like, given[0][1][0], shapes, dtype)
        found += [_make_matrix_job(progress, ends, room, dtype, *one) for one in given]
    return found


def _make_matrix_job(
    progress: Progress,
    ends: Sequence[Progress],
    room: Room | Workplace,
    dtype: np.dtype,
    tensor: Tensor,
    names: Sequence[str],
) -> MatrixJob:
    param, grad, *others = tensor.arrays
    states = len(progress.rule.states_of(param.shape))
    turned = param.order == (1, 0)  # the matrix between lies as the parameter does
    matrix = room.matrix(param.shape[::-1] if turned else param.shape)
    whole = matrix.T if turned else matrix
    between, averaged, kept = view(whole, "matrix"), None, others[:states]
    if isinstance(room, Workplace):
        averaged, kept = (Averaged.of(room, matrix, turned, param, kept) if param.size else None), []
    of_gradients = NOISE | DITHER
    parts = [
        tensor._replace(arrays=[between, grad, *kept], options=tensor.options & of_gradients),
        tensor._replace(arrays=[param, between, *others[states:]], options=tensor.options & ~of_gradients, noise=None),
    ]
    first, last = (
        _make_dense_job(own, dtype, _storage(own, part, part.arrays, dtype), [part], [names])
        for own, part in zip(ends, parts, strict=True)
    )
    first.owners += tensor.arrays
    last.owners = first.owners
    return MatrixJob(
        progress=progress, first=first, last=last, shape=param.shape, room=room, matrix=matrix, averaged=averaged
    )


def _storage(progress: Progress, tensor: Tensor, arrays: Sequence[Array], dtype: np.dtype) -> Storage | None:
    """Return a tensor's storage; None where all arrays are of the compute dtype, and nothing is asked for."""
    rule = progress.rule
    states = rule.elements * progress.copies
    whole = arrays[: len(arrays) - len(rule.singles)]
    named = [None, None, *states, *[None] * (len(whole) - FIRST_STATE - len(states))]
    codes = tuple(map(code_of, repeat(rule), named, whole))
    if not tensor.options and set(codes) == {CODES[dtype]}:
        return None
    return Storage(codes, tensor.options, tensor.average_decay, tensor.seed, tensor.noise)


def adding(parameters: int) -> Progress:
    """Parameters to which a step adds their gradients: SGD upwards with a learning rate of 1."""
    rule = RULES["sgd"]
    progress = Progress.of(rule, 1, parameters, 1)
    progress.hyper[0] = hyper_row(rule, {**rule.defaults(), "lr": 1.0, "maximize": True})
    return progress


def check_rows(rule: Rule, arrays: Sequence[Any], names: Sequence[str]) -> tuple[list[Array], Rows]:
    """Checks a tensor that is updated by rows: its arrays, with the gradient's rows among them, and which they are.

    The gradient is a `RowSparse`, or for a rule of rows a dense one too: it has all rows.

    Raises
    ------
    TypeError, ValueError
        As `fastopt.arrays.checks.check_tensor` and `RowSparse.check`; or an array's rows are not contiguous.
    """
    if rule.whole:
        raise ValueError(f"{names[GRADIENT]}: found a gradient of rows, expected a dense one: {rule.whole}")
    if isinstance(arrays[GRADIENT], Array):  # a number is one row
        arrays = [array if array.shape else replace_shape(array, (1,)) for array in arrays]
    param, gradient = arrays[:2]
    if not param.shape:
        raise ValueError(f"{names[0]}: found a parameter without rows, expected one dimension at least")
    end = FIRST_STATE + len(rule.elements)
    for array, name in zip(arrays[FIRST_STATE:end], names[FIRST_STATE:end], strict=True):
        if array.dtype == np.uint8:
            raise TypeError(
                f"{name}: found 8-bit blocks, expected float32, bfloat16 or float16: rows are not updated in blocks; "
                'its group may have a state_dtype of its own, as {"params": ..., "state_dtype": "float32"}'
            )
    states = rule.count_arrays(1) if rule.by_row else len(arrays)
    shape = rule.state_shape(rule.elements[0], param.shape, 1) if rule.by_row else param.shape
    inputs = range(end - 1, end - 1 + len(rule.inputs))  # the gradient is checked by itself
    check_tensor([param, *arrays[FIRST_STATE:states]], [names[0], *names[FIRST_STATE:states]], inputs, shape=shape)
    check_tensor([param, *arrays[states:]], [names[0], *names[states:]], ())
    if isinstance(gradient, Array):
        check_tensor([param, gradient], names[:2])
        every: Any = np.arange(param.shape[0])
        if param.place.kind == "cuda":  # at no address: they are their own numbers
            every = Array(None, 0, every.dtype, every.shape, None, param.place)
        values, rows = gradient, Rows(param.shape[0], math.prod(param.shape[1:]), every, DUPLICATES.index("sum"))
    else:
        values, rows = gradient.check(param, names)
    checked = [param, values, *arrays[FIRST_STATE:]]
    for array, name in zip(checked, names, strict=True):
        if row_stride(array) is None:
            raise ValueError(f"{name}: found rows whose elements are not contiguous, expected contiguous ones")
    return checked, rows


def make_row_job(progress: Progress, tensor: Tensor, rows: Rows) -> RowJob:
    """The job of a tensor that `check_rows` has checked."""
    arrays, dtype = tensor.arrays, compute_dtype(tensor.arrays[0].dtype)
    return RowJob(
        progress=progress,
        dtype=dtype,
        addresses=np.array([a.address for a in arrays], np.uint64),
        strides=np.array([row_stride(a) for a in arrays], np.int64),
        members=np.array([tensor.parameter], np.int32),
        rows=rows,
        owners=list(arrays),
        storage=_storage(progress, tensor, arrays, dtype),
        elements=np.array([tensor.element]),
        place=arrays[0].place,
    )


def _make_dense_job(
    progress: Progress,
    dtype: np.dtype,
    storage: Storage | None,
    tensors: Sequence[Tensor],
    names: Sequence[Sequence[str]],
) -> DenseJob:
    members = np.array([tensor.parameter for tensor in tensors], np.int32)
    numbered = storage is not None and storage.numbered
    whole = len(tensors[0].arrays) - len(progress.rule.singles)
    addresses, strides, offsets, tensor_of = _table([tensor.arrays[:whole] for tensor in tensors], numbered)
    if progress.rule.singles:
        singles = np.array([[a.address for a in tensor.arrays[whole:]] for tensor in tensors], np.uint64)
        addresses = np.concatenate([addresses, singles[tensor_of]], axis=1)
        if strides is not None:
            strides = np.pad(strides, ((0, 0), (0, singles.shape[1])))
    elements = None
    if numbered:
        first = np.searchsorted(tensor_of, np.arange(len(tensors)))  # each tensor's first run
        elements = np.array([tensor.element for tensor in tensors], np.int64)[tensor_of]
        elements = elements + offsets[:-1] - offsets[first[tensor_of]]
    if storage is not None and storage.blocks:
        for tensor, labels, runs in zip(tensors, names, np.bincount(tensor_of, minlength=len(tensors)), strict=True):
            if runs > 1:
                grad = tensor.arrays[GRADIENT]
                raise ValueError(
                    f"{labels[GRADIENT]}: found strides {grad.strides}, expected elements in the order in memory of "
                    f"{labels[0]}, whose strides are {tensor.arrays[0].strides}: its states are in blocks of neighbours"
                )
    owners = [a for tensor in tensors for a in tensor.arrays]
    place = tensors[0].arrays[0].place
    return DenseJob(
        progress=progress,
        dtype=dtype,
        addresses=by_column(addresses, place),
        strides=strides,
        offsets=offsets,
        tensor_of=tensor_of,
        members=members,
        owners=owners,
        storage=storage,
        elements=elements,
        place=place,
    )


def _table(
    tensors: Sequence[Sequence[Array]], ordered: bool = False
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """The runs of tensors: addresses, strides (None where all are contiguous), offsets, tensor of each."""
    if all(map(attrgetter("dense"), chain.from_iterable(tensors))):
        addresses = np.array(list(map(attrgetter("address"), chain.from_iterable(tensors))), np.uint64)
        addresses = addresses.reshape(len(tensors), -1)
        lengths = np.array([arrays[0].size for arrays in tensors], np.int64)
        return addresses, None, offsets_of(lengths), np.arange(len(tensors), dtype=np.int32)
    tables = [_runs(arrays, ordered) for arrays in tensors]
    counts = [len(table) for table, _, _ in tables]
    strides = np.repeat(np.array([steps for _, steps, _ in tables], np.int64), counts, axis=0)
    offsets = offsets_of(np.repeat(np.array([length for _, _, length in tables], np.int64), counts))
    tensor_of = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
    contiguous = bool((strides == [a.dtype.itemsize for a in tensors[0]]).all())
    return np.concatenate([table for table, _, _ in tables]), None if contiguous else strides, offsets, tensor_of


def _runs(arrays: Sequence[Array], ordered: bool) -> tuple[np.ndarray, list[int], int]:
    """Find the runs of arrays by `runs_of`; states in blocks are laid out as the first array is."""
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


def make_gradients(arrays: Sequence[Array], names: Sequence[str]) -> list[Gradients]:
    """Tables arrays that are to be read only, one table for each dtype."""
    kinds: dict[np.dtype, list[int]] = {}
    check_device(arrays, names)
    for i, (array, name) in enumerate(zip(arrays, names, strict=True)):
        if array.dtype not in CODES:
            raise TypeError(
                f"{name}: found dtype {array.dtype}, expected float32, float64, bfloat16 or float16 in native byte "
                "order"
            )
        kinds.setdefault(array.dtype, []).append(i)
    tables = []
    for dtype, places in kinds.items():
        owners = [arrays[i] for i in places]
        addresses, strides, offsets, array_of = _table([[array] for array in owners])
        if strides is None:
            strides = np.full(addresses.shape, dtype.itemsize, np.int64)
        made = Gradients(dtype, addresses, strides, offsets, array_of, np.array(places), owners, arrays[0].place)
        tables.append(made)
    return tables
