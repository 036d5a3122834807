"""The gate: no rule is surely below 0.85 of its ceiling: ``pytest -n 0 benchmarks/test_gate.py``."""

from __future__ import annotations

import pytest

from fastopt import get_num_threads
from fastopt.bench import gate, machine
from fastopt.bench.peers.base import ELEMENTWISE
from fastopt.bench.rules import Updates
from fastopt.bench.timing import Spread

SIZE = 60_000_000  # far beyond the last-level cache, where what runs most often would keep its arrays
ROUNDS = 15


@pytest.fixture(scope="module")
def updates():
    if not machine.has_ceiling():
        pytest.skip("the native backend is not available")
    return Updates(["native"], get_num_threads(), ROUNDS)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_share_of_the_ceiling(updates, name):
    def measure() -> Spread:
        return updates.measure(name, name, SIZE, "float32", budget=3.0, widest=5)["shares"]["native"]

    share = gate.settle(measure)
    said = f"{name}: {share.mid:.2f} of the ceiling ({share.low:.2f} to {share.high:.2f}), {gate.BOUND} is asked for"
    print(said)
    assert share.high >= gate.BOUND, said
