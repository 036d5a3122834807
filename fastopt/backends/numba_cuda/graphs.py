"""Steps that a CUDA graph can record: step counts, learning rates and coefficients are on the device.

A graph's replays find no Python. So a recorded step takes with it where its gradients are, counts and folds on the
device, and has a table of its own, which no other step writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays.libraries import driver
from ...jobs.job import DenseJob
from .compiler import Fold, KernelSpec, ptx_of
from .kernels import THREADS
from .limits import PutScales, Scale, words_of
from .lookups import complain
from .rows import RowLaunch
from .runs import RunLaunch

if TYPE_CHECKING:
    from ...jobs.job import Job, RowJob


class CapturableRunner:
    """Jobs made ready for a device, with all that steps change there.

    Parameters
    ----------
    jobs : sequence of Job
        What a step does.
    steps : int
        The address of the parameters' step counts, float64.
    scalars : mapping of int to int
        For the `id` of each set of parameters, the address of their scalars, float64.

    Raises
    ------
    ValueError
        A job has gradient noise, or a rule that measures all tensors together.

    Attributes
    ----------
    rates : numpy.ndarray, int64, shape (groups, 2)
        Where learning rates are that are on the device, and their bytes; zeros for others.
    scale, skip : int
        The addresses of float32 numbers: what gradients are to be divided by, and whether to do nothing; 0: none.
    """

    def __init__(self, jobs: Sequence[Job], steps: int, scalars: Mapping[int, int]) -> None:
        for job in jobs:
            if job.storage is not None and job.storage.noise is not None:
                raise ValueError(
                    "capturable: found True, expected False: a graph does not record what deviation the noise of "
                    "gradient_noise has in a step"
                )
            if job.progress.rule.over_all:
                raise ValueError(
                    f"capturable: found True, expected False: {job.progress.rule.optimizer} measures all tensors "
                    "together, which no graph records"
                )
        self._launches: list[list[CapturedLaunch | CapturedRowLaunch]] = [
            [_launch_of(job, steps, scalars[id(job.progress)]) for _ in ("as they come", "recorded")] for job in jobs
        ]
        self.rates = np.zeros((max((len(job.progress.hyper) for job in jobs), default=0), 2), np.int64)
        self.scale = self.skip = 0

    def __call__(self, grad_scale: float | Scale, threads: int) -> None:
        """Puts a step on the caller's streams, or in the graph that is being captured there.

        Raises
        ------
        MemoryError
            There is too little memory on the device.
        RuntimeError
            A graph is to record the very first step.
        """
        chosen = []
        for as_they_come, recorded in self._launches:
            stream = as_they_come.current_stream()
            capturing = driver.is_capturing(stream)
            if capturing and not recorded.has_memory:
                raise RuntimeError(
                    "a CUDA graph is being captured before the first step with these gradients, which allocates: do "
                    "one step before it"
                )
            if not capturing and not recorded.has_memory:
                as_they_come.allocate(stream)
                recorded.allocate(stream)
            chosen.append((recorded if capturing else as_they_come, stream, capturing))
        for update, stream, capturing in chosen:
            if isinstance(grad_scale, Scale):  # which knows of what is at `scale` and `skip`
                update.run(stream, capturing, 1.0, self.rates, 0, grad_scale.cells, grad_scale)
            else:
                update.run(stream, capturing, grad_scale, self.rates, self.scale, self.skip, None)


def _launch_of(job: Job, steps: int, scalars: int) -> CapturedLaunch | CapturedRowLaunch:
    return CapturedLaunch(job, steps, scalars) if isinstance(job, DenseJob) else CapturedRowLaunch(job, steps, scalars)


class _FoldLaunch:
    """Counts and folds a job's steps, with what that reads on the device.

    Parameters
    ----------
    job : Job
        The job.
    kind : KernelSpec
        Its kernel, whose coefficients are in a table.
    steps, scalars : int
        As of `CapturableRunner`, the scalars those of the job's parameters.
    rows : int
        The address of the table.
    stream : int
        Where memory is taken for.
    """

    def __init__(self, job: Job, kind: KernelSpec, steps: int, scalars: int, rows: int, stream: int) -> None:
        progress, count = job.progress, len(job.members)
        self._job, self._device, self._blocks = job, driver.device_of(job.place.number), -(-count // THREADS)
        tables = [words_of(table) for table in (progress.group, job.members)]
        sizes = [progress.hyper.size, 2 * len(progress.hyper), *map(len, tables)]
        self._memory = self._device.allocate(8 * sum(sizes), stream)
        self._hyper, *others = (self._memory.address + 8 * np.cumsum([0, *sizes[:-1]])).tolist()
        self._device.upload(np.concatenate(tables), others[1], stream)
        fold = Fold(progress.rule.name, kind)
        self._fold = self._device.kernel(ptx_of(fold, self._device.capability), fold.name, 11, THREADS)
        self._fold.arguments[:8] = steps, scalars, self._hyper, *others, rows, count
        self._scales = PutScales(self._device, job.dtype, rows, kind.row_bytes)
        self._scales.allocate(count, stream)
        self._sent = b""

    def run(
        self,
        stream: int,
        capturing: bool,
        grad_scale: float,
        rates: np.ndarray,
        divisor: int,
        skip: int,
        scale: Scale | None,
    ) -> None:
        """Puts it on a stream, behind it what puts a scale from there into the coefficients."""
        self._memory.used_on(stream)
        hyper = self._job.progress.hyper
        words = np.concatenate([hyper.reshape(-1).view(np.uint64), rates.reshape(-1).view(np.uint64)])
        if capturing or words.tobytes() != self._sent:
            self._device.upload(words, self._hyper, stream)
            self._sent = words.tobytes()
        self._fold.arguments[8:10] = divisor, skip
        self._fold.arguments[10:].view(np.float64)[0] = grad_scale
        self._fold.launch(self._blocks, stream)
        if scale is not None:
            self._scales.launch(stream, scale, len(self._job.members), self._job.members, capturing)


class _Folds:
    """What launches have that fold on the device.

    Attributes
    ----------
    has_memory : bool
        True once `allocate` has been called.
    """

    _fold: _FoldLaunch | None = None

    @property
    def has_memory(self) -> bool:
        return self._fold is not None


class CapturedLaunch(_Folds, RunLaunch):
    """A job's table and kernels, with what steps change on the device."""

    def __init__(self, job: DenseJob, steps: int, scalars: int) -> None:
        super().__init__(job)
        self._kind = replace(self._kind, tabled=True)
        self._steps, self._scalars = steps, scalars

    def allocate(self, stream: int) -> None:
        """Takes memory, and puts there what stays."""
        job, kind = self._job, self._kind
        self._make_table(stream)
        where = self._where
        of_runs = np.arange(len(job.members))[job.tensor_of]  # each tensor has a row of its own
        self._device.upload(words_of(of_runs), where["row_of"], stream)
        self._kernel_of_runs, _ = self._kernel(kind)
        self._stage = self._measure(kind) if self._measured and self._chunks else None
        self._fold = _FoldLaunch(job, kind, self._steps, self._scalars, where["rows"], stream)

    def run(self, stream: int, capturing: bool, *how: Any) -> None:
        """Puts the fold, as `how` says, and the update on a stream; a graph records with them whatever they read."""
        assert self._fold is not None
        if capturing:
            self._send_gradients(stream)
        else:
            self._update_table(stream)
        self._fold.run(stream, capturing, *how)
        if self._stage is not None:
            self._stage.measure(stream)
            self._stage.fold(stream)
        if self._chunks:
            self._kernel_of_runs.launch(self._chunks, stream)


class CapturedRowLaunch(_Folds, RowLaunch):
    """A job of rows with what steps change on the device, and memory that is kept from step to step."""

    def __init__(self, job: RowJob, steps: int, scalars: int) -> None:
        super().__init__(job)
        self._steps, self._scalars = steps, scalars

    def allocate(self, stream: int) -> None:
        """Takes memory, and puts there what stays."""
        table = self._make_table(stream)
        if self._lookups.count:
            self._launches(True)
            self._memory = self._device.allocate(self._nbytes, stream)
        kind = replace(self._kind, tabled=True)
        self._fold = _FoldLaunch(self._job, kind, self._steps, self._scalars, table, stream)

    def run(self, stream: int, capturing: bool, *how: Any) -> None:
        """Puts the fold, as `how` says, and the update on a stream; a graph records with them whatever they read."""
        assert self._fold is not None
        complain(self._device)
        self._make_table(stream)
        self._lookups.used_on(stream)
        self._fold.run(stream, capturing, *how)
        if self._memory is not None:
            self._memory.used_on(stream)
            self._put_on(stream, self._memory, self._launches(True))
