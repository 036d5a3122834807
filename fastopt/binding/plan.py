"""Plans: steps whose arrays are checked already."""

from __future__ import annotations

from typing import NoReturn

from .binding import Binding
from .norms import Limits
from .owned import Owned


class Plan:
    """A step with its arrays already checked: made by `Optimizer.bind`."""

    def __init__(self, owned: Owned, bound: Binding) -> None:
        self._owned = owned
        self._bound = bound

    def step(
        self,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        """Does one step, in place, with what the arrays hold now.

        Parameters
        ----------
        grad_scale, max_norm, skip_nonfinite, zero_grads, clip_norm, clip_value : optional
            As of `fastopt.Optimizer.step`; what they find out is told by the optimizer's ``last_grad_norm`` and
            ``last_step_skipped``.

        Raises
        ------
        TypeError, ValueError
            `grad_scale` is no finite number, a limit no number >= 0, a schedule gave a value out of range, or gradients
            to be zeroed are read-only or share memory; since it was bound a parameter has become read-only, or a tensor
            of torch has been given other memory.
        """
        bound = self._bound
        if bound.watched.tensors and (moved := bound.watched.moved()):
            raise ValueError(moved)
        limits = None if max_norm is clip_norm is clip_value is None else Limits.of(max_norm, clip_norm, clip_value)
        bound.step(self._owned, self._owned, (), grad_scale, limits, skip_nonfinite, zero_grads)

    def __reduce__(self) -> NoReturn:
        raise TypeError("found a Plan, expected its optimizer: a plan is of arrays where they are, and is bound anew")
