"""Numba's own dispatcher takes our kernels: its arguments are packed as ours are, and the bits are the same."""

from functools import partial

import numpy as np
import pytest

from fastopt.backends import native

from .test_storage_bits import BF16, F4, fill, job_of, make_arrays, same, trained

pytestmark = pytest.mark.stub_driver
pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from fastopt.jobs.storage import DITHER, STOCHASTIC, ZERO_GRADS  # noqa: E402
from fastopt.rules import RULES  # noqa: E402

from .support import CASES  # noqa: E402

SIZES = (5000, 1, 0, 31)


@pytest.mark.parametrize(
    ("case", "storage"),
    [
        ("adam, varied", (F4, F4, F4, 0)),
        ("aggmo, varied", (F4, F4, F4, ZERO_GRADS)),
        ("momentum, varied", (BF16, BF16, BF16, STOCHASTIC | DITHER)),
    ],
)
def test_dispatched_bits(gpu, monkeypatch, case, storage):
    from numba import cuda
    from numba.cuda.cudadrv import nvvm

    from fastopt.backends.numba_cuda.compiler import KernelSpec
    from fastopt.backends.numba_cuda.kernels import BLOCK_ELEMENTS, THREADS

    from .cuda_by_hand import ByHand

    if not hasattr(gpu, "record_numba"):
        pytest.skip("arrays of the host stand for the device's: needs the stub driver")
    gpu.record_numba()
    monkeypatch.setattr(nvvm, "compile_ir", partial(nvvm.compile_ir, fma=False))  # which cuda.jit has no option for
    registered = []

    def register(array):
        if array.nbytes:
            gpu.register(array, f"array {len(registered)}")
            registered.append(array)

    def kernel_of(job):
        storage, progress = job.storage, job.progress
        options = storage.options if storage else 0
        kind = KernelSpec(progress.rule.kernel, progress.copies, job.dtype, job.codes, options)
        capability = cuda.get_current_device().compute_capability
        return cuda.jit(kind.bound(capability), lto=False)  # the linker would contract

    name, hyper = CASES[case]
    tensors = [make_arrays(RULES[name], hyper, storage, n) for n in SIZES]
    for tensor in tensors:
        for array in tensor:
            register(array)
    runner = ByHand(kernel_of, THREADS, BLOCK_ELEMENTS, register).prepare(
        job_of(RULES[name], hyper, tensors, storage[3])
    )
    try:
        for step in (1, 2):
            fill([tensor[1] for tensor in tensors], step)
            runner(0.5, 1)
        gpu.check()
    finally:
        for array in registered:
            gpu.unregister(array)
    assert len(gpu.launches) == 2
    got = [np.asarray(array) for tensor in tensors for array in tensor]
    same(got, trained(native, case, storage, SIZES, steps=2))
