"""An optimizer's steps: bound when they must be, scaled as `torch.amp.GradScaler` says."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import increment_version

from .. import settings
from ..backends.choice import choose_backend
from ..binding.ahead import Apart, make_ready, way_of
from ..binding.norms import Limits
from ..binding.options import TorchArguments
from ..statedict import COMPANIONS
from .groups import Groups, HyperRows, Stepping, first_places, is_capturable, labels_of, params_of, place_of, real_of
from .placements import local_of
from .sharded import Shards
from .states import Numbers
from .step import Bound


def _skips(optimizer: Stepping, found_inf: torch.Tensor | None) -> bool:
    """Return whether `torch.amp.GradScaler` wants no step; the optimizer is told."""
    if found_inf is None or not bool(found_inf):
        return False
    optimizer._last_skipped = True
    return True


class Stepper:
    """The parts of an optimizer that last from step to step."""

    def __init__(self, arguments: TorchArguments) -> None:
        self.hypers = HyperRows(arguments)
        self.numbers = Numbers()
        self.bound: Bound | None = None
        self._shards: Shards | None = None
        self._recorded: list[Any] = []  # what CUDA graphs read and write, for as long as they may be replayed

    def step(self, optimizer: Stepping, limits: Limits | None, skip_nonfinite: bool, zero_grads: bool) -> None:
        """Does one step.

        Raises
        ------
        RuntimeError
            A CUDA graph is being captured, and states are still to be made.
        """
        optimizer._settle()
        attributes = optimizer.__dict__  # where GradScaler puts what is for this step
        amp, there = (attributes.get("grad_scale"), attributes.get("found_inf")), False
        if not (amp[0] is None is amp[1]):
            there = all(x.is_cuda for x in amp if x is not None)
            if not there and _skips(optimizer, amp[1]):
                return
        capturable = is_capturable(optimizer.param_groups)  # then nothing may wait for the device
        recording = capturable and torch.cuda.is_current_stream_capturing()
        bound, shards = self.bound, self._shards
        if bound is None or not (bound.fits(optimizer, capturable) if shards is None else shards.fit(optimizer, bound)):
            if recording:
                raise RuntimeError(
                    "a CUDA graph is being captured before the first step with these tensors, which makes states: do "
                    "one step before it"
                )
            bound = self._bind(optimizer)
        if recording:
            self._recorded.append(bound.on_device())
        if there and not capturable and (self._shards is not None or not bound.can_limit_there):
            there = False
            if _skips(optimizer, amp[1]):
                bound.let_go()
                return
        scale = 1.0 if amp[0] is None or there else 1.0 / float(amp[0])
        if self._shards is None:
            bound.run(optimizer, scale, limits, skip_nonfinite, zero_grads, amp, there)
        else:
            self._shards.run(optimizer, bound, scale, limits, skip_nonfinite, zero_grads, amp)

    def take_back(self) -> None:
        """Tells states that the last step was not done."""
        if self.bound is not None:
            self.bound.take_back()

    def _bind(self, optimizer: Groups) -> Bound:
        self.bound = None
        self._shards = shards = Shards.of(optimizer)
        backend = choose_backend(optimizer._backend_name, place_of(params_of(optimizer.param_groups)))
        if shards is None:
            self.bound = Bound(optimizer, self.numbers, self.hypers, backend)
        else:
            with shards.gradients(optimizer):
                self.bound = Bound(shards, self.numbers, self.hypers, backend)
            shards.put_states(optimizer)
        return self.bound

    def move(self, optimizer: Groups, train: bool) -> None:
        """Move the parameters to where gradients are taken, or to where they are to be evaluated: all, or none.

        Raises
        ------
        ValueError
            One cannot be written; the message names it.
        """
        params, labels = params_of(optimizer.param_groups), labels_of(optimizer.param_groups)
        groups = [group for group in optimizer.param_groups for _ in group["params"]]
        apart, moved = [], []
        for i in first_places(params)[0]:
            state, rule = optimizer.state.get(params[i]), optimizer._arguments.rule(groups[i])
            if groups[i]["train_mode"] is train or not state:  # without a state it is at both
                continue
            arrays = {name: local_of(x) for name, x in state.items() if name in COMPANIONS or name in rule.state_names}
            stored = optimizer._storage.of_group(groups[i])
            way = way_of(optimizer._arguments, rule, groups[i], 1, train)
            moved.append(params[i])
            apart.append(Apart(local_of(params[i]), labels[i], rule, arrays, stored, way))
        if apart:
            backend = choose_backend(optimizer._backend_name, place_of(params))
            make_ready(backend, apart, real_of(params), optimizer._threads or settings.threads)()
            increment_version([*moved, *(found.param for found in apart)])
        for group in optimizer.param_groups:
            group["train_mode"] = train
