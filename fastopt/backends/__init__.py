"""What a backend offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..jobs.job import Gradients, Job


class Runner(Protocol):
    """Jobs made ready by a backend."""

    def __call__(self, grad_scale: float, threads: int) -> None:
        """Does one step: advances step counts, folds, updates. Once begun it is done whole."""

    def advance(self, grad_scale: float) -> None:
        """Does a step's first part: advances step counts and folds."""

    def update(self, job: int, begin: int, end: int, threads: int) -> None:
        """Does some of the rest: updates elements of a job, of tensors in blocks whole blocks."""


class Backend(Protocol):
    """What a backend's module offers."""

    def prepare(self, jobs: Sequence[Job]) -> Runner:
        """Makes jobs ready to be run, any number of times."""

    def square_sums(self, grads: Gradients, threads: int) -> np.ndarray:
        """The sums of squares of blocks of a set of gradients, in order."""
