"""The kernel that updates runs has the native backend's bits in Numba's simulator too, where it is Python."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")


def test_simulated_bits():
    command = [sys.executable, "-m", "tests.cuda_by_hand"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
