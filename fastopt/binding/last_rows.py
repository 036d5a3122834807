"""The binding of a step with gradients of rows, kept for the next with others like them."""

from __future__ import annotations

from collections.abc import Sequence

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
    written : sequence of sequence of Array
        The views of these.
    """

    def __init__(
        self,
        base: Binding,
        bound: Binding,
        runner: RowRunner,
        rows: Sequence[tuple[int, RowSparse]],
        looks: Sequence[Look | None],
        written: Sequence[Sequence[Array]],
    ) -> None:
        self.bound, self._runner = bound, runner
        self._base, self._looks = base, looks
        self._kinds = [(i, grad.kind) for i, grad in rows]
        self._extents = [[array.extent() for array in arrays] for arrays in written]
        self._jobs = [(k, job) for k, job in enumerate(bound.jobs) if isinstance(job, RowJob)][-len(rows) :]

    def take(self, base: Binding, rows: Sequence[tuple[int, RowSparse]], looks: Sequence[Look | None]) -> bool:
        """Have gradients take the place of those before; False where they are others than these in more than that.

        The step itself checks the indices again, before it writes anything.
        """
        if base is not self._base or looks != self._looks or [(i, grad.kind) for i, grad in rows] != self._kinds:
            return False
        for (_, grad), extents in zip(rows, self._extents, strict=True):
            if grad.moved or not _is_apart(grad.values, extents):
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


def _is_apart(values: Array, extents: Sequence[tuple[int, int]]) -> bool:
    """Return whether an array's bytes are before or behind each of some others'."""
    low, high = values.extent()
    return all(high <= begin or end <= low for begin, end in extents)
