"""Every rule by every backend, and by others who are here: ``pytest -n 0 benchmarks/test_rules.py``."""

from __future__ import annotations

import pytest

from fastopt import RULES, get_num_threads
from fastopt.bench.peers import COMPETITORS, values
from fastopt.bench.peers.base import ELEMENTWISE, Task
from fastopt.bench.section import Skip

SIZE = 1_000_000
WHO = ("native", "numba", "torch-fused", "torch-foreach")


@pytest.fixture(scope="module")
def arrays():
    return values(SIZE, "float32")


@pytest.mark.parametrize(
    ("name", "who"), [(name, who) for name in ELEMENTWISE for who in WHO if name in COMPETITORS[who].rules]
)
def test_rule(benchmark, arrays, name, who):
    benchmark.group = f"{name}, {SIZE:,} float32"
    try:
        peer = COMPETITORS[who].build(Task(RULES[name], *arrays, get_num_threads()))
    except Skip as reason:
        pytest.skip(str(reason))
    benchmark.pedantic(peer.step, rounds=50, warmup_rounds=2)
