"""Arrays of every size: what kernels do where their vectors, chunks, blocks, tiles and threads' shares end."""

import functools
import itertools

import numpy as np
import pytest

import fastopt
from fastopt import functional
from fastopt.arrays.blocks import block_bytes
from fastopt.backends import native, numba_cpu
from fastopt.binding.sparse import RowSparse
from fastopt.jobs.storage import AVERAGE, DITHER, KAHAN, MASTER, STOCHASTIC, ZERO_GRADS
from fastopt.rules import RULES

from .oracle import ORACLES
from .oracle import storage as oracle
from .support import (
    CASES,
    assert_near_the_oracle,
    assert_same_bits,
    compiled_for_each,
    gradients,
    misaligned,
    parameter,
)
from .test_storage_bits import BF16, BLOCKS, ELEMENT, F2, F4, F8, SEED, STORAGES, job_of, plain, same, strided

BLOCK = 256
#: Around the ends of chunks, blocks, tiles, the norm's blocks.
SIZES = tuple(end + d for end in (*range(32, 1025, 32), 1280, 4096) for d in (-1, 0, 1))
#: Every remainder of a block, twice.
EVERY = tuple(range(513))
#: Sizes around the least that a thread takes and, of so many elements, the most at a time.
SHARES = (16385, 262143, 262145)
BACKENDS = {"native": native, "numba": numba_cpu}
ENGINES = [*((native, isa) for isa in native.isa_supported()), (numba_cpu, None)]
DENSE = [name for name in RULES if RULES[name].elementwise]  # of others see test_stages


@pytest.fixture(autouse=True)
def isa():
    yield
    native.set_isa(None)


@functools.cache
def gradient(n, step):
    return gradients(n, 1, step)[0]


class Tensors:
    """Tensors of any sizes, each in whole blocks of arrays that have all of them, and what a step must make of them.

    That is told by the formats' definitions and the float32 update of all tensors as one: no tensor's end is anything
    special there.
    """

    def __init__(self, name, storage, sizes):
        self.name, self.hyper = CASES[f"{name}, varied"]
        self.rule, self.dtypes, self.options = RULES[name], storage[:3], storage[3]
        blocks = -(-np.array(sizes) // BLOCK)
        self.begins = np.concatenate([[0], np.cumsum(blocks)]) * BLOCK
        self.sizes, self.n = sizes, int(self.begins[-1])
        self.numbers = np.arange(self.n) - np.repeat(self.begins[:-1], blocks * BLOCK)
        self.there = self.numbers < np.repeat(sizes, blocks * BLOCK)
        param, grad, state = self.dtypes
        self.copies = (len(self.hyper["betas"]),) if self.rule.vector else ()
        length = block_bytes(self.n) if state == BLOCKS else self.n
        self.param, self.grad = np.where(self.there, parameter(self.n), 0).astype(param), np.zeros(self.n, grad)
        self.states = [np.zeros((*self.copies, length), state) for _ in self.rule.states]
        kept = {KAHAN: param, MASTER: np.float32, AVERAGE: np.float32}
        self.kept = {option: self.param.astype(dtype) for option, dtype in kept.items() if option & self.options}
        if KAHAN in self.kept:
            self.kept[KAHAN][:] = 0

    @property
    def arrays(self):
        return [self.param, self.grad, *self.states, *self.kept.values()]

    def draw(self, step):
        """Another gradient."""
        with np.errstate(over="ignore"):
            self.grad[:] = np.where(self.there, gradient(self.n, step), 0).astype(self.grad.dtype)

    def step(self, t):
        """Step t, in place."""
        options, kept, numbers = self.options, self.kept, ELEMENT + self.numbers
        p = kept[MASTER].copy() if options & MASTER else self.param.astype("f4")
        if options & KAHAN:
            p += kept[KAHAN].astype("f4")
        states = [self._decoded(name, state) for name, state in zip(self.rule.state_names, self.states, strict=True)]
        getattr(functional, self.name)(p, self.grad.astype("f4"), *states, step=t, grad_scale=0.5, **self.hyper)
        if options & AVERAGE:
            kept[AVERAGE][:] = np.float32(0.9) * kept[AVERAGE] + np.float32(1 - 0.9) * p
        if options & MASTER:
            kept[MASTER][:] = p
        random = oracle.random16(numbers, t, SEED) if options & STOCHASTIC else None
        self.param[:] = p if self.param.dtype == np.float32 else oracle.rounded(p, self.param.dtype, random)
        if options & KAHAN:
            kept[KAHAN][:] = (p - self.param.astype("f4")).astype(self.param.dtype)
        dither = oracle.dither(numbers, t) >> np.uint32(16) if options & DITHER else None
        for name, state, values in zip(self.rule.state_names, self.states, states, strict=True):
            values[..., ~self.there] = 0  # what blocks hold behind a tensor's end
            for own, new in zip(self._each(state), self._each(values), strict=True):
                if state.dtype == BLOCKS:
                    own[:] = oracle.to_blocks(new, name in self.rule.positive, numbers, t)
                else:
                    own[:] = new if state.dtype == np.float32 else oracle.rounded(new, state.dtype, dither)
        if options & ZERO_GRADS:
            self.grad[:] = 0

    def _each(self, state):
        return state if self.copies else [state]

    def _decoded(self, name, state):
        if state.dtype != BLOCKS:
            return state.astype("f4")
        values = [oracle.from_blocks(own, self.n, name in self.rule.positive) for own in self._each(state)]
        return np.array(values) if self.copies else values[0]

    def of_each(self, arrays):
        """The parts of arrays that each tensor has."""

        def part(array, begin, n):
            if array.dtype == BLOCKS:
                begin, n = block_bytes(begin), block_bytes(n)
            return array[..., begin : begin + n]

        places = zip(self.begins[:-1].tolist(), self.sizes, strict=True)
        return [[part(array, begin, n) for array in arrays] for begin, n in places]


def engines(tensors, t, threads=(2,), place=plain, cuts=(), backends=(native, numba_cpu)):
    """Return each engine's function for step t of tensors; with cuts it is done in parts."""
    arrays = [place(array.copy()) for array in tensors.arrays]
    jobs = job_of(tensors.rule, tensors.hyper, tensors.of_each(arrays), tensors.options)
    progress = jobs[0].progress
    at_first = progress.steps.copy(), progress.scalars.copy()
    before = [array.copy() for array in tensors.arrays]
    for backend, isa in ENGINES:
        if backend not in backends:
            continue
        native.set_isa(isa)
        runner = backend.prepare(jobs)
        for count in threads:
            progress.steps[:], progress.scalars[:] = at_first
            for array, values in zip(arrays, before, strict=True):
                array[...] = values
            for _ in range(t - 1):
                runner.advance(0.5)
            if cuts:
                runner.advance(0.5)
                for begin, end in itertools.pairwise([0, *cuts, sum(tensors.sizes)]):
                    runner.update(0, begin, end, count)
            else:
                runner(0.5, count)
            yield arrays


def check(name, storage, sizes, **how):
    """Check the result of each engine's second step."""
    tensors = Tensors(name, storage, sizes)
    tensors.draw(1)
    tensors.step(1)
    tensors.draw(2)
    found = engines(tensors, 2, **how)
    got = next(found)
    tensors.step(2)
    same(got, tensors.arrays)
    for got in found:
        same(got, tensors.arrays)


@pytest.mark.parametrize("dtype", [F4, F8])
@pytest.mark.parametrize(("name", "backend"), compiled_for_each(DENSE, BACKENDS))
def test_dense_arrays(name, backend, dtype):
    tensors = Tensors(name, (dtype, dtype, dtype, 0), SIZES)
    start, grads, path = tensors.param.copy(), [], []
    before = 3 if RULES[name].ahead else 1  # after one step z - y is 0, and what comes then may nearly cancel
    for t in range(1, before + 1):
        tensors.draw(t)
        grads.append(tensors.grad.copy())
        path.append(ORACLES[name](start, grads, grad_scale=0.5, **tensors.hyper))
    p, states = path[-1]
    tensors.param[:] = p
    for state, values in zip(RULES[name].state_names, tensors.states, strict=True):
        values[:] = states[state]
    tensors.draw(before + 1)
    path.append(ORACLES[name](start, [*grads, tensors.grad], grad_scale=0.5, **tensors.hyper))
    there, kept = tensors.there, [array.copy() for array in tensors.arrays]
    path = [(p[there], {key: state[..., there] for key, state in states.items()}) for p, states in path]
    for param, grad, *states in engines(tensors, before + 1, backends=[BACKENDS[backend]]):
        assert_near_the_oracle(name, [array[..., there] for array in (param, *states)], start[there], path)
        after = [param, grad, *states]
        assert_same_bits([array[..., ~there] for array in after], [array[..., ~there] for array in kept])
        assert_same_bits([grad], [tensors.grad])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("name", "backend"), compiled_for_each(DENSE, BACKENDS))
def test_stored_arrays(name, backend, storage):
    check(name, STORAGES[storage], SIZES, backends=[BACKENDS[backend]])


@pytest.mark.parametrize("place", [plain, strided, misaligned])
@pytest.mark.parametrize("storage", STORAGES)
def test_every_remainder(storage, place):
    check("adamw", STORAGES[storage], EVERY, place=place)


@pytest.mark.parametrize("storage", STORAGES)
def test_parts_of_a_step(storage):
    check("adam", STORAGES[storage], SIZES, cuts=[end + d for end in (512, 4096, 17000) for d in (-1, 0, 1)])


@pytest.mark.parametrize("storage", [(F4, F4, F4, 0), *STORAGES.values()])
def test_shares_of_threads(storage):
    check("adam", storage, SHARES, threads=(2, 3))


# ---- rows ----

WIDTHS = (*range(1, 66), 127, 128, 129, 511, 512, 513, 1023, 1024, 1025)
INDICES, ROWS = np.array([7, 2, 7, 0, 2, 11, 7]), 12


@pytest.mark.parametrize("storage", ["float32", *(name for name in STORAGES if STORAGES[name][2] != BLOCKS)])
@pytest.mark.parametrize("name", ["sgd", "adam", "aggmo"])
def test_rows_of_every_width(name, storage):
    param, dtype, state, options = STORAGES.get(storage, (F4, F4, F4, 0))
    tensors = Tensors(name, (param, F4, state, options & ~ZERO_GRADS), [ROWS * width for width in WIDTHS])
    gradients = [parameter(INDICES.size * width, width).reshape(-1, width).astype(dtype) for width in WIDTHS]
    touched = np.zeros(tensors.n, bool)
    for (grad, rows), values in zip(tensors.of_each([tensors.grad, touched]), gradients, strict=True):
        rows.reshape(ROWS, -1)[INDICES] = True
        for index, value in zip(INDICES, values.astype("f4"), strict=True):
            grad.reshape(ROWS, -1)[index] += value
    before = [array.copy() for array in tensors.arrays]
    tensors.step(1)
    want = [np.where(touched, new, old) for new, old in zip(tensors.arrays, before, strict=True)]
    for (backend, isa), threads in zip(ENGINES, itertools.cycle((1, 2))):
        native.set_isa(isa)
        arrays = [array.copy() for array in before]
        parts = [[a.reshape(*a.shape[:-1], ROWS, -1) for a in part] for part in tensors.of_each(arrays)]
        given = [RowSparse(INDICES, values) for values in gradients]
        jobs = job_of(tensors.rule, tensors.hyper, parts, tensors.options, lambda k, _, given=given: given[k])
        backend.prepare(jobs)(0.5, threads)
        same([arrays[0], *arrays[2:]], [want[0], *want[2:]])


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_whole_rows_of_every_width(backend):
    name, hyper = CASES["rowwise_adagrad, varied"]
    for width in WIDTHS:
        p0 = parameter(ROWS * width).reshape(ROWS, width).astype("f4")
        grad = gradient(ROWS * width, 1).reshape(ROWS, width).astype("f4")
        p, state = p0.copy(), np.zeros(ROWS, "f4")
        functional.rowwise_adagrad(p, grad, state, step=1, backend=backend, **hyper)
        assert_near_the_oracle(name, [p, state], p0, [ORACLES[name](p0, [grad], **hyper)])


# ---- the norm ----


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("dtype", [F4, F8, F2, BF16])
def test_norms(dtype, backend):
    whole = np.arange(1, max(SIZES) + 1) % 7
    for n in (0, 1, *SIZES):
        part = whole[:n].astype(dtype)
        assert fastopt.global_norm(part, backend=backend) == np.sqrt(np.sum(whole[:n] ** 2))


@pytest.mark.parametrize("offsets", [(0, 0), (1, 0), (0, 1), (63, 17), (16, 48)])
def test_copies_are_whole_and_write_nothing_else(offsets):
    random = np.random.default_rng(0).integers(0, 255, 5000, np.uint8)
    for size in [*range(200), 4095, 4096, 4097]:
        to = np.zeros(5000, np.uint8)
        begin, source = offsets
        native.copy(to[begin : begin + size], random[source : source + size])
        assert np.array_equal(to[begin : begin + size], random[source : source + size])
        assert not to[:begin].any() and not to[begin + size :].any()
