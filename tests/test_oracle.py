# SPDX-License-Identifier: Apache-2.0
"""Is the reference right? The oracles against torch.optim, and by hand where torch has no such rule.

The library itself plays no part here.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest

from fastopt.rules import RULES

from .oracle import ORACLES, demon

STEPS = 15
ELEMENTWISE = [rule for rule in ORACLES if rule != "rowwise_adagrad"]


# --- Against torch ---


class TorchCase(NamedTuple):
    rule: str  # the oracle
    optimizer: str  # the class in torch.optim
    selector: dict  # the arguments that make torch's class this rule; the oracle's defaults agree with them
    options: dict  # the arguments given to both, in torch's names


TORCH_CASES = [
    TorchCase("sgd", "SGD", {}, {}),
    TorchCase("sgd", "SGD", {}, {"lr": 0.03}),
    TorchCase("momentum", "SGD", {"momentum": 0.9}, {}),
    TorchCase("momentum", "SGD", {}, {"lr": 0.03, "momentum": 0.7, "dampening": 0.2}),
    TorchCase("nesterov", "SGD", {"momentum": 0.9, "nesterov": True}, {}),
    TorchCase("nesterov", "SGD", {"nesterov": True}, {"lr": 0.03, "momentum": 0.7}),
    TorchCase("adagrad", "Adagrad", {}, {}),
    TorchCase("adagrad", "Adagrad", {}, {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.3, "eps": 1e-3}),
    TorchCase("adadelta", "Adadelta", {}, {}),
    TorchCase("adadelta", "Adadelta", {}, {"lr": 0.5, "rho": 0.8, "eps": 1e-3}),
    TorchCase("rmsprop", "RMSprop", {}, {}),
    TorchCase("rmsprop", "RMSprop", {}, {"lr": 0.03, "alpha": 0.8, "eps": 1e-3}),
    TorchCase("rmsprop_momentum", "RMSprop", {"momentum": 0.9}, {}),
    TorchCase("rmsprop_momentum", "RMSprop", {}, {"lr": 0.03, "alpha": 0.8, "eps": 1e-3, "momentum": 0.7}),
    TorchCase("rmsprop_centered", "RMSprop", {"centered": True}, {}),
    TorchCase("rmsprop_centered", "RMSprop", {"centered": True}, {"lr": 0.03, "alpha": 0.8, "eps": 1e-3}),
    TorchCase("rmsprop_centered_momentum", "RMSprop", {"centered": True, "momentum": 0.9}, {}),
    TorchCase("rmsprop_centered_momentum", "RMSprop", {"centered": True}, {"lr": 0.03, "alpha": 0.8, "momentum": 0.7}),
    TorchCase("adam", "Adam", {}, {}),
    TorchCase("adam", "Adam", {}, {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3}),
    TorchCase("amsgrad", "Adam", {"amsgrad": True}, {}),
    TorchCase("amsgrad", "Adam", {"amsgrad": True}, {"lr": 0.03, "betas": (0.8, 0.6), "eps": 1e-3}),
    TorchCase("amsgrad", "AdamW", {"amsgrad": True}, {"lr": 0.03, "betas": (0.8, 0.6)}),
    TorchCase("adamw", "AdamW", {}, {}),
    TorchCase("adamw", "AdamW", {}, {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3}),
    TorchCase("adamax", "Adamax", {}, {}),
    TorchCase("adamax", "Adamax", {}, {"lr": 0.03, "betas": (0.8, 0.6), "eps": 1e-3}),
    TorchCase("nadam", "NAdam", {}, {}),
    TorchCase("nadam", "NAdam", {}, {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "momentum_decay": 0.5}),
    TorchCase("nadam", "NAdam", {"decoupled_weight_decay": True}, {"lr": 0.03}),
]


def case_id(case):
    return "-".join([case.rule, case.optimizer, *(case.options or ["defaults"])])


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    # NAdam keeps its product of momenta in the default type, whatever the type of the parameter.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(default)


@pytest.fixture
def problem():
    rng = np.random.default_rng(20)
    return rng.normal(size=(4, 5)), list(rng.normal(size=(STEPS, 4, 5)))


def constant(options, t):
    return options


def varying(options, t):
    """Every number a little smaller at each step, starting from what the optimizer is constructed with."""
    factor = 0.9 + 0.1 / t
    return {
        name: tuple(factor * x for x in value) if isinstance(value, tuple) else factor * value
        for name, value in options.items()
    }


def run_torch(torch, case, options_at, p0, grads, **fixed):
    p = torch.tensor(p0, requires_grad=True)
    optimizer = getattr(torch.optim, case.optimizer)([p], **options_at(1), **case.selector, **fixed)
    for t, g in enumerate(grads, start=1):
        optimizer.param_groups[0].update(options_at(t))
        p.grad = torch.tensor(g)
        optimizer.step()
    # The counters are not what is compared, and without momentum torch has a buffer that is None.
    states = {
        name: value.numpy()
        for name, value in optimizer.state[p].items()
        if value is not None and name not in ("step", "mu_product")
    }
    return p.detach().numpy(), states


def oracle_options(case, options):
    """torch's arguments under the oracle's names."""
    options = dict(options)
    if "betas" in options:
        options["beta1"], options["beta2"] = options.pop("betas")
    if case.selector.get("decoupled_weight_decay") or (case.optimizer, case.rule) == ("AdamW", "amsgrad"):
        options["decoupled_weight_decay"] = options.pop("weight_decay")
    return options


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("schedule", [constant, varying])
@pytest.mark.parametrize("case", TORCH_CASES, ids=case_id)
def test_equals_torch(torch, problem, case, schedule, maximize):
    p0, grads = problem
    options = {"weight_decay": 0.05, **case.options}

    def options_at(t):
        return schedule(options, t)

    expected_p, expected_states = run_torch(torch, case, options_at, p0, grads, maximize=maximize)
    hyper = {
        name: lambda t, name=name: oracle_options(case, options_at(t))[name] for name in oracle_options(case, options)
    }
    p, states = ORACLES[case.rule](p0, grads, dtype=np.float64, maximize=maximize, **hyper)

    np.testing.assert_allclose(p, expected_p, rtol=1e-12, atol=1e-14)
    assert states.keys() == expected_states.keys()
    for name, state in states.items():
        np.testing.assert_allclose(state, expected_states[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_adamw_decays_by_default_as_in_torch(torch, problem):
    case = TorchCase("adamw", "AdamW", {}, {})
    expected, _ = run_torch(torch, case, lambda t: {}, *problem)
    p, _ = ORACLES["adamw"](*problem, dtype=np.float64)
    np.testing.assert_allclose(p, expected, rtol=1e-12)


# --- By hand: what torch does not have, with numbers for which the sums can be done on paper ---


def final(rule, p0, grads, **hyper):
    p, _ = ORACLES[rule](p0, grads, **hyper)
    return float(p)


def test_lr_inside_keeps_the_lr_of_each_step_in_the_buffer():
    hyper = {"lr": [0.1, 0.05], "momentum": 0.5}
    # Outside: b = 2, then 5.
    assert final("momentum", 1.0, [2.0, 4.0], **hyper) == pytest.approx(1 - 0.1 * 2 - 0.05 * 5)
    # Inside: b = 0.2, then 0.1 + 0.2.
    assert final("momentum", 1.0, [2.0, 4.0], lr_inside=True, **hyper) == pytest.approx(1 - 0.2 - 0.3)
    # Nesterov takes lr·g + 0.5·b: 0.2 + 0.1, then 0.2 + 0.15.
    assert final("nesterov", 1.0, [2.0, 4.0], lr_inside=True, **hyper) == pytest.approx(1 - 0.3 - 0.35)


@pytest.mark.parametrize("rule", ["momentum", "nesterov"])
def test_lr_inside_is_the_same_at_a_constant_lr(problem, rule):
    outside, states_outside = ORACLES[rule](*problem, lr=0.1, dampening=0.2)
    inside, states_inside = ORACLES[rule](*problem, lr=0.1, dampening=0.2, lr_inside=True)
    np.testing.assert_allclose(inside, outside, rtol=1e-14)
    np.testing.assert_allclose(
        states_inside["momentum_buffer"], 0.1 * states_outside["momentum_buffer"], rtol=1e-14, atol=1e-16
    )


def test_qhm():
    # b = 0.2, then 0.08; the steps are 0.1·(0.7·0.2 + 0.3·2) and 0.1·(0.7·0.08 - 0.3·1).
    assert final("qhm", 1.0, [2.0, -1.0], lr=0.1, momentum=0.9, nu=0.7) == pytest.approx(1 - 0.074 + 0.0244)


def test_qhm_contains_nesterov(problem):
    """The paper's section 4: nu = beta is NAG at the lr (1 - beta)·lr."""
    nag, _ = ORACLES["nesterov"](*problem, lr=0.1 * (1 - 0.9), momentum=0.9)
    p, _ = ORACLES["qhm"](*problem, lr=0.1, momentum=0.9, nu=0.9)
    np.testing.assert_allclose(p, nag, rtol=1e-14)


def test_qhm_needs_an_lr(problem):
    with pytest.raises(TypeError, match="lr"):
        ORACLES["qhm"](*problem)


def test_qhadam():
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "nu1": 0.5, "nu2": 0.5, "eps": 0.0}
    # m = 1, v = 1; corrected 2 and 4; (1 + 1)/√(2 + 2) = 1.
    assert final("qhadam", 1.0, [2.0], **hyper) == pytest.approx(0.9)
    # m = 0, v = 1; corrected 0 and 16/7; -0.5/√(1/2 + 8/7).
    assert final("qhadam", 1.0, [2.0, -1.0], **hyper) == pytest.approx(0.9 + 0.1 * 0.5 / math.sqrt(23 / 14))


def test_qhadam_contains_adam(problem):
    adam, _ = ORACLES["adam"](*problem)
    p, _ = ORACLES["qhadam"](*problem)
    np.testing.assert_array_equal(p, adam)


def test_aggmo():
    # The buffers are (2, 2), then (-1, 0).
    p, states = ORACLES["aggmo"]([1.0], [[2.0], [-1.0]], lr=0.1, betas=(0.0, 0.5))
    np.testing.assert_allclose(p.astype(float), [1 - 0.05 * 4 + 0.05 * 1])
    np.testing.assert_array_equal(states["momentum_buffer"], [[-1], [0]])


def test_aggmo_with_equal_betas_is_momentum(problem):
    momentum, _ = ORACLES["momentum"](*problem, lr=0.1, momentum=0.9)
    p, states = ORACLES["aggmo"](*problem, lr=0.1, betas=(0.9, 0.9, 0.9))
    np.testing.assert_allclose(p, momentum, rtol=1e-14)
    assert states["momentum_buffer"].shape == (3, *p.shape)


@pytest.mark.parametrize(
    "final_lr, expected",
    [
        (0.01, 1 - 0.02),  # clamped to the upper bound 2·final_lr
        (0.1, 1 - 0.1),  # between the bounds: Adam's step
        (1.0, 1 - 0.5),  # clamped to the lower bound final_lr/2
    ],
)
@pytest.mark.parametrize("rule", ["adabound", "amsbound"])
def test_bounds(rule, final_lr, expected):
    # m = 1, v = 1, rate = 0.1·√(1/4)/(1/2)/1.
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 0.0, "gamma": 1.0}
    assert final(rule, 1.0, [2.0], final_lr=final_lr, **hyper) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["adabound", "amsbound"])
def test_the_bounds_follow_the_lr(rule):
    hyper = {"lr": [0.1, 0.05], "beta1": 0.5, "beta2": 0.75, "eps": 0.0, "final_lr": 0.01, "gamma": 1.0}
    # Both steps at the upper bound: 0.01·2, then with half the lr 0.005·3/2; m = 1, then 2.5.
    assert final(rule, 1.0, [2.0, 4.0], **hyper) == pytest.approx(1 - 0.02 - 0.0075 * 2.5)
    assert final(rule, 1.0, [2.0, 4.0], base_lr=0.2, **hyper) == pytest.approx(1 - 0.01 - 0.00375 * 2.5)


@pytest.mark.parametrize("rule, root", [("adabound", math.sqrt(0.75)), ("amsbound", 1.0)])
def test_amsbound_remembers_the_largest_second_moment(rule, root):
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 0.0, "final_lr": 0.1, "gamma": 1.0}
    # v = 1, then 0.75; m = 1, then 0.5; both rates lie between the bounds.
    expected = 1 - 0.1 - 0.1 * math.sqrt(7 / 16) / (3 / 4) / root * 0.5
    assert final(rule, 1.0, [2.0, 0.0], **hyper) == pytest.approx(expected)


@pytest.mark.parametrize("rule, root", [("adam", math.sqrt(0.75)), ("amsgrad", 1.0)])
def test_without_bias_correction(rule, root):
    # m = 1, then 0.5; v = 1, then 0.75.
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 0.0, "bias_correction": False}
    assert final(rule, 1.0, [2.0, 0.0], **hyper) == pytest.approx(1 - 0.1 - 0.1 * 0.5 / root)


@pytest.mark.parametrize("rule", ["rmsprop_momentum", "rmsprop_centered_momentum"])
def test_lr_inside_keeps_the_lr_of_each_step_in_the_velocity(rule):
    # Each direction is g over 1; b = 2, then 5, or with the lr inside 0.2, then 0.1 + 0.2.
    hyper = {"lr": [0.1, 0.05], "alpha": 1.0, "eps": 1.0, "momentum": 0.5}
    assert final(rule, 1.0, [2.0, 4.0], **hyper) == pytest.approx(1 - 0.1 * 2 - 0.05 * 5)
    assert final(rule, 1.0, [2.0, 4.0], lr_inside=True, **hyper) == pytest.approx(1 - 0.2 - 0.3)


@pytest.mark.parametrize("rule", ["rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum"])
def test_the_average_of_squares_may_begin_elsewhere(rule):
    # s = 16, a = 0.
    assert final(rule, 1.0, [2.0], lr=0.1, alpha=1.0, eps=0.0, initial_square_avg=16.0) == pytest.approx(1 - 0.1 / 2)


@pytest.mark.parametrize("rule", ["adam", "amsgrad"])
def test_eps_hat_is_beside_the_uncorrected_root(rule):
    # m = 1, v = 1: 0.1·√(1/4)/(1/2)·1/(1 + 3), and without it 0.1·2/(2 + 3); uncorrected, both are 0.1·1/(1 + 3).
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 3.0}
    assert final(rule, 1.0, [2.0], eps_hat=True, **hyper) == pytest.approx(1 - 0.025)
    assert final(rule, 1.0, [2.0], **hyper) == pytest.approx(1 - 0.04)
    for eps_hat in (False, True):
        uncorrected = final(rule, 1.0, [2.0], bias_correction=False, eps_hat=eps_hat, **hyper)
        assert uncorrected == pytest.approx(1 - 0.025)


def test_the_maximum_before_and_after_the_correction():
    # m = 1, then 0.5; v = 1, then 0.75; corrected 4, then 12/7; 1 is corrected to 16/7 in the second step.
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 0.0}
    second = 0.1 * 0.5 / 0.75
    assert final("amsgrad", 1.0, [2.0, 0.0], **hyper) == pytest.approx(0.9 - second / math.sqrt(16 / 7))
    assert final("amsgrad", 1.0, [2.0, 0.0], max_corrected=True, **hyper) == pytest.approx(0.9 - second / 2)
    uncorrected = final("amsgrad", 1.0, [2.0, 0.0], max_corrected=True, bias_correction=False, **hyper)
    assert uncorrected == pytest.approx(1 - 0.1 - 0.1 * 0.5)


def test_adamax_with_eps_beside_the_maximum():
    # m = 1, then 0.75; u = 2, then 1.5 with eps outside, 3 and 2.25 with eps in it.
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 1.0}
    outside = final("adamax", 1.0, [2.0, 0.5], eps_outside=True, **hyper)
    assert outside == pytest.approx(1 - 0.1 * 2 / 3 - 0.1 * (0.75 / 0.75) / 2.5)
    assert final("adamax", 1.0, [2.0, 0.5], **hyper) == pytest.approx(1 - 0.1 * 2 / 3 - 0.1 * (0.75 / 0.75) / 2.25)


def test_nadam_with_momenta_that_are_beta1_from_the_start():
    # m = 1, v = 1; (0.5·1/(1 - 1/4) + 0.5·2/(1 - 1/2))/√4.
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 0.0, "momentum_decay": math.inf}
    assert final("nadam", 1.0, [2.0], **hyper) == pytest.approx(1 - 0.1 * (2 / 3 + 2) / 2)


def test_nadam_with_a_constant_momentum():
    # m = 1, v = 1; (0.5·2 + 0.5·2/0.5)/√4.
    hyper = {"lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 0.0, "momentum_decay": None}
    assert final("nadam", 1.0, [2.0], **hyper) == pytest.approx(1 - 0.1 * 1.5)


@pytest.mark.parametrize(
    "rule, hyper",
    [
        # Each root is √(16 + 9) = 5, and eps comes on top of it.
        ("adagrad", {"initial_accumulator_value": 7.0}),
        ("rmsprop", {"alpha": -7 / 9}),
        ("rmsprop_momentum", {"alpha": -7 / 9}),
        ("adam", {"beta2": -7 / 9, "bias_correction": False, "beta1": 0.0}),
        ("amsgrad", {"beta2": -7 / 9, "bias_correction": False, "beta1": 0.0}),
        ("qhadam", {"beta2": -7 / 9, "bias_correction": False, "beta1": 0.0}),
    ],
)
def test_eps_root_is_under_the_root(rule, hyper):
    assert final(rule, 1.0, [3.0], lr=0.1, eps=1.0, eps_root=9.0, **hyper) == pytest.approx(1 - 0.1 * 3 / 6)


@pytest.mark.parametrize("rule", ["rmsprop_centered", "rmsprop_centered_momentum"])
def test_eps_root_is_under_the_root_of_the_variance(rule):
    # s = 8, a = 2: the variance is 4.
    hyper = {"lr": 0.1, "alpha": 0.5, "eps": 1.0, "eps_root": 5.0}
    assert final(rule, 1.0, [4.0], **hyper) == pytest.approx(1 - 0.1 * 4 / 4)


@pytest.mark.parametrize("rule", ["rmsprop_centered", "rmsprop_centered_momentum"])
def test_a_variance_that_rounds_below_zero_is_zero(rule):
    g = np.random.default_rng(1).normal(size=100)
    p, states = ORACLES[rule](np.zeros(100), [g] * 400, dtype=np.float64, alpha=0.7)
    assert np.any(states["square_avg"] < states["grad_avg"] ** 2), "the test needs an element that rounds below zero"
    assert np.all(np.isfinite(p))


def test_adamax_without_eps_leaves_unseen_elements_alone():
    p, states = ORACLES["adamax"]([1.0, 1.0], [[0.0, 3.0], [0.0, 3.0]], lr=0.1, eps=0.0)
    np.testing.assert_allclose(p.astype(float), [1.0, 0.8])
    np.testing.assert_array_equal(states["exp_inf"], [0, 3])


def test_demon():
    assert demon(0, 10, 0.9) == pytest.approx(0.9)
    assert demon(5, 10, 0.9) == pytest.approx(0.45 / 0.55)
    assert demon(10, 10, 0.9) == demon(11, 10, 0.9) == 0


def test_demon_as_a_momentum():
    # Half of the sum beta/(1 - beta) = 1 is left at step 2 of 4: beta = 1/3.
    p = final("momentum", 1.0, [3.0, 1.0], lr=0.1, momentum=lambda t: demon(t, 4, 0.5))
    assert p == pytest.approx(1 - 0.1 * 3 - 0.1 * (3 / 3 + 1))


# --- Nesterov's two forms ---


def rosenbrock_gradient(theta):
    x, y = theta
    return np.array([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])


@pytest.mark.parametrize(
    "lr_inside, lr",
    [(False, lambda t: 5e-4), (True, lambda t: 5e-4), (True, lambda t: 1e-3 / (1 + 0.01 * t))],
    ids=["lr outside", "lr inside", "lr inside, varying"],
)
def test_nesterov_is_the_look_ahead_form_seen_at_the_look_ahead_point(lr_inside, lr):
    """The literal form keeps theta and asks for the gradient at theta - gamma·v; the fused rule keeps that point."""
    gamma = 0.9
    theta = phi0 = phi = np.array([-1.2, 1.0])
    v = np.zeros(2)
    grads = []
    for t in range(1, 101):
        v = gamma * v + lr(t) * rosenbrock_gradient(theta - gamma * v)
        theta = theta - v

        grads.append(rosenbrock_gradient(phi))
        phi, states = ORACLES["nesterov"](phi0, grads, dtype=np.float64, lr=lr, momentum=gamma, lr_inside=lr_inside)

        b = states["momentum_buffer"]
        np.testing.assert_allclose(phi, theta - gamma * v, rtol=1e-12)
        np.testing.assert_allclose(b if lr_inside else lr(t) * b, v, rtol=1e-10, atol=1e-13)

    # Far enough from the start for the agreement to mean something.
    assert np.linalg.norm(theta - phi0) > 1


# --- What all rules share ---


def test_the_prologue_and_the_decay():
    # g = -(0.5·2) + 0.1·1 = -0.9, with p as it was before its own decay to 0.95.
    p = final("sgd", 1.0, [2.0], lr=0.1, grad_scale=0.5, maximize=True, weight_decay=0.1, decoupled_weight_decay=0.5)
    assert p == pytest.approx(0.95 + 0.1 * 0.9)


def test_a_hyper_parameter_is_a_constant_a_callable_or_a_sequence(problem):
    lrs = [0.1 / t for t in range(1, STEPS + 1)]
    from_list, _ = ORACLES["adam"](*problem, lr=lrs)
    for schedule in (tuple(lrs), np.array(lrs), lambda t: 0.1 / t):
        np.testing.assert_array_equal(ORACLES["adam"](*problem, lr=schedule)[0], from_list)
    assert np.any(ORACLES["adam"](*problem, lr=0.1)[0] != from_list)


def test_each_beta_of_aggmo_may_vary(problem):
    one_by_one, _ = ORACLES["aggmo"](*problem, lr=0.1, betas=(0.0, lambda t: demon(t, STEPS, 0.9)))
    together, _ = ORACLES["aggmo"](*problem, lr=0.1, betas=lambda t: (0.0, demon(t, STEPS, 0.9)))
    np.testing.assert_array_equal(one_by_one, together)


def test_an_infinite_parameter_is_not_made_nan_by_a_decay_of_zero():
    assert final("sgd", 1.0, [math.inf, 1.0], lr=0.1) == -math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rule", [name for name in ELEMENTWISE if not RULES[name].by_tensor])
def test_a_bad_gradient_reaches_its_own_element_only(problem, rule, bad):
    p0, grads = problem
    spoilt = [g.copy() for g in grads]
    spoilt[3][1, 2] = bad
    elsewhere = np.ones(p0.shape, bool)
    elsewhere[1, 2] = False

    p, states = ORACLES[rule](p0, grads, lr=0.01)
    spoilt_p, spoilt_states = ORACLES[rule](p0, spoilt, lr=0.01)

    np.testing.assert_array_equal(spoilt_p[elsewhere], p[elsewhere])
    by_sign = RULES[rule].bounded and bad == math.inf
    assert np.isfinite(spoilt_p[1, 2]) == by_sign
    _, at_once = ORACLES[rule](p0, spoilt[:4], lr=0.01)  # some states are of the last gradient alone
    for name, state in states.items():
        np.testing.assert_array_equal(spoilt_states[name][..., elsewhere], state[..., elsewhere])
        assert by_sign or not np.any(np.isfinite(at_once[name][..., 1, 2]))


#: Of each rule its states that are one number.
SINGLES = {"novograd": ["exp_avg_sq"], "swats": ["exp_avg2", "phase", "rate"]}
SINGLES |= {"swats_over_all": SINGLES["swats"], "prodigy": ["d", "d_max", "d_numerator"]}


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
@pytest.mark.parametrize("rule", ELEMENTWISE)
def test_inputs_are_left_alone_and_results_are_of_the_asked_type(rule, dtype, shape):
    rng = np.random.default_rng(2)
    inputs = [np.asarray(rng.normal(size=shape), dtype) for _ in range(4)]
    kept = [x.copy() for x in inputs]

    p, states = ORACLES[rule](inputs[0], inputs[1:], dtype=dtype, lr=0.01)

    np.testing.assert_array_equal(inputs, kept)
    for name, result in {"": p, **states}.items():
        assert isinstance(result, np.ndarray) and result.dtype == dtype
        single = name in SINGLES.get(rule, ())  # AggMo's states have a dimension more
        assert result.shape == () if single else result.shape[result.ndim - len(shape) :] == shape
        assert not any(np.shares_memory(result, x) for x in inputs)


@pytest.mark.parametrize("rule", ORACLES)
def test_an_unknown_hyper_parameter_is_refused(problem, rule):
    with pytest.raises(TypeError, match="lr_typo"):
        ORACLES[rule](*problem, lr=0.01, lr_typo=0.1)


def test_ftrl():
    # n = 4, sigma = 2/0.5 = 4, z = 2 - 4·1 = -2; then p = (2 - 1)/((1 + 2)/0.5 + 2).
    hyper = {"lr": 0.5, "beta": 1.0, "l1": 1.0, "l2": 2.0}
    assert final("ftrl", 1.0, [2.0], **hyper) == pytest.approx(1 / 8)
    # Within l1 of zero: n = 4, z = 2 - 4·0.5 = 0.
    assert final("ftrl", 0.5, [2.0], **hyper) == 0


def test_rowwise_adagrad():
    # Mean squares 4 and 1, then 4 + 9/2 and 1 + 0.
    p, states = ORACLES["rowwise_adagrad"](np.zeros((2, 2)), [[[2, 2], [1, 1]], [[3, 0], [0, 0]]], lr=0.1, eps=0.0)
    np.testing.assert_allclose(states["sum"].astype(float), [8.5, 1])
    np.testing.assert_allclose(p.astype(float), [[-0.1 - 0.3 / math.sqrt(8.5), -0.1], [-0.1, -0.1]])


def test_rowwise_adagrad_of_rows_of_one_is_adagrad(problem):
    p0, grads = problem[0].ravel(), [g.ravel() for g in problem[1]]
    np.testing.assert_array_equal(ORACLES["rowwise_adagrad"](p0, grads)[0], ORACLES["adagrad"](p0, grads)[0])
