"""Optimizers for PyTorch: under torch's names and with torch's arguments, so that the import line is all that changes.

::

    from fastopt import torch as optim  # was: from torch import optim

    optimizer = optim.AdamW(model.parameters(), lr=1e-3)

Every class is a `torch.optim.Optimizer`: parameter groups, closures, hooks, every ``torch.optim.lr_scheduler``,
``torch.amp.GradScaler``, copying and pickling work as they do there, and state dicts go both ways between a class and
torch's class of the same name. Tensors are updated where they are, never copied.
"""

from __future__ import annotations

import inspect
import weakref
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
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import norms, settings
from .arguments import ARGUMENTS, EXECUTION, TorchArguments, read_call
from .arrays import CPU, Array, Place, check_distinct, check_overlap, check_tensor, dtype_name, view
from .checkpoint import torch_state_dict
from .dispatch import (
    Gradients,
    Job,
    Parameters,
    Rows,
    Runner,
    Tensor,
    check_rows,
    choose_backend,
    frozen,
    make_jobs,
    make_row_job,
    split_copies,
)
from .rules import REQUIRED, Rule
from .sparse import RowSparse, as_row_sparse
from .storage import ZERO_GRADS, blocks_of, new_array, set_to_zero

try:
    increment_version([])
except TypeError:  # older ones take a single tensor only
    raise ImportError(
        f"fastopt.torch needs a newer PyTorch than {torch.__version__}: {install_command('torch')}"
    ) from None

_data_ptr: Callable[[Any], int] = torch.Tensor.data_ptr
_stride = torch.Tensor.stride
_nbytes = attrgetter("nbytes")
_grad = attrgetter("grad")

# What torch's classes have beside hyper-parameters: how torch computes, which fastopt takes no notice of, ...
_EXECUTION = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
# ... and why some of it cannot be had: ever, or on the CPU.
_REFUSED = {
    "differentiable": "the update is done in place and autograd does not see it",
    "capturable": "CUDA graphs record no update on the CPU",
}


class Optimizer(torch.optim.Optimizer):
    """What the classes do beside what torch.optim.Optimizer does; they themselves come from the rule table.

    Attributes
    ----------
    last_grad_norm : float or None
        The global norm of the gradients at the last ``step(max_norm=...)``, before clipping.
    last_step_skipped : bool
        Whether the last step did nothing, for a gradient was not finite: see ``step(skip_nonfinite=True)``; and
        `torch.amp.GradScaler` too has steps skipped.
    """

    arguments: ClassVar[TorchArguments]
    last_grad_norm: float | None = None
    last_step_skipped: bool = False
    # torch.amp.GradScaler leaves unscaling, and skipping a step whose gradients are not finite, to `step`.
    _step_supports_amp_scaling = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        call = read_call(type(self), args, kwargs)
        self._backend_name, self._threads, self._precision = call.backend, call.threads, call.precision
        self._bound: _Bound | None = None
        self._recorded: list[Any] = []  # what CUDA graphs read and write, for as long as they may be replayed
        super().__init__(call.params, {**self.arguments.defaults, **call.options})

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
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if group.get("base_lr", 0) is None:
                group["base_lr"] = float(group["lr"])
            self._check_group(group, group["params"])
            self._check_params()
        except BaseException:
            self.param_groups.pop()
            raise
        self._bound = None
        if self.arguments.name == "Adagrad":  # torch's has its states from the start, and relies on them
            rule = self.arguments.rule(group)
            for p in group["params"]:
                self._complete_state(p, rule, 1, group)

    def _check_group(self, group: Mapping[str, Any], params: Sequence[torch.Tensor]) -> None:
        on_cuda = all(p.is_cuda for p in params)
        for flag, reason in _REFUSED.items():
            if group.get(flag) and not (flag == "capturable" and on_cuda):
                raise ValueError(f"{flag}: found {group[flag]!r}, expected False: {reason}")
        self.arguments.row(self.arguments.rule(group), group)

    @property
    def _capturable(self) -> bool:
        """Whether CUDA graphs may record steps, for which their number is kept on the device."""
        return any(group.get("capturable") for group in self.param_groups)

    def _place(self) -> Place:
        """Where the parameters are."""
        return next((view(p, "params").place for group in self.param_groups for p in group["params"]), CPU)

    def _check_params(self) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        labels = self._labels()
        for p, label in zip(params, labels, strict=True):
            if p.device != params[0].device:
                raise ValueError(
                    f"{label}: found device {p.device}, expected {params[0].device} as {labels[0]} has: one optimizer "
                    "works on one device"
                )
        views = [view(p, label) for p, label in zip(params, labels, strict=True)]
        for array, label in zip(views, labels, strict=True):
            check_tensor([array], [label])
            self._precision.check(array, label)
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
        """Whether states hold a step count: torch's SGD has none, for all it needs to know is whether it has begun."""
        return self.arguments.name != "SGD" or self._precision.counted

    def _has_state(self, p: torch.Tensor, rule: Rule) -> bool:
        """Whether anything is kept for a parameter."""
        return self._counted or bool(self._precision.states(rule, view(p, "params"), 1))

    def _complete_state(self, p: torch.Tensor, rule: Rule, copies: int, group: Mapping[str, Any]) -> dict:
        """The parameter's state, with what the rule needs and it lacks as before the first step."""
        state = self.state[p]
        if self._counted:
            state.setdefault("step", torch.zeros((), dtype=torch.int64))
        for name, initial in rule.scalars.items():
            state.setdefault(name, torch.full((), initial, dtype=torch.float64))
        param = view(p, "params")
        for name, (dtype, shape) in self._precision.states(rule, param, copies).items():
            if state.get(name) is not None:
                continue
            initial = float(group.get(rule.initial.get(name, ""), 0.0))
            if dtype == np.uint8:
                state[name] = p.new_zeros(shape, dtype=torch.uint8)
                if initial:
                    state[name][...] = torch.from_numpy(blocks_of(np.full(param.size, initial), name in rule.positive))
            else:
                state[name] = new_array(p, param, dtype, shape, initial)
            if name in ("master", "ema"):
                state[name].copy_(p.detach())
        return state

    # ---- steps ----

    def step(
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
        how: dict[str, Any] = {"max_norm": max_norm, "skip_nonfinite": skip_nonfinite, "zero_grads": zero_grads}
        if torch.compiler.is_compiling():
            return self._uncompiled_step(closure, **how)
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):
            return self._hooked_step(closure, **how)
        return self._step(closure, **how)

    # Torch wraps `step` to call hooks and to tell the profiler, which costs more than a small step: it does so only
    # where it is needed.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None, **how: Any) -> Any:
        loss = None
        if closure is not None:
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
        backend = choose_backend(self._backend_name, self._place() if bound is None else bound.place)
        recording = capturable and torch.cuda.is_current_stream_capturing()
        if bound is None or bound.backend is not backend or bound.capturable != capturable or not bound.take(self):
            if recording:
                raise RuntimeError(
                    "a CUDA graph is being captured before the first step with these tensors, which makes states: do "
                    "one step before it"
                )
            self._bound = None
            place = self._place()
            bound = self._bound = _Bound(self, choose_backend(self._backend_name, place), place)
        if capturable:
            bound.take_amp(*amp)
        if recording:
            self._recorded.append(bound.on_device())
        bound.run(self, scale, self._threads or settings._threads, **how)
        return loss

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)
    _uncompiled_step = torch._disable_dynamo(_hooked_step)

    # ---- saving, loading, copying ----

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's layout, which torch's class of the same name takes over; tensors are not copied."""
        packed = super().state_dict()
        states = {
            index: {**state, "step": state["step"].to(torch.float32)} if "step" in state else state
            for index, state in packed["state"].items()
        }
        return {**packed, "state": states}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a state dict: of this class, of torch's, or of fastopt's NumPy class of the same name.

        Parameters
        ----------
        state_dict : mapping
            In torch's layout. Its tensors are copied.

        Raises
        ------
        TypeError, ValueError
            Groups, parameters, state names, shapes or dtypes are not this optimizer's; nothing has changed.
        """
        for key in ("state", "param_groups"):
            if not isinstance(state_dict, Mapping) or key not in state_dict:
                raise ValueError(f"state_dict: found no {key!r}, expected what state_dict() returned")
        taken: dict[str, Any] = {}

        def take(_: Any, incoming: Mapping[str, Any]) -> dict[str, Any]:
            taken.update(self._incoming(incoming))
            return taken

        def keep(_: Any) -> None:
            """torch has made states of the parameters' dtype, whatever they were."""
            for group, own in zip(taken["param_groups"], self.param_groups, strict=True):
                for index, p in zip(group["params"], own["params"], strict=True):
                    if index in taken["state"]:
                        self.state[p] = taken["state"][index]

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

    def _incoming(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict in torch's layout, checked, with tensors of its own."""
        incoming = torch_state_dict(state_dict)
        groups = [self._completed(group) for group in incoming["param_groups"]]
        sizes, expected = [[len(group["params"]) for group in gs] for gs in (groups, self.param_groups)]
        if sizes != expected:
            raise ValueError(f"state_dict: found groups of {sizes} parameters, expected {expected}")
        states = {}
        for group, own in zip(groups, self.param_groups, strict=True):
            self._check_group(group, own["params"])
            rule = self.arguments.rule(group)
            copies = len(self.arguments.row(rule, group))
            for index, p in zip(group["params"], own["params"], strict=True):
                saved = {key: x for key, x in incoming["state"].get(index, {}).items() if x is not None}
                if saved:
                    self._check_saved(saved, p, rule, copies, f"state_dict['state'][{index}]")
                    beside = self._precision.states(rule, view(p, "params"), copies)  # on the parameter's device
                    states[index] = {
                        key: _copy(x, p) if key in beside else x.clone()
                        for key, x in ((key, torch.as_tensor(x)) for key, x in saved.items())
                    }
        return {**incoming, "state": states, "param_groups": groups}

    def _check_saved(self, saved: Mapping[str, Any], p: torch.Tensor, rule: Rule, copies: int, where: str) -> None:
        states = self._precision.states(rule, view(p, "params"), copies)
        expected = {*(["step"] if self._counted else []), *rule.scalars, *states}
        found = set(saved) - {"step"} | (set(saved) & expected)  # a count does no harm where there need be none
        if found != expected:
            raise ValueError(f"{where}: found {sorted(found)}, expected {sorted(expected)} as {rule.name} has")
        for name, (dtype, shape) in states.items():
            x, of = saved[name], getattr(torch, dtype_name(dtype))
            if tuple(x.shape) != shape:
                raise ValueError(f"{where}[{name!r}]: found shape {tuple(x.shape)}, expected {shape}")
            if x.dtype != of:
                raise ValueError(
                    f"{where}[{name!r}]: found dtype {x.dtype}, expected {of}, by the parameter's dtype and state_dtype"
                )
        if self._counted and not float(saved["step"]) >= 0:
            raise ValueError(f"{where}['step']: found {saved['step']!r}, expected a number >= 0")

    def _completed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A saved group with all of this class's arguments."""
        group = {**self.defaults, **group}
        return {**group, "decoupled_weight_decay": True} if self.arguments.renamed else group

    def __getstate__(self) -> dict[str, Any]:
        own = {"_backend_name": self._backend_name, "_threads": self._threads, "_precision": self._precision}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bound, self._recorded = None, []


class _Bound:
    """Checked tensors, tabled for a backend: good for as long as none of them is elsewhere or otherwise laid out.

    It keeps no gradient alive. A parameter that has had no gradient yet, and so no state, is left out.
    """

    def __init__(self, optimizer: Optimizer, backend: Any, place: Place) -> None:
        self.backend, self.place = backend, place
        self._optimizer = weakref.ref(optimizer)
        self._arguments = optimizer.arguments
        self._read = itemgetter(*optimizer.arguments.defaults)
        groups = optimizer.param_groups
        params = _params(groups)
        grads = [p.grad for p in params]
        group_of = [g for g, group in enumerate(groups) for _ in group["params"]]
        self.capturable = optimizer._capturable
        like = params[0].detach() if self.capturable else torch.empty(0)
        self._steps = steps = like.new_zeros(len(params), dtype=torch.int64)
        sets: dict[tuple[str, int], Parameters] = {}
        self._groups: list[Parameters] = []  # the set of each
        for g, group in enumerate(groups):
            rule, row = self._rule_and_row(group)
            key = (rule.name, len(row))
            if key not in sets:
                counts = None if self.capturable else steps.numpy()
                sets[key] = Parameters.of(rule, len(row), len(params), len(groups), counts)
                sets[key].group[:] = group_of
            sets[key].hyper[g] = row
            self._groups.append(sets[key])
        self._scalars = {id(own): torch.from_numpy(own.scalars) for own in sets.values()}
        if self.capturable:
            self._scalars = {key: _copy(x, like) for key, x in self._scalars.items()}
        set_of = {id(parameters): k for k, parameters in enumerate(sets.values())}
        known = [
            grad is not None or not optimizer._has_state(p, self._groups[g].rule) or bool(optimizer.state.get(p))
            for p, grad, g in zip(params, grads, group_of, strict=True)
        ]
        members = list(compress(range(len(params)), known))
        labels = optimizer._labels()
        arrays: dict[int, list[Any]] = {}
        for i in members:
            own = [labels[i], f"the gradient of {labels[i]}"]
            param, grad = view(params[i], own[0]), grads[i]
            if grad is not None and grad.is_sparse:
                check_rows(self._groups[group_of[i]].rule, [param, as_row_sparse(grad, own[1])], own)
            arrays[i] = [param, _absent_like(param) if grad is None or grad.is_sparse else view(grad, own[1])]
            check_tensor(arrays[i], own)
        tensors, self._names, self._precision = [], {}, optimizer._precision
        self._elements = self._precision.elements([p.numel() for p in params])
        before = {p: dict(state) for p, state in optimizer.state.items()}
        try:
            for i in members:  # once all have been checked
                parameters, group = self._groups[group_of[i]], groups[group_of[i]]
                kept = steps, self._scalars[id(parameters)]
                arrays[i] += _states(optimizer, i, params[i], parameters, group, *kept, labels[i])
        except BaseException:  # there was no memory for all: then there are none
            optimizer.state.clear()
            optimizer.state.update(before)
            raise
        for i in members:
            parameters = self._groups[group_of[i]]
            tensors.append(Tensor.of(self._precision, set_of[id(parameters)], i, arrays[i], self._elements[i]))
            called = [f"a state of {labels[i]}"] * (len(arrays[i]) - 2)
            self._names[i] = [labels[i], f"the gradient of {labels[i]}", *called]
        self._jobs = make_jobs(list(sets.values()), tensors, list(self._names.values()))
        begin = np.zeros(len(params), np.uint64)
        begin[members] = [arrays[i][1].address for i in members]
        for job in self._jobs:
            job.addresses[:, 1] -= begin[job.parameter[job.tensor_of]]  # now from where a gradient begins
            job.owners.clear()
        self._arrays = {i: [param, *states] for i, (param, _, *states) in arrays.items()}
        self._group_of = group_of
        self._known = np.array(known, bool)
        self._params = params
        self._layouts = [
            (_stride(x), _nbytes(x))
            for x in (p if g is None or g.is_sparse else g for p, g in zip(params, grads, strict=True))
        ]
        self._where = _where(params, optimizer.state)
        self._values = [frozen(self._values_of(group)) for group in groups]
        self._present: list[bool] | None = []
        if not self.take(optimizer):
            raise RuntimeError("tensors moved while they were being checked")
        self._take_rates(groups)

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
        return rule, self._arguments.row(rule, group)

    def on_device(self) -> tuple[Any, ...]:
        """What a step has on the device beside tensors that the user holds."""
        return self._runner, self._zeroing, self._steps, self._scalars

    def take_amp(self, scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        """Takes over where `torch.amp.GradScaler` has put its scale, and whether the step is to be skipped."""
        for runner in filter(None, (self._runner, self._zeroing)):
            runner.scale = 0 if scale is None else scale.data_ptr()  # type: ignore[attr-defined]
            runner.skip = 0 if found_inf is None else found_inf.data_ptr()  # type: ignore[attr-defined]

    def take(self, optimizer: Optimizer) -> bool:
        """Takes over the gradients and hyper-parameters of this step; False where tensors must be checked anew."""
        groups = optimizer.param_groups
        params = _params(groups)
        self._sparse: list[tuple[int, RowSparse]] = []
        grads, present = list(map(_grad, params)), None
        try:
            if _where(params, optimizer.state) != self._where:
                return False
        except TypeError:  # a state that is no tensor
            return False
        try:
            addresses = list(map(_data_ptr, grads))
        except (TypeError, RuntimeError):  # there is None among them, or a sparse one
            given = [g is not None for g in grads]
            if not self._known[given].all():
                return False
            present = [g is not None and not g.is_sparse for g in grads]
            for i in np.flatnonzero(np.array(given) & ~np.array(present)).tolist():
                self._sparse.append((i, as_row_sparse(grads[i], self._names[i][1])))  # type: ignore[arg-type]
            grads = list(compress(grads, present))
            addresses = list(map(_data_ptr, grads))
        if present != self._present:
            if present is None and not self._known.all():
                return False
            self._select(present)
        if (list(map(_stride, grads)), list(map(_nbytes, grads))) != self._layout:
            return False
        if addresses != self._addresses:
            self._put(addresses)
        return self._take_groups(groups)

    def _take_groups(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Takes over hyper-parameters that have changed; False where a group has another rule now."""
        for g, group in enumerate(groups):
            values = self._values_of(group)
            if values != self._values[g]:
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
            for runner in filter(None, (self._runner, self._zeroing)):
                runner.rates[:] = rates  # type: ignore[attr-defined]

    def _select(self, present: list[bool] | None) -> None:
        """Makes ready for gradients of some parameters, or of all."""
        self._present = present
        chosen = np.ones(len(self._params), bool) if present is None else np.array(present, bool)
        jobs = [job for job in (job.of(chosen) for job in self._jobs) if len(job.parameter)]
        place = np.cumsum(chosen) - 1
        # For each job where its gradients' addresses go, which gradients they are of, and how far from their beginning.
        self._columns = [
            (job.addresses[:, 1], place[job.parameter[job.tensor_of]], job.addresses[:, 1].copy()) for job in jobs
        ]
        self._selected = jobs
        self._zeroing: Runner | None = None
        self._runner: Runner = self._prepare(jobs)
        self._places = np.flatnonzero(chosen).tolist()
        self._stepped = [self._params[i] for i in self._places]
        chosen_layouts = list(compress(self._layouts, chosen.tolist()))
        self._layout = ([stride for stride, _ in chosen_layouts], [nbytes for _, nbytes in chosen_layouts])
        self._addresses: list[int] | None = None
        self._zeroed: list[int] | None = None  # the addresses that were found fit to be zeroed

    def _put(self, addresses: list[int]) -> None:
        """Writes gradients' addresses into the tables."""
        where = np.array(addresses, np.uint64)
        for column, which, beyond in self._columns:
            np.add(where[which], beyond, out=column)
        self._addresses = addresses

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
        runner, stepped = self._zeroing_runner() if zero_grads else self._runner, self._stepped
        if self._sparse:
            if self.capturable:
                raise ValueError(f"{self._names[self._sparse[0][0]][1]}: found a sparse one, expected none: capturable")
            rows = [self._row_job(i, grad) for i, grad in self._sparse]
            dense = self._zeroing_jobs() if zero_grads else self._selected
            runner = self.backend.prepare([*dense, *rows])
            stepped = [*stepped, *(self._params[i] for i, _ in self._sparse)]
        if max_norm is not None or skip_nonfinite:
            tables: list[Gradients | RowSparse] = [job.gradients() for job in self._selected]
            tables += [grad for _, grad in self._sparse]
            scale, norm, skipped = norms.scale_of(tables, self.backend, threads, scale, max_norm, skip_nonfinite)
            optimizer.last_grad_norm = optimizer.last_grad_norm if norm is None else norm
            optimizer.last_step_skipped = skipped
            if skipped:
                return
        runner(scale, threads)
        if zero_grads:
            for _, grad in self._sparse:
                set_to_zero(grad.values)
            stepped = [*stepped, *(p.grad for p in stepped if p.grad is not None)]
        increment_version(stepped)  # autograd shall know that they were changed in place

    def _check_zeroed(self) -> None:
        """Whether gradients can be zeroed, once for as long as they are where they are."""
        if self._sparse or self._zeroed is not self._addresses:
            dense = [(i, view(self._params[i].grad, self._names[i][1])) for i in self._places]
            found = [*dense, *((i, grad.values) for i, grad in self._sparse)]
            check_distinct([grad for _, grad in found], [self._names[i][1] for i, _ in found], "set to zero")
            self._zeroed = self._addresses

    def _zeroing_jobs(self) -> list[Job]:
        return [job.with_option(ZERO_GRADS) for job in self._selected]

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
        return self.backend.CapturableRunner(jobs, self._steps.data_ptr(), scalars)

    def _row_job(self, i: int, grad: RowSparse) -> Job:
        arrays, rows = self._check_rows(i, grad)
        tensor = Tensor.of(self._precision, 0, i, arrays, self._elements[i])
        return make_row_job(self._groups[self._group_of[i]], tensor, rows)

    def _check_rows(self, i: int, grad: RowSparse) -> tuple[list[Array], Rows]:
        param, *states = self._arrays[i]
        return check_rows(self._groups[self._group_of[i]].rule, [param, grad, *states], self._names[i])


def _params(groups: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    return [p for group in groups for p in group["params"]]


def _where(params: Sequence[torch.Tensor], state: Mapping[torch.Tensor, Any]) -> list[int]:
    """Where parameters are, and all that is kept for them."""
    return list(map(_data_ptr, chain(params, chain.from_iterable(map(dict.values, state.values())))))


def _absent_like(param: Array) -> Array:
    """A stand-in for a gradient that is not there: one laid out as the parameter, at no address."""
    return Array(None, 0, param.dtype, param.shape, None if param.dense else param.strides, param.place)


def _copy(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor on another's device."""
    copy = like.detach().new_empty(x.shape, dtype=x.dtype)
    copy.copy_(x)
    return copy


def _states(
    optimizer: Optimizer,
    i: int,
    p: torch.Tensor,
    parameters: Parameters,
    group: Mapping[str, Any],
    steps: torch.Tensor,
    scalars: torch.Tensor,
    label: str,
) -> list[Array]:
    """A parameter's states as backends take them; its step count and scalars move to where backends advance them."""
    rule = parameters.rule
    if not optimizer._precision.states(rule, view(p, label), parameters.copies) and not optimizer._counted:
        return []
    begun = any(x is not None for x in optimizer.state[p].values())
    state = optimizer._complete_state(p, rule, parameters.copies, group)
    steps[i] = state["step"] if optimizer._counted else int(begun)
    if optimizer._counted:
        state["step"] = steps[i]
    for k, name in enumerate(rule.scalars):
        scalars[i, k] = state[name]
        state[name] = scalars[i, k]
    split, param = [], view(p, label)
    for name in rule.states:
        called = f"{name!r} of {label}"
        split.append(split_copies(rule, parameters.copies, view(state[name], called), param, called))
    added = [name for name in optimizer._precision.states(rule, param, parameters.copies) if name not in rule.states]
    views = [view(state[name], f"{name!r} of {label}") for name in added]
    return [*(arrays[k] for k in range(parameters.copies) for arrays in split), *views]


# ---- the classes ----


def _signature(arguments: TorchArguments) -> inspect.Signature:
    """That of torch's class of the same name, and by keyword what fastopt has beyond it."""
    theirs = getattr(torch.optim, arguments.name, None)
    signature = arguments.signature() if theirs is None else inspect.signature(theirs)
    known = list(signature.parameters.values())
    names = [parameter.name for parameter in known] + (["decoupled_weight_decay"] if arguments.renamed else [])
    more = {**arguments.defaults, **_EXECUTION, **{key: default for key, (default, _) in EXECUTION.items()}}
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        known + [inspect.Parameter(key, keyword, default=more[key]) for key in more if key not in names]
    )


def _documentation(arguments: TorchArguments, signature: inspect.Signature) -> str:
    meanings = {
        **arguments.meanings(),
        "decoupled_weight_decay": "weight_decay is of the parameter itself, times lr, as AdamW's, instead of L2",
        **dict.fromkeys(("foreach", "fused"), "accepted, and without effect: every step is one fused pass"),
        **{flag: f"must be False: {reason}" for flag, reason in _REFUSED.items()},
        **{key: meaning for key, (_, meaning) in EXECUTION.items()},
    }
    lines = [
        *arguments.formulas(),
        f"A `torch.optim.Optimizer`; for arrays without torch see `fastopt.{arguments.rules[0].optimizer}`.",
        "",
        "Parameters",
        "----------",
        "params : iterable of tensors, of (name, tensor) pairs, or of group dicts",
        "    float32, float64, bfloat16 or float16 tensors, of one device, updated in place.",
    ]
    for key, parameter in list(signature.parameters.items())[1:]:
        said = "required" if parameter.default is REQUIRED else f"default {parameter.default!r}"
        lines += [f"{key} : {said}", f"    {meanings[key]}."]
    lines += [
        "",
        "Raises",
        "------",
        "TypeError, ValueError",
        "    A tensor or a hyper-parameter is not what it must be; the message names it.",
        "BackendUnavailable",
        "    A tensor is on a device for which there is no backend.",
    ]
    return "\n".join(lines)


def _define(arguments: TorchArguments) -> type[Optimizer]:
    signature = _signature(arguments)
    namespace = {
        "__doc__": _documentation(arguments, signature),
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
    ValueError
        `norm_type` is another, or `max_norm` no number >= 0.
    """
    if float(norm_type) != 2.0:
        raise ValueError(f"norm_type: found {norm_type!r}, expected 2.0 (others: torch.nn.utils.clip_grad_norm_)")
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    grads = [p.grad for p in parameters if p.grad is not None]
    if error_if_nonfinite and not np.isfinite(norms.global_norm(grads)):
        raise RuntimeError("the gradients' global norm is not finite, so they were not clipped")
    norm = norms.clip_grad_norm_(grads, max_norm)
    increment_version(grads)
    return grads[0].detach().new_tensor(norm) if grads else torch.tensor(norm)


__all__ = [*CLASSES, "Optimizer", "clip_grad_norm_"]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
