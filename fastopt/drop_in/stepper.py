"""An optimizer's steps: bound when they must be, scaled as `torch.amp.GradScaler` says."""

from __future__ import annotations

from typing import Any

import torch

from ..backends.choice import choose_backend
from ..binding.options import TorchArguments
from .groups import Groups, HyperRows, Stepping, is_capturable, params_of, place_of
from .sharded import Shards
from .states import Numbers
from .step import Bound


class Stepper:
    """The parts of an optimizer that last from step to step."""

    def __init__(self, arguments: TorchArguments) -> None:
        self.hypers = HyperRows(arguments)
        self.numbers = Numbers()
        self.bound: Bound | None = None
        self._shards: Shards | None = None
        self._recorded: list[Any] = []  # what CUDA graphs read and write, for as long as they may be replayed

    def step(self, optimizer: Stepping, max_norm: float | None, skip_nonfinite: bool, zero_grads: bool) -> None:
        """Does one step.

        Raises
        ------
        RuntimeError
            A CUDA graph is being captured, and states are still to be made.
        """
        scale = 1.0
        attributes = optimizer.__dict__  # where GradScaler puts what is for this step
        amp = attributes.get("grad_scale"), attributes.get("found_inf")
        capturable = is_capturable(optimizer.param_groups)  # then nothing may wait for the device
        if amp[1] is not None and not capturable and bool(amp[1]):
            optimizer.last_step_skipped = True
            return
        if amp[0] is not None and not capturable:
            scale = 1.0 / float(amp[0])
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
        if self._shards is None:
            bound.run(optimizer, scale, max_norm, skip_nonfinite, zero_grads, amp)
        else:
            self._shards.run(optimizer, bound, scale, max_norm, skip_nonfinite, zero_grads, amp)

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
