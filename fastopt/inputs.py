"""Internal. Steps of optimizers whose rules read further arrays beside the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .binding.norms import Limits
from .binding.owned import Owned
from .binding.plan import Plan
from .binding.structure import match


class WithInputs:
    """The part of those classes whose steps read further arrays, as an older copy of the parameters."""

    _owned: Owned

    def bind(self, grads: Any, inputs: Mapping[str, Any] | None = None) -> Plan:
        """Checks gradients and inputs once, for any number of steps from the same arrays.

        Parameters
        ----------
        grads, inputs
            As of `step`.

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
        owned = self._owned
        return Plan(owned, owned.bind((*match(grads, owned.structure, "grads"), *owned.gather(inputs))))

    def step(
        self,
        grads: Any = ...,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Updates every parameter and its states, in place, in one pass.

        Parameters
        ----------
        grads, grad_scale, max_norm, skip_nonfinite, zero_grads, clip_norm, clip_value : optional
            As of `fastopt.Optimizer.step`.
        inputs : mapping
            For each name of an input an array, nested sequences and mappings, or a list of groups: the same structure
            as ``params``. They are read only, and may be others at each step. Those of a parameter without a gradient
            are not looked at; where the gradient is a `RowSparse`, their rows are read.

        Raises
        ------
        TypeError, ValueError
            As `bind`, before any byte is written.
        BackendUnavailable
            The backend asked for, or one for the arrays' device, is not here.
        """
        owned, given = self._owned, self._owned.gather(inputs)
        limits = None if max_norm is clip_norm is clip_value is None else Limits.of(max_norm, clip_norm, clip_value)
        if grads is ... or owned.sums.pending:
            owned.step_accumulated(grads is not ..., grad_scale, limits, skip_nonfinite, zero_grads, given)
            return
        arrays = (*match(grads, owned.structure, "grads"), *given)
        owned.step(arrays, grad_scale, limits, skip_nonfinite, zero_grads)
