"""The optimizer classes: parameters and their states, stepped in place."""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import is_
from typing import Any, ClassVar

import numpy as np

from . import settings
from .arguments import ARGUMENTS, EXECUTION, FILES, Arguments, check_group, read_call
from .arrays import (
    COMPUTE_DTYPES,
    CPU,
    Array,
    address_of,
    check_device,
    check_overlap,
    check_tensor,
    check_zeroed,
    dtype_name,
    view,
)
from .checkpoint import group_from_torch, numpy_of, state_from_torch, tensor_of
from .dispatch import (
    Gradients,
    Job,
    Parameters,
    Runner,
    Tensor,
    choose_backend,
    count_copies,
    make_gradients,
    make_jobs,
    split_copies,
)
from .norms import check_scale, scale_of
from .rules import REQUIRED, Rule
from .sparse import RowSparse, as_row_sparse, floats_of
from .storage import ZERO_GRADS, assign, block_bytes, blocks_of, new_array, numpy_dtype, set_to_zero, values_of


class ParamGroup(UserDict):
    """Parameters that share hyper-parameters: ``group["lr"] = 1e-4`` is checked at once and holds from the next step.

    A mapping under torch's names; ``group["params"]`` are the arrays.
    """

    def __init__(self, values: Mapping[str, Any], changed: Callable[[ParamGroup], None]) -> None:
        self._changed: Callable[[ParamGroup], None] | None = None
        super().__init__(values)
        self._changed = changed
        changed(self)

    def __setitem__(self, key: str, value: Any) -> None:
        if self._changed is None:
            self.data[key] = value
            return
        if key not in self.data or key == "params":
            settable = ", ".join(name for name in self.data if name != "params")
            raise ValueError(f"param_groups: found {key!r}, expected one of {settable}")
        before = self.data[key]
        self.data[key] = tuple(value) if isinstance(value, list) else value
        try:
            self._changed(self)
        except (TypeError, ValueError):
            self.data[key] = before
            raise

    def copy(self) -> dict[str, Any]:  # type: ignore[override]
        """The group as a plain dict: a change to it changes no optimizer."""
        return dict(self.data)

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"param_groups: {key!r} cannot be removed")


class Plan:
    """A step with its arrays already checked: made by `Optimizer.bind`."""

    def __init__(
        self,
        optimizer: Optimizer,
        jobs: Sequence[Job],
        members: Sequence[int],
        tables: Sequence[Gradients | RowSparse],
        grads: Sequence[tuple[Array, str]],
    ) -> None:
        self._optimizer = optimizer
        self._jobs = jobs
        self._members = members
        self._tables = tables
        self._grads = grads
        self._backend = optimizer._backend()
        self._runner: Runner = self._backend.prepare(jobs)
        self._zeroing: Runner | None = None

    def step(
        self,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
    ) -> None:
        """Does one step, in place.

        Parameters
        ----------
        grad_scale : float
            What the gradients are multiplied by, within the pass; default 1.
        max_norm : float, optional
            Clips the gradients (after `grad_scale`) to this global norm, within the pass. The norm before clipping is
            then the optimizer's ``last_grad_norm``.
        skip_nonfinite : bool
            Does nothing where a gradient is not finite, which a reading pass finds out first; ``last_step_skipped``
            says so. (Nor where one's square is beyond float64.)
        zero_grads : bool
            Sets the gradients to zero, within the pass.

        Raises
        ------
        TypeError, ValueError
            `grad_scale` is no finite number, `max_norm` no number >= 0, a schedule gave a value out of range, or
            gradients to be zeroed are read-only or share memory.
        """
        optimizer = self._optimizer
        threads = optimizer._threads or settings._threads
        runner = self._zeroing_runner() if zero_grads else self._runner
        optimizer.last_step_skipped = False
        if grad_scale != 1.0 or max_norm is not None or skip_nonfinite:
            pager = None if optimizer._files is None else optimizer._files.pager
            reader = self._backend if pager is None else pager.reading(self._backend)
            grad_scale, norm, skipped = scale_of(
                self._tables, reader, threads, check_scale(grad_scale), max_norm, skip_nonfinite
            )
            optimizer.last_grad_norm = optimizer.last_grad_norm if norm is None else norm
            optimizer.last_step_skipped = skipped
            if skipped:
                return
        if optimizer._scheduled:
            optimizer._evaluate_schedules(self._members)
        if optimizer._files is None:
            runner(grad_scale, threads)
        else:
            optimizer._files.update(partial(self._stream, runner, grad_scale, threads))
        if zero_grads:
            for table in self._tables:
                if isinstance(table, RowSparse):
                    set_to_zero(table.values)

    def _stream(self, runner: Runner, grad_scale: float, threads: int) -> None:
        """A step over states in files."""
        assert self._optimizer._files is not None
        pager = self._optimizer._files.pager
        if pager is None:
            runner(grad_scale, threads)
            return
        chunks = pager.chunks(self._jobs, [job.units for job in self._jobs])
        runner.advance(grad_scale)
        pager.stream(chunks, lambda chunk: runner.update(chunk.job, chunk.begin, chunk.end, threads))

    def _zeroing_runner(self) -> Runner:
        """The step that zeroes gradients too, made when it is first asked for."""
        if self._zeroing is None:
            check_zeroed([grad for grad, _ in self._grads], [name for _, name in self._grads])
            jobs = [job if job.rows is not None else job.with_option(ZERO_GRADS) for job in self._jobs]
            self._zeroing = self._backend.prepare(jobs)
        return self._zeroing


class _Last:
    """The plan of the last step, for a next one from the same arrays or from others like them: it keeps none alive."""

    def __init__(self, optimizer: Optimizer, grads: Sequence[Any], plan: Plan) -> None:
        self.plan, jobs = plan, plan._jobs
        self._skipped = list(map(is_, grads, itertools.repeat(None)))
        self._refs = _references(grads)
        torch = sys.modules.get("torch")
        tensors = [x for x in (*optimizer._params, *grads) if torch is not None and isinstance(x, torch.Tensor)]
        self._torch: list[tuple[Any, int]] = [(weakref.ref(x), x.data_ptr()) for x in tensors]
        tables = [table for table in plan._tables if not isinstance(table, RowSparse)]
        for owners in (*(job.owners for job in jobs), *(table.owners for table in tables)):
            owners.clear()
        # Tables of dense arrays only, all NumPy's or all on a CUDA device, can take other gradients' addresses.
        self._kinds = [(g.shape, getattr(g.owner, "dtype", g.dtype), g.dtype) for g, _ in plan._grads]
        plan._grads = ()
        arrays = [*optimizer._views, *itertools.chain.from_iterable(optimizer._state_views)]
        self._device = optimizer._place.device
        of_numpy = all(type(p) is np.ndarray for p in optimizer._params)
        self._dense = not tensors and (of_numpy or optimizer._place.kind == "cuda")
        self._dense = self._dense and all(a.dense and a.size for a in arrays) and all(j.strides is None for j in jobs)
        extents = np.array(sorted(a.extent() for a in arrays), np.uint64).reshape(-1, 2)
        self._low, self._high = extents[:, 0], extents[:, 1]
        sizes = [math.prod(shape) * dtype.itemsize for shape, _, dtype in self._kinds]
        self._sizes = np.array(sizes, np.uint64)
        place = {i: k for k, i in enumerate(plan._members)}
        columns: list[tuple[Any, list[int]]] = (
            [(job.addresses[:, 1], [place[i] for i in job.parameter]) for job in jobs] if self._dense else []
        )
        dtypes = [dtype for _, _, dtype in self._kinds]
        for table in tables if self._dense else ():
            columns.append((table.addresses[:, 0], [k for k, dtype in enumerate(dtypes) if dtype == table.dtype]))
        self._columns = columns

    def fits(self, grads: Sequence[Any]) -> bool:
        """Whether the plan is one for these gradients, or could be made so by their addresses alone."""
        if list(map(is_, grads, itertools.repeat(None))) != self._skipped:
            return False
        if all(map(is_, grads, [ref() for ref in self._refs])):
            return all(ref().data_ptr() == address for ref, address in self._torch)
        return self._dense and self._take(grads)

    def _take(self, grads: Sequence[Any]) -> bool:
        """Puts other gradients' addresses in the tables, if they are just like those before and overlap nothing."""
        found = []
        for grad, (shape, dtype, _) in zip((g for g in grads if g is not None), self._kinds, strict=True):
            if getattr(grad, "shape", None) != shape or getattr(grad, "dtype", None) != dtype:
                return False
            if type(grad) is np.ndarray:
                if self._device != CPU.device or not grad.flags.c_contiguous:
                    return False
                found.append(address_of(grad) if dtype in COMPUTE_DTYPES else grad.ctypes.data)
            else:
                array = view(grad, "grads")
                if array.place.device != self._device or not array.dense:
                    return False
                found.append(array.address)
        addresses = np.array(found, np.uint64)
        after = np.minimum(np.searchsorted(self._high, addresses, "right"), len(self._high) - 1)
        if ((self._low[after] < addresses + self._sizes) & (self._high[after] > addresses)).any():
            return False
        for column, order in self._columns:
            column[:] = addresses[order]
        self._refs = _references(grads)
        return True


def _split(grads: list[Any]) -> tuple[list[Any], list[tuple[int, RowSparse]]]:
    """Dense gradients, with None in the others' places; and those of some rows, with their places."""
    if _PLAIN.issuperset(map(type, grads)):
        return grads, []
    rows = [(i, as_row_sparse(grad, f"grads[{i}]" if len(grads) > 1 else "grads")) for i, grad in enumerate(grads)]
    dense = [grad if found is None else None for grad, (_, found) in zip(grads, rows, strict=True)]
    return dense, [(i, found) for i, found in rows if found is not None]


_PLAIN = frozenset([np.ndarray, type(None)])


def _references(grads: Sequence[Any]) -> list[Any]:
    return [_none if grad is None else weakref.ref(grad) for grad in grads]


class Optimizer:
    """What every optimizer class does; the classes themselves come from the rule table.

    Attributes
    ----------
    param_groups : list of ParamGroup
        Parameters with their hyper-parameters.
    state : list of dict
        For each parameter its state arrays under torch's names, with ``step``, a view of its step count.
    last_grad_norm : float or None
        The global norm of the gradients at the last step that clipped, before clipping.
    last_step_skipped : bool
        Whether the last step did nothing, as ``skip_nonfinite`` asks for.
    """

    arguments: ClassVar[Arguments]
    last_grad_norm: float | None = None
    last_step_skipped: bool = False

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        call = read_call(type(self), params, args, kwargs)
        self._backend_name, self._threads, self._execution = call.backend, call.threads, call.execution
        self._precision = call.precision
        self._scheduled: set[int] = set()
        self._last: _Last | None = None
        self._structure, groups = _read_params(params)
        self._names = [name for names, _, _ in groups for name in names]
        self._params = [param for _, arrays, _ in groups for param in arrays]
        self._views = [view(param, name) for param, name in zip(self._params, self._names, strict=True)]
        for g, (_, _, own) in enumerate(groups):
            check_group(type(self), own, f"params[{g}]")
        self._precisions = [call.precision.of_group(own) for _, _, own in groups]
        self._group_of = [g for g, (names, _, _) in enumerate(groups) for _ in names]
        for array, name, g in zip(self._views, self._names, self._group_of, strict=True):
            check_tensor([array], [name])
            self._precisions[g].check(array, name)
        check_device(self._views, self._names)
        check_overlap(self._views, self._names, [True] * len(self._views))
        self._place = self._views[0].place if self._views else CPU
        self._backend()
        self._steps = np.zeros(len(self._params), np.int64)
        self._elements = self._precision.elements([array.size for array in self._views])
        self._make_groups(groups, call.options)
        self._make_states(**call.files)

    # ---- groups and hyper-parameters ----

    def _make_groups(self, groups: Sequence[tuple[list[str], list[Any], dict[str, Any]]], options: dict) -> None:
        self._rules: list[Rule] = []
        self._sets: list[Parameters] = []  # of each group
        self._spans: list[range] = []
        self.param_groups: list[ParamGroup] = []
        shared: dict[tuple[str, int], Parameters] = {}
        first, rows = 0, len(groups) + len(self._params)
        for g, (_, arrays, own) in enumerate(groups):
            unknown = set(own) - set(options) - {"state_dtype"}
            if unknown:
                raise TypeError(f"params[{g}]: found {sorted(unknown)[0]!r}, expected params, {', '.join(options)}")
            values = {**options, **own}
            for name, value in values.items():
                if isinstance(value, list):
                    values[name] = tuple(value)
            if values.get("base_lr", 0) is None:
                values["base_lr"] = values["lr"](1) if callable(values["lr"]) else values["lr"]
            rule = self.arguments.rule(values)
            copies = count_copies(rule, self.arguments.values(rule, values, 1))
            key = (rule.name, copies)
            if key not in shared:
                shared[key] = Parameters.of(rule, copies, len(self._params), rows, self._steps)
            self._rules.append(rule)
            self._sets.append(shared[key])
            self._spans.append(range(first, first + len(arrays)))
            first += len(arrays)
            self.param_groups.append(ParamGroup({"params": arrays, **values}, self._group_changed(g)))

    def _group_changed(self, g: int) -> Callable[[ParamGroup], None]:
        optimizer = weakref.ref(self)

        def changed(group: ParamGroup) -> None:
            self = optimizer()
            if self is not None:
                self._read_group(g, group)

        return changed

    def _read_group(self, g: int, group: ParamGroup) -> None:
        rule, parameters = self._rules[g], self._sets[g]
        if self._precision.of_group(group) != self._precisions[g]:
            raise ValueError(
                f"param_groups[{g}]: found another state_dtype, {group['state_dtype']!r}, expected that of the states "
                "which are there; construct a new optimizer"
            )
        chosen = self.arguments.rule(group)
        if chosen is not rule:
            raise ValueError(
                f"param_groups[{g}]: this value would make the rule {chosen.name} of {rule.name}, whose states differ; "
                "construct a new optimizer"
            )
        values = self.arguments.values(rule, group, 1)
        if count_copies(rule, values) != parameters.copies:
            raise ValueError(
                f"param_groups[{g}]: found {len(values[str(rule.vector)])} {rule.vector}, expected "
                f"{parameters.copies} as at construction; construct a new optimizer"
            )
        row = self.arguments.row(rule, group)
        span = self._spans[g]
        if any(callable(value) for value in _leaves(group)):
            self._scheduled.add(g)
            parameters.group[span.start : span.stop] = len(self._spans) + np.arange(span.start, span.stop)
        else:
            self._scheduled.discard(g)
            parameters.group[span.start : span.stop] = g
            parameters.hyper[g] = row

    def _evaluate_schedules(self, members: Sequence[int]) -> None:
        """Writes the rows of parameters whose hyper-parameters depend on the step; all are checked before any."""
        rows: dict[tuple[int, int], np.ndarray] = {}
        for i in members:
            g = self._group_of[i]
            if g in self._scheduled:
                key = (g, int(self._steps[i]) + 1)
                if key not in rows:
                    rule = self._rules[g]
                    rows[key] = self.arguments.row(rule, self.param_groups[g], key[1])
        for i in members:
            g = self._group_of[i]
            if g in self._scheduled:
                self._sets[g].hyper[len(self._spans) + i] = rows[g, int(self._steps[i]) + 1]

    # ---- states ----

    def _make_states(self, directory: Any, memory: int | None) -> None:
        copies = [self._sets[g].copies for g in self._group_of]
        kinds = [
            self._precisions[g].states(self._rules[g], param, k)
            for g, param, k in zip(self._group_of, self._views, copies, strict=True)
        ]
        self._files = None
        if directory is not None or memory is not None:
            self._files = self._open_files(directory, memory, kinds)
        self.state: list[dict[str, Any]] = []
        self._state_views: list[list[Array]] = []
        for i, (g, param) in enumerate(zip(self._group_of, self._views, strict=True)):
            rule, parameters = self._rules[g], self._sets[g]
            state: dict[str, Any] = {"step": self._steps[i : i + 1].reshape(())}
            for k, name in enumerate(rule.scalars):
                state[name] = parameters.scalars[i : i + 1, k].reshape(())
            for name, (dtype, shape) in kinds[i].items():
                if self._files is not None:
                    state[name] = self._files.arrays[i][name]
                    continue
                value = self._initial(i, name, dtype)
                state[name] = new_array(self._params[i], param, dtype, shape, value if np.isscalar(value) else 0)
                if not np.isscalar(value):
                    assign(state[name], value)
            self.state.append(state)
            views = [(view(state[name], name), name) for name in kinds[i]]
            self._state_views.append(_by_copy(rule, copies[i], views, param))

    def _initial(self, i: int, name: str, dtype: np.dtype) -> Any:
        """What a state begins at: a number, or an array of its shape."""
        rule = self._rules[self._group_of[i]]
        if name in ("master", "ema"):
            param = self._params[i]
            return param.detach() if hasattr(param, "detach") else param
        if name not in rule.initial:
            return rule.scalars.get(name, 0.0)
        group = self.param_groups[self._group_of[i]]
        value = float(self.arguments.values(rule, group, 1)[rule.initial[name]])
        if dtype != np.uint8 or value == 0.0:
            return value
        blocks = blocks_of(np.full(self._views[i].size, value), name in rule.positive)
        return sys.modules["torch"].from_numpy(blocks) if hasattr(self._params[i], "detach") else blocks

    def _open_files(self, directory: Any, memory: int | None, kinds: Sequence[Mapping[str, Any]]) -> Any:
        """The files of states, begun anew or resumed."""
        from .statefiles import ParameterStates, StateArray, StateFiles  # of Unix only, and for few

        if directory is None:
            raise ValueError(
                f"state_memory: found {memory!r}, expected None without state_dir: it is states in files that it bounds"
            )
        if self._place.kind != "cpu":
            raise ValueError(
                f"state_dir: found {directory!r}, expected None for parameters on {self._place.device}: states in "
                "files are of arrays on the CPU"
            )
        described = []
        for i, (g, param) in enumerate(zip(self._group_of, self._views, strict=True)):
            states, rule = [], self._rules[g]
            for name, (dtype, shape) in kinds[i].items():
                kind = "8bit" if dtype == np.uint8 else dtype_name(dtype)
                value = self._initial(i, name, dtype)
                value = numpy_of(value) if hasattr(value, "detach") else value
                order = param.order if shape == param.shape else None
                if rule.vector and name in rule.states and dtype != np.uint8:  # copies, each as the parameter lies
                    order = (0, *(axis + 1 for axis in param.order))
                states.append(StateArray(name, kind, numpy_dtype(dtype), shape, value, order))
            described.append(ParameterStates(rule.name, param.shape, tuple(states)))
        counters = [self._steps, *(p.scalars for p in {id(p): p for p in self._sets}.values() if p.rule.scalars)]
        return StateFiles(directory, described, counters, memory)

    def sync(self) -> None:
        """Waits until states in files are on the disk, so that even a power failure leaves them whole.

        A process that is killed needs no such wait. Without ``state_dir`` it does nothing.

        Raises
        ------
        OSError
            The disk cannot be written.
        """
        if self._files is not None:
            self._files.sync()

    def close(self) -> None:
        """Syncs states in files, and leaves their directory to whoever takes it up next; this optimizer is done then.

        It happens when the optimizer is garbage, too, and when the process ends. Without ``state_dir`` it does nothing.

        Raises
        ------
        OSError
            The disk cannot be written.
        """
        if self._files is not None:
            self._files.close()

    def state_values(self, i: int, name: str) -> np.ndarray:
        """A state's values in float32 (float64 where it is in that), whatever it is stored in.

        Parameters
        ----------
        i : int
            The parameter's number.
        name : str
            The state's name.

        Returns
        -------
        numpy.ndarray
            A copy, of the parameter's shape (AggMo's velocities: one behind the other).

        Raises
        ------
        KeyError
            The parameter has no state of that name.
        """
        array, param = view(self.state[i][name], name), self._views[i]
        if array.dtype != np.uint8:
            return floats_of(array).copy()
        positive = name in self._rules[self._group_of[i]].positive
        rows = array.host().reshape(-1, block_bytes(param.size))
        values = np.concatenate([values_of(row, positive, param.size) for row in rows])
        copies = array.shape[:-1]
        whole = values.reshape(*copies, *(param.shape[axis] for axis in param.order))
        axes = range(len(copies), whole.ndim)
        return np.moveaxis(whole, axes, [axis + len(copies) for axis in param.order])

    # ---- steps ----

    def _backend(self) -> Any:
        return choose_backend(self._backend_name, self._place)

    def bind(self, grads: Any) -> Plan:
        """Checks gradients once, for any number of steps from the same arrays.

        Parameters
        ----------
        grads : array, sequence, mapping or list of groups
            The same structure as ``params``; ``None`` skips that parameter.

        Returns
        -------
        Plan
            ``plan.step()`` does a step with what the arrays then hold. It keeps them alive.

        Raises
        ------
        TypeError, ValueError
            The structure, a shape, a dtype is not the parameters', or arrays overlap.
        BackendUnavailable
            The backend asked for, or one for the arrays' device, is not here.
        """
        dense, rows = _split(self._read_grads(grads))
        return self._with_rows(self._bind(dense), rows)

    def _bind(self, grads: Sequence[Any]) -> Plan:
        tensors, names, members, views = [], [], [], []
        set_of = {id(p): k for k, p in enumerate(self._sets)}
        for i, (g, grad) in enumerate(zip(self._group_of, grads, strict=True)):
            if grad is None:
                continue
            array = view(grad, f"grads[{i}]" if len(grads) > 1 else "grads")
            arrays = [self._current_view(i), array, *self._state_views[i]]
            tensors.append(Tensor.of(self._precisions[g], set_of[id(self._sets[g])], i, arrays, self._elements[i]))
            names.append(self._labels(i, len(arrays)))
            members.append(i)
            views.append(array)
        jobs = make_jobs(self._sets, tensors, names)
        labels = [n[1] for n in names]
        return Plan(self, jobs, members, make_gradients(views, labels), list(zip(views, labels, strict=True)))

    def _labels(self, i: int, arrays: int) -> list[str]:
        """What a tensor's arrays are called in error messages."""
        label = self._names[i]
        return [label, f"grads{label.removeprefix('params')}", *[f"state of {label}"] * (arrays - 2)]

    def _with_rows(self, plan: Plan, rows: Sequence[tuple[int, RowSparse]]) -> Plan:
        """A plan that updates some rows of other parameters too."""
        if not rows:
            return plan
        tensors, names = [], []
        set_of = {id(p): k for k, p in enumerate(self._sets)}
        for i, grad in rows:
            arrays = [self._current_view(i), grad, *self._state_views[i]]
            g = self._group_of[i]
            which = set_of[id(self._sets[g])]
            tensors.append(Tensor.of(self._precisions[g], which, i, arrays, self._elements[i]))
            names.append(self._labels(i, len(arrays)))
        jobs = [*plan._jobs, *make_jobs(self._sets, tensors, names)]
        tables = [*plan._tables, *(grad for _, grad in rows)]
        grads = [*plan._grads, *((grad.values, n[1]) for (_, grad), n in zip(rows, names, strict=True))]
        return Plan(self, jobs, [*plan._members, *(i for i, _ in rows)], tables, grads)

    def _current_view(self, i: int) -> Array:
        """The parameter's view, made anew for arrays whose memory can be replaced (torch's)."""
        if isinstance(self._params[i], np.ndarray):
            return self._views[i]
        self._views[i] = view(self._params[i], self._names[i])
        return self._views[i]

    def step(
        self,
        grads: Any,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
    ) -> None:
        """Updates every parameter and its states, in place, in one pass.

        Parameters
        ----------
        grads : array, sequence, mapping or list of groups
            The same structure as ``params``; ``None`` skips that parameter, whose state and step count stay; with a
            `RowSparse` some rows are updated.
        grad_scale : float
            What the gradients are multiplied by, within the pass; default 1.
        max_norm : float, optional
            Clips the gradients (after `grad_scale`) to this global norm, within the pass; see ``last_grad_norm``.
        skip_nonfinite : bool
            Does nothing where a gradient is not finite, which a reading pass finds out first; see
            ``last_step_skipped``. (Nor where one's square is beyond float64.)
        zero_grads : bool
            Sets the gradients to zero, within the pass; they may not share memory then. (Of many small arrays, `bind`
            saves that check.)

        Raises
        ------
        TypeError, ValueError
            As `bind`, before any byte is written.
        BackendUnavailable
            The backend asked for, or one for the arrays' device, is not here.
        """
        arrays = self._read_grads(grads)
        how = (grad_scale, max_norm, skip_nonfinite, zero_grads)
        last = self._last
        # What is to be zeroed is checked for that anew.
        if last is not None and (zero_grads or last.plan._backend is not self._backend()):
            last = None
        if last is not None and last.fits(arrays):
            last.plan.step(*how)
            return
        dense, rows = _split(arrays)
        if rows and last is not None and last.fits(dense):
            self._with_rows(last.plan, rows).step(*how)
            return
        self._last = None
        plan = self._bind(dense)
        self._with_rows(plan, rows).step(*how)
        with suppress(TypeError):  # an array that no weak reference can be made to
            self._last = _Last(self, dense, plan)

    def _read_grads(self, grads: Any) -> list[Any]:
        """Gradients in the order of the parameters."""
        return _match(grads, self._structure, "grads")

    # ---- saving and loading ----

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training needs to go on bit for bit, in torch's layout.

        Returns
        -------
        dict
            ``state``: for each parameter's index its state; ``param_groups``: hyper-parameters, with the indices of
            the parameters as ``params``. Arrays are the optimizer's own, not copies.
        """
        groups = [
            {**{key: value for key, value in group.items() if key != "params"}, "params": list(span)}
            for group, span in zip(self.param_groups, self._spans, strict=True)
        ]
        return {"state": {i: dict(state) for i, state in enumerate(self.state)}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, here or in another process, or that of torch's class of that name.

        Parameters
        ----------
        state_dict : mapping
            In torch's layout. A parameter without state is as before its first step.

        Raises
        ------
        TypeError, ValueError
            Groups, parameters, state names, shapes or dtypes are not this optimizer's; nothing has changed.
        """
        for key in ("state", "param_groups"):
            if not isinstance(state_dict, Mapping) or key not in state_dict:
                raise ValueError(f"state_dict: found no {key!r}, expected what state_dict() returned")
        groups, states = state_dict["param_groups"], state_dict["state"]
        sizes, expected = [len(group["params"]) for group in groups], [len(span) for span in self._spans]
        if sizes != expected:
            raise ValueError(f"state_dict: found groups of {sizes} parameters, expected {expected}")
        order = [index for group in groups for index in group["params"]]
        copies: list[tuple[int, str, Any]] = []
        for i, index in enumerate(order):
            saved = state_from_torch(states.get(index, {}))
            if saved and set(saved) != set(self.state[i]):
                raise ValueError(
                    f"state_dict['state'][{index}]: found {sorted(saved)}, expected {sorted(self.state[i])}"
                )
            for name, value in saved.items():
                copies.append((i, name, _loaded(value, self.state[i][name], f"[{index}][{name!r}]")))
        before = [dict(group.data) for group in self.param_groups]
        try:
            for group, saved in zip(self.param_groups, groups, strict=True):
                values = group_from_torch(saved, "weight_decay" in self.arguments.renamed)
                values.pop("params")
                unknown = set(values) - set(group)
                if unknown:
                    raise ValueError(f"state_dict['param_groups']: found {sorted(unknown)}, which this rule lacks")
                group.data.update(values)
                assert group._changed is not None
                group._changed(group)
        except (TypeError, ValueError):
            for group, values in zip(self.param_groups, before, strict=True):
                group.data.update(values)
                assert group._changed is not None
                group._changed(group)
            raise
        fresh = [i for i, index in enumerate(order) if not state_from_torch(states.get(index, {}))]

        def write() -> None:
            for i in fresh:
                for name, own in self.state[i].items():
                    self._write(i, name, 0 if name == "step" else self._initial(i, name, view(own, name).dtype))
            for i, name, value in copies:
                self._write(i, name, value)

        write() if self._files is None else self._files.update(write)

    def _write(self, i: int, name: str, value: Any) -> None:
        """Sets a state, wherever it is."""
        own = self.state[i][name]
        if self._files is None or not own.ndim:
            assign(own, value)
        else:
            self._files.write(i, name, numpy_of(value) if hasattr(value, "detach") else value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are built anew over the copied arrays: an address is no other array's."""
        structures = self._structure if isinstance(self._structure, list) else [self._structure]
        groups = []
        for group, structure in zip(self.param_groups, structures, strict=True):
            arrays = group["params"]
            own = dict(zip(structure, arrays, strict=True)) if isinstance(structure, tuple) else arrays
            groups.append({**group, "params": arrays[0] if structure is None else own})
        params = groups if isinstance(self._structure, list) else groups[0]["params"]
        options = {key: groups[0][key] for key in self.arguments.defaults} if groups else {}
        return _rebuild, (type(self), params, options, self._execution, self.state_dict())

    def __repr__(self) -> str:
        groups = [
            ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params")
            for group in self.param_groups
        ]
        return f"{type(self).__name__}({len(self._params)} parameters; {'; '.join(groups)})"


def _rebuild(cls: type[Optimizer], params: Any, options: dict, execution: dict, state_dict: dict) -> Optimizer:
    optimizer = cls(params, **options, **execution)
    optimizer.load_state_dict(state_dict)
    return optimizer


def _none() -> None:
    return None


def _leaves(group: Mapping[str, Any]) -> Iterator[Any]:
    for key, value in group.items():
        if key != "params":
            yield from value if isinstance(value, (tuple, list)) else (value,)


def _by_copy(rule: Rule, copies: int, views: Sequence[tuple[Array, str]], param: Array) -> list[Array]:
    """States in the order of a backend's table: all of the first copy, all of the second, ..., what storage adds."""
    own, added = views[: len(rule.states)], views[len(rule.states) :]
    split = [split_copies(rule, copies, array, param, name) for array, name in own]
    return [arrays[k] for k in range(copies) for arrays in split] + [array for array, _ in added]


def _loaded(value: Any, own: Any, where: str) -> Any:
    """A saved state, if it fits where it is to go."""
    value = numpy_of(value) if hasattr(value, "detach") and not hasattr(own, "detach") else value
    shape = tuple(np.shape(value))
    if shape != tuple(own.shape):
        raise ValueError(f"state_dict['state']{where}: found shape {shape}, expected {tuple(own.shape)}")
    if own.ndim and hasattr(value, "dtype") and str(value.dtype).split(".")[-1] != str(own.dtype).split(".")[-1]:
        raise ValueError(f"state_dict['state']{where}: found dtype {value.dtype}, expected {own.dtype}")
    if where.endswith("['step']") and not np.asarray(value, np.float64) >= 0:
        raise ValueError(f"state_dict['state']{where}: found {value!r}, expected a number >= 0")
    if type(own).__module__.startswith("torch") and isinstance(value, np.ndarray):
        return tensor_of(np.ascontiguousarray(value))
    return value


# ---- the structure of params and grads ----


def _is_group_list(params: Any) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def _read_params(params: Any) -> tuple[Any, list[tuple[list[str], list[Any], dict[str, Any]]]]:
    """The structure of params, and each group's names, arrays and own hyper-parameters."""
    if _is_group_list(params):
        structures, groups = [], []
        for g, group in enumerate(params):
            structure, names, arrays = _read_arrays(group["params"], f"params[{g}]['params']")
            structures.append(structure)
            groups.append((names, arrays, {key: value for key, value in group.items() if key != "params"}))
        return structures, groups
    structure, names, arrays = _read_arrays(params, "params")
    return structure, [(names, arrays, {})]


def _read_arrays(params: Any, name: str) -> tuple[Any, list[str], list[Any]]:
    """A structure is the keys of a mapping, the length of a sequence, or None for a single array."""
    if isinstance(params, Mapping):
        return tuple(params), [f"{name}[{key!r}]" for key in params], list(params.values())
    if isinstance(params, Iterator):
        params = list(params)
    if isinstance(params, (list, tuple)):
        return len(params), [f"{name}[{i}]" for i in range(len(params))], list(params)
    return None, [name], [params]


def _match(grads: Any, structure: Any, name: str) -> list[Any]:
    """Gradients in the order of the parameters, or an error that says where the structures differ."""
    if isinstance(structure, list):  # groups
        if not isinstance(grads, (list, tuple)):
            raise TypeError(f"{name}: found {type(grads).__name__}, expected a list as params is")
        total = sum(len(s) if isinstance(s, tuple) else 1 if s is None else s for s in structure)
        if len(grads) == total and not any(isinstance(g, (list, tuple, Mapping)) for g in grads):
            return list(grads)
        if len(grads) != len(structure):
            raise ValueError(
                f"{name}: found {len(grads)} entries, expected one for each of {len(structure)} groups or "
                f"each of {total} parameters"
            )
        found = []
        for g, (own, shape) in enumerate(zip(grads, structure, strict=True)):
            if isinstance(own, Mapping) and "params" in own:
                own = own["params"]
            found += _match(own, shape, f"{name}[{g}]")
        return found
    if structure is None:
        if isinstance(grads, (list, tuple)) and len(grads) == 1:
            return list(grads)
        if isinstance(grads, (list, tuple, Mapping)):
            raise TypeError(f"{name}: found {type(grads).__name__}, expected one array as params is")
        return [grads]
    if isinstance(structure, tuple):
        if not isinstance(grads, Mapping):
            raise TypeError(f"{name}: found {type(grads).__name__}, expected a mapping as params is")
        if grads.keys() != set(structure):
            odd = sorted(map(repr, grads.keys() ^ set(structure)))
            raise ValueError(f"{name}: found keys that differ from those of params in {', '.join(odd)}")
        return [grads[key] for key in structure]
    if isinstance(grads, Iterator):
        grads = list(grads)
    if not isinstance(grads, (list, tuple)):
        raise TypeError(f"{name}: found {type(grads).__name__}, expected a sequence of {structure} arrays")
    if len(grads) != structure:
        raise ValueError(f"{name}: found {len(grads)} gradients, expected {structure}, one for each parameter")
    return list(grads)


# ---- the classes, from the rule table ----


def _documentation(arguments: Arguments) -> str:
    lines = [
        *arguments.formulas(),
        "Parameters",
        "----------",
        "params : array, sequence, mapping, or list of group dicts",
        "    float32, float64, bfloat16 (``ml_dtypes`` or torch) or float16 arrays, of one device, updated in place.",
    ]
    for key, meaning in arguments.meanings().items():
        default = arguments.defaults[key]
        said = "required" if default is REQUIRED else f"default {default!r}"
        lines += [f"{key} : number, or callable of the 1-based step; {said}", f"    {meaning}."]
    for key, (default, meaning) in {**EXECUTION, **FILES}.items():
        lines += [f"{key} : default {default!r}", f"    {meaning[0].upper()}{meaning[1:]}."]
    lines += [
        "",
        "Raises",
        "------",
        "TypeError, ValueError",
        "    An array or a hyper-parameter is not what it must be; the message names it.",
    ]
    return "\n".join(lines)


def _define(arguments: Arguments) -> type:
    namespace = {
        "__doc__": _documentation(arguments),
        "__module__": "fastopt",
        "__signature__": arguments.signature({key: default for key, (default, _) in {**EXECUTION, **FILES}.items()}),
        "arguments": arguments,
    }
    return type(arguments.name, (Optimizer,), namespace)


#: Every optimizer class by name.
CLASSES: dict[str, type] = {name: _define(arguments) for name, arguments in ARGUMENTS.items()}
