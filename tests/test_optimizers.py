"""The classes: structures of params, groups, schedules, plans, states, saving and loading."""

import copy
import functools
import gc
import inspect
import json
import math
import pickle
import weakref

import ml_dtypes
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
    rule = optimizer._arguments.rule(group)
    values = optimizer._arguments.values(rule, group, 1)
    hyper = {key: value for key, value in values.items() if key not in rule.initial}
    want = p0.copy()
    copies = len(hyper["betas"]) if rule.vector else 1
    shapes = [rule.state_shape(state, want.shape, copies) for state in rule.state_names]
    initial = [want if s.begins == "parameter" else values.get(s.begins, 0.0) for s in rule.states]
    states = [np.full(shape, value, "f4") for shape, value in zip(shapes, initial, strict=True)]
    for t, g in enumerate(grads, 1):
        optimizer.step([g])
        getattr(functional, rule.name)(want, g, *states, step=t, **hyper)
    assert_same_bits([params[0], *(optimizer.state[0][s] for s in rule.state_names)], [want, *states])


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
    if optimizer._arguments.rule(optimizer.param_groups[0]).over_all:
        return  # what is measured of the others is part of the step
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


@pytest.mark.parametrize("bound", [False, True])
def test_each_group_has_its_own_schedule(bound):
    params, grads = np.zeros((3, 2)), np.ones((3, 2))
    rates = [lambda t: 1.0 * t, lambda t: 10.0 * t, 100.0]
    optimizer = fastopt.SGD([{"params": [param], "lr": lr} for param, lr in zip(params, rates, strict=True)])
    structure = [{"params": [grad]} for grad in grads]
    step = optimizer.bind(structure).step if bound else lambda: optimizer.step(structure)
    for _ in range(2):
        step()
    assert params[:, 0].tolist() == [-3.0, -30.0, -200.0]


def test_a_group_without_parameters_is_before_its_first_step():
    optimizer = fastopt.SGD([{"params": [np.zeros(2)]}, {"params": [], "lr": lambda t: 1.0 / t}], lr=0.1)
    optimizer.step([[np.ones(2)], []])
    assert optimizer.hyper(1)["lr"] == 1.0


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


SWITCHES = [
    *(("Adam", "amsgrad"), ("AdamW", "amsgrad"), ("SGD", "nesterov"), ("RMSprop", "centered")),
    *((name, "maximize") for name in CLASSES),
]


@pytest.mark.parametrize(("name", "flag"), SWITCHES)
def test_flags_are_true_or_false(name, flag):
    options = {"momentum": 0.9} if flag == "nesterov" else {}
    for bad in ("False", "", b"1", None, [], (), math.nan, 2, -1, 0.5, np.ones(2), lambda t: t > 3):
        if callable(bad) and flag == "maximize":
            continue
        with pytest.raises((TypeError, ValueError), match=f"^{flag}: found .*, expected True or False"):
            make(name, [np.ones((3, 2))], **options, **{flag: bad})
    for good in (True, np.True_, 1, False, np.False_, 0):
        make(name, [np.ones((3, 2))], **options, **{flag: good})
    optimizer = make(name, [np.ones((3, 2))], **options)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(TypeError, match=f"^{flag}: found 'no'"):
        optimizer.param_groups[0][flag] = "no"
    assert optimizer.param_groups[0] == before


@pytest.mark.parametrize("name", ["SGD", "RMSprop"])
def test_a_momentum_that_is_none_is_refused(name):
    for bad in (None, False, "", "0.9", [], -0.5, math.nan, math.inf):
        with pytest.raises((TypeError, ValueError), match=r"^momentum: found .*, expected a finite number >= 0"):
            make(name, [np.ones(3)], momentum=bad)
    assert make(name, [np.ones(3)], momentum=1.5).state[0]["momentum_buffer"].shape == (3,)


def test_hyper_parameters_are_numbers_of_the_type_of_computing():
    p, q = np.ones(3, "f4"), np.ones(3, "f8")
    for params in (p, [q, p], np.ones(3, "f2")):
        with pytest.raises(ValueError, match=r"^lr: found 1e.39, expected a number that float32 holds"):
            fastopt.SGD(params, lr=1e39)
    fastopt.SGD(q, lr=1e39)
    optimizer = fastopt.SGD(p)
    with pytest.raises(ValueError, match=r"^weight_decay: found 1e.39, expected a number that float32 holds"):
        optimizer.param_groups[0]["weight_decay"] = 1e39
    with pytest.raises(ValueError, match=r"^grad_scale: found 1e.39, expected a number that float32 holds"):
        optimizer.step(np.zeros(3, "f4"), grad_scale=1e39)
    with pytest.raises(ValueError, match=r"^grad_scale: found -1e.39, expected a number that float32 holds"):
        functional.sgd(p, np.zeros(3, "f4"), step=1, grad_scale=-1e39)
    scheduled = fastopt.SGD(p, lr=lambda t: 10.0 ** (38 * t - 37))
    scheduled.step(np.zeros(3, "f4"))
    with pytest.raises(ValueError, match=r"^lr: found 1e.39"):
        scheduled.step(np.zeros(3, "f4"))
    np.testing.assert_array_equal(p, 1)


def test_ftrl_warms_up_from_zero():
    p0, grads = parameter(40).astype("f4"), gradients(40, 6).astype("f4")
    late, warm = p0.copy(), p0.copy()
    first = fastopt.FTRL(late, lr=0.1)
    second = fastopt.FTRL(warm, lr=lambda t: 0.0 if t < 3 else 0.1)
    for t, g in enumerate(grads):
        second.step(g)
        if t < 2:
            assert_same_bits([warm], [p0])
        else:
            first.step(g)
    assert_same_bits([late], [warm])
    assert_same_bits([first.state[0]["linear"]], [second.state[0]["linear"]])


def test_adamw_is_documented_as_decoupled():
    assert "L2" not in fastopt.AdamW.__doc__ and "decoupled_weight_decay" not in fastopt.AdamW.__doc__
    assert "L2" in fastopt.Optimizer.__doc__  # which has what all other classes take alike
    assert "``weight_decay``" in fastopt.Adam.__doc__ and "``decoupled_weight_decay``" in fastopt.Adam.__doc__


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


BAD_COUNTS = [1.9, math.nan, math.inf, -math.inf, 1e300, 2**63, 2**70, -1, True, "1", ["1"], [1], 1j]


def test_state_dicts_that_do_not_fit_change_nothing(tmp_path):
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
        (broken(state={0: {**state, "exp_avg": np.zeros(4, "i4")}}), "dtype int32, expected floats"),
        (broken(state={0: {**state, "exp_avg": ["a"] * 4}}), "dtype <U1, expected floats"),
        (broken(state={0: {**state, "exp_avg": np.zeros((4, 1), "f4")}}), r"\(4, 1\)"),
        (broken(state={0: {**state, "exp_avg": np.full(4, 1e300)}}), "beyond what this optimizer's float32 can hold"),
        (broken(state={0: {key: x for key, x in state.items() if key != "step"}}), "missing: 'step'"),
        (broken(state={0: {**state, "step": None}}), "missing: 'step'"),
        *((broken(state={0: {**state, "step": x}}), r"\['step'\]: found") for x in BAD_COUNTS),
        (broken(state={0: state, 1: state}), r"state_dict\['state'\]: found 1, expected numbers of parameters"),
        (broken(state={0: state, "0": state}), "found '0', expected numbers of parameters, each once"),
        (broken(state={"a": state}), "found 'a', expected numbers of parameters"),
        (broken(state=[state]), "found list, expected a mapping"),
        (broken(state={0: 3}), "found int, expected a mapping"),
        (broken(param_groups={**group}), "found dict, expected a list"),
        (broken(param_groups=[3]), "found int, expected a mapping"),
        (broken(param_groups=[{**group, "params": "a"}]), r"\['params'\]: found 'a' of type str, expected a list"),
        (broken(param_groups=[{key: x for key, x in group.items() if key != "betas"}]), "missing: 'betas'"),
        (broken(param_groups=[{**group, "betas": [0.9]}]), "betas: found"),
        (broken(param_groups=[{**group, "wieght_decay": 0.1}]), "did you mean 'weight_decay'"),
    ]:
        for files in (False, True):
            other = optimizer
            if files:
                other = fastopt.Adam(p.copy(), lr=0.5, state_dir=tmp_path / str(len(list(tmp_path.iterdir()))))
                other.load_state_dict(good)
            with pytest.raises((TypeError, ValueError), match=message):
                other.load_state_dict(bad)
            assert pickle.dumps(other.state_dict()) == before
            other.close()


def test_a_state_dict_whose_last_part_is_bad_changes_nothing(tmp_path):
    good = fastopt.Adam(arrays(4, 5), lr=0.25)
    good.step(arrays(4, 5, seed=1))
    for files in ({}, {"state_dir": tmp_path}):
        optimizer = fastopt.Adam(arrays(4, 5), lr=0.5, **files)
        before = pickle.dumps(optimizer.state_dict())
        for name, value in [("step", math.inf), ("exp_avg_sq", ["x"] * 5), ("exp_avg", np.zeros(4, "f4"))]:
            bad = copy.deepcopy(good.state_dict())
            bad["state"][1][name] = value
            with pytest.raises((TypeError, ValueError), match=rf"\['state'\]\[1\]\['{name}'\]: found"):
                optimizer.load_state_dict(bad)
            assert pickle.dumps(optimizer.state_dict()) == before
        optimizer.close()
    optimizer = fastopt.Adam(arrays(4, 5), lr=0.5, state_dir=tmp_path)
    before = pickle.dumps(optimizer.state_dict())
    optimizer.close()
    with pytest.raises(ValueError, match="closed"):
        optimizer.load_state_dict(good.state_dict())
    assert pickle.dumps(optimizer.state_dict()) == before


def test_state_dicts_through_json():
    params, grads = arrays(4, 5), arrays(4, 5, seed=1)
    one = fastopt.NAdam(params, lr=0.1)
    one.step(grads)
    saved = json.loads(json.dumps(one.state_dict(), default=lambda x: x.tolist()))
    assert list(saved["state"]) == ["0", "1"]
    two = fastopt.NAdam([p.copy() for p in params], lr=0.1)
    two.load_state_dict(saved)
    for optimizer in (one, two):
        optimizer.step(grads)
    assert_same_bits(two.param_groups[0]["params"], one.param_groups[0]["params"])


def test_torchs_sgd_counts_no_steps():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    t, p = torch.ones(4, requires_grad=True), np.ones(4, "f4")
    theirs, ours = torch.optim.SGD([t], lr=0.1, momentum=0.9), fastopt.SGD([p], lr=0.5, momentum=0.9)
    t.grad = torch.ones(4)
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.1
    assert ours.state[0]["step"] == 1
    np.testing.assert_array_equal(ours.state[0]["momentum_buffer"], 1)


STORED = ["float32", "bfloat16", "float16", "8bit"]


@pytest.mark.parametrize("after", STORED)
@pytest.mark.parametrize("before", STORED)
@pytest.mark.parametrize("name", ["AdamW", "AggMo", "Adagrad"])
def test_states_of_another_precision_are_converted(name, before, after):
    rng = np.random.default_rng(0)
    shape = (70, 60)  # in blocks, and of no whole number of them

    def ones(order, kind):
        array = np.asarray(np.ones(shape, "f4"), order=order)
        return pytest.importorskip("torch", reason="torch is not installed").from_numpy(array) if kind else array

    for order, kind in (("C", None), ("F", None), ("C", "torch")):
        one = make(name, [ones(order, kind)], lr=0.1, state_dtype=before)
        for _ in range(3):
            one.step([np.asarray(rng.standard_normal(shape).astype("f4"), order=order)])
        two = make(name, [ones(order, kind)], state_dtype=after)
        two.load_state_dict(one.state_dict())
        assert two.state[0]["step"] == 3
        for state in one.state[0]:
            if state != "step":
                want, got = one.state_values(0, state), two.state_values(0, state)
                rounded = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11, "8bit": 2.0**-4}[after]
                least = 1e-2 * np.abs(want).max() if after == "8bit" else 1e-7
                np.testing.assert_allclose(got, want, rtol=rounded, atol=least if after != before else 0)
                if after == before:
                    np.testing.assert_array_equal(got, want)
        two.step([ones(order, None)])


@pytest.mark.parametrize("rounding", ["nearest", "kahan", "master"])
def test_a_model_made_bfloat16_goes_on(rounding):
    """A state that keeps the bits that a parameter cannot hold begins anew from it, and ends with it."""
    g = np.ones(9, "f4")
    wide, narrow = np.linspace(1, 2, 9, dtype="f4"), np.linspace(1, 2, 9).astype(ml_dtypes.bfloat16)
    one, two = fastopt.Adam([wide], lr=0.1), fastopt.Adam([narrow], lr=0.1, rounding=rounding)
    one.step([g])
    two.step([g])
    for other, own in ((two, one), (one, two)):
        own.load_state_dict(other.state_dict())
        assert own.state[0]["step"] == 1
        np.testing.assert_allclose(own.state_values(0, "exp_avg"), 0.1, rtol=2**-8)
    if rounding == "master":
        np.testing.assert_array_equal(two.state[0]["master"], narrow.astype("f4"))
    with pytest.raises(ValueError, match="missing: 'ema'"):
        fastopt.Adam([wide], ema_decay=0.9).load_state_dict(one.state_dict())


@pytest.mark.parametrize("state_dtype", [None, "float16"])
def test_values_of_a_state_have_the_parameters_shape(state_dtype):
    params = [np.ones(shape, "f4") for shape in ((), (1,), (2, 3))]
    opt = fastopt.Adam(params, state_dtype=state_dtype)
    assert [opt.state_values(i, "exp_avg").shape for i in range(3)] == [(), (1,), (2, 3)]


def test_values_of_a_state_that_is_not_there():
    optimizer = fastopt.Adam(np.zeros(3, "f4"))
    for i, name, error, message in [
        (1, "exp_avg", ValueError, "i: found 1, expected an integer >= 0 and <= 0"),
        (-1, "exp_avg", ValueError, "i: found -1"),
        ("x", "exp_avg", TypeError, "i: found 'x'"),
        (0, "exp_average", ValueError, "name: found 'exp_average', .*did you mean 'exp_avg'"),
        (0, 1, TypeError, "name: found 1"),
    ]:
        with pytest.raises(error, match=message):
            optimizer.state_values(i, name)


def test_groups_and_states_show_what_is_used():
    p, q, g = np.zeros(3, "f4"), np.zeros(3, "f4"), np.ones(3, "f4")
    optimizer = fastopt.SGD([{"params": [p]}, {"params": [q]}], lr=0.5, momentum=0.0)
    group = optimizer.param_groups[0]

    def check(lr):
        p[:] = 0
        optimizer.step([[g], [None]])
        np.testing.assert_array_equal(p, np.float32(-lr))
        assert group["lr"] == lr == optimizer.state_dict()["param_groups"][0]["lr"] == optimizer.hyper()["lr"]

    optimizer.param_groups[0] |= {"lr": 0.25}
    check(0.25)
    group.update(lr=0.125, weight_decay=0.0)
    check(0.125)
    group.update({**group, "lr": 1.0})
    check(1.0)
    for change, error, message in [
        (lambda: group.__ior__({"lr": math.nan}), ValueError, "lr: found nan"),
        (lambda: group.update(weight_decay=0.1, lr=-1.0), ValueError, "lr: found -1.0"),
        (lambda: group.__ior__({"learning_rate": 0.1}), ValueError, "did you mean 'lr'"),
        (lambda: group.setdefault("betas", 0.1), ValueError, "found 'betas', expected one of lr"),
        (lambda: group.update(3), TypeError, r"param_groups\[0\]: found 3 of type int, expected a mapping"),
        (lambda: optimizer.hyper(2), ValueError, "group: found 2, expected an integer >= 0 and <= 1"),
        (lambda: group.pop("lr"), TypeError, "'lr' cannot be removed"),
        (lambda: group.popitem(), TypeError, "cannot be removed"),
        (lambda: group.clear(), TypeError, "cannot be removed"),
        (lambda: group.__delitem__("lr"), TypeError, "'lr' cannot be removed"),
        (lambda: group.update(params=[q]), ValueError, "found 'params'"),
        (lambda: group["params"].append(q), AttributeError, "append"),
        (lambda: optimizer.param_groups.__setitem__(0, {"lr": 3.0}), TypeError, "cannot be replaced"),
        (lambda: optimizer.param_groups.append({"params": [q]}), TypeError, "construct a new optimizer"),
        (lambda: optimizer.param_groups.pop(), TypeError, "construct a new optimizer"),
        (lambda: optimizer.param_groups.__delitem__(0), TypeError, "construct a new optimizer"),
        (lambda: setattr(optimizer, "param_groups", []), TypeError, "construct a new optimizer"),
        (lambda: setattr(optimizer, "state", []), TypeError, "construct a new optimizer"),
        (lambda: optimizer.state.__setitem__(0, {}), TypeError, "construct a new optimizer"),
    ]:
        with pytest.raises(error, match=message):
            change()
        check(1.0)
    for other in (group.copy(), copy.copy(group), copy.deepcopy(optimizer.param_groups)[0], group | {}, {} | group):
        other["lr"] = 7.0
        check(1.0)


def test_a_states_entries_are_written_where_they_are_used(tmp_path):
    for files in ({}, {"state_dir": tmp_path}):
        p, g = np.zeros(3, "f4"), np.ones(3, "f4")
        optimizer = fastopt.Adam([p], lr=0.5, **files)
        optimizer.step([g])
        state, array = optimizer.state[0], optimizer.state[0]["exp_avg"]
        state["exp_avg"] = np.zeros(3, "f4")
        optimizer.state[0] |= {"exp_avg_sq": [4.0, 4.0, 4.0], "step": 7}
        assert state["exp_avg"] is array
        before = p.copy()
        optimizer.step([np.zeros(3, "f4")])
        np.testing.assert_array_equal(p, before)
        assert state["step"] == 8
        np.testing.assert_allclose(state["exp_avg_sq"], 4 * 0.999)
        kept = pickle.dumps(optimizer.state_dict())
        for changes, error, message in [
            ({"exp_avg": np.zeros(4, "f4")}, ValueError, r"state\[0\]\['exp_avg'\]: found shape \(4,\)"),
            ({"exp_avg": np.ones(3), "step": -1}, ValueError, "found -1"),
            ({"exp_avq": np.ones(3)}, ValueError, "did you mean 'exp_avg'"),
        ]:
            with pytest.raises(error, match=message):
                state.update(changes)
            assert pickle.dumps(optimizer.state_dict()) == kept
        for change in (lambda: state.pop("step"), state.clear, state.popitem):  # noqa: B023
            with pytest.raises(TypeError, match="cannot be removed"):
                change()
        optimizer.close()


def test_entries_of_the_users_own_in_groups_are_kept():
    p, q = np.ones(3, "f4"), np.ones(3, "f4")
    hook = len
    groups = [{"params": p, "name": "a", "lr_scale": 0.5, "hook": hook}, {"params": [q], "lr": 0.5, "tags": ["x"]}]
    optimizer = fastopt.AdamW(groups, lr=0.1)
    optimizer.step([np.ones(3, "f4")] * 2)
    optimizer.param_groups[1]["initial_lr"] = 0.25
    optimizer.param_groups[1]["tags"].append("y")
    other = fastopt.AdamW([{"params": p.copy()}, {"params": q.copy()}])
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for got in (optimizer, other, copy.deepcopy(optimizer)):
        a, b = got.param_groups
        assert (a["name"], a["lr_scale"], a["hook"]) == ("a", 0.5, hook)
        assert (b["tags"], b["initial_lr"], b["lr"]) == (["x", "y"], 0.25, 0.5)
    del optimizer.param_groups[0]["name"]
    assert optimizer.param_groups[0].pop("lr_scale") == 0.5
    assert "name" not in optimizer.param_groups[0]
    for key, message in [
        ("wieght_decay", "found 'wieght_decay', expected .*did you mean 'weight_decay'"),
        ("LR", ".*did you mean 'lr'"),
        ("epsilon", ".*did you mean 'eps'"),
        ("momentum", "found 'momentum', expected one of lr"),
    ]:
        with pytest.raises(ValueError, match=rf"params\[0\]: {message}"):
            fastopt.AdamW([{"params": p, key: 0.1}])


@pytest.mark.parametrize("kind", ["0-d", "torch", "pair"])
def test_a_hyper_parameter_within_an_array_is_read_at_each_step(kind):
    make_number = pytest.importorskip("torch", reason="torch is not installed").tensor if kind == "torch" else np.array
    lr = make_number(0.5)
    p, g = np.zeros(3, "f4"), np.ones(3, "f4")
    if kind == "pair":
        optimizer = fastopt.Adam([p], lr=1.0, betas=(lr, 0.9))
        optimizer.step([g])
        lr[...] = 0.0
        optimizer.step([g])
        np.testing.assert_array_equal(optimizer.state[0]["exp_avg"], 1.0)
        assert optimizer.hyper()["betas"] == (0.0, 0.9)
        return
    optimizer = fastopt.SGD([p], lr=lr)
    plan = optimizer.bind([g])
    plan.step()
    lr[...] = 0.25
    plan.step()
    lr[...] = 1.0
    optimizer.step([g])
    assert optimizer.hyper() == {**optimizer.hyper(), "lr": 1.0}
    np.testing.assert_array_equal(p, -1.75)
    lr[...] = -1.0
    with pytest.raises(ValueError, match="lr: found"):
        optimizer.step([g])
    np.testing.assert_array_equal(p, -1.75)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("how", ["step", "fresh", "max_norm", "plan", "rows", "numba"])
def test_arrays_made_read_only_after_the_first_step_are_refused(how, watched, monkeypatch):
    if not watched:  # as without the C library
        native = pytest.importorskip("fastopt.backends.native", exc_type=ImportError)
        monkeypatch.setattr(native, "_can_read_arrays", lambda: False)
    p, q, g = np.zeros((3, 2), "f4"), np.zeros((4, 2), "f4"), [np.ones((3, 2), "f4"), np.ones((4, 2), "f4")]
    optimizer = fastopt.Adam([p, q], lr=1.0, backend="numba" if how == "numba" else None)
    plan = optimizer.bind(g)
    rows = fastopt.RowSparse(np.array([0]), np.ones((1, 2), "f4"))
    step = {
        "fresh": lambda: optimizer.step([x.copy() for x in g]),
        "max_norm": lambda: optimizer.step(g, max_norm=1.0),
        "plan": plan.step,
        "rows": lambda: optimizer.step([rows, g[1]]),
    }.get(how, lambda: optimizer.step(g))
    step()
    step()
    for array, message in [
        (q, r"params\[1\]: found a read-only array"),
        (optimizer.state[0]["exp_avg_sq"], r"state of params\[0\]: found a read-only array"),
    ]:
        array.flags.writeable = False
        before = pickle.dumps([p, q, optimizer.state_dict()])
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                step()
        assert pickle.dumps([p, q, optimizer.state_dict()]) == before
        array.flags.writeable = True
        step()
    if how == "plan":
        plan.step(zero_grads=True)
        g[0].flags.writeable = False
        with pytest.raises(ValueError, match=r"grads\[0\]: found a read-only array, expected .* set to zero"):
            plan.step(zero_grads=True)
        plan.step()


@pytest.mark.parametrize("which", ["param", "state", "grad"])
@pytest.mark.parametrize("move", ["data", "resize_", "set_", "storage", "transpose", "neg"])
def test_tensors_of_torchs_that_are_elsewhere_are_not_written(which, move):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    p, g = torch.zeros(4, 4), torch.ones(4, 4)
    optimizer = fastopt.Adam([p], lr=0.1)
    plan = optimizer.bind([g])
    optimizer.step([g])
    plan.step()
    tensor = {"param": p, "state": optimizer.state[0]["exp_avg"], "grad": g}[which]
    kept = tensor.clone()
    if move == "data":
        tensor.data = torch.full((4, 4), 2.0)
    elif move == "resize_":
        tensor.resize_(100, 100)
    elif move == "set_":
        tensor.set_(torch.full((4, 4), 2.0))
    elif move == "storage":
        tensor.untyped_storage().resize_(0)
    elif move == "transpose":
        tensor.t_()
    else:
        tensor.data = torch.complex(kept, kept).conj().imag
    with pytest.raises(ValueError, match="found a tensor that has other memory than at bind"):
        plan.step()
    if move in ("resize_", "storage") or (move == "neg" and which != "grad"):
        with pytest.raises((TypeError, ValueError), match="found"):
            optimizer.step([g])
    else:  # it is found anew
        optimizer.step([g])
        assert optimizer.state[0]["step"] == 3


def test_a_plan_of_a_tensor_whose_values_are_elsewhere_is_refused():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    g = torch.tensor([1 + 2j, 3 + 4j]).conj().imag
    p = np.zeros(2, "f4")
    optimizer = fastopt.SGD([p], lr=1.0)
    with pytest.raises(ValueError, match=r"grads\[0\]: found a lazily negated tensor"):
        optimizer.bind([g])
    for _ in range(2):
        optimizer.step([g])
    np.testing.assert_array_equal(p, [4, 8])


def test_an_optimizer_ends_with_its_last_reference():
    gc.collect()
    gc.disable()
    try:
        p, g = np.zeros(3, "f4"), np.ones(3, "f4")
        for build in (lambda: fastopt.Adam([p]), lambda: fastopt.Adam([p], lr=lambda t: 0.1)):
            optimizer = build()
            optimizer.step([g])
            optimizer.step([g.copy()])
            optimizer.step([g], max_norm=1.0, zero_grads=True)
            optimizer.param_groups[0]["lr"] = 0.5
            plan = optimizer.bind([g])
            refs = [weakref.ref(optimizer), weakref.ref(optimizer.state[0]["exp_avg"])]
            group, count = optimizer.param_groups[0], optimizer.state[0]["step"]
            del optimizer
            plan.step()  # a plan is its own
            assert count == 4
            assert refs[1]() is not None
            group["lr"] = 0.0
            before = p.copy()
            plan.step()
            np.testing.assert_array_equal(p, before)
            assert count == 5
            group["lr"] = 0.5
            del plan
            assert [ref() for ref in refs] == [None, None]
            assert group["lr"] == 0.5
    finally:
        gc.enable()


def test_unknown_names_are_told_what_they_may_mean():
    p = np.ones(3, "f4")
    for call, message in [
        (lambda: fastopt.Adam([p], learning_rate=0.1), "Adam: found 'learning_rate', expected .*did you mean 'lr'"),
        (lambda: fastopt.Adam([p], beta=0.1), "Adam: found 'beta', expected .*did you mean 'betas'"),
        (lambda: fastopt.Adam([p], weigth_decay=0.1), "did you mean 'weight_decay'"),
        (lambda: fastopt.Adam(), "Adam: missing a required argument: 'params'"),
        (lambda: fastopt.Adam(lr=0.1), "Adam: missing a required argument: 'params'"),
        (lambda: fastopt.Adam([p], params=[p]), "Adam: multiple values for argument 'params'"),
    ]:
        with pytest.raises(TypeError, match=message):
            call()
    fastopt.Adam(params=[p], lr=0.1)
    for name, meant in [
        ("Nadam", "NAdam"),
        ("adamw", "AdamW"),
        ("RMSProp", "RMSprop"),
        ("clip_grad_norm", "clip_grad_norm_"),
    ]:
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; did you mean '{meant}'"):
            getattr(fastopt, name)
    optimizer = fastopt.SGD({"a": p, "b": np.ones(3, "f4")})
    with pytest.raises(ValueError, match=r"params has, expected the same; missing: 'b'; too many: 'c'$"):
        optimizer.step({"a": p, "c": p})
    with pytest.raises(ValueError, match=r"grads: found other keys than params has, expected the same; missing: 'b'$"):
        optimizer.step({"a": p})


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
    with pytest.raises(ValueError, match=r"^lr: found 0\.0, expected a finite number > 0"):
        fastopt.AdaBound(p, lr=0.0)


def test_callables_are_refused_by_files_of_arrays():
    optimizer = fastopt.SGD(np.ones(3), lr=lambda t: 1 / t)
    with pytest.raises(TypeError, match="callable"):
        fastopt.flatten_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="param_groups"):
        fastopt.unflatten_state_dict({"x": np.ones(1)})
    with pytest.raises(ValueError, match=r"state\.<index>"):
        fastopt.unflatten_state_dict({"param_groups": np.ones(1, "u1"), "x": np.ones(1)})


def constant(t):
    return 0.25


@pytest.mark.parametrize("schedule", [constant, fastopt.Demon(total=100, beta=0.5)])
def test_schedules_that_pickle_finds_are_pickled(schedule):
    p, g = arrays(5, 5)
    optimizer = fastopt.SGD([p], lr=schedule)
    optimizer.step([g])
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer), fastopt.SGD([p.copy()], lr=1.0)):
        other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        assert other.param_groups[0]["lr"] == schedule
        assert other.hyper()["lr"] == schedule(2)


def test_of_other_schedules_a_state_dict_says_what_it_cannot_hold():
    p, g = arrays(5, 5)
    start, rate = p.copy(), lambda t: 0.5 / t
    optimizer = fastopt.Adam([p], lr=rate, betas=(lambda t: 1 - 1 / t, 0.9))
    optimizer.step([g])
    assert optimizer.hyper() == {**optimizer.hyper(), "lr": 0.25, "betas": (0.5, 0.9)}
    for other in (copy.copy(optimizer), copy.deepcopy(optimizer)):
        assert other.param_groups[0]["lr"] is rate
    with pytest.raises(TypeError, match=r"lr: found <schedule .*<lambda>>, expected what pickle finds by name"):
        pickle.dumps(optimizer)
    other = fastopt.Adam([start])
    other.load_state_dict(optimizer.state_dict())  # within a process it is the same one
    assert other.param_groups[0]["lr"] is rate
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    for options, key in [({}, "lr"), ({"lr": rate}, "betas"), ({"betas": (rate, rate)}, "lr")]:
        other = fastopt.Adam([p.copy()], **options)
        before = pickle.dumps(other.state_dict())
        with pytest.raises(ValueError, match=rf"\['param_groups'\]\[0\]\['{key}'\]: found <schedule .*construct it"):
            other.load_state_dict(saved)
        assert pickle.dumps(other.state_dict()) == before
    q = p.copy()
    resumed = fastopt.Adam([q], lr=lambda t: 0.5 / t, betas=(lambda t: 1 - 1 / t, 0.9))
    resumed.load_state_dict(saved)
    for one in (optimizer, resumed):
        one.step([g])
    assert_same_bits([p], [q])
    with pytest.raises(TypeError, match=r"found <schedule .*cannot hold a callable; pickle the state dict"):
        fastopt.flatten_state_dict(optimizer.state_dict())


def test_numbers_of_any_kind_go_into_files_of_arrays():
    optimizer = fastopt.SGD([{"params": [np.ones(3)], "name": "a"}], lr=np.array(0.5), weight_decay=np.float32(0.25))
    groups = fastopt.unflatten_state_dict(fastopt.flatten_state_dict(optimizer.state_dict()))["param_groups"]
    assert (groups[0]["lr"], groups[0]["weight_decay"], groups[0]["name"]) == (0.5, 0.25, "a")
    optimizer.param_groups[0]["name"] = {1, 2}
    with pytest.raises(TypeError, match=r"found \{1, 2\}, expected numbers: .* cannot hold a set"):
        fastopt.flatten_state_dict(optimizer.state_dict())


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


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_a_count_that_cannot_go_on(backend):
    p, g = np.ones(4, "f4"), np.ones(4, "f4")
    optimizer = fastopt.Adam(p, lr=0.1, backend=backend)
    count = optimizer.state[0]["step"]
    for done in (-1, 2**63 - 1):
        count[...] = done
        with pytest.raises(ValueError, match=f"step: found {done} steps done, expected 0 to {2**63 - 2}, to count"):
            optimizer.step(g)
        assert count == done and (p == 1).all()
    count[...] = 2**63 - 2
    optimizer.step(g)
    assert count == 2**63 - 1 and (p < 1).all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("how", ["step", "plan"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_zeroes_gradients_and_tells_their_norm(name, how, padded):
    grad = np.random.default_rng(0).standard_normal((3, 6))[:, : 4 if padded else 6]
    p, norm = np.ones(grad.shape), np.linalg.norm(grad)
    optimizer = make(name, p)
    step = optimizer.bind(grad).step if how == "plan" else functools.partial(optimizer.step, grad)
    step(max_norm=1e9, zero_grads=True)
    assert optimizer.last_grad_norm == pytest.approx(norm, rel=1e-12) and (grad == 0).all() and (p != 1).all()


def test_gradients_that_cannot_be_zeroed_are_refused_after_steps_too():
    p, g = np.ones(4, "f4"), np.ones(4, "f4")
    optimizer = fastopt.SGD(p, lr=0.25)
    g.flags.writeable = False
    optimizer.step(g)
    with pytest.raises(ValueError, match="grads: found a read-only array, expected a writable one"):
        optimizer.step(g, zero_grads=True)
    assert (g == 1).all() and (p == 0.75).all()


def test_a_group_of_torchs_that_tells_of_no_decay_has_none():
    optimizer = fastopt.Adam(np.ones(4, "f4"), weight_decay=0.1)
    saved = optimizer.state_dict()
    group = {key: value for key, value in saved["param_groups"][0].items() if key != "weight_decay"}
    group |= {"decoupled_weight_decay": False, "foreach": None}
    optimizer.load_state_dict({**saved, "param_groups": [group]})
    assert optimizer.param_groups[0]["weight_decay"] == 0.0


def test_demon():
    demon = fastopt.Demon(total=10, beta=0.9)
    assert demon(10) == demon(11) == 0.0
    assert demon(5) == pytest.approx(0.9 * 0.5 / (0.1 + 0.9 * 0.5))
    assert pickle.loads(pickle.dumps(demon)) == demon
    with pytest.raises(ValueError, match="total"):
        fastopt.Demon(total=0)
    with pytest.raises(ValueError, match="beta"):
        fastopt.Demon(total=5, beta=1.0)


def test_norms_are_of_the_gradients_of_this_step():
    rng = np.random.default_rng(0)
    params = [np.zeros((4, 5), "f4"), np.zeros(3, "f4"), np.zeros(2, ml_dtypes.bfloat16), np.zeros(7, "f4")]
    optimizer = fastopt.SGD(params, lr=1.0)
    dtypes = ["f4", ml_dtypes.bfloat16, "f4", "f4"]
    for t in range(8):
        grads = [rng.standard_normal(p.shape).astype(dtype) for p, dtype in zip(params, dtypes, strict=True)]
        grads[3] = None
        if t == 6:
            grads[3] = fastopt.RowSparse([1, 1], np.ones(2, "f4"))
        optimizer.step(grads, max_norm=1.0 if t % 3 else None)
        if t % 3:
            assert optimizer.last_grad_norm == fastopt.global_norm(grads)


def test_gradients_elsewhere_may_not_share_memory_with_what_is_updated():
    p = np.zeros(4, "f4")
    optimizer = fastopt.Adam([p, np.zeros(4, "f4")])
    for _ in range(3):
        optimizer.step([np.ones(4, "f4"), None])
    for shared in (p, p[:], optimizer.state[0]["exp_avg"]):
        before = p.copy()
        with pytest.raises(ValueError, match=r"found memory shared"):
            optimizer.step([shared, None])
        np.testing.assert_array_equal(p, before)
    optimizer.step([np.ones(4, "f4"), np.ones(4, "f4")])
    assert [int(state["step"]) for state in optimizer.state] == [4, 1]


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_plan_is_of_arrays_where_they_are(make):
    plan = fastopt.Adam(np.ones(3, "f4")).bind(np.ones(3, "f4"))
    with pytest.raises(TypeError, match="found a Plan, expected its optimizer"):
        make(plan)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_tensors_of_one_group_keep_scalars_of_their_own(backend):
    """Coefficients are folded once for neighbours that are alike in all they depend on."""
    products = (0.5, 0.25, 0.25, 0.5)

    def stepped(products):
        params, grads = ([np.ones(3) for _ in products] for _ in range(2))
        opt = fastopt.NAdam(params, lr=0.1, backend=backend)
        opt.step(grads)
        saved = opt.state_dict()
        for k, product in enumerate(products):
            saved["state"][k]["mu_product"] = product
        opt.load_state_dict(saved)
        opt.step(grads)
        return params, [float(state["mu_product"]) for state in opt.state]

    together, kept = stepped(products)
    for param, product, after in zip(together, products, kept, strict=True):
        (alone,), (own,) = stepped((product,))
        assert after == own
        np.testing.assert_array_equal(param, alone)
