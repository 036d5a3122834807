"""The first part of a step, on the host: step counts advanced, hyper-parameters folded into coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import BackendUnavailable
from ..jobs.job import MAX_STEP
from .numba_arithmetic import ieee_arithmetic

if TYPE_CHECKING:
    from ..jobs.job import Job
    from ..rules import Rule


class Folded(NamedTuple):
    """Coefficients of the next step of a job's tensors."""

    coefficients: np.ndarray  # float64 [rows, copies, 3 + coefficients]: the distinct ones
    row_of: np.ndarray  # int32 [tensors]: the row of each tensor
    steps: np.ndarray  # int64 [tensors]: the number of the step
    scalars: np.ndarray  # float64 [tensors, scalars]: those after it

    def advance(self, job: Job) -> None:
        """Counts the step."""
        job.progress.steps[job.members] = self.steps
        job.progress.scalars[job.members] = self.scalars


def fold(job: Job, grad_scale: float) -> Folded:
    """Folds the coefficients of the next step, which is not counted yet.

    With a stage over tensors each has a row of its own, which the stage completes.

    Raises
    ------
    ValueError
        The steps that a parameter has done cannot be counted further.
    """
    progress, rule = job.progress, job.progress.rule
    rows: dict[tuple[Any, ...], int] = {}
    folded: list[list[tuple[float, ...]]] = []
    after: list[tuple[float, ...]] = []
    row_of = np.empty(len(job.members), np.int32)
    steps = np.empty(len(job.members), np.int64)
    for i, at in enumerate(job.members):
        done = int(progress.steps[at])
        if not 0 <= done < MAX_STEP:
            progress.check_steps()
        steps[i] = done + 1
        t = float(steps[i])
        scalars = tuple(progress.scalars[at].tolist())
        factor = float(progress.factors[at])
        key = (t, int(progress.group[at]), factor, scalars, *([i] if rule.by_tensor else []))
        if key not in rows:
            rows[key] = len(folded)
            copies = []
            for hyper in progress.hyper[progress.group[at]].tolist():
                own, advanced = rule.fold_row(t, hyper, scalars)
                copies.append((*rule.fold_prologue(hyper[0], hyper, grad_scale * factor), *own))
            folded.append(copies)
            after.append(advanced)
        row_of[i] = rows[key]
    kept = np.array([after[row] for row in row_of]).reshape(len(row_of), len(rule.scalars))
    return Folded(np.array(folded), row_of, steps, kept)


def fold_rows(job: Job, grad_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Folds the coefficients of the next step and counts it: rows of coefficients, in float64, and which of them each
    tensor has.
    """
    with ieee_arithmetic():
        folded = fold(job, grad_scale)
        folded.advance(job)
    return folded.coefficients, folded.row_of


def folder(jobs: Sequence[Job]) -> Callable[[float], list[tuple[np.ndarray, np.ndarray, bool]]]:
    """Return a function that advances the jobs' step counts and folds: the C library's where it is built, and knows the
    rules.

    Called with `grad_scale`, it returns for each job rows of coefficients, in float64; which of them each tensor has;
    whether there are several.
    """
    native = _native()
    if native is not None:
        made, knows = native
        if all(knows(job.progress.rule) for job in jobs):
            return made(jobs)

    def fold(grad_scale: float) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        folded = [fold_rows(job, grad_scale) for job in jobs]
        return [(rows.reshape(len(rows), -1), row_of, len(rows) > 1) for rows, row_of in folded]

    return fold


@cache
def _native() -> tuple[Callable[..., Any], Callable[[Rule], bool]] | None:
    """The C library's class, and whether it knows a rule; or None: once, for a library that is not there or not this
    version's is tried for long.
    """
    try:
        from .native import Folds, knows
    except BackendUnavailable:
        return None
    return Folds, knows
