"""Storage below float32: what is stored is what the float32 update of what was stored gives, rounded as it says."""

import copy
import io
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import functional
from fastopt.backends import native
from fastopt.binding.blocks import blocks_of, values_of
from fastopt.rules import RULES

from .oracle import storage as oracle
from .pages import example
from .support import CASES, assert_same_bits, default_hyper, gradients, make_states, parameter

BF16 = np.dtype(ml_dtypes.bfloat16)
KINDS = {"float32": np.dtype("f4"), "bfloat16": BF16, "float16": np.dtype("f2"), "float64": np.dtype("f8")}


@pytest.fixture(params=native.isa_supported())
def isa(request):
    native.set_isa(request.param)
    yield request.param
    native.set_isa(None)


def same(got, want):
    """Return whether arrays have the same bits; all NaNs are one."""
    assert got.dtype == want.dtype and got.shape == want.shape
    nan = np.isnan(got.astype("f4")) & np.isnan(want.astype("f4"))
    differing = np.flatnonzero((got.view(f"u{got.itemsize}") != want.view(f"u{want.itemsize}")) & ~nan)
    assert differing.size == 0, f"{differing.size} differ, at {differing[0]}: {got[differing[0]]}, {want[differing[0]]}"


def floats():
    """float32 numbers that rounding may get wrong: around every 16-bit float, ties, subnormals, what is not finite."""
    upper = np.arange(65536, dtype=np.uint32)[:, None] << 16
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xC000, 0xFFFF], np.uint32)
    random = np.random.default_rng(0).integers(0, 2**32, 200_001, dtype=np.uint32)
    return np.concatenate([(upper | lower).reshape(-1), random]).view(np.float32)


# ---- conversions ----


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_rounding_to_nearest(kind, isa):
    x = floats()
    x = x[~np.isinf(x)]
    param = np.zeros(x.size, KINDS[kind])
    opt = fastopt.SGD(param, lr=0.0, rounding="master")  # which writes a rounded copy of what it is told
    opt.state[0]["master"][...] = x
    opt.step(np.zeros(x.size, "f4"))
    with np.errstate(all="ignore"):
        same(param, x.astype(KINDS[kind]))
    infinite = np.zeros(3, KINDS[kind])
    functional.sgd(infinite, np.array([-np.inf, np.inf, -np.inf], "f4"), step=1, lr=1.0)
    np.testing.assert_array_equal(infinite.astype("f4"), [np.inf, -np.inf, np.inf])


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_reading(kind, isa):
    every = np.arange(65536, dtype=np.uint16).view(KINDS[kind])
    param = np.zeros(every.size, "f4")
    functional.sgd(param, every, step=1, lr=1.0, maximize=True)
    with np.errstate(invalid="ignore"):
        same(param, np.float32(0) + every.astype("f4"))


def test_philox_known_answers():
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    for counter, key, answer in [
        ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        ((ones,) * 4, (ones, ones), (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (pi, (0xA4093822, 0x299F31D0), (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    ]:
        assert tuple(int(word) for word in oracle.philox(counter, key)) == answer


@pytest.mark.parametrize("first", [0, 1, 77, 2**35 + 5])
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_stochastic_rounding(kind, first, isa):
    x = floats()
    x = x[np.isfinite(x) & (np.abs(x) < 60000 if kind == "float16" else np.abs(x) < 3e38)][::3]
    param = np.zeros(x.size, KINDS[kind])
    seed = 12345678901234567890
    opt = fastopt.SGD(param, lr=1.0, maximize=True, rounding="stochastic", seed=seed, first_element=first)
    for step in (1, 2):
        param[...] = 0
        opt.step(x)
        want = oracle.rounded(x, KINDS[kind], oracle.random16(first + np.arange(x.size), step, seed))
        got, want = param.astype("f4"), want.astype("f4")
        np.testing.assert_array_equal(got, want)


def test_stochastic_rounding_is_fair_and_keeps_what_is_not_finite():
    x = np.full(40_000, 1 + 2**-9, "f4")  # a quarter of the way to the next bfloat16
    param = np.zeros(x.size, BF16)
    fastopt.SGD(param, lr=1.0, maximize=True, rounding="stochastic").step(x)
    assert set(param.astype("f4").tolist()) == {1.0, 1 + 2**-7}
    assert abs((param > 1).mean() - 0.25) < 0.01
    odd = np.array([np.nan, np.inf, -np.inf, 0.0], "f4")
    for kind in (BF16, np.float16):
        param = np.zeros(4, kind)
        fastopt.SGD(param, lr=1.0, maximize=True, rounding="stochastic").step(odd)
        np.testing.assert_array_equal(param.astype("f4"), odd)


# ---- the update does not know ----

COMBINATIONS = [
    ("float32", "float32", "bfloat16"),
    ("float32", "bfloat16", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float16"),
    ("float16", "float16", "float32"),
    ("float16", "bfloat16", "float16"),
]


def _converted(arrays, kinds):
    with np.errstate(over="ignore"):
        return [a.astype(KINDS[kind]) for a, kind in zip(arrays, kinds, strict=True)]


@pytest.mark.parametrize("kinds", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("case", [case for case in CASES if "defaults" not in case])
def test_any_combination_is_the_float32_update_rounded(case, kinds):
    name, hyper = CASES[case]
    for n in (1, 31, 1037):
        p = parameter(n).astype("f4")
        states = make_states(name, hyper, p)
        kind_of = [kinds[0], kinds[1], *("float32" if state.single else kinds[2] for state in RULES[name].states)]
        arrays = _converted([p, np.zeros(n), *states], kind_of)
        for step, g in enumerate(gradients(n, 5), 1):
            arrays[1][...] = np.asarray(g, "f4").astype(KINDS[kinds[1]])
            want = [a.astype("f4") for a in arrays]
            getattr(functional, name)(*want, step=step, **hyper)
            getattr(functional, name)(*arrays, step=step, **hyper)
            for got, expected in zip(arrays, _converted(want, kind_of), strict=True):
                same(got, expected)


@pytest.mark.parametrize("case", [case for case in CASES if "defaults" not in case and "rowwise" not in case])
def test_blocks_are_the_float32_update_rounded(case, isa):
    name, hyper = CASES[case]
    rule, n = RULES[name], 1037
    for kind in ("float32", "bfloat16"):
        p = parameter(n).astype("f4").astype(KINDS[kind])
        shape = (len(hyper["betas"]),) if rule.vector else ()
        states = [np.zeros((*shape, 5 * 260), "u1") for _ in rule.elements]
        begins = [np.array(hyper.get(rule.begins.get(name), 0.0), "f4") for name in rule.singles]
        singles, own = begins, [x.copy() for x in begins]
        for step, g in enumerate(gradients(n, 5), 1):
            g = np.asarray(g, "f4").astype(KINDS[kind])

            def unpacked(state, blocks, positive=rule.positive):
                rows = [oracle.from_blocks(row, n, state in positive) for row in blocks.reshape(-1, 5 * 260)]
                return np.array(rows).reshape(*blocks.shape[:-1], n)

            want = [unpacked(state, blocks) for state, blocks in zip(rule.elements, states, strict=True)]
            param = p.astype("f4")
            getattr(functional, name)(param, g.astype("f4"), *want, *singles, step=step, **hyper)
            getattr(functional, name)(p, g, *states, *own, step=step, **hyper)
            same(p, param.astype(KINDS[kind]))
            assert own == singles
            for state, blocks, values in zip(rule.elements, states, want, strict=True):
                rows = [oracle.to_blocks(v, state in rule.positive, 0, step) for v in values.reshape(-1, n)]
                np.testing.assert_array_equal(blocks, np.array(rows).reshape(blocks.shape))


def test_blocks_keep_their_largest_and_never_lose_a_second_moment():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(5000) * 10.0 ** rng.integers(-12, 3, 5000)).astype("f4")
    for positive, values in ((True, x * x), (False, x)):
        blocks = blocks_of(values, positive)
        assert blocks.size == 20 * 260 and not blocks[-120:].any() and blocks[-121]  # as the kernels leave them
        back = values_of(blocks, positive, values.size)
        for k in range(0, 5000, 256):
            block, found = values[k : k + 256], back[k : k + 256]
            largest = np.abs(block).max()
            np.testing.assert_allclose(np.abs(found).max(), largest, rtol=1e-6)
            near = np.abs(block) > largest * 2.0 ** (-28 if positive else -10)
            np.testing.assert_allclose(found[near], block[near], rtol=0.07)
            assert not positive or (found > 0).all()
    assert not values_of(np.zeros(520, "u1"), True, 300).any()


def test_what_is_not_finite_stays_in_its_element():
    rng = np.random.default_rng(2)
    n = 5000
    grads = rng.standard_normal((3, n)).astype("f4")
    odd = [7, 300, 4999]
    runs = []
    for bad in (None, (np.nan, np.inf, -np.inf)):
        p = parameter(n).astype("f4")
        opt = fastopt.Adam(p, lr=0.1, weight_decay=0.01, state_dtype="8bit")
        for t, g in enumerate(grads):
            g = g.copy()
            g[odd] = 0.0 if bad is None or t == 0 else bad
            opt.step(g)
        runs.append((p, opt.state_values(0, "exp_avg"), opt.state_values(0, "exp_avg_sq")))
    for good, bad in zip(*runs, strict=True):
        assert not np.isfinite(bad[odd]).any() and np.isfinite(np.delete(bad, odd)).all()
        # Neither the others nor their scale have changed: zeros do not, where these stood.
        np.testing.assert_allclose(np.delete(bad, odd), np.delete(good, odd), rtol=0, atol=1e-6)


def test_a_slow_average_moves():
    """With beta2 = 0.999 rounding to nearest would leave a second moment where it is; dither lets it follow."""
    rng, n = np.random.default_rng(3), 4096
    p = [np.zeros(n, "f4") for _ in range(3)]
    opts = [fastopt.Adam(q, lr=0.0, state_dtype=kind) for q, kind in zip(p, (None, "bfloat16", "8bit"), strict=True)]
    nearest = [np.zeros(n, "f4"), np.zeros(n, BF16), np.zeros(n, BF16)]
    for t in range(1, 1501):
        g = rng.standard_normal(n).astype("f4") * (1 if t <= 500 else 0.1)
        for opt in opts:
            opt.step(g)
        functional.adam(nearest[0], g, *nearest[1:], step=t, lr=0.0)
    exact = opts[0].state[0]["exp_avg_sq"]
    for opt in opts[1:]:
        assert abs(np.mean(opt.state_values(0, "exp_avg_sq")) / exact.mean() - 1) < 0.05
    assert nearest[2].astype("f4").mean() / exact.mean() > 1.4


# ---- what rounding loses ----


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.by_row])
def test_master_and_kahan_hold_what_rounding_loses(name, kind):
    hyper = {**default_hyper(name), "weight_decay": 0.01}
    n, rule = 515, RULES[name]
    cls = getattr(fastopt, rule.optimizer)
    p0 = parameter(n).astype(KINDS[kind])
    grads = gradients(n, 8).astype("f4")
    exact, master, kahan = p0.astype("f4"), p0.copy(), p0.copy()
    options = {key: value for key, value in hyper.items() if key in cls._arguments.defaults}
    opts = [
        cls(exact, **options),
        cls(master, rounding="master", state_dtype="float32", **options),
        cls(kahan, rounding="kahan", state_dtype="float32", **options),
    ]
    for g in grads:
        for opt in opts:
            opt.step(g)
    assert_same_bits([opts[1].state[0]["master"]], [exact])
    same(master, exact.astype(KINDS[kind]))
    held = kahan.astype("f4") + opts[2].state[0]["compensation"].astype("f4")
    np.testing.assert_allclose(held, exact, rtol=2.0**-12 if kind == "bfloat16" else 2.0**-17, atol=2e-4)
    np.testing.assert_array_less(
        np.abs(opts[2].state[0]["compensation"].astype("f4")), np.abs(kahan.astype("f4")) * 2.0**-7 + 1e-6
    )


def test_kahan_of_one_step():
    p0 = parameter(100).astype(BF16)
    p, g = p0.copy(), np.random.default_rng(0).standard_normal(100).astype("f4")
    opt = fastopt.SGD(p, lr=1e-3, rounding="kahan")
    lost = np.zeros(100, BF16)
    for _ in range(30):
        want = p.astype("f4") + lost.astype("f4") - np.float32(1e-3) * g
        opt.step(g)
        same(p, want.astype(BF16))
        lost = (want - p.astype("f4")).astype(BF16)
        same(opt.state[0]["compensation"], lost)
    assert (p0 != p).any()


@pytest.mark.parametrize("kind", KINDS)
def test_average_of_the_parameters(kind):
    p = parameter(515).astype(KINDS[kind])
    opt = fastopt.Adam(p, lr=0.1, ema_decay=0.9, state_dtype="float64" if kind == "float64" else "float32")
    real = np.float64 if kind == "float64" else np.float32
    twin, average = p.astype(real), p.astype(real)
    other = fastopt.Adam(twin, lr=0.1)
    for g in gradients(515, 6):
        g = g.astype(real)
        other.step(g)
        average = real(0.9) * average + real(1 - 0.9) * twin
        opt.step(g)
        same(opt.state[0]["ema"], average)
        twin[...] = p  # what is updated next is what was stored
    assert opt.state[0]["ema"].dtype == real


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_averages_of_what_is_not_finite_are_torchs(decay, backend):
    """The average is decay*ema + (1 - decay)*p, as documented: an infinite term makes NaN with a factor of 0 too."""
    swa_utils = pytest.importorskip("torch.optim.swa_utils")
    torch = pytest.importorskip("torch")
    first, then = np.array(list(itertools.product([1.5, np.inf, -np.inf, np.nan], repeat=2)), "f4").T.copy()
    p = first.copy()
    opt = fastopt.SGD(p, lr=0.0, ema_decay=decay, backend=backend)
    p[:] = then
    opt.step(np.zeros_like(p))
    average = swa_utils.get_ema_avg_fn(decay)
    want = average(torch.from_numpy(first), torch.from_numpy(then), None).numpy()
    assert_same_bits([opt.state[0]["ema"]], [want])


# ---- numbering ----

STORAGES = [
    {"state_dtype": "bfloat16"},
    {"state_dtype": "8bit", "rounding": "stochastic", "seed": 7},
    {"rounding": "stochastic", "ema_decay": 0.99},
    {"state_dtype": "8bit", "rounding": "kahan"},
    {"state_dtype": "float32", "rounding": "master"},
]


def _trained(params, options, grads, threads=1, **more):
    opt = fastopt.Adam(params, lr=0.05, weight_decay=0.01, threads=threads, **options, **more)
    for g in grads:
        cut = np.cumsum([p.size for p in params])[:-1]
        opt.step([part.astype(p.dtype) for part, p in zip(np.split(g, cut), params, strict=True)])
    return opt


@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_threads_and_cuts_do_not_matter(options):
    n, cuts = 300_007, [0, 4096 * 20, 4096 * 20 + 5120, 300_007]
    p0, grads = parameter(n).astype(BF16), gradients(n, 3)
    whole = [p0.copy()]
    want = _trained(whole, options, grads)
    for threads in (2, 3):
        again = [p0.copy()]
        got = _trained(again, options, grads, threads)
        same(again[0], whole[0])
        for name, state in want.state[0].items():
            assert got.state[0][name].tobytes() == state.tobytes()
    parts = [p0[a:b].copy() for a, b in itertools.pairwise(cuts)]
    _trained(parts, options, grads, 2)
    same(np.concatenate(parts), whole[0])
    shards = [p0[a:b].copy() for a, b in itertools.pairwise(cuts)]
    for shard, (a, b) in zip(shards, itertools.pairwise(cuts), strict=True):
        _trained([shard], options, [g[a:b] for g in grads], first_element=a)
    same(np.concatenate(shards), whole[0])


@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_layouts(options):
    p0, g0 = parameter(70 * 65).astype(BF16).reshape(70, 65), gradients(70 * 65, 1)[0].astype("f4").reshape(70, 65)
    want = p0.copy()
    fastopt.Adam(want, lr=0.1, **options).step(g0)
    # In another order elements have other numbers, but not when gradient and parameter differ in layout only.
    turned, reference = np.asfortranarray(p0), np.ascontiguousarray(p0.T)
    opt = fastopt.Adam(turned, lr=0.1, **options)
    fastopt.Adam(reference, lr=0.1, **options).step(np.ascontiguousarray(g0.T))
    if options.get("state_dtype") == "8bit":
        with pytest.raises(
            ValueError, match=r"grads: found strides .* expected elements in the order in memory of params"
        ):
            opt.step(g0)
        with pytest.raises(ValueError, match=r"grads: found strides .* expected elements in the order in memory"):
            fastopt.Adam(np.zeros((2, 4096), "f4"), **options).step(np.zeros((4, 4096), "f4")[::2])  # two runs
        opt.step(np.asfortranarray(g0))
        assert opt.state_values(0, "exp_avg").shape == (70, 65)
        np.testing.assert_allclose(opt.state_values(0, "exp_avg"), 0.1 * g0, rtol=0.1, atol=np.abs(g0).max() * 0.1)
    else:
        opt.step(g0)
    same(turned.T.copy(), reference)
    wide = np.zeros((70, 130), BF16)
    wide[:, ::2] = p0
    gaps = fastopt.Adam(wide[:, ::2], lr=0.1, **options)
    gaps.step(g0)
    if options.get("state_dtype") == "8bit":
        assert gaps.state[0]["exp_avg"].dtype == np.float32
    else:
        same(np.ascontiguousarray(wide[:, ::2]), want)
    assert not wide[:, 1::2].astype("f4").any()


def test_small_parameters_have_float32_states():
    opt = fastopt.AMSGrad([np.zeros(4095, "f4"), np.zeros(4096, "f4"), np.zeros((64, 65), BF16)], state_dtype="8bit")
    kinds = [{str(state[name].dtype) for name in RULES["amsgrad"].state_names} for state in opt.state]
    assert kinds == [{"float32"}, {"uint8"}, {"uint8"}]
    assert opt.state[2]["exp_avg"].shape == (17 * 260,)


def test_a_state_that_begins_elsewhere():
    opt = fastopt.Adagrad(np.zeros(5000, "f4"), initial_accumulator_value=0.1, state_dtype="8bit")
    np.testing.assert_allclose(opt.state_values(0, "sum"), 0.1, rtol=1e-6)
    opt.step(np.ones(5000, "f4"))
    opt.load_state_dict({"state": {}, "param_groups": opt.state_dict()["param_groups"]})
    np.testing.assert_allclose(opt.state_values(0, "sum"), 0.1, rtol=1e-6)


# ---- rows ----


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
@pytest.mark.parametrize("name", ["adagrad", "adam", "sgd", "rowwise_adagrad", "ftrl"])
def test_rows_of_any_storage(name, kind, duplicates):
    cls = getattr(fastopt, RULES[name].optimizer)
    rng = np.random.default_rng(4)
    for width in (3, 64, 515):
        p = rng.standard_normal((40, width)).astype(KINDS[kind])
        indices = rng.integers(0, 40, 30)
        values = rng.standard_normal((30, width)).astype(KINDS[kind])
        exact = p.astype("f4")
        nearest, master = p.copy(), p.copy()
        opts = [
            cls(exact, lr=0.1, weight_decay=0.01),
            cls(nearest, lr=0.1, weight_decay=0.01, state_dtype="float32"),
            cls(master, lr=0.1, weight_decay=0.01, state_dtype="float32", rounding="master", ema_decay=0.9),
        ]
        for opt, own in zip(opts, ("f4", kind, kind), strict=True):
            opt.step(fastopt.RowSparse(indices, values.astype(KINDS.get(own, own)), duplicates=duplicates))
        if duplicates == "sum":
            same(nearest, exact.astype(KINDS[kind]))
        same(master, exact.astype(KINDS[kind]))
        assert_same_bits([opts[2].state[0]["master"]], [exact])
        untouched = np.setdiff1d(np.arange(40), indices)
        same(nearest[untouched], p[untouched])


def test_rows_are_not_updated_in_blocks():
    opt = fastopt.Adagrad(np.zeros((100, 64), "f4"), state_dtype="8bit")
    with pytest.raises(TypeError, match=r"state of params: found 8-bit blocks, expected float32, bfloat16 or float16"):
        opt.step(fastopt.RowSparse(np.array([1]), np.ones((1, 64), "f4")))


# ---- AMP and clipping ----


@pytest.mark.parametrize("kind", KINDS)
def test_norm_of_16_bits_does_not_depend_on_threads(kind):
    g = gradients(300_007, 1)[0].astype(KINDS[kind])
    exact = np.sqrt(np.sum(g.astype("f8") ** 2))
    norms = {fastopt.global_norm([g, g[::2]], threads=k) for k in (1, 2, 3)}
    assert len(norms) == 1
    np.testing.assert_allclose(norms.pop(), np.sqrt(exact**2 + np.sum(g[::2].astype("f8") ** 2)), rtol=1e-12)
    clipped = g.copy()
    assert fastopt.clip_grad_norm_(clipped, 1.0) == pytest.approx(exact, rel=1e-12)
    assert np.sqrt(np.sum(clipped.astype("f8") ** 2)) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_with_gradients_that_are_not_finite_are_skipped(kind):
    p, g = np.ones(50, KINDS[kind]), np.ones(50, KINDS[kind])
    opt = fastopt.Adam([p, np.ones(3, KINDS[kind])], lr=0.1)
    opt.step([g, None], skip_nonfinite=True)
    assert opt.last_step_skipped is False and p[0] != 1
    before = pickle.dumps(opt.state_dict()), p.copy()
    for bad in (np.nan, np.inf):
        g[49] = bad
        opt.step([g, None], skip_nonfinite=True)
        assert opt.last_step_skipped is True
        assert pickle.dumps(opt.state_dict()) == before[0] and (p == before[1]).all()
    opt.step([g, None])
    assert opt.last_step_skipped is False and np.isnan(p[49].astype("f4"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_zeroed_in_the_pass(kind):
    p, g = parameter(5003).astype(KINDS[kind]), gradients(5003, 1)[0].astype(KINDS[kind])
    twin, opts = p.copy(), []
    for q, zero in ((p, True), (twin, False)):
        own = g.copy()
        wide = np.ones((5003, 2), g.dtype)
        wide[:, 0] = g
        opts.append(fastopt.AdamW(q, lr=0.1))
        opts[-1].step(own, zero_grads=zero)
        opts[-1].step(wide[:, 0], zero_grads=zero, max_norm=1.0)
        assert own.astype("f4").any() != zero and wide[:, 0].astype("f4").any() != zero
        assert (wide[:, 1] == 1).all()
    same(p, twin)
    rows = fastopt.RowSparse(np.array([1, 1]), np.ones((2, 3), "f4"))
    fastopt.SGD(np.zeros((4, 3), "f4")).step(rows, zero_grads=True)
    assert not rows.values.numpy().any()
    g.flags.writeable = False
    with pytest.raises(
        ValueError, match="grads: found a read-only array, expected a writable one, for it is set to zero"
    ):
        opts[0].step(g, zero_grads=True)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_float16_parameters_have_float32_states(backend):
    # A second moment of 1e-3*0.0015^2 is 0 in float16, one of 1e-3*60000^2 infinite.
    p, wide = np.full(64, 0.58, "f2"), np.full(64, 0.58, "f2").astype("f4")
    opt, reference = (fastopt.Adam(x, lr=1e-3, backend=backend) for x in (p, wide))
    assert {array.dtype.name for name, array in opt.state[0].items() if name != "step"} == {"float32"}
    for g in (-0.0015, -0.0015, -0.0015, 0.0, 60000.0, 1.0, 1.0):
        for optimizer in (opt, reference):
            optimizer.step(np.full(64, g, "f2"))
    np.testing.assert_allclose(p, wide, atol=7 * 2.0**-12)
    assert p[0] != 0.58
    asked = fastopt.Adam(np.ones(3, "f2"), state_dtype="float16")
    assert asked.state[0]["exp_avg"].dtype == np.float16
    kept = fastopt.SGD(np.ones(3, "f2"), momentum=0.9, rounding="kahan").state[0]
    assert (kept["momentum_buffer"].dtype, kept["compensation"].dtype) == (np.float32, np.float16)


# ---- saving ----


@pytest.mark.parametrize("options", [*STORAGES, {"state_dtype": "float16", "ema_decay": 0.5}], ids=str)
def test_training_goes_on_bit_for_bit(options):
    n, grads = 5003, gradients(5003, 6)
    p = [parameter(n).astype(BF16)]
    opt = _trained(p, options, grads[:3])
    saved_p = p[0].copy()
    file = io.BytesIO()
    np.savez(file, **fastopt.flatten_state_dict(opt.state_dict()))
    file.seek(0)
    dicts = [
        pickle.loads(pickle.dumps(opt.state_dict())),
        fastopt.unflatten_state_dict(dict(np.load(file))),
        copy.deepcopy(opt.state_dict()),
    ]
    pickled = pickle.dumps(opt)
    for g in grads[3:]:
        opt.step([g.astype(BF16)])
    for state_dict in dicts:
        q = [saved_p.copy()]
        again = fastopt.Adam(q, lr=0.05, weight_decay=0.01, **options)
        again.load_state_dict(state_dict)
        for g in grads[3:]:
            again.step([g.astype(BF16)])
        same(q[0], p[0])
    other = pickle.loads(pickled)
    for g in grads[3:]:
        other.step([g.astype(BF16)])
    same(other.param_groups[0]["params"][0], p[0])


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"state_dtype": "int4"}, ValueError, "state_dtype: found 'int4', expected one of float32"),
        ({"state_dtype": np.int8}, ValueError, "state_dtype: found .*int8.*expected one of"),
        (
            {"state_dtype": "float64"},
            TypeError,
            "state_dtype: found 'float64', expected float32, .* as params is bfloat16",
        ),
        ({"rounding": "up"}, ValueError, "rounding: found 'up', expected one of nearest, stochastic, kahan, master"),
        ({"seed": -1}, ValueError, "seed: found -1, expected a whole number"),
        ({"seed": 1.5}, TypeError, "seed: found 1.5 of type float"),
        ({"first_element": True}, TypeError, "first_element: found True"),
        ({"ema_decay": 1.5}, ValueError, r"ema_decay: found 1.5, expected a number in \[0, 1\]"),
        ({"ema_decay": "0.9"}, TypeError, "ema_decay: found '0.9'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        fastopt.Adam(np.zeros(5, BF16), **options)


def test_float64_takes_float64_only():
    with pytest.raises(TypeError, match="state_dtype: found '8bit', expected float64, as params is float64"):
        fastopt.Adam(np.zeros(5), state_dtype="8bit")
    with pytest.raises(TypeError, match="grads: found dtype bfloat16, expected float64 beside params"):
        fastopt.Adam(np.zeros(5)).step(np.zeros(5, BF16))


@pytest.mark.parametrize("dtype", ["bfloat16", BF16, ml_dtypes.bfloat16])
def test_names_of_dtypes(dtype):
    opt = fastopt.Adam(np.zeros(5, "f4"), state_dtype=dtype)
    assert opt.state[0]["exp_avg"].dtype == BF16


def test_the_examples_of_the_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for room, mark in (("fastopt/jobs", "ema_decay"), ("fastopt/files", "state_dir")):
        names = {}
        exec(example(room, mark), names)
        assert int(names["opt"].state[0]["step"]) == 1
        assert all(p.all() for p in names["params"])


def test_gradients_to_be_zeroed_share_no_memory():
    params = [np.ones(300, "f4") for _ in range(2)]
    grad, other = np.ones(300, "f4"), np.ones(300, "f4")
    opt = fastopt.SGD(params, lr=1.0)
    for step in (opt.step, lambda grads, **how: opt.bind(grads).step(**how)):
        for grads, message in [
            ([grad, grad], r"grads\[1\]: found memory shared with grads\[0\]"),
            ([other, np.broadcast_to(np.ones(1, "f4"), 300)], r"grads\[1\]: found a read-only array"),
            ([np.lib.stride_tricks.as_strided(np.ones(1, "f4"), (300,), (0,)), other], r"grads\[0\]: .*share memory"),
        ]:
            before = [g.copy() for g in grads]
            with pytest.raises(ValueError, match=message):
                step(grads, zero_grads=True)
            assert all((p == 1).all() for p in params) and all(map(np.array_equal, grads, before))
    opt.step([grad, other], zero_grads=True)
    grad[...] = other[...] = 1
    other.flags.writeable = False  # after a step that was fit
    with pytest.raises(ValueError, match=r"grads\[1\]: found a read-only array"):
        opt.step([grad, other], zero_grads=True)
    table = np.ones((300, 2), "f4")
    rows = fastopt.RowSparse(np.array([1]), np.ones((1, 2), "f4"))
    with pytest.raises(ValueError, match=r"grads\[0\]: found a read-only array"):
        fastopt.SGD([params[0], table], lr=1.0).step([other, rows], zero_grads=True)
    assert (table == 1).all() and (other == 1).all()


def test_one_reading_finds_the_norm_and_what_is_not_finite():
    p, g = np.ones(5, "f4"), np.array([1, 2, np.inf, 0, 0], "f4")
    opt = fastopt.SGD(p)
    opt.step(g, max_norm=1.0, skip_nonfinite=True)
    assert opt.last_step_skipped and opt.last_grad_norm == np.inf and (p == 1).all()


def test_a_group_has_states_of_its_own_dtype():
    """8-bit states beside an embedding table that is updated by rows, which cannot be in blocks."""
    dense, table = np.zeros(5000, "f4"), np.zeros((5000, 2), "f4")
    groups = [{"params": [dense]}, {"params": [table], "state_dtype": "float32"}]
    optimizer = fastopt.Adam(groups, state_dtype="8bit")
    rows = fastopt.RowSparse(np.array([1, 3]), np.ones((2, 2), "f4"))
    optimizer.step([[np.ones(5000, "f4")], [rows]])
    assert [state["exp_avg"].dtype for state in optimizer.state] == [np.uint8, np.float32]
    alone = np.zeros((5000, 2), "f4")
    fastopt.Adam([alone]).step([rows])
    assert table.tobytes() == alone.tobytes() and table[1, 0] != 0
    # It is the optimizer's that loads, not that of what is loaded.
    other = fastopt.Adam(groups, state_dtype="8bit")
    other.load_state_dict(optimizer.state_dict())
    assert other.state[1]["exp_avg"].tobytes() == optimizer.state[1]["exp_avg"].tobytes()
    with pytest.raises(ValueError, match=r"param_groups\[1\]: found another state_dtype, '8bit'"):
        optimizer.param_groups[1]["state_dtype"] = "8bit"
    assert optimizer.param_groups[1]["state_dtype"] == "float32"
    with pytest.raises(
        TypeError, match=r"params\[0\]: found 'rounding' in a group, expected it as an argument of Adam"
    ):
        fastopt.Adam([{"params": [dense], "rounding": "kahan"}])
    with pytest.raises(ValueError, match="state_dtype: found 'int8', expected one of float32"):
        fastopt.Adam([{"params": [dense], "state_dtype": "int8"}])
    with pytest.raises(TypeError, match=r"found 8-bit blocks.*state_dtype of its own"):
        fastopt.Adam([table], state_dtype="8bit").step([rows])
