"""Threads of the C library: its own, and OpenMP's where another library has loaded their runtime."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted, and OpenMP is found, as on Linux")

#: What a new process runs first: `run` calls a function for parts of [0, n), in threads that `count` counts.
BEGIN = """
import ctypes, os, resource, sys, threading, time
import numpy as np
import fastopt
from fastopt import functional
from fastopt.backends import native
i64, i32 = ctypes.c_int64, ctypes.c_int32
form = ctypes.CFUNCTYPE(None, ctypes.c_void_p, i64, i64)
run_parts = ctypes.CFUNCTYPE(None, form, ctypes.c_void_p, i64, i64, i64, i64, i32)(native.run_parts)
def run(part, n, grain=1, share=1 << 40, align=1, threads=2):
    run_parts(form(lambda _, begin, end: part(begin, end)), None, n, grain, share, align, threads)
def count():
    return len(os.listdir("/proc/self/task"))
def step(n, threads, times=1):
    for _ in range(times):
        functional.sgd(np.ones(n), np.ones(n), step=1, lr=0.1, threads=threads, backend="native")
"""
OPENMP = "\nomp = ctypes.CDLL('libgomp.so.1')\n"


def python(code, **environment):
    """Run code behind BEGIN in a new process; return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code],
        env={**os.environ, "OMP_STACKSIZE": "", "GOMP_STACKSIZE": "", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def openmp():
    """The line that loads OpenMP's runtime."""
    if python("try: ctypes.CDLL('libgomp.so.1')\nexcept OSError: print('missing')"):
        pytest.skip("OpenMP's runtime, libgomp.so.1, is not installed")
    return OPENMP


@pytest.fixture(params=["own", "openmp"])
def runtime(request):
    """The line that loads what the threads are of."""
    return request.getfixturevalue("openmp") if request.param == "openmp" else ""


def test_each_element_is_done_once_in_parts_that_begin_where_they_may(runtime):
    out = python(
        runtime
        + """
for threads in 1, 2, 3, 80:
    for grain, share, align in (1, 1, 1), (1, 1000, 1), (4, 64, 1), (5, 7, 64), (64, 1000, 64):
        for n in 0, 1, 63, 64, 65, 127, 129, 999:
            taken = []
            run(lambda begin, end: taken.append((begin, end)), n, grain, share, align, threads)
            taken.sort()
            parts = [part for part in taken if part[0] < part[1]]
            assert [b for b, _ in parts] + [n] == [0] * (n > 0) + [e for _, e in parts] + [0] * (n == 0), taken
            assert all(begin % align == 0 for begin, _ in parts), taken
            if threads == 1 or n < 2 * grain:
                assert len(taken) == 1
print("done")
"""
    )
    assert out == ["done"]


def test_two_threads_share_the_work(runtime):
    code = """
def part(begin, end):
    by.add(threading.get_ident())
    time.sleep(0.001)
for _ in range(70):
    by = set()
    run(part, 400_000, 50_000)
    if len(by) == 2:
        break
print(len(by), count() > before)
"""
    assert python(runtime + "before = count()\n" + code) == ["2 True"]


def test_openmp_is_found_as_soon_as_it_is_there(openmp):
    code = (
        """
def in_openmp():
    found = []
    for _ in range(300):  # a caller that has waited leaves some to the pool
        run(lambda begin, end: found.append(omp.omp_in_parallel()), 400_000)
    return any(found)
step(400_000, 2)
"""
        + openmp
    )
    assert python(code + "print(in_openmp())") == ["True"]


def test_a_forked_child_has_threads_of_its_own(runtime):
    """Though its parent's were OpenMP's, which nobody can start anew in a child."""
    code = """
step(400_000, 3, 3)
pid = os.fork()
if pid == 0:
    before = count()
    step(400_000, 3)
    os._exit(0 if (before, count()) == (1, 3) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert python(runtime + code) == ["0"]


def test_a_second_caller_does_not_wait_for_the_first():
    code = """
busy, free, done = threading.Event(), threading.Event(), []
def hold(begin, end):
    busy.set()
    free.wait(60)
first = threading.Thread(target=run, args=(hold, 400_000))
first.start()
busy.wait(60)
run(lambda begin, end: done.append((end - begin, threading.get_ident())), 400_000)
print(first.is_alive(), sum(n for n, _ in done), {ident for _, ident in done} == {threading.get_ident()})
free.set()
first.join()
"""
    assert python(code) == ["True 400000 True"]


def test_small_work_wakes_no_threads():
    code = """
def others(n):
    found = set()
    for _ in range(20):
        time.sleep(0.02)
        run(lambda begin, end: found.add(threading.get_ident()), n, 100)
    return len(found - {threading.get_ident()})
step(400_000, 2)
print(others(700) < others(70_000) == 1)
"""
    assert python(code) == ["True"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
def test_threads_use_the_callers_processors():
    code = """
def allowed(task):
    return os.sched_getaffinity(task)
old = {int(task) for task in os.listdir("/proc/self/task")}
step(400_000, 2)
(task,) = {int(task) for task in os.listdir("/proc/self/task")} - old
own = os.sched_getaffinity(0)
print(len(own - allowed(task)))  # not where the caller is
for cpu in sorted(own)[:2]:
    os.sched_setaffinity(0, {cpu})
    step(400_000, 2)
    print(allowed(task) == {cpu})
os.sched_setaffinity(0, own)
step(400_000, 2)
print(len(own - allowed(task)), allowed(task) < own)
"""
    assert python(code) == ["1", "True", "True", "1 True"]


def test_who_waits_long_for_openmp_has_the_pool(openmp):
    """As beside others who compute, where a thread may not get a processor for a while."""
    code = """
caller, others, within = threading.get_ident(), threading.Event(), []
def part(begin, end):
    within.append(omp.omp_in_parallel())
    if threading.get_ident() != caller:
        others.set()
        time.sleep(0.05)
    elif len(within) == 1:
        others.wait(0.02)
def in_openmp():
    within.clear()
    others.clear()
    run(part, 2)
    return any(within)
for _ in range(100):
    if in_openmp() and not any(in_openmp() for _ in range(4)):
        break
else:
    print("it has not left OpenMP")
print(any(in_openmp() for _ in range(5000)))
"""
    assert python(openmp + code) == ["True"]


def test_a_step_has_the_threads_that_it_is_given(runtime):
    """None for little work, and no more than were asked for. Beside OpenMP's there can be the pool's."""
    out = python(
        runtime
        + """
def started(n, threads):
    step(n, threads, 3)
    return count() - before
def rows(n, threads):
    gradient = fastopt.RowSparse(np.arange(n), np.ones((n, 64)))
    for _ in range(3):
        functional.sgd(np.ones((n, 64)), gradient, step=1, lr=0.1, threads=threads, backend="native")
    return count() - before
before = count()
print(started(1000, 4), started(400_000, 1), rows(10, 4), rows(8000, 1))
print(started(400_000, 2), rows(8000, 3), started(400_000, 4), started(1000, 8), started(400_000, 5))
"""
    )
    none, found = [list(map(int, line.split())) for line in out]
    assert none == [0, 0, 0, 0]
    expected = [1, 2, 3, 3, 4]
    assert found == expected if not runtime else all(k <= n <= 2 * k for k, n in zip(expected, found, strict=True))


#: A step where there is so much more memory to be had; prints what became of it, and how many threads it started.
LIMITED = """
p, g = np.zeros(400_000), np.ones(400_000)
before = count()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, resource.RLIM_INFINITY))
functional.sgd(p, g, step=1, lr=1.0, threads={threads}, backend="native")
print(p.min(), p.max(), count() - before)
"""


def test_a_step_is_done_by_those_threads_that_are_to_be_had(runtime):
    """Here memory for their stacks, 8 MB each, is missing."""
    assert python(runtime + LIMITED.format(room=13_000_000, threads=8)) == ["-1.0 -1.0 1"]


@pytest.mark.parametrize(
    ("variable", "size", "started"),
    [
        *[("OMP_STACKSIZE", size, 0) for size in ("64M", "65536", " 65536 K ", "67108864b", "17179869183G")],
        *[("OMP_STACKSIZE", size, 1) for size in ("4M", "4096", "64x", "M", "17179869185G")],
        ("GOMP_STACKSIZE", "64M", 0),
    ],
)
def test_openmps_threads_are_to_be_had_with_the_stacks_that_they_will_have(openmp, variable, size, started):
    """There is room for one of 8 MB, the default, and none of 64 MB. OpenMP ends a process where there is no room."""
    out = python(openmp + LIMITED.format(room=30_000_000, threads=2), **{variable: size})
    assert out == [f"-1.0 -1.0 {started}"]


def test_threads_that_have_ended_leave_no_memory_mapped(runtime):
    """With OpenMP each caller's first step starts as many as it will use, to see whether so many are to be had."""
    (grown,) = python(
        runtime
        + """
def mapped_after(callers):
    for _ in range(callers):
        caller = threading.Thread(target=step, args=(400_000, 3))
        caller.start()
        caller.join()
    return len(open("/proc/self/maps").readlines())
print(-mapped_after(5) + mapped_after(60))
"""
    )
    assert int(grown) < 30
