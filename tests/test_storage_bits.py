"""Stored arrays have the same bits on both backends, whatever the rule, the storage, the layout and the threads."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from numba import njit

import fastopt
from fastopt.arrays.blocks import block_bytes
from fastopt.arrays.libraries import view
from fastopt.backends import convert as numba_storage
from fastopt.backends import native, numba_cpu
from fastopt.binding.sparse import RowSparse, view_gradient
from fastopt.jobs.job import Progress
from fastopt.jobs.storage import AVERAGE, DITHER, KAHAN, MASTER, STOCHASTIC, ZERO_GRADS
from fastopt.jobs.tables import Tensor, make_jobs, split_copies
from fastopt.rules import RULES
from fastopt.rules.hyper import hyper_row

from .oracle import storage as oracle
from .support import CASES, assert_same_bits, gradients, misaligned, parameter

F4, F8, F2, BF16 = np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)
BLOCKS = np.dtype("u1")

# The dtypes of parameter, gradient and states, and options.
STORAGES = {
    "gradients in bfloat16": (F4, BF16, F4, ZERO_GRADS),
    "states in float16": (F4, F4, F2, 0),
    "states in float16, dithered": (F4, F2, F2, DITHER | AVERAGE),
    "bfloat16": (BF16, BF16, BF16, ZERO_GRADS),
    "bfloat16, dithered and at random": (BF16, BF16, BF16, DITHER | STOCHASTIC),
    "float16 at random": (F2, F4, F2, STOCHASTIC | AVERAGE | ZERO_GRADS),
    "bfloat16, what is lost": (BF16, F4, BF16, KAHAN | DITHER | AVERAGE),
    "float16, what is lost": (F2, BF16, F4, KAHAN),
    "bfloat16, master": (BF16, BF16, F4, MASTER | AVERAGE | ZERO_GRADS),
    "float16, master": (F2, F2, F2, MASTER),
    "blocks": (F4, F4, BLOCKS, AVERAGE | ZERO_GRADS),
    "bfloat16 at random, blocks": (BF16, BF16, BLOCKS, STOCHASTIC),
    "float16, what is lost, blocks": (F2, BF16, BLOCKS, KAHAN),
    # For these the C library has loops of their own.
    "states in bfloat16": (F4, F4, BF16, DITHER),
    "states in blocks": (F4, F4, BLOCKS, 0),
    "bfloat16 throughout": (BF16, BF16, BF16, 0),
    "bfloat16, states in float32": (BF16, BF16, F4, 0),
    "bfloat16, states in blocks": (BF16, BF16, BLOCKS, 0),
    "float16 throughout": (F2, F2, F2, 0),
    "float16, dithered and at random": (F2, F2, F2, DITHER | STOCHASTIC),
}
SIZES = (1, 0, 31, 4099, 1030)
SEED, ELEMENT = 2**40 + 5, 2**33 + 77


def plain(a):
    return a


def strided(a):
    if a.dtype == BLOCKS:
        return a
    b = np.zeros((*a.shape[:-1], a.shape[-1] * 3), a.dtype)[..., 1::3]
    b[...] = a
    return b


def make_arrays(rule, hyper, storage, n, place=plain, width=None):
    """Parameter, gradient, states and what storage adds, of n elements; or, with a width, of n rows."""
    param, grad, state, options = storage
    shape = (n,) if width is None else (n, width)
    p = parameter(int(np.prod(shape))).reshape(shape).astype(param)
    shapes = [rule.state_shape(name, shape, len(hyper["betas"]) if rule.vector else 1) for name in rule.elements]
    if state == BLOCKS:
        shapes = [(*own[:-1], block_bytes(n)) for own in shapes]
    arrays = [p, np.zeros(shape, grad), *(np.zeros(own, state) for own in shapes)]
    if options & KAHAN:
        arrays.append(np.zeros(shape, param))
    if options & MASTER:
        arrays.append(p.astype("f4"))
    if options & AVERAGE:
        arrays.append(p.astype(F8 if param == F8 else F4))
    singles = [np.zeros((), F8 if param == F8 else F4) for _ in rule.singles]
    return [*(place(a) for a in arrays), *singles]


def job_of(rule, hyper, tensors, options, gradient_of=lambda k, grad: grad):
    """The job of tensors, each of the arrays of `make_arrays`."""
    row = hyper_row(rule, {name: value for name, value in hyper.items() if name in rule.hyper})
    progress = Progress.of(rule, len(row), len(tensors), 1)
    progress.hyper[0] = row
    made = []
    for k, (param, grad, *others) in enumerate(tensors):
        views = [view(array, "array") for array in (param, *others)]
        states = len(rule.elements)
        copies = [split_copies(rule, len(row), array, views[0], "state") for array in views[1 : 1 + states]]
        arrays = [views[0], view_gradient(gradient_of(k, grad), "grad")]
        arrays += [copy[c] for c in range(len(row)) for copy in copies] + views[1 + states :]
        made.append(Tensor(0, k, arrays, options, 0.9 if options & AVERAGE else 0.0, SEED, ELEMENT))
    return make_jobs([progress], made, [["array"] * len(tensor.arrays) for tensor in made])


def fill(grads, step):
    """Gradients of many magnitudes, some of them not finite at the second step."""
    for k, grad in enumerate(grads):
        with np.errstate(over="ignore"):
            grad[...] = gradients(grad.size, 1, 10 * step + k)[0].reshape(grad.shape).astype(grad.dtype)
        if step == 2 and grad.size > 20:
            grad.flat[[3, 17, grad.size - 1]] = np.nan, np.inf, -np.inf


def same(got, want):
    """Return whether arrays have the same bits; all NaNs are one."""
    for a, b in zip(got, want, strict=True):
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        if a.dtype == BF16:
            odd = np.isnan(a.astype("f4")) & np.isnan(b.astype("f4"))
            a, b = (np.where(odd, np.uint16(0x7FC0), x.view(np.uint16)) for x in (a, b))
        assert_same_bits([a], [b])


def trained(backend, case, storage, sizes=SIZES, steps=3, threads=1, place=plain, width=None):
    """All arrays after some steps."""
    name, hyper = CASES[case]
    rule = RULES[name]
    options = storage[3] & ~ZERO_GRADS if rule.by_row else storage[3]
    tensors = [make_arrays(rule, hyper, storage, n, place, width) for n in sizes]
    runner = backend.prepare(job_of(rule, hyper, tensors, options))
    for step in range(1, steps + 1):
        fill([tensor[1] for tensor in tensors], step)
        runner(0.5, threads)
    return [array for tensor in tensors for array in tensor]


# ---- rules, storage, options ----


def _in_blocks(storage):
    return STORAGES[storage][2] == BLOCKS


PAIRS = [(name, storage) for name in RULES for storage in STORAGES if not (RULES[name].by_row and _in_blocks(storage))]


@pytest.mark.parametrize(("name", "storage"), PAIRS)  # rows are not updated in blocks
def test_backends_agree(name, storage):
    case, stored = f"{name}, varied", STORAGES[storage]
    want = trained(native, case, stored)
    start = [a for n in SIZES for a in make_arrays(RULES[name], CASES[case][1], stored, n)]
    assert any(a.tobytes() != b.tobytes() for a, b in zip(want, start, strict=True))
    same(trained(numba_cpu, case, stored), want)


@pytest.mark.parametrize("name", ["sgd", "adam", "aggmo", "rowwise_adagrad"])
def test_backends_agree_in_float64(name):
    storage = (F8, F8, F8, AVERAGE | ZERO_GRADS)
    for place in (plain, strided, misaligned):
        got, want = (trained(backend, f"{name}, varied", storage, place=place) for backend in (numba_cpu, native))
        same(got, want)


@pytest.mark.parametrize("place", [strided, misaligned])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["adamw", "aggmo"])
def test_layouts_agree(name, storage, place):
    want = trained(native, f"{name}, varied", STORAGES[storage])
    for backend in (native, numba_cpu):
        same(trained(backend, f"{name}, varied", STORAGES[storage], place=place), want)


@pytest.mark.parametrize("storage", ["states in blocks", "bfloat16, states in blocks"])
def test_any_blocks_agree(storage):
    """Blocks with any codes and with scales that no update leaves: they may come from elsewhere."""
    scales = np.array([0, -0.0, 1e-45, 1e-40, 1e-37, 2**-111, 2**-110, 1, -1, 3e38, np.inf, -np.inf, np.nan], "f4")
    name, hyper = CASES["adam, varied"]

    def updated(backend):
        arrays = make_arrays(RULES[name], hyper, STORAGES[storage], scales.size * 256)
        random = np.random.default_rng(1)
        for state in arrays[2:]:
            blocks = state.reshape(scales.size, -1)
            blocks[:, 4:] = random.integers(0, 256, (scales.size, 256))
            blocks[:, :4] = scales[:, None].view("u1")
        fill([arrays[1]], 1)
        backend.prepare(job_of(RULES[name], hyper, [arrays], 0))(1.0, 1)
        return arrays

    want = updated(numba_cpu)
    for level in native.isa_supported():
        native.set_isa(level)
        try:
            same(updated(native), want)
        finally:
            native.set_isa(None)


@pytest.mark.parametrize("storage", ["states in blocks", "bfloat16, states in blocks"])
def test_prologues_agree(storage):
    """A scale of 1 and decays of 0 are left out, which changes no bit of zeros and of what is not finite either."""
    rule, varied = RULES["adam"], CASES["adam, varied"][1]
    for scale, decay, decoupled in ((1.0, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.1, 0.0), (1.0, 0.0, 0.1)):
        hyper, found = varied | {"weight_decay": decay, "decoupled_weight_decay": decoupled}, []
        for backend in (native, numba_cpu):
            arrays = make_arrays(rule, hyper, STORAGES[storage], 600)
            fill([arrays[1]], 1)
            arrays[0][[1, 2, 258, 259, 260]] = np.inf, -0.0, -np.inf, np.nan, 0.0
            arrays[1][[2, 5, 260]] = -0.0
            backend.prepare(job_of(rule, hyper, [arrays], 0))(scale, 1)
            found.append(arrays)
        same(*found)


@pytest.mark.parametrize("storage", STORAGES)
def test_threads_agree(storage):
    sizes = (300_007, 5, 70_001)
    want = trained(native, "adam, varied", STORAGES[storage], sizes, steps=2)
    for threads in (2, 3):
        same(trained(numba_cpu, "adam, varied", STORAGES[storage], sizes, steps=2, threads=threads), want)


@pytest.mark.parametrize("storage", [None, *STORAGES])
def test_a_step_in_parts(storage):
    """An update of parts, wherever they are cut, is that of the whole; of blocks those that begin in the part."""
    name, hyper = CASES["adam, varied"]
    stored = (F4, F4, F4, 0) if storage is None else STORAGES[storage]
    want = trained(native, "adam, varied", stored, steps=1)
    for backend in (native, numba_cpu):
        tensors = [make_arrays(RULES[name], hyper, stored, n) for n in SIZES]
        (job,) = job_of(RULES[name], hyper, tensors, stored[3])
        runner = backend.prepare([job])
        fill([tensor[1] for tensor in tensors], 1)
        runner.advance(0.5)
        assert job.progress.steps.tolist() == [1] * len(SIZES)
        for begin, end in itertools.pairwise([0, 1, 40, 287, 288, 1500, 4131, 4132, sum(SIZES)]):
            runner.update(0, begin, end, 2)
        same([array for tensor in tensors for array in tensor], want)


# ---- rows ----

ROW_STORAGES = [storage for storage in STORAGES if not _in_blocks(storage)]


@pytest.mark.parametrize("storage", ROW_STORAGES)
@pytest.mark.parametrize("name", ["sgd", "adam", "aggmo", "rowwise_adagrad"])
def test_rows_agree(name, storage):
    name, hyper = CASES[f"{name}, varied"]
    rule, (*dtypes, options) = RULES[name], STORAGES[storage]
    options &= ~ZERO_GRADS
    rng = np.random.default_rng(6)
    for width, duplicates in itertools.product((3, 64, 1030), ("sum", "sequential")):
        results = []
        indices = (40 * rng.random((3, 60)) ** 2).astype(np.int64)
        values = [np.empty((60, width), dtypes[1]) for _ in indices]
        fill(values, 1)
        values[1][7, 0], values[2][9, 1] = np.nan, np.inf
        for backend, threads in ((native, 1), (numba_cpu, 1), (numba_cpu, 3)):
            arrays = make_arrays(rule, hyper, (*dtypes, options), 40, width=width)
            for i, v in zip(indices, values, strict=True):
                gradient = RowSparse(i, v, duplicates=duplicates)
                jobs = job_of(rule, hyper, [arrays], options, lambda k, grad, gradient=gradient: gradient)
                backend.prepare(jobs)(0.5, threads)
            results.append([arrays[0], *arrays[2:]])
        same(results[1], results[0])
        same(results[2], results[0])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan", "master"])
def test_bags_agree(rounding):
    rng = np.random.default_rng(2)
    indices, weights, offsets = rng.integers(0, 40, 90), rng.random(90).astype(BF16), np.arange(0, 90, 3)
    values = rng.standard_normal((2, 30, 5)).astype(BF16)
    results = []
    for backend in ("native", "numba"):
        p = parameter(200).reshape(40, 5).astype(BF16)
        opt = fastopt.Adagrad(p, lr=0.1, weight_decay=0.1, rounding=rounding, ema_decay=0.5, backend=backend)
        for v in values:
            opt.step(RowSparse.bags(indices, offsets, v, weights))
        results.append([p, *(state for name, state in opt.state[0].items() if name != "step")])
    same(*results)


# ---- the norm ----


@pytest.mark.parametrize("dtype", [BF16, F2])
def test_norms_agree(dtype):
    grads = [g.astype(dtype) for g in np.split(gradients(310_000, 1)[0], [1, 1, 4098, 9000, 200_001])]
    want = fastopt.global_norm(grads, backend="native")
    exact = np.sqrt(sum(np.sum(g.astype("f8") ** 2) for g in grads))
    assert want == pytest.approx(exact, rel=1e-12)
    wide = [np.repeat(g, 2)[::2] for g in grads]
    for threads in (1, 2, 3):
        assert fastopt.global_norm(grads, backend="numba", threads=threads) == want
        assert fastopt.global_norm(wide, backend="numba", threads=threads) == want


# ---- conversions ----


def compiled(function, dtype):
    """A conversion of all elements of an array."""

    @njit
    def convert(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    def converted(x):
        out = np.empty(x.size, dtype)
        convert(x, out)
        return out

    return converted


def hard_floats():
    """float32 numbers that rounding may get wrong: around every 16-bit float, ties, subnormals, overflow."""
    upper = np.arange(65536, dtype=np.uint32)[:, None] << 16
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    random = np.random.default_rng(0).integers(0, 2**32, 1_000_001, dtype=np.uint32)
    return np.concatenate([(upper | lower).reshape(-1), random]).view(np.float32)


CONVERSIONS = {
    BF16: (numba_storage.decode_bfloat16, numba_storage.encode_bfloat16),
    F2: (numba_storage.decode_float16, numba_storage.encode_float16),
}


@pytest.mark.parametrize("dtype", CONVERSIONS)
def test_conversions_are_those_of_numpy(dtype):
    decode, encode = CONVERSIONS[dtype]
    patterns = np.arange(65536, dtype=np.uint16)
    same([compiled(decode, np.float32)(patterns)], [patterns.view(dtype).astype(np.float32)])
    x = hard_floats()
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(dtype)
    same([compiled(encode, np.uint16)(x).view(dtype)], [want])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "4dfccaba 190a87f0 c47362ba b6b5242a",
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    @njit
    def philox(a, b, c, d, e, f):
        return numba_storage.philox(a, b, c, d, e, f)

    found = philox(*map(np.uint32, (*counter, *key)))
    assert [f"{word:08x}" for word in found] == words.split()


def test_numbers_to_round_by_are_the_oracles():
    @njit
    def numbers(element, n, step, seed):
        out = np.empty((n, 4), np.uint32)
        for i in range(n):
            out[i] = numba_storage.philox_of(element + i, step, seed)
        dither = np.empty(n, np.uint32)
        for i in range(n):
            dither[i] = numba_storage.dither_of(element + i, step)
        return out, dither

    step = 2**32 + 9
    for element in (0, 5, 2**33 + 1):
        words, dither = numbers(element, 200, step, np.uint64(SEED))
        elements = np.arange(element, element + 200, dtype=np.uint64)
        np.testing.assert_array_equal(dither, oracle.dither(elements, step))
        low, zeros = np.uint64(0xFFFFFFFF), np.zeros_like(elements)
        counter = (elements & low, elements >> np.uint64(32), zeros + np.uint64(9), zeros + np.uint64(1))
        want = oracle.philox(counter, (SEED % 2**32, SEED >> 32))
        np.testing.assert_array_equal(words.T, want)
