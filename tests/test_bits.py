"""Bits of updates: equal on every backend, instruction set, number of threads and layout, and near the oracle's."""

import itertools

import numpy as np
import pytest

import fastopt
from fastopt.backends import native
from fastopt.rules import RULES

from .oracle import ORACLES
from .support import (
    CASES,
    VARIED,
    assert_near_the_oracle,
    assert_same_bits,
    copies_of,
    decay_of,
    default_hyper,
    gradients,
    make_states,
    misaligned,
    parameter,
    run,
)

STEPS = 25
DTYPES = ["float32", "float64"]


@pytest.fixture
def isa():
    yield native.set_isa
    native.set_isa(None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_backends_and_instruction_sets_agree(case, dtype, isa):
    name, hyper = CASES[case]
    p0, grads = parameter(1037), gradients(1037, STEPS)
    want = run(name, hyper, p0, grads, dtype, backend="numba", threads=1)
    for level in native.isa_supported():
        isa(level)
        assert_same_bits(run(name, hyper, p0, grads, dtype, backend="native", threads=1), want)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_threads_agree(name, dtype, backend):
    n, steps = 300_007, 4  # beyond both backends' grain for four threads
    name, hyper = CASES[f"{name}, varied"]
    p0, grads = parameter(n), gradients(n, steps)
    want = run(name, hyper, p0, grads, dtype, backend="native", threads=1)
    for threads in (2, 3, 4):
        assert_same_bits(run(name, hyper, p0, grads, dtype, backend=backend, threads=threads), want)


def _strided(a):
    if not a.ndim:
        return a
    b = np.zeros((*a.shape[:-1], a.shape[-1] * 3), a.dtype)[..., 1::3]
    b[...] = a
    return b


def _reversed(a):
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1] if a.ndim else a


def _offset(a):
    b = np.zeros(a.size + 3, a.dtype)[3:].reshape(a.shape)
    b[...] = a
    return b


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("place", [_strided, _reversed, misaligned, _offset])
@pytest.mark.parametrize("name", RULES)
def test_layouts_agree(name, place, backend):
    name, hyper = CASES[f"{name}, varied"]
    for n in (1, 5, 1037):
        p0, grads = parameter(n), gradients(n, STEPS)
        want = run(name, hyper, p0, grads, "float32", backend="native")
        assert_same_bits(run(name, hyper, p0, grads, "float32", place=place, backend=backend), want)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.by_tensor])
def test_many_tensors_agree_with_one(name, dtype, backend):
    name, hyper = CASES[f"{name}, varied"]
    cuts = [0, 0, 1, 4, 20, 20, 333, 900, 1037]
    p0, grads = parameter(1037).astype(dtype), gradients(1037, STEPS).astype(dtype)
    want = run(name, hyper, p0, grads, dtype, backend="native")
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    params = [p0[part].copy() for part in parts]
    states = [list(s) for s in zip(*(make_states(name, hyper, p) for p in params), strict=True)] if want[1:] else []
    for t, g in enumerate(grads, 1):
        lists = [params, [g[part] for part in parts], *states]
        getattr(fastopt.functional, name)(*lists, step=t, **hyper, backend=backend, threads=3)
    got = [np.concatenate(params), *(np.concatenate(s, axis=-1) for s in states)]
    assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_axis_orders_and_broadcast_gradients(dtype):
    rng = np.random.default_rng(3)
    p0, g0 = rng.standard_normal((2, 5, 7, 3, 2)).astype(dtype)
    want = [p0.copy(), np.zeros_like(p0), np.zeros_like(p0)]
    fastopt.functional.adam(want[0], g0, *want[1:], step=1, weight_decay=0.1)
    layouts = [
        lambda a: np.asfortranarray(a),
        lambda a: np.ascontiguousarray(a.transpose(2, 0, 3, 1)).transpose(1, 3, 0, 2),
        lambda a: np.pad(a, ((1, 2), (0, 1), (2, 0), (1, 1)))[1:-2, :-1, 2:, 1:-1],
        np.array,
    ]
    for a in layouts:
        for b in layouts:
            for backend in ("native", "numba"):
                p, g, m, v = a(p0), b(g0), a(np.zeros_like(p0)), b(np.zeros_like(p0))
                fastopt.functional.adam(p, g, m, v, step=1, weight_decay=0.1, backend=backend)
                assert_same_bits([p, m, v], want)
    p, m, v = p0.copy(), np.zeros_like(p0), np.zeros_like(p0)
    fastopt.functional.adam(p, np.broadcast_to(g0[0, 0, 0, 0], p0.shape), m, v, step=1)
    want = [p0.copy(), np.zeros_like(p0), np.zeros_like(p0)]
    fastopt.functional.adam(want[0], np.full_like(p0, g0[0, 0, 0, 0]), *want[1:], step=1)
    assert_same_bits([p, m, v], want)


def test_gaps_of_a_view_stay_as_they_are():
    whole = np.arange(30, dtype="f4").reshape(5, 6)
    before = whole.copy()
    fastopt.functional.sgd(whole[::2, 1:5:3], np.ones((3, 2), "f4"), step=1, lr=1.0)
    before[::2, 1:5:3] -= 1
    np.testing.assert_array_equal(whole, before)


# At Prodigy's first steps, of 1e-6, what it measures is the rounding of parameters.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if case != "prodigy, defaults"])
def test_near_the_oracle(case, dtype):
    name, hyper = CASES[case]
    p0 = parameter(511).astype(dtype)
    grads = gradients(511, STEPS).astype(dtype)
    got = run(name, hyper, p0, grads, dtype)
    assert np.abs(got[0] - p0).max() > 1e-3  # something has happened
    path = [ORACLES[name](p0, grads[:t], **hyper) for t in range(1, STEPS + 1)]
    assert_near_the_oracle(name, got, p0, path)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.by_tensor])
def test_nonfinite_gradients_stay_in_their_element(name, backend):
    name, hyper = CASES[f"{name}, varied"]
    p0, grads = parameter(40), gradients(40, 3)
    want = run(name, hyper, p0, grads, "float32", backend=backend)
    for bad in (np.nan, np.inf, -np.inf):
        grads[1, 7] = bad
        got = run(name, hyper, p0, grads, "float32", backend=backend)
        assert np.isfinite(got[0][7]) == (RULES[name].bounded and np.isinf(bad))
        if np.isnan(bad):
            at_once = run(name, hyper, p0, grads[:2], "float32", backend=backend)  # some are of the last gradient alone
            assert all(np.isnan(a[..., 7]).any() for a in at_once)
        others = np.arange(40) != 7
        assert_same_bits([a[..., others] for a in got], [a[..., others] for a in want])


def without_decay(name):
    """Other than default hyper-parameters, and no decay."""
    return {**default_hyper(name), **VARIED[name], **dict.fromkeys(decay_of(name), 0.0)}


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_of_zeros_of_both_signs_the_first_is_the_maximum(backend):
    p, g, m, v, largest = (np.zeros(100, "f4") for _ in range(5))
    largest[:] = -0.0
    fastopt.functional.amsgrad(p, g, m, v, largest, step=1, backend=backend)
    assert np.signbit(largest).all() and not np.signbit(v).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.by_tensor])  # which have norms
def test_infinite_parameters_stay_where_nothing_decays(name, dtype, isa):
    hyper = without_decay(name)
    p0, grads = parameter(203), gradients(203, 3)
    p0[::3], p0[1::12], grads[:, ::3], grads[:, 1::12] = -np.inf, np.inf, 0.0, 0.0
    if RULES[name].by_row:  # whose rows have elements of one kind
        p0, grads = np.tile(p0[:, None], 4), np.tile(grads[..., None], 4)
    want = run(name, hyper, p0, grads, dtype, backend="numba")
    for level in native.isa_supported():
        isa(level)
        assert_same_bits(run(name, hyper, p0, grads, dtype, backend="native"), want)
    assert not any(np.isnan(array).any() for array in want)
    if name != "ftrl":  # what its parameters were at first is forgotten
        np.testing.assert_array_equal(want[0][np.isinf(p0)], p0[np.isinf(p0)])
        expected, _ = ORACLES[name](p0, grads, **hyper)
        np.testing.assert_allclose(want[0], expected.astype(dtype), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in RULES if name != "ftrl" and not RULES[name].by_tensor])
def test_infinite_parameters_stay_in_16_bits_and_in_rows(name, kind, backend):
    kind = pytest.importorskip("ml_dtypes").bfloat16 if kind == "bfloat16" else kind
    p = np.full((6, 32), -np.inf, "f4").astype(kind)
    states = [state.astype("f4") for state in make_states(name, without_decay(name), p)]
    step = getattr(fastopt.functional, name)
    step(p, np.zeros((6, 32), "f4"), *states, step=1, **without_decay(name), backend=backend)
    rows = fastopt.RowSparse(np.array([4, 1, 4]), np.zeros((3, 32), "f4"))
    step(p, rows, *states, step=2, **without_decay(name), backend=backend)
    assert (p == -np.inf).all()


@pytest.mark.parametrize("name", [name for name in RULES if name != "novograd"])  # which has the sum of all squares
def test_squares_are_as_large_as_their_averages(name, isa):
    """States within float32 suffice: squares or corrected averages beyond it leave the update near the oracle's."""
    hyper = {**without_decay(name), "eps": 1e-8} if "eps" in RULES[name].hyper else without_decay(name)
    hyper |= {
        key: value for key, value in default_hyper(name).items() if key in ("beta1", "beta2", "beta3", "alpha", "rho")
    }
    hyper |= {"max_corrected": False} if "max_corrected" in hyper else {}  # else the state is the corrected average
    p0, grads = np.ones(97), np.outer([1, -0.7, 0.4], np.geomspace(1e17, 3e20, 97))
    states = [state for t in (1, 2, 3) for state in ORACLES[name](p0, grads[:t], **hyper)[1].values() if state.ndim]
    fits = np.logical_and.reduce([np.abs(state) < 1e38 for state in states], initial=True)
    fits = np.broadcast_to(fits.all(axis=0) if RULES[name].vector else fits, p0.shape)
    expected, _ = ORACLES[name](p0, grads, **hyper)
    want = run(name, hyper, p0, grads, "float32", backend="numba")
    for level in native.isa_supported():
        isa(level)
        assert_same_bits(run(name, hyper, p0, grads, "float32", backend="native"), want)
    np.testing.assert_allclose(want[0][fits], expected.astype("f4")[fits], rtol=1e-4)
    if "beta2" in hyper and name != "adamax":
        assert (fits & (grads[0] > 2e19)).any()  # whose squares are beyond float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", [{"l1": 3e38}, dict.fromkeys(("l1", "l2", "beta"), 0.0), {"lr": 1e-5}, {"lr": 0.0}])
def test_ftrl_at_its_limits(change, dtype, isa):
    hyper = {**without_decay("ftrl"), "lr": 0.05, **change}
    p0, grads = parameter(97), gradients(97, 20) * 1e-3
    grads[0, 1::2] = 1.0
    grads[:, ::17] = 0.0
    want = run("ftrl", hyper, p0, grads, dtype, backend="numba")
    for level in native.isa_supported():
        isa(level)
        assert_same_bits(run("ftrl", hyper, p0, grads, dtype, backend="native"), want)
    expected, states = ORACLES["ftrl"](p0.astype(dtype), grads.astype(dtype), **hyper)
    for got, exact in zip(want, (expected, states["accumulator"], states["linear"]), strict=True):
        np.testing.assert_allclose(got, exact.astype(dtype), rtol=50 * np.finfo(dtype).eps, atol=1e-37)
    if not hyper["lr"]:
        np.testing.assert_array_equal(want[0], p0.astype(dtype))


def test_copies_of_a_state_see_the_same_gradient_where_it_is_not_finite():
    results = []
    for backend in ("native", "numba"):
        p, g, v = np.ones(3, "f4"), np.array([np.inf, -np.inf, np.nan], "f4"), np.zeros((4, 3), "f4")
        hyper = {"lr": 0.1, "betas": (0.0, 0.5, 0.9, 0.99), "weight_decay": 0.1}
        fastopt.functional.aggmo(p, g, v, step=1, **hyper, backend=backend)
        results.append([p, v])
    assert np.isinf(results[0][1][:, :2]).all()
    assert_same_bits(*results)


def test_adamax_without_eps_leaves_parameters_whose_gradients_were_zero():
    p, g, m, u = np.ones(9, "f4"), np.zeros(9, "f4"), np.zeros(9, "f4"), np.zeros(9, "f4")
    for backend in ("native", "numba"):
        fastopt.functional.adamax(p, g, m, u, step=1, eps=0.0, backend=backend)
    np.testing.assert_array_equal(p, 1)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_copies_share_one_gradient(backend):
    assert copies_of("aggmo", {"betas": (0.1, 0.2)}) == 2
    p, g, b = np.ones(3), np.full(3, 2.0), np.zeros((2, 3))
    fastopt.functional.aggmo(p, g, b, step=1, lr=0.1, betas=(0.0, 0.5), weight_decay=0.5, backend=backend)
    np.testing.assert_array_equal(b, 2.5)  # both from the parameter before the step
    np.testing.assert_allclose(p, 1 - 0.25)
