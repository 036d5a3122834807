"""Clipping by value and by each tensor's norm: its order in a step, its bits everywhere, other libraries' numbers."""

import os
from functools import partial

import numpy as np
import pytest

import fastopt
from fastopt import GradientNoise, RowSparse
from fastopt.optimizers import CLASSES
from fastopt.rules import RULES
from tests.support import assert_same_everywhere

BACKENDS = ("native", "numba")
NOISE = GradientNoise(eta=0.3, gamma=0.55, seed=2**40 + 7)


def bits(*arrays):
    return [np.ascontiguousarray(a).tobytes() for a in arrays]


def clipped(g, limit):
    """As np.clip, in the array's dtype; NaN stays."""
    return np.clip(g, -g.dtype.type(limit), g.dtype.type(limit))


def by_norm(g, limit):
    """The gradient with a norm of at most `limit`, its factor rounded to the array's dtype."""
    norm = np.sqrt(np.sum(g.astype("f8") ** 2))
    return g * g.dtype.type(min(1.0, limit / norm) if norm else 1.0)


# ---- what a step does ----


@pytest.mark.parametrize("name", RULES)
def test_a_step_is_that_of_the_clipped_gradient(name):
    cls = CLASSES[RULES[name].optimizer]
    rng = np.random.default_rng(5)
    for dtype in (np.float32, np.float64):
        start = rng.standard_normal((7, 101)).astype(dtype)
        one, other = start.copy(), start.copy()
        opt, plain = (cls(p, lr=0.1, weight_decay=0.1) for p in (one, other))
        for _ in range(3):
            g = 3 * rng.standard_normal(start.shape).astype(dtype)
            opt.step(g, grad_scale=0.5, clip_value=0.7)
            plain.step(clipped(dtype(0.5) * g, 0.7))
            assert bits(one) == bits(other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_gradient_has_a_norm_of_its_own(backend):
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        shapes = [(300, 40), (7,), (), (0,), (5000,), (3,)]
        grads = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        grads[5] /= 1000
        ours, plain = ([np.zeros(shape, dtype) for shape in shapes] for _ in "12")
        opt, same = (fastopt.Momentum(p, lr=0.5, backend=backend) for p in (ours, plain))
        for limit in (0.25, 1.0):
            opt.step(grads, clip_norm=limit)
            same.step([by_norm(g, limit) for g in grads])
        opt.step(grads)  # the factors are those of one step
        same.step(grads)
        for p, q in zip(ours, plain, strict=True):
            np.testing.assert_allclose(p, q, rtol=4 * np.finfo(dtype).eps)
        assert opt.last_grad_norm is None


def test_groups_with_rules_and_dtypes_of_their_own():
    """Parameters of several tables: of float32 and float64, of two rules, with rows."""
    rng = np.random.default_rng(1)
    kinds = (((5, 4), "f4"), (9, "f8"), ((6, 2), "f4"), (9, "f8"))
    params = [rng.standard_normal(shape).astype(dtype) for shape, dtype in kinds]
    same = [p.copy() for p in params]

    def made(p):
        return fastopt.SGD([{"params": p[:2]}, {"params": p[2:], "momentum": 0.9, "lr": 0.2}], lr=0.5)

    opt, plain = made(params), made(same)
    rows = RowSparse([4, 1, 4], rng.standard_normal((3, 2)).astype("f4"))
    summed = np.zeros((6, 2), "f4")
    np.add.at(summed, rows.indices, np.asarray(rows.values.owner))
    whole = [rng.standard_normal((5, 4)).astype("f4"), rng.standard_normal(9), summed, rng.standard_normal(9)]
    given = [*whole[:2], rows, whole[3]]
    for _ in range(2):
        opt.step([given[:2], given[2:]], clip_norm=0.5)
        want = [by_norm(g, 0.5) for g in whole]
        plain.step([want[:2], [RowSparse([1, 4], want[2][[1, 4]]), want[3]]])
    for p, q in zip(params, same, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-6)


def test_the_order_is_scale_norm_value_noise():
    g = np.linspace(-3, 3, 1000, dtype="f4")
    norm = np.sqrt(np.sum((0.5 * g.astype("f8")) ** 2))
    for how in ({"max_norm": norm / 2}, {"clip_norm": norm / 2}):
        one, other = np.zeros(1000, "f4"), np.zeros(1000, "f4")
        noise = {"gradient_noise": NOISE}
        opt = fastopt.SGD(one, lr=1.0, **noise)
        opt.step(g, grad_scale=0.5, clip_value=0.3, **how)
        fastopt.SGD(other, lr=1.0, **noise).step(clipped(np.float32(0.25) * g, 0.3))
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert opt.last_grad_norm == (pytest.approx(norm) if "max_norm" in how else None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_and_infinity_is_clipped(backend):
    g = np.array([np.nan, np.inf, -np.inf, 0.5, -0.5, 1e-40], "f4")
    p = np.zeros(6, "f4")
    opt = fastopt.SGD(p, lr=1.0, backend=backend)
    opt.step(g, clip_value=1)
    np.testing.assert_array_equal(-p, np.array([np.nan, 1, -1, 0.5, -0.5, 1e-40], "f4"))
    before = p.copy()
    for how in ({"clip_value": 1}, {"clip_norm": 1}):
        opt.step(g, skip_nonfinite=True, **how)
        assert opt.last_step_skipped
        np.testing.assert_array_equal(p, before)
    opt.step(np.ones(6, "f4"), skip_nonfinite=True, clip_norm=1)
    assert not opt.last_step_skipped
    p[:] = 0
    opt.step(g[1:2].repeat(6), clip_norm=1)  # infinity over infinity
    assert np.isnan(p).all()
    p[:] = 0
    opt.step(np.zeros(6, "f4"), clip_norm=0)
    opt.step(np.ones(6, "f4"), clip_norm=0)
    opt.step(np.ones(6, "f4"), clip_value=0)
    assert (p == 0).all()
    opt.step(np.full(6, 1e30, "f4"), clip_norm=np.inf, clip_value=np.inf)
    assert (p == -np.float32(1e30)).all()


def test_limits_that_change_from_step_to_step():
    p, q = np.zeros(50, "f4"), np.zeros(50, "f4")
    g = np.linspace(-1, 1, 50, dtype="f4")
    opt = fastopt.SGD(p, lr=1.0)
    plan = fastopt.SGD(q, lr=1.0).bind(g)
    want = np.zeros(50, "f4")
    for k in range(20):
        opt.step(g, clip_value=0.01 * k)
        plan.step(clip_value=0.01 * k)
        want -= clipped(g, 0.01 * k)
        assert bits(p) == bits(q) == bits(want)
    plan.step(clip_norm=0.1)
    opt.accumulate(g)
    opt.step(clip_norm=0.1)
    assert bits(p) == bits(q)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_stay_and_are_zeroed_as_ever(backend):
    for dtype in (np.float32, np.float64):
        p, g = np.zeros(1500, dtype), np.ones((1500, 2), dtype)[:, 0]
        opt = fastopt.Adam(p, backend=backend)
        for how in ({"clip_value": 0.5}, {"clip_norm": 0.5}):
            g[:] = 1
            opt.step(g, **how)
            assert (g == 1).all()
            opt.step(g, zero_grads=True, **how)
            assert (g == 0).all()


# ---- its bits ----

STORAGES = [
    ("float32", "float32", {}),
    ("float64", "float64", {}),
    ("float32", "bfloat16", {"state_dtype": "bfloat16"}),
    ("bfloat16", "bfloat16", {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    ("float16", "float32", {"rounding": "kahan"}),
    ("bfloat16", "bfloat16", {"rounding": "master", "ema_decay": 0.9, "gradient_noise": NOISE}),
    ("float32", "float32", {"state_dtype": "8bit"}),
]


def stepped(dtypes, options, backend, threads=1, strided=False):
    """Two parameters of an Adam after some steps, and the first one's states."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    param, grad = (np.dtype(getattr(ml_dtypes, kind, kind)) for kind in dtypes)
    rng = np.random.default_rng(3)
    shapes = ((90, 700), (33,))
    params = [rng.standard_normal((*shape, 2)).astype(param)[..., 0] for shape in shapes]
    params = params if strided else [p.copy() for p in params]
    grads = [rng.standard_normal(shape).astype(grad) for shape in shapes]
    opt = fastopt.Adam(params, lr=0.1, backend=backend, threads=threads, **options)
    for how in ({"clip_value": 0.2}, {"clip_norm": 3.0}, {"clip_norm": 7.0, "clip_value": 0.1}):
        opt.step(grads, grad_scale=0.75, **how)
    return [*params, *(opt.state_values(0, name) for name in ("exp_avg", "exp_avg_sq"))]


@pytest.mark.parametrize(("param", "grad", "options"), STORAGES, ids=str)
def test_bits_are_the_same_everywhere(param, grad, options, set_isa):
    ways = [{}] if options.get("state_dtype") == "8bit" else [{}, {"strided": True}]
    assert_same_everywhere(partial(stepped, (param, grad), options), set_isa, ways)


@pytest.mark.parametrize("cls", [fastopt.Adagrad, fastopt.RowwiseAdagrad])
def test_rows_are_clipped_once_they_are_summed(cls):
    rng = np.random.default_rng(1)
    indices, values = np.array([3, 17, 3, 39, 0, 17, 3]), rng.standard_normal((7, 600)).astype("f4")
    start = rng.standard_normal((40, 600)).astype("f4")
    summed = np.zeros_like(start)
    for i, value in zip(indices, values, strict=True):
        summed[i] += value
    rows = np.unique(indices)
    params = [start.copy() for _ in (*BACKENDS, "plain")]
    opts = [cls(p, lr=0.1, backend=b) for p, b in zip(params, (*BACKENDS, None), strict=True)]
    for _ in range(2):
        for opt in opts[:-1]:
            opt.step(RowSparse(indices, values), grad_scale=0.5, clip_value=0.3)
        opts[-1].step(RowSparse(rows, clipped(np.float32(0.5) * summed[rows], 0.3)))
    assert bits(params[0]) == bits(params[1]) == bits(params[2])
    for opt in opts[:-1]:
        opt.step(RowSparse(indices, values), clip_norm=2.0)
    opts[-1].step(RowSparse(rows, by_norm(summed, 2.0)[rows]))
    assert bits(params[0]) == bits(params[1])
    np.testing.assert_allclose(params[0], params[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("duplicates", ["sequential", "hogwild"])
def test_each_step_of_a_row_is_clipped(duplicates, backend):
    p = np.zeros((4, 2), "f4")
    opt = fastopt.SGD(p, lr=1.0, backend=backend, threads=1)
    opt.step(RowSparse([1, 1, 3], np.full((3, 2), 5, "f4"), duplicates=duplicates), clip_value=0.25)
    np.testing.assert_array_equal(-p[:, 0], [0, 0.5, 0, 0.25])


def test_states_in_files(tmp_path):
    rng = np.random.default_rng(2)
    params = [rng.standard_normal(70000).astype("f4"), rng.standard_normal(33).astype("f4")]
    grads = [rng.standard_normal(p.shape).astype("f4") for p in params]
    same = [p.copy() for p in params]
    with fastopt.Adam(params, state_dir=tmp_path, state_memory=5 * 2**20) as opt:
        plain = fastopt.Adam(same)
        for how in ({"clip_value": 0.2}, {"clip_norm": 3.0}, {"clip_value": 0.3, "zero_grads": True}):
            own = [g.copy() for g in grads]
            opt.step(own, **how)
            plain.step(grads if "zero_grads" not in how else [g.copy() for g in grads], **how)
            assert bits(*params) == bits(*same)
        assert not any(g.any() for g in own)


# ---- other libraries' numbers ----


def test_torchs_clip_grad_value():
    torch = pytest.importorskip("torch")
    from fastopt import torch as optim

    start = [torch.randn(30, 7), torch.randn(5)]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in "12")
    opt, other = optim.AdamW(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for step in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = 2 * torch.randn(p.shape)
            q.grad = p.grad.clone()
        before = ours[0].grad.clone()
        opt.step(clip_value=0.3, zero_grads=step == 3)
        torch.nn.utils.clip_grad_value_(theirs, 0.3)
        other.step()
        assert (ours[0].grad == (0 if step == 3 else before)).all()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_a_parameter_that_is_there_twice():
    torch = pytest.importorskip("torch")
    from fastopt import torch as optim

    p = torch.nn.Parameter(torch.zeros(4))
    with pytest.warns(UserWarning, match="duplicate"):
        opt = optim.SGD([p, p], lr=1.0)
    p.grad = torch.full((4,), 5.0)
    opt.step(clip_value=0.25)
    assert (p == -0.5).all()
    opt.step(clip_norm=1.0)
    torch.testing.assert_close(p.detach(), torch.full((4,), -1.5))


def test_keras_clipnorm():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    pytest.importorskip("jax")
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(4)
    start = [rng.standard_normal(shape).astype("f4") for shape in ((30, 7), (5,))]
    params, variables = [p.copy() for p in start], [keras.Variable(p) for p in start]
    for how, theirs in (({"clip_norm": 0.5}, {"clipnorm": 0.5}), ({"clip_value": 0.1}, {"clipvalue": 0.1})):
        opt = fastopt.Momentum(params, lr=0.1, momentum=0.9)
        other = keras.optimizers.SGD(learning_rate=0.1, momentum=0.9, **theirs)
        for _ in range(3):
            grads = [rng.standard_normal(p.shape).astype("f4") for p in params]
            opt.step(grads, **how)
            other.apply([keras.ops.convert_to_tensor(g) for g in grads], variables)
        for p, v in zip(params, variables, strict=True):
            np.testing.assert_allclose(p, keras.ops.convert_to_numpy(v), rtol=2e-6, atol=1e-6)


# ---- what is wrong ----


@pytest.mark.parametrize("name", ["clip_value", "clip_norm", "max_norm"])
@pytest.mark.parametrize(
    ("value", "error", "found"),
    [(-1.0, ValueError, "-1.0"), (float("nan"), ValueError, "nan"), ("1", TypeError, "'1'"), (True, TypeError, "True")],
)
def test_a_wrong_limit_is_named(name, value, error, found):
    p, g = np.ones(3), np.ones(3)
    opt = fastopt.SGD(p, lr=1.0)
    opt.step(g)
    before = p.copy()
    for call in (lambda how: opt.step(g, **how), lambda how: opt.bind(g).step(**how)):
        with pytest.raises(error, match=f"{name}: found {found}"):
            call({name: value})
    assert bits(p) == bits(before)


def test_one_norm_only():
    p = np.ones(3)
    with pytest.raises(ValueError, match=r"clip_norm: found 1\.0 beside max_norm=2\.0, expected one of the two"):
        fastopt.SGD(p, lr=1.0).step(p.copy(), max_norm=2.0, clip_norm=1.0)
    assert (p == 1).all()
