"""A step's arrays, checked and tabled for a backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import numpy as np

from .. import settings
from ..arrays.array import Array
from ..arrays.checks import Written, check_distinct, check_overlap, check_written
from ..arrays.libraries import set_to_zero, view
from ..arrays.libraries.torch import is_tensor
from ..backends import Backend, Norms, Runner
from ..backends.choice import get_backend
from ..backends.interrupts import held_back
from ..backends.matrices import prepare as prepare_all
from ..checks import check_flag
from ..jobs.job import AnyJob, Gradients, Job, MatrixJob, RowJob, Sum
from ..jobs.tables import make_gradients
from ..rules import GRADIENT
from .norms import NO_LIMITS, Limits, Reading, Telling, check_scale, read
from .sparse import RowSparse
from .where import NONE_WATCHED, ApartFromThose, Columns, Places, Same, Watched, look, look_at

_MOST_OTHERS = 8


class Varying(Protocol):
    """Hyper-parameters that are read at each step."""

    @property
    def varying(self) -> Collection[int]:
        """The groups that have them."""

    def read_varying(self, members: Sequence[int]) -> None:
        """Read those of parameters."""


class Owner(Protocol):
    """The part of what an optimizer owns that a step needs."""

    threads: int  # at most so many; 0: as by default
    real: np.dtype  # that of computing
    files: Any

    @property
    def groups(self) -> Varying:
        """The groups of the parameters."""


class Binding:
    """Arrays of a step, checked and tabled for a backend. It knows of no optimizer, which may keep it.

    Parameters
    ----------
    backend : Backend
        What does the step.
    jobs : sequence of Job
        All tensors.
    members : sequence of int
        The parameters that have a dense gradient.
    names : sequence of str
        What these gradients are called.
    grads : sequence of Array
        Their views, as long as they are kept: see `let_go`.
    watched : Watched
        The arrays that others can change.
    prepare : callable, optional
        Makes jobs ready; by default the backend's.
    before : sequence of Binding
        Those of parameters that are there several times, whose updates come before.
    inputs : sequence of (Array, str)
        The views of the inputs that go with these gradients, the rule's first input first, as long as they are kept;
        and what they are called.
    """

    def __init__(
        self,
        backend: Backend,
        jobs: Sequence[AnyJob],
        members: Sequence[int],
        names: Sequence[str],
        grads: Sequence[Array] = (),
        watched: Watched = NONE_WATCHED,
        prepare: Callable[[Sequence[Job], Written], Runner] | None = None,
        before: Sequence[Binding] = (),
        inputs: Sequence[tuple[Array, str]] = (),
    ) -> None:
        self.backend = backend
        self.jobs = jobs
        self.members = members
        self.watched = watched
        self._prepare = prepare or backend.prepare
        self.runner: Runner = prepare_all(jobs, watched.written, self._prepare)
        # A method of the runner, which Python calls in half the time of the runner itself.
        self._run = partial(self._run_all, self.runner) if before else self.runner.__call__
        self._before = before
        self._names = names
        self._grads = grads
        self.inputs = inputs
        self._rows: list[tuple[int, RowSparse, str]] = []
        self._others: dict[tuple[bool, float], Runner] = {}  # by zeroing, and the limit of elements
        self._zeroed: Written = ()
        self._distinct = False  # gradients, where they are: each of their elements can be zeroed once
        self._by_rows = {int(job.members[0]) for job in jobs if isinstance(job, RowJob)}
        self._base: Binding | None = None  # which has the tables of the dense gradients
        self._tables: list[Gradients] | None = None
        self._norms: dict[tuple[bool, bool], Norms | None] = {}  # on the device: by each, or all; with a limit
        self._recorded = prepare is not None  # by graphs
        self._columns: Columns | None = None  # where gradients can be others than they were

    def with_rows(
        self,
        jobs: Sequence[AnyJob],
        rows: Sequence[tuple[int, RowSparse, str]],
        watched: Watched = NONE_WATCHED,
        inputs: Sequence[tuple[Array, str]] = (),
    ) -> Binding:
        """Return a binding of these arrays and of gradients of rows of other parameters, with their inputs."""
        members = [*self.members, *(i for i, _, _ in rows)]
        watched = self.watched.beside(watched)
        names, prepare, before = self._names, self._prepare, self._before
        inputs = [*self.inputs, *inputs]
        made = Binding(self.backend, [*self.jobs, *jobs], members, names, self._grads, watched, prepare, before, inputs)
        made._rows, made._base = list(rows), self
        return made

    def adding(self, sums: Mapping[np.dtype, Sum]) -> Binding | None:
        """Return a binding of these arrays, where gradients are the first terms of sums that the pass adds up.

        Parameters
        ----------
        sums : mapping
            Of gradients that are computed in a dtype.

        Returns
        -------
        Binding or None
            None where the backend cannot, or updates some by rows.
        """
        prepare = self.backend.prepare_sums
        if prepare is None or any(isinstance(job, RowJob) for job in self.jobs):
            return None

        def add(jobs: Sequence[Job], written: Written) -> Runner:
            return prepare(jobs, written, [sums[job.dtype] for job in jobs])

        return Binding(self.backend, self.jobs, self.members, self._names, self._grads, self.watched, add)

    @property
    def rows(self) -> list[RowSparse]:
        """The gradients of rows."""
        return [grad for _, grad, _ in self._rows]

    @property
    def grads(self) -> Sequence[tuple[Array, str]]:
        """The views of the dense gradients, with what they are called, as long as they are kept."""
        return list(zip(self._grads, self._names, strict=True)) if self._grads else []

    def check_zeroing(self, grads: Sequence[Any] | Mapping[int, Any] = ()) -> None:
        """Check that gradients can be set to zero; `grads` as in `step`.

        Raises
        ------
        ValueError
            They are read-only or share memory, with each other or with an input.
        """
        if self._distinct:
            return
        found = [*(self._base or self)._views(grads), *((grad.values, name) for _, grad, name in self._rows)]
        check_distinct([grad for grad, _ in found], [name for _, name in found], "set to zero")
        if self.inputs:
            arrays, names = zip(*found, *self.inputs, strict=True)
            check_overlap(arrays, names, [True] * len(found) + [False] * len(self.inputs))
        self._distinct = True

    def runner_with(self, zero_grads: bool, clip_value: float) -> Runner:
        """The runner that zeroes gradients too, or clips their elements, made when it is first asked for."""
        if not zero_grads and clip_value == math.inf:
            return self.runner
        key = zero_grads, clip_value
        if key not in self._others:
            if len(self._others) == _MOST_OTHERS:  # a limit that changes from step to step
                self._others.clear()
            jobs, written = self.jobs, self.watched.written
            if zero_grads:
                owners = [(grad.owner, name) for grad, name in self.grads]
                owners += [(grad.values.owner, name) for _, grad, name in self._rows]
                self._zeroed = [(x, name, "set to zero") for x, name in owners if isinstance(x, np.ndarray)]
                jobs, written = [job.zeroing() for job in jobs], [*written, *self._zeroed]
            if clip_value < math.inf:
                jobs = [job.clipping(clip_value) for job in jobs]
            self._others[key] = prepare_all(jobs, written, self._prepare)
        return self._others[key]

    def _views(self, grads: Sequence[Any] | Mapping[int, Any]) -> Sequence[tuple[Array, str]]:
        """The views of the dense gradients, with what they are called; of these `grads`, where none are kept."""
        if self._grads:
            return self.grads
        return [(view(grads[i], name), name) for i, name in zip(self.members, self._names, strict=True)]

    def _zero_rows(self, grads: Sequence[Any] | Mapping[int, Any]) -> None:
        """Zero those gradients that runners leave, for they are updated by rows; `grads` as in `step`."""
        for rows in self.rows:
            set_to_zero(rows.values)
        base = self._base or self
        if base._by_rows:
            for i, (array, _) in zip(base.members, base._views(grads), strict=True):
                if i in base._by_rows:
                    set_to_zero(array)

    def _gradient_tables(self, grads: Sequence[Any] | Mapping[int, Any]) -> list[Gradients | RowSparse]:
        """All gradients as norms read them; `grads` are those of all parameters in this step, if none are kept."""
        return [*(self._base or self)._dense_tables(grads), *self.rows]

    def _dense_tables(self, grads: Sequence[Any] | Mapping[int, Any]) -> list[Gradients]:
        """Made when they are first asked for."""
        if self._tables is None:
            found = self._views(grads)
            self._tables = make_gradients([array for array, _ in found], [name for _, name in found])
            if self._columns is not None:
                for table in self._tables:
                    own = np.array(self.members)[table.places]
                    self._columns.add(table.addresses[:, 0], own[table.array_of], self._at)
                    table.owners.clear()
        return self._tables

    def step(
        self,
        owner: Owner,
        told: Telling,
        grads: Sequence[Any] | Mapping[int, Any],
        grad_scale: float,
        limits: Limits | None,
        skip_nonfinite: bool,
        zero_grads: bool,
        amp: tuple[int, int] | None = None,
    ) -> None:
        """Does one step.

        Parameters
        ----------
        owner : Owner
            Of the parameters.
        told : Telling
            Is told what the gradients say.
        grads : sequence of array or None
            The dense gradients of all parameters, if none are kept; what comes behind them is not looked at.
        limits : Limits or None
            Of the gradients.
        grad_scale, skip_nonfinite, zero_grads
            As of `fastopt.Optimizer.step`.
        amp : tuple of int, optional
            The addresses of what the device divides gradients by, and of whether to skip: for `can_limit_there`.

        Raises
        ------
        TypeError, ValueError
            An argument is not what it must be; nothing has been written.
        """
        if zero_grads is not False:
            zero_grads = check_flag("zero_grads", zero_grads)
        if skip_nonfinite is not False:
            skip_nonfinite = check_flag("skip_nonfinite", skip_nonfinite)
        if type(grad_scale) is not float or grad_scale != 1.0:
            grad_scale = check_scale(grad_scale, owner.real)
        threads, files = owner.threads or settings.threads, owner.files
        if told._last_skipped is not False:
            told._settle()
            told._last_skipped = False
        if limits is None and not (skip_nonfinite or zero_grads or owner.groups.varying or amp) and files is None:
            self._run(grad_scale, threads)
            return
        if zero_grads:
            self.check_zeroing(grads)
        clip_value = math.inf if limits is None else limits.clip_value
        runner = self.runner_with(zero_grads, clip_value)
        if files is not None:  # which cannot be used after a step that was begun and refused
            check_written([*self.watched.written, *(self._zeroed if zero_grads else ())])
        factors: Sequence[np.ndarray] = ()
        scale: Any = grad_scale
        skipped: Any = False
        if limits is not None or skip_nonfinite or amp:
            reader = self.backend if files is None or files.pager is None else files.pager.reading(self.backend)
            tables = self._gradient_tables(grads)
            found = self._limited_there(tables, grad_scale, limits or NO_LIMITS, skip_nonfinite, amp)
            if found is None:
                found = read(tables, reader, threads, grad_scale, limits or NO_LIMITS, skip_nonfinite)
            scale, factors, skipped = found.scale, found.factors, found.skipped
            if found.norm is not None:
                told._last_norm = found.norm
            if skipped is True:
                told._last_skipped = True
                return
        if owner.groups.varying:
            owner.groups.read_varying(self.members)
        leaves_rows = zero_grads and bool(self.rows or (self._base or self)._by_rows)
        with held_back() if leaves_rows or len(factors) else nullcontext():
            if len(factors):
                self._put_factors(tables, factors)
            try:
                if files is None:
                    self._run_all(runner, scale, threads, clip_value)
                else:
                    files.step(self.jobs, runner, scale, threads)
            finally:
                if len(factors):
                    for job in self.jobs:
                        job.progress.factors[:] = 1.0
            if leaves_rows:
                self._zero_rows(grads)
        told._last_skipped = skipped

    @property
    def can_limit_there(self) -> bool:
        """True where the device itself scales and skips: no matrices."""
        return self.backend.prepare_norms is not None and not any(isinstance(job, MatrixJob) for job in self.jobs)

    def _limited_there(
        self,
        tables: Sequence[Gradients | RowSparse],
        grad_scale: float,
        limits: Limits,
        skip_nonfinite: bool,
        amp: tuple[int, int] | None,
    ) -> Reading | None:
        """Have the device find the scale, without waiting; None where it cannot, or has no element to read."""
        prepare = self.backend.prepare_norms
        each = limits.clip_norm is not None
        limit = limits.clip_norm if each else limits.max_norm
        if prepare is None or (limit is None and not (skip_nonfinite or amp)):
            return None
        if skip_nonfinite and not self.can_limit_there:  # the ends of a matrix's step have one scale, not one skip
            return None
        key = each, limit is not None
        if key not in self._norms:
            found = self._read_there(tables, summed=limit is not None)
            given = [table for table, _ in found], [numbers for _, numbers in found]
            self._norms[key] = prepare(*given, each, self._recorded) if found else None
        norms = self._norms[key]
        if norms is None:
            return None
        scale = norms(grad_scale, limit, skip_nonfinite, amp or (0, 0))
        clips, skips = limits.max_norm is not None, skip_nonfinite or bool(amp and amp[1])
        return Reading(scale, (), scale if clips else None, scale if skips else False)

    def _read_there(
        self, tables: Sequence[Gradients | RowSparse], summed: bool
    ) -> list[tuple[Gradients | RowJob, np.ndarray]]:
        """What the device reads, with the numbers of its parameters: of some rows their sums, or what is given."""
        members, by_rows = np.array((self._base or self).members), [i for i, _, _ in self._rows]
        dense = [table for table in tables if isinstance(table, Gradients)]
        found: list[tuple[Gradients | RowJob, np.ndarray]] = [(table, members[table.places]) for table in dense]
        if summed:
            jobs = [job for job in self.jobs if isinstance(job, RowJob) and int(job.members[0]) in by_rows]
            return [*filter(_has_elements, found), *((job, job.members) for job in jobs if job.size)]
        for i, rows in zip(by_rows, self.rows, strict=True):
            found += [(table, np.array([i])) for table in make_gradients([rows.values], ["grads"])]
        return list(filter(_has_elements, found))

    def _put_factors(self, tables: Sequence[Gradients | RowSparse], factors: Sequence[np.ndarray]) -> None:
        """Give parameters the factors of their gradients' tables, dense ones first."""
        rows = iter([i for i, _, _ in self._rows])
        dense = np.array((self._base or self).members)
        for table, own in zip(tables, factors, strict=True):
            members = dense[table.places] if isinstance(table, Gradients) else [next(rows)]
            for job in self.jobs:
                job.progress.factors[members] = own

    def _run_all(self, runner: Runner, grad_scale: Any, threads: int, clip_value: float = math.inf) -> None:
        if not self._before:
            runner(grad_scale, threads)
            return
        with held_back():
            for own in self._before:
                own.runner_with(False, clip_value)(grad_scale, threads)
            runner(grad_scale, threads)

    def let_go(self, at: np.ndarray | None, blocks: Sequence[int] | None = None) -> None:
        """Keeps no array any longer.

        Parameters
        ----------
        at : numpy.ndarray, uint64, optional
            The addresses of arrays that may `move`: blocks of one for each parameter. By default none may.
        blocks : sequence of int, optional
            The block of each column of tables. By default gradients have the first, inputs the others, and no other
            array may move.
        """
        self._grads, self._tables, self._zeroed, self.inputs, self._rows = (), None, (), (), []
        self._others.clear()
        self._norms.clear()
        for job in self.jobs:
            job.owners.clear()
        if at is not None:
            self._at, self._columns = at, Columns()
            for job in self.jobs:
                table, members, inputs = job.address_table, job.run_members[:, None], job.progress.inputs
                if blocks is not None:
                    self._columns.add(table, np.array(blocks) * (len(at) // (1 + max(blocks))) + members, at)
                    continue
                self._columns.add(table[:, GRADIENT : GRADIENT + 1], members, at)
                if inputs:
                    of_each = np.arange(1, 1 + len(inputs)) * (len(at) // (1 + len(inputs)))
                    self._columns.add(table[:, inputs.start : inputs.stop], of_each + members, at)

    def move(self, at: np.ndarray) -> None:
        """Takes over arrays that are laid out as those before, where they are."""
        assert self._columns is not None  # it was told that they may
        self._at, self._distinct = at, False
        self._columns.put(at)
        for own in self._before:
            own.move(at)


class Last:
    """The binding of the last step, for one with the same gradients or others like them: it keeps none alive.

    Parameters
    ----------
    bound : Binding
        Which keeps no array from now on.
    grads : tuple of array or None
        Of all parameters; behind them each input's arrays.
    written : sequence of Array
        All parameters and states, with which these may not share memory.
    can_move : bool
        Whether these may be elsewhere the next time.

    Raises
    ------
    TypeError
        No weak reference can be made to a gradient.
    """

    def __init__(self, bound: Binding, grads: tuple[Any, ...], written: Sequence[Array], can_move: bool) -> None:
        self.bound, self.asked = bound, get_backend()
        self.held: Sequence[Any] = ()  # views during a step
        given = iter([array for array, _ in (*bound.grads, *bound.inputs)])
        views = [None if grad is None else next(given) for grad in grads]
        found = look(grads)
        self._same: Same | None = None
        if found is None:  # not all are plain arrays of NumPy, which themselves tell where they are
            found = look_at(views)
            self._remember(grads, views)
        self._kinds = list(map(_kind, grads))
        arrays = [*written, *(array for array in views if array is not None)]
        can_move = can_move and not bound.watched.tensors and len({array.place.device for array in arrays}) == 1
        self._moves = can_move and all(array.dense and array.size for array in arrays)
        if self._moves:
            self._places = Places(found, bound.move, ApartFromThose(written, views))
        else:
            self._places = Places(found)
        bound.let_go(np.frombuffer(found[1], np.uint64) if self._moves else None)

    def _remember(self, grads: Sequence[Any], views: Sequence[Array | None]) -> None:
        """Knows gradients again by their identities, if they stay where they are."""
        stay = all(array is None or _stays(grad, array) for grad, array in zip(grads, views, strict=True))
        self._same = Same(grads) if stay else None

    def fits(self, grads: tuple[Any, ...]) -> bool:
        """Return whether these gradients are the bound ones, or take their place by their addresses alone."""
        if self.bound.watched.tensors and self.bound.watched.moved():
            return False
        found = look(grads)
        if found is None:
            if self._same is not None and self._same.are(grads):
                return True
            if not self._moves or list(map(_kind, grads)) != self._kinds:
                return False
            self.held = views = [None if grad is None else view(grad, "grads") for grad in grads]
            found = look_at(views)
        if not self._places.take(found):
            return False
        if self.held:
            self._remember(grads, self.held)
        return True


def _kind(grad: Any) -> Any:
    """Return the shape and dtype of a gradient, as its library has them."""
    return None if grad is None else (getattr(grad, "shape", None), getattr(grad, "dtype", None))


def _stays(x: Any, array: Array) -> bool:
    """Return whether an array stays where its view is for as long as it lives, or tells that it does not.

    What a view copied, as the values of a lazily negated tensor, is of one step only, and what exports its memory by a
    protocol may export other memory the next time.
    """
    if is_tensor(x):
        return array.owner is x
    return isinstance(x, np.ndarray) or hasattr(x, "__cuda_array_interface__")


def _has_elements(table: tuple[Any, np.ndarray]) -> bool:
    return bool(table[0].offsets[-1])
