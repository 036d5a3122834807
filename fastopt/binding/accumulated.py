"""Internal. Gradients of several batches, added up for one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.checks import check_tensor
from ..arrays.dtypes import compute_dtype
from ..arrays.libraries import floats_of, view
from ..backends.choice import ieee_arithmetic
from .sparse import RowSparse
from .structure import gradient_of, split_rows


class Accumulated:
    """Sums of gradients, of which each parameter has one, none, or rows.

    Attributes
    ----------
    pending : bool
        True where there is something for the next step.
    """

    def __init__(self) -> None:
        self.pending = False
        self._memory: dict[int, np.ndarray] = {}  # by parameter, kept for the next sums
        self._dense: set[int] = set()
        self._rows: dict[int, list[RowSparse]] = {}

    def add(self, grads: Sequence[Any], params: Sequence[Array], names: Sequence[str]) -> None:
        """Add gradients of all parameters in order: all of them, once they are checked, or none.

        Raises
        ------
        TypeError, ValueError
            One is not what it must be; the message names it.
        """
        dense, rows = split_rows(tuple(grads), params, names)
        taken: list[tuple[int, Array]] = []
        for i, grad in enumerate(dense):
            if grad is not None:
                name = gradient_of(names[i]) if len(grads) > 1 else "grads"
                array = view(grad, name)
                check_tensor([params[i], array], [names[i], name])
                self._check_kind(name, array, i in self._rows)
                taken.append((i, array))
        summed: list[tuple[int, RowSparse]] = []
        for i, grad in rows:
            name = gradient_of(names[i]) if len(grads) > 1 else "grads"
            grad.check(params[i], [names[i], name])
            self._check_kind(name, grad.values, i in self._dense)
            if grad.duplicates != "sum":
                raise ValueError(f"{name}: found duplicates {grad.duplicates!r}, expected 'sum', to be accumulated")
            summed.append((i, grad.coalesced()))
        for i, _ in taken:
            if i not in self._memory:
                self._memory[i] = np.empty(params[i].shape, compute_dtype(params[i].dtype))
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for i, array in taken:
                own = self._memory[i]
                if i in self._dense:
                    np.add(own, floats_of(array), out=own)
                else:
                    own[...] = floats_of(array)
                    self._dense.add(i)
        for i, grad in summed:
            self._rows.setdefault(i, []).append(grad)
        self.pending = True

    @staticmethod
    def _check_kind(name: str, array: Array, other: bool) -> None:
        if array.place.kind != "cpu":
            raise ValueError(f"{name}: found an array on {array.place.device}, expected one on the CPU to accumulate")
        if other:
            raise ValueError(f"{name}: found another kind of gradient than before it, expected rows only, or none")

    def gradients(self, parameters: int) -> tuple[Any, ...]:
        """The sums, of so many parameters in order."""
        return tuple(
            self._memory[i] if i in self._dense else _joined(self._rows[i]) if i in self._rows else None
            for i in range(parameters)
        )

    def clear(self) -> None:
        """Forget the sums."""
        self.pending = False
        self._dense.clear()
        self._rows.clear()


def _joined(parts: Sequence[RowSparse]) -> RowSparse:
    """The rows of all, one behind the other: a step sums those of one row in this order."""
    return RowSparse(
        np.concatenate([part.indices for part in parts]), np.concatenate([floats_of(part.values) for part in parts])
    )
