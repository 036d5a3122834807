"""Steps that CUDA graphs record: all that changes from one to the next is read on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..arrays.checks import Written
from ..backends import Backend, CapturedRunner, Runner
from ..jobs.job import Job
from .counters import Counters


class Captured:
    """The runners of such steps.

    Parameters
    ----------
    backend : Backend
        What does the steps.
    counters : Counters
        The numbers of states, on the device.
    """

    def __init__(self, backend: Backend, counters: Counters) -> None:
        self._backend, self._counters = backend, counters
        self._runners: list[CapturedRunner] = []

    def prepare(self, jobs: Sequence[Job], written: Written) -> Runner:
        """Make jobs ready."""
        scalars = {key: table.data_ptr() for key, table in self._counters.scalars.items()}
        prepare = self._backend.prepare_captured
        assert prepare is not None  # a capturable step is on a CUDA device
        self._runners.append(prepare(jobs, self._counters.counts.data_ptr(), scalars))
        return self._runners[-1]

    def clear(self) -> None:
        """Forget the runners."""
        self._runners.clear()

    def tell(self, groups: Sequence[Mapping[str, Any]], amp: tuple[torch.Tensor | None, ...]) -> None:
        """Tells where the learning rates are that are read on the device, and what `torch.amp.GradScaler` has put."""
        lrs = [group["lr"] for group in groups]
        on_device = [isinstance(lr, torch.Tensor) and lr.is_cuda for lr in lrs]
        rates = [(x.data_ptr(), x.element_size()) if own else (0, 0) for x, own in zip(lrs, on_device, strict=True)]
        scale, skip = (0 if x is None else x.data_ptr() for x in amp)
        for runner in self._runners:
            runner.rates[:] = rates
            runner.scale, runner.skip = scale, skip


def unscale(grads: Sequence[Any], scale: torch.Tensor, found_inf: torch.Tensor | None) -> None:
    """Unscale gradients that `torch.amp.GradScaler` left to the step, as torch's fused classes do.

    Those of a step that `found_inf` on the device may have skipped stay then.
    """
    if found_inf is not None:
        scale = torch.where(found_inf > 0, torch.ones_like(scale), scale)
    with torch.no_grad():
        torch._foreach_div_([g._values() if g.is_sparse else g for g in grads], scale)
