"""Forks, threads, signals, environment, caches: what a process does around an update."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import fastopt
from fastopt import hogwild, settings
from fastopt.backends import native
from fastopt.rules import MATRIX_RULES

BIG = 400_000


def python(code, **environment):
    """Runs code in a new process and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_more_than_it_must():
    heavy = ("numba", "torch", "scipy", "matplotlib", "sklearn", "rich", "llvmlite", "pycparser")
    assert python(f"import fastopt, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def succeeds_in_a_forked_child(work):
    """Whether a function returns True in a forked child, which must not hang."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(2)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    pytest.fail("the child hangs")


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_a_forked_child_can_update(backend):
    p, g = np.ones(BIG, "f4"), np.ones(BIG, "f4")
    fastopt.functional.sgd(p, g, step=1, lr=0.5, threads=2, backend=backend)  # threads have started

    def update():
        fastopt.functional.sgd(p, g, step=2, lr=0.5, threads=2, backend=backend)
        return not p.any()

    assert succeeds_in_a_forked_child(update)
    assert (p == 0.5).all()


def test_a_forked_child_has_a_team_for_rows():
    """Which meets while it orders the lookups, and adds up those of one row that very many name."""
    rng = np.random.default_rng(0)
    indices = np.where(rng.random(60_000) < 0.3, 7, rng.integers(0, 3000, 60_000))
    grad = fastopt.RowSparse(indices, rng.standard_normal((indices.size, 8), "f4"))

    def table(threads):
        param = np.zeros((3000, 8), "f4")
        optimizer = fastopt.Adagrad(param, threads=threads, backend="native")
        for _ in range(3):
            optimizer.step(grad)
        return param

    expected = table(2)
    assert succeeds_in_a_forked_child(lambda: all((table(threads) == expected).all() for threads in (1, 2, 3, 8)))


FORKED_LATE = """
import os, signal
import numpy as np
import torch

x = torch.ones(4_000_000)
torch.set_num_threads(2)
x.mul_(2)  # torch's threads have started, which are OpenMP's
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    import fastopt
    p, g = np.ones(400_000, "f4"), np.ones(400_000, "f4")
    fastopt.functional.sgd(p, g, step=1, lr=1.0, threads=2)
    os._exit(int(p.any()))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_that_torch_threads_were_forked_from_can_update():
    """The child loads the library itself, and cannot have seen that it was forked."""
    pytest.importorskip("torch")
    assert python(FORKED_LATE).strip() == "0"


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_calls_from_several_threads_at_once(backend):
    want = np.ones(BIG, "f4")
    m, v = np.zeros((2, BIG), "f4")
    g = np.linspace(-1, 1, BIG, dtype="f4")
    for t in range(1, 6):
        fastopt.functional.adam(want, g, m, v, step=t, threads=1)
    results, errors = {}, []

    def work(k):
        try:
            p = np.ones(BIG, "f4")
            optimizer = fastopt.Adam(p, threads=2, backend=backend)
            for _ in range(5):
                optimizer.step(g)
            results[k] = p
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len(results) == 6
    for p in results.values():
        np.testing.assert_array_equal(p, want)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_an_interrupt_leaves_whole_steps(backend):
    """However a run is interrupted, parameters, states and step count are those of one and the same step."""
    out = python(
        f"""
import os, signal, threading, time
import numpy as np, fastopt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
p = [np.zeros({BIG}, "f4"), np.zeros(7, "f8")]
g = [np.ones({BIG}, "f4"), np.ones(7, "f8")]
opt = fastopt.SGD(p, lr=1.0, momentum=0.5, backend="{backend}", threads=2)
opt.step(g)
armed = threading.Event()
def interrupt():
    while True:  # one signal for each time that the loop below is entered: two at once would be one
        armed.wait()
        armed.clear()
        time.sleep(0.013)
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
caught = 0
while caught < 20:
    try:
        armed.set()
        for _ in range(10**6):
            opt.step(g)
    except KeyboardInterrupt:
        caught += 1
        b = v = 0.0
        steps = int(opt.state[0]["step"])
        for k in range(min(steps, 60)):
            b = 0.5 * b + 1.0
        assert steps == int(opt.state[1]["step"]), (steps, opt.state[1])
        for s in opt.state:
            assert (s["momentum_buffer"] == s["momentum_buffer"].flat[0]).all()
        assert (p[0] == p[0][0]).all() and (p[1] == p[1][0]).all()
        assert abs(float(p[1][0]) + 2 * steps - 2 + 2 * 0.5**steps) < 1e-6 * steps, (p[1][0], steps)
print("whole", caught)
"""
    )
    assert out.strip() == "whole 20"


def test_an_interrupt_leaves_whole_steps_of_parameters_that_are_there_twice():
    pytest.importorskip("torch")
    out = python(
        """
import os, signal, warnings
import torch
from fastopt import torch as optim
from fastopt.binding.binding import Binding
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
warnings.simplefilter("ignore")
p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
p.grad = q.grad = torch.ones(4)
optim.SGD([p, p], lr=0.25).step()
runner_with = Binding.runner_with
def interrupted(self, *arguments):
    found = runner_with(self, *arguments)
    def run(*arguments):
        found(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
    return run
Binding.runner_with = interrupted
try:
    optim.SGD([q, q], lr=0.25).step()
except KeyboardInterrupt:
    print(p.tolist()[0], torch.equal(p, q))
"""
    )
    assert out.split() == ["0.5", "True"]


def test_an_interrupt_leaves_whole_steps_of_matrices():
    """Between the parts of a step no interrupt is seen, and after it each is."""
    out = python(
        """
import os, signal
import numpy as np, fastopt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
for rule in fastopt.rules.MATRIX_RULES.values():
    def interrupted(*arguments, middle=rule.update):
        os.kill(os.getpid(), signal.SIGINT)
        return middle(*arguments)
    cls = getattr(fastopt, rule.optimizer)
    p, q = ([np.eye(n, dtype="f4") for n in (3, 5)] for _ in range(2))
    g = [0.1 * a + 0.01 for a in p]
    cls(p).step(g)
    object.__setattr__(rule, "update", interrupted)
    opt = cls(q)
    try:
        opt.step(g)
    except KeyboardInterrupt:
        assert all((a == b).all() for a, b in zip(p, q)) and [int(s["step"]) for s in opt.state] == [1, 1]
        print(rule.name)
"""
    )
    assert out.split() == list(MATRIX_RULES)


def test_an_interrupt_leaves_whole_steps_of_rows_and_of_clipped_gradients():
    """None is seen while gradients of rows are zeroed, nor while parameters' factors of `clip_norm` are set."""
    out = python(
        """
import os, signal
import numpy as np, fastopt
from fastopt.binding import binding
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
def interrupting(function):
    def call(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return function(*arguments)
    return call
def step(places, **options):
    p = [np.ones((3, 2), "f4") for _ in range(2)]
    values = [np.ones((n, 2), "f4") for n in (2, 3)]
    g = [fastopt.RowSparse(np.arange(len(x)), x) for x in values]
    opt = fastopt.SGD(p, lr=0.5)
    kept = [(place, name, getattr(place, name)) for place, name in places]
    for place, name, function in kept:
        setattr(place, name, interrupting(function))
    try:
        opt.step(g, **options)
    except KeyboardInterrupt:
        print("interrupted", end=" ")
    for place, name, function in kept:
        setattr(place, name, function)
    told = [x.tolist() for x in p], [int(s["step"]) for s in opt.state], [x.tolist() for x in values]
    opt.step([np.ones((3, 2), "f4")] * 2)
    return *told, [x.tolist() for x in p]
zeroing, clipping = [(binding, "set_to_zero")], [(binding.Binding, "_put_factors")]
print(step(zeroing, zero_grads=True) == step([], zero_grads=True))
print(step(clipping, clip_norm=0.1) == step([], clip_norm=0.1))
"""
    )
    assert out.split() == ["interrupted", "True"] * 2


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there are no such signals here")
@pytest.mark.parametrize("backend", ["native", "numba"])
def test_an_interrupt_ends_a_process_that_does_not_catch_it(backend):
    code = f"""
import os, signal, threading, time
import numpy as np, fastopt
signal.signal(signal.SIGINT, signal.SIG_DFL)
p, g = np.zeros({BIG}, "f4"), np.ones({BIG}, "f4")
opt = fastopt.SGD(p, lr=1.0, backend="{backend}", threads=2)
opt.step(g)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
end = time.monotonic() + 20
while time.monotonic() < end:
    opt.step(g)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=100, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr


STEPS = """
import atexit, resource, sys
import numpy as np, fastopt
p, g, table = np.zeros({n}, "f4"), np.ones({n}, "f4"), np.zeros((20000, 50), "f4")
rows = fastopt.RowSparse(np.arange(20000), np.ones((20000, 50), "f4"))
fastopt.set_num_threads(1)
opt = fastopt.SGD([p, table], lr=1.0, backend="{backend}")
opt.step([g, rows])
fastopt.set_num_threads(2)
def step():
    opt.step([g, rows])
    print(p.min(), p.max(), table.min(), table.max(), *(int(s["step"]) for s in opt.state), flush=True)
"""


LIMITED = """
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, resource.RLIM_INFINITY))
step()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as on Linux")
@pytest.mark.parametrize("backend", ["native", "numba"])
def test_without_threads_to_be_had_a_step_is_done_by_one(backend):
    """Here memory for their stacks is missing."""
    out = python(
        STEPS.format(n=BIG, backend=backend)
        + LIMITED.format(room=1_900_000)
        + """
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
step()
""",
        OMP_STACKSIZE="",
    )
    assert out.splitlines() == ["-2.0 -2.0 -2.0 -2.0 2 2", "-3.0 -3.0 -3.0 -3.0 3 3"]


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_a_step_at_exit(backend):
    out = python(STEPS.format(n=BIG, backend=backend) + "\natexit.register(step)")
    assert out.splitlines() == ["-2.0 -2.0 -2.0 -2.0 2 2"]


def test_the_environment_chooses():
    code = "import fastopt; from fastopt.backends import native; print(native.isa(), fastopt.get_num_threads())"
    assert python(code, FASTOPT_ISA="sse2", FASTOPT_NUM_THREADS="3").split() == [native.isa_supported()[0], "3"] or (
        "sse2" not in native.isa_supported()
    )
    assert python(code, OMP_NUM_THREADS="1", FASTOPT_NUM_THREADS="").split()[1] == "1"
    code = "import fastopt; fastopt.show_config()"
    assert "numba" in python(code, FASTOPT_BACKEND="numba").splitlines()[-1]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *[("FASTOPT_NUM_THREADS", value) for value in ("0", "-1", "abc", "4,2", "1.5", "1025", "9" * 5000, "٣")],
        *[("FASTOPT_BACKEND", value) for value in ("gpu", "Numba", "numba cuda")],
        *[("FASTOPT_ISA", value) for value in ("mmx", "AVX2", "native")],
    ],
)
def test_a_wrong_environment_is_told_by_the_first_use(variable, value):
    code = """
import fastopt, numpy as np
for _ in range(2):
    try:
        fastopt.SGD(np.ones(3), lr=1.0).step(np.ones(3))
    except ValueError as error:
        print(error)
"""
    first, second = python(code, **{variable: value}).splitlines()
    assert first == second
    assert first.startswith(f"{variable}: found '{value[:9]}")
    assert "expected" in first
    if value in ("Numba", "numba cuda", "AVX2"):
        assert "did you mean" in first


@pytest.fixture
def omp(monkeypatch):
    """Sets OMP_NUM_THREADS on a machine of 8 processors; returns the number of threads and what was said."""

    def threads(value):
        monkeypatch.delenv("FASTOPT_NUM_THREADS", raising=False)
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        monkeypatch.setattr(settings, "cpus", lambda: 8)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            return settings._environment_threads(), [str(warning.message) for warning in told]

    return threads


@pytest.mark.parametrize("value", ["3", "+3", " 3 ", "3,4", "3, 2,1", "003", "3,1000000"])
def test_what_openmp_reads_is_read_as_there(omp, value):
    assert omp(value) == (3, [])


@pytest.mark.parametrize("value", ["", " ", "1000000", "999999999999999999"])
def test_threads_are_no_more_than_processors(omp, value):
    assert omp(value) == (8, [])


@pytest.mark.parametrize("value", ["0", "abc", "-2", "4,", ",4", "4;2", "4,0", "1.5", "0x2", "9" * 30, "9" * 5000, "٣"])
def test_what_openmp_ignores_is_ignored_and_named(omp, value):
    threads, (told,) = omp(value)
    assert threads == 8
    assert told.startswith(f"OMP_NUM_THREADS: found '{value[:9]}")
    assert len(told) < 300


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "900000 100000\n", "a/b/cpu.max": "100000 50000\n", "ab/cpu.max": "1 1"}, 2),
        ("0::/elsewhere\n", {"cpu.max": "200000 100000\n"}, 2),
        ("4:memory:/\n3:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 3),
        ("3:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 8),
        ("0::/\n", {"cpu.max": "\n"}, 8),
        ("0::/\n", {"cpu.max": "100000 0\n"}, 8),
        ("nothing of the kind\n", {}, 8),
        (None, {}, 8),
    ],
)
def test_threads_are_no_more_than_control_groups_give_time_for(monkeypatch, tmp_path, own, files, expected):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(settings, "OWN_GROUPS", str(tmp_path / "own"))
    monkeypatch.setattr(settings, "GROUPS", str(tmp_path / "groups"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert settings.cpus() == expected


def test_the_import_says_what_it_ignores():
    code = """
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import fastopt
    fastopt.get_num_threads(), fastopt.get_num_threads()
(warning,) = told
print(warning.message)
"""
    out = python(code, OMP_NUM_THREADS="abc", FASTOPT_NUM_THREADS="")
    assert out.startswith("OMP_NUM_THREADS: found 'abc', expected")


def test_number_of_threads():
    before = fastopt.get_num_threads()
    try:
        fastopt.set_num_threads(3)
        assert fastopt.get_num_threads() == 3
        for bad, error in ((0, ValueError), (10**9, ValueError), (1.5, TypeError), ("2", TypeError)):
            with pytest.raises(error, match="n: found"):
                fastopt.set_num_threads(bad)
    finally:
        fastopt.set_num_threads(before)


def test_use_backend():
    p, g = np.ones(4), np.ones(4)
    optimizer = fastopt.SGD(p, lr=0.1)
    with fastopt.use_backend("numba"):
        assert optimizer.bind(g)._bound.backend.__name__.endswith("numba_cpu")
        optimizer.step(g)
        with fastopt.use_backend("native"):
            optimizer.step(g)
    assert optimizer.bind(g)._bound.backend.__name__.endswith("native")
    np.testing.assert_allclose(p, 0.8)
    with pytest.raises(ValueError, match="name: found 'cuda'"):
        fastopt.use_backend("cuda")


def test_a_backend_is_chosen_for_the_thread_or_task():
    def chosen(*_):
        optimizer = fastopt.SGD(np.ones(4), lr=0.1)
        seen.append(optimizer.bind(np.ones(4))._bound.backend.__name__.rpartition(".")[2])
        return 0.0

    async def task(name):
        with fastopt.use_backend(name):
            await asyncio.sleep(0)  # the other one chooses
            chosen()

    async def both():
        await asyncio.gather(task("numba"), task("native"))

    seen = []
    with fastopt.use_backend("numba"):
        thread = threading.Thread(target=chosen)
        thread.start()
        thread.join()
        assert seen == ["native"]
        seen.clear()
        hogwild.run(chosen, 4, [], lr=1.0, workers=2)  # its threads are for what was chosen here
        assert set(seen) == {"numba_cpu"}
        fastopt.use_backend("native")
        chosen()
        assert seen[-1] == "native"
    seen.clear()
    asyncio.run(both())
    chosen()
    assert seen == ["numba_cpu", "native", "native"]


@pytest.mark.slow
def test_numba_kernels_are_cached_across_processes(tmp_path):
    code = """
import numpy as np, fastopt
from fastopt.backends.numba_cpu import compiler, dense
for name, states in (("sgd", 0), ("adam", 2)):
    arrays = [np.ones(9, "f4") for _ in range(2 + states)]
    getattr(fastopt.functional, name)(*arrays, step=1, backend="numba")
    print(name, compiler.tile_update(name, 1, np.dtype("f4")).cache_hits)
stats = compiler.kernel(dense.run_kernel).stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["sgd", "0", "adam", "0", "0", "1"]
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["sgd", "1", "adam", "1", "1", "0"]


WITHOUT_LIBRARY = """
import sys, warnings
sys.modules["fastopt.backends.native._native"] = None
import fastopt, numpy as np
warnings.simplefilter("always")
"""


def test_a_missing_c_extension_is_told_and_numba_steps_in():
    code = f"""{WITHOUT_LIBRARY}
print(fastopt.available_backends()["native"])
p = np.ones(3)
with warnings.catch_warnings(record=True) as told:
    fastopt.SGD(p, lr=1.0).step(np.ones(3))
    fastopt.functional.sgd(p, np.zeros(3), step=1, lr=1.0)
assert not p.any()
print(len(told), told[0].category.__name__, told[0].message)
fastopt.show_config()
"""
    out = python(code)
    reason, told = out.splitlines()[:2]
    assert "C compiler" in reason
    assert "pip install" in reason
    assert told.startswith("1 RuntimeWarning")
    assert reason in told


def test_a_library_of_other_sources_is_not_used():
    code = """
from fastopt.backends import _sources
_sources.digest = lambda: "of other sources"
import fastopt
print(fastopt.available_backends()["native"])
"""
    reason = python(code)
    assert "built from other sources" in reason
    assert "pip install" in reason


def test_numba_asked_for_is_no_surprise():
    step = "fastopt.SGD(np.ones(3), lr=1.0{}).step(np.ones(3))\n"
    asked = step.format(", backend='numba'") + "with fastopt.use_backend('numba'):\n    " + step.format("")
    silent = f"{WITHOUT_LIBRARY}\nwarnings.simplefilter('error')\n"
    python(f"{silent}{asked}fastopt.available_backends(); fastopt.show_config()")
    python(silent + step.format(""), FASTOPT_BACKEND="numba")
