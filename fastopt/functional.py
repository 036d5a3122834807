"""The rules as functions: one call, one step, in place, no objects.

Every rule of `fastopt.RULES` has its function here, made from the table, such as::

    adam(param, grad, exp_avg, exp_avg_sq, *, step, lr=1e-3, beta1=0.9, ...)

``param`` and the others are arrays, or equally long lists of arrays: one call updates them all. All functions take:

param, grad, states : array, or list of arrays
    Of one shape; all but ``grad`` are written. Each is float32, bfloat16 or float16, in any combination, and the update
    is computed in float32; or all are float64. A state may be in blocks of 8-bit floats: bytes as `fastopt.Adam` with
    ``state_dtype="8bit"`` keeps them. ``grad`` may be a `fastopt.RowSparse`.
step : int
    The 1-based number of this step.
hyper-parameters : float or bool
    By keyword. There are no schedules: each call has its own values.
grad_scale : float, default 1.0
    What the gradient is multiplied by, within the pass.
backend : str, optional
    "native", "numba" or "numba-cuda"; by default what `fastopt.use_backend` chose, else by the arrays.
threads : int, optional
    At most so many threads; by default `fastopt.get_num_threads`.

What is wrong is a ValueError or TypeError before any byte is written; the message names the argument, what was found
and what would do.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from . import settings
from .arrays.array import CPU
from .arrays.dtypes import compute_dtype
from .arrays.libraries import layout_of, view
from .backends import Runner
from .backends.choice import choose_backend, get_backend, ieee_arithmetic
from .binding.norms import check_scale
from .binding.sparse import view_gradient
from .binding.states import by_copy
from .binding.where import Columns, look
from .checks import check_integer, check_number, did_you_mean
from .documentation import function_text
from .jobs.job import MAX_STEP, Progress
from .jobs.tables import Tensor, make_jobs
from .rules import RULES, Rule
from .rules.hyper import FLOAT64, frozen, hyper_row


class _Bound:
    """Checked arrays under one rule, ready for any step and any hyper-parameters."""

    known: list[_Bound]  # where it waits for a next call
    layouts: list[Any]  # of arrays that their owner can lay out anew
    refs: list[Any]
    addresses: bytes  # of the arrays that it is for now

    def __init__(self, rule: Rule, arrays: Sequence[Any], values: tuple[Any, ...], backend: str | None) -> None:
        self.rule = rule
        lists = _as_lists(rule, arrays)
        labels = ("param", "grad", *rule.states)
        called = [labels if len(lists[0]) == 1 else [f"{label}[{i}]" for label in labels] for i in range(len(lists[0]))]
        params = [view(param, own[0]) for param, own in zip(lists[0], called, strict=True)]
        self._real = min((compute_dtype(param.dtype) for param in params), default=np.dtype(np.float64))
        row = self._row(values)
        self._parameters = Progress.of(rule, len(row), len(lists[0]), 1)
        self._parameters.hyper[0] = row
        self._hyper = frozen(values)
        self._steps = self._parameters.steps
        self._single = len(self._steps) == 1
        tensors, names = [], []
        for i, (param, own, grad, *others) in enumerate(zip(params, called, *lists[1:], strict=True)):
            views = [(view(array, name), name) for array, name in zip(others, own[2:], strict=True)]
            tensor = [param, view_gradient(grad, own[1], param.shape), *by_copy(rule, len(row), views, param)]
            tensors.append(Tensor(0, i, tensor))
            names.append([*own[:2], *(own[2:] * len(row))])
        jobs = make_jobs([self._parameters], tensors, names)
        self.place = tensors[0].arrays[0].place if tensors else CPU
        self._runner: Runner = choose_backend(backend, self.place).prepare(jobs)
        self.jobs = jobs

    def _row(self, values: tuple[Any, ...]) -> np.ndarray:
        return _row_of(self.rule, values, self._real)

    def make_movable(self, members: Sequence[np.ndarray], addresses: bytes) -> None:
        """Prepares for `move`, from where its arrays are."""
        self.addresses = addresses
        copies, states = self._parameters.copies, len(self.rule.states)
        columns = np.array([0, 1, *[2 + k for _ in range(copies) for k in range(states)]])  # the arrays of a table's
        at = np.frombuffer(addresses, np.uint64)
        extents = np.array([view(array, "").extent() for array in members], np.uint64).reshape(-1, 2)
        self._begins, self._ends = (extents - at[:, None]).astype(np.int64).T.tolist()
        self._columns = Columns()
        for job in self.jobs:
            which = np.ravel(columns * len(self._steps) + job.members[job.tensor_of][:, None])
            self._columns.add(job.addresses.reshape(-1), which, at)
            job.owners.clear()
        self._order = list(range(len(members)))
        self.apart = self._are_apart(at.tolist())

    def _are_apart(self, at: Sequence[int]) -> bool:
        """Whether no two arrays would have a byte between them, as gradients and what is interleaved may."""
        end = 0
        for i in self._order:
            if at[i] + self._begins[i] < end:
                break
            end = at[i] + self._ends[i]
        else:
            return True
        before, self._order = self._order, sorted(self._order, key=lambda i: at[i] + self._begins[i])
        return self._order != before and self._are_apart(at)

    def move(self, addresses: bytes) -> bool:
        """Takes over where other arrays of the same layouts are; False where some may overlap."""
        at = np.frombuffer(addresses, np.uint64)
        if not self._are_apart(at.tolist()):
            return False
        self._columns.put(at)
        self.addresses = addresses
        return True

    def run(self, step: Any, values: tuple[Any, ...], grad_scale: float, threads: int, scalars: Any = None) -> None:
        """One step."""
        if type(grad_scale) is not float or grad_scale != 1.0:
            grad_scale = check_scale(grad_scale, self._real)
        try:
            known = values == self._hyper
        except Exception:  # an array of several elements, or what cannot be compared
            known = False
        if not known:
            row = self._row(values)
            if len(row) != self._parameters.copies:
                raise ValueError(
                    f"{self.rule.vector}: found {len(row)} values, expected {self._parameters.copies}, one for each "
                    f"of {self.rule.states[0]}"
                )
            self._parameters.hyper[0] = row
            self._hyper = frozen(values)
        if type(step) is not int or not 1 <= step <= MAX_STEP:
            step = _check_step(step)
        if self.rule.scalars:
            with ieee_arithmetic():
                self._parameters.scalars[:] = _scalars_before(self.rule, step, self._parameters.hyper[0, 0], scalars)
        if self._single:  # a quarter of the time of fill
            self._steps[0] = step - 1
        else:
            self._steps.fill(step - 1)
        self._runner(grad_scale, threads)


def _keys_of(rule: Rule) -> list[str]:
    """The hyper-parameters of a rule's function: those that states begin at are the caller's."""
    return [name for name in rule.hyper if name not in rule.initial.values()]


def _row_of(rule: Rule, values: tuple[Any, ...], dtype: np.dtype = FLOAT64) -> np.ndarray:
    return hyper_row(rule, dict(zip(_keys_of(rule), values, strict=True)), dtype=dtype)


def _check_step(step: Any) -> int:
    return check_integer("step", step, 1, MAX_STEP, "an integer >= 1 (steps are counted from 1)")


def _as_lists(rule: Rule, arrays: Sequence[Any]) -> list[Sequence[Any]]:
    if not isinstance(arrays[0], (list, tuple)):
        for array, name in zip(arrays, ("param", "grad", *rule.states), strict=True):
            if isinstance(array, (list, tuple)):
                raise TypeError(f"{name}: found a {type(array).__name__}, expected one array as param is")
        return [[array] for array in arrays]
    for array, name in zip(arrays, ("param", "grad", *rule.states), strict=True):
        if not isinstance(array, (list, tuple)):
            raise TypeError(f"{name}: found {type(array).__name__}, expected a list of arrays as param is")
        if len(array) != len(arrays[0]):
            raise ValueError(f"{name}: found {len(array)} arrays, expected {len(arrays[0])} as param has")
    return list(arrays)


def _scalars_before(rule: Rule, step: int, row: np.ndarray, given: Any) -> tuple[float, ...]:
    """The rule's scalars before `step`: as given, else what constant hyper-parameters lead to."""
    if given is not None:
        return tuple(check_number(name, value) for name, value in zip(rule.scalars, given, strict=True))
    scalars = tuple(rule.scalars.values())
    for t in range(1, step):
        _, advanced = rule.fold_row(float(t), row.tolist(), scalars)
        if advanced == scalars:  # a fixed point, once products have underflowed
            break
        scalars = advanced
    return scalars


def _update(
    rule: Rule,
    arrays: tuple[Any, ...],
    step: Any,
    values: tuple[Any, ...],
    grad_scale: float,
    scalars: Any,
    backend: str | None,
    threads: int | None,
) -> None:
    """One call of a functional form."""
    limit = settings.threads if threads is None else settings.check_threads("threads", threads)
    if backend is not None and type(backend) is not str:
        backend = settings.check_backend("backend", backend)
    members = arrays
    if type(arrays[0]) in (list, tuple):
        members = tuple(chain.from_iterable(_as_lists(rule, arrays)))
    found = look(members)
    if found is None:
        bound = _of_others(rule, arrays, members, values, backend)
        bound.run(step, values, grad_scale, limit, scalars)
        return
    layouts, addresses = found
    key = (rule.name, get_backend() if backend is None else backend, layouts)
    bound = _take(key, addresses) or _know(_Bound(rule, arrays, values, backend), key, members, addresses)
    try:
        bound.run(step, values, grad_scale, limit, scalars)
    finally:
        bound.known.append(bound)


# What has been bound, by rule, backend and layouts: it serves all arrays of these layouts, wherever they are. What
# cannot be moved, for its arrays interleave or share memory, is known by the arrays' addresses too. A call takes it
# out for itself, for another thread may make one at the same time.
_known: dict[tuple[Any, ...], list[_Bound]] = {}
_MOST = 1 << 16  # arrays that are known


def _take(key: tuple[Any, ...], addresses: bytes) -> _Bound | None:
    """Takes out what is bound for arrays there."""
    known = _known.get(key)
    try:
        if known is not None:
            bound = known.pop()
            if bound.addresses == addresses or bound.move(addresses):
                return bound
            known.append(bound)
        return _known[(*key, addresses)].pop()
    except LookupError:
        return None


def _know(bound: _Bound, key: tuple[Any, ...], members: tuple[Any, ...], addresses: bytes) -> _Bound:
    """The same, which later calls find once it is back."""
    if len(_known) * len(members) > _MOST:
        _known.clear()
    bound.make_movable(members, addresses)
    bound.known = _known.setdefault(key if bound.apart else (*key, addresses), [])
    return bound


# Bound arrays on a CUDA device by their identities. Entries go when one of their arrays does, so that an identity is
# never another's.
_cache: dict[tuple[Any, ...], _Bound] = {}


def _of_others(
    rule: Rule, arrays: tuple[Any, ...], members: tuple[Any, ...], values: tuple[Any, ...], backend: str | None
) -> _Bound:
    """What is bound for arrays that are not NumPy's alone: anew for each call, or while they are on a CUDA device."""
    key = (rule.name, get_backend() if backend is None else backend, *map(id, members))
    bound = _cache.get(key)
    if bound is None or bound.layouts != list(map(layout_of, members)):
        bound = _Bound(rule, arrays, values, backend)
        layouts = list(map(layout_of, members)) if bound.place.kind == "cuda" else [None]
        if all(layouts):
            bound.layouts = layouts
            _remember(key, bound, members)
    return bound


def _remember(key: tuple[Any, ...], bound: _Bound, arrays: tuple[Any, ...]) -> None:
    """Keeps checked arrays for a next call without keeping them alive."""

    def forget(_: Any) -> None:
        _cache.pop(key, None)

    try:
        bound.refs = [weakref.ref(array, forget) for array in arrays]
    except TypeError:  # an array that no weak reference can be made to
        return
    for job in bound.jobs:
        job.owners.clear()
    _cache[key] = bound


def _refuse(rule: Rule, unknown: Iterable[str]) -> NoReturn:
    """Says that a function has no such arguments."""
    known = list(inspect.signature(_FUNCTIONS[rule.name]).parameters)
    found = next(iter(unknown))
    raise TypeError(f"{rule.name}: found {found!r}, expected {', '.join(known)}{did_you_mean(found, known)}")


def _make(rule: Rule) -> Callable[..., None]:
    """The function of a rule, with its own signature."""
    arrays = ("param", "grad", *rule.states)
    keys = _keys_of(rule)
    defaults = rule.defaults()
    required = "".join(f", {key}" for key in keys if key not in defaults)
    optional = "".join(f", {key}=_defaults[{key!r}]" for key in keys if key in defaults)
    scalars = "".join(f", {name}=None" for name in rule.scalars)
    given = f"({', '.join(rule.scalars)},)" if rule.scalars else "None"
    given = f"None if {' or '.join(f'{name} is None' for name in rule.scalars)} else {given}" if rule.scalars else given
    numbers = [key for key in keys if not rule.hyper[key].flag]
    numbers_are_flags = " or ".join(f"{key} is True or {key} is False" for key in numbers)  # 1.0 == True
    source = (
        f"def {rule.name}({', '.join(arrays)}, *, step{required}{optional}{scalars}, grad_scale=1.0, backend=None, "
        f"threads=None, **unknown):\n"
        f"    if unknown:\n"
        f"        _refuse(_rule, unknown)\n"
        f"    if {numbers_are_flags}:\n"
        f"        _row_of(_rule, ({', '.join(keys)},))\n"
        f"    _update(_rule, ({', '.join(arrays)}), step, ({', '.join(keys)},), grad_scale, {given}, backend, "
        "threads)\n"
    )
    namespace: dict[str, Any] = {
        "_update": _update,
        "_refuse": _refuse,
        "_row_of": _row_of,
        "_rule": rule,
        "_defaults": defaults,
    }
    exec(compile(source, f"<fastopt.functional.{rule.name}>", "exec"), namespace)
    function = namespace[rule.name]
    function.__module__ = __name__
    *known, _ = inspect.signature(function).parameters.values()
    function.__signature__ = inspect.Signature(known)
    function.__doc__ = function_text(rule)
    return function


_FUNCTIONS = {name: _make(rule) for name, rule in RULES.items()}
globals().update(_FUNCTIONS)
__all__ = list(_FUNCTIONS)


def __getattr__(name: str) -> Callable[..., None]:
    known = ", ".join(__all__)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; the rules are {known}{did_you_mean(name, __all__)}"
    )


def __dir__() -> list[str]:
    return __all__
