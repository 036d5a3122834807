"""Batch normalization beside torch's, forward and backward: ``pytest -n 0 benchmarks/test_batch_norm.py``."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt.training import BatchNorm

SHAPE = (1024, 1024)


@pytest.mark.parametrize("library", ["fastopt", "torch"])
@pytest.mark.parametrize("threads", [1, fastopt.get_num_threads()])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", ["forward", "backward"])
def test_batch_norm(benchmark, what, dtype, threads, library):
    benchmark.group = f"{what}, {SHAPE[0]} x {SHAPE[1]}, {dtype}, threads: {threads}"
    x, dy = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(dtype)
    if library == "fastopt":
        norm = BatchNorm(SHAPE[1], dtype=dtype, threads=threads)
        norm.forward(x)
        norm.backward(dy)
        benchmark(*((norm.forward, x) if what == "forward" else (norm.backward, dy)))
        return
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    module = torch.nn.BatchNorm1d(SHAPE[1], dtype=getattr(torch, dtype))
    there = torch.from_numpy(x).requires_grad_()
    if what == "forward":
        with torch.no_grad():
            benchmark(module, there)
    else:
        y, inputs = module(there), (there, *module.parameters())
        benchmark(torch.autograd.grad, y, inputs, torch.from_numpy(dy), retain_graph=True)
    torch.set_num_threads(before)
