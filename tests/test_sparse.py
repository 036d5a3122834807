"""Gradients of some rows: the dense rules on the rows named, by brute force; what repeated rows mean; bags."""

import copy
import gc
import pickle
import re
import weakref
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import RowSparse, functional
from fastopt.arrays.libraries import view
from fastopt.backends import native
from fastopt.binding.sparse import each_once
from fastopt.jobs.job import DUPLICATES
from fastopt.jobs.tables import check_rows
from fastopt.rules import RULES

from .oracle.rows import sum_rows
from .pages import example
from .support import CASES, assert_same_bits, compiled_for_each, make_states, misaligned

BACKENDS = ["native", "numba"]
BY_ROWS = [name for name, rule in RULES.items() if not rule.by_tensor]
WIDTHS = [
    (),
    (1,),
    (3,),
    (2, 8),
    (700,),
]  # of rows: numbers, tiles of several rows, rows in their places, several tiles


def lookups(rows, count, width, dtype, seed=0):
    """Indices with repetitions, in any order, and their gradients."""
    rng = np.random.default_rng(seed)
    indices = (rows * rng.random(count) ** 3).astype(np.int64)
    return indices, rng.standard_normal((count, *width)).astype(dtype)


def table(name, hyper, rows, width, dtype, seed=1):
    param = np.random.default_rng(seed).standard_normal((rows, *width)).astype(dtype)
    return [param, *make_states(name, hyper, param)]


def rows_of(name, arrays, chosen):
    """Copies of some rows of a parameter and its states."""
    param, *states = arrays
    return [param[chosen].copy(), *(s[:, chosen].copy() if RULES[name].vector else s[chosen].copy() for s in states)]


def put_rows(name, arrays, chosen, own):
    arrays[0][chosen] = own[0]
    for state, part in zip(arrays[1:], own[1:], strict=True):
        state[(slice(None), chosen) if RULES[name].vector else chosen] = part


def brute_force(name, hyper, arrays, indices, values, duplicates, step):
    """The dense rule on each row that is named: with the sum of its gradients, or with one after the other."""
    function = getattr(functional, name)
    summed = sum_rows(indices, values)
    for row in np.unique(indices):
        mine = [summed[row]] if duplicates == "sum" else values[indices == row]
        own = rows_of(name, arrays, [row])
        for g in mine:
            function(own[0], np.asarray(g)[None], *own[1:], step=step, **hyper)
        put_rows(name, arrays, [row], own)


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize(("name", "backend"), compiled_for_each(BY_ROWS, BACKENDS))
def test_the_dense_rule_on_the_rows_that_are_named(name, duplicates, backend):
    name, hyper = CASES[f"{name}, varied"]
    for width, dtype, index in zip(WIDTHS, ["f4", "f8", "f4", "f4", "f4"], ["i4", "i8", "i8", "i4", "i8"], strict=True):
        want, got = (table(name, hyper, 29, width, dtype) for _ in range(2))
        untouched = want[0][28].copy()
        for step in range(1, 4):
            indices, values = lookups(28, 40, width, dtype, seed=step)
            brute_force(name, hyper, want, indices, values, duplicates, step)
            gradient = RowSparse(indices.astype(index), values, duplicates=duplicates)
            # One thread: what racing threads do is not told beforehand.
            getattr(functional, name)(got[0], gradient, *got[1:], step=step, **hyper, backend=backend, threads=1)
        assert_same_bits(got, want)
        assert_same_bits([got[0][28]], [untouched])


@pytest.mark.parametrize("width", [(1,), (64,)])
@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
@pytest.mark.parametrize("name", ["adam", "sgd", "aggmo"])
def test_threads_and_backends_agree(name, duplicates, width):
    name, hyper = CASES[f"{name}, varied"]
    indices, values = lookups(5000, 60_000, width, "f4")
    gradient = RowSparse(indices, values, duplicates=duplicates)
    results = []
    for backend, threads in (("native", 1), ("native", 2), ("native", 4), ("numba", 1), ("numba", 3)):
        arrays = table(name, hyper, 5000, width, "f4")
        getattr(functional, name)(arrays[0], gradient, *arrays[1:], step=1, **hyper, backend=backend, threads=threads)
        results.append(arrays)
    for arrays in results[1:]:
        assert_same_bits(arrays, results[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_racing_threads_lose_no_row_that_is_named_once(backend):
    indices = np.random.default_rng(0).permutation(20_000)
    values = np.random.default_rng(1).standard_normal((20_000, 8), np.float32)
    results = []
    for duplicates, threads in (("sum", 1), ("hogwild", 3)):
        p = np.ones((20_000, 8), "f4")
        gradient = RowSparse(indices, values, duplicates=duplicates)
        functional.sgd(p, gradient, step=1, lr=0.5, backend=backend, threads=threads)
        results.append(p)
    assert_same_bits(*([r] for r in results))


FEW = (0, 1, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025)
MANY = (32767, 5, 32768, 0, 32769, 4095, 4096, 4097)
TREES = [(FEW, width) for width in (*range(1, 18), 63, 64, 65, 128, 256, 600)] + [(MANY, 3), (MANY, 16)]


def of_sizes(sizes, width, dtype="f4"):
    """Shuffled lookups, of row r as many as sizes[r], and their gradients."""
    rng = np.random.default_rng(width)
    indices = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = rng.standard_normal((len(indices), width)).astype(dtype)
    return indices, values


def sums_of(indices, values, rows):
    """The sum of each row by the oracle."""
    sums = np.zeros((rows, *values.shape[1:]), np.result_type(values.dtype, np.float32))
    for row, total in sum_rows(indices, values.astype(sums.dtype)).items():
        sums[row] = total
    return sums


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sum_of_a_row_is_a_tree_of_32(backend):
    for sizes, width in TREES:
        indices, values = of_sizes(sizes, width)
        want = sums_of(indices, values, len(sizes))
        for threads in (1, 2):
            got = np.zeros((len(sizes), width), "f4")
            gradient = RowSparse(indices, values)
            functional.sgd(got, gradient, step=1, lr=1.0, maximize=True, backend=backend, threads=threads)
            assert_same_bits([got], [want])
        coalesced = RowSparse(indices, values).coalesced()
        assert_same_bits([coalesced.values.numpy()], [want[np.unique(indices)]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["f8", "f2"])
def test_the_tree_of_other_dtypes(dtype, backend):
    for width in (3, 64, 600):
        indices, values = of_sizes(FEW, width, dtype)
        want = sums_of(indices, values, len(FEW))
        got = np.zeros((len(FEW), width), want.dtype)
        functional.sgd(got, RowSparse(indices, values), step=1, lr=1.0, maximize=True, backend=backend)
        assert_same_bits([got], [want])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tree_of_weighted_bags(backend):
    indices, _ = of_sizes(FEW, 1)
    rng = np.random.default_rng(0)
    offsets = np.sort(rng.integers(0, len(indices), 50))
    offsets[0] = 0
    values, weights = rng.standard_normal((50, 20), np.float32), rng.standard_normal(len(indices), np.float32)
    expanded = np.repeat(values, np.diff([*offsets, len(indices)]), axis=0) * weights[:, None]
    got = np.zeros((len(FEW), 20), "f4")
    gradient = RowSparse.bags(indices, offsets, values, weights)
    functional.sgd(got, gradient, step=1, lr=1.0, maximize=True, backend=backend)
    assert_same_bits([got], [sums_of(indices, expanded, len(FEW))])


@pytest.mark.parametrize("width", [1, 20, 112, 600])
@pytest.mark.parametrize("storage", [{}, {"gradient_noise": fastopt.GradientNoise(0.1)}])
@pytest.mark.parametrize("name", ["adam", "rowwise_adagrad"])
def test_threads_and_backends_agree_on_rows_of_many_lookups(name, storage, width):
    """Tiles of several rows, rows of several tiles, gradients that are prepared: the sum is the same tree."""
    indices, values = of_sizes((*FEW, 4097, 9000), width)
    results = []
    for backend, threads in (("native", 1), ("native", 2), ("native", 4), ("numba", 1), ("numba", 2)):
        arrays = table(name, {}, len(FEW) + 2, (width,), "f4")
        own = {"backend": backend, "threads": threads, **storage}
        getattr(functional, name)(arrays[0], RowSparse(indices, values), *arrays[1:], step=1, lr=0.1, **own)
        results.append(arrays)
    for arrays in results[1:]:
        assert_same_bits(arrays, results[0])
    if not storage:
        want = table(name, {}, len(FEW) + 2, (width,), "f4")
        brute_force(name, {"lr": 0.1}, want, indices, values, "sum", 1)
        assert_same_bits(results[0], want)


@pytest.mark.parametrize("decays", [{"weight_decay": 0.01, "decoupled_weight_decay": 0.1}, {}], ids=["decays", "none"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "rowwise_adagrad"])
def test_rules_with_loops_of_their_own_over_rows(name, dtype, decays):
    """Rows of whole lines, up to a tile; some of a line less or more, and unaligned ones, which the loops leave."""
    hyper = {"lr": 0.1, "grad_scale": 0.5, **decays}
    for width in (15, 16, 17, 64, 112, 128, 144, 512, 528):
        indices, values = of_sizes(FEW, width, dtype)
        want = table(name, {}, len(FEW) + 2, (width,), dtype)
        brute_force(name, hyper, want, indices, values, "sum", 1)
        for level in native.isa_supported():
            native.set_isa(level)
            try:
                got = table(name, {}, len(FEW) + 2, (width,), dtype)
                beside = [misaligned(array) for array in got]
                for arrays in (got, beside):
                    getattr(functional, name)(arrays[0], RowSparse(indices, values), *arrays[1:], step=1, **hyper)
                    assert_same_bits(arrays, want)
            finally:
                native.set_isa(None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("duplicates", "want"), [("sum", -0.1), ("sequential", -0.170711), ("hogwild", -0.170711)])
def test_what_a_repeated_row_means(duplicates, want, backend):
    """A row named twice with g = 1, lr 0.1, accumulator 0: FBGEMM and torch sum, TensorFlow's raw op does not."""
    p, s = np.zeros((3, 1)), np.zeros((3, 1))
    gradient = RowSparse(np.array([1, 1]), np.ones((2, 1)), duplicates=duplicates)
    functional.adagrad(p, gradient, s, step=1, lr=0.1, eps=0.0, backend=backend, threads=1)
    np.testing.assert_allclose(p, [[0], [want], [0]], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("of", [1, 3, 2**31, 2**63])
@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257])
def test_each_once_finds_what_numpy_finds(dtype, of, count):
    most = min(of - 1, np.iinfo(dtype).max)
    indices = np.random.default_rng(count).integers(0, most, count, dtype, endpoint=True)
    indices[-1:] = most
    for found, expected in zip(each_once(indices), np.unique(indices, return_inverse=True), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3000),
    count=st.integers(0, 300),
    width=st.sampled_from([1, 2, 17, 600]),
    seed=st.integers(0, 2**32 - 1),
    backend=st.sampled_from(BACKENDS),
)
def test_summing_is_exact(rows, count, width, seed, backend):
    """Small whole numbers add up exactly, whatever the order."""
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, rows, count)
    values = rng.integers(-50, 50, (count, width)).astype("f4")
    want = np.zeros((rows, width), "f4")
    np.add.at(want, indices, values)
    got = np.zeros((rows, width), "f4")
    functional.sgd(got, RowSparse(indices, values), step=1, lr=1.0, maximize=True, backend=backend)
    np.testing.assert_array_equal(got, want)
    coalesced = RowSparse(indices, values).coalesced()
    np.testing.assert_array_equal(coalesced.indices, np.unique(indices))
    np.testing.assert_array_equal(coalesced.values.numpy(), want[np.unique(indices)])


def test_arrays_beside_a_rules_own_have_the_parameters_shape():
    """An average, or what is lost in rounding: the message says as which array's it is to be."""
    p, state = np.ones((5, 2), "f4"), np.zeros(5, "f4")
    rows = RowSparse(np.array([0]), np.ones((1, 2), "f4"))
    for name, own in (("rowwise_adagrad", state), ("adagrad", p.copy())):
        arrays = [view(x, "") if isinstance(x, np.ndarray) else x for x in (p, rows, own, state[:4])]
        with pytest.raises(ValueError, match=r"average: found shape \(4,\), expected \(5, 2\) as p has"):
            check_rows(RULES[name], arrays, ["p", "g", "state", "average"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad"])
def test_rows_longer_than_a_thread_s_share(name, duplicates, backend):
    indices = np.array([3, 0, 1])
    values = np.random.default_rng(0).standard_normal((3, 300_000), np.float32)
    want, got = (table(name, {}, 4, (300_000,), "f4") for _ in range(2))
    brute_force(name, {"lr": 0.1}, want, indices, values, duplicates, 1)
    gradient = RowSparse(indices, values, duplicates=duplicates)
    getattr(functional, name)(got[0], gradient, *got[1:], step=1, lr=0.1, backend=backend, threads=2)
    assert_same_bits(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
@pytest.mark.parametrize("rows", [2**11, 2**20, 2**22 + 5])
def test_lookups_that_crowd_in_a_large_table(rows, duplicates, backend):
    """Rows are told apart by more bits than are sorted by at once, and each row's gradients stay in their order."""
    rng = np.random.default_rng(0)
    indices = np.concatenate([rng.integers(0, rows, 1000), rows - 1 - rng.integers(0, 1500, 3000)])
    rng.shuffle(indices)
    values = rng.standard_normal((4000, 1), np.float32)
    want = np.zeros((rows, 1), "f4")
    np.subtract.at(want, indices, values)
    got = np.zeros((rows, 1), "f4")
    functional.sgd(got, RowSparse(indices, values, duplicates=duplicates), step=1, lr=1.0, backend=backend)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
@pytest.mark.parametrize("width", [6, 1300])
def test_misaligned_rows_of_a_rule_by_row(width, duplicates, backend):
    indices, values = lookups(20, 30, (width,), "f4")
    gradient = RowSparse(indices, values, duplicates=duplicates)
    hyper = CASES["rowwise_adagrad, varied"][1]
    want = table("rowwise_adagrad", hyper, 20, (width,), "f4")
    got = [misaligned(array) for array in want]
    for step in (1, 2):
        for arrays in (want, got):
            functional.rowwise_adagrad(arrays[0], gradient, *arrays[1:], step=step, **hyper, backend=backend)
    assert_same_bits(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend):
    """Strided and misaligned rows, gradients of any layout, and indices that are views."""
    indices, values = lookups(20, 30, (6,), "f4")
    want, m, v = table("adam", CASES["adam, varied"][1], 20, (6,), "f4")
    start = want.copy()
    functional.adam(want, RowSparse(indices, values), m, v, step=1)

    def wide(a):
        b = np.zeros((a.shape[0], 11), a.dtype)[:, 2:8]
        b[...] = a
        return b

    def backwards(a):
        return np.ascontiguousarray(a[::-1])[::-1]

    for place in (wide, misaligned, backwards):
        p, m, v = place(start), place(np.zeros_like(start)), place(np.zeros_like(start))
        for gradient in (values, np.asfortranarray(values), misaligned(values), backwards(values)):
            got = p.copy() if place is not misaligned else misaligned(p)
            own = [place(got), place(np.zeros_like(start)), place(np.zeros_like(start))]
            spread = np.repeat(indices, 2)[::2]
            functional.adam(own[0], RowSparse(spread, gradient), *own[1:], step=1, backend=backend)
            assert_same_bits([own[0]], [want])
    with pytest.raises(ValueError, match="param: found rows whose elements are not contiguous"):
        functional.sgd(np.asfortranarray(start), RowSparse(indices, values), step=1)


def test_classes_take_rows_where_a_dense_gradient_may_stand():
    rng = np.random.default_rng(0)
    start = [rng.standard_normal((50, 4)).astype("f4"), rng.standard_normal(7).astype("f4")]
    for backend in BACKENDS:
        params = {"table": start[0].copy(), "bias": start[1].copy()}
        optimizer = fastopt.Adam(params, lr=lambda t: 0.1 / t, weight_decay=0.1, backend=backend)
        want = [a.copy() for a in start]
        states = [[np.zeros_like(a), np.zeros_like(a)] for a in start]
        for t in range(1, 6):
            indices, values = lookups(50, 9, (4,), "f4", seed=t)
            g = rng.standard_normal(7).astype("f4")
            gradient = RowSparse(indices, values) if t != 3 else np.ones((50, 4), "f4")
            optimizer.step({"table": gradient, "bias": g if t != 2 else None})
            functional.adam(want[0], gradient, *states[0], step=t, lr=0.1 / t, weight_decay=0.1)
            if t != 2:
                bias = t if t < 2 else t - 1
                functional.adam(want[1], g, *states[1], step=bias, lr=0.1 / bias, weight_decay=0.1)
        assert_same_bits([params["table"], params["bias"]], want)
        assert [int(s["step"]) for s in optimizer.state] == [5, 4]


@pytest.mark.parametrize("duplicates", ["sum", "sequential", "hogwild"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_reads_what_its_arrays_hold(backend, dtype, duplicates):
    first, p = np.zeros((5, 2), "f4"), np.zeros((5, 2), "f4")
    indices, values = np.array([1, 1, 3], dtype), np.ones((3, 2), "f4")
    optimizer = fastopt.SGD({"first": first, "table": p}, lr=1.0, backend=backend)
    good = RowSparse(np.array([0, 4]), np.ones((2, 2), "f4"))
    plan = optimizer.bind({"first": good, "table": RowSparse(indices, values, duplicates=duplicates)})
    plan.step()
    indices[2], values[...] = 4, 2.0
    plan.step()
    np.testing.assert_array_equal(p[:, 0], [0, -6, 0, -1, -2])
    before = first.copy()
    for bad in (5, 9, -1, 10**9, -(2**31), -(2**62))[: 5 if dtype == np.int32 else 6]:
        indices[0] = bad
        expected = rf"grads\['table'\]: found index {bad}, expected 0 to 4, as params\['table'\] has 5 rows"
        with pytest.raises(ValueError, match=expected):
            plan.step()
        assert optimizer.state[0]["step"] == optimizer.state[1]["step"] == 2
    np.testing.assert_array_equal(p[:, 0], [0, -6, 0, -1, -2])
    np.testing.assert_array_equal(first, before)


def test_norms_and_scaling():
    indices, values = np.array([2, 0, 2]), np.array([[3.0, 0.0], [0.0, 5.0], [0.0, 4.0]])
    gradient = RowSparse(indices, values)
    norm = np.sqrt(3**2 + 4**2 + 5**2)
    assert fastopt.global_norm([gradient, np.array([1.0])]) == pytest.approx(np.sqrt(norm**2 + 1))
    p = np.zeros((3, 2))
    optimizer = fastopt.SGD(p, lr=1.0)
    optimizer.step(gradient, max_norm=norm / 2, grad_scale=1.0)
    assert optimizer.last_grad_norm == pytest.approx(norm)
    np.testing.assert_allclose(p, [[0, -2.5], [0, 0], [-1.5, -2]], rtol=1e-5)
    assert fastopt.clip_grad_norm_([gradient], 1.0) == pytest.approx(norm)
    np.testing.assert_allclose(values, np.array([[3.0, 0.0], [0.0, 5.0], [0.0, 4.0]]) / norm, rtol=1e-5)


# ---- bags ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("mode", "weighted"), [("sum", False), ("sum", True), ("mean", False)])
def test_bags_are_their_expansion(mode, weighted, backend):
    rng = np.random.default_rng(0)
    indices, offsets = rng.integers(0, 30, 100), np.sort(rng.integers(0, 101, 24))
    offsets[0] = 0
    values = rng.standard_normal((24, 5)).astype("f4")
    weights = rng.standard_normal(100).astype("f4") if weighted else None
    sizes = np.diff([*offsets, 100])
    expanded = np.repeat(values, sizes, axis=0)
    if weighted:
        expanded = expanded * weights[:, None]
    if mode == "mean":
        expanded = expanded * np.repeat(np.float32(1) / np.maximum(sizes, 1).astype("f4"), sizes)[:, None]
    for duplicates in DUPLICATES:
        arrays = [[np.ones((30, 5), "f4"), np.zeros((30, 5), "f4")] for _ in range(3)]
        bag = {"mode": mode, "duplicates": duplicates}
        gradients = [
            RowSparse(indices, expanded, duplicates=duplicates),
            RowSparse.bags(indices, offsets, values, weights, **bag),
            RowSparse.bags(indices.astype("i4"), [*offsets, 100] @ np.eye(25, dtype="i4"), values, weights, **bag),
        ]
        for (p, s), gradient in zip(arrays, gradients, strict=True):
            functional.adagrad(p, gradient, s, step=1, lr=0.1, weight_decay=0.1, backend=backend, threads=1)
        assert_same_bits(arrays[1], arrays[0])
        assert_same_bits(arrays[2], arrays[0])


def test_the_example_of_the_page():
    names = {}
    exec(example("fastopt/jobs", "RowSparse.bags"), names)
    assert set(np.flatnonzero(names["table"].any(axis=1))) == set(names["indices"])


# ---- other libraries ----


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_an_embedding_bag_of_torch(mode):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    bag = torch.nn.EmbeddingBag(40, 6, mode=mode)
    indices, offsets = torch.randint(0, 40, (90,)), torch.tensor([0, 10, 10, 50])
    weights = torch.randn(90) if mode == "sum" else None
    upstream = torch.randn(4, 6)
    (bag(indices, offsets, per_sample_weights=weights) * upstream).sum().backward()
    table = bag.weight.detach().numpy().copy()
    want = table - 0.5 * bag.weight.grad.numpy()
    functional.sgd(table, RowSparse.bags(indices, offsets, upstream, weights, mode=mode), step=1, lr=0.5)
    np.testing.assert_allclose(table, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [("SparseAdam", "Adam", {"eps_hat": True}), ("Adagrad", "Adagrad", {}), ("SGD", "SGD", {})],
)
def test_torchs_sparse_gradients(name, ours, options, duplicated):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import fastopt.torch as optim

    torch.manual_seed(0)
    one = torch.nn.Embedding(30, 5, sparse=True)
    two = torch.nn.Embedding(30, 5, sparse=True)
    two.load_state_dict(one.state_dict())
    three = one.weight.detach().numpy().copy()
    head = [torch.ones(5, requires_grad=True) for _ in range(2)]
    reference = getattr(torch.optim, name)(one.parameters(), lr=0.1)
    optimizer = getattr(optim, name)([two.weight, head[1]], lr=0.1)
    arrays = getattr(fastopt, ours)(three, lr=0.1, **options)
    for t in range(8):
        indices = torch.randint(0, 30, (12,)) if duplicated else torch.randperm(30)[:12]
        upstream = torch.randn(12, 5)
        for table, own in ((one, head[0]), (two, head[1])):
            table.zero_grad()
            own.grad = None
            ((table(indices) * upstream).sum() + (own * own).sum() * (t % 2)).backward()
            assert table.weight.grad.is_sparse
        arrays.step([two.weight.grad])
        reference.step()
        optimizer.step()
        if t == 3:
            optimizer.load_state_dict(optimizer.state_dict())
        if t == 5 and name == "SparseAdam":  # a run goes on with the other's state
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer.load_state_dict({**saved, "state": {**saved["state"], 0: reference.state_dict()["state"][0]}})
            del saved["state"][1], saved["param_groups"][0]["params"][1]
            reference.load_state_dict(saved)
            arrays.state[0]["exp_avg"][...] = optimizer.state[two.weight]["exp_avg"]
            arrays.state[0]["exp_avg_sq"][...] = optimizer.state[two.weight]["exp_avg_sq"]
            three[...] = two.weight.detach().numpy()
    torch.testing.assert_close(two.weight, one.weight, rtol=1e-5, atol=1e-6)
    assert_same_bits([two.weight.detach().numpy()], [three])
    assert (head[1].detach() != 1).all()
    before = two.weight.detach().clone()
    two.weight.grad = torch.sparse_coo_tensor([[0]], torch.full((1, 5), 3.0), (30, 5))
    head[1].grad = None
    optimizer.step(max_norm=1e-6)
    assert optimizer.last_grad_norm == pytest.approx(3 * np.sqrt(5))
    assert (two.weight[1:] == before[1:]).all()


def test_rows_of_scipy_matrices():
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    rng = np.random.default_rng(0)
    x = sparse.random(10, 40, density=0.2, format="csr", dtype=np.float64, rng=rng)
    for matrix in (x, sparse.csr_array(x), x.tocoo()):
        w, b = np.zeros(40), np.zeros((10, 40))
        optimizer = fastopt.SGD([w, b], lr=1.0)
        optimizer.step([sparse.csr_array(x)[[3]] * 2.0, matrix])
        np.testing.assert_array_equal(w, -2.0 * x.toarray()[3])
        np.testing.assert_array_equal(b, -x.toarray())


SCIPY_FORMATS = ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"]


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", SCIPY_FORMATS)
def test_every_format_of_scipy(form, kind):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    dense = np.array([[0.0, 2, 0, 1], [0, 0, 0, 0], [3, 0, 0, 4]])
    make = getattr(sparse, f"{form}_{kind}")
    cases = [(make(dense), dense, (3, 4)), (make(dense[:1]), dense[:1], (1, 4)), (make(dense[:1]), dense[:1], (4,))]
    cases += [(make(dense[:, :1]), dense[:, :1], (3, 1)), (make((3, 4)), 0 * dense, (3, 4))]
    if kind == "array" and form in ("coo", "csr", "dok"):
        cases.append((make(dense[2]), dense[2], (4,)))
    for gradient, want, shape in cases:
        for backend in BACKENDS:
            p = np.zeros(shape)
            functional.sgd(p, gradient, step=1, lr=1.0, backend=backend)
            np.testing.assert_array_equal(p, -want.reshape(shape))
        optimizer = fastopt.SGD([q := np.zeros(shape), np.zeros(2)], lr=1.0)
        optimizer.step([gradient, np.zeros(2)])
        np.testing.assert_array_equal(q, -want.reshape(shape))
        for alone in (q := np.zeros(shape), [q], [{"params": q}]):
            q[...] = 0
            fastopt.SGD(alone, lr=1.0).step(gradient if alone is q else [gradient])
            np.testing.assert_array_equal(q, -want.reshape(shape))
        for grads in (gradient, [gradient], {"w": gradient}):
            assert fastopt.global_norm(grads) == pytest.approx(np.linalg.norm(want))


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_a_row_that_is_not_finite_skips_the_step(backend):
    p, q = np.ones((5, 2), "f4"), np.ones(3, "f4")
    optimizer = fastopt.SGD([p, q], lr=1.0, backend=backend)

    def step(last):
        rows = np.array([[1.0, 2.0], [3.0, last]], "f4")
        optimizer.step([fastopt.RowSparse(np.array([1, 3]), rows), np.ones(3, "f4")], skip_nonfinite=True)
        return optimizer.last_step_skipped

    for bad in (np.nan, np.inf, -np.inf):
        assert step(bad)
        assert (p == 1).all() and (q == 1).all()
    assert not step(4.0)
    np.testing.assert_array_equal(p, [[1, 1], [0, -1], [1, 1], [-2, -3], [1, 1]])
    np.testing.assert_array_equal(q, np.zeros(3))


def test_entries_that_are_there_twice_are_summed():
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    row, column, data = [0, 2, 0], [1, 0, 1], np.array([1.0, 2.0, 4.0])
    doubled = sparse.csr_array((np.ones(3), np.array([1, 1, 0]), np.array([0, 2, 3])), (2, 2))
    assert not doubled.has_canonical_format
    whole = torch.sparse_coo_tensor([row], torch.from_numpy(data)[:, None], (3, 1), is_coalesced=False)
    for gradient, want in [
        (sparse.coo_array((data, (row, column)), (3, 2)), [[0, 5], [0, 0], [2, 0]]),
        (sparse.coo_array((data, (row,)), (3,)), [5, 0, 2]),
        (sparse.coo_array((0,)), []),
        (sparse.coo_array((data, ([0, 0, 0], row)), (1, 3)), [5, 0, 2]),
        (
            sparse.coo_array((data, (row, column, column)), (3, 2, 2)),
            [[[0, 0], [0, 5]], np.zeros((2, 2)), [[2, 0], [0, 0]]],
        ),
        (doubled, [[0, 2], [1, 0]]),
        (whole, [[5], [0], [2]]),
    ]:
        p = np.zeros(np.shape(want))
        functional.sgd(p, gradient, step=1, lr=1.0)
        np.testing.assert_array_equal(p, np.negative(want))


def test_the_whole_shape_of_a_sparse_gradient():
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    coo = torch.sparse_coo_tensor([[0, 1]], torch.ones(2, 4, dtype=torch.float64), (9, 4))
    for gradient, found, shape in [
        (sparse.csr_array((9, 2)), (9, 2), (3, 2)),
        (sparse.csr_array(np.ones((2, 2))), (2, 2), (3, 2)),
        (sparse.csr_array(np.ones((1, 9))), (9,), (4,)),
        (sparse.csr_array(np.ones((1, 3))), (3,), (4,)),
        (sparse.csr_array(np.ones((1, 2))), (1, 2), (3, 2)),
        (sparse.csr_array(np.ones((4, 1))), (4, 1), (4,)),
        (sparse.csr_array(np.ones((3, 4))), (3, 4), (3, 2, 2)),
        (coo, (9, 4), (3, 4)),
        (coo, (9, 4), (9, 5)),
    ]:
        p = np.ones(shape)
        optimizer = fastopt.Adam([p, np.ones(3)])
        expected = re.escape(f": found shape {found}, expected {shape} as param")
        for call in (
            lambda g=gradient, p=p: functional.sgd(p, g, step=1, lr=1.0),
            lambda g=gradient, o=optimizer: o.step([g, np.ones(3)]),
            lambda g=gradient, o=optimizer: o.bind([g, np.ones(3)]),
        ):
            with pytest.raises(ValueError, match=expected):
                call()
        assert (p == 1).all() and optimizer.state[0]["step"] == 0
    with pytest.raises(TypeError, match=r"grads\[1\]: found dtype int64, expected float32"):
        fastopt.SGD([np.ones(3), np.ones((3, 2))], lr=1.0).step([None, sparse.csr_array(np.ones((3, 2), int))])


def test_rows_that_were_copied_are_not_clipped_in_place():
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    with pytest.raises(ValueError, match="grads: found rows that are copied"):
        fastopt.clip_grad_norm_(sparse.csr_array(np.ones((3, 2))), 0.1)


# ---- what was checked stays ----


def test_nothing_that_was_checked_can_be_set():
    values = np.ones((2, 3))
    for rows in (RowSparse([0, 1], values), RowSparse.bags([0, 1], [0, 1], values, np.ones(2))):
        for name, value in [
            ("indices", np.arange(10**6)),
            ("values", np.ones((10**6, 3))),
            ("duplicates", "bogus"),
            ("weights", np.ones(1)),
        ]:
            with pytest.raises(AttributeError):
                setattr(rows, name, value)
        for name, value in [("shape", (10**6, 3)), ("address", 1), ("dtype", np.dtype("f8"))]:
            with pytest.raises(AttributeError):
                setattr(rows.values, name, value)
        rows.indices.dtype = "i4"
        values.shape = (6, 1)
        p = np.zeros((5, 3))
        functional.sgd(p, rows, step=1, lr=1.0)
        np.testing.assert_array_equal(p, [[-1] * 3, [-1] * 3, [0] * 3, [0] * 3, [0] * 3])
        values.shape = (2, 3)


def test_memory_of_rows_cannot_be_moved():
    arrays = {
        "indices": np.array([0, 1]),
        "values": np.ones((2, 3)),
        "weights": np.ones(2),
    }
    rows = RowSparse.bags(arrays["indices"], [0, 1], arrays["values"], arrays["weights"])
    plan = fastopt.SGD(np.zeros((5, 3)), lr=1.0).bind(rows)
    for array in arrays.values():
        with pytest.raises(ValueError, match="resize"):
            array.resize(10**6, refcheck=False)
    del plan, rows
    arrays["values"].resize(10**6, refcheck=False)


def test_tensors_of_rows_that_are_given_other_memory():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for which, message in enumerate(["indices", "values"]):
        tensors = [torch.tensor([0, 1] * 500), torch.ones(1000, 3)]
        p = np.zeros((5, 3), "f4")
        rows = RowSparse(*tensors)
        plan = fastopt.SGD(p, lr=1.0).bind(rows)
        tensors[which].data = tensors[which].new_zeros(1000, 3)[:, 0] if which == 0 else torch.zeros(1000, 3)
        taken = [torch.full((1000, 3), 7.0) for _ in range(20)]
        plan.step()
        np.testing.assert_array_equal(p[:, 0], [-500, -500, 0, 0, 0])
        with pytest.raises(ValueError, match=f"grad: found {message} that were given other memory"):
            functional.sgd(p, rows, step=1, lr=1.0)
        assert len(taken) == 20


def test_copies_are_of_copied_arrays():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weighted = RowSparse.bags([0, 1, 1], [0, 2], np.ones((2, 3)), np.array([1.0, 2.0, 3.0]), duplicates="sequential")
    for rows in (
        RowSparse([0, 3], np.ones((2, 3))),
        weighted,
        RowSparse([0, 1], torch.ones(2, 3, dtype=torch.bfloat16)),
    ):
        for copied in (copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):
            assert repr(copied) == repr(rows)
            assert copied.values.address != rows.values.address
            arrays = [np.zeros((5, 3), "f4" if "bfloat16" in repr(rows) else "f8") for _ in range(2)]
            for p, gradient in zip(arrays, (rows, copied), strict=True):
                functional.sgd(p, gradient, step=1, lr=1.0)
            assert_same_bits([arrays[0]], [arrays[1]])
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.copy(rows.values)


@pytest.mark.parametrize("dtype", ["i1", "i2", "u1", "u2", "u4", "u8", ">i4", ">u8", "list", "tuple", "torch.int16"])
def test_integers_of_any_kind_are_indices(dtype):
    if dtype == "torch.int16":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        make = partial(torch.tensor, dtype=torch.int16)
    else:
        make = {"list": list, "tuple": tuple}.get(dtype, partial(np.array, dtype=dtype))
    values = np.ones((3, 2))
    for rows in (RowSparse(make([0, 3, 3]), values), RowSparse.bags(make([0, 3, 3]), make([0, 1, 2]), values)):
        p = np.zeros((4, 2))
        functional.sgd(p, rows, step=1, lr=1.0)
        np.testing.assert_array_equal(p[:, 0], [-1, 0, 0, -2])
    assert RowSparse([], np.ones((0, 2))).indices.size == 0


# ---- large, and bad ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_beyond_2_to_the_31_elements(backend):
    rows = 2**25 + 3
    table = np.zeros((rows, 64), "f4")  # pages that nobody touches are not there
    last = np.array([0, rows - 1, 2**25, rows - 1])
    functional.sgd(table, RowSparse(last, np.ones((4, 64), "f4")), step=1, lr=1.0, backend=backend)
    assert [table[i].sum() for i in (0, 1, 2**25, rows - 1)] == [-64, 0, -64, -128]


@pytest.mark.parametrize(
    ("indices", "values", "error", "message"),
    [
        ([0, 5], np.ones((2, 3)), ValueError, "grad: found index 5, expected 0 to 4, as param has 5 rows"),
        ([-1, 2], np.ones((2, 3)), ValueError, "grad: found index -1, expected 0 to 4"),
        ([0, 1], np.ones((2, 4)), ValueError, r"grad: found rows of shape \(4,\), expected \(3,\) as param has"),
        ([0, 1], np.ones((2, 3), "f4"), TypeError, "grad: found dtype float32, expected float64 beside param"),
        (
            [0, 1],
            np.ones((3, 3)),
            ValueError,
            r"values: found shape \(3, 3\), expected \(2, ...\), a row for each index",
        ),
        ([0, 1], np.ones(()), ValueError, r"values: found shape \(\)"),
        ([0.0, 1.0], np.ones((2, 3)), TypeError, "indices: found dtype float64, expected int32 or int64"),
        ([[0], [1]], np.ones((2, 3)), ValueError, "indices: found shape .* expected one dimension"),
        ([True, False], np.ones((2, 3)), TypeError, "indices: found dtype bool"),
        ([1, "a"], np.ones((2, 3)), TypeError, "indices: found dtype <U"),
        (np.array([1, 2**64 - 1], "u8"), np.ones((2, 3)), ValueError, "indices: found 18446744073709551615, expected"),
        (None, np.ones((2, 3)), TypeError, "indices: found NoneType"),
    ],
)
def test_bad_rows_change_nothing(indices, values, error, message):
    p, s = np.ones((5, 3)), np.ones((5, 3))
    for backend in BACKENDS:
        with pytest.raises(error, match=message):
            own = None if indices is None else np.array(indices)
            functional.adagrad(p, RowSparse(own, values), s, step=1, backend=backend)
        assert (p == 1).all() and (s == 1).all()


def test_other_bad_rows():
    rows = RowSparse(np.array([0]), np.ones((1, 3)))
    assert repr(rows) == "RowSparse(1 of float64 rows of shape (3,), duplicates='sum')"
    with pytest.raises(ValueError, match="duplicates: found 'add', expected one of sum, sequential, hogwild"):
        RowSparse(np.array([0]), np.ones((1, 3)), duplicates="add")
    with pytest.raises(ValueError, match="param: found a parameter without rows"):
        functional.sgd(np.array(1.0), RowSparse(np.array([0]), np.ones(1)), step=1)
    p = np.ones((5, 3))
    with pytest.raises(ValueError, match="grad: found memory shared with param"):
        functional.sgd(p, RowSparse(np.array([0]), p[1:2]), step=1)
    with pytest.raises(ValueError, match="read-only"):
        functional.sgd(np.broadcast_to(np.ones(3), (5, 3)), rows, step=1)
    bags = RowSparse.bags
    indices, values = np.arange(4), np.ones((2, 3))
    for arguments, error, message in [
        ((indices, np.array([0, 5]), values), ValueError, "offsets: found"),
        ((indices, np.array([1, 2]), values), ValueError, "offsets: found"),
        ((indices, np.array([0, 3, 2]), values), ValueError, "offsets: found"),
        ((indices, np.array([0]), values), ValueError, "expected 2 or 3 of them"),
        ((indices, np.array([0, 2]), values, np.ones(3)), ValueError, r"weights: .* expected float64 of shape \(4,\)"),
        ((indices, np.array([0, 2]), values, np.ones(4, "f4")), ValueError, "weights: found float32"),
    ]:
        with pytest.raises(error, match=message):
            bags(*arguments)
    with pytest.raises(ValueError, match="mode: found 'max'"):
        bags(indices, np.array([0, 2]), values, mode="max")
    with pytest.raises(ValueError, match="weights: found some with mode 'mean'"):
        bags(indices, np.array([0, 2]), values, np.ones(4), mode="mean")
    empty = np.ones((5, 3))
    functional.sgd(empty, RowSparse(np.zeros(0, int), np.ones((0, 3))), step=1)
    functional.sgd(np.ones((5, 0)), RowSparse(np.zeros(2, int), np.ones((2, 0))), step=1)
    assert (empty == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_rows_take_the_place_of_those_before(backend):
    """Steps by one optimizer with gradients that differ in size, place, kind and dtype are those of a new one for each.

    No gradient is kept, and what has become wrong is found at any step, before anything is written.
    """
    rng = np.random.default_rng(0)
    start, kept = rng.standard_normal((50, 16)).astype("f4"), []

    def plain(count, dtype=np.int64):
        values = rng.standard_normal((count, 16)).astype("f4")
        kept.append(weakref.ref(values))
        return RowSparse(rng.integers(0, 50, count).astype(dtype), values)

    def bag(weights=None):
        return RowSparse.bags(rng.integers(0, 50, 6), [0, 1, 1, 4], rng.standard_normal((4, 16)).astype("f4"), weights)

    def both(tables, optimizer, grad):
        want = [table.copy() for table in tables]
        anew = fastopt.Adagrad(want, lr=0.1, backend=backend)
        anew.load_state_dict(optimizer.state_dict())
        anew.step(grad)
        optimizer.step(grad)
        assert_same_bits(tables, want)

    tables = [start.copy(), start[:20].copy()]
    optimizer = fastopt.Adagrad(tables, lr=0.1, backend=backend)
    for make in [lambda: plain(4), lambda: plain(4), lambda: plain(70), lambda: plain(0), lambda: plain(9, np.int32),
                 lambda: plain(9), bag, bag, lambda: bag(np.ones(6, "f4")), lambda: plain(9)]:  # fmt: skip
        for dense in (None, np.ones_like(tables[1]), np.ones_like(tables[1])):
            both(tables, optimizer, [make(), dense])
    gc.collect()
    assert not any(ref() is not None for ref in kept)
    before, steps = [table.copy() for table in tables], optimizer.state[0]["step"].copy()
    for bad, message in [
        (RowSparse([3, 50], start[:2]), r"grads\[0\]: found index 50, expected 0 to 49"),
        (RowSparse([3, -1], start[:2]), r"grads\[0\]: found index -1, expected 0 to 49"),
        (RowSparse([3, 4], tables[0][:2]), "memory shared with"),
        (RowSparse([3, 4], tables[0][:4:2]), "memory shared with"),
        (RowSparse([3, 4], tables[1][:2]), "memory shared with"),
        (RowSparse([3, 4], optimizer.state[1]["sum"][:2]), "memory shared with"),
        (RowSparse([3, 4], start[:2].astype("f8")), "found dtype float64"),
        (RowSparse([3, 4], start[:2, :8]), "found rows of shape"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            optimizer.step([bad, np.ones_like(tables[1])])
        assert_same_bits(tables, before)
        assert optimizer.state[0]["step"] == steps
        both(tables, optimizer, [plain(5), None])
        before, steps = [table.copy() for table in tables], optimizer.state[0]["step"].copy()
    for owner in optimizer, fastopt.Adagrad(tables, lr=0.1, backend=backend):
        with pytest.raises(ValueError, match=r"grads\[1\]: found memory shared with params\[0\]"):
            owner.step([plain(5), tables[0][:20]])
    tables[0].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.step([plain(5), None])
