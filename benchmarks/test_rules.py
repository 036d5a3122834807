"""Every rule on every CPU backend, and a step over many small tensors: ``pytest -n 0 benchmarks/test_rules.py``."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt.bench import peers, tensors

SIZE = 1_000_000


def require(backend: str) -> None:
    status = fastopt.available_backends()[backend]
    if status != "available":
        pytest.skip(status)


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, SIZE), np.float32)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("name", [name for name, rule in fastopt.RULES.items() if not rule.by_row])
def test_rule(benchmark, data, name, backend):
    require(backend)
    benchmark.group = name
    benchmark.pedantic(peers.fastopt_peer(fastopt.RULES[name], backend, *data).step, rounds=50, warmup_rounds=2)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_tensors(benchmark, backend):
    require(backend)
    benchmark.group = "adam, 1000 tensors of 10"
    params, grads = tensors.tensors_of(1000, 10)
    benchmark(fastopt.Adam(params, backend=backend).bind(grads).step)
