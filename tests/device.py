"""Arrays on a CUDA device, for tests: of the stub driver, or of this machine's own device with ``pytest --gpu``."""

import gc
from contextlib import contextmanager

import numpy as np

from fastopt import RULES

from .support import VARIED, assert_same_bits, decay_of, default_hyper


class DeviceArray:
    """An array on the device that speaks ``__cuda_array_interface__``, laid out as a test wants it.

    It begins `offset` elements into memory of its own, which ends with it, and neighbours are `step` elements apart.
    """

    def __init__(self, values, offset=0, step=1, read_only=False):
        from numba import cuda

        values = np.asarray(values)
        self.dtype, self.shape, self.read_only = values.dtype, values.shape, read_only
        self.size, self.ndim = values.size, values.ndim
        laid = np.zeros(offset + max(values.size * step - (step - 1), 0), values.dtype)
        laid[offset::step] = values.ravel()
        self._offset, self._step = offset, step
        self.memory = cuda.to_device(laid.view(np.uint8))

    def get(self):
        """The elements, on the host."""
        laid = self.memory.copy_to_host().view(self.dtype) if self.size else np.empty(0, self.dtype)
        return laid[self._offset if self.size else 0 :: self._step].reshape(self.shape)

    def __getitem__(self, index):
        raise AssertionError("fastopt takes arrays by their interface only")

    @property
    def __cuda_array_interface__(self):
        strides = np.zeros(self.shape, self.dtype).strides
        address = self.memory.__cuda_array_interface__["data"][0] + self._offset * self.dtype.itemsize
        return {
            "version": 3,
            "data": (address if self.size else 0, self.read_only),
            "shape": self.shape,
            "strides": None if self._step == 1 else tuple(s * self._step for s in strides),
            "typestr": self.dtype.str,
            "stream": None,
        }


def on_both(arrays, **layout):
    """Copies of arrays on the device, and on the host."""
    return [DeviceArray(a, **layout) for a in arrays], [a.copy() for a in arrays]


def hyper_of(name):
    hyper = {**default_hyper(name), **VARIED[name], **decay_of(name)}
    return {key: value for key, value in hyper.items() if key not in RULES[name].initial}


def assert_equal(on_device, on_host):
    assert_same_bits([a.get() for a in on_device], on_host)


@contextmanager
def without_waiting(gpu):
    """Fail if anything within the block waits for the device."""
    gc.disable()  # Numba's arrays wait when they go
    try:
        before = gpu.synchronizations
        yield
        assert gpu.synchronizations == before
    finally:
        gc.enable()
