"""Averages of weights against lists of them."""

import pickle

import numpy as np
import pytest

import fastopt
from fastopt.training import SWA, Lookahead, use_average

DTYPES = ["float32", "float64", "float16", "bfloat16"]


def dtype_of(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def nested(dtype, seed=0):
    """Parameters of several sizes, one beyond a piece, one with gaps, one of no dimension."""
    rng = np.random.default_rng(seed)
    return {
        "a": [rng.standard_normal(3).astype(dtype), rng.standard_normal((4, 6)).astype(dtype)[:, ::2]],
        "b": {"c": rng.standard_normal(70000).astype(dtype), "d": np.array(2.5, dtype)},
        "e": np.zeros((0, 2), dtype),
    }


def flat(params):
    return [*params["a"], *params["b"].values(), params["e"]]


def set_to(params, other):
    for own, values in zip(flat(params), flat(other), strict=True):
        own[...] = values


@pytest.mark.parametrize("name", DTYPES)
def test_swa_is_the_mean(name):
    dtype = dtype_of(name)
    wide = np.float64 if name == "float64" else np.float32
    params, rounds = nested(dtype), [nested(dtype, seed) for seed in range(7)]
    swa = SWA(params)
    assert swa.average == {}
    for k, values in enumerate(rounds, 1):
        set_to(params, values)
        swa.update()
        assert swa.count == k
        for got, *all_values in zip(swa.average.values(), *map(flat, rounds[:k]), strict=True):
            assert got.dtype == wide
            mean = np.mean([v.astype(np.float64) for v in all_values], axis=0)
            np.testing.assert_allclose(got, mean, rtol=0, atol=16 * np.finfo(wide).eps)
    assert list(swa.average) == ["a.0", "a.1", "b.c", "b.d", "e"]
    assert all((own == values).all() for own, values in zip(flat(params), flat(rounds[-1]), strict=True))


@pytest.mark.parametrize("alpha", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", DTYPES)
def test_lookahead(name, k, alpha):
    dtype = dtype_of(name)
    wide = np.float64 if name == "float64" else np.float32
    params = nested(dtype)
    slow = [own.astype(wide) for own in flat(params)]
    lookahead = Lookahead(params, k, alpha)
    for t in range(1, 12):
        fast = nested(dtype, t)
        set_to(params, fast)
        lookahead.update()
        if t % k == 0:
            slow = [s + (own.astype(wide) - s) * wide(alpha) for s, own in zip(slow, flat(fast), strict=True)]
            want = [s.astype(dtype) for s in slow]
        else:
            want = flat(fast)
        assert all(own.tobytes() == w.tobytes() for own, w in zip(flat(params), want, strict=True)), t
    assert lookahead.count == 11


def quadratic(step, seed=0):
    """A noisy gradient at a parameter."""
    noise = np.random.default_rng((seed, step)).standard_normal(5)
    return lambda p: (p - 1) + noise


@pytest.mark.parametrize("functional", [False, True])
def test_with_classes_and_functions(functional):
    """Averages of what the classes and the functional forms update, and the noise is less in them."""
    p = np.zeros(5)
    square, opt = np.zeros(5), None if functional else fastopt.RMSprop(p, lr=0.1)
    swa = SWA([p])
    for t in range(1, 400):
        grad = quadratic(t)(p)
        if functional:
            fastopt.functional.rmsprop(p, grad, square, step=t, lr=0.1)
        else:
            opt.step(grad)
        if t >= 100:
            swa.update()
    assert np.abs(swa.average["0"] - 1).max() < 0.5 * np.abs(p - 1).max()


def test_lookahead_makes_adam_steadier():
    def train(lookahead):
        p = np.zeros(5)
        opt = fastopt.Adam(p, lr=0.3)
        ahead = Lookahead(p) if lookahead else None
        seen = []
        for t in range(600):
            opt.step(quadratic(t)(p))
            if ahead is not None:
                ahead.update()
            seen.append(p.copy())
        return np.std(seen[99::5], axis=0).mean()

    assert train(True) < 0.8 * train(False)


@pytest.mark.parametrize("name", DTYPES)
def test_the_average_in_use_and_the_parameters_after_it(name):
    dtype = dtype_of(name)
    params, other = nested(dtype), nested(np.float32, 1)
    before = [own.tobytes() for own in flat(params)]
    with use_average(params, other):
        for own, values in zip(flat(params), flat(other), strict=True):
            assert (own == values.astype(dtype)).all()
    assert [own.tobytes() for own in flat(params)] == before
    with pytest.raises(KeyError), use_average(params, other):
        raise KeyError
    assert [own.tobytes() for own in flat(params)] == before


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_the_average_that_optimizers_keep(state_dtype):
    params = {"w": np.ones((3, 2), "f4"), "b": np.zeros(2, "f4")}
    opt = fastopt.Adam(params, lr=0.1, ema_decay=0.9, state_dtype=state_dtype)
    ema = {name: p.astype("f4") for name, p in params.items()}
    for t in range(10):
        opt.step({name: np.sin(p + t).astype("f4") for name, p in params.items()})
        ema = {name: np.float32(0.9) * ema[name] + np.float32(0.1) * p for name, p in params.items()}
    before = {name: p.copy() for name, p in params.items()}
    with use_average(params, [state["ema"] for state in opt.state]):
        for name, p in params.items():
            np.testing.assert_allclose(p, ema[name], rtol=1e-6)
    assert all((params[name] == before[name]).all() for name in params)


def test_torch():
    torch = pytest.importorskip("torch")
    optim = pytest.importorskip("fastopt.torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    narrow = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    params = [*model.parameters(), narrow]
    opt = optim.SGD(params, lr=0.3, ema_decay=0.5)
    theirs = torch.optim.swa_utils.AveragedModel(model)
    swa, lookahead = SWA(iter(params)), Lookahead(params, k=2)
    for _ in range(6):
        opt.zero_grad()
        (model(torch.randn(8, 3)).square().sum() + narrow.float().square().sum()).backward()
        opt.step()
        lookahead.update()
        theirs.update_parameters(model)
        swa.update()
    for got, want in zip(swa.average.values(), theirs.module.parameters(), strict=False):
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-7)
    assert swa.average["4"].dtype == np.float32
    before = [p.detach().clone() for p in params]
    with use_average(params, swa.average):
        assert all(torch.allclose(p, q) for p, q in zip(model.parameters(), theirs.module.parameters(), strict=True))
    with use_average(params, [opt.state[p]["ema"] for p in params]):
        assert not torch.equal(params[0], before[0])
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("make", [SWA, Lookahead])
@pytest.mark.parametrize("stop", range(5))
def test_resumed(make, stop):
    def train(p, average, steps):
        for t in steps:
            p += np.sin(p + t)
            average.update()

    p = np.zeros(4)
    average = make({"p": p})
    train(p, average, range(stop))
    saved = pickle.loads(pickle.dumps((p, average.state_dict())))
    train(p, average, range(stop, 12))
    q = saved[0]
    resumed = make({"p": q})
    resumed.load_state_dict(saved[1])
    if saved[1][resumed._state[1]] is not None:
        saved[1][resumed._state[1]]["p"][:] = 0  # a copy was taken
    train(q, resumed, range(stop, 12))
    assert (p == q).all()
    one, other = average.state_dict(), resumed.state_dict()
    assert one["count"] == other["count"] == 12
    assert (one[average._state[1]]["p"] == other[average._state[1]]["p"]).all()


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: SWA([]), ValueError, "params: found no array"),
        (lambda: SWA([np.zeros(2, int)]), TypeError, r"params\[0\]: found dtype int64, expected float32, float64"),
        (lambda: SWA(np.broadcast_to(0.0, 3)), ValueError, "params: found a read-only array"),
        (lambda: Lookahead(np.zeros(2), 0), ValueError, "k: found 0"),
        (lambda: Lookahead(np.zeros(2), alpha=0), ValueError, "alpha: found 0"),
        (lambda: Lookahead(np.zeros(2), alpha="all"), TypeError, "alpha: found 'all'"),
        (lambda: use_average(np.zeros(2), []).__enter__(), ValueError, "average: found no array"),
        (lambda: use_average(np.zeros(2), np.zeros(3)).__enter__(), ValueError, r"average: found shape \(3,\)"),
        (lambda: use_average(np.zeros(2), np.zeros(2, int)).__enter__(), TypeError, "average: found dtype int64"),
        (lambda: use_average([np.zeros(2)], [np.zeros(2)] * 2).__enter__(), ValueError, "found 2 arrays, expected 1"),
        (lambda: use_average(np.broadcast_to(0.0, 2), np.ones(2)).__enter__(), ValueError, "params: found a read-only"),
    ],
)
def test_refusals(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        (3, TypeError, "state_dict: found 3"),
        ({}, ValueError, "missing: 'average', 'count'"),
        ({"count": -1, "average": None}, ValueError, r"state_dict\['count'\]: found -1"),
        ({"count": 1, "average": {"q": np.zeros(2)}}, ValueError, r"state_dict\['average'\]: found other arrays"),
        ({"count": 1, "average": {"p": np.zeros(3)}}, ValueError, r"\['p'\]: found shape \(3,\), expected \(2,\)"),
        ({"count": 1, "average": {"p": np.zeros(2, "f4")}}, TypeError, r"\['p'\]: found dtype float32"),
    ],
)
def test_wrong_states_change_nothing(state, error, said):
    swa = SWA({"p": np.ones(2)})
    swa.update()
    with pytest.raises(error, match=said):
        swa.load_state_dict(state)
    assert swa.count == 1 and (swa.average["p"] == 1).all()


def test_parameters_that_are_others_change_nothing():
    params = {"a": np.ones(2), "b": np.ones(2)}
    lookahead = Lookahead(params, k=1)
    params["a"][:], params["b"] = 3, np.ones(3)
    with pytest.raises(ValueError, match="params: found arrays of shapes"):
        lookahead.update()
    assert (params["a"] == 3).all() and lookahead.count == 0
