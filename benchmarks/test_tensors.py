"""Time of a step of many tensors, of states of fewer bytes, and of rows: ``pytest -n 0 benchmarks/test_tensors.py``."""

from __future__ import annotations

import pytest

import fastopt
from fastopt.bench import precision, sparse, tensors
from fastopt.bench.peers import values

SIZE = 1_000_000


def require(backend: str) -> None:
    status = fastopt.available_backends()[backend]
    if status != "available":
        pytest.skip(status)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("name", tensors.SETS)
def test_tensors(benchmark, name, backend):
    require(backend)
    benchmark.group = f"adam, {name}"
    params, grads = tensors.tensors_of(tensors.SETS[name])
    benchmark(fastopt.Adam(params, backend=backend).bind(grads).step)


@pytest.mark.parametrize("case", precision.CASES)
def test_storage(benchmark, case):
    require("native")
    benchmark.group = f"adam, {SIZE:,} parameters, by storage"
    kind, states = precision.CASES[case]
    param, grad = values(SIZE, kind)
    benchmark.pedantic(fastopt.Adam(param, state_dtype=states).bind(grad).step, rounds=50, warmup_rounds=2)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("name", sparse.CASES)
def test_rows(benchmark, name, backend):
    require(backend)
    benchmark.group = f"{name}, {sparse.LOOKUPS:,} rows of {sparse.WIDTH}"
    step, _ = sparse.Measure(fastopt.get_num_threads(), 1, [backend]).ours(name, backend)
    benchmark.pedantic(step, rounds=30, warmup_rounds=2)
