"""The classes: structures of params, groups, schedules, plans, states, saving and loading."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fastopt
from fastopt import functional
from fastopt.optimizers import CLASSES

from .support import assert_same_bits, gradients, parameter

REQUIRED = {"QHM": {"lr": 0.05}}
EVERY = [
    *((name, REQUIRED.get(name, {})) for name in CLASSES),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "eps": 1e-3}),
    ("RMSprop", {"momentum": 0.9, "lr_inside": True, "initial_square_avg": 1.0}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {"amsgrad": True, "eps_hat": True, "max_corrected": True}),
    ("Adamax", {"eps_outside": True}),
    ("NAdam", {"momentum_decay": math.inf}),
]


def make(name, params, **options):
    return getattr(fastopt, name)(params, **{**REQUIRED.get(name, {}), **options})


def arrays(*sizes, seed=0, dtype="f4"):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(dtype) for n in sizes]


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_class_equals_functional_form(name, options):
    p0, grads = parameter(77).astype("f4"), gradients(77, 7).astype("f4")
    params = [p0.copy()]
    optimizer = make(name, params, **options, weight_decay=0.01)
    group = optimizer.param_groups[0]
    rule = optimizer.arguments.rule(group)
    values = optimizer.arguments.values(rule, group, 1)
    hyper = {key: value for key, value in values.items() if key not in rule.initial.values()}
    want = p0.copy()
    copies = (len(hyper["betas"]),) if rule.vector else ()
    initial = [values.get(rule.initial.get(s), 0.0) for s in rule.states]
    states = [np.full((*copies, *want.shape), value, "f4") for value in initial]
    for t, g in enumerate(grads, 1):
        optimizer.step([g])
        getattr(functional, rule.name)(want, g, *states, step=t, **hyper)
    assert_same_bits([params[0], *(optimizer.state[0][s] for s in rule.states)], [want, *states])


def test_signatures_are_torchs():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for name in CLASSES:
        if not hasattr(torch.optim, name):
            continue
        ours = inspect.signature(getattr(fastopt, name)).parameters
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        skipped = {"foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
        for key, parameter_ in theirs.items():
            if key not in skipped:
                assert key in ours, (name, key)
                assert ours[key].default == parameter_.default, (name, key)


def test_structures_of_params():
    a, b, ga, gb = arrays(3, 4, 3, 4)
    want = [a - np.float32(0.5) * ga, b - np.float32(0.5) * gb]

    def steps(params, grads):
        got = [a.copy(), b.copy()]
        fastopt.SGD(params(*got), lr=0.5).step(grads)
        assert_same_bits(got, want)

    steps(lambda x, y: [x, y], [ga, gb])
    steps(lambda x, y: (x, y), (g for g in (ga, gb)))
    steps(lambda x, y: iter([x, y]), [ga, gb])
    steps(lambda x, y: {"a": x, "b": y}, {"b": gb, "a": ga})
    steps(lambda x, y: [{"params": x}, {"params": [y]}], [ga, [gb]])
    steps(lambda x, y: [{"params": [x]}, {"params": {"y": y}}], [{"params": [ga]}, {"y": gb}])
    steps(lambda x, y: [{"params": [x, y]}], [ga, gb])
    single = a.copy()
    fastopt.SGD(single, lr=0.5).step(ga)
    assert_same_bits([single], want[:1])


def test_groups_have_their_own_hyper_parameters_and_rules():
    a, b, ga, gb = arrays(3, 4, 3, 4)
    params = [a.copy(), b.copy()]
    optimizer = fastopt.SGD(
        [{"params": params[0], "momentum": 0.9}, {"params": params[1], "lr": 0.1}], lr=0.5, weight_decay=0.1
    )
    for _ in range(3):
        optimizer.step([ga, gb])
    m, plain = fastopt.SGD([a], lr=0.5, momentum=0.9, weight_decay=0.1), fastopt.SGD([b], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        m.step([ga])
        plain.step([gb])
    assert_same_bits(params, [a, b])
    assert set(optimizer.state[0]) == {"step", "momentum_buffer"}
    assert set(optimizer.state[1]) == {"step"}


def test_mixed_dtypes_in_one_step():
    a, b = np.ones(5, "f4"), np.ones(6, "f8")
    optimizer = fastopt.Adam([a, b], lr=0.1)
    optimizer.step([np.ones(5, "f4"), np.ones(6, "f8")])
    np.testing.assert_allclose(a, 0.9, rtol=1e-6)
    np.testing.assert_allclose(b, 0.9, rtol=1e-7)
    assert optimizer.state[0]["exp_avg"].dtype == "f4"
    assert optimizer.state[1]["exp_avg"].dtype == "f8"


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_missing_gradient_leaves_parameter_state_and_step(name, options, backend):
    params = arrays(5, 6, 7)
    grads = arrays(5, 6, 7, seed=1)
    optimizer = make(name, [p.copy() for p in params], **options, backend=backend)
    for t in range(6):
        optimizer.step([grads[0], None if t % 2 else grads[1], None])
    assert [int(s["step"]) for s in optimizer.state] == [6, 3, 0]
    got = optimizer.param_groups[0]["params"]
    assert_same_bits([got[2]], [params[2]])
    alone = make(name, [params[1]], **options, backend=backend)
    for _ in range(3):
        alone.step([grads[1]])
    assert_same_bits([got[1]], [params[1]])


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_schedules(backend):
    p0, g = arrays(9, 9)
    demon = fastopt.Demon(total=5, beta=0.9)
    got, other = p0.copy(), p0.copy()
    optimizer = fastopt.Adam(
        {"a": got, "b": other}, lr=lambda t: 0.1 / t, betas=(demon, 0.99), backend=backend, weight_decay=0.1
    )
    want, m, v = p0.copy(), np.zeros_like(p0), np.zeros_like(p0)
    for t in range(1, 8):
        optimizer.step({"a": g, "b": g if t > 2 else None})  # b is two steps behind
        functional.adam(want, g, m, v, step=t, lr=0.1 / t, beta1=demon(t), beta2=0.99, weight_decay=0.1)
        if t == 5:
            five = want.copy()
    assert_same_bits([got, other], [want, five])
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.param_groups[0]["betas"] = (0.9, 0.99)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step({"a": g, "b": g})
    assert_same_bits([got, other], [want, five])
    assert int(optimizer.state[1]["step"]) == 6


def test_a_schedule_out_of_range_changes_nothing():
    p, g = arrays(9, 9)
    before = p.copy()
    optimizer = fastopt.Adam(p, lr=lambda t: 0.1 if t < 2 else -1.0)
    optimizer.step(g)
    after, m = p.copy(), optimizer.state[0]["exp_avg"].copy()
    assert (after != before).all()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"lr: found -1.0, expected a finite number >= 0"):
            optimizer.step(g)
    assert_same_bits([p, optimizer.state[0]["exp_avg"]], [after, m])
    assert int(optimizer.state[0]["step"]) == 1


def test_hyper_parameters_hold_from_the_next_step_and_are_checked_at_once():
    p, g = np.zeros(3, "f4"), np.ones(3, "f4")
    optimizer = fastopt.SGD([p], lr=1.0)
    plan = optimizer.bind([g])
    plan.step()
    optimizer.param_groups[0]["lr"] = 0.5
    plan.step()
    optimizer.step([g])
    np.testing.assert_array_equal(p, -2.0)
    for key, value, message in [
        ("lr", -1.0, "lr: found -1.0"),
        ("lr", float("nan"), "lr: found nan"),
        ("momentum", 0.9, "construct a new optimizer"),
        ("rate", 1.0, "found 'rate', expected one of lr"),
        ("params", [], "found 'params'"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.param_groups[0][key] = value
    # torch's flag of that name is not a decay of 1.
    with pytest.raises(TypeError, match="decoupled_weight_decay: found True of type bool, expected a finite number"):
        fastopt.NAdam([p], decoupled_weight_decay=True)
    with pytest.raises(TypeError, match="cannot be removed"):
        del optimizer.param_groups[0]["lr"]
    group = optimizer.param_groups[0].copy()
    group["lr"] = 7.0  # a copy's own
    optimizer.step([g])
    np.testing.assert_array_equal(p, -2.5)
    with pytest.raises(TypeError, match="SGD: too many positional arguments"):
        fastopt.SGD([p], 0.1, 0.9)
    agg = fastopt.AggMo([p], betas=[0.0, 0.9])
    with pytest.raises(ValueError, match="expected 2 as at construction"):
        agg.param_groups[0]["betas"] = (0.1, 0.2, 0.3)
    agg.param_groups[0]["betas"] = (0.5, 0.5)


def test_grad_scale_maximize_and_max_norm_fold_into_the_pass():
    p0, g = arrays(100, 100)
    a, b, c, d = (p0.copy() for _ in range(4))
    fastopt.SGD(a, lr=1.0).step(g, grad_scale=0.25)
    fastopt.SGD(b, lr=1.0).step(g * np.float32(0.25))
    fastopt.SGD(c, lr=1.0, maximize=True).step(-g, grad_scale=0.25)
    assert_same_bits([a, c], [b, b])
    optimizer = fastopt.SGD(d, lr=1.0)
    norm = np.linalg.norm(g.astype("f8")) * 0.25
    optimizer.step(g, grad_scale=0.25, max_norm=0.5)
    assert optimizer.last_grad_norm == pytest.approx(norm, rel=1e-12)
    np.testing.assert_allclose(p0 - d, g * 0.25 * (0.5 / norm), rtol=1e-4, atol=1e-6)
    e = p0.copy()
    fastopt.SGD(e, lr=1.0).step(g, grad_scale=0.25, max_norm=1e6)
    assert_same_bits([e], [a])


def test_fresh_and_repeated_gradient_arrays():
    params, grads = arrays(8, 9), arrays(8, 9, seed=1)
    want = [p.copy() for p in params]
    a, b = fastopt.Adam(params), fastopt.Adam(want)
    for _ in range(3):
        a.step(grads)
        a.step([g.copy() for g in grads])
        b.step(grads)
        b.bind(grads).step()
    assert_same_bits(params, want)


def test_other_gradients_take_the_last_ones_place_only_where_they_can():
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(d) for n, d in ((8, "f4"), (9, "f8"), (7, "f4"), (8, "f4"))]
    want = [p.copy() for p in params]
    one, other = fastopt.Adam(params, lr=0.1), fastopt.Adam(want, lr=0.1)
    for t in range(30):
        grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in params]
        if t % 3 == 1:
            grads[t % 4] = None
        if t % 5 == 2:
            grads[3] = np.repeat(grads[3], 2)[::2] if grads[3] is not None else None
        limit = 0.5 if t % 2 else None
        one.step(grads, max_norm=limit)
        assert one.last_grad_norm is None or np.isfinite(one.last_grad_norm)
        other.bind(grads).step(max_norm=limit)
        assert one.last_grad_norm == other.last_grad_norm
    assert_same_bits(params, want)
    before = [p.copy() for p in params]
    good = [np.ones_like(p) for p in params]
    one.step(good)
    other.step(good)
    for k, bad, message in [
        (0, params[3], "memory shared"),
        (0, one.state[3]["exp_avg"], "memory shared"),
        (1, np.ones(9, "f4"), "dtype"),
        (2, np.ones(8, "f4"), "shape"),
        (2, [1.0] * 7, "found list"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            one.step([bad if j == k else g for j, g in enumerate(good)])
    assert_same_bits(params, want)
    assert (params[0] != before[0]).all()


def test_a_dead_gradient_is_not_taken_for_a_missing_one():
    p = np.ones(1000, "f4")
    optimizer = fastopt.SGD([p], lr=1.0)
    optimizer.step([np.ones(1000, "f4")])
    optimizer.step([None])
    assert not p.any()
    assert int(optimizer.state[0]["step"]) == 1


def test_steps_do_not_keep_gradients_alive():
    import weakref

    p, g = arrays(8, 8)
    optimizer = fastopt.Adam(p)
    optimizer.step(g)
    ref = weakref.ref(g)
    del g
    assert ref() is None
    optimizer.step(np.ones(8, "f4"))


@pytest.mark.parametrize("how", ["pickle", "npz", "safetensors"])
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_training_resumed_goes_on_bit_for_bit(name, options, how, tmp_path):
    grads = gradients(50, 10).astype("f4")
    one = [np.ones(20, "f4"), np.ones((5, 6), "f4")]
    optimizer = make(name, one, **options, weight_decay=0.01)

    def split(g):
        return [g[:20], g[20:].reshape(5, 6)]

    for g in grads[:4]:
        optimizer.step(split(g))
    optimizer.step([split(grads[4])[0], None])
    optimizer.param_groups[0]["lr"] = 1 / 3
    if how == "pickle":
        saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    elif how == "npz":
        np.savez(tmp_path / "state.npz", **fastopt.flatten_state_dict(optimizer.state_dict()))
        with np.load(tmp_path / "state.npz") as file:
            saved = fastopt.unflatten_state_dict(file)
    else:
        save_file(fastopt.flatten_state_dict(optimizer.state_dict()), tmp_path / "state.safetensors")
        saved = fastopt.unflatten_state_dict(load_file(tmp_path / "state.safetensors"))
    two = [p.copy() for p in one]
    resumed = make(name, two, **options)
    resumed.load_state_dict(saved)
    for g in grads[5:]:
        optimizer.step(split(g))
        resumed.step(split(g))
    assert_same_bits(two, one)
    for a, b in zip(resumed.state, optimizer.state, strict=True):
        assert_same_bits([a[key] for key in a], [b[key] for key in b])
    assert resumed.param_groups[0]["lr"] == 1 / 3


def test_state_dicts_that_do_not_fit_change_nothing():
    p = np.ones(4, "f4")
    optimizer = fastopt.Adam(p, lr=0.5)
    optimizer.step(np.ones(4, "f4"))
    before = pickle.dumps(optimizer.state_dict())
    good = pickle.loads(before)

    def broken(**changes):
        return {**pickle.loads(before), **changes}

    state = good["state"][0]
    group = good["param_groups"][0]
    for bad, message in [
        ({}, "found no 'state'"),
        (broken(param_groups=[]), "groups of"),
        (broken(param_groups=[{**group, "params": [0, 1]}]), "groups of"),
        (broken(param_groups=[{**group, "lr": -1.0}]), "lr: found -1.0"),
        (broken(param_groups=[{**group, "rho": 0.5}]), "rho"),
        (broken(state={0: {"step": state["step"], "sum": state["exp_avg"]}}), "sum"),
        (broken(state={0: {**state, "step": -1}}), "found -1, expected a number >= 0"),
        (broken(state={0: {**state, "exp_avg": np.zeros(5, "f4")}}), r"\(5,\)"),
        (broken(state={0: {**state, "exp_avg": np.zeros(4, "f8")}}), "float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(bad)
        assert pickle.dumps(optimizer.state_dict()) == before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_arrays_of_their_own(duplicate):
    for build in (lambda a, b: [a, b], lambda a, b: {"a": a, "b": b}, lambda a, b: [{"params": a}, {"params": [b]}]):
        grads = [np.ones(3, "f4"), np.ones(4, "f4")]
        optimizer = fastopt.AdaBound(build(np.ones(3, "f4"), np.ones(4, "f4")), lr=0.1, threads=2)
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step(build(*grads) if isinstance(build(*grads), dict) else grads)
        other = duplicate(optimizer)
        mine = [p for group in optimizer.param_groups for p in group["params"]]
        theirs = [p for group in other.param_groups for p in group["params"]]
        assert_same_bits(mine, theirs)
        before = [p.copy() for p in mine]
        other.step(build(*grads) if isinstance(build(*grads), dict) else grads)
        assert_same_bits(mine, before)
        optimizer.step(build(*grads) if isinstance(build(*grads), dict) else grads)
        assert_same_bits(mine, theirs)
        assert (mine[0] != before[0]).all()


def test_a_zero_dimensional_parameter_is_saved_and_loaded():
    p = np.array(1.0)
    optimizer = fastopt.Adam([p])
    optimizer.step([np.array(-2.0)])
    other = fastopt.Adam([p.copy()])
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    assert other.state[0]["exp_avg"] == optimizer.state[0]["exp_avg"] < 0
    assert other.state[0]["step"] == 1


def test_a_parameter_without_saved_state_is_as_before_its_first_step():
    p, g = arrays(5, 5)
    optimizer = fastopt.Adagrad([p], initial_accumulator_value=lambda t: 0.5)
    assert (optimizer.state[0]["sum"] == 0.5).all()
    optimizer.step([g])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    assert (optimizer.state[0]["sum"] == 0.5).all()
    assert optimizer.state[0]["step"] == 0


def test_adabound_keeps_base_lr():
    p, _g = arrays(5, 5)
    optimizer = fastopt.AdaBound(p, lr=0.01)
    optimizer.param_groups[0]["lr"] = 0.001
    assert optimizer.state_dict()["param_groups"][0]["base_lr"] == 0.01
    other = fastopt.AdaBound(p.copy(), lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["base_lr"] == 0.01
    with pytest.raises(ValueError, match=r"base_lr: found 0\.0, expected a finite number > 0"):
        fastopt.AdaBound(p, lr=0.0)


def test_callables_are_refused_by_files_of_arrays():
    optimizer = fastopt.SGD(np.ones(3), lr=lambda t: 1 / t)
    with pytest.raises(TypeError, match="callable"):
        fastopt.flatten_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="param_groups"):
        fastopt.unflatten_state_dict({"x": np.ones(1)})
    with pytest.raises(ValueError, match=r"state\.<index>"):
        fastopt.unflatten_state_dict({"param_groups": np.ones(1, "u1"), "x": np.ones(1)})


def test_nag_is_the_literal_look_ahead():
    """v = mu*v + lr*grad(theta - mu*v); theta -= v, seen at phi = theta - mu*v: on a logistic regression."""
    rng = np.random.default_rng(0)
    x, w0 = rng.standard_normal((40, 6)), rng.standard_normal(6)
    y = (x @ rng.standard_normal(6) > 0).astype(float)

    def grad(w):
        return x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y) + 0.01 * w

    mu, lr = 0.9, 0.3
    theta, v = w0.copy(), np.zeros(6)
    phi, inside = w0.copy(), w0.copy()
    fused, fused_inside = fastopt.NAG(phi, lr=lr, momentum=mu), fastopt.NAG(inside, lr=lr, momentum=mu, lr_inside=True)
    for _ in range(100):
        v = mu * v + lr * grad(theta - mu * v)
        theta = theta - v
        fused.step(grad(phi))
        fused_inside.step(grad(inside))
        np.testing.assert_allclose(phi, theta - mu * v, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(inside, theta - mu * v, rtol=1e-9, atol=1e-12)
    assert np.linalg.norm(grad(theta)) < 0.1 * np.linalg.norm(grad(w0))


def test_demon():
    demon = fastopt.Demon(total=10, beta=0.9)
    assert demon(10) == demon(11) == 0.0
    assert demon(5) == pytest.approx(0.9 * 0.5 / (0.1 + 0.9 * 0.5))
    assert pickle.loads(pickle.dumps(demon)) == demon
    with pytest.raises(ValueError, match="total"):
        fastopt.Demon(total=0)
    with pytest.raises(ValueError, match="beta"):
        fastopt.Demon(total=5, beta=1.0)
