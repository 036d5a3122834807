"""Optimizers for PyTorch: under torch's names and with torch's arguments, so that the import line is all that changes.

::

    from fastopt import torch as optim  # was: from torch import optim

    optimizer = optim.AdamW(model.parameters(), lr=1e-3)

Every class is a `torch.optim.Optimizer`: parameter groups, closures, hooks, every ``torch.optim.lr_scheduler``,
``torch.amp.GradScaler``, copying and pickling work as they do there, and state dicts go both ways between a class and
torch's class of the same name. Tensors are updated where they are, never copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from .errors import install_command
from .evaluation import Evaluated

try:
    import torch
except ImportError as error:
    raise ImportError(f"fastopt.torch needs PyTorch ({error}): {install_command('torch')}") from None
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from .binding.norms import Limits
from .binding.options import TorchArguments, check_group, read_call
from .checks import check_flag, did_you_mean, wrong_type
from .drop_in import groups, loading
from .drop_in.classes import TORCH_ARGUMENTS, TORCH_MATRIX_ARGUMENTS, namespace_of
from .drop_in.clipping import clip_grad_norm_
from .drop_in.sharded import Shards
from .drop_in.states import adopt_numbers, begin_states, copies_of
from .drop_in.stepper import Stepper
from .drop_in.telling import Telling


class Optimizer(Telling, torch.optim.Optimizer):
    """The base of all classes: a torch.optim.Optimizer whose step is one fused pass. They come from the rule table.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) pairs, or of group dicts
        float32, float64, bfloat16 or float16 tensors, of one device, updated in place. Of DTensors, as FSDP2 and tensor
        parallelism have them, each rank updates its shard.
    hyper-parameters : float, bool or Tensor
        Those of the class: torch's, and by keyword what its rule has beyond them. Schedules are torch's, as
        ``torch.optim.lr_scheduler``.
    weight_decay : float or Tensor, default 0.0
        L2 penalty: added to the gradient, times the parameter. A finite number >= 0.
    decoupled_weight_decay : bool, default False
        The decay is of the parameter itself, times lr, as AdamW's, instead of an L2 penalty.
    maximize : bool, default False
        Ascend instead of descend: the gradient's sign is flipped.
    foreach, fused : bool, optional
        Accepted, and without effect: every step is one fused pass.
    capturable : bool, default False
        Steps are recorded by CUDA graphs. It must be False on the CPU.
    differentiable : bool, default False
        It must be False: the update is done in place and autograd does not see it.
    state_dtype, rounding, seed, first_element, ema_decay, gradient_noise, backend, threads : optional
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
        True if the last step did nothing, because a gradient was not finite: with ``step(skip_nonfinite=True)``, and
        with `torch.amp.GradScaler`.

    Raises
    ------
    TypeError, ValueError
        A tensor or a hyper-parameter is not what it must be; the message names it.
    BackendUnavailable
        A tensor is on a device for which there is no backend.

    Notes
    -----
    A parameter whose ``data`` is replaced between steps is found by its new address or shape. One that is turned in its
    place, as a square one by ``p.data = p.data.t()``, is not: load the optimizer's state dict into a new one.

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

    _arguments: ClassVar[TorchArguments]
    last_grad_norm: float | None
    last_step_skipped: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._arguments.check_no_inputs("fastopt.torch")
        call = read_call(type(self), args, kwargs)
        self._backend_name, self._threads, self._storage = call.backend, call.threads, call.storage
        self._stepper = Stepper(self._arguments)
        super().__init__(groups.read_params(call.params, "params"), {**self._arguments.defaults, **call.options})

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """True where `torch.amp.GradScaler` leaves to `step` the unscaling, and skipping a step that is not finite."""
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
        with groups.all_or_none(self.param_groups, param_group):
            param_group["params"] = groups.read_params(param_group["params"], f"{where}['params']")
            super().add_param_group(param_group)
            group = self.param_groups[-1]
            self._arguments.complete(group)
            groups.check_flags(group, group["params"])
            self._stepper.hypers.update(self.param_groups)
            shards = Shards.of(self)
            groups.check_params(shards or self)
            if shards is not None:
                shards.agree(self)
        self._stepper.bound = None
        if self._arguments.rule(group).begun:
            begin_states(shards or self, (shards or self).param_groups[-1], self._stepper.numbers, where)
            if shards is not None:
                shards.put_states(self)

    # ---- steps ----

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_norm: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
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
        clip_norm : float, optional
            In place of `max_norm`: clips each parameter's gradient to this norm, as Keras's ``clipnorm``.
        clip_value : float, optional
            Clips each element to [-clip_value, clip_value] within the pass, after norms and before noise and weight
            decay, in place of ``clip_grad_value_``. NaN stays.
        skip_nonfinite : bool
            Does nothing where a gradient is not finite before it is clipped, which a reading pass finds out first; see
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
        limits = None if max_norm is clip_norm is clip_value is None else Limits.of(max_norm, clip_norm, clip_value)
        self._stepper.step(self, limits, skip_nonfinite, zero_grads)
        return loss

    _step.__name__, _step.__qualname__ = "step", "Optimizer.step"
    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)
    _uncompiled_step = torch._disable_dynamo(_hooked_step)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Documented as `_step`, which has its arguments."""
        if torch.compiler.is_compiling():
            return self._uncompiled_step(*args, **kwargs)
        someone_listens = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        )
        if someone_listens:
            return self._hooked_step(*args, **kwargs)
        return self._step(*args, **kwargs)

    functools.update_wrapper(step, _step)
    # Torch wraps `step` to call hooks and to tell the profiler, which costs more than a small step: it does so only
    # where it is needed.
    step.hooked = True  # type: ignore[attr-defined]

    def _move(self, train: bool) -> None:
        self._stepper.move(self, train)

    # ---- saving, loading, copying ----

    state_dict = loading.state_dict

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
            Groups, parameters, step counts, state names, shapes, dtypes, noise or stochastic rounding are not this
            optimizer's; nothing has changed.
        """
        loading.load(self, state_dict, super().load_state_dict)

    def __getstate__(self) -> dict[str, Any]:
        names = ("_backend_name", "_threads", "_storage")
        own = {name: getattr(self, name) for name in names}
        own |= {"_last_norm": self.last_grad_norm, "_last_skipped": self.last_step_skipped}
        return {**super().__getstate__(), "state": copies_of(self.state, self._stepper.numbers), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stepper = Stepper(self._arguments)
        adopt_numbers(self.state.values(), self._arguments.rules, self._stepper.numbers)


# ---- the classes ----


def _define(own: TorchArguments) -> type[Optimizer]:
    bases = (Optimizer, Evaluated) if own.evaluated else (Optimizer,)
    return type(own.name, bases, {**namespace_of(own), "__module__": __name__})


#: Every class of the table by name.
CLASSES = {own.name: _define(own) for own in TORCH_ARGUMENTS}
#: Every class of whole matrices by name.
MATRIX_CLASSES = {own.name: _define(own) for own in TORCH_MATRIX_ARGUMENTS}
globals().update(CLASSES | MATRIX_CLASSES)
__all__ = [*CLASSES, *MATRIX_CLASSES, "Optimizer", "clip_grad_norm_"]


def __getattr__(name: str) -> Any:
    """Return torch.optim's own, where fastopt has no class of that name."""
    if not name.startswith("__") and hasattr(torch.optim, name):
        return getattr(torch.optim, name)
    near = did_you_mean(name, __dir__()) or f"; it has {', '.join(__all__)}, and what torch.optim has"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in dir(torch.optim) if not name.startswith("_"))})
