"""The rule table: its own consistency, and its C twin's agreement with it."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import rules
from fastopt.backends import native
from fastopt.rules import EVERY_RULE, REQUIRED, RULES
from fastopt.rules.hyper import hyper_row

from .oracle import ORACLES
from .support import CASES, VARIED, default_hyper, gradients, parameter

ffi, lib = native.ffi, native.lib


def test_everything_is_driven_by_the_table():
    assert set(ORACLES) == set(RULES) == set(VARIED)
    assert set(EVERY_RULE) == set(fastopt.functional.__all__)
    assert {rule.optimizer for rule in EVERY_RULE.values()} <= set(fastopt.__all__)


@pytest.mark.parametrize("case", CASES)
def test_folds_have_the_same_bits_in_c_and_python(case):
    name, hyper = CASES[case]
    rule = RULES[name]
    number = lib.fastopt_find_rule(name.encode())
    assert number >= 0
    rows = hyper_row(rule, hyper)
    for row in rows:
        scalars = tuple(rule.scalars.values())
        c_scalars = ffi.new("double[]", [*scalars, 0.0])
        for t in (*range(1, 30), 1000, 10**7):
            want, scalars = rule.fold_row(float(t), row.tolist(), scalars)
            got = ffi.new("double[]", rules.OWN + len(rule.coefficients))
            assert lib.fastopt_fold(number, t, 0.25, ffi.from_buffer("double[]", row), c_scalars, got) == 0
            assert list(got) == [*rule.fold_prologue(row[0], row, 0.25), *want], t
            assert list(c_scalars)[: len(scalars)] == list(scalars)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("name", RULES)
def test_folds_at_zero_and_one_have_the_same_bits_in_c_and_python(name, value):
    """Each hyper-parameter that may be so, one at a time: folds ask whether some are 0."""
    rule, given = RULES[name], {**default_hyper(name), **VARIED[name]}
    for key in rule.row:
        hyper = rule.hyper.get(key)
        if hyper is None or not hyper.low <= value <= hyper.high or (hyper.below_high and value == hyper.high):
            continue
        changed = value if not hyper.vector else (value,)
        for row in hyper_row(rule, {**given, key: bool(value) if hyper.flag else changed}):
            scalars = tuple(rule.scalars.values())
            for t in (1, 2, 1000):
                want, _ = rule.fold_row(float(t), row.tolist(), scalars)
                got, c_scalars = (
                    ffi.new("double[]", rules.OWN + len(rule.coefficients)),
                    ffi.new("double[]", [*scalars, 0.0]),
                )
                number = lib.fastopt_find_rule(name.encode())
                assert lib.fastopt_fold(number, t, 0.25, ffi.from_buffer("double[]", row), c_scalars, got) == 0
                np.testing.assert_array_equal(list(got)[rules.OWN :], np.array(want, float), strict=True)


def toy(fold, update, **more):
    """A rule of hyper-parameters, scalars, states and coefficients that are named in the functions' arguments."""
    return rules.Rule("toy", "Toy", "", "", "", more.pop("own", {"lr": rules.Hyper(1.0, "")}), update, fold, **more)


@pytest.mark.parametrize(
    "most, what, more",
    [
        (rules.MAX_SCALARS, "scalars", {"scalars": 5}),
        (rules.MAX_HYPER, "hyper-parameters", {"own": 22}),
        (rules.MAX_COEFFICIENTS, "coefficients", {"coefficients": 22}),
    ],
)
def test_a_rule_with_more_than_c_has_room_for_is_refused(most, what, more):
    def made(add):
        """One that has so many, and `add` more."""
        own = {
            "lr": rules.Hyper(1.0, ""),
            **{f"h{k}": rules.Hyper(1.0, "") for k in range(1, more.get("own", 1) + add)},
        }
        scalars = {f"k{k}": 0.0 for k in range(more.get("scalars", 0) + add)} if "scalars" in more else {}
        names = [f"c{k}" for k in range(more.get("coefficients", 1) + add)] if "coefficients" in more else ["c"]
        namespace = {}
        exec(
            f"def fold({', '.join(('t', *own, *scalars))}): pass\ndef update({', '.join(('p', 'g', *names))}): pass",
            namespace,
        )
        return toy(namespace["fold"], namespace["update"], own=own, scalars=scalars)

    made(-1)
    with pytest.raises(ValueError, match=rf"rule toy: found {most + 1} {what}.* expected at most {most}"):
        made(0)


def test_a_rule_says_what_its_parts_must_be():
    def fold(t, lr):
        return (lr,)

    def update(p, g, m, c):
        return p - c * g, m

    def by_row(square, m, n, c):
        return m, n, c

    toy(fold, update, states=(rules.State("m", begins="lr"),))
    with pytest.raises(ValueError, match=r"rule toy: state m begins at 'size', which is no hyper-parameter"):
        toy(fold, update, states=(rules.State("m", begins="size"),))
    with pytest.raises(ValueError, match=r"rule toy: the arguments after g must be the states \('v',\)"):
        toy(fold, update, states=(rules.State("v"),))
    with pytest.raises(ValueError, match="rule toy: a rule by row has one state, and an update of p, g and one coeff"):
        stage = rules.Stage("row", RULES["rowwise_adagrad"].stage.measure, by_row)
        toy(fold, RULES["sgd"].update, states=(rules.State("m"), rules.State("n")), stage=stage)
    toy(fold, update, states=(rules.State("m"),), ahead=lambda lr: lr)
    with pytest.raises(ValueError, match="rule toy: ahead asks for 'beta', expected hyper-parameters"):
        toy(fold, update, states=(rules.State("m"),), ahead=lambda beta: beta)
    with pytest.raises(ValueError, match="rule toy: ahead asks for 'lr', expected hyper-parameters, and a state"):
        toy(fold, RULES["sgd"].update, ahead=lambda lr: lr)


def test_a_decay_is_the_updates_where_the_fold_takes_it():
    def fold(t, lr, weight_decay):
        return lr, weight_decay

    def update(p, g, lr, decay):
        return p - lr * (g + decay * p)

    inside = toy(fold, update, decoupled=0.5)
    assert inside.decays_inside and inside.row == ("lr", "weight_decay", "maximize")
    assert inside.fold_prologue(0.1, [0.1, 0.5, 1.0], 2.0) == (-2.0, 0.0, 1.0)
    assert inside.fold_row(1.0, [0.1, 0.5, 1.0]) == ((0.1, 0.5), ())
    with pytest.raises(ValueError, match=r"rule toy: fold's arguments must be \('t', 'lr'\)"):
        toy(fold, update)  # whose weight_decay is L2, and has been added


def test_a_rule_says_what_its_stage_must_be():
    def fold(t, lr):
        return (lr,)

    def update(p, g, m, c, rate):
        return p - rate * c * g, m

    def measure(p, g, m, c):
        return ((g, g),)

    def complete(square, c):
        return (c / (1.0 + square),)

    def made(over="tensor", measure=measure, complete=complete, **more):
        return toy(fold, update, states=(rules.State("m"),), stage=rules.Stage(over, measure, complete), **more)

    rule = made()
    assert (rule.folds, rule.sums, rule.coefficients) == (("c",), ("square",), ("c", "rate"))
    assert rule.fold_row(1.0, [0.5, 0.0, 0.0, 0.0]) == ((0.5, 0.0), ())
    with pytest.raises(ValueError, match=r"rule toy: found a stage over 'layer', expected one of row, tensor"):
        made("layer")
    with pytest.raises(ValueError, match=r"rule toy: a stage over rows measures squared_gradient"):
        made("row")
    with pytest.raises(ValueError, match=r"rule toy: measure's arguments must be p, g, states, inputs, and upd"):
        made(measure=lambda p, g, rate: ((g, g),))
    with pytest.raises(ValueError, match=r"the arguments of the stage's fold must be sums, then \('c',\)"):
        made(complete=lambda square, rate: (square,))
    one, ones = rules.State("one", single=True), rules.Stage("tensor", measure, lambda square, one, c: (one, c))
    kept = toy(fold, update, states=(rules.State("m"), one), stage=ones)
    assert (kept.sums, kept.singles, kept.elements, kept.count_arrays(1)) == (("square",), ("one",), ("m",), 3)
    assert [kept.state_shape(name, (2, 3), 1) for name in ("m", "one", "ema")] == [(2, 3), (), (2, 3)]
    with pytest.raises(ValueError, match=r"the arguments of the stage's fold must be sums, then \('one', 'c'\)"):
        toy(fold, update, states=kept.states, stage=rule.stage)
    for states, stage in ((kept.states[::-1], kept.stage), (kept.states, None)):
        with pytest.raises(ValueError, match=r"rule toy: found one of one number, expected such states last, and a st"):
            toy(fold, update, states=states, stage=stage)
    with pytest.raises(ValueError, match=r"rule toy: a rule with a stage has no betas of several values"):
        own = {"lr": rules.Hyper(1.0, ""), "betas": rules.Hyper((0.5,), "", vector=True)}
        toy(lambda t, lr, betas, copies: (lr,), update, own=own, states=(rules.State("m"),), stage=rule.stage)


@pytest.mark.parametrize("name", RULES)
def test_a_state_that_is_never_negative_is_none_after_steps(name):
    """The rules' word on their states is true: 8 bits without a sign hold them."""
    rule, (name, hyper) = RULES[name], CASES[f"{name}, varied"]
    p0, grads = parameter(203), gradients(203, 20)
    _, states = ORACLES[name](p0, grads, **hyper)
    for state in rule.states:
        if (name, state.name) == ("adaptive_revision", "z"):
            continue  # negative where workers take turns: test_delayed.py
        assert state.single or state.positive == bool((states[state.name] >= 0).all()), state.name


def test_a_row_is_plain_python():
    name, hyper = CASES["rowwise_adagrad, varied"]
    rule = RULES[name]
    row = hyper_row(rule, hyper)[0]
    before, (coefs, _) = rule.fold_prologue(row[0], row, 1.0), rule.fold_row(1.0, row.tolist())
    p, g = np.random.default_rng(0).random((2, 3, 16))
    s, want = np.full(3, 0.5), []
    for ps, gs in zip(p.tolist(), g.tolist(), strict=True):
        pairs = [rules.prologue(x, y, *before) for x, y in zip(ps, gs, strict=True)]
        after, rate = rule.by_row(sum(y * y for _, y in pairs) / 16, 0.5, *coefs)  # 16 sums of one term: in any order
        want.append([after, *(rule.update(x, y, rate) for x, y in pairs)])
    fastopt.functional.rowwise_adagrad(p, g, s, step=1, **hyper)
    np.testing.assert_array_equal(np.concatenate([s[:, None], p], axis=1), want)


@pytest.mark.parametrize("name", [name for name in RULES if not RULES[name].by_row])
def test_update_is_plain_python(name):
    """The rule's own function, element by element in Python's floats, gives the kernels' bits in float64."""
    name, hyper = CASES[f"{name}, varied"]
    rule = RULES[name]
    row = hyper_row(rule, hyper)[0].tolist()
    before, (coefs, _) = rule.fold_prologue(row[0], row, 1.0), rule.fold_row(1.0, row, tuple(rule.scalars.values()))
    p0, g0, *s0 = np.random.default_rng(0).random((2 + len(rule.states), 5))
    if rule.by_tensor:
        folded = coefs[: len(rule.folds)]
        read = [s for s, state in zip(s0, rule.state_names, strict=True) if state in rule.measured]
        elements = [map(float, (*rules.prologue(p, g, *before), *s)) for p, g, *s in zip(p0, g0, *read, strict=True)]
        singles = [float(s[0]) for s in s0[len(rule.elements) :]]
        kept = [singles[k] for k in rule.read_at]
        products = [[a * b for a, b in rule.by_tensor.measure(*element, *folded, *kept)] for element in elements]
        sums = [sum(terms) for terms in zip(*products, strict=True)]  # as many as lanes, at most: in their order
        found = rule.by_tensor.fold(*sums, *singles, *folded)
        singles, coefs = found[: len(singles)], (*folded, *kept, *found[len(singles) :])
    s0, ones = s0[: len(rule.elements)], [np.array(s[0]) for s in s0[len(rule.elements) :]]
    want = []
    for p, g, *s in zip(p0, g0, *s0, strict=True):
        p, g = rules.prologue(float(p), float(g), *before)
        want.append(np.atleast_1d(rule.update(p, g, *map(float, s), *map(float, coefs))))
    if rule.vector:
        s0 = [s[None] for s in s0]
        hyper = {**hyper, rule.vector: hyper[rule.vector][:1]}
        coefs = (coefs[0], hyper["lr"])
        want = []
        for p, g, s in zip(p0, g0, s0[0][0], strict=True):
            p, g = rules.prologue(float(p), float(g), *before)
            want.append(rule.update(p, g, float(s), *coefs))
    getattr(fastopt.functional, name)(p0, g0, *s0, *ones, step=1, **hyper)
    np.testing.assert_array_equal(np.array([p0, *(s.reshape(5) for s in s0)]).T, np.array(want))
    assert not ones or [*map(float, ones)] == [*singles]


@pytest.mark.parametrize("name", RULES)
def test_hyper_parameters_know_their_domain(name):
    rule = RULES[name]
    for key, hyper in rule.hyper.items():
        bad = [math.nan, -math.inf, "0.1", [], "x"] + ([] if hyper.optional else [None])
        bad += [] if hyper.infinite else [math.inf]
        bad += [] if hyper.flag else [True, False, np.True_]
        bad += [-1e-9] if hyper.low == 0 else []
        bad += [1.0] if hyper.below_high else []
        bad += [0.5] if hyper.flag else []
        for value in bad:
            with pytest.raises((TypeError, ValueError), match=key):
                hyper.check(key, value)
        if hyper.default is not REQUIRED and not hyper.vector:
            hyper.check(key, hyper.default)


def test_c_refuses_what_it_does_not_know():
    assert lib.fastopt_find_rule(b"nonesuch") == lib.fastopt_find_rule(ffi.NULL) == -1
    job = ffi.new("fastopt_job *", {"rule": 999})
    assert ffi.string(lib.fastopt_message(lib.fastopt_step(job, 1, 1.0, 1))) == b"unknown rule"
    job = ffi.new("fastopt_job *", {"rule": 0, "dtype": 7})
    assert ffi.string(lib.fastopt_message(lib.fastopt_step(job, 1, 1.0, 1))) == b"unknown dtype"
    assert lib.fastopt_fold(-1, 1, 1.0, ffi.NULL, ffi.NULL, ffi.NULL) == lib.FASTOPT_BAD_RULE
    assert ffi.string(lib.fastopt_message(12345)) == b"unknown error code"


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="the processor is described as on Linux")
def test_the_processor_has_the_instruction_sets_that_are_supported():
    words = set(Path("/proc/cpuinfo").read_text().split())
    needed = {"avx2": {"avx2", "fma"}, "avx512": {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    assert native.isa_supported() == [name for name in native.isa_compiled() if needed.get(name, set()) <= words]


def test_every_compiled_instruction_set_that_the_processor_has_can_be_chosen():
    assert set(native.isa_supported()) <= set(native.isa_compiled())
    try:
        for level in native.isa_supported():
            native.set_isa(level)
            assert native.isa() == level
        with pytest.raises(ValueError, match=r"FASTOPT_ISA.*mmx"):
            native.set_isa("mmx")
    finally:
        native.set_isa(None)
    assert native.isa() == native.isa_supported()[-1]
