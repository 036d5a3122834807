"""Internal. Gradients of several batches, added up for one step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.checks import check_tensor
from ..arrays.dtypes import compute_dtype
from ..arrays.libraries import floats_of, join, new_array, put, same_library, set_to_zero, to_host, view
from ..backends import Backend
from ..backends.choice import get_backend
from ..jobs.job import Rows
from ..jobs.tables import Tensor, adding, make_jobs
from .binding import Binding, Last
from .sparse import RowSparse, add_rows, each_once
from .structure import gradient_of, split_rows

INDICES = np.dtype(np.int64)


class Accumulated:
    """Sums of gradients, of which each parameter has one, none, or rows.

    Attributes
    ----------
    pending : bool
        True where there is something for the next step.
    """

    def __init__(self) -> None:
        self.pending = False
        self._memory: dict[int, Any] = {}  # arrays by parameter, kept for the next sums
        self._views: dict[int, Array] = {}  # of these
        self._last: Last | None = None  # the binding of the last gradients, for others like them
        self._dense: set[int] = set()
        self._rows: dict[int, list[RowSparse]] = {}

    def add(
        self,
        grads: tuple[Any, ...],
        owned: Sequence[Any],
        params: Sequence[Array],
        names: Sequence[str],
        backend: Backend,
        threads: int,
    ) -> None:
        """Add gradients of all parameters in order: all of them, once they are checked, or none.

        Parameters
        ----------
        grads : tuple of array, RowSparse or None
            The gradients.
        owned : sequence of array
            The parameters, whose library the sums are of.
        params : sequence of Array
            Their views.
        names : sequence of str
            What messages call them.
        backend : Backend
            What adds.
        threads : int
            The most threads.

        Raises
        ------
        TypeError, ValueError
            One is not what it must be; the message names it.
        """
        last = self._last
        if last is not None and (self._rows or last.asked != get_backend()):
            last = None
        try:
            if last is not None and last.fits(grads):
                self._run(last.bound, threads)
                return
        finally:
            if last is not None:
                last.held = ()
        dense, rows = split_rows(grads, params, names)
        called = [gradient_of(name) for name in names] if len(grads) > 1 else ["grads"]
        taken: list[tuple[int, Array]] = []
        for i, grad in enumerate(dense):
            if grad is not None:
                array = view(grad, called[i])
                check_tensor([params[i], array], [names[i], called[i]])
                self._check_kind(called[i], i in self._rows)
                taken.append((i, array))
        summed: list[tuple[int, RowSparse]] = []
        for i, grad in rows:
            name = called[i]
            values, found = grad.check(params[i], [names[i], name])
            self._check_kind(name, i in self._dense)
            if grad.duplicates != "sum":
                raise ValueError(f"{name}: found duplicates {grad.duplicates!r}, expected 'sum', to be accumulated")
            if values.place.kind == "cpu":
                summed.append((i, grad.coalesced()))
            else:
                summed.append((i, _summed_there(values, found, owned[i], params[i], backend, threads)))
        for i, _ in taken:
            if i not in self._memory:
                param = params[i]
                self._memory[i] = new_array(owned[i], param, compute_dtype(param.dtype), param.shape, 0)
                self._views[i] = view(self._memory[i], "sums")
        tensors = [Tensor(0, i, [self._views[i], array]) for i, array in taken]
        labels = [[f"the sum of {called[i]}", called[i]] for i, _ in taken]
        jobs = make_jobs([adding(len(params))], tensors, labels)
        own = [called[i] for i, _ in taken]
        bound = Binding(backend, jobs, [i for i, _ in taken], own, [array for _, array in taken])
        self._last = None
        self._run(bound, threads)
        for i, grad in summed:
            self._rows.setdefault(i, []).append(grad)
        with suppress(TypeError):  # an array that no weak reference can be made to
            self._last = Last(bound, dense, [self._views[i] for i in bound.members], True)

    def _run(self, bound: Binding, threads: int) -> None:
        """Add bound gradients to their sums, which begin at zero."""
        for i in bound.members:
            if i not in self._dense:
                set_to_zero(self._views[i])
        bound.runner(1.0, threads)
        self._dense.update(bound.members)
        self.pending = True

    @staticmethod
    def _check_kind(name: str, other: bool) -> None:
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


def _summed_there(values: Array, rows: Rows, like: Any, param: Array, backend: Backend, threads: int) -> RowSparse:
    """The rows of a gradient on a device, each once, with the sum of its lookups: only their indices are waited for."""
    found = to_host(rows.indices)
    replace(rows, indices=found).check_indices()
    unique, place = each_once(found)

    def new(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
        return new_array(like, param, dtype, shape, 0)

    sums, indices, places = (
        new(compute_dtype(values.dtype), (len(unique), *values.shape[1:])),
        new(INDICES, unique.shape),
        new(INDICES, place.shape),
    )
    for own, numbers in ((indices, unique), (places, place)):
        if numbers.size:
            put(view(own, "indices"), same_library(numbers.astype(INDICES), own))
    add_rows(view(sums, "sums"), values, view(places, "indices"), rows.source, rows.weights, backend, threads)
    return RowSparse(indices, sums)


def _joined(parts: Sequence[RowSparse]) -> RowSparse:
    """The rows of all, one behind the other: a step sums those of one row in this order."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].values.place.kind == "cuda":
        return RowSparse(join([part.indices for part in parts]), join([part.values for part in parts]))
    return RowSparse(
        np.concatenate([part.indices for part in parts]), np.concatenate([floats_of(part.values) for part in parts])
    )
