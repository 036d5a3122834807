"""Steps that a CUDA graph can record: step counts, learning rates and coefficients are on the device.

A graph's replays find no Python. So a recorded step takes with it where its gradients are, counts and folds on the
device, and has a table of its own, which no other step writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...arrays.libraries import driver
from ...jobs.job import DenseJob
from .compiler import Fold, ptx_of
from .kernels import THREADS
from .limits import PutScales, Scale, words_of
from .runs import RunLaunch

if TYPE_CHECKING:
    from ...jobs.job import Job


class CapturableRunner:
    """Jobs made ready for a device, with all that steps change there.

    Parameters
    ----------
    jobs : sequence of Job
        Of whole tensors.
    steps : int
        The address of the parameters' step counts, float64.
    scalars : mapping of int to int
        For the `id` of each set of parameters, the address of their scalars, float64.

    Raises
    ------
    ValueError
        A job updates rows, or has gradient noise.

    Attributes
    ----------
    rates : numpy.ndarray, int64, shape (groups, 2)
        Where learning rates are that are on the device, and their bytes; zeros for others.
    scale, skip : int
        The addresses of float32 numbers: what gradients are to be divided by, and whether to do nothing; 0: none.
    """

    def __init__(self, jobs: Sequence[Job], steps: int, scalars: Mapping[int, int]) -> None:
        dense = [job for job in jobs if isinstance(job, DenseJob)]
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
            if not isinstance(job, DenseJob):
                name = job.progress.rule.optimizer
                raise ValueError(f"capturable: found True, expected False: {name} updates rows, which no graph records")
        self._launches = [
            [CapturedLaunch(job, steps, scalars[id(job.progress)]) for _ in ("as they come", "recorded")]
            for job in dense
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


class CapturedLaunch(RunLaunch):
    """A job's table and kernels, with what steps change on the device."""

    def __init__(self, job: DenseJob, steps: int, scalars: int) -> None:
        super().__init__(job)
        self._kind = replace(self._kind, tabled=True)
        self._steps, self._scalars = steps, scalars
        self._memory: driver.Memory | None = None
        self._sent_hyper = b""

    @property
    def has_memory(self) -> bool:
        """True once `allocate` has been called."""
        return self._memory is not None

    def allocate(self, stream: int) -> None:
        """Takes memory, and puts there what stays."""
        job, progress, kind, device = self._job, self._job.progress, self._kind, self._device
        self._make_table(stream)
        tables = [words_of(table) for table in (progress.group, job.members)]
        sizes = [progress.hyper.size, 2 * len(progress.hyper), *map(len, tables)]
        memory = device.allocate(8 * sum(sizes), stream)
        hyper, rates, groups, of_tensors = (memory.address + 8 * np.cumsum([0, *sizes[:-1]])).tolist()
        device.upload(np.concatenate(tables), groups, stream)
        fold = Fold(progress.rule.name, kind)
        tensors, where = len(job.members), self._where
        device.upload(words_of(np.arange(tensors)[job.tensor_of]), where["row_of"], stream)  # each has a row of its own
        self._fold = device.kernel(ptx_of(fold, device.capability), fold.name, 11, THREADS)
        self._fold.arguments[:8] = (
            self._steps, self._scalars, hyper, rates, groups, of_tensors, where["rows"], tensors,
        )  # fmt: skip
        self._kernel_of_runs, _ = self._kernel(kind)
        self._scales = PutScales(device, job.dtype, where["rows"], kind.row_bytes)
        self._scales.allocate(tensors, stream)
        self._stage = self._measure(kind) if self._measured and self._chunks else None
        self._hyper_at, self._memory = hyper, memory

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
        """Puts the fold and the update on a stream; a graph records with them whatever they read."""
        progress, fold = self._job.progress, self._fold
        assert self._memory is not None
        self._memory.used_on(stream)
        if capturing:
            self._send_gradients(stream)
        else:
            self._update_table(stream)
        hyper = np.concatenate([progress.hyper.reshape(-1).view(np.uint64), rates.reshape(-1).view(np.uint64)])
        if capturing or hyper.tobytes() != self._sent_hyper:
            self._device.upload(hyper, self._hyper_at, stream)
            self._sent_hyper = hyper.tobytes()
        fold.arguments[8:10] = divisor, skip
        fold.arguments[10:].view(np.float64)[0] = grad_scale
        fold.launch(-(-len(self._job.members) // THREADS), stream)
        if scale is not None:
            self._scales.launch(stream, scale, len(self._job.members), self._job.members, capturing)
        if self._stage is not None:
            self._stage.measure(stream)
            self._stage.fold(stream)
        if self._chunks:
            self._kernel_of_runs.launch(self._chunks, stream)
