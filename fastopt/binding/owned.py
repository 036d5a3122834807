"""Parameters of an optimizer with their states, and the steps of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

from .. import settings
from ..arrays.array import CPU, Array
from ..arrays.checks import check_device, check_overlap, check_tensor
from ..arrays.dtypes import compute_dtype
from ..arrays.libraries import floats_of, to_host, view
from ..arrays.libraries.matrices import library_of
from ..arrays.libraries.torch import is_tensor
from ..backends import Backend, RowRunner
from ..backends.choice import choose_backend, get_backend
from ..checks import differing, wrong_type
from ..jobs.tables import Tensor, make_jobs
from ..rules import FIRST_STATE, LibraryRule, Rule
from .accumulated import Accumulated
from .ahead import Apart, make_ready, way_of
from .binding import Binding, Last
from .blocks import from_blocks
from .groups import Fixed, Groups, State, Weakly
from .last_rows import LastRows
from .norms import Limits, Told
from .options import Arguments, Call, check_group
from .sparse import RowSparse
from .states import by_copy, initial, new_state
from .structure import Given, gradient_of, is_group, match, read_group, read_params, split_rows
from .where import NONE_WATCHED, Look, Watched, look


class Owned(Told):
    """The possessions of an optimizer: parameters with their states, groups, and the binding of the last step.

    Parameters
    ----------
    cls : type
        The optimizer's class.
    arguments : Arguments
        The class's.
    call : Call
        The call of the class.
    write : callable
        Writes values into some of a parameter's states, once they are checked: takes this, the parameter's number, and
        a mapping of names to values.

    Attributes
    ----------
    structure : object
        That of the parameters, for `fastopt.binding.structure.match`.
    params, views, names : list
        The parameters, their views, and what messages call them.
    states : Fixed of State
        The states as users see them.
    files : StateFiles or None
        What keeps states in files.
    sums : Accumulated
        The gradients that were accumulated for the next step.
    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing has been written.
    BackendUnavailable
        The backend asked for, or one for the arrays' device, is not here.
    """

    def __init__(
        self,
        cls: type,
        arguments: Arguments,
        call: Call,
        write: Callable[[Any, int, Mapping[str, Any]], None],
    ) -> None:
        self._cls, self._write, self._storage = cls, write, call.storage
        self._backend_name, self.threads = call.backend, call.threads
        self.names: list[str] = []
        self.params: list[Any] = []
        self.views: list[Array] = []
        self.states = Fixed()
        self._state_views: list[list[Array]] = []
        self._looks: list[Look | None] = []  # where parameters and states were, as they were viewed
        self._last: Last | None = None
        self._last_rows: LastRows | None = None
        self.files: Any = None
        self.groups = Groups(arguments, call.options)
        self.sums = Accumulated()
        self.structure, given = read_params(call.params)
        self._extend(given, [f"params[{g}]" for g in range(len(given))], call.files)

    def _extend(self, given: Sequence[Given], called: Sequence[str], files: Mapping[str, Any]) -> None:
        """Own further groups, behind those that there are; messages have them as `called`."""
        first = len(self.params)
        self.names = [*self.names, *chain.from_iterable(map(attrgetter("names"), given))]
        self.params = [*self.params, *chain.from_iterable(map(attrgetter("arrays"), given))]
        self.views = [*self.views, *map(view, self.params[first:], self.names[first:])]
        for group, name in zip(given, called, strict=True):
            check_group(self._cls, group.own, name)
        storages = [self._storage.of_group(group.own) for group in given]
        of_each = [storage for storage, group in zip(storages, given, strict=True) for _ in group.names]
        for array, name, storage in zip(self.views[first:], self.names[first:], of_each, strict=True):
            check_tensor([array], [name])
            storage.check(array, name)
        check_device(self.views, self.names)
        check_overlap(self.views, self.names, [True] * len(self.views))
        self.place = self.views[0].place if self.views else CPU
        self._backend()
        dtypes = map(attrgetter("dtype"), self.views)
        self.real = min(map(compute_dtype, dtypes), default=np.dtype(np.float64))
        self._elements = self._storage.elements(map(attrgetter("size"), self.views))
        self.groups.extend([group[1:] for group in given], called, storages, self.real)
        groups = [(self.groups.rules[g], self.groups.progress[g].copies) for g in self.groups.of[first:]]
        for (rule, _), storage, array, name in zip(
            groups, of_each, self.views[first:], self.names[first:], strict=True
        ):
            rule.check_shape(array.shape, name)
            storage.check_rule(rule)
            if isinstance(rule, LibraryRule):
                library_of(array.owner, array, name)
        kinds = [
            storage.states(rule, param, copies)
            for (rule, copies), storage, param in zip(groups, of_each, self.views[first:], strict=True)
        ]
        if files["directory"] is not None or files["memory"] is not None:
            from .on_disk import open_files  # of Unix only, and for few

            self.files = open_files(self, kinds, **files)
        self.states = Fixed([*self.states, *self._make_states(first, kinds)])
        self._state_views = [*self._state_views, *[[] for _ in kinds]]
        self._looks = [*self._looks, *[None] * len(kinds)]
        self._last = None

    def add_group(self, group: Any) -> None:
        """Own one more group: all of it, or nothing.

        Raises
        ------
        TypeError, ValueError
            It is not what it must be; the message names it.
        """
        if self.files is not None:
            raise ValueError(
                "param_group: found one more group, expected none with state_dir, whose file has the states of the "
                "construction; construct a new optimizer"
            )
        if not is_group(group):
            raise wrong_type("param_group", group, "a mapping with 'params'")
        structure, given = read_group(group, f"params[{len(self.groups.spans)}]")
        before = dict(vars(self)), dict(vars(self.groups))
        try:
            if not isinstance(self.structure, list):
                self.names = [name.replace("params", "params[0]['params']", 1) for name in self.names]
                self.structure = [self.structure]
            self.structure = [*self.structure, structure]
            self._extend([given], ["param_group"], {"directory": None, "memory": None})
        except BaseException:
            vars(self).update(before[0])
            vars(self.groups).update(before[1])
            raise

    # ---- parameters and states ----

    def rule_of(self, i: int) -> Rule:
        """A parameter's rule."""
        return self.groups.rules[self.groups.of[i]]

    def copies_of(self, i: int) -> int:
        """Return the number of copies of its states that a parameter has."""
        return self.groups.progress[self.groups.of[i]].copies

    def arrays_of(self, i: int) -> dict[str, Any]:
        """A parameter's state arrays, by name."""
        counters = {"step", *self.rule_of(i).scalars}
        return {name: x for name, x in self.states[i].items() if name not in counters}

    def values_of(self, i: int, name: str) -> np.ndarray:
        """A copy of a state's values in the dtype in which they are computed with, whatever it is stored in."""
        array = view(self.states[i][name], name)
        if array.dtype != np.uint8:
            return floats_of(array).copy()
        return from_blocks(to_host(array), name in self.rule_of(i).positive, self.views[i])

    def initial(self, i: int, name: str, dtype: np.dtype) -> Any:
        """Return the beginning of a state: a number, or an array of its shape."""
        rule = self.rule_of(i)
        if name in rule.scalars:
            return rule.scalars[name]
        return initial(self.params[i], self.views[i], rule, name, dtype, self._begins(i).get(name, 0.0))

    def _begins(self, i: int) -> dict[str, float]:
        return self.groups.arguments.begins(self.rule_of(i), self.groups.mappings[self.groups.of[i]])

    def _make_states(
        self,
        first: int,
        kinds: Sequence[Mapping[str, tuple[np.dtype, tuple[int, ...]]]],
    ) -> Iterator[State]:
        """States as they begin, for users to see, of the parameters from the `first` on.

        What a rule keeps of all tensors together is the same array in all of them.
        """
        shared = {
            (self.rule_of(i).name, name): self.states[i][name]
            for i in range(first)
            for name in self.rule_of(i).singles
            if self.rule_of(i).over_all
        }
        for rule, progress, group, span in self.groups.each():
            begins = self.groups.arguments.begins(rule, group)
            for i in span if span.start >= first else ():
                state: dict[str, Any] = {"step": progress.steps[i : i + 1].reshape(())}
                for k, name in enumerate(rule.scalars):
                    state[name] = progress.scalars[i : i + 1, k].reshape(())
                for name, (dtype, shape) in kinds[i - first].items():
                    if rule.over_all and (rule.name, name) in shared:
                        state[name] = shared[rule.name, name]
                    elif self.files is not None:
                        state[name] = self.files.arrays[i][name]
                    else:
                        begin = begins.get(name, 0.0)
                        state[name] = new_state(self.params[i], self.views[i], rule, name, dtype, shape, begin)
                    if rule.over_all and name in rule.singles:
                        shared.setdefault((rule.name, name), state[name])
                yield State(state, f"state[{i}]", Weakly(self, self._write, i))

    def replace_state(self, i: int, name: str, array: Any) -> None:
        """Have another array in a state's place, of the same layout: in bindings that are made from now on."""
        self.states[i].replace(name, array)
        self._last = None

    def _look(self, i: int) -> list[tuple[Any, str]]:
        """Has views of a parameter and its states that are where these are now; returns both, for others to watch."""
        label, states = self.names[i], self.arrays_of(i)
        owned = (self.params[i], *states.values())
        found = look(owned)
        if found is None or found != self._looks[i]:
            self.views[i] = view(self.params[i], label)
            views = [(view(x, name), name) for name, x in states.items()]
            self._state_views[i] = by_copy(self.rule_of(i), self.copies_of(i), views, self.views[i])
            self._looks[i] = found
        return [(x, label if k == 0 else f"state of {label}") for k, x in enumerate(owned)]

    def move(self, train: bool) -> None:
        """Move the parameters to where gradients are taken, or to where they are to be evaluated: all, or none.

        Raises
        ------
        ValueError
            One cannot be written; the message names it.
        """
        moved, apart = [], []
        for g, (rule, _, group, span) in enumerate(self.groups.each()):
            if group["train_mode"] is not train:
                moved.append(g)
                way = way_of(self.groups.arguments, rule, group, max(self.groups.done(g), 1), train)
                stored = self.groups.storages[g]
                apart += [Apart(self.params[i], self.names[i], rule, self.arrays_of(i), stored, way) for i in span]
        run = make_ready(self._backend(), apart, self.real, self.threads or settings.threads)
        if self.files is None:
            run()
        else:
            self.files.update(run)
        for g in moved:
            self.groups.move(g, train)

    # ---- bindings ----

    def _backend(self) -> Backend:
        return choose_backend(self._backend_name, self.place)

    def gather(self, inputs: Any) -> tuple[Any, ...]:
        """The inputs of all parameters in order, the rule's first input first.

        Raises
        ------
        TypeError, ValueError
            They are others than the rule's, or of another structure than the parameters.
        """
        names = self.groups.arguments.inputs
        if not isinstance(inputs, Mapping):
            raise wrong_type("inputs", inputs, f"a mapping with {', '.join(names)}")
        if inputs.keys() != set(names):
            differences = differing(inputs.keys(), names)
            raise ValueError(f"inputs: found other names than the rule's, expected {', '.join(names)}{differences}")
        return tuple(chain.from_iterable(match(inputs[x], self.structure, f"inputs[{x!r}]") for x in names))

    def bind(self, grads: tuple[Any, ...]) -> Binding:
        """The binding of gradients, as of `step`, that a plan can read again.

        Raises
        ------
        TypeError, ValueError
            A gradient is not what it must be; the message names it.
        BackendUnavailable
            The backend asked for, or one for the arrays' device, is not here.
        """
        dense, rows = self._split(grads)
        bound = self._with_rows(self._bind(dense), rows, grads, watched=True)
        given = [grad for grad in dense if grad is not None]
        for grad, (array, name) in zip(given, (*bound.grads, *bound.inputs), strict=False):
            if is_tensor(grad) and array.owner is not grad:
                raise ValueError(f"{name}: found {array.read_only_reason}, expected one that a plan can read again")
        return bound

    def _split(self, grads: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[tuple[int, RowSparse]]]:
        """Gradients with their inputs that are dense, with None in the others' places; gradients of rows."""
        count = len(self.params)
        if len(grads) == count:
            return split_rows(grads, self.views, self.names)
        dense, rows = split_rows(grads[:count], self.views, self.names)
        inputs = (None if dense[k % count] is None else x for k, x in enumerate(grads[count:]))
        return (*dense, *inputs), rows

    def _bind(self, grads: Sequence[Any]) -> Binding:
        """The binding of dense gradients, and of their inputs behind them."""
        tensors, names, members, views, arrays = [], [], [], [], []
        inputs: list[list[tuple[Array, str]]] = []
        for i, grad in enumerate(grads[: len(self.params)]):
            if grad is None:
                continue
            array = view(grad, gradient_of(self.names[i]) if len(self.params) > 1 else "grads")
            arrays += self._look(i)
            inputs.append(self._inputs(i, grads) if self.groups.arguments.inputs else [])
            tensors.append(self._tensor(i, array, inputs[-1]))
            names.append(self._labels(tensors[-1], inputs[-1]))
            members.append(i)
            views.append(array)
            arrays.append((None if isinstance(grad, np.ndarray) else grad, names[-1][1]))
            arrays += [(x.owner, name) for x, name in inputs[-1] if is_tensor(x.owner)]
        jobs = make_jobs(self.groups.progress, tensors, names)
        called, watched = [labels[1] for labels in names], Watched.of(arrays)
        of_each = list(chain.from_iterable(zip(*inputs, strict=True)))
        return Binding(self._backend(), jobs, members, called, views, watched, inputs=of_each)

    def _inputs(self, i: int, grads: Sequence[Any]) -> list[tuple[Array, str]]:
        """The views of a parameter's inputs, which are behind the gradients, and what they are called."""
        found, count = [], len(self.params)
        for name, x in zip(self.groups.arguments.inputs, grads[count + i :: count], strict=True):
            label = f"inputs[{name!r}]" + self.names[i].removeprefix("params") * (count > 1)
            if x is None:
                raise wrong_type(label, x, f"an array, for {gradient_of(self.names[i])} is one")
            found.append((view(x, label), label))
        return found

    def _with_rows(
        self, bound: Binding, rows: Sequence[tuple[int, RowSparse]], grads: Sequence[Any], watched: bool = False
    ) -> Binding:
        """Return a binding with gradients of rows added, whose parameters are `watched` for later steps."""
        if not rows:
            return bound
        owned = [pair for i, _ in rows for pair in self._look(i)]
        if bound.members:
            self._check_apart(bound, rows)
        inputs = [self._inputs(i, grads) for i, _ in rows]
        tensors = [self._tensor(i, grad, own) for (i, grad), own in zip(rows, inputs, strict=True)]
        names = list(map(self._labels, tensors, inputs))
        named = [(i, grad, called[1]) for (i, grad), called in zip(rows, names, strict=True)]
        jobs = make_jobs(self.groups.progress, tensors, names)
        return bound.with_rows(
            jobs, named, Watched.of(owned) if watched else NONE_WATCHED, list(chain.from_iterable(inputs))
        )

    def _check_apart(self, bound: Binding, rows: Sequence[tuple[int, RowSparse]]) -> None:
        """Check that gradients of rows share no memory with dense parameters, nor dense ones with those of rows."""
        arrays, names = [], []
        for i in (*bound.members, *(i for i, _ in rows)):
            own = [self.views[i], *self._state_views[i]]
            arrays += own
            names += [self.names[i], *[f"state of {self.names[i]}"] * (len(own) - 1)]
        grads = [*bound.grads, *((grad.values, gradient_of(self.names[i])) for i, grad in rows)]
        written = [True] * len(arrays) + [False] * len(grads)
        check_overlap([*arrays, *(array for array, _ in grads)], [*names, *(name for _, name in grads)], written)

    def _tensor(self, i: int, grad: Any, inputs: Sequence[tuple[Array, str]]) -> Tensor:
        """A parameter with its gradient, states and inputs, once it was looked at."""
        g = self.groups.of[i]
        arrays = [self.views[i], grad, *self._state_views[i]]
        if inputs:
            first = self.groups.progress[g].inputs.start
            arrays[first:first] = map(itemgetter(0), inputs)
        return Tensor.of(self.groups.storages[g], self.groups.which[g], i, arrays, self._elements[i])

    def _labels(self, tensor: Tensor, inputs: Sequence[tuple[Array, str]]) -> list[str]:
        """Name a tensor's arrays for error messages."""
        label = self.names[tensor.parameter]
        labels = [label, gradient_of(label), *[f"state of {label}"] * (len(tensor.arrays) - FIRST_STATE)]
        if inputs:
            of = self.groups.progress[tensor.set].inputs
            labels[of.start : of.stop] = map(itemgetter(1), inputs)
        return labels

    # ---- steps ----

    def step(
        self, grads: tuple[Any, ...], scale: float, limits: Limits | None, skip_nonfinite: bool, zero_grads: bool
    ) -> None:
        """Does one step with gradients of all parameters in order, and behind them what `gather` returns where the rule
        has inputs; see `Binding.step`.
        """
        last = self._last
        # Gradients that are to be zeroed are checked for that anew.
        if last is not None and (zero_grads is not False or last.asked != get_backend()):
            last = None
        try:
            if last is not None and last.fits(grads):
                last.bound.step(self, self, grads, scale, limits, skip_nonfinite, zero_grads)
                return
            dense, rows = self._split(grads)
            if rows and last is not None and last.fits(dense):
                if limits is None and skip_nonfinite is False and self.files is None and len(grads) == len(self.params):
                    self._step_again(last.bound, rows, dense, scale)
                else:
                    bound = self._with_rows(last.bound, rows, grads)
                    bound.step(self, self, dense, scale, limits, skip_nonfinite, zero_grads)
                return
        finally:
            if last is not None:
                last.held = ()
        self._last = None
        bound = self._bind(dense)
        self._with_rows(bound, rows, grads).step(self, self, dense, scale, limits, skip_nonfinite, zero_grads)
        with suppress(TypeError):  # an array that no weak reference can be made to
            for i in range(len(self.params)):
                if dense[i] is None:
                    self._look(i)
            written = [*self.views, *chain.from_iterable(self._state_views)]
            can_move = self.place.kind == "cuda" or all(type(p) is np.ndarray for p in self.params)
            self._last = Last(bound, dense, written, can_move)

    def _step_again(
        self, base: Binding, rows: Sequence[tuple[int, RowSparse]], dense: tuple[Any, ...], scale: float
    ) -> None:
        """Does one step with the binding of the last gradients of rows, if these can take their place."""
        for i, _ in rows:
            self._look(i)
        looks, last = [self._looks[i] for i, _ in rows], self._last_rows
        if last is not None and last.take(base, rows, looks):
            bound = last.bound
        else:
            bound, last = self._with_rows(base, rows, dense), None
            if None not in looks and isinstance(bound.runner, RowRunner):
                written = chain(self.views, *self._state_views)
                last = LastRows(base, bound, bound.runner, rows, looks, written)
        self._last_rows = last
        try:
            bound.step(self, self, dense, scale, None, False, False)
        finally:
            if last is not None:
                last.let_go()

    def accumulate(self, grads: Sequence[Any]) -> None:
        """Adds gradients of all parameters in order to those of the next step."""
        threads = self.threads or settings.threads
        self.sums.add(tuple(grads), self.params, self.views, self.names, self._backend(), threads)

    def step_accumulated(
        self,
        given: bool,
        scale: float,
        limits: Limits | None,
        skip_nonfinite: bool,
        zero_grads: bool,
        inputs: tuple[Any, ...] = (),
    ) -> None:
        """Do one step with the gradients that were accumulated, and forget them.

        Raises
        ------
        TypeError, ValueError
            There are none, or others are `given` too.
        """
        if given:
            raise ValueError(
                "grads: found gradients beside those accumulated, expected none: accumulate them too, then step()"
            )
        if not self.sums.pending:
            raise TypeError("grads: found none, expected gradients, or some accumulated before")
        self.step((*self.sums.gradients(len(self.params)), *inputs), scale, limits, skip_nonfinite, zero_grads)
        self.sums.clear()
