"""Schedules: numbers of torch's and optax's at every step, plain data, checkpoints, tables and pictures."""

import dataclasses
import doctest
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastopt
from fastopt import schedules
from fastopt.errors import BackendUnavailable
from fastopt.schedules import (
    Constant,
    Cosine,
    Demon,
    Exponential,
    InverseSqrt,
    InverseTime,
    Join,
    Linear,
    MultiStep,
    OneCycle,
    OnPlateau,
    Polynomial,
    Scale,
    Schedule,
    Step,
    Triangular,
    WarmRestarts,
    WarmUp,
    from_state_dict,
)

STEPS = 41
#: One of each, with numbers that are not the defaults.
EACH = {
    "Constant": Constant(0.3),
    "Linear": Linear(0.3, 0.05, steps=17),
    "Step": Step(0.3, every=7, factor=0.6),
    "MultiStep": MultiStep(0.3, (4, 9, 9, 30), factor=0.6),
    "Exponential": Exponential(0.3, 0.93),
    "Polynomial": Polynomial(0.3, steps=25, power=1.7),
    "InverseTime": InverseTime(0.3, tau=5.0, power=0.75),
    "InverseSqrt": InverseSqrt(0.3, tau=8.0),
    "Cosine": Cosine(0.3, steps=40, end=0.01),
    "WarmRestarts": WarmRestarts(0.3, steps=5, multiply=2, end=0.01),
    "Triangular": Triangular(0.02, 0.3, up=4, down=6, shrink=0.5),
    "OneCycle": OneCycle(0.3, steps=41, rise=0.4, divide=20.0, final_divide=50.0),
    "Demon": Demon(total=30, beta=0.8),
    "WarmUp": WarmUp(6, Cosine(0.3, steps=20), start=0.01),
    "Join": Join((Constant(0.1), Exponential(0.3, 0.9), 0.05), at=(5, 20)),
    "Scale": Scale(Step(0.3, every=7), 0.5),
    "OnPlateau": OnPlateau(0.3, factor=0.5, patience=2, cooldown=1),
}


def torch_rates(make, steps=STEPS):
    """Return the rates of torch's scheduler for each step, from an lr of 0.3."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler, rates = make(torch.optim.lr_scheduler, optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


TORCH = {
    "LinearLR": (
        EACH["Linear"],
        lambda s, o: s.LinearLR(o, start_factor=1.0, end_factor=0.05 / 0.3, total_iters=17),
    ),
    "StepLR": (EACH["Step"], lambda s, o: s.StepLR(o, 7, 0.6)),
    "MultiStepLR": (EACH["MultiStep"], lambda s, o: s.MultiStepLR(o, [4, 9, 9, 30], 0.6)),
    "ExponentialLR": (EACH["Exponential"], lambda s, o: s.ExponentialLR(o, 0.93)),
    "PolynomialLR": (EACH["Polynomial"], lambda s, o: s.PolynomialLR(o, 25, 1.7)),
    "CosineAnnealingLR": (EACH["Cosine"], lambda s, o: s.CosineAnnealingLR(o, 40, 0.01)),
    "CosineAnnealingWarmRestarts": (
        EACH["WarmRestarts"],
        lambda s, o: s.CosineAnnealingWarmRestarts(o, 5, 2, 0.01),
    ),
    "CyclicLR": (
        EACH["Triangular"],
        lambda s, o: s.CyclicLR(o, 0.02, 0.3, 4, 6, mode="triangular2", cycle_momentum=False),
    ),
    "OneCycleLR": (
        EACH["OneCycle"],
        lambda s, o: s.OneCycleLR(
            o, 0.3, 42, pct_start=0.4, div_factor=20.0, final_div_factor=50.0, cycle_momentum=False
        ),
    ),
    "ConstantLR": (Join((0.1, 0.3), at=(5,)), lambda s, o: s.ConstantLR(o, 1 / 3, total_iters=5)),
    "SequentialLR": (
        Join((Constant(0.1), Exponential(0.3, 0.9)), at=(5,)),
        lambda s, o: s.SequentialLR(o, [s.ConstantLR(o, 1 / 3, total_iters=9), s.ExponentialLR(o, 0.9)], [5]),
    ),
    "LambdaLR": (EACH["InverseSqrt"], lambda s, o: s.LambdaLR(o, lambda e: 1 / math.sqrt(1 + e / 8))),
}


@pytest.mark.parametrize("name", TORCH)
def test_torchs_numbers_at_every_step(name):
    ours, make = TORCH[name]
    if name == "OneCycleLR":  # torch's raises past its last step, of which its constructor has made the first
        ours = OneCycle(0.3, steps=42, rise=0.4, divide=20.0, final_divide=50.0)
    np.testing.assert_allclose([ours(t) for t in range(1, STEPS + 1)], torch_rates(make), rtol=1e-12, atol=1e-15)


def optax_cases(optax):
    yield EACH["Constant"], optax.constant_schedule(0.3)
    yield EACH["Linear"], optax.linear_schedule(0.3, 0.05, 17)
    yield Exponential(0.3, 0.6, every=7), optax.exponential_decay(0.3, 7, 0.6)
    yield EACH["Step"], optax.exponential_decay(0.3, 7, 0.6, staircase=True)
    yield Polynomial(0.3, 25, 1.7, end=0.02), optax.polynomial_schedule(0.3, 0.02, 1.7, 25)
    yield Cosine(0.3, steps=25, end=0.03), optax.cosine_decay_schedule(0.3, 25, alpha=0.1)
    yield EACH["WarmUp"], optax.warmup_cosine_decay_schedule(0.01, 0.3, 6, 26)
    yield WarmUp(6, 0.3), optax.warmup_constant_schedule(0.0, 0.3, 6)
    joined = [optax.constant_schedule(0.1), optax.exponential_decay(0.3, 1, 0.9), optax.constant_schedule(0.05)]
    yield EACH["Join"], optax.join_schedules(joined, [5, 20])
    yield MultiStep(0.3, (5, 10), 0.6), optax.piecewise_constant_schedule(0.3, {5: 0.6, 10: 0.6})


def test_optaxs_numbers_at_every_step():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    for ours, theirs in optax_cases(optax):
        found = [ours(t) for t in range(1, STEPS + 1)]
        np.testing.assert_allclose(found, [float(theirs(t)) for t in range(STEPS)], rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("options", [{}, {"cooldown": 3}, {"lowest": 0.05}, {"epsilon": 0.1}, {"threshold": 0.2}])
def test_on_plateau_is_torchs(mode, options):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    renamed = {"lowest": "min_lr", "epsilon": "eps"}
    theirs_options = {renamed.get(key, key): value for key, value in options.items()}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.5, 2, **theirs_options)
    ours = OnPlateau(0.3, factor=0.5, patience=2, mode=mode, **options)
    losses = np.random.default_rng(0).uniform(0.5, 1.5, 60).round(1)
    losses[[20, 21, 40]] = math.nan, math.inf, -math.inf
    for loss in losses:
        theirs.step(loss)
        assert ours.feed(loss) == ours(1) == optimizer.param_groups[0]["lr"]


def test_what_a_schedule_does_past_its_end():
    for schedule, last in {
        EACH["Linear"]: 0.05,
        EACH["Polynomial"]: 0.0,
        EACH["Cosine"]: 0.01,
        EACH["OneCycle"]: 0.3 / 20 / 50,
        EACH["Demon"]: 0.0,
        EACH["WarmUp"]: 0.0,
        EACH["Join"]: 0.05,
    }.items():
        assert schedule(10**6) == schedule(2**62) == pytest.approx(last, abs=1e-18)
    assert Demon(1)(1) == 0
    assert WarmRestarts(1.0, 5)(10**9 + 1) == 1.0 and WarmRestarts(1.0, 5, 2)(10**15) >= 0


def test_robbins_and_monro():
    """From doubling to doubling the sum of rates gains no less, and that of their squares less and less."""
    for power in (0.75, 1.0):
        rate = InverseTime(0.3, 5.0, power)
        rates = np.array([rate(t) for t in range(1, 2**14)])
        gains, squares = ([(rates[n : 2 * n] ** k).sum() for n in (2**8, 2**10, 2**12)] for k in (1, 2))
        assert gains[0] < gains[1] < gains[2] and squares[0] > 1.9 * squares[1] > 3.6 * squares[2]


# ---- as objects, and as plain data ----


def test_there_is_one_of_each():
    assert list(EACH) == list(schedules.SCHEDULES) and all(type(s).__name__ == name for name, s in EACH.items())


@pytest.mark.parametrize("name", EACH)
def test_schedules_compare_print_and_pickle(name):
    schedule = EACH[name]
    for other in (eval(repr(schedule)), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule and repr(other) == repr(schedule)
        assert [other(t) for t in range(1, 50)] == [schedule(t) for t in range(1, 50)]
    assert schedule != EACH["Constant"] or name == "Constant"
    if name != "OnPlateau":
        with pytest.raises(AttributeError):
            schedule.start = 1.0
        assert hash(eval(repr(schedule))) == hash(schedule)


@pytest.mark.parametrize("name", EACH)
def test_schedules_are_plain_data(name):
    plain = EACH[name].state_dict()
    assert plain["schedule"] == name
    assert from_state_dict(json.loads(json.dumps(plain))) == EACH[name]


def test_numbers_of_other_kinds_become_pythons():
    schedule = Linear(np.float32(0.5), np.array(0), steps=np.int64(4))
    assert json.loads(json.dumps(schedule.state_dict())) == {"schedule": "Linear", "start": 0.5, "end": 0, "steps": 4}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear("0.1", 0, 3), TypeError, "start: found '0.1' of type str, expected a finite number"),
        (lambda: Linear(math.nan, 0, 3), ValueError, "start: found nan, expected a finite number"),
        (lambda: Cosine(1.0, 0), ValueError, "steps: found 0, expected an integer >= 1"),
        (lambda: Cosine(1.0, 2.5), TypeError, "steps: found 2.5 of type float, expected an integer >= 1"),
        (lambda: InverseTime(1.0, 0), ValueError, "tau: found 0, expected a finite number > 0"),
        (lambda: MultiStep(1.0, (5, 3)), ValueError, "milestones: found .5, 3., expected numbers of steps in order"),
        (lambda: MultiStep(1.0, 5), TypeError, "milestones: found 5 of type int, expected a tuple of numbers of steps"),
        (lambda: MultiStep(1.0, (2.5,)), TypeError, r"milestones\[0\]: found 2.5"),
        (lambda: OneCycle(1.0, 1), ValueError, "steps: found 1, expected an integer >= 2"),
        (lambda: OneCycle(1.0, 10, rise=1), ValueError, r"rise: found 1, expected a number in \(0, 1\)"),
        (lambda: WarmUp(3, "x"), TypeError, "then: found 'x' of type str, expected a number or a callable"),
        (lambda: Join((1.0, 2.0), ()), ValueError, r"at: found \(\), expected 1 steps"),
        (lambda: Join(1.0, ()), TypeError, "schedules: found 1.0 of type float, expected a tuple of schedules"),
        (lambda: Scale(1.0, -1), ValueError, "factor: found -1, expected a finite number >= 0"),
        (lambda: OnPlateau(1.0, factor=1.0), ValueError, r"factor: found 1.0, expected a number in \[0, 1\)"),
        (lambda: OnPlateau(1.0, mode="down"), ValueError, "mode: found 'down', expected one of min, max"),
        (lambda: Cosine(1.0, 5)(0), ValueError, "t: found 0, expected a step >= 1"),
        (lambda: Cosine(1.0, 5)("1"), TypeError, "t: found '1' of type str, expected a step >= 1"),
        (lambda: from_state_dict({"schedule": "Cosin"}), ValueError, "schedule: found 'Cosin'.*did you mean 'Cosine'"),
        (
            lambda: from_state_dict({"schedule": "Constant", "val": 1}),
            ValueError,
            "found 'val', expected some of value",
        ),
        (lambda: Exponential(2.0, 1.5)(10**6), ValueError, "t: found 1000000, expected a step at which Exponential"),
        (lambda: OnPlateau(1.0).feed("low"), TypeError, "loss: found 'low' of type str, expected a number"),
        (lambda: OnPlateau(1.0, best="low"), TypeError, "best: found 'low' of type str, expected a number"),
        (lambda: OnPlateau(1.0, bad=-1), ValueError, "bad: found -1, expected an integer >= 0"),
        (lambda: schedules.plot(Constant(1.0), steps=0), ValueError, "steps: found 0, expected an integer >= 1"),
    ],
)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", EACH)
def test_none_is_no_number(name):
    """A field that is a number is one: None says something only where it is the default."""
    made = EACH[name]
    for field in dataclasses.fields(made):
        if field.name in schedules._FIELDS and field.default is not None:
            with pytest.raises(TypeError, match=f"^{field.name}: found None"):
                dataclasses.replace(made, **{field.name: None})


def test_examples_run():
    result = doctest.testmod(schedules)
    assert result.failed == 0 and result.attempted > 20


def test_an_import_does_not_make_them():
    code = "import sys, fastopt; print('fastopt.schedules' in sys.modules, fastopt.Demon(3), fastopt.schedules.Demon)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False Demon(total=3, beta=0.9) <class 'fastopt.schedules.Demon'>\n"


# ---- in optimizers ----


def steps(optimizer, count):
    for t in range(count):
        optimizer.step(np.cos(np.arange(5.0) + t))


def trained(**options):
    param = np.arange(5.0)
    optimizer = fastopt.Adam(param, **{"lr": WarmUp(3, Cosine(0.3, 10)), "betas": (Demon(30), 0.99), **options})
    return param, optimizer


@pytest.mark.parametrize("name", EACH)
def test_any_hyper_parameter_follows_any_schedule(name):
    param, optimizer = trained(lr=EACH[name], betas=(0.9, 0.99), weight_decay=Scale(EACH[name], 0.1))
    want, m, v = np.arange(5.0), np.zeros(5), np.zeros(5)
    for t in range(1, 13):
        grad = np.cos(np.arange(5.0) + t)
        assert optimizer.hyper()["lr"] == EACH[name](t)
        optimizer.step(grad)
        assert optimizer.lr == EACH[name](t)
        rates = {"lr": EACH[name](t), "weight_decay": 0.1 * EACH[name](t)}
        fastopt.functional.adam(want, grad, m, v, step=t, **rates, beta1=0.9, beta2=0.99)
    assert param.tolist() == want.tolist()


def through_npz(state, path):
    np.savez(path / "x.npz", **fastopt.flatten_state_dict(state))
    with np.load(path / "x.npz", allow_pickle=False) as arrays:
        return fastopt.unflatten_state_dict(dict(arrays))


def through_safetensors(state, path):
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    numpy.save_file(fastopt.flatten_state_dict(state), path / "x.safetensors")
    return fastopt.unflatten_state_dict(numpy.load_file(path / "x.safetensors"))


WAYS = {
    "pickle": lambda state, path: pickle.loads(pickle.dumps(state)),
    "npz": through_npz,
    "safetensors": through_safetensors,
}


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_hold_schedules(way, tmp_path):
    param, optimizer = trained()
    steps(optimizer, 5)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["lr"] == WarmUp(3, Cosine(0.3, 10)).state_dict()
    assert state["param_groups"][0]["betas"] == (Demon(30).state_dict(), 0.99)
    other, resumed = trained(lr=0.5, betas=(0.5, 0.5))
    other[:] = param
    resumed.load_state_dict(WAYS[way](state, tmp_path))
    assert resumed.param_groups[0]["lr"] == WarmUp(3, Cosine(0.3, 10))
    assert resumed.param_groups[0]["betas"] == (Demon(30), 0.99)
    steps(optimizer, 7)
    steps(resumed, 7)
    assert other.tolist() == param.tolist()


def test_copies_and_pickles_of_optimizers_keep_schedules():
    _, optimizer = trained(lr=OnPlateau(0.3, patience=0))
    optimizer.param_groups[0]["lr"].feed(1.0)
    optimizer.param_groups[0]["lr"].feed(1.0)
    other = pickle.loads(pickle.dumps(optimizer))
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != OnPlateau(0.3, patience=0)
    assert other.hyper()["lr"] == pytest.approx(0.03)


@pytest.mark.parametrize("way", WAYS)
def test_a_plateau_goes_on_where_it_was(way, tmp_path):
    """The user's own object, which is fed, takes over the saved state."""
    rate, own = OnPlateau(0.3, patience=1), OnPlateau(0.3, patience=1)
    _, optimizer = trained(lr=rate)
    for loss in (3.0, 2.0, 2.0, 2.0, 2.0):
        rate.feed(loss)
    _, resumed = trained(lr=own)
    resumed.load_state_dict(WAYS[way](optimizer.state_dict(), tmp_path))
    assert resumed.param_groups[0]["lr"] is own and own == rate and own(1) == pytest.approx(0.03)
    own.feed(2.0)
    assert own != rate and resumed.hyper()["lr"] == pytest.approx(0.003)


def test_a_wrong_state_dict_changes_no_plateau():
    own = OnPlateau(0.3)
    _, optimizer = trained(lr=own)
    state = pickle.loads(pickle.dumps(optimizer.state_dict()))
    state["param_groups"][0]["lr"]["value"] = 0.1
    state["state"][0]["exp_avg"] = np.zeros(3)
    with pytest.raises(ValueError, match="found shape"):
        optimizer.load_state_dict(state)
    assert own == OnPlateau(0.3)


def test_a_saved_schedule_that_is_none_is_named():
    param, optimizer = trained()
    state = optimizer.state_dict()
    for wrong, message in {
        "Cosin": r"\['param_groups'\]\[0\]\['lr'\]: schedule: found 'Cosin'.*did you mean 'Cosine'",
        "Cosine": r"\['param_groups'\]\[0\]\['lr'\]: schedule: found 'then', expected some of start, steps, end",
    }.items():
        state["param_groups"][0]["lr"] = {**WarmUp(3, 0.1).state_dict(), "schedule": wrong}
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
    assert param.tolist() == np.arange(5.0).tolist()


def test_a_schedule_around_a_function_is_held_as_that_function_is(tmp_path):
    _, optimizer = trained(lr=WarmUp(3, lambda t: 0.1 / t), betas=(0.9, 0.99))
    state = optimizer.state_dict()
    assert "WarmUp" in repr(state["param_groups"][0]["lr"]) and callable(state["param_groups"][0]["lr"])
    with pytest.raises(TypeError, match=r"cannot hold a callable; .* one of fastopt\.schedules"):
        fastopt.flatten_state_dict(state)


def test_a_schedule_of_ones_own_is_held_by_its_name():
    _, optimizer = trained(lr=Own(), betas=(0.9, 0.99))
    state = pickle.loads(pickle.dumps(optimizer.state_dict()))
    assert type(state["param_groups"][0]["lr"]) is Own and optimizer.hyper()["lr"] == 0.0


class Own(Schedule):
    def __post_init__(self):
        pass

    def _at(self, count):
        return 0.1 * count


def test_torch_has_schedulers():
    pytest.importorskip("torch", reason="torch is not installed")
    _, optimizer = trained(betas=(0.9, 0.99))
    with pytest.raises(TypeError, match="expected a number: torch has schedulers"):
        fastopt.torch_state_dict(optimizer.state_dict())


def test_an_optimizer_of_torch_follows_a_schedule():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from fastopt import torch as optim

    schedule, param = WarmUp(3, Cosine(0.3, 10)), torch.zeros(1)
    optimizer = optim.SGD([param], lr=1)
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: schedule(epoch + 1))
    param.grad = torch.ones(1)
    for t in range(1, 16):
        assert optimizer.param_groups[0]["lr"] == schedule(t)
        optimizer.step()
        scheduler.step()
    assert float(param) == pytest.approx(-sum(schedule(t) for t in range(1, 16)), rel=1e-5)


# ---- to look at ----


def test_a_table_and_a_picture_by_one_call(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    named = {"cosine": Cosine(1.0, 100), "mine": lambda t: 1 / t}
    table = schedules.plot(named, steps=101, path=tmp_path / "x.svg").splitlines()
    assert table[0] == "| step | cosine | mine |" and len(table) == 13
    assert table[2] == "| 1 | 1 | 1 |" and table[7] == "| 51 | 0.5 | 0.01961 |"
    text = (tmp_path / "x.svg").read_text()
    assert "cosine" in text and text.count("<path") > 2


def test_without_matplotlib_there_is_the_table(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert schedules.plot(Constant(1.0), steps=1).count("\n") == 2
    with pytest.raises(
        BackendUnavailable, match=r"no matplotlib here, which draws pictures; install it: pip .*\[show\]"
    ):
        schedules.plot(Constant(1.0), steps=1, path=tmp_path / "x.png")
