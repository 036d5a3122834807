"""Arithmetic modes of the calling thread, as others may set them: they change no bits, and are left as they were."""

import contextlib
import ctypes
import ctypes.util
import functools
import platform
import threading

import numpy as np
import pytest

import fastopt
from fastopt import functional, hogwild
from fastopt.backends import native, numba_cpu
from fastopt.rules import RULES

from .support import CASES, assert_same_bits, make_states
from .test_storage_bits import STORAGES, fill, job_of, make_arrays, same

libm = ctypes.CDLL(ctypes.util.find_library("m"))
# The place of the register in glibc's fenv_t, its bits that flush subnormal numbers to zero, as results and operands,
# and those that round upwards.
LAYOUTS = {"x86_64": (7, 0x8040, 0x4000), "aarch64": (0, 1 << 24, 1 << 22)}
if platform.machine() not in LAYOUTS or platform.system() != "Linux":
    pytest.skip("the register is found on Linux on x86-64 and aarch64 only", allow_module_level=True)
WORD, FLUSH, UPWARDS = LAYOUTS[platform.machine()]
MODES = {"flush to zero": FLUSH, "upwards": UPWARDS, "both": FLUSH | UPWARDS}
BACKENDS = {"native": native, "numba": numba_cpu}


def environment():
    words = (ctypes.c_uint32 * 8)()
    assert libm.fegetenv(words) == 0
    return words


@contextlib.contextmanager
def mode(bits):
    """The calling thread's arithmetic so; whether the block leaves it so."""
    before, changed = environment(), environment()
    changed[WORD] |= bits
    libm.fesetenv(changed)
    try:
        yield
        after = environment()[WORD]
    finally:
        libm.fesetenv(before)
    flags = 0x3F if WORD else 0
    assert after | flags == changed[WORD] | flags


def small(n, dtype, seed):
    """Numbers of both signs down to the smallest of a dtype, most of them not normal."""
    rng = np.random.default_rng(seed)
    least = np.finfo(dtype).smallest_subnormal
    numbers = rng.integers(-(2**24), 2**24, n).astype(dtype) * least
    return numbers * np.asarray(rng.choice([1, 1, 1, 2.0**30, 2.0**100], n), dtype)


def test_the_modes_have_an_effect():
    tiny, one = np.full(9, 1e-40, "f4"), np.ones(9, "f4")
    with mode(FLUSH):
        assert not np.array(tiny + tiny).view("u4").any()
    with mode(UPWARDS):
        assert (one + tiny > 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", RULES)
def test_steps(name, dtype, backend):
    name, hyper = CASES[f"{name}, varied"]
    shape = (140_000,) if not RULES[name].by_row else (1400, 100)  # beyond both backends' grain for two threads
    n = int(np.prod(shape))
    p0, g = small(n, dtype, 1).reshape(shape), small(n, dtype, 2).reshape(shape)
    states = make_states(name, hyper, p0)
    for k, state in enumerate(states):
        state[...] = np.abs(small(state.size, dtype, 3 + k)).reshape(state.shape)

    def stepped(threads):
        arrays = [p0.copy(), g, *(state.copy() for state in states)]
        getattr(functional, name)(*arrays, step=2, grad_scale=0.75, **hyper, backend=backend, threads=threads)
        return [arrays[0], *arrays[2:]]

    want = stepped(1)
    assert any(((np.abs(a) < np.finfo(dtype).tiny) & (a != 0)).any() for a in want)
    for bits in MODES.values():
        for threads in (1, 2):
            with mode(bits):
                got = stepped(threads)
            assert_same_bits(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_folding(name, backend):
    """Coefficients that are not normal themselves."""
    name, hyper = CASES[f"{name}, varied"]
    hyper = {**hyper, "weight_decay": 3e-320, "lr": hyper["lr"] * 2.0**-1000}
    results = []
    for bits in (0, *MODES.values()):
        p, g = np.full((40, 2), 2.0**1010), np.full((40, 2), 2.0**1010)
        states = make_states(name, hyper, p)
        with mode(bits):
            getattr(functional, name)(p, g, *states, step=3, grad_scale=3e-310, **hyper, backend=backend)
        results.append([p, *states])
    for got in results[1:]:
        assert_same_bits(got, results[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", STORAGES)
def test_stored_arrays(storage, backend):
    name, hyper = CASES["adam, varied"]
    results = []
    for bits, threads in ((0, 1), (FLUSH | UPWARDS, 1), (FLUSH | UPWARDS, 2)):
        tensors = [make_arrays(RULES[name], hyper, STORAGES[storage], n) for n in (70_000, 70_001)]
        runner = BACKENDS[backend].prepare(job_of(RULES[name], hyper, tensors, STORAGES[storage][3]))
        for step in (1, 2):
            fill([tensor[1] for tensor in tensors], step)
            with mode(bits):
                runner((0.5, 2.0**-130)[step - 1], threads)
        results.append([array for tensor in tensors for array in tensor])
    for got in results[1:]:
        same(got, results[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
@pytest.mark.parametrize("name", ["adam", "rowwise_adagrad"])
def test_rows(name, duplicates, backend):
    name, hyper = CASES[f"{name}, varied"]
    indices = np.random.default_rng(0).integers(0, 500, 3000)
    values = small(3000 * 64, "f4", 1).reshape(3000, 64)
    results = []
    for bits, threads in ((0, 1), *((bits, threads) for bits in MODES.values() for threads in (1, 2))):
        p = small(500 * 64, "f4", 2).reshape(500, 64)
        states = make_states(name, hyper, p)
        with mode(bits):
            rows = fastopt.RowSparse(indices, values, duplicates=duplicates)
            getattr(functional, name)(p, rows, *states, step=1, **hyper, backend=backend, threads=threads)
        results.append([p, *states])
    for got in results[1:]:
        assert_same_bits(got, results[0])


def test_calls_of_the_c_interface():
    ffi, lib = native.ffi, native.lib
    rule = lib.fastopt_find_rule(b"adam")
    indices, results = np.arange(500), []
    for bits in (0, *MODES.values()):
        tensors = [[np.abs(small(32_000, "f4", k)).reshape(500, 64) for k in range(4)] for _ in range(3)]
        dense, stored, rows = (
            ffi.new("void *[]", [ffi.cast("void *", a.ctypes.data) for a in arrays]) for arrays in tensors
        )
        dtypes = ffi.new("int32_t[]", [lib.FASTOPT_FLOAT32] * 4)
        storage = ffi.new("fastopt_storage *", (dtypes, 0, 0.0, 0, 0))
        table = ffi.new("fastopt_rows *", (500, 64, 500, ffi.cast("void *", indices.ctypes.data), 8, 0))
        hyper, c = ffi.new("double[24]"), ffi.new("double[24]")
        assert lib.fastopt_defaults(rule, hyper, ffi.NULL) == 0
        with mode(bits):
            codes = [
                lib.fastopt_set_hyper(rule, hyper, b"weight_decay", 3e-320),
                lib.fastopt_fold(rule, 3, 0.75, hyper, ffi.NULL, c),
                lib.fastopt_update(rule, lib.FASTOPT_FLOAT32, 1, 1, [32_000], dense, c, 1),
                lib.fastopt_update_stored(rule, lib.FASTOPT_FLOAT32, 1, 1, [32_000], stored, c, storage, 3, 1),
                lib.fastopt_update_rows(rule, lib.FASTOPT_FLOAT32, 1, table, rows, [256] * 4, c, 1),
                lib.fastopt_set_hyper(lib.fastopt_find_rule(b"adabound"), ffi.new("double[24]"), b"gamma", 0.0),
            ]
        assert codes == [0] * 5 + [lib.FASTOPT_BAD_VALUE]
        results.append([np.array(list(c)), *(a for arrays in tensors for a in arrays)])
        for k in range(4):
            assert_same_bits([tensors[0][k]] * 2, [tensors[1][k], tensors[2][k]])
    for got in results[1:]:
        assert_same_bits(got, results[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_norms(dtype, backend):
    g = small(300_007, dtype, 1) * np.asarray(2.0**-60, dtype)
    g[::3] = small(g[::3].size, dtype, 2)

    def norms(threads):
        clipped = g.copy()
        norm = fastopt.clip_grad_norm_(clipped, 1e-300, backend=backend, threads=threads)
        return [np.array([norm, fastopt.global_norm(g, backend=backend, threads=threads)]), clipped]

    want = norms(1)
    for bits in MODES.values():
        for threads in (1, 2):
            with mode(bits):
                got = norms(threads)
            assert_same_bits(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_that_were_started_so(backend):
    """A thread inherits what the one that starts it is set to, and stays so."""
    results = []

    def work():
        p = np.full(140_000, 1.5)
        m = [np.full(p.size, 1e-310) for _ in range(2)]
        functional.adam(p, np.full(p.size, 1e-309), *m, step=1, backend=backend, threads=2)
        results.append([p, *m])

    work()
    with mode(FLUSH | UPWARDS):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    work()
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_hogwild():
    indptr, indices = np.arange(0, 2001, 2), np.tile(np.arange(20), 100)
    values, targets = small(2000, "f4", 1), np.resize([1.0, -1.0], 1000)
    fits = []
    for bits in (0, *MODES.values()):
        with mode(bits):
            model = hogwild.LinearModel(loss="squared", lr=0.3, l2=1e-3)
            model.fit((indptr, indices, values), targets, epochs=3)
            fits.append([model.coef_, model.decision_function((indptr, indices, values))])
    for got in fits[1:]:
        assert_same_bits(got, fits[0])


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_states_that_are_loaded(library):
    """In other floats than they were saved in, in 8-bit blocks, and from these."""
    source = fastopt.Adam(np.ones(5000), state_dtype="float64")
    source.step(np.ones(5000))
    for k, name in enumerate(("exp_avg", "exp_avg_sq")):
        values = np.random.default_rng(k).standard_normal(5000) * np.resize([1, 1e-3, 3e-38, 1e-40], 5000)
        values[-1000:] *= 1e-36  # whole blocks of numbers that are hardly normal
        source.state[0][name][...] = values if name == "exp_avg" else abs(values)
    saved = source.state_dict()
    if library == "torch":
        optim = pytest.importorskip("fastopt.torch", exc_type=ImportError)
        ones, key, saved = optim.torch.ones, None, fastopt.torch_state_dict(saved)
    else:
        optim, ones, key = fastopt, functools.partial(np.ones, dtype="f4"), 0
    results = []
    for bits in (0, *MODES.values()):
        found, state_dict = [], saved
        for state_dtype in ("float32", "8bit", "float32"):
            p = ones(5000)
            opt = optim.Adam([p], state_dtype=state_dtype)
            with mode(bits):
                opt.load_state_dict(state_dict)
            state_dict = opt.state_dict()
            found += [np.asarray(opt.state[p if key is None else key][name]) for name in ("exp_avg", "exp_avg_sq")]
        results.append(found)
    for k in (0, 4):
        assert ((np.abs(results[0][k]) < np.finfo("f4").tiny) & (results[0][k] != 0)).any()
    for got in results[1:]:
        assert_same_bits(got, results[0])


def test_as_torch_sets_it():
    torch = pytest.importorskip("torch")
    results = []
    for flush in (False, True):
        p, g = np.full(9, 1e-39, "f4"), np.full(9, 3e-40, "f4")
        if not torch.set_flush_denormal(flush):
            pytest.skip("torch cannot here")
        try:
            for backend in BACKENDS:
                functional.sgd(p, g, step=1, lr=0.5, backend=backend)
        finally:
            torch.set_flush_denormal(False)
        results.append([p])
    assert_same_bits(*results)
