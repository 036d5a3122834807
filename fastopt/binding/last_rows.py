"""The binding of a step with gradients of rows, kept for the next with others like them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from ..arrays.array import Array
from ..arrays.runs import row_stride
from ..backends import RowRunner
from ..jobs.job import RowJob
from ..rules import GRADIENT
from .binding import Binding
from .sparse import RowSparse
from .where import Look


class LastRows:
    """The binding of the last step with gradients of rows. It keeps no gradient alive.

    Parameters
    ----------
    base : Binding
        That of the dense gradients.
    bound : Binding
        That of all.
    runner : RowRunner
        Its runner.
    rows : sequence of (int, RowSparse)
        The gradients of rows, with their parameters.
    looks : sequence of Look
        Where each of these parameters is, and its states: arrays of NumPy.
    written : iterable of Array
        The views of all parameters and states: no gradient may share their memory.
    """

    def __init__(
        self,
        base: Binding,
        bound: Binding,
        runner: RowRunner,
        rows: Sequence[tuple[int, RowSparse]],
        looks: Sequence[Look | None],
        written: Iterable[Array],
    ) -> None:
        self.bound, self._runner = bound, runner
        self._base, self._looks = base, looks
        self._kinds = [(i, grad.kind) for i, grad in rows]
        self._begins, self._ends = _extents(written)
        self._jobs = [(k, job) for k, job in enumerate(bound.jobs) if isinstance(job, RowJob)][-len(rows) :]

    def take(self, base: Binding, rows: Sequence[tuple[int, RowSparse]], looks: Sequence[Look | None]) -> bool:
        """Have gradients take the place of those before; False where they are others than these in more than that.

        The step itself checks the indices again, before it writes anything.
        """
        if base is not self._base or looks != self._looks or [(i, grad.kind) for i, grad in rows] != self._kinds:
            return False
        if any(grad.moved or self._is_written(grad.values) for _, grad in rows):
            return False
        for (_, grad), (k, job) in zip(rows, self._jobs, strict=True):
            job.rows.indices, job.rows.source, job.rows.weights = grad.tables
            job.addresses[GRADIENT] = grad.values.address
            job.strides[GRADIENT] = row_stride(grad.values)
            self._runner.put_rows(k)
        return True

    def let_go(self) -> None:
        """Keeps no gradient any longer."""
        self.bound.let_go(None)
        for _, job in self._jobs:
            job.rows.indices = job.rows.indices[:0]
            job.rows.source = job.rows.weights = None

    def _is_written(self, values: Array) -> bool:
        """Return whether an array may share memory with one that is written."""
        low, high = values.extent()
        k = bisect_left(self._begins, high) - 1  # the last extent that begins before the array's end
        return k >= 0 and self._ends[k] > low


def _extents(arrays: Iterable[Array]) -> tuple[list[int], list[int]]:
    """Return where arrays begin and end, in the order of addresses. Those that overlap, as views can, are one."""
    begins: list[int] = []
    ends: list[int] = []
    for low, high in sorted(array.extent() for array in arrays):
        if ends and low < ends[-1]:
            ends[-1] = max(ends[-1], high)
        else:
            begins.append(low)
            ends.append(high)
    return begins, ends
