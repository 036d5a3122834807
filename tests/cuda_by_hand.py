"""The kernel that updates runs, launched without the CUDA backend: by Numba's simulator or its own dispatcher.

As a program it compares the simulator's bits with those of the native backend: Numba simulates only if it is told to
before it is imported, and then for the process's whole life.
"""

import ctypes
import types

import numpy as np

from fastopt.backends import native
from fastopt.backends.fold import fold_rows
from fastopt.backends.numba_cuda import kernels
from fastopt.jobs.storage import AVERAGE, DITHER, STOCHASTIC, ZERO_GRADS

from .test_storage_bits import BF16, F4, F8, same, trained


class ByHand:
    """A backend that launches what `kernel_of` gives for a job, with a table for each of its first arguments.

    Parameters
    ----------
    kernel_of : callable
        The kernel of a job.
    threads, chunk : int
        Of a block, and the elements that it updates.
    register : callable
        Is told of each table, which must be memory of the device.
    """

    def __init__(self, kernel_of, threads, chunk, register=lambda table: None):
        self.kernel_of, self.threads, self.chunk, self.register = kernel_of, threads, chunk, register

    def prepare(self, jobs):
        launches = [self._launch_of(job) for job in jobs]

        def run(grad_scale, threads):
            for launch in launches:
                launch(grad_scale)

        return run

    def _launch_of(self, job):
        chunks = -(-np.diff(job.offsets) // self.chunk)
        tables = [job.addresses.T, job.offsets, np.concatenate([[0], np.cumsum(chunks)])]
        tables.append(np.repeat(np.arange(len(chunks), dtype=np.int32), chunks))
        if job.elements is not None:
            tables.append(job.elements)
        tables = [np.ascontiguousarray(table) for table in tables]
        for table in tables:
            self.register(table)
        addresses, offsets, first, run_of, *elements = [table.ctypes.data for table in tables]
        real, kernel = job.dtype.type, self.kernel_of(job)
        seed, decay = (job.storage.seed, job.storage.average_decay) if job.storage is not None else (0, 0.0)

        def launch(grad_scale, tables=tables):
            coefficients, row_of = fold_rows(job, grad_scale)
            assert not row_of.any()
            own = tuple(tuple(map(real, copy)) for copy in coefficients[0])
            kernel[int(chunks.sum()), self.threads](
                addresses, 0, offsets, *(elements or [0]), first, run_of, 0, 0, len(chunks),
                int(job.progress.steps[0]), np.uint64(seed), np.uint64(0),
                real(decay), real(1.0 - decay), real(np.inf), real(0.0), own,
            )  # fmt: skip

        return launch


# ---- as Python, on addresses of the host ----


def load(address, like):
    return np.ndarray((), like, (ctypes.c_char * np.dtype(like).itemsize).from_address(int(address)))[()]


def store(address, value):
    ctypes.memmove(int(address), value.tobytes(), value.nbytes)


def in_own_type(function):
    """A rule's function whose roots are of the type of their argument, as compiled ones are; Python's are float64."""
    names = {**function.__globals__, "sqrt": np.sqrt}
    for name in function.__code__.co_names:
        if isinstance(names.get(name), types.FunctionType):
            names[name] = in_own_type(names[name])
    return types.FunctionType(function.__code__, names, function.__name__)


def simulated(job):
    """The kernel, element by element: all its functions have one set of names, which the simulator makes its own."""
    from numba import cuda
    from numba.cuda import compiler as simulated_compiler

    simulated_compiler._compile_pyfunc_with_fixup = None  # it compiles nothing, and has no such name
    from fastopt.backends.numba_cuda.compiler import KernelSpec, unrolled

    storage, progress = job.storage, job.progress
    kind = KernelSpec(progress.rule.kernel, progress.copies, job.dtype, job.codes, storage.options if storage else 0)
    names = {
        **vars(kernels),
        **kind.bindings((0, 0)),
        "load": load,
        "store": store,
        "varying": lambda number, other: number,
        "THREADS": THREADS,
        "BLOCK_ELEMENTS": BLOCK_ELEMENTS,
    }
    for name, value in names.items():
        if name == "apply" or (isinstance(value, types.FunctionType) and value.__module__ == kernels.__name__):
            names[name] = types.FunctionType(value.__code__, names, name)
    for name in ("read", "write"):
        names[f"{name}_all"] = unrolled(names[name], len(job.codes))
    names["update"] = in_own_type(names["update"])
    names["update_lanes"] = unrolled(names["update_lane"], 1)
    names["update_aligned"] = names["update_any"] = names["update_elements"]
    return cuda.jit(names["update_runs"])


THREADS, BLOCK_ELEMENTS = 8, 64
SIZES = (1, 0, 31, 150)
SIMULATED = [
    ("adam, varied", (F4, F4, F4, 0)),
    ("aggmo, varied", (F4, F4, F4, ZERO_GRADS)),
    ("ftrl, varied", (F4, F4, F4, AVERAGE)),
    ("amsgrad, varied", (F8, F8, F8, 0)),
    ("adamw, varied", (BF16, BF16, BF16, 0)),
    ("momentum, varied", (BF16, BF16, F4, STOCHASTIC | AVERAGE)),
    ("adadelta, varied", (F4, F4, BF16, DITHER)),
]


def main():
    backend = ByHand(simulated, THREADS, BLOCK_ELEMENTS)
    for case, storage in SIMULATED:
        with np.errstate(all="ignore"):
            got = trained(backend, case, storage, SIZES)
        try:
            same(got, trained(native, case, storage, SIZES))
        except AssertionError as error:
            raise AssertionError(f"{case}, {storage}") from error


if __name__ == "__main__":
    main()
