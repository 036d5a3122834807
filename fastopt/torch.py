"""Optimizers for PyTorch: under torch's names and with torch's arguments, so that the import line is all that changes.

::

    from fastopt import torch as optim  # was: from torch import optim

    optimizer = optim.AdamW(model.parameters(), lr=1e-3)

Every class is a `torch.optim.Optimizer`: parameter groups, closures, hooks, every ``torch.optim.lr_scheduler``,
``torch.amp.GradScaler``, copying and pickling work as they do there, and state dicts go both ways between a class and
torch's class of the same name. Tensors are updated where they are, never copied.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, compress
from operator import attrgetter, itemgetter
from typing import Any, ClassVar

import numpy as np

from .errors import install_command

try:
    import torch
except ImportError as error:
    raise ImportError(f"fastopt.torch needs PyTorch ({error}): {install_command('torch')}") from None
from torch.autograd.graph import increment_version
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import settings
from .arrays.array import CPU, Array, Place, replace_shape
from .arrays.blocks import block_bytes
from .arrays.checks import check_distinct, check_overlap, check_tensor
from .arrays.dtypes import dtype_name
from .arrays.libraries import new_array, set_to_zero, view
from .arrays.libraries.torch import tensor_of
from .backends import Runner
from .backends.choice import choose_backend, get_backend, ieee_arithmetic
from .binding import norms
from .binding.binding import read_gradients
from .binding.blocks import from_blocks, to_blocks
from .binding.options import ARGUMENTS, EXECUTION, TorchArguments, check_group, read_call
from .binding.sparse import RowSparse, as_row_sparse
from .binding.states import by_copy, new_state
from .binding.where import Columns
from .checks import as_float, check_flag, check_number, did_you_mean, wrong_type, wrong_value
from .documentation import torch_text
from .jobs.job import GRADIENT, Gradients, Job, Progress, RowJob, Rows
from .jobs.tables import Tensor, check_rows, make_jobs, make_row_job
from .rules import RULES, Rule
from .rules.hyper import frozen
from .statedict import COMPANIONS, read_state_dict, torch_groups

try:
    increment_version([])
except TypeError:  # older ones take a single tensor only
    raise ImportError(
        f"fastopt.torch needs a newer PyTorch than {torch.__version__}: {install_command('torch')}"
    ) from None

_data_ptr: Callable[[Any], int] = torch.Tensor.data_ptr
_stride = torch.Tensor.stride
_is_neg = torch.Tensor.is_neg
_nbytes = attrgetter("nbytes")
_grad = attrgetter("grad")

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# All names that states have, others being the users'.
_STATE_NAMES = {"step", "ema", *COMPANIONS, *chain.from_iterable((*r.states, *r.scalars) for r in RULES.values())}

# What torch's classes have beside hyper-parameters: how torch computes, which fastopt takes no notice of, ...
_EXECUTION = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
# ... and why some of it cannot be had: ever, or on the CPU.
_REFUSED = {
    "differentiable": "the update is done in place and autograd does not see it",
    "capturable": "CUDA graphs record no update on the CPU",
}


class Optimizer(torch.optim.Optimizer):
    """What every class does and takes beside what is torch.optim.Optimizer's. The classes come from the rule table.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) pairs, or of group dicts
        float32, float64, bfloat16 or float16 tensors, of one device, updated in place.
    hyper-parameters : float, bool or Tensor
        Those of the class: torch's, and by keyword what its rule has beyond them. Schedules are torch's, as
        ``torch.optim.lr_scheduler``.
    state_dtype, rounding, seed, first_element, ema_decay, backend, threads : optional
        By keyword, as those of `fastopt.Optimizer`, which is the same for arrays without torch.

    Attributes
    ----------
    param_groups : list of dict
        Parameters with their hyper-parameters, as torch's.
    state : mapping
        For each parameter its state tensors, under torch's names.
    last_grad_norm : float or None
        The global norm of the gradients at the last ``step(max_norm=...)``, before clipping.
    last_step_skipped : bool
        Whether the last step did nothing, for a gradient was not finite: see ``step(skip_nonfinite=True)``; and
        `torch.amp.GradScaler` too has steps skipped.

    Raises
    ------
    TypeError, ValueError
        A tensor or a hyper-parameter is not what it must be; the message names it.
    BackendUnavailable
        A tensor is on a device for which there is no backend.

    Examples
    --------
    >>> import torch
    >>> from fastopt import torch as optim
    >>> w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    >>> opt = optim.Adam([{"params": [w], "lr": 0.1}])
    >>> w.square().sum().backward()
    >>> opt.step(max_norm=1.0)
    >>> [round(x, 6) for x in w.tolist()], round(opt.last_grad_norm, 6)
    ([0.9, 0.9], 2.828427)
    """

    arguments: ClassVar[TorchArguments]
    last_grad_norm: float | None = None
    """The global norm of the gradients at the last ``step(max_norm=...)``, before clipping."""
    last_step_skipped: bool = False
    """Whether the last step did nothing, for a gradient was not finite."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        call = read_call(type(self), args, kwargs)
        self._backend_name, self._threads, self._storage = call.backend, call.threads, call.storage
        self._forget()
        super().__init__(_given(call.params, "params"), {**self.arguments.defaults, **call.options})

    def _forget(self) -> None:
        """Nothing has been checked yet, and no number stands in a table."""
        self._bound: _Bound | None = None
        self._recorded: list[Any] = []  # what CUDA graphs read and write, for as long as they may be replayed
        self._tables: dict[tuple[str, bool], torch.Tensor] = {}
        self._made: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `torch.amp.GradScaler` leaves unscaling to `step`, and skipping a step that is not finite."""
        return any(group.get("fused") for group in self.param_groups)

    # ---- groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with hyper-parameters of their own, as torch's.

        Raises
        ------
        TypeError, ValueError
            A parameter or a hyper-parameter is not what it must be; the message names it, and nothing has changed.
        BackendUnavailable
            A parameter is on a device for which there is no backend.
        """
        where = f"param_groups[{len(self.param_groups)}]"
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise wrong_type(where, param_group, "a dict with 'params'")
        check_group(type(self), param_group, where)
        count, given = len(self.param_groups), dict(param_group)
        try:
            param_group["params"] = _given(param_group["params"], f"{where}['params']")
            super().add_param_group(param_group)
            group = self.param_groups[-1]
            self.arguments.complete(group)
            self._check_group(group, group["params"])
            self._check_params()
        except BaseException:
            del self.param_groups[count:]
            param_group.clear()
            param_group.update(given)
            raise
        self._bound = None
        if self.arguments.name == "Adagrad":  # torch's has its states from the start, and relies on them
            rule = self.arguments.rule(group)
            for p in filter(_can_be_checked, group["params"]):
                param = view(p, "params")
                states = self._storage.of_group(group).states(rule, param, 1)
                self._complete_state(p, param, rule, states, group, where)

    def _check_group(self, group: Mapping[str, Any], params: Sequence[torch.Tensor]) -> None:
        on_cuda = all(p.is_cuda for p in params)
        for flag, reason in _REFUSED.items():
            if group.get(flag) and not (flag == "capturable" and on_cuda):
                raise ValueError(f"{flag}: found {group[flag]!r}, expected False: {reason}")
        self.arguments.row(self.arguments.rule(group), group, self._real)

    @property
    def _real(self) -> np.dtype:
        """In what the first parameter is updated."""
        dtype = next((p.dtype for group in self.param_groups for p in group["params"]), torch.float64)
        return np.dtype(np.float64 if dtype == torch.float64 else np.float32)

    @property
    def _capturable(self) -> bool:
        """Whether CUDA graphs may record steps, for which their number is kept on the device."""
        return any(group.get("capturable") for group in self.param_groups)

    def _place(self) -> Place:
        """Where the parameters are."""
        return next((view(p, "params").place for p in filter(_can_be_checked, _params(self.param_groups))), CPU)

    def _check_params(self) -> None:
        """Checks the parameters; those that cannot be trained as they are, once they have a gradient."""
        groups = [group for group in self.param_groups for _ in group["params"]]
        params, labels = _params(self.param_groups), self._labels()
        found = [
            (params[i], labels[i], self._storage.of_group(groups[i]))
            for i in _firsts(params)[0]
            if _can_be_checked(params[i])
        ]
        labels = [label for _, label, _ in found]
        for p, label, _ in found:
            if p.device != found[0][0].device:
                raise ValueError(
                    f"{label}: found device {p.device}, expected {found[0][0].device} as {labels[0]} has: one "
                    "optimizer works on one device"
                )
        views = [view(p, label) for p, label, _ in found]
        for array, (_, label, storage) in zip(views, found, strict=True):
            check_tensor([array], [label])
            storage.check(array, label)
        check_overlap(views, labels, [True] * len(views))
        if len({bool(group.get("capturable")) for group in self.param_groups}) > 1:
            raise ValueError("capturable: found True and False, expected the same in all groups")
        if views:
            choose_backend(self._backend_name, views[0].place)

    def _labels(self) -> list[str]:
        """What error messages call the parameters: by their names, where they have some."""
        return [
            repr(name)
            for g, group in enumerate(self.param_groups)
            for name in group.get(
                "param_names", [f"param_groups[{g}]['params'][{i}]" for i in range(len(group["params"]))]
            )
        ]

    # ---- states ----

    @property
    def _counted(self) -> bool:
        """Whether states have a step count: torch's SGD has none, for all it needs to know is whether it has begun."""
        return self.arguments.name != "SGD" or any(self._storage.of_group(group).counted for group in self.param_groups)

    def _has_state(self, p: torch.Tensor, rule: Rule, group: Mapping[str, Any]) -> bool:
        """Whether anything is kept for a parameter."""
        return self._counted or bool(self._storage.of_group(group).states(rule, view(p, "params"), 1))

    def _complete_state(
        self,
        p: torch.Tensor,
        param: Array,
        rule: Rule,
        states: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
        group: Mapping[str, Any],
        label: str,
    ) -> dict:
        """The parameter's state, with what the rule needs and it lacks as before the first step."""
        state = self.state[p]
        numbers = {**({"step": 0.0} if self._counted else {}), **rule.scalars}
        for name in (*numbers, *states):
            # torch's own SGD has None for a buffer that is still to begin.
            if name in state and state[name] is None and name != "momentum_buffer":
                raise wrong_type(f"{name!r} of {label}", None, "a tensor, or no such entry before the first step")
        for name, begin in numbers.items():
            if state.get(name) is None:
                state[name] = self._make_number(begin)
        begins = self.arguments.begins(rule, group)
        for name, (dtype, shape) in states.items():
            if state.get(name) is None:
                state[name] = new_state(p, param, rule, name, dtype, shape, begins.get(name, 0.0))
        return state

    def _make_number(self, value: float) -> torch.Tensor:
        """A number of a state, which can stand in a table."""
        with torch.inference_mode(False):
            made = torch.full((), value, dtype=torch.float64, device="cpu")
        self._made[id(made)] = made
        return made

    def _table(self, name: str, columns: int, on_device: torch.Tensor | None) -> torch.Tensor:
        """A table of numbers of all parameters, which backends advance."""
        key, rows = (name, on_device is not None), len(_params(self.param_groups))
        table = self._tables.get(key)
        # One that is shared with other processes is left to its users: what they hold is read and written there.
        if table is None or len(table) != rows or (on_device is None and table.is_shared()):
            with torch.inference_mode(False):
                like = torch.empty(0, device="cpu") if on_device is None else on_device.detach()
                table = self._tables[key] = like.new_zeros((rows, columns), dtype=torch.float64)
        return table

    def _move_number(self, state: dict[str, Any], name: str, cell: torch.Tensor, label: str) -> float | None:
        """Puts a state's number into a table's cell; None where it stays where it is, as one that others share."""
        number = state[name]
        value = _number_of(number, f"{name!r} of {label}", name == "step")
        if isinstance(number, torch.Tensor):
            if number.data_ptr() == cell.data_ptr():
                return value
            if not (self._is_ours(number) or cell.is_cuda or number.is_cuda):
                return None
        with torch.no_grad():
            cell.fill_(value)
        state[name] = cell
        self._made[id(cell)] = cell
        return value

    # ---- steps ----

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
    ) -> Any:
        """Updates every parameter that has a gradient, in one pass.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss again, and its gradients.
        max_norm : float, optional
            Clips the gradients to this global norm within the pass, in place of ``clip_grad_norm_``, and without
            changing them; see ``last_grad_norm``.
        skip_nonfinite : bool
            Does nothing where a gradient is not finite, which a reading pass finds out first; see
            ``last_step_skipped``. (Nor where one's square is beyond float64.)
        zero_grads : bool
            Sets the gradients to zero, within the pass, in place of ``zero_grad(set_to_none=False)``; they may not
            share memory then.

        Returns
        -------
        The closure's result, or None.

        Raises
        ------
        TypeError, ValueError
            A gradient, a state or a hyper-parameter is not what it must be; no tensor has changed.
        """
        loss = None
        if zero_grads is not False:
            zero_grads = check_flag("zero_grads", zero_grads)
        if skip_nonfinite is not False:
            skip_nonfinite = check_flag("skip_nonfinite", skip_nonfinite)
        if closure is not None:
            if not callable(closure):
                raise wrong_type("closure", closure, "a callable or None")
            with torch.enable_grad():
                loss = closure()
        scale = 1.0
        attributes = self.__dict__  # where GradScaler puts what is for this step
        amp = attributes.get("grad_scale"), attributes.get("found_inf")
        capturable = self._capturable  # then nothing may wait for the device
        self.last_step_skipped = not capturable and amp[1] is not None and bool(amp[1])
        if self.last_step_skipped:
            return loss
        if amp[0] is not None and not capturable:
            scale = 1.0 / float(amp[0])
        bound = self._bound
        asked = get_backend()
        recording = capturable and torch.cuda.is_current_stream_capturing()
        if bound is None or bound.asked != asked or bound.capturable != capturable or not bound.take(self):
            if recording:
                raise RuntimeError(
                    "a CUDA graph is being captured before the first step with these tensors, which makes states: do "
                    "one step before it"
                )
            self._bound = None
            bound = self._bound = _Bound(self, choose_backend(self._backend_name, self._place()))
        if capturable:
            bound.take_amp(*amp)
        if recording:
            self._recorded.append(bound.on_device())
        bound.run(self, scale, self._threads or settings.threads, max_norm, skip_nonfinite, zero_grads)
        if amp[0] is not None and not self.last_step_skipped:
            bound.unscale(amp[0], amp[1])
        return loss

    _step.__name__, _step.__qualname__ = "step", "Optimizer.step"
    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)
    _uncompiled_step = torch._disable_dynamo(_hooked_step)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Documented as `_step`, which has its arguments."""
        if torch.compiler.is_compiling():
            return self._uncompiled_step(*args, **kwargs)
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):
            return self._hooked_step(*args, **kwargs)
        return self._step(*args, **kwargs)

    functools.update_wrapper(step, _step)
    # Torch wraps `step` to call hooks and to tell the profiler, which costs more than a small step: it does so only
    # where it is needed.
    step.hooked = True  # type: ignore[attr-defined]

    # ---- saving, loading, copying ----

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a state dict: of this class, of torch's, or of fastopt's NumPy class of the same name.

        Parameters
        ----------
        state_dict : mapping
            In torch's layout. Its tensors are copied, and converted to what this optimizer stores states in, be it
            more or fewer bits; a ``compensation`` or ``master`` that it lacks begins at the parameter.
            What is nobody's state here, as a user's own entries, is carried along.

        Raises
        ------
        TypeError, ValueError
            Groups, parameters, step counts, state names, shapes or dtypes are not this optimizer's; nothing has
            changed.
        """
        for key in ("state", "param_groups"):
            if not isinstance(state_dict, Mapping) or key not in state_dict:
                raise ValueError(f"state_dict: found no {key!r}, expected what state_dict() returned")
        taken: dict[Any, Any] = {}

        def take(_: Any, incoming: Mapping[str, Any]) -> dict[str, Any]:
            groups, states = self._incoming(incoming)
            taken.update(states)
            return {**incoming, "state": {}, "param_groups": groups}  # torch would convert states to its own dtypes

        def keep(_: Any) -> None:
            self.state.update(taken)

        # After the user's own hooks before loading, which may adapt it, and before those after loading.
        hooks = [
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(keep, prepend=True),
        ]
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            for hook in hooks:
                hook.remove()

    def _incoming(self, state_dict: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
        """A state dict's groups, checked, and the states that this optimizer is to have, with tensors of their own."""
        found, groups = state_dict["state"], state_dict["param_groups"]
        users: dict[Any, Any] = {}  # what is under other names than parameters have
        if isinstance(found, Mapping):
            users = {
                key: x
                for key, x in found.items()
                if isinstance(key, str)
                and not key.isdecimal()
                and not (isinstance(x, Mapping) and _STATE_NAMES & set(x))
            }
            found = {key: x for key, x in found.items() if key not in users}
        sizes = [len(group["params"]) for group in self.param_groups]
        order, saved_groups, saved = read_state_dict({"state": found, "param_groups": groups}, sizes)
        groups = list(map(self._completed, torch_groups(saved_groups), self.param_groups))
        states: dict[Any, Any] = copy.deepcopy(users)
        numbers = iter(order)
        for group, own in zip(groups, self.param_groups, strict=True):
            self._check_group(group, own["params"])
            for p in own["params"]:
                number = next(numbers)
                state = {key: x for key, x in saved.get(number, {}).items() if x is not None}
                if state:
                    states[p] = self._loaded(state, p, group, f"state_dict['state'][{number!r}]")
        return groups, states

    def _loaded(
        self, saved: Mapping[str, Any], p: torch.Tensor, group: Mapping[str, Any], where: str
    ) -> dict[str, Any]:
        """A parameter's state from a saved one, checked and converted."""
        rule = self.arguments.rule(group)
        param = view(p, "params")
        states = self._storage.of_group(group).states(rule, param, len(self.arguments.row(rule, group, self._real)))
        numbers = {*(["step"] if self._counted else []), *rule.scalars}
        expected = {*numbers, *states}
        # A count does no harm where there need be none, and companions can begin now.
        others = (set(saved) & _STATE_NAMES) - COMPANIONS - ({"step"} - expected)
        if others != expected - COMPANIONS:
            found, needed = sorted(set(saved) & _STATE_NAMES), sorted(expected)
            raise ValueError(f"{where}: found {found}, expected {needed} as {rule.name} has")
        loaded: dict[str, Any] = {}
        for name, value in saved.items():
            label = f"{where}[{name!r}]"
            if name in numbers:
                loaded[name] = self._make_number(_number_of(value, label, name == "step"))
            elif name in states:
                loaded[name] = _convert(value, p, param, *states[name], name in rule.positive, label)
            elif name not in _STATE_NAMES:
                loaded[name] = copy.deepcopy(value)
        for name in states.keys() - saved.keys():
            loaded[name] = new_state(p, param, rule, name, *states[name], 0.0)
        return loaded

    def _completed(self, group: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """A saved group with all of this class's arguments; what its states are stored in is this optimizer's."""
        group = {key: value for key, value in {**self.defaults, **group}.items() if key != "state_dtype"}
        if "state_dtype" in own:
            group["state_dtype"] = own["state_dtype"]
        return {**group, "decoupled_weight_decay": True} if self.arguments.decoupled else group

    def __getstate__(self) -> dict[str, Any]:
        # Numbers in a table would each be pickled with the whole of it.
        states = {
            p: {key: x.clone() if self._is_ours(x) else x for key, x in state.items()}
            if isinstance(state, dict)
            else state
            for p, state in self.state.items()
        }
        names = ("_backend_name", "_threads", "_storage", "last_grad_norm", "last_step_skipped")
        own = {name: getattr(self, name) for name in names}
        return {**super().__getstate__(), "state": defaultdict(dict, states), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        names = {"step", *chain.from_iterable(rule.scalars for rule in self.arguments.rules)}
        for kept in self.state.values():
            for name in names.intersection(kept if isinstance(kept, dict) else ()):
                if isinstance(kept[name], torch.Tensor) and not kept[name].is_shared():
                    self._made[id(kept[name])] = kept[name]

    def _is_ours(self, number: Any) -> bool:
        """Whether a number of a state is one that `_make_number` made, and that no other process shares."""
        return isinstance(number, torch.Tensor) and self._made.get(id(number)) is number and not number.is_shared()


class _Bound:
    """Checked tensors, tabled for a backend: good for as long as none of them is elsewhere or otherwise laid out.

    It keeps no gradient alive. A parameter that has had no gradient yet, and so no state, is left out.
    """

    def __init__(self, optimizer: Optimizer, backend: Any) -> None:
        self.backend, self.asked = backend, get_backend()
        self._optimizer = weakref.ref(optimizer)
        self._arguments = optimizer.arguments
        self._read = itemgetter(*optimizer.arguments.defaults)
        self._real = optimizer._real
        groups = optimizer.param_groups
        # One that is there several times, of which torch warns, is updated so many times.
        self._firsts, self._times = _firsts(_params(groups))
        params = self._params_of(groups)
        grads = _readable([p.grad for p in params])
        of_all = [g for g, group in enumerate(groups) for _ in group["params"]]
        self._group_of = group_of = [of_all[i] for i in self._firsts]
        self.capturable = optimizer._capturable
        on_device = params[0] if self.capturable else None
        self._table = optimizer._table("step", 1, on_device)
        self._steps = np.zeros(len(params), np.int64)
        tables: dict[str, torch.Tensor] = {}
        sets: dict[tuple[str, int], Progress] = {}
        self._groups: list[Progress] = []  # the set of each
        self._scalars: dict[int, torch.Tensor] = {}
        for g, group in enumerate(groups):
            rule, row = self._rule_and_row(group)
            key = (rule.name, len(row))
            if key not in sets:
                if rule.name not in tables:
                    tables[rule.name] = optimizer._table(rule.name, len(rule.scalars), on_device)
                made = sets[key] = Progress.of(rule, len(row), len(params), len(groups), self._steps)
                made.group[:] = group_of
                self._scalars[id(made)] = tables[rule.name]
                if not self.capturable:
                    made.scalars = tables[rule.name].numpy()
            sets[key].hyper[g] = row
            self._groups.append(sets[key])
        set_of = {id(parameters): k for k, parameters in enumerate(sets.values())}
        known = [
            grad is not None
            or (
                _can_be_checked(p)
                and (not optimizer._has_state(p, self._groups[g].rule, groups[g]) or bool(optimizer.state.get(p)))
            )
            for p, grad, g in zip(params, grads, group_of, strict=True)
        ]
        members = list(compress(range(len(params)), known))
        named = optimizer._labels()
        labels = [named[i] for i in self._firsts]
        arrays: dict[int, list[Any]] = {}
        for i in members:
            own = [labels[i], f"the gradient of {labels[i]}"]
            param, grad = view(params[i], own[0]), grads[i]
            if grad is not None and grad.is_sparse:
                self._check_rows(self._groups[group_of[i]].rule, [param, _rows_of(grad, own[1])], own)
            arrays[i] = [param, _absent_like(param) if grad is None or grad.is_sparse else view(grad, own[1])]
            check_tensor(arrays[i], own)
        tensors = []
        self._names = {i: [labels[i], f"the gradient of {labels[i]}"] for i in members}
        self._storages = [optimizer._storage.of_group(group) for group in groups]
        self._elements = optimizer._storage.elements([0 if is_lazy(p) else p.numel() for p in params])
        before = {p: dict(state) if isinstance(state, dict) else state for p, state in optimizer.state.items()}
        self._counted: list[int] = []  # whose count is in the table
        # Numbers that stay where their users have them: whose, its name, the tensor, and the place that backends read.
        self._foreign: list[tuple[int, str, torch.Tensor, np.ndarray, tuple[int, ...]]] = []
        names: dict[int, tuple[str, ...]] = {}  # of whose states and numbers
        try:
            for i in members:  # once all have been checked
                g = group_of[i]
                names[i], states = self._take_state(optimizer, i, params[i], arrays[i][0], groups[g], labels[i])
                arrays[i] += [array for array, _ in states]
                self._names[i] += [called for _, called in states]
        except BaseException:  # there was no memory for all: then there are none
            optimizer.state.clear()
            optimizer.state.update(before)
            raise
        for i in members:
            g = group_of[i]
            tensors.append(Tensor.of(self._storages[g], set_of[id(self._groups[g])], i, arrays[i], self._elements[i]))
        self._jobs = make_jobs(list(sets.values()), tensors, list(self._names.values()))
        begin = np.zeros(len(params), np.uint64)
        begin[members] = [arrays[i][1].address for i in members]
        for job in self._jobs:
            job.address_table[:, GRADIENT] -= begin[job.run_members]  # now from where a gradient begins
            job.owners.clear()
        self._arrays = {i: [param, *states] for i, (param, _, *states) in arrays.items()}
        self._known, self._all_known = np.array(known, bool), all(known)
        self._params = params
        self._layouts = [
            (_stride(x), _nbytes(x)) if known else ((), 0)
            for x, known in zip(
                (p if g is None or g.is_sparse else g for p, g in zip(params, grads, strict=True)), known, strict=True
            )
        ]
        self._entries = _Entries(optimizer.state, {id(params[i]): own for i, own in names.items() if own})
        self._tables = [self._table, *tables.values()]
        self._where = self._addresses_of(params, optimizer.state)
        self._counts = None if self.capturable or not self._counted else self._table.numpy()[: len(params), 0]
        self._seen = b"" if self._counts is None else self._counts.tobytes()
        self._values = [frozen(self._values_of(group)) for group in groups]
        self._present: list[bool] | None = []
        self._addresses: list[int] | None = None
        if not self.take(optimizer):
            raise RuntimeError("tensors moved while they were being checked")
        self._take_rates(groups)

    def _take_state(
        self, optimizer: Optimizer, i: int, p: torch.Tensor, param: Array, group: Mapping[str, Any], label: str
    ) -> tuple[tuple[str, ...], list[tuple[Array, str]]]:
        """The names of a parameter's states and numbers, which move to where backends advance them, and the states as
        backends take them, each with what messages call it.
        """
        parameters = self._groups[self._group_of[i]]
        rule = parameters.rule
        states = self._storages[self._group_of[i]].states(rule, param, parameters.copies)
        if not states and not optimizer._counted:
            return (), []
        begun = any(optimizer.state[p].get(name) is not None for name in states)
        state = optimizer._complete_state(p, param, rule, states, group, label)
        if optimizer._counted:
            self._take_number(optimizer, i, state, "step", self._table[i, 0], self._steps, (i,), label)
        else:
            self._steps[i] = int(begun)
        table = self._scalars[id(parameters)]
        for k, name in enumerate(rule.scalars):
            self._take_number(optimizer, i, state, name, table[i, k], parameters.scalars, (i, k), label)
        named = [(name, f"{name!r} of {label}") for name in states]
        views = [(view(state[name], called), called) for name, called in named]
        names = (*states, *(["step"] if optimizer._counted else []), *rule.scalars)
        called = [label for _, label in views]
        of_arrays = called[: len(rule.states)] * parameters.copies + called[len(rule.states) :]
        return names, list(zip(by_copy(rule, parameters.copies, views, param), of_arrays, strict=True))

    def _take_number(
        self,
        optimizer: Optimizer,
        i: int,
        state: dict[str, Any],
        name: str,
        cell: torch.Tensor,
        array: np.ndarray,
        at: tuple[int, ...],
        label: str,
    ) -> None:
        """Moves a number to its cell in a table, or remembers that it is read and written where it is."""
        value = optimizer._move_number(state, name, cell, label)
        if value is None:
            self._foreign.append((i, name, state[name], array, at))
        else:
            array[at] = value
            if name == "step" and not self.capturable:
                self._counted.append(i)

    def _params_of(self, groups: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """The parameters, each once."""
        params = _params(groups)
        if len(params) != len(self._firsts) and len(params) == sum(self._times):
            params = [params[i] for i in self._firsts]
        return params

    def _values_of(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        """A group's hyper-parameters; where they are instead, of those that are read on the device."""
        values: tuple[Any, ...] = self._read(group)
        if self.capturable:
            values = tuple(x.data_ptr() if isinstance(x, torch.Tensor) and x.is_cuda else x for x in values)
        return values

    def _rule_and_row(self, group: Mapping[str, Any]) -> tuple[Rule, np.ndarray]:
        """A group's rule, and its row of hyper-parameters."""
        if self.capturable and isinstance(group["lr"], torch.Tensor) and group["lr"].is_cuda:
            group = {**group, "lr": 0.0}  # it is read on the device
        rule = self._arguments.rule(group)
        return rule, self._arguments.row(rule, group, self._real)

    def on_device(self) -> tuple[Any, ...]:
        """What a step has on the device beside tensors that the user holds."""
        return self._runner, self._zeroing, self._again, self._table, self._scalars

    def take_amp(self, scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        """Takes over where `torch.amp.GradScaler` has put its scale, and whether the step is to be skipped."""
        for runner in filter(None, (self._runner, self._zeroing, *self._again)):
            runner.scale = 0 if scale is None else scale.data_ptr()  # type: ignore[attr-defined]
            runner.skip = 0 if found_inf is None else found_inf.data_ptr()  # type: ignore[attr-defined]

    def unscale(self, scale: torch.Tensor, found_inf: torch.Tensor | None) -> None:
        """Unscales the gradients of a step that `torch.amp.GradScaler` left that to, as torch's fused classes do."""
        if self.capturable and found_inf is not None:
            scale = torch.where(found_inf > 0, torch.ones_like(scale), scale)
        grads: list[Any] = [p.grad for p in self._stepped]
        sparse: list[Any] = [self._params[i].grad for i, _ in self._sparse]
        grads += [grad._values() for grad in sparse]
        with torch.no_grad():
            torch._foreach_div_(grads, scale)

    def take(self, optimizer: Optimizer) -> bool:
        """Takes over the gradients and hyper-parameters of this step; False where tensors must be checked anew."""
        groups = optimizer.param_groups
        params = self._params_of(groups)
        self._sparse: list[tuple[int, RowSparse]] = []
        try:
            if len(params) != len(self._params) or self._addresses_of(params, optimizer.state) != self._where:
                return False
        except (LookupError, TypeError, RuntimeError):  # an entry is missing, or no tensor with memory
            return False
        grads, present = list(map(_grad, params)), None
        try:
            addresses = list(map(_data_ptr, grads))
        except (TypeError, RuntimeError):  # there is None among them, or a sparse one
            given = [g is not None for g in grads]
            if not self._known[given].all():
                return False
            present = [g is not None and not g.is_sparse for g in grads]
            for i in np.flatnonzero(np.array(given) & ~np.array(present)).tolist():
                self._sparse.append((i, _rows_of(grads[i], self._names[i][1])))
            grads = list(compress(grads, present))
            try:
                addresses = list(map(_data_ptr, grads))
            except RuntimeError:  # one that has no memory
                return False
        if present != self._present:
            if present is None and not self._all_known:
                return False
            self._select(present)
        if addresses.count(0) != self._empty or any(map(_is_neg, grads)):
            grads = self._copies = _readable(grads)
            addresses = list(map(_data_ptr, grads))
            if addresses.count(0) != self._empty:
                return False
        if (list(map(_stride, grads)), list(map(_nbytes, grads))) != self._layout:
            return False
        if addresses != self._addresses:
            self._columns.put(np.array(addresses, np.uint64))
            self._addresses = addresses
        return self._take_groups(groups)

    def _addresses_of(self, params: Sequence[torch.Tensor], state: Mapping[Any, Any]) -> list[int]:
        """Where parameters are, their states and numbers, and the tables of numbers."""
        known: Iterable[torch.Tensor] = params if self._all_known else compress(params, self._known.tolist())
        return list(map(_data_ptr, chain(known, self._entries.read(state), self._tables)))

    def _take_counts(self) -> None:
        """Takes over numbers that were set by hand, and those that stay where their users have them."""
        if self._counts is not None and self._counts.tobytes() != self._seen:
            for i in self._counted:
                self._steps[i] = _number_of(self._counts[i], f"'step' of {self._names[i][0]}", True)
            self._seen = self._counts.tobytes()
        for i, name, number, array, at in self._foreign:
            array[at] = _number_of(number, f"{name!r} of {self._names[i][0]}", name == "step")

    def _give_foreign(self, before: Sequence[Any]) -> None:
        """Counts numbers that stay where their users have them, as `before`, as far as backends have."""
        with torch.no_grad():
            for (_, name, number, array, at), last in zip(self._foreign, before, strict=True):
                if array[at] != last:  # counted as torch does, that no other process's count be lost
                    number.add_(1) if name == "step" else number.fill_(array[at])

    def _take_groups(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Takes over hyper-parameters that have changed; False where a group has another rule now."""
        for g, group in enumerate(groups):
            values = self._values_of(group)
            try:
                changed = values != self._values[g]
            except (ValueError, RuntimeError):  # an array or a tensor of several elements
                changed = True
            if changed:
                parameters, (rule, row) = self._groups[g], self._rule_and_row(group)
                if rule is not parameters.rule or len(row) != parameters.copies:
                    return False
                parameters.hyper[g] = row
                self._values[g] = frozen(values)
                self._take_rates(groups)
        return True

    def _take_rates(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Tells where learning rates are that are read on the device."""
        if self.capturable:
            lrs = [group["lr"] for group in groups]
            on_device = [isinstance(lr, torch.Tensor) and lr.is_cuda for lr in lrs]
            rates = [(x.data_ptr(), x.element_size()) if own else (0, 0) for x, own in zip(lrs, on_device, strict=True)]
            for runner in filter(None, (self._runner, self._zeroing, *self._again)):
                runner.rates[:] = rates  # type: ignore[attr-defined]

    def _select(self, present: list[bool] | None) -> None:
        """Makes ready for gradients of some parameters, or of all."""
        self._present = present
        chosen = np.ones(len(self._params), bool) if present is None else np.array(present, bool)
        more = [chosen & (np.array(self._times) > times) for times in range(1, max(self._times, default=1))]
        jobs, *again = (
            [part for job in self._jobs if (part := job.of(which)) is not None] for which in (chosen, *more)
        )
        place = np.cumsum(chosen) - 1
        self._columns, nowhere = Columns(), np.zeros(int(chosen.sum()), np.uint64)
        for job in chain(jobs, *again):
            self._columns.add(job.address_table[:, GRADIENT], place[job.run_members], nowhere)
        self._selected = jobs
        self._zeroing: Runner | None = None
        self._runner: Runner = self._prepare(jobs)
        self._again = list(map(self._prepare, again))
        self._places = np.flatnonzero(chosen).tolist()
        self._stepped = [self._params[i] for i in self._places]
        chosen_layouts = list(compress(self._layouts, chosen.tolist()))
        self._layout = ([stride for stride, _ in chosen_layouts], [nbytes for _, nbytes in chosen_layouts])
        self._empty = self._layout[1].count(0)
        self._addresses = None
        self._zeroed: list[int] | None = None  # the addresses that were found fit to be zeroed

    def run(
        self,
        optimizer: Optimizer,
        scale: float,
        threads: int,
        max_norm: float | None,
        skip_nonfinite: bool,
        zero_grads: bool,
    ) -> None:
        """Does the step."""
        if zero_grads:
            self._check_zeroed()
        if self._foreign or (self._counts is not None and self._counts.tobytes() != self._seen):
            self._take_counts()
        runner, stepped = self._zeroing_runner() if zero_grads else self._runner, self._stepped
        if self._sparse:
            if self.capturable:
                raise ValueError(f"{self._names[self._sparse[0][0]][1]}: found a sparse one, expected none: capturable")
            if any(self._times[i] > 1 for i, _ in self._sparse):
                raise ValueError(
                    f"{self._names[self._sparse[0][0]][0]}: found several times, expected once with a sparse gradient"
                )
            rows = [self._row_job(i, grad) for i, grad in self._sparse]
            dense = self._zeroing_jobs() if zero_grads else self._selected
            runner = self.backend.prepare([*dense, *rows])
            stepped = [*stepped, *(self._params[i] for i, _ in self._sparse)]
        if max_norm is not None or skip_nonfinite:
            tables: list[Gradients | RowSparse] = [job.gradients() for job in self._selected]
            tables += [grad for _, grad in self._sparse]
            scale = read_gradients(optimizer, tables, self.backend, threads, scale, max_norm, skip_nonfinite)
            if optimizer.last_step_skipped:
                return
        before = [array[at] for _, _, _, array, at in self._foreign] if self._foreign else []
        try:
            for again in self._again:
                again(scale, threads)
            runner(scale, threads)
        finally:  # an interrupt comes once it is done
            if self._counts is not None:  # tells states how far backends have counted
                self._counts[...] = self._steps
                self._seen = self._counts.tobytes()
            if before:
                self._give_foreign(before)
        if zero_grads:
            for job in self._selected:
                if isinstance(job, RowJob):
                    self._params[job.members[0]].grad.detach().zero_()
            for _, grad in self._sparse:
                set_to_zero(grad.values)
            stepped = [*stepped, *(p.grad for p in stepped if p.grad is not None)]
        increment_version(stepped)

    def _check_zeroed(self) -> None:
        """Whether gradients can be zeroed, once for as long as they are where they are."""
        if self._sparse or self._zeroed is not self._addresses:
            dense = [(i, view(self._params[i].grad, self._names[i][1])) for i in self._places]
            found = [*dense, *((i, grad.values) for i, grad in self._sparse)]
            check_distinct([grad for _, grad in found], [self._names[i][1] for i, _ in found], "set to zero")
            self._zeroed = self._addresses

    def _zeroing_jobs(self) -> list[Job]:
        return [job.zeroing() for job in self._selected]

    def _zeroing_runner(self) -> Runner:
        """The step that zeroes gradients too, made when it is first asked for."""
        if self._zeroing is None:
            self._zeroing = self._prepare(self._zeroing_jobs())
            optimizer = self._optimizer()
            assert optimizer is not None  # it is what asks for this
            self._take_rates(optimizer.param_groups)
        return self._zeroing

    def _prepare(self, jobs: Sequence[Job]) -> Runner:
        if not self.capturable:
            return self.backend.prepare(jobs)
        scalars = {key: own.data_ptr() for key, own in self._scalars.items()}
        return self.backend.CapturableRunner(jobs, self._table.data_ptr(), scalars)

    def _row_job(self, i: int, grad: RowSparse) -> Job:
        g = self._group_of[i]
        param, *states = self._arrays[i]
        arrays, rows = self._check_rows(self._groups[g].rule, [param, grad, *states], self._names[i])
        return make_row_job(self._groups[g], Tensor.of(self._storages[g], 0, i, arrays, self._elements[i]), rows)

    @staticmethod
    def _check_rows(rule: Rule, arrays: list[Any], names: Sequence[str]) -> tuple[list[Array], Rows]:
        """Checks a tensor that is updated by rows; of several sparse dimensions, rows are what they name together."""
        param, grad, *states = arrays
        lead = 1 + len(param.shape) - len(grad.values.shape)
        if lead > 1 and not rule.by_row and all(array.dense for array in (param, *states)):
            shape = (-(-param.size // max(1, math.prod(param.shape[lead:]))), *param.shape[lead:])
            param, *states = (
                array if array.dtype == np.uint8 else replace_shape(array, shape) for array in (param, *states)
            )
        return check_rows(rule, [param, grad, *states], names)


def _given(params: Any, name: str, leaves: bool = True) -> list[Any]:
    """Parameters as they may be given: tensors, pairs of a name and a tensor, or group dicts.

    Raises
    ------
    TypeError, ValueError
        One is none of these, or, where they are to be `leaves`, a tensor that is computed from others.
    """
    if isinstance(params, torch.Tensor) and name.startswith("param_groups"):
        return [params]
    expected = "an iterable of tensors, of pairs (name, tensor), or of group dicts"
    if isinstance(params, (torch.Tensor, str, bytes, set, frozenset, Mapping)):  # sets have no order
        raise wrong_type(name, params, expected)
    try:
        given = list(params)
    except TypeError:
        raise wrong_type(name, params, expected) from None
    for i, member in enumerate(given):
        tensor = member[1] if isinstance(member, tuple) and len(member) == 2 else member
        if isinstance(tensor, dict):
            continue
        if not isinstance(tensor, torch.Tensor):
            raise wrong_type(f"{name}[{i}]", tensor, "a tensor")
        if leaves and not (tensor.is_leaf or tensor.retains_grad):
            raise ValueError(f"{name}[{i}]: found a non-leaf tensor, expected a leaf")
    return given


def _params(groups: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    return [p for group in groups for p in group["params"]]


def _firsts(params: Sequence[torch.Tensor]) -> tuple[list[int], list[int]]:
    """Where each parameter is for the first time, and how many times it is there."""
    places: dict[int, list[int]] = {}
    for i, p in enumerate(params):
        places.setdefault(id(p), []).append(i)
    return [where[0] for where in places.values()], list(map(len, places.values()))


def _can_be_checked(p: torch.Tensor) -> bool:
    """Whether a parameter can be trained as it is: one that cannot, as a frozen one of integers, one on the meta device
    or a lazy module's, is checked once it has a gradient.
    """
    if is_lazy(p) or p.is_meta:
        return False
    return p.requires_grad or p.dtype in _FLOATS


class _Entries:
    """Entries of states by their names, read at once for all states that have the same names.

    They are read from where states are kept, so that a state that was replaced shows as one whose entries were.
    """

    def __init__(self, state: Mapping[Any, Any], names: Mapping[int, tuple[str, ...]]) -> None:
        """`names` are of whose states, by the parameter's `id`; what else is there, or comes later, is the users'."""
        found = [names.get(id(p)) for p in state]
        kinds = dict.fromkeys(filter(None, found))
        self._kinds: list[tuple[Callable[[Any], Iterable[Any]], itemgetter, list[bool]]] = [
            (iter if len(kind) == 1 else chain.from_iterable, itemgetter(*kind), [own == kind for own in found])
            for kind in kinds
        ]
        self._alike = len(found) if len(kinds) == 1 and all(found) else -1  # how many, where none is of another kind

    def read(self, state: Mapping[Any, Any]) -> Iterable[Any]:
        """The entries, in an order of their own."""
        if len(state) == self._alike:
            flatten, getter, _ = self._kinds[0]
            return flatten(map(getter, state.values()))
        return chain.from_iterable(
            flatten(map(getter, compress(state.values(), chosen))) for flatten, getter, chosen in self._kinds
        )


def _readable(grads: Sequence[Any]) -> list[Any]:
    """Gradients, with copies of those whose memory is not what they stand for."""

    def readable(g: Any) -> Any:
        if g is None or not (g.is_neg() or g._is_zerotensor()):
            return g
        return g.detach().resolve_neg() if g.is_neg() else torch.zeros(g.shape, dtype=g.dtype, device=g.device)

    return list(map(readable, grads))


def _number_of(number: Any, label: str, count: bool) -> float:
    """A number of a state, checked; of a step count, one that float64 has exactly.

    Raises
    ------
    TypeError, ValueError
        It is something else; the message names it.
    """
    if not count:
        return check_number(label, number)
    expected = "a number >= 0, whole and below 2**53"
    value = check_number(label, number, 0, 2**53, expected=expected)
    if not value.is_integer():
        raise wrong_value(label, number, expected)
    return value


def _convert(
    value: Any, p: torch.Tensor, param: Array, dtype: np.dtype, shape: tuple[int, ...], positive: bool, label: str
) -> torch.Tensor:
    """A copy of a saved state as a parameter's is stored: in other floats, or in blocks.

    Raises
    ------
    TypeError, ValueError
        It is no such state; the message names it.
    """
    plain = isinstance(value, np.ndarray) and value.dtype.kind in "fVui" and value.dtype.names is None
    x = tensor_of(value) if plain else value
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{label}: found {type(value).__name__}, expected a tensor")
    packed, packs = x.dtype == torch.uint8, dtype == np.uint8
    copies = shape[:-1] if packs else shape[: max(0, len(shape) - len(param.shape))]
    values, blocks = (*copies, *param.shape) if packs else shape, (*copies, block_bytes(param.size))
    expected = blocks if packed else values
    if tuple(x.shape) != expected:
        raise ValueError(f"{label}: found shape {tuple(x.shape)}, expected {expected}")
    if not packed and x.dtype not in _FLOATS:
        raise ValueError(f"{label}: found dtype {x.dtype}, expected {dtype_name(dtype)} or other floats to convert")
    x = x.detach()
    if packs and not packed:
        if not torch.isfinite(x).all():
            raise ValueError(f"{label}: found infinity or NaN, expected numbers that 8-bit blocks can hold")
        with ieee_arithmetic():
            x = x.to(torch.float32)
        x = torch.from_numpy(to_blocks(x.cpu().numpy(), positive, param))
    elif packed and not packs:
        x = torch.from_numpy(from_blocks(x.cpu().numpy(), positive, param))
    with torch.no_grad():
        made = p.detach().new_empty(shape, dtype=x.dtype) if packs else new_array(p, param, dtype, shape, 0)
        with ieee_arithmetic():
            made.copy_(x)
        if made.dtype == torch.float16 and torch.isinf(made).sum() > torch.isinf(x).sum():
            raise ValueError(f"{label}: found numbers beyond what this optimizer's float16 can hold")
    return made


def _rows_of(grad: Any, name: str) -> RowSparse:
    """A sparse gradient's rows, numbered through all its sparse dimensions."""
    if grad.layout is not torch.sparse_coo or grad.sparse_dim() == 1:
        rows = as_row_sparse(grad, name)
        assert rows is not None  # it was found to be sparse
        return rows
    first, *others = grad._indices()
    for index, n in zip(others, grad.shape[1:], strict=False):
        first = first * n + index
    return RowSparse(first, grad._values())


def _absent_like(param: Array) -> Array:
    """A stand-in for a gradient that is not there: one laid out as the parameter, at no address."""
    return Array(None, 0, param.dtype, param.shape, None if param.dense else param.strides, param.place)


def _copy(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor on another's device."""
    copy = like.detach().new_empty(x.shape, dtype=x.dtype)
    copy.copy_(x)
    return copy


# ---- the classes ----


def _signature(arguments: TorchArguments) -> inspect.Signature:
    """That of torch's class of the same name, and by keyword what fastopt has beyond it."""
    theirs = getattr(torch.optim, arguments.name, None)
    signature = arguments.signature() if theirs is None else inspect.signature(theirs)
    fixed = ["decoupled_weight_decay"] if arguments.decoupled else []  # torch's flag: there is one decay only
    known = [parameter for name, parameter in signature.parameters.items() if name not in fixed]
    names = [parameter.name for parameter in known] + fixed
    more = {**arguments.defaults, **_EXECUTION, **{key: default for key, (default, _) in EXECUTION.items()}}
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        known + [inspect.Parameter(key, keyword, default=more[key]) for key in more if key not in names]
    )


def _define(arguments: TorchArguments) -> type[Optimizer]:
    signature = _signature(arguments)
    ignored = dict.fromkeys(("foreach", "fused"), "accepted, and without effect: every step is one fused pass")
    more = {**ignored, **{flag: f"must be False: {reason}" for flag, reason in _REFUSED.items()}}
    defaults = {key: p.default for key, p in list(signature.parameters.items())[1:] if key not in EXECUTION}
    namespace = {
        "__doc__": torch_text(arguments, defaults, more, EXECUTION),
        "__module__": __name__,
        "__signature__": signature,
        "arguments": arguments,
    }
    return type(arguments.name, (Optimizer,), namespace)


def _sparse_adam() -> TorchArguments:
    """torch's SparseAdam: Adam in the eps-hat form. (What makes it sparse are its gradients, which any class takes.)"""
    adam = TorchArguments.of(ARGUMENTS["Adam"])
    return replace(adam, name="SparseAdam", defaults={**adam.defaults, "eps_hat": True})


#: Every class by name.
CLASSES: dict[str, type[Optimizer]] = {
    arguments.name: _define(arguments)
    for arguments in (*(TorchArguments.of(own) for own in ARGUMENTS.values()), _sparse_adam())
}
globals().update(CLASSES)


def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Scales gradients in place so that their global norm is at most `max_norm`: torch.nn.utils.clip_grad_norm_.

    ``optimizer.step(max_norm=...)`` has the same effect without a pass that writes the gradients.

    Parameters
    ----------
    parameters : tensor or iterable of tensors
        Those without a gradient are skipped.
    max_norm : float
        At least 0.
    norm_type : float
        2, the only one there is.
    error_if_nonfinite : bool
        Raises RuntimeError, and changes nothing, where the norm is not finite.
    foreach : bool, optional
        Accepted, and without effect.

    Returns
    -------
    torch.Tensor
        The norm before clipping, summed in float64.

    Raises
    ------
    TypeError, ValueError
        `norm_type` is another, `max_norm` no number >= 0, or something is no tensor.
    """
    if as_float(norm_type) != 2.0:
        raise wrong_value("norm_type", norm_type, "2.0 (others: torch.nn.utils.clip_grad_norm_)")
    norms.check_max_norm(max_norm)
    error_if_nonfinite = check_flag("error_if_nonfinite", error_if_nonfinite)
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else _given(parameters, "parameters", False)
    grads = []
    for p in parameters:
        if p.grad is not None and p.grad.is_neg():
            p.grad = p.grad.resolve_neg()  # a lazily negated one cannot be scaled where it is
        grads += [] if p.grad is None else [p.grad]
    if error_if_nonfinite and not np.isfinite(norms.global_norm(grads)):
        raise RuntimeError("the gradients' global norm is not finite, so they were not clipped")
    norm = norms.clip_grad_norm_(grads, max_norm)
    increment_version(grads)
    return grads[0].detach().new_tensor(norm) if grads else torch.tensor(norm)


__all__ = [*CLASSES, "Optimizer", "clip_grad_norm_"]


def __getattr__(name: str) -> Any:
    """Whatever there is no class of here is torch.optim's own."""
    if not name.startswith("__") and hasattr(torch.optim, name):
        return getattr(torch.optim, name)
    near = did_you_mean(name, __dir__()) or f"; it has {', '.join(__all__)}, and what torch.optim has"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in dir(torch.optim) if not name.startswith("_"))})
