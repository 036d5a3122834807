"""Shared arrays, the runner of workers, and the update forms that are safe under races."""

import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError

import fastopt.numba
from fastopt.hogwild import Run, SharedArrays, WorkerDied, run
from fastopt.hogwild.runner import BATCH, Shard, _died

from . import hogwild_kernels as kernels
from .support import assert_same_bits

SHM = Path("/dev/shm")
needs_shm = pytest.mark.skipif(not SHM.is_dir(), reason="there is no /dev/shm to look into")


def blocks(process):
    return {path.name for path in SHM.glob(f"fastopt-{process}-*")} if SHM.is_dir() else set()


@pytest.fixture(autouse=True)
def nothing_left():
    """No test leaves shared memory or workers behind."""
    before = blocks(os.getpid())
    yield
    assert blocks(os.getpid()) == before
    assert not multiprocessing.active_children()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hogwild")]


@pytest.fixture(params=["fork", "spawn"])
def start_method(request):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def problem(n=6000, features=5):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, features))
    return {"x": x, "y": x @ rng.standard_normal(features) + 0.1 * rng.standard_normal(n), "w": np.zeros(features)}


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False, **options
    )


# ---- shared arrays ----


def test_arrays_come_back_as_they_were_given():
    given = {
        "w": np.arange(7, dtype="f4"),
        "self": np.arange(6).reshape(2, 3)[:, ::2],
        "flags": np.array(True),
        "none": np.zeros((0, 3), "f8"),
        "z": np.array([1 + 2j]),
    }
    with SharedArrays.create(**given) as shared:
        assert list(shared) == list(given)
        with SharedArrays.open(shared.name) as again:
            for name, array in given.items():
                assert shared[name].ctypes.data % 64 == 0
                assert again[name].dtype == array.dtype
                assert np.array_equal(again[name], array)
            again["w"][3] = -1
            again["w"] += 1
        assert shared["w"].tolist() == [1, 2, 3, 0, 5, 6, 7]
        shared["w"] = 0
        assert not shared["w"].any()
        assert "w: float32[7]" in repr(shared)


def test_the_memory_lasts_as_long_as_an_array_of_it():
    shared = SharedArrays.create(w=np.ones(100_000))
    w = shared["w"]
    shared.close()
    shared.unlink()
    w += 1
    assert w.sum() == 200_000
    with pytest.raises(ValueError, match="is closed"):
        shared["w"]
    with pytest.raises(ValueError, match="is closed"):
        pickle.dumps(shared)
    assert "closed" in repr(shared)
    shared.unlink()  # once more does no harm


OPENS = """
import sys
from fastopt.hogwild import SharedArrays
if __name__ == "__main__":
    with SharedArrays.open(sys.argv[1]) as shared:
        shared["w"] += 1
        print(shared["w"].tolist())
"""


def test_opened_by_name_in_a_process_of_its_own(tmp_path):
    """Twice: the first to end must not take the block with it, nor complain."""
    script = tmp_path / "opens.py"
    script.write_text(OPENS)
    with SharedArrays.create(w=np.zeros(2)) as shared:
        for time_ in (1, 2):
            done = subprocess.run([sys.executable, script, shared.name], capture_output=True, text=True, check=False)
            assert (done.stdout.strip(), done.stderr) == (str([float(time_)] * 2), "")
        assert shared["w"].tolist() == [2, 2]


def test_a_creator_that_ends_leaves_no_trace():
    code = (
        "import numpy as np; from fastopt.hogwild import SharedArrays\n"
        "with SharedArrays.create(w=np.zeros(3)) as shared: print(shared.name)"
    )
    done = python(code)
    assert done.stderr == ""
    assert done.stdout.startswith("fastopt-")
    assert not blocks(done.stdout.split("-")[1])


@needs_shm
def test_memory_that_is_not_there_is_found_out_at_once():
    with pytest.raises(OSError, match=r"cannot take 70368744177\d+ bytes of shared memory; free some in /dev/shm"):
        SharedArrays.create(w=np.broadcast_to(np.float32(0), (2**44,)))


@needs_shm
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"something else" * 100,
        None,
        "short",
        *[
            struct.pack("<8sQQ", b"fastopt1", len(head), 24 + len(head) + more) + head + bytes(more)
            for more in (0, 64)
            for head in (
                b"[" * 100_000,
                b"9" * 5000,
                b"{}",
                b'[["w", "<f4", [1.5]]]',
                b'[["w", "<f4", [1e999]]]',
                b'[["w", "<f4", [-1, -4]]]',
                b'[["w", "f4,(,)", [1]]]',
                b'[["w", "O", [1]]]',
                b'[[[], "<f4", [1]]]',
                b'[["w", "<f4", [NaN]]]',
                b'[["w", "<f4", "4"]]',
                b'[["w", "<f4", [[4]]]]',
                b'[["w", "<f4", [99999999999999999999]]]',
                b'[["w", 3, [1]]]',
            )
        ],
    ],
)
def test_foreign_blocks(content):
    with SharedArrays.create(w=np.zeros(100)) as shared:
        whole = (SHM / shared.name).read_bytes()
    if content is None:  # a header that is no header
        content = whole[:24] + b"x" * (len(whole) - 24)
    elif content == "short":
        content = whole[:-8]
    path = SHM / f"fastopt-test-{os.getpid()}"
    path.write_bytes(content)
    try:
        with pytest.raises(ValueError, match=f"name: found '{path.name}', which is no block of arrays"):
            SharedArrays.open(path.name)
    finally:
        path.unlink()


def test_bad_names_and_arrays():
    with pytest.raises(ValueError, match="arrays: found none"):
        SharedArrays.create()
    with pytest.raises(TypeError, match="w: found dtype object"):
        SharedArrays.create(w=[None])
    with pytest.raises(FileNotFoundError, match="no shared memory of that name"):
        SharedArrays.open("fastopt-never-made")
    with pytest.raises(ValueError, match=r"name: found '\.\./w'"):
        SharedArrays.open("../w")
    with pytest.raises(TypeError, match="name: found 3 of type int"):
        SharedArrays.open(3)
    assert not blocks(os.getpid())


# ---- the order of examples ----


@given(
    examples=st.integers(1, 40_000),
    workers=st.integers(1, 9),
    seed=st.integers(0, 2**70),
    epochs=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_each_example_once_an_epoch(examples, workers, seed, epochs):
    shards = [Shard(examples, workers, worker, seed) for worker in range(workers)]
    again = [pickle.loads(pickle.dumps(shard)) for shard in shards]
    for _ in range(epochs):
        parts = [[part.copy() for part in shard.orders()] for shard in shards]
        assert all(1 <= len(part) <= BATCH for own in parts for part in own)
        everything = np.concatenate([part for own in parts for part in own])
        assert np.array_equal(np.sort(everything), np.arange(examples))
        sizes = [sum(map(len, own)) for own in parts]
        assert max(sizes) - min(sizes) <= 1
        same = np.concatenate([part for shard in again for part in shard.orders()])
        assert np.array_equal(everything, same)


def test_the_order_is_another_each_epoch_and_for_each_seed_and_uniform():
    def order(shard):
        return np.concatenate([part.copy() for part in shard.orders()])

    shard = Shard(1000, 1, 0, 0)
    orders = [order(shard), order(shard), order(Shard(1000, 1, 0, 1))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(orders[a] == orders[b]) < 0.01
    # The place of example 0 of 5: 5000 draws, for each place 1000 +- 5 deviations of 28.
    shard = Shard(5, 1, 0, 7)
    places = np.bincount([np.flatnonzero(order(shard) == 0)[0] for _ in range(5000)], minlength=5)
    assert abs(places - 1000).max() < 140


@pytest.mark.parametrize("processes", [False, True])
def test_the_kernel_gets_every_example_of_every_worker(processes):
    with SharedArrays.create(seen=np.zeros(10_000, "i8")) as shared:
        done = run(kernels.count, 10_000, shared, lr=1, workers=3, epochs=2, processes=processes)
        assert (shared["seen"] == 2).all()
    assert done.loss == (1, 1)


# ---- runs ----


def test_one_worker_is_reproducible_to_the_bit_thread_or_process(start_method):
    results = []
    for processes in (False, True, False):
        with SharedArrays.create(**problem()) as shared:
            done = run(kernels.least_squares, 6000, shared, lr=0.01, workers=1, epochs=3, processes=processes, seed=5)
            results.append((done.loss, shared["w"].copy()))
    assert isinstance(done, Run)
    assert len(done.seconds) == 3
    for loss, w in results[1:]:
        assert loss == results[0][0]
        assert_same_bits([w], [results[0][1]])


@pytest.mark.parametrize("processes", [False, True])
def test_several_workers_reach_what_one_reaches(processes):
    """Within 2 % of the loss; no coordinate is off by more than 0.05, of about 1."""
    arrays = problem()
    one = run(kernels.least_squares, 6000, arrays, lr=0.02, workers=1, epochs=8, decay=0.7)
    with SharedArrays.create(**problem()) as shared:
        many = run(kernels.least_squares, 6000, shared, lr=0.02, workers=4, epochs=8, decay=0.7, processes=processes)
        w = shared["w"].copy()
    assert many.loss[-1] == pytest.approx(one.loss[-1], rel=0.02)
    assert many.loss[-1] < 0.5 * many.loss[0]
    assert abs(w - arrays["w"]).max() < 0.05


def test_the_rate_decays_and_progress_is_told(capsys):
    rates, told = [], []

    def kernel(order, lr, w):
        rates.append(lr)
        return float(len(order))

    options = {"lr": 0.5, "workers": 1, "epochs": 3, "decay": 0.5}
    done = run(kernel, 10, [np.zeros(1)], progress=lambda *event: told.append(event), **options)
    assert rates == [0.5, 0.25, 0.125]
    assert told == [(k + 1, 1.0, done.seconds[k]) for k in range(3)]
    run(kernel, 10, [np.zeros(1)], progress=True, **options)
    assert "epoch 3: loss 1, " in capsys.readouterr().err


def test_an_error_in_a_thread_ends_the_run():
    w = np.zeros(1)
    with pytest.raises(KeyError, match="what the kernel raised"):
        run(kernels.fails, 10_000, [w], lr=1, workers=2, epochs=1000)
    assert w[0] < 100


def test_an_error_in_a_process_ends_the_run_with_its_traceback(start_method):
    with SharedArrays.create(w=np.zeros(1)) as shared:
        with pytest.raises(KeyError, match="what the kernel raised") as caught:
            run(kernels.fails, 10_000, shared, lr=1, epochs=1000, processes=True)
        assert 'raise KeyError("what the kernel raised")' in str(caught.value.__cause__)
        with pytest.raises(RuntimeError, match="Stubborn: one"):
            run(kernels.fails_unpicklably, 10_000, shared, lr=1, processes=True)


def test_a_worker_that_is_killed_ends_the_run(start_method):
    begin = time.monotonic()
    with SharedArrays.create(w=np.zeros(3)) as shared:
        with pytest.raises(WorkerDied, match=r"worker 1 \(process \d+\) was killed by SIGKILL \(signal 9\) in epoch"):
            run(kernels.is_killed, 10_000, shared, lr=1, epochs=10_000, processes=True)
        assert np.isfinite(shared["w"]).all()
        assert (shared["w"] > 4).all()
    assert time.monotonic() - begin < 20


def test_a_worker_that_leaves_ends_the_run(start_method):
    begin = time.monotonic()
    with (
        SharedArrays.create(w=np.zeros(3)) as shared,
        pytest.raises(WorkerDied, match=r"worker 1 .* exit code 3 in epoch 1"),
    ):
        run(kernels.leaves, 10_000, shared, lr=1, processes=True)
    assert time.monotonic() - begin < 20


def test_workers_that_are_gone_are_told_by_their_exit_code():
    ends = {0: "ended with exit code 0", 1: "ended with exit code 1", -15: "was killed by SIGTERM (signal 15)"}
    for code, how in ends.items():
        process = SimpleNamespace(exitcode=code, pid=7, join=lambda: None)
        assert str(_died(1, process, "in epoch 2")).startswith(f"worker 1 (process 7) {how} in epoch 2; ")


def wait_for_the_end_of(group):
    """Wait for the end of all processes of a run: multiprocessing's own tracker takes a moment."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("workers are still there")


def test_a_killed_worker_is_missed_although_its_child_lives():
    begin = time.monotonic()
    with SharedArrays.create(w=np.zeros(1)) as shared:
        try:
            with pytest.raises(WorkerDied, match="was killed by SIGKILL"):
                run(kernels.is_killed_as_a_parent, 100, shared, lr=1, processes=True)
        finally:
            os.kill(int(shared["w"][0]), signal.SIGKILL)
    assert time.monotonic() - begin < 20


INTERRUPTED = """
import numpy as np
from fastopt.hogwild import SharedArrays, run
from tests.hogwild_kernels import slow
with SharedArrays.create(w=np.zeros(3)) as shared:
    try:
        run(slow, 20_000, shared, lr=1, epochs=10_000, processes={processes},
            progress=lambda *event: print("epoch", flush=True))
    except KeyboardInterrupt:
        import multiprocessing, threading
        print("stopped", len(multiprocessing.active_children()), threading.active_count())
"""


@pytest.mark.parametrize("processes", [False, True])
def test_control_c_ends_all_workers(processes):
    """Sent to the whole group, as a terminal does."""
    root = Path(__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(processes=processes)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "epoch\n"
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert out.splitlines()[-1] == "stopped 0 1"
    assert err == ""
    wait_for_the_end_of(child.pid)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_control_c_while_threads_start_leaves_none(monkeypatch, which, when):
    start, begun = threading.Thread.start, []

    def interrupted(thread):
        begun.append(thread)
        if when == "after" or len(begun) < which:
            start(thread)
        if len(begun) == which:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(lambda order, lr: 0.0, 10, [], lr=1.0, workers=4)
    assert not any(thread.is_alive() for thread in begun)


def test_workers_go_when_their_parent_is_killed():
    code = INTERRUPTED.format(processes=True).replace("SharedArrays.create(w=np.zeros(3))", "SharedArrays.open(NAME)")
    with SharedArrays.create(w=np.zeros(3)) as shared:
        child = subprocess.Popen(
            [sys.executable, "-c", code.replace("NAME", repr(shared.name))],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert child.stdout.readline() == "epoch\n"
        child.kill()
        child.wait()
        wait_for_the_end_of(child.pid)
        child.stdout.close()


def test_bad_arguments():
    def kernel(order, lr, w):
        pytest.fail("the kernel was called")

    good = {"kernel": kernel, "examples": 10, "arrays": [np.zeros(1)], "lr": 1.0}
    for argument, value, error, message in [
        ("kernel", 3, TypeError, "kernel: found 3 of type int, expected a callable"),
        ("examples", 0, ValueError, "examples: found 0, expected an integer >= 1"),
        ("examples", 2**32, ValueError, "expected an integer >= 1 and <= 4294967295"),
        ("examples", 1.5, TypeError, "examples: found 1.5 of type float, expected an integer >= 1"),
        ("workers", 0, ValueError, "workers: found 0, expected an integer >= 1"),
        ("epochs", 0, ValueError, "epochs: found 0"),
        ("epochs", 2**63, ValueError, "epochs: found 9223372036854775808"),
        ("lr", 0, ValueError, "lr: found 0, expected a finite number > 0"),
        ("lr", np.nan, ValueError, "lr: found nan"),
        ("lr", "1", TypeError, "lr: found '1' of type str"),
        ("decay", 1.5, ValueError, "decay: found 1.5, expected a finite number > 0 and <= 1"),
        ("seed", -1, ValueError, "seed: found -1"),
        ("progress", 3, TypeError, "progress: found 3"),
        ("arrays", 3, TypeError, "arrays: found 3 of type int"),
        ("arrays", "w", TypeError, "arrays: found 'w' of type str"),
        ("processes", "no", TypeError, "processes: found 'no' of type str, expected True or False"),
        ("processes", True, TypeError, r"arrays: found a list, expected a SharedArrays .*SharedArrays.create"),
    ]:
        with pytest.raises(error, match=message):
            run(**{**good, argument: value})


def test_a_kernel_that_cannot_be_sent_says_so():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with (
            SharedArrays.create(w=np.zeros(1)) as shared,
            pytest.raises(TypeError, match=r"kernel: found .* cannot be sent"),
        ):
            run(lambda order, lr, w: 0.0, 10, shared, lr=1, processes=True)
    finally:
        multiprocessing.set_start_method(before, force=True)


# ---- Adagrad under races ----


def test_async_adagrad_is_adagrad_where_nobody_races():
    c = tuple(map(np.float32, fastopt.numba.adagrad.fold(np.float32, 1, 0.1, weight_decay=0.01)))
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((5, 50)).astype("f4")
    results = []
    for form in (True, False):
        p, s = np.ones(50, "f4"), np.zeros(50, "f4")
        kernels.steps_of(form, p, s, grads, c)
        results.append([p, s])
    assert_same_bits(*results)


def test_async_adagrad_loses_no_addition_and_takes_no_long_step():
    """Four threads: all squares are in the sum, exactly, and each step is at most lr, up to rounding."""
    steps, lr = 300_000, 0.5
    shared_sum = np.zeros(1, "f4")
    ones = np.ones(1, "f4")
    kernels.hammer(np.zeros(1, "f4"), np.zeros(1, "f4"), ones, 1, lr)  # compiled before the race
    with ThreadPoolExecutor(4) as pool:
        longest = list(pool.map(lambda k: kernels.hammer(np.zeros(1, "f4"), shared_sum, ones, steps, lr), range(4)))
        assert shared_sum[0] == 4 * steps  # below 2^24: exact
        assert max(longest) <= lr
        wild = (10.0 ** np.random.default_rng(0).uniform(-12, 12, 1000)).astype("f4")
        shared_sum[0] = 0
        longest = list(
            pool.map(
                lambda k: kernels.hammer(np.zeros(1, "f4"), shared_sum, np.roll(wild, 100 * k), 1000, lr), range(4)
            )
        )
    assert max(longest) <= lr * (1 + 1e-6)


def test_async_adagrad_with_nan_comes_to_an_end():
    p, s = np.ones(2, "f4"), np.array([np.nan, 1], "f4")
    c = tuple(map(np.float32, fastopt.numba.adagrad.fold(np.float32, 1, 0.1)))
    kernels.steps_of(True, p, s, np.array([[1, np.nan]], "f4"), c)
    assert np.isnan(p).all()


def test_async_adagrad_refuses_memory_with_gaps():
    c = tuple(map(np.float32, fastopt.numba.adagrad.fold(np.float32, 1, 0.1)))
    with pytest.raises(
        TypingError, match=r"async_adagrad: found array.* expected an array of one dimension, C-contiguous"
    ):
        kernels.steps_of(True, np.ones(2, "f4"), np.ones(4, "f4")[::2], np.ones((1, 2), "f4"), c)
