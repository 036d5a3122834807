"""The optimizer classes: parameters and their states, stepped in place."""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, NoReturn

import numpy as np

from . import settings
from .arrays.array import CPU, Array
from .arrays.checks import check_device, check_overlap, check_tensor
from .arrays.dtypes import compute_dtype, dtype_name, numpy_dtype
from .arrays.libraries import assign, floats_of, numpy_of, to_host, view
from .arrays.libraries.torch import is_tensor
from .backends import Backend, PartRunner, Runner
from .backends.choice import choose_backend, get_backend
from .binding.binding import Binding, Last, Watch, read_gradients
from .binding.blocks import from_blocks
from .binding.groups import Fixed, ParamGroup, State, Weakly
from .binding.norms import check_scale
from .binding.options import ARGUMENTS, EXECUTION, FILES, Arguments, check_group, read_call
from .binding.sparse import RowSparse
from .binding.states import by_copy, initial, new_state
from .binding.structure import gradient_of, match, read_params, split_rows
from .binding.where import Look, look
from .checks import check_flag, check_integer, check_name, check_number, describe, did_you_mean, differing
from .documentation import class_text
from .jobs.job import Job, Progress
from .jobs.tables import Tensor, make_jobs
from .rules import Rule
from .rules.hyper import frozen
from .statedict import (
    COMPANIONS,
    converted_state,
    group_from_torch,
    read_state_dict,
    restored,
    saved_value,
    schedules_in,
    state_from_torch,
    step_count,
    taken_value,
)


class Plan:
    """A step with its arrays already checked: made by `Optimizer.bind`."""

    def __init__(self, optimizer: Optimizer, bound: Binding) -> None:
        self._optimizer = optimizer
        self._bound = bound
        self._watch = Watch(bound.arrays)

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
            gradients to be zeroed are read-only or share memory; since it was bound a parameter has become read-only,
            or a tensor of torch has been given other memory.
        """
        watch = self._watch
        if (watch.tensors or not watch.writable()) and (changed := watch.changed()):
            raise ValueError(changed)
        self._optimizer._run(self._bound, (), grad_scale, max_norm, skip_nonfinite, zero_grads)

    def __reduce__(self) -> NoReturn:
        raise TypeError("found a Plan, expected its optimizer: a plan is of arrays where they are, and is bound anew")


class Optimizer:
    """What every optimizer class does and takes. The classes themselves come from the rule table.

    A step updates parameters and states in place, in one pass over them.

    Parameters
    ----------
    params : array, sequence, mapping, or list of group dicts
        Arrays of NumPy, torch, CuPy or Numba, or with DLPack, ``__cuda_array_interface__`` or the buffer protocol, of
        one device; float32, float64, bfloat16 (``ml_dtypes`` or torch) or float16. The arrays themselves are held,
        and updated in place: write new values into them, as ``params['W'][...] = x``; another array in their place, as
        by ``params['W'] = x``, is none of this optimizer's. A group is a mapping with ``"params"`` and the
        hyper-parameters of its own; entries under names of your own, as ``name``, are kept.
    hyper-parameters : float, bool, or callable of the 1-based step
        Those of the class, all but ``lr`` by keyword. Numbers may be arrays or tensors of one element. A callable is
        a schedule: it is called at each step, and gives the value for that step; see `fastopt.schedules`.
    state_dtype : str or dtype, optional
        What states are stored in: "float32", "bfloat16", "float16", or "8bit", blocks of 256 8-bit floats with a
        float32 scale each (parameters of fewer than 4096 elements, or with gaps between their elements, have float32
        states then); by default each parameter's own dtype, as in torch, but of a float16 one float32, for float16 has
        no second moments below 6e-8 or above 65504. Where it is given, 16-bit states are rounded up or down in turns,
        as 8-bit ones always are, so that slow averages move; by default to nearest, and then a second moment with
        beta2 = 0.999 in bfloat16 never falls. A group may have its own: parameters that are updated by rows need one
        that is not in blocks.
    rounding : str, default "nearest"
        What becomes of the bits of an updated bfloat16 or float16 parameter that it cannot hold: "nearest" drops them;
        "stochastic" rounds up or down at random, in proportion; "kahan" keeps them in the state ``compensation``, of
        the parameter's dtype; "master" keeps the parameter in float32, as the state ``master``, of which it is a
        rounded copy. Other parameters are updated as ever.
    seed : int, default 0
        Of stochastic rounding, which draws from Philox4x32-10 by seed, step and number of the element, and so rounds
        alike on every backend, with any number of threads.
    first_element : int, default 0
        The number of the first parameter's first element; the others' follow, parameter by parameter. For one who
        holds a part of something larger, whose elements are then rounded as in the whole (8-bit states, if it is cut
        at multiples of 256).
    ema_decay : float, optional
        A number in [0, 1] keeps the state ``ema``, an exponential moving average of the parameter that begins at it:
        ema = ema_decay*ema + (1 - ema_decay)*p, of the updated p before it is rounded to its dtype.
    backend : str, optional
        "native", "numba" or "numba-cuda"; by default what `use_backend` chose, else by the arrays: on a CUDA device
        "numba-cuda", on the CPU "native" where it is built.
    threads : int, optional
        At most so many threads; by default `fastopt.get_num_threads`. Not for a CUDA device.
    state_dir : path, optional
        A directory for the states, which are memory maps of a file there, allocated at once. One that is new or empty
        begins anew; one that holds whole states of the same rules, shapes and dtypes is resumed, with their step
        counts; one that a crash left half changed is refused, as is that of another optimizer. Parameters are not kept
        there: save them yourself, and construct the optimizer with those that go with the states; a warning tells after
        which step these are. After each step the directory is whole if the process is killed; `sync` makes it so for a
        power failure too.
    state_memory : int, optional
        At most so many bytes of the states in ``state_dir``, and of parameters and gradients that are memory maps, are
        in memory: a step streams them, reading ahead and writing behind while it computes. By default the system
        decides.

    Attributes
    ----------
    param_groups : sequence of ParamGroup
        Parameters with their hyper-parameters: ``opt.param_groups[0]["lr"] = x`` holds from the next step.
    state : sequence of State
        For each parameter its state arrays, under torch's names.
    last_grad_norm : float or None
        The global norm of the gradients at the last step that clipped, before clipping.
    last_step_skipped : bool
        Whether the last step did nothing, as ``skip_nonfinite`` asks for.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing has been written.
    BackendUnavailable
        The backend asked for, or one for the arrays' device, is not here.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = {"w": np.ones((2, 2)), "b": np.zeros(2)}
    >>> opt = fastopt.Adam(params, lr=lambda t: 0.1 / t)
    >>> opt.step({"w": 2 * params["w"], "b": None}, max_norm=1.0)
    >>> params["w"].round(6).tolist(), opt.last_grad_norm
    ([[0.9, 0.9], [0.9, 0.9]], 4.0)
    """

    arguments: ClassVar[Arguments]
    last_grad_norm: float | None = None
    """The global norm of the gradients at the last step that clipped, before clipping."""
    last_step_skipped: bool = False
    """Whether the last step did nothing, as ``skip_nonfinite`` asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        call = read_call(type(self), args, kwargs)
        self._backend_name, self._threads, self._execution = call.backend, call.threads, call.execution
        self._storage = call.storage
        self._varying: set[int] = set()  # groups whose hyper-parameters are to be read at each step
        self._last: Last | None = None
        self._structure, groups = read_params(call.params)
        self._names = [name for names, _, _ in groups for name in names]
        self._params = [param for _, arrays, _ in groups for param in arrays]
        self._views = [view(param, name) for param, name in zip(self._params, self._names, strict=True)]
        for g, (_, _, own) in enumerate(groups):
            check_group(type(self), own, f"params[{g}]")
        self._storages = [call.storage.of_group(own) for _, _, own in groups]
        self._group_of = [g for g, (names, _, _) in enumerate(groups) for _ in names]
        for array, name, g in zip(self._views, self._names, self._group_of, strict=True):
            check_tensor([array], [name])
            self._storages[g].check(array, name)
        check_device(self._views, self._names)
        check_overlap(self._views, self._names, [True] * len(self._views))
        self._place = self._views[0].place if self._views else CPU
        self._backend()
        dtypes = {array.dtype for array in self._views}
        self._real = min(map(compute_dtype, dtypes), default=np.dtype(np.float64))
        self._steps = np.zeros(len(self._params), np.int64)
        self._elements = self._storage.elements([array.size for array in self._views])
        self._make_groups(groups, call.options)
        self._make_states(**call.files)

    # ---- groups and hyper-parameters ----

    def _make_groups(self, groups: Sequence[tuple[list[str], list[Any], dict[str, Any]]], options: dict) -> None:
        self._rules: list[Rule] = []
        self._sets: list[Progress] = []  # of each group
        self._spans: list[range] = []
        self._shared_rows = len(groups)  # rows of hyper-parameters that a group shares; then one for each parameter
        made: list[ParamGroup] = []
        shared: dict[tuple[str, int], Progress] = {}
        first, rows = 0, len(groups) + len(self._params)
        for g, (_, arrays, own) in enumerate(groups):
            for name in own:
                self.arguments.check_key(name, f"params[{g}]")
            values = {**options, **own}
            for name in options:
                if isinstance(values[name], list):
                    values[name] = tuple(values[name])
            self.arguments.complete(values)
            rule = self.arguments.rule(values)
            copies = self.arguments.copies(rule, values)
            key = (rule.name, copies)
            if key not in shared:
                shared[key] = Progress.of(rule, copies, len(self._params), rows, self._steps)
            self._rules.append(rule)
            self._sets.append(shared[key])
            self._spans.append(range(first, first + len(arrays)))
            first += len(arrays)
            read = Weakly(self, Optimizer._read_group, g)
            values = {"params": tuple(arrays), **values}
            made.append(ParamGroup(values, f"param_groups[{g}]", self.arguments, read))
            self._put_group(g, values, self.arguments.row(rule, values, self._real))
        places: dict[int, int] = {}
        self._which = [places.setdefault(id(own), k) for k, own in enumerate(self._sets)]  # a set's first group
        self._groups = Fixed(made)

    @property
    def param_groups(self) -> Sequence[ParamGroup]:
        """Parameters with their hyper-parameters."""
        return self._groups

    @param_groups.setter
    def param_groups(self, _: Any) -> NoReturn:
        self._groups.refuse()

    @property
    def state(self) -> Sequence[State]:
        """For each parameter its state arrays under torch's names, with ``step``, a view of its step count."""
        return self._states

    @state.setter
    def state(self, _: Any) -> NoReturn:
        self._states.refuse()

    def hyper(self, group: int = 0) -> dict[str, Any]:
        """The hyper-parameters that a group's next step will use: schedules as the numbers that they give for it.

        Parameters
        ----------
        group : int
            The group's number; default 0.

        Returns
        -------
        dict
            Each argument of the class with its value. Where parameters of the group have made different numbers of
            steps it is that of the foremost.

        Raises
        ------
        TypeError, ValueError
            There is no group of that number.
        """
        done = self._done(group)
        return self.arguments.at_step(self.param_groups[group], done + 1)

    def _done(self, group: int) -> int:
        """How many steps the foremost parameter of a group has made."""
        span = self._spans[check_integer("group", group, 0, len(self._spans) - 1)]
        return int(self._steps[span.start : span.stop].max(initial=0))

    @property
    def lr(self) -> float:
        """The learning rate that the first group has for its last step, as the group is now; `hyper` tells the next.

        Before the first step it is that step's.
        """
        return self.arguments.at_step(self.param_groups[0], max(self._done(0), 1))["lr"]

    def _read_group(self, g: int, values: Mapping[str, Any]) -> None:
        """Takes over a group's hyper-parameters, if they are what they must be."""
        self._put_group(g, values, self._row(g, values))

    def _row(self, g: int, values: Mapping[str, Any]) -> np.ndarray:
        """A group's hyper-parameters as backends take them, checked."""
        rule, parameters = self._rules[g], self._sets[g]
        if self._storage.of_group(values) != self._storages[g]:
            raise ValueError(
                f"param_groups[{g}]: found another state_dtype, {values['state_dtype']!r}, expected that of the states "
                "which are there; construct a new optimizer"
            )
        chosen = self.arguments.rule(values)
        if chosen is not rule:
            raise ValueError(
                f"param_groups[{g}]: found values that make the rule {chosen.name}, expected {rule.name}, whose states "
                "differ; construct a new optimizer"
            )
        copies = self.arguments.copies(rule, values)
        if copies != parameters.copies:
            raise ValueError(
                f"param_groups[{g}]: found {copies} {rule.vector}, expected "
                f"{parameters.copies} as at construction; construct a new optimizer"
            )
        return self.arguments.row(rule, values, self._real)

    def _put_group(self, g: int, values: Mapping[str, Any], row: np.ndarray) -> None:
        """Has the next step use a group's checked hyper-parameters."""
        parameters, span = self._sets[g], self._spans[g]
        if frozen(map(values.__getitem__, self.arguments.defaults)) is None:
            self._varying.add(g)
            parameters.group[span.start : span.stop] = self._shared_rows + np.arange(span.start, span.stop)
        else:
            self._varying.discard(g)
            parameters.group[span.start : span.stop] = g
            parameters.hyper[g] = row

    def _read_varying(self, members: Sequence[int]) -> None:
        """Writes the rows of parameters whose hyper-parameters are read at each step; all are checked before any."""
        rows: dict[tuple[int, int], np.ndarray] = {}
        for i in members:
            g = self._group_of[i]
            if g in self._varying:
                key = (g, int(self._steps[i]) + 1)
                if key not in rows:
                    rule = self._rules[g]
                    rows[key] = self.arguments.row(rule, self.param_groups[g], self._real, key[1])
        for i in members:
            g = self._group_of[i]
            if g in self._varying:
                self._sets[g].hyper[self._shared_rows + i] = rows[g, int(self._steps[i]) + 1]

    # ---- states ----

    def _make_states(self, directory: Any, memory: int | None) -> None:
        kinds = [
            self._storages[g].states(self._rules[g], param, self._sets[g].copies)
            for g, param in zip(self._group_of, self._views, strict=True)
        ]
        self._files = None
        if directory is not None or memory is not None:
            self._files = self._open_files(directory, memory, kinds)
        made: list[State] = []
        for i, (g, param) in enumerate(zip(self._group_of, self._views, strict=True)):
            rule, parameters = self._rules[g], self._sets[g]
            state: dict[str, Any] = {"step": self._steps[i : i + 1].reshape(())}
            for k, name in enumerate(rule.scalars):
                state[name] = parameters.scalars[i : i + 1, k].reshape(())
            begins = self.arguments.begins(rule, self._groups[g])
            for name, (dtype, shape) in kinds[i].items():
                if self._files is not None:
                    state[name] = self._files.arrays[i][name]
                    continue
                state[name] = new_state(self._params[i], param, rule, name, dtype, shape, begins.get(name, 0.0))
            made.append(State(state, f"state[{i}]", Weakly(self, Optimizer._write_state, i)))
        self._states = Fixed(made)
        self._state_views: list[list[Array]] = [[]] * len(made)
        self._looks: list[Look | None] = [None] * len(made)  # where parameters and states were, as they were viewed

    def _view_states(self, i: int) -> list[Array]:
        """A parameter's state arrays as backends take them."""
        rule = self._rules[self._group_of[i]]
        counters = {"step", *rule.scalars}
        views = [(view(x, name), name) for name, x in self.state[i].items() if name not in counters]
        return by_copy(rule, self._sets[self._group_of[i]].copies, views, self._views[i])

    def _initial(self, i: int, name: str, dtype: np.dtype) -> Any:
        """What a state begins at: a number, or an array of its shape."""
        rule, group = self._rules[self._group_of[i]], self.param_groups[self._group_of[i]]
        if name in rule.scalars:
            return rule.scalars[name]
        begin = self.arguments.begins(rule, group).get(name, 0.0)
        return initial(self._params[i], self._views[i], rule, name, dtype, begin)

    def _open_files(self, directory: Any, memory: int | None, kinds: Sequence[Mapping[str, Any]]) -> Any:
        """The files of states, begun anew or resumed."""
        from .files.statefiles import ParameterStates, StateArray, StateFiles  # of Unix only, and for few

        if directory is None:
            raise ValueError(
                f"state_memory: found {describe(memory)}, expected None without state_dir: it bounds states in files"
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
                value = numpy_of(value) if is_tensor(value) else value
                order = param.order if shape == param.shape else None
                if rule.vector and name in rule.states and dtype != np.uint8:  # copies, each as the parameter lies
                    order = (0, *(axis + 1 for axis in param.order))
                states.append(StateArray(name, kind, numpy_dtype(dtype), shape, value, order))
            described.append(ParameterStates(rule.name, param.shape, tuple(states)))
        counters = [self._steps, *(p.scalars for p in {id(p): p for p in self._sets}.values() if p.rule.scalars)]
        files = StateFiles(directory, described, counters, memory)
        if files.resumed and self._steps.any():
            warnings.warn(
                f"state_dir: states after step {self._steps.max()} are resumed from {os.fsdecode(directory)}, where no "
                "parameters are: they must be those after this step too, or load a state dict that goes with them",
                UserWarning,
                stacklevel=4,
            )
        return files

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

        It happens at the end of a ``with`` block, when the optimizer is garbage, and when the process ends. Without
        ``state_dir`` it does nothing.

        Raises
        ------
        OSError
            The disk cannot be written.
        """
        if self._files is not None:
            self._files.close()

    def __enter__(self) -> Optimizer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
        TypeError, ValueError
            There is no such parameter, or it has no state of that name.
        """
        i = check_integer("i", i, 0, len(self.state) - 1)
        name = check_name("name", name, self.state[i])
        array, param = view(self.state[i][name], name), self._views[i]
        if array.dtype != np.uint8:
            return floats_of(array).copy()
        return from_blocks(to_host(array), name in self._rules[self._group_of[i]].positive, param)

    # ---- steps ----

    def _backend(self) -> Backend:
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
        dense, rows = split_rows(tuple(self._read_grads(grads)), self._views, self._names)
        bound = self._bind(dense)
        given = [grad for grad in dense if grad is not None]
        for grad, (array, name) in zip(given, bound.grads, strict=True):
            if is_tensor(grad) and array.owner is not grad:
                raise ValueError(f"{name}: found {array.read_only_reason}, expected one that a plan can read again")
        return Plan(self, self._with_rows(bound, rows))

    def _bind(self, grads: Sequence[Any]) -> Binding:
        tensors, names, members, views, arrays = [], [], [], [], []
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            array = view(grad, gradient_of(self._names[i]) if len(grads) > 1 else "grads")
            arrays += self._look(i)
            tensors.append(self._tensor(i, array))
            names.append(self._labels(i, len(tensors[-1].arrays)))
            members.append(i)
            views.append(array)
            arrays.append((None if isinstance(grad, np.ndarray) else grad, names[-1][1]))
        jobs = make_jobs(self._sets, tensors, names)
        return Binding(self._backend(), jobs, members, [labels[1] for labels in names], views, arrays)

    def _tensor(self, i: int, grad: Any) -> Tensor:
        """A parameter with its gradient and states, once it was looked at."""
        g = self._group_of[i]
        arrays = [self._views[i], grad, *self._state_views[i]]
        return Tensor.of(self._storages[g], self._which[g], i, arrays, self._elements[i])

    def _look(self, i: int) -> list[tuple[Any, str]]:
        """Has views of a parameter and its states that are where these are now; returns both, for others to watch."""
        owned = self._owned(i)
        found = look(tuple(x for x, _ in owned))
        if found is None or found != self._looks[i]:
            self._views[i], self._state_views[i] = view(self._params[i], self._names[i]), self._view_states(i)
            self._looks[i] = found
        return owned

    def _owned(self, i: int) -> list[tuple[Any, str]]:
        """The parameter and its state arrays, which others can change."""
        label, counters = self._names[i], {"step", *self._rules[self._group_of[i]].scalars}
        states = [x for name, x in self.state[i].items() if name not in counters]
        return [(self._params[i], label), *((x, f"state of {label}") for x in states)]

    def _labels(self, i: int, arrays: int) -> list[str]:
        """What a tensor's arrays are called in error messages."""
        label = self._names[i]
        return [label, gradient_of(label), *[f"state of {label}"] * (arrays - 2)]

    def _with_rows(self, bound: Binding, rows: Sequence[tuple[int, RowSparse]]) -> Binding:
        """The same with some rows of other parameters."""
        if not rows:
            return bound
        owned = [pair for i, _ in rows for pair in self._look(i)]
        tensors = [self._tensor(i, grad) for i, grad in rows]
        names = [self._labels(tensor.parameter, len(tensor.arrays)) for tensor in tensors]
        named = [(i, grad, called[1]) for (i, grad), called in zip(rows, names, strict=True)]
        return bound.with_rows(make_jobs(self._sets, tensors, names), named, owned)

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
        arrays = tuple(self._read_grads(grads))
        how = (grad_scale, max_norm, skip_nonfinite, zero_grads)
        last = self._last
        # What is to be zeroed is checked for that anew.
        if last is not None and (zero_grads is not False or last.asked != get_backend()):
            last = None
        try:
            if last is not None and last.fits(arrays):
                self._run(last.bound, arrays, *how)
                return
            dense, rows = split_rows(arrays, self._views, self._names)
            if rows and last is not None and last.fits(dense):
                self._run(self._with_rows(last.bound, rows), dense, *how)
                return
        finally:
            if last is not None:
                last.held = ()
        self._last = None
        bound = self._bind(dense)
        self._run(self._with_rows(bound, rows), dense, *how)
        with suppress(TypeError):  # an array that no weak reference can be made to
            for i, grad in enumerate(dense):
                if grad is None:
                    self._look(i)
            written = [*self._views, *itertools.chain.from_iterable(self._state_views)]
            can_move = self._place.kind == "cuda" or all(type(p) is np.ndarray for p in self._params)
            self._last = Last(bound, dense, written, can_move)

    def _run(
        self,
        bound: Binding,
        grads: Sequence[Any],
        grad_scale: float,
        max_norm: float | None,
        skip_nonfinite: bool,
        zero_grads: bool,
    ) -> None:
        """Does one step of what was bound; `grads` are its dense gradients, where it does not keep them."""
        threads = self._threads or settings.threads
        if zero_grads is not False:
            zero_grads = check_flag("zero_grads", zero_grads)
        if skip_nonfinite is not False:
            skip_nonfinite = check_flag("skip_nonfinite", skip_nonfinite)
        if type(grad_scale) is not float or grad_scale != 1.0:
            grad_scale = check_scale(grad_scale, self._real)
        runner = bound.zeroing_runner() if zero_grads else bound.runner
        self.last_step_skipped = False
        if max_norm is not None or skip_nonfinite:
            pager = None if self._files is None else self._files.pager
            reader = bound.backend if pager is None else pager.reading(bound.backend)
            tables = bound.tables(grads)
            grad_scale = read_gradients(self, tables, reader, threads, grad_scale, max_norm, skip_nonfinite)
            if self.last_step_skipped:
                return
        if self._varying:
            self._read_varying(bound.members)
        if self._files is None:
            runner(grad_scale, threads)
        else:
            self._files.update(partial(self._stream, bound.jobs, runner, grad_scale, threads))
        if zero_grads:
            bound.zero_rows(grads)

    def _stream(self, jobs: Sequence[Job], runner: Runner, grad_scale: float, threads: int) -> None:
        """A step over states in files."""
        pager: Any = None if self._files is None else self._files.pager
        if pager is None:
            runner(grad_scale, threads)
            return
        assert isinstance(runner, PartRunner)  # states in files are of arrays on the CPU
        chunks = pager.chunks(jobs, [job.units for job in jobs])
        runner.advance(grad_scale)
        pager.stream(chunks, lambda chunk: runner.update(chunk.job, chunk.begin, chunk.end, threads))

    def _read_grads(self, grads: Any) -> list[Any]:
        """Gradients in the order of the parameters."""
        return match(grads, self._structure, "grads")

    # ---- saving and loading ----

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training needs to go on bit for bit, in torch's layout.

        Returns
        -------
        dict
            ``state``: for each parameter's index its state; ``param_groups``: hyper-parameters, with the indices of
            the parameters as ``params``. Arrays are the optimizer's own, not copies. Those of `fastopt.schedules` are
            plain data; of another schedule that pickle does not find by name, as a lambda, a pickle holds the name.
        """
        own = self.arguments.defaults
        groups = [
            {
                **{key: saved_value(value) if key in own else value for key, value in group.items() if key != "params"},
                "params": list(span),
            }
            for group, span in zip(self.param_groups, self._spans, strict=True)
        ]
        return {"state": {i: dict(state) for i, state in enumerate(self.state)}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, here or in another process, or that of torch's class of that name.

        States of another precision are converted to this optimizer's: float64, float32, bfloat16, float16 and 8-bit
        blocks, each value to the nearest. What ``rounding`` keeps beside a parameter (``master``, ``compensation``)
        begins anew where the state dict lacks it, from the parameter as it is now, and is left out where this optimizer
        has no use for it.

        Parameters
        ----------
        state_dict : mapping
            In torch's layout. A parameter without state is as before its first step. Numbers of parameters may be
            strings, as JSON has them; torch's SGD counts no steps, and has made one here.

        Raises
        ------
        TypeError, ValueError
            Groups, parameters, state names, shapes or dtypes are not this optimizer's, or a number is none that it can
            be; nothing has changed.
        """
        order, groups, states = read_state_dict(state_dict, [len(span) for span in self._spans])
        taken = []
        for g, saved in enumerate(groups):
            where = f"state_dict['param_groups'][{g}]"
            values = group_from_torch(saved, where, self.arguments, self.param_groups[g])
            for key in values:
                self.arguments.check_key(key, where)
                if key in self.arguments.defaults:
                    values[key] = restored(values[key], self.param_groups[g][key], f"{where}[{key!r}]")
            values = {**self.param_groups[g], **values}
            taken.append((values, self._row(g, values)))
        writes = []
        for i, index in enumerate(order):
            where = f"state_dict['state'][{index!r}]"
            state = state_from_torch(states.get(index, {}), where, self.arguments.name)
            writes.append(self._read_state(i, state, where) if state else self._fresh_state(i, self.state[i]))
        self._write_states(writes)
        for g, (values, row) in enumerate(taken):
            values = {key: taken_value(value, self.param_groups[g].get(key)) for key, value in values.items()}
            self.param_groups[g]._values = values
            self._put_group(g, values, row)

    def _read_state(self, i: int, saved: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A parameter's whole state as it is to be written, from a saved one."""
        fresh = self._fresh_state(i, self.state[i].keys() & COMPANIONS)
        found, own = saved.keys() - COMPANIONS, self.state[i].keys() - COMPANIONS
        if found != own:
            raise ValueError(f"{where}: found {sorted(saved)}, expected {sorted(own)}{differing(found, own)}")
        kept = {name: value for name, value in saved.items() if name in self.state[i]}
        return {**fresh, **self._converted(i, kept, where)}

    def _fresh_state(self, i: int, names: Iterable[str]) -> dict[str, Any]:
        """Some of a parameter's states as before its first step."""
        dtypes = {name: view(self.state[i][name], name).dtype for name in names}
        return {name: 0 if name == "step" else self._initial(i, name, dtype) for name, dtype in dtypes.items()}

    def _converted(self, i: int, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Values for some of a parameter's states as they are to be written, checked."""
        rule, param = self._rules[self._group_of[i]], self._views[i]
        converted: dict[str, Any] = {}
        for name, value in values.items():
            own, called = self.state[i][name], f"{where}[{name!r}]"
            if name == "step":
                converted[name] = step_count(value, called)
            elif name in rule.scalars:
                converted[name] = check_number(called, value)
            else:
                shape = param.shape
                if name in rule.states:
                    shape = rule.state_shape(param.shape, self._sets[self._group_of[i]].copies)
                converted[name] = converted_state(value, own, shape, param, name in rule.positive, called)
        return converted

    def _write_state(self, i: int, changes: Mapping[str, Any]) -> None:
        """Writes values into some of a parameter's states."""
        for name in changes:
            if name not in self.state[i]:
                known = list(self.state[i])
                raise ValueError(f"state[{i}]: found {name!r}, expected one of {known}{did_you_mean(name, known)}")
        writes: list[dict[str, Any]] = [{} for _ in self.state]
        writes[i] = self._converted(i, changes, f"state[{i}]")
        self._write_states(writes)

    def _write_states(self, writes: Sequence[Mapping[str, Any]]) -> None:
        """Sets states, wherever they are, to values that have been checked."""

        def write() -> None:
            for i, values in enumerate(writes):
                for name, value in values.items():
                    own = self.state[i][name]
                    if self._files is None or not own.ndim:
                        assign(own, value)
                    else:
                        self._files.write(i, name, numpy_of(value) if is_tensor(value) else value)

        write() if self._files is None else self._files.update(write)

    def __reduce__(self) -> tuple[Any, ...]:
        for group in self.param_groups:
            for key in self.arguments.defaults:
                if unpickled := schedules_in(saved_value(group[key])):
                    raise TypeError(
                        f"{key}: found {unpickled[0]!r}, expected what pickle finds by name, a function of a module or "
                        "an object such as fastopt.Demon, to pickle an optimizer; its state_dict() can be pickled"
                    )
        return _rebuild, self._parts()

    def __copy__(self) -> Optimizer:
        return _rebuild(*self._parts())

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimizer:
        memo[id(self)] = copied = _rebuild(*copy.deepcopy(self._parts(), memo))
        return copied

    def _parts(self) -> tuple[Any, ...]:
        """What copies and pickles are built anew from, over the copied arrays: an address is no other array's."""
        structures = self._structure if isinstance(self._structure, list) else [self._structure]
        groups = []
        for group, structure in zip(self.param_groups, structures, strict=True):
            arrays = group["params"]
            own = dict(zip(structure, arrays, strict=True)) if isinstance(structure, tuple) else arrays
            groups.append({**group, "params": arrays[0] if structure is None else own})
        params = groups if isinstance(self._structure, list) else groups[0]["params"]
        options = {key: groups[0][key] for key in self.arguments.defaults} if groups else {}
        return type(self), params, options, self._execution, self.state_dict()

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


# ---- the classes, from the rule table ----


def _define(arguments: Arguments) -> type:
    execution = {key: default for key, (default, _) in {**EXECUTION, **FILES}.items()}
    namespace = {
        "__doc__": class_text(arguments, execution),
        "__module__": "fastopt",
        "__signature__": arguments.signature(execution),
        "arguments": arguments,
    }
    return type(arguments.name, (Optimizer,), namespace)


#: Every optimizer class by name.
CLASSES: dict[str, type] = {name: _define(arguments) for name, arguments in ARGUMENTS.items()}
