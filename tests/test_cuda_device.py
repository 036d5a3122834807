"""Tests that need a CUDA device: ``pytest --gpu tests/test_cuda*.py``."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import fastopt
from fastopt import functional

from .support import assert_same_bits

pytestmark = pytest.mark.gpu


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cpus_step(*arrays):
    functional.adam(*arrays, step=1, weight_decay=0.1)
    return arrays


def host(n):
    return [random(n), random(n, 1), np.zeros(n, np.float32), np.zeros(n, np.float32)]


def test_arrays_of_numba():
    from numba import cuda

    there = [cuda.to_device(a) for a in host(5003)]
    functional.adam(*there, step=1, weight_decay=0.1)
    assert_same_bits([a.copy_to_host() for a in there], cpus_step(*host(5003)))


def test_arrays_of_cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: pip install cupy-cuda13x")
    there = [cupy.asarray(a) for a in host(5003)]
    with cupy.cuda.Stream(non_blocking=True) as stream:
        there[1] *= 1  # work that the step has to follow
        functional.adam(*there, step=1, weight_decay=0.1)
        stream.synchronize()
    assert_same_bits([cupy.asnumpy(a) for a in there], cpus_step(*host(5003)))
    optimizer = fastopt.Adam([there[0]], state_dtype="8bit")
    optimizer.step([there[1]])
    assert type(optimizer.state[0]["exp_avg"]) is cupy.ndarray


def test_a_torch_stream_orders_a_step_behind_what_makes_its_gradient():
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[torch]"')
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    n = 20_000_000
    there = [torch.from_numpy(a).cuda() for a in host(n)]
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream()):
            there[1].zero_()
            torch.cuda._sleep(50_000_000)  # cycles, within which a step that does not wait would be over
            there[1].fill_(1.0)
            before = there[0].clone()
            functional.sgd(there[0], there[1], step=1, lr=0.5)
            torch.cuda.current_stream().synchronize()
            assert torch.equal(there[0], before - 0.5)


def test_more_than_2_to_the_31_elements():
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[torch]"')
    n = 2**31 + 4099
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 2 * n * 2 + 2**30:
        pytest.skip("there is no CUDA device that torch sees with 10 GB free")
    param = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    grad = torch.ones(n, dtype=torch.bfloat16, device="cuda")
    functional.sgd(param, grad, step=1, lr=0.5)
    for at in (0, 4095, 2**31 - 1, 2**31, n - 1):
        assert float(param[at]) == -0.5
    assert int((param != -0.5).sum()) == 0
    assert fastopt.global_norm(grad) == pytest.approx(n**0.5)


def test_several_devices():
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[torch]"')
    if not torch.cuda.is_available() or torch.cuda.device_count() < 2:
        pytest.skip("there are not two CUDA devices that torch sees")
    there = [torch.from_numpy(a).to("cuda:1") for a in host(5003)]
    with torch.cuda.device(0):
        functional.adam(*there, step=1, weight_decay=0.1)
    assert_same_bits([a.cpu().numpy() for a in there], cpus_step(*host(5003)))
    there[1] = there[1].to("cuda:0")
    with pytest.raises(ValueError, match="grad: found an array on cuda:0, expected one on cuda:1 as param is"):
        functional.adam(*there, step=2)


SANITIZED = """
import numpy as np, fastopt
from numba import cuda
from fastopt import functional, RowSparse
rng = np.random.default_rng(0)
make = lambda *s: cuda.to_device(rng.standard_normal(s).astype("f4"))
for n in (1, 255, 5003):
    p, g, m, v = (make(n) for _ in range(4))
    functional.adam(p, g, m, v, step=1)
    functional.adam(p[1:], g[1:], m[1:], v[1:], step=1)
p, v, a = make(100, 50), make(300, 50), make(100)
rows = cuda.to_device(rng.integers(0, 100, 300))
functional.rowwise_adagrad(p, RowSparse(rows, v), a, step=1, lr=0.1)
p = make(5000)
optimizer = fastopt.Adam([p], state_dtype="8bit")
for how in ({"max_norm": 1.0}, {"clip_norm": 1.0, "skip_nonfinite": True}, {"skip_nonfinite": True}):
    optimizer.step([make(5000)], **how)
cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on the path; it comes with the CUDA toolkit")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "3", sys.executable, "-c", SANITIZED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if "not supported" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
