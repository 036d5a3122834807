"""Batch normalization against the formulas in long double, torch, and differences of a loss."""

import pickle

import numpy as np
import pytest

import fastopt
from fastopt.backends.numba_cpu import threads
from fastopt.training import BatchNorm, check_gradient

SHAPES = [
    ((2, 3), 1),
    ((3, 1), 1),
    ((31, 5), 1),
    ((32, 5), 1),
    ((33, 7), 1),
    ((70, 64), 1),
    ((36, 1025), 1),
    ((4, 3, 1), 1),
    ((1, 2, 15), 1),
    ((2, 3, 16), 1),
    ((3, 2, 17), 1),
    ((2, 2, 24, 22), 1),
    ((3, 2, 2, 3, 2), 1),
    ((3, 4, 5), -1),
    ((2, 9, 4, 6), -1),
]


def oracle(x, dy, weight, bias, axis, eps, mean=None, var=None):
    """y, dx, dweight, dbias, mean and variance; without running statistics through those of the batch."""
    axis %= x.ndim
    over = tuple(k for k in range(x.ndim) if k != axis)

    def wide(a):
        return np.asarray(a, np.longdouble).reshape([-1 if k == axis else 1 for k in range(x.ndim)])

    x, dy = x.astype(np.longdouble), dy.astype(np.longdouble)
    n = x.size // x.shape[axis]
    measured = mean is None
    if measured:
        mean = x.mean(axis=over)
        var = ((x - wide(mean)) ** 2).mean(axis=over)
    rstd = 1 / np.sqrt(np.asarray(var, np.longdouble) + eps)
    z = (x - wide(mean)) * wide(rstd)
    dweight, dbias = (dy * z).sum(axis=over), dy.sum(axis=over)
    dx = wide(weight * rstd) * (dy - measured * (wide(dbias) + z * wide(dweight)) / n)
    return z * wide(weight) + wide(bias), dx, dweight, dbias, mean, var


def data(shape, axis, dtype, seed=0):
    """A norm with parameters of its own, a batch and a gradient."""
    rng = np.random.default_rng(seed)
    norm = BatchNorm(shape[axis], axis=axis, dtype=dtype)
    norm.params["weight"][:] = rng.standard_normal(shape[axis])
    norm.params["bias"][:] = rng.standard_normal(shape[axis])
    return norm, (rng.standard_normal(shape) * 3 + 5).astype(dtype), rng.standard_normal(shape).astype(dtype)


def assert_near(got, want, dtype, ulps):
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == dtype and got.shape == want.shape
    scale = max(float(np.abs(want).max()), 1e-30)
    assert float(np.abs(got - want).max()) <= ulps * np.finfo(dtype).eps * scale


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_the_formulas(shape, axis, dtype, training):
    norm, x, dy = data(shape, axis, dtype)
    norm.running_mean[:] = 4
    norm.running_var[:] = 7
    running = {} if training else {"mean": norm.running_mean.copy(), "var": norm.running_var.copy()}
    y, dx, dweight, dbias, mean, var = oracle(x, dy, *norm.params.values(), axis, 1e-5, **running)
    n = x.size // shape[axis]
    assert_near(norm.forward(x, training), y, dtype, 24)
    # dx of two values cancels out.
    allowed = 24 if n > 3 else 24 * float(np.abs(dy).max() / max(np.abs(dx).max(), 1e-30))
    assert_near(norm.backward(dy), dx, dtype, allowed)
    assert_near(norm.grads["weight"], dweight, dtype, 24)
    assert_near(norm.grads["bias"], dbias, dtype, 24)
    if training:
        assert_near(norm.running_mean, 0.9 * 4 + 0.1 * mean, dtype, 4)
        assert_near(norm.running_var, 0.9 * 7 + 0.1 * var * n / (n - 1), dtype, 24)
    else:
        assert (norm.running_mean == 4).all() and (norm.running_var == 7).all() and norm.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("shape", "axis"), [case for case in SHAPES if case[0][0] > 2])
def test_torch(shape, axis, dtype):
    """Numbers are torch's batch_norm's to rounding, over several batches, and evaluated."""
    torch = pytest.importorskip("torch")
    norm, *_ = data(shape, axis, dtype)
    running_mean, running_var = torch.zeros(shape[axis]), torch.ones(shape[axis])
    running_mean, running_var = (r.to(getattr(torch, norm.dtype.name)) for r in (running_mean, running_var))
    weight, bias = (torch.from_numpy(p.copy()).requires_grad_() for p in norm.params.values())
    for step in range(4):
        training = step < 3
        _, x, dy = data(shape, axis, dtype, seed=step)
        there = torch.from_numpy(np.moveaxis(x, axis, 1).copy()).requires_grad_()
        theirs = torch.nn.functional.batch_norm(there, running_mean, running_var, weight, bias, training)
        weight.grad = bias.grad = None
        theirs.backward(torch.from_numpy(np.moveaxis(dy, axis, 1).copy()))
        assert_near(np.moveaxis(norm.forward(x, training), axis, 1), theirs.detach(), dtype, 64)
        assert_near(np.moveaxis(norm.backward(dy), axis, 1), there.grad, dtype, 64)
        assert_near(norm.grads["weight"], weight.grad, dtype, 64)
        assert_near(norm.grads["bias"], bias.grad, dtype, 64)
        assert_near(norm.running_mean, running_mean, dtype, 16)
        assert_near(norm.running_var, running_var, dtype, 64)
    module = torch.nn.BatchNorm1d(shape[axis]).to(weight.dtype)
    module.load_state_dict({k: torch.as_tensor(v) for k, v in norm.state_dict().items()})
    norm.load_state_dict({name: value.numpy() for name, value in module.state_dict().items()})
    assert norm.num_batches_tracked == 3


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("training", [True, False])
def test_its_gradients_are_those_of_a_loss(training, axis):
    shape = (5, 3, 4)
    norm, x, dy = data(shape, axis, "f8")
    norm.running_mean[:] = 5
    params = {"x": x, **norm.params}

    def loss(p):
        other = BatchNorm(shape[axis], axis=axis, dtype="f8")
        other.running_mean[:] = 5
        other.params.update(weight=p["weight"], bias=p["bias"])
        return float((np.tanh(other.forward(p["x"], training)) * dy).sum())

    y = norm.forward(x, training)
    gradient = {"x": norm.backward(dy * (1 - np.tanh(y) ** 2)), **norm.grads}
    assert check_gradient(loss, params, gradient)
    gradient["x"] = gradient["x"] + 1e-3
    assert not check_gradient(loss, params, gradient)


@pytest.mark.parametrize("shape", [(300, 515), (2100, 40), (40, 2100), (4, 9, 4100)])
def test_the_number_of_threads_changes_no_bit(shape):
    results = []
    for wanted in (1, 2, 3, 7):
        norm, x, dy = data(shape, 1, "f4")
        norm.threads = wanted
        y = norm.forward(x)
        dx = norm.backward(dy)
        results.append([y, dx, *norm.grads.values(), norm.running_mean, norm.running_var])
    for other in results[1:]:
        assert all((a == b).all() for a, b in zip(results[0], other, strict=True))


def test_who_waits_too_long_for_a_thread_goes_home(monkeypatch):
    """A thread that lost its processor holds a unit: others return, and the phase ends once it is back."""
    norm, x, dy = data((300, 515), 1, "f4")
    want, gradient = norm.forward(x), norm.backward(dy)
    calls = []

    def run_parallel(kernel, table, n, chunk, grain, align, threads):
        *_, claims, done = table
        calls.append(done.copy())
        if len(calls) == 1:
            claims[0, 2] = 1
        run(kernel, table, n, n, grain, align, 1)
        if len(calls) == 1:
            claims[0, 2] = 0

    run = threads.run_parallel
    monkeypatch.setattr("fastopt.backends.numba_cpu.threads.run_parallel", run_parallel)
    for call, expected in ((norm.forward, want), (norm.backward, gradient)):
        calls.clear()
        got = call(x if call == norm.forward else dy)
        assert [done.tolist() for done in calls] == [[0, 0, 0], [9, 0, 0]]
        np.testing.assert_array_equal(got, expected)


def test_no_examples_have_no_gradients():
    norm, x, dy = data((4, 3), 1, "f4")
    norm.forward(x)
    norm.backward(dy)
    y = norm.forward(x[:0], training=False)
    assert y.shape == norm.backward(dy[:0]).shape == (0, 3)
    assert not norm.grads["weight"].any() and not norm.grads["bias"].any()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(100, 6), (5, 6, 20)])
def test_what_sums_could_lose(shape, dtype):
    """A large mean, columns of one value, an outlier that a block begins with, values that only rise."""
    _, x, _ = data(shape, 1, dtype)
    columns = np.moveaxis(x, 1, -1).reshape(-1, 6)
    columns[:, 0] += 1000
    columns[:, 1] = 7
    columns[32, 2] = columns[0, 3] = 1e4
    columns[:, 4] = np.arange(100) * 10
    x = np.ascontiguousarray(np.moveaxis(columns.reshape(*shape[:1], *shape[2:], 6), -1, 1))
    norm = BatchNorm(6, dtype=dtype)
    y, *_, mean, var = oracle(x, x, np.ones(6), np.zeros(6), 1, 1e-5)
    got = norm.forward(x)
    for k in range(6):
        # The mean of large numbers is known up to their rounding.
        far = abs(float(mean[k])) / np.sqrt(float(var[k]) + 1e-5) if var[k] else 1
        assert_near(got[:, k], y[:, k], dtype, 24 + 2 * far)
    assert (got[:, 1] == 0).all()


def test_not_finite_numbers_stay_in_their_feature():
    norm, x, dy = data((40, 5), 1, "f4")
    want = norm.forward(x).copy()
    x[3, 2] = np.nan
    got = norm.forward(x)
    assert np.isnan(got[:, 2]).all()
    others = [0, 1, 3, 4]
    assert (got[:, others] == want[:, others]).all()
    dx = norm.backward(dy)
    assert np.isnan(dx[:, 2]).all() and np.isfinite(dx[:, others]).all()
    norm.forward(x, training=False)
    norm.running_mean[2], norm.running_var[2] = 0, 1
    norm.forward(x, training=False)
    assert np.isfinite(norm.backward(dy)).all()


def test_the_average_of_all_batches():
    norm = BatchNorm(3, momentum=None, dtype="f8")
    batches = np.random.default_rng(0).standard_normal((5, 20, 3))
    for x in batches:
        norm.forward(x)
    np.testing.assert_allclose(norm.running_mean, batches.mean(axis=(0, 1)))
    np.testing.assert_allclose(norm.running_var, batches.var(axis=1, ddof=1).mean(axis=0))


def test_memory_of_the_callers():
    norm, x, dy = data((10, 4), 1, "f4")
    want, grad = norm.forward(x), norm.backward(dy)
    y, dx = np.empty_like(x), dy.copy()
    assert norm.forward(x, out=y) is y and (y == want).all()
    assert norm.backward(dx, out=dx) is dx and (dx == grad).all()
    strided, wide = np.asfortranarray(x), np.repeat(dy, 2, axis=1)[:, ::2]
    assert (norm.forward(strided) == want).all() and (norm.backward(wide) == grad).all()
    with pytest.raises(ValueError, match="out: found memory of the forward pass's x"):
        norm.forward(x, out=x)
    for out, error, said in [
        (3, TypeError, "out: found 3"),
        (np.empty((10, 4)), ValueError, "out: found 'float64 of shape"),
        (np.empty((4, 10), "f4"), ValueError, "of shape"),
        (np.empty((10, 8), "f4")[:, ::2], ValueError, "gaps"),
    ]:
        with pytest.raises(error, match=said):
            norm.forward(x, out=out)
        with pytest.raises(error, match=said):
            norm.backward(dy, out=out)


def test_a_network_learns_with_it():
    """An optimizer takes its parameters; a pickle and a state dict go on alike."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 8)).astype("f4") * np.logspace(-3, 3, 8, dtype="f4")
    target = np.sign(x[:, :1] * x[:, 7:])
    norm = BatchNorm(8)
    params = {"w": rng.standard_normal((8, 16)).astype("f4"), "v": np.zeros((16, 1), "f4"), **norm.params}
    opt = fastopt.Adam(params, lr=0.02)
    losses = []
    for _ in range(200):
        z = norm.forward(x)
        h = np.maximum(z @ params["w"], 0)
        delta = (h @ params["v"] - target) / len(x)
        losses.append(float(((h @ params["v"] - target) ** 2).mean()))
        back = delta @ params["v"].T * (h > 0)
        norm.backward(back @ params["w"].T)
        opt.step({"w": z.T @ back, "v": h.T @ delta, **norm.grads})
    assert losses[-1] < 0.1 * losses[0]
    copy, other = pickle.loads(pickle.dumps(norm)), BatchNorm(8)
    other.load_state_dict(pickle.loads(pickle.dumps(norm.state_dict())))
    want = norm.forward(x, training=False)
    assert (copy.forward(x, training=False) == want).all() and (other.forward(x, training=False) == want).all()
    assert other.num_batches_tracked == 200
    assert repr(norm) == "BatchNorm(8, eps=1e-05, momentum=0.1, axis=1, dtype=float32)"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"features": 0}, ValueError, "features: found 0"),
        ({"eps": 0}, ValueError, "eps: found 0"),
        ({"momentum": 1.5}, ValueError, "momentum: found 1.5"),
        ({"axis": 0}, ValueError, "axis: found 0, expected 1 or -1"),
        ({"axis": 2}, ValueError, "axis: found 2"),
        ({"dtype": "f2"}, ValueError, "dtype: found 'f2', expected float32 or float64"),
        ({"dtype": "wide"}, TypeError, "dtype: found 'wide'"),
        ({"threads": 0}, ValueError, "threads: found 0"),
    ],
)
def test_refusals(options, error, said):
    with pytest.raises(error, match=said):
        BatchNorm(**{"features": 3, **options})


def test_wrong_batches_change_nothing():
    norm = BatchNorm(3)
    with pytest.raises(ValueError, match="dy: found no forward pass before"):
        norm.backward(np.zeros((2, 3), "f4"))
    norm.forward(np.ones((2, 3), "f4"))
    before = pickle.dumps(norm.state_dict())
    for x, error, said in [
        ([1.0], TypeError, r"x: found \[1.0\]"),
        (np.zeros((2, 3)), TypeError, "x: found dtype float64, expected float32"),
        (np.zeros(3, "f4"), ValueError, r"x: found shape \(3,\), expected 3 features along axis 1"),
        (np.zeros((2, 4), "f4"), ValueError, r"x: found shape \(2, 4\)"),
        (np.zeros((1, 3), "f4"), ValueError, "x: found 1 values of each feature, expected at least 2"),
        (np.zeros((0, 3), "f4"), ValueError, "x: found 0 values"),
    ]:
        with pytest.raises(error, match=said):
            norm.forward(x)
    with pytest.raises(TypeError, match="training: found 'yes'"):
        norm.forward(np.ones((2, 3), "f4"), training="yes")
    with pytest.raises(ValueError, match=r"dy: found shape \(3, 3\)"):
        norm.backward(np.zeros((3, 3), "f4"))
    good = norm.state_dict()
    for state, error, said in [
        (None, TypeError, "state_dict: found None"),
        ({}, ValueError, "missing: 'bias', 'num_batches_tracked'"),
        ({**good, "weight": np.ones(4)}, ValueError, r"state_dict\['weight'\]"),
        ({**good, "bias": np.ones(3, int)}, ValueError, r"state_dict\['bias'\]"),
        ({**good, "weight": np.zeros(3), "num_batches_tracked": -1}, ValueError, "num_batches_tracked"),
    ]:
        with pytest.raises(error, match=said):
            norm.load_state_dict(state)
    assert pickle.dumps(norm.state_dict()) == before
    assert norm.forward(np.zeros((0, 3), "f4"), training=False).shape == (0, 3)
