"""One rule's update of arrays that callers keep: bound once, for any step, hyper-parameters and addresses."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ..arrays.array import CPU
from ..arrays.dtypes import compute_dtype
from ..arrays.libraries import layout_of, view
from ..backends.choice import choose_backend, get_backend, ieee_arithmetic
from ..checks import check_integer, check_number
from ..jobs.job import MAX_STEP, Progress
from ..jobs.noise import GradientNoise
from ..jobs.storage import NOISE
from ..jobs.tables import Tensor, make_jobs
from ..rules import FactoredRule, LibraryRule, Rule
from ..rules.hyper import FLOAT64, frozen, hyper_row
from .binding import Binding
from .norms import check_scale
from .sparse import view_gradient
from .states import by_copy
from .where import ApartFromEachOther, Look, Places, Same, look

_NONE: deque[Any] = deque(maxlen=0)

Noise: TypeAlias = tuple[GradientNoise, int] | None


class Update:
    """Checked arrays under one rule.

    Parameters
    ----------
    rule : Rule
        The rule.
    lists : sequence of sequences of array
        Parameters, gradients, and the rule's other arrays in their order.
    values : tuple
        The hyper-parameters, in the order of `keys_of`.
    backend : str, optional
        As the call asks for it.
    noise : tuple of GradientNoise and int, optional
        What is added to gradients, and the number of the first parameter's first element.

    Raises
    ------
    TypeError, ValueError
        Something is not what it must be; the message names it.
    BackendUnavailable
        The backend is not here.
    """

    waiting: list[Update] | deque[Update] = _NONE  # where it waits for a next call
    places: Places  # of arrays of NumPy
    same: Same  # of arrays on a device, ...
    layouts: list[Any]  # ... which their owner can lay out anew

    def __init__(
        self,
        rule: Rule,
        lists: Sequence[Sequence[Any]],
        values: tuple[Any, ...],
        backend: str | None,
        noise: Noise = None,
    ) -> None:
        self.rule, self.noise = rule, noise
        added, element = noise or (None, 0)
        labels = ("param", "grad", *rule.arrays)
        called = [labels if len(lists[0]) == 1 else [f"{label}[{i}]" for label in labels] for i in range(len(lists[0]))]
        params = [view(param, own[0]) for param, own in zip(lists[0], called, strict=True)]
        self._real = min((compute_dtype(param.dtype) for param in params), default=np.dtype(np.float64))
        row = row_of(rule, values, self._real)
        self._progress = Progress.of(rule, len(row), len(params), 1)
        self._progress.hyper[0] = row
        self._hyper = frozen(values)
        self._steps = self._progress.steps
        self._single = len(params) == 1
        tensors, names = [], []
        for i, (param, own, grad, *others) in enumerate(zip(params, called, *lists[1:], strict=True)):
            given = list(zip(others, own[2:], strict=True))
            if isinstance(rule, FactoredRule):
                given = _of_shape(rule, given, param.shape)
                own = [*own[:2], *(name for _, name in given)]
            views = [(view(array, name), name) for array, name in given]
            tensor = [param, view_gradient(grad, own[1], param.shape), *by_copy(rule, len(row), views, param)]
            tensors.append(Tensor(0, i, tensor, 0 if noise is None else NOISE, element=element, noise=added))
            element += param.size
            names.append([*own[:2], *(own[2:] * len(row))])
        self.place = params[0].place if params else CPU
        jobs = make_jobs([self._progress], tensors, names)
        members = range(len(params))
        self._bound = Binding(choose_backend(backend, self.place), jobs, members, [own[1] for own in names])
        self._runner = self._bound.runner.__call__  # which Python calls in half the time of the runner itself

    def let_go(self, arrays: Sequence[Any], found: Look | None) -> None:
        """Keeps no array any longer; serves others like them too where they were `found` to be NumPy's."""
        if found is None:
            self._bound.let_go(None)
            return
        at = np.frombuffer(found[1], np.uint64)
        blocks = [0, 1, *[2 + k for _ in range(self._progress.copies) for k in range(len(self.rule.arrays))]]
        self._bound.let_go(at, blocks)
        apart = ApartFromEachOther([view(array, "") for array in arrays])
        self.places = Places(found, self._bound.move if apart(at) else None, apart)

    def step(self, step: Any, values: tuple[Any, ...], grad_scale: float, threads: int, scalars: Any = None) -> None:
        """Does one step of that number."""
        if type(grad_scale) is not float or grad_scale != 1.0:
            grad_scale = check_scale(grad_scale, self._real)
        try:
            known = values == self._hyper
        except Exception:  # an array of several elements, or what cannot be compared
            known = False
        if not known:
            row = row_of(self.rule, values, self._real)
            if len(row) != self._progress.copies:
                raise ValueError(
                    f"{self.rule.vector}: found {len(row)} values, expected {self._progress.copies}, one for each "
                    f"of {self.rule.state_names[0]}"
                )
            self._progress.hyper[0] = row
            self._hyper = frozen(values)
        if type(step) is not int or not 1 <= step <= MAX_STEP:
            step = check_integer("step", step, 1, MAX_STEP, "an integer >= 1 (steps are counted from 1)")
        if self.rule.scalars:
            with ieee_arithmetic():
                self._progress.scalars[:] = _scalars_before(self.rule, step, self._progress.hyper[0, 0], scalars)
        if self._single:  # a quarter of the time of fill
            self._steps[0] = step - 1
        else:
            self._steps.fill(step - 1)
        self._runner(grad_scale, threads)


def keys_of(rule: Rule) -> list[str]:
    """The hyper-parameters of a call, which has states of its own: all but those that states begin at."""
    return [name for name in rule.hyper if name not in rule.initial]


def _of_shape(rule: FactoredRule, given: Sequence[tuple[Any, str]], shape: tuple[int, ...]) -> list[tuple[Any, str]]:
    """The states of a parameter of that shape, of all that a call has.

    Raises
    ------
    TypeError
        One is missing, or of another shape's; the message names it.
    """
    expected = rule.states_of(shape)
    for (array, name), state in zip(given, rule.state_names, strict=True):
        if (array is None) == (state in expected):
            found = "None" if array is None else type(array).__name__
            kind = "None" if array is not None else "an array"
            raise TypeError(
                f"{name}: found {found}, expected {kind}: of shape {shape} states are {', '.join(expected)}"
            )
    return [pair for pair, state in zip(given, rule.state_names, strict=True) if state in expected]


def row_of(rule: Rule, values: tuple[Any, ...], dtype: np.dtype = FLOAT64) -> np.ndarray:
    """The hyper-parameters of a call, checked, as backends take them."""
    return hyper_row(rule, dict(zip(keys_of(rule), values, strict=True)), dtype=dtype)


def _scalars_before(rule: Rule, step: int, row: np.ndarray, given: Any) -> tuple[float, ...]:
    """The rule's scalars before `step`: as given; in place of None, what constant hyper-parameters lead to."""
    given = tuple(x if x is None else check_number(name, x) for name, x in zip(rule.scalars, given, strict=True))
    if None not in given:
        return given
    scalars = tuple(rule.scalars.values())
    for t in range(1, step):
        _, advanced = rule.fold_row(float(t), row.tolist(), scalars)
        if advanced == scalars:  # a fixed point, once products have underflowed
            break
        scalars = advanced
    return tuple(led if x is None else x for x, led in zip(given, scalars, strict=True))


class Known:
    """Updates that wait for a next call, by rule, backend, noise and layouts: one serves all arrays of these layouts.

    What cannot be moved, for its arrays interleave or share memory, is known by the arrays' addresses too. A call takes
    an update out for itself, for another thread may make one at the same time. Arrays on a device are known by their
    identities, for as long as all of them live; those of other libraries on the CPU are bound anew for each call.

    Parameters
    ----------
    most : int
        So many arrays are known at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[tuple[Any, ...], list[Update]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def clear(self) -> None:
        """Forgets all."""
        self._waiting.clear()

    def take(self, rule: Rule, arrays: tuple[Any, ...], backend: str | None, noise: Noise) -> Update | None:
        """Takes out the update of these arrays, if one waits; it is to be put into its `waiting` again."""
        chosen = get_backend() if backend is None else backend
        found = look(arrays)
        if found is None:
            return self._take_others(arrays, (rule.name, chosen, noise, *map(id, arrays)))
        layouts, addresses = found
        waiting = self._waiting.get((rule.name, chosen, noise, layouts))
        try:
            if waiting is not None:
                update = waiting.pop()
                places = update.places
                if addresses == places.addresses or places.take(found):
                    return update
                waiting.append(update)
            return self._waiting[rule.name, chosen, noise, layouts, addresses].pop()
        except LookupError:
            return None

    def _take_others(self, arrays: tuple[Any, ...], key: tuple[Any, ...]) -> Update | None:
        if not self._waiting.get(key):
            return None
        update = self._waiting[key].pop()
        return update if update.same.are(arrays) and update.layouts == list(map(layout_of, arrays)) else None

    def add(self, update: Update, arrays: tuple[Any, ...], backend: str | None) -> Update:
        """Has an update wait for a next call once it is in its `waiting`, if arrays like these can be known again."""
        if isinstance(update.rule, LibraryRule):  # whose room would be kept for each of the arrays
            return update
        if len(self._waiting) * len(arrays) > self._most:
            self._waiting.clear()
        key: tuple[Any, ...] = (update.rule.name, get_backend() if backend is None else backend, update.noise)
        found = look(arrays)
        if found is not None:
            update.let_go(arrays, found)
            key = (*key, found[0]) if update.places.can_move else (*key, *found)
        elif update.place.kind == "cuda" and all(layouts := list(map(layout_of, arrays))):
            key = (*key, *map(id, arrays))
            try:
                update.same = Same(arrays, lambda: self._waiting.pop(key, None))
            except TypeError:  # an array that no weak reference can be made to
                return update
            update.layouts = layouts
            update.let_go(arrays, None)
        else:
            return update
        update.waiting = self._waiting.setdefault(key, [])
        return update
