"""Steps of matrices: a backend does the elementwise parts, the arrays' library the products between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..arrays.checks import Written, check_written
from ..jobs.job import AnyJob, Job, MatrixJob
from . import Runner
from .interrupts import held_back


class _Runner:
    """Jobs made ready, some of matrices among them."""

    def __init__(
        self,
        matrices: Sequence[MatrixJob],
        others: Sequence[Job],
        prepare: Callable[[Sequence[Job], Written], Runner],
        written: Written,
    ) -> None:
        self._written = written
        self._others = prepare(others, written) if others else None
        self._parts = [(job, prepare([job.first], ()), prepare([job.last], ())) for job in matrices]

    def __call__(self, grad_scale: Any, threads: int) -> None:
        check_written(self._written)
        with held_back():
            if self._others is not None:
                self._others(grad_scale, threads)
            for job, first, last in self._parts:
                values, needed = job.begin(grad_scale)
                if needed:
                    first(grad_scale, threads)
                job.multiply(values)
                last(1.0, threads)


def prepare(jobs: Sequence[AnyJob], written: Written, by_backend: Callable[[Sequence[Job], Written], Runner]) -> Runner:
    """Make jobs ready to be run, any number of times: as the backend does that, but for matrices."""
    matrices = [job for job in jobs if isinstance(job, MatrixJob)]
    others = [job for job in jobs if not isinstance(job, MatrixJob)]
    return _Runner(matrices, others, by_backend, written) if matrices else by_backend(others, written)
