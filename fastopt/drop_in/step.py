"""A step of torch's parameters: tensors checked and tabled once, and looked at before each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version
from torch.nn.parameter import is_lazy

from ..arrays.array import Array
from ..arrays.checks import check_tensor
from ..arrays.libraries import view
from ..arrays.libraries.torch import view_torch
from ..backends import Backend
from ..backends.choice import get_backend
from ..binding.binding import Binding
from ..binding.norms import Limits
from ..binding.sparse import RowSparse
from ..binding.states import by_copy
from ..jobs.job import Job, Progress
from ..jobs.tables import Tensor, make_jobs, make_row_job
from ..rules import GRADIENT
from .captured import Captured, unscale
from .counters import Counters
from .gradients import absent_like, check_sparse, part, readable, rows_of
from .groups import (
    Groups,
    HyperRows,
    Stepping,
    can_be_checked,
    first_places,
    is_capturable,
    is_counted,
    labels_of,
    params_of,
    real_of,
)
from .looks import look, strides_of
from .states import Entries, Kept, Kinds, Numbers, check_entries, complete

_is_neg: Any = torch.Tensor.is_neg
_grad = attrgetter("grad")


# The gradients of a step: those of all parameters; those that are dense, readable; and of those that are sparse the
# parameter, the rows and what they are called.
_Held = tuple[Sequence[Any], Sequence[Any], Sequence[tuple[int, RowSparse, str]]]
_NOTHING: _Held = ((), (), ())


def _is_given(grad: Any) -> bool:
    return grad is not None


class Bound:
    """An optimizer's tensors, checked and tabled: good until one of them is elsewhere or otherwise laid out.

    It keeps no gradient alive. A parameter that has had no gradient yet, and so no state, is left out. Before each step
    addresses are looked at, and the layout and sign of gradients. Those of parameters are not, for that would take a
    tenth of the time: one that is given other strides at the same address, as by ``p.data = p.data.t()``, is noticed
    when its gradient follows, as autograd has it.

    Parameters
    ----------
    optimizer : Groups
        Its parameters, groups and states; these are completed.
    numbers : Numbers
        Of its states.
    hypers : HyperRows
        Of its groups.
    backend : Backend
        What does the steps.

    Attributes
    ----------
    threads, real, groups, files
        As `fastopt.binding.binding.Owner` has them: no states are in files.

    Raises
    ------
    TypeError, ValueError
        A tensor is not what it must be; the message names it, and states are as they were.
    """

    files = None
    _held: _Held  # from when they are taken over until they are used
    _layouts: Any  # of the last step's gradients, as `look` tells them; None: not looked at yet
    _addresses: Any
    _move: Callable[[np.ndarray], None]

    def __init__(self, optimizer: Groups, numbers: Numbers, hypers: HyperRows, backend: Backend) -> None:
        self.backend, self._asked = backend, get_backend()
        self.threads = optimizer._threads
        groups = optimizer.param_groups
        # One that is there several times, of which torch warns, is updated so many times.
        params = params_of(groups)
        self._firsts, self._times = first_places(params)
        self._params = list(map(params.__getitem__, self._firsts))
        self._capturable = is_capturable(groups)
        self.groups, self._numbers = hypers, numbers
        self._make_sets(groups)
        self._captured = Captured(backend, self._counters) if self._capturable else None
        self.real = real_of(params)
        self._bind(optimizer)
        self._present: list[bool] | None = []
        if not self._take_gradients(tuple(map(_grad, self._params))):
            raise RuntimeError("tensors moved while they were being checked")

    # ---- binding ----

    def _make_sets(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Makes the sets of parameters under one rule, each with its table of scalars, and the table of step counts."""
        params = self._params
        of_all = [g for g, group in enumerate(groups) for _ in group["params"]]
        self._group_of = list(map(of_all.__getitem__, self._firsts))
        self._counters = Counters(self._numbers, len(params), params[0] if self._capturable else None)
        self._sets: list[Progress] = []  # of each group
        self._which: list[int] = []  # the places of these among the sets, each once
        made: dict[tuple[str, int], Progress] = {}
        self.groups.update(groups)
        for g in range(len(groups)):
            rule, row = self.groups[g]
            key = rule.name, len(row)
            if key not in made:
                made[key] = self._counters.progress(rule, len(row), len(groups), self._group_of)
            made[key].hyper[g] = row
            self._sets.append(made[key])
            self._which.append(list(made).index(key))
        self._each = list(made.values())

    def _bind(self, optimizer: Groups) -> None:
        """Checks the tensors, completes states, and tables them: all, or none where one is wrong."""
        groups, params = optimizer.param_groups, self._params
        grads = readable(list(map(_grad, params)))
        self._storages = [optimizer._storage.of_group(group) for group in groups]
        self._elements = optimizer._storage.elements([0 if is_lazy(p) else p.numel() for p in params])
        counted, labels = is_counted(optimizer), labels_of(groups)
        self._names: dict[int, list[str]] = {}
        self._arrays: dict[int, list[Array]] = {}
        self._known = [False] * len(params)
        self._strides: list[Any] = [()] * len(params)
        self._sizes = [0] * len(params)
        begin = np.zeros(len(params), np.uint64)
        for i, (p, grad, g) in enumerate(zip(params, grads, self._group_of, strict=True)):
            if grad is None and not self._is_known(optimizer, p, g, counted):
                continue
            label = labels[self._firsts[i]]
            names = self._names[i] = [label, f"the gradient of {label}"]
            param, sparse = view_torch(p, label), grad is not None and grad.is_sparse
            if sparse:
                check_sparse(self._sets[g].rule, [param, rows_of(grad, names[1])], names)
            absent = grad is None or sparse
            self._arrays[i] = [param, absent_like(param) if absent else view_torch(grad, names[1])]
            check_tensor(self._arrays[i], names)
            begin[i] = self._arrays[i][1].address
            own = p if absent else grad
            self._known[i], self._strides[i], self._sizes[i] = True, own.stride(), own.nbytes
        begins = [optimizer._arguments.begins(own.rule, group) for own, group in zip(self._sets, groups, strict=True)]
        before = {p: dict(state) if isinstance(state, dict) else state for p, state in optimizer.state.items()}
        entries: dict[int, tuple[str, ...]] = {}  # of whose states and numbers, by the parameter's id
        self._shared = {  # states of one number of all tensors, by rule and name: those of the first that has its state
            (rule.name, name): optimizer.state[p][name]
            for p, rule in zip(reversed(params), (self._sets[g].rule for g in reversed(self._group_of)), strict=True)
            for name in (rule.singles if rule.over_all else ())
            if optimizer.state.get(p, {}).get(name) is not None
        }
        tensors = []
        try:
            for i, arrays in self._arrays.items():  # once all have been checked
                g = self._group_of[i]
                kinds = self._storages[g].states(self._sets[g].rule, arrays[0], self._sets[g].copies)
                if kinds or counted:
                    state = optimizer.state[params[i]]
                    entries[id(params[i])] = self._take_state(i, arrays, state, kinds, begins[g], counted)
                tensors.append(Tensor.of(self._storages[g], self._which[g], i, arrays, self._elements[i]))
            self._jobs = make_jobs(self._each, tensors, list(self._names.values()))
        except BaseException:  # an array was wrong, or there was no memory for all: then there are none
            optimizer.state.clear()
            optimizer.state.update(before)
            raise
        for job in self._jobs:
            job.address_table[:, GRADIENT] -= begin[job.run_members]  # now from where a gradient begins
            job.owners.clear()
        for arrays in self._arrays.values():
            del arrays[1]
        self._counters.write(())
        read = Entries(optimizer.state, entries)
        self._kept = Kept(params, self._known, read, self._counters.tables, optimizer.state)

    def _is_known(self, optimizer: Groups, p: torch.Tensor, g: int, counted: bool) -> bool:
        """True for a parameter without a gradient that has its state, or needs none."""
        if not can_be_checked(p):
            return False
        if optimizer.state.get(p):
            return True
        return not counted and not self._storages[g].states(self._sets[g].rule, view(p, "params"), 1)

    def _take_state(
        self,
        i: int,
        arrays: list[Array],
        state: dict[str, Any],
        kinds: Kinds,
        begins: Mapping[str, float],
        counted: bool,
    ) -> tuple[str, ...]:
        """Completes a parameter's state, adds its arrays, and moves its numbers to where backends advance them.

        Returns
        -------
        tuple of str
            The names of the state's arrays and numbers.
        """
        own, label = self._sets[self._group_of[i]], self._names[i][0]
        rule, begun = own.rule, None if counted else any(state.get(name) is not None for name in kinds)
        check_entries(state, ("step", *rule.scalars, *kinds) if counted else kinds, label)
        self._counters.take(i, state, own, begun, label)
        shared = rule.singles if rule.over_all else ()
        state.update({name: self._shared[rule.name, name] for name in shared if (rule.name, name) in self._shared})
        complete(state, self._params[i], arrays[0], rule, kinds, begins)
        self._shared.update({(rule.name, name): state[name] for name in shared})
        called = [f"{name!r} of {label}" for name in kinds]
        views = list(zip(map(view, map(state.__getitem__, kinds), called), called, strict=True))
        arrays += by_copy(rule, own.copies, views, arrays[0])
        self._names[i] += called[: len(rule.states)] * own.copies + called[len(rule.states) :]
        return (*kinds, "step", *rule.scalars) if counted else (*kinds, *rule.scalars)

    # ---- before a step ----

    def fits(self, optimizer: Groups, capturable: bool) -> bool:
        """Take over gradients and hyper-parameters of this step; False where tensors must be bound anew."""
        if self._asked != get_backend() or self._capturable != capturable:
            return False
        groups = optimizer.param_groups
        params = params_of(groups)
        if len(params) != len(self._params):
            if len(params) != sum(self._times):
                return False
            params = [params[i] for i in self._firsts]
        if not self._kept.stay(params, optimizer.state):
            return False
        if not self._take_gradients(tuple(map(_grad, params))):
            return False
        for g in self.groups.update(groups):
            own, (rule, row) = self._sets[g], self.groups[g]
            if rule is not own.rule or len(row) != own.copies:
                return False
            own.hyper[g] = row
        return True

    def _take_gradients(self, given: tuple[Any, ...]) -> bool:
        """Takes over where gradients are; False where they are otherwise laid out, or of parameters without states."""
        grads, present = given, None
        rows: Sequence[tuple[int, RowSparse, str]] = ()
        found = look(grads)
        if found is None:  # there is None among them, a sparse one, or one without memory
            if any(g is not None and not known for g, known in zip(grads, self._known, strict=True)):
                return False
            present, grads, rows = part(grads, self._names)
            found = look(grads)
        if present != self._present:
            if present is None and not all(self._known):
                return False
            self._select(present)
        if found is None or any(map(_is_neg, grads)):
            grads = readable(grads)
            found = look(grads)
            if found is None:
                return False
        layouts, addresses = found
        if layouts != self._layouts:
            if strides_of(grads) != self._expected:
                return False
            self._layouts = layouts
        if addresses != self._addresses:
            # Others than in any step before, and anywhere: gradients of torch may share memory.
            at = np.frombuffer(addresses, np.uint64) if type(addresses) is bytes else np.array(addresses, np.uint64)
            self._move(at)
            self._addresses = addresses
        self._held = given, grads, rows
        return True

    def _select(self, present: list[bool] | None) -> None:
        """Makes ready for gradients of some parameters, or of all."""
        chosen = np.ones(len(self._params), bool) if present is None else np.array(present, bool)
        times = np.array(self._times)
        if self._captured is not None:
            self._captured.clear()
        before = [self._binding_of(chosen & (times > done)) for done in range(1, max(self._times, default=1))]
        self._binding = self._binding_of(chosen, before)
        self._stepped = list(compress(self._params, chosen))
        self._expected = list(compress(self._strides, chosen)), list(compress(self._sizes, chosen))
        self._layouts = self._addresses = None
        self._present = present
        self._move = self._binding.move if present is None else self._move_present

    def _move_present(self, at: np.ndarray) -> None:
        """Have the tables follow the gradients that are present, where some are not."""
        of_all = np.zeros(len(self._params), np.uint64)
        of_all[self._binding.members] = at
        self._binding.move(of_all)

    def _binding_of(self, chosen: np.ndarray, before: Sequence[Binding] = ()) -> Binding:
        jobs = [part for job in self._jobs if (part := job.of(chosen)) is not None]
        members = np.flatnonzero(chosen).tolist()
        prepare = None if self._captured is None else self._captured.prepare
        names = [self._names[i][1] for i in members]
        binding = Binding(self.backend, jobs, members, names, prepare=prepare, before=before)
        binding.let_go(np.zeros(len(chosen), np.uint64))
        return binding

    # ---- steps ----

    def run(
        self,
        optimizer: Stepping,
        scale: float,
        limits: Limits | None,
        skip_nonfinite: bool,
        zero_grads: bool,
        amp: tuple[torch.Tensor | None, torch.Tensor | None],
        amp_there: bool,
    ) -> None:
        """Does the step; `amp` is what `torch.amp.GradScaler` leaves to it, its scale and whether to skip: which the
        device reads with `amp_there`.
        """
        (given, dense, rows), self._held = self._held, _NOTHING
        binding = self._with_rows(rows) if rows else self._binding
        grads: Any = dense
        if self._present is not None and (zero_grads or skip_nonfinite or limits is not None):
            grads = dict(zip(self._binding.members, dense, strict=True))
        if zero_grads:
            binding.check_zeroing(given)  # which refuses what is read as a copy
        before = self._counters.read()
        if self._captured is not None:
            self._captured.tell(optimizer.param_groups, amp)
        addresses = None
        if amp_there and (self._captured is None or limits is not None or skip_nonfinite):
            divisor, skip = (0 if x is None else x.data_ptr() for x in amp)
            addresses = divisor, skip
        try:
            binding.step(self, optimizer, grads, scale, limits, skip_nonfinite, zero_grads, addresses)
        finally:  # an interrupt comes once it is done
            self._counters.write(before)
        if optimizer._last_skipped is True:
            return
        stepped = self._stepped
        if rows:
            stepped = [*stepped, *(self._params[i] for i, _, _ in rows)]
        if zero_grads:
            stepped = [*stepped, *filter(_is_given, given)]
        increment_version(stepped)
        if amp[0] is not None:
            unscale(list(filter(_is_given, given)), amp[0], amp[1] if amp_there else None)

    @property
    def can_limit_there(self) -> bool:
        """True where the device itself scales and skips, with the gradients taken over."""
        return self._binding.can_limit_there

    def take_back(self) -> None:
        """Tells states that the last step was not done."""
        self._counters.take_back()

    def let_go(self) -> None:
        """Lets go of the gradients of a step that is not done."""
        self._held = _NOTHING

    def _with_rows(self, rows: Sequence[tuple[int, RowSparse, str]]) -> Binding:
        """The binding of this step, with sparse gradients."""
        if self._capturable:
            raise ValueError(
                f"{rows[0][2]}: found a sparse one, expected a dense one with capturable=True: a graph would go on to "
                "read the rows of the step that it recorded. Make it dense (sparse=False of torch.nn.Embedding), or "
                "have an optimizer that is not capturable for its parameter"
            )
        for i, _, _ in rows:
            if self._times[i] > 1:
                label = self._names[i][0]
                raise ValueError(f"{label}: found several times, expected once with a sparse gradient")
        return self._binding.with_rows([self._row_job(i, grad) for i, grad, _ in rows], rows)

    def _row_job(self, i: int, grad: RowSparse) -> Job:
        g = self._group_of[i]
        param, *states = self._arrays[i]
        arrays, rows = check_sparse(self._sets[g].rule, [param, grad, *states], self._names[i])
        return make_row_job(self._sets[g], Tensor.of(self._storages[g], 0, i, arrays, self._elements[i]), rows)

    def on_device(self) -> tuple[Any, ...]:
        """Return the memory on the device that a step needs beside tensors that the user holds."""
        return self._binding, self._counters.tables
