"""Time of the host for a step on a CUDA device, on a stub of the driver: ``pytest -n 0 benchmarks/test_cuda.py``.

The stub launches nothing, so that what remains is what Python does. No GPU is needed.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from tests.device import DeviceArray
from tests.ptx import driver

pytest.importorskip("cuda.bindings", reason='numba-cuda is not installed: pip install -e ".[cuda]"')


@pytest.fixture(scope="module")
def gpu():
    try:
        found = driver.install()
    except driver.Unavailable as reason:
        pytest.skip(f"there is no stub CUDA driver: {reason}")
    return found


@pytest.mark.parametrize("way", ["plan.step()", "opt.step(grads)"])
@pytest.mark.parametrize("tensors", [1, 1000])
def test_host_cost_of_a_step(benchmark, gpu, tensors, way):
    params, grads = ([DeviceArray(np.ones(1000, np.float32)) for _ in range(tensors)] for _ in range(2))
    optimizer = fastopt.Adam(params)
    plan = optimizer.bind(grads)
    optimizer.step(grads)
    plan.step()
    gpu.execute = False
    benchmark.group = f"adam, {tensors} tensor{'s' * (tensors > 1)}"
    benchmark(*((plan.step,) if way == "plan.step()" else (optimizer.step, grads)))
    gpu.execute = True
