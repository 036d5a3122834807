"""Rules with a stage over tensors: a reading pass, further coefficients, the update; with the same bits everywhere."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import RULES, functional
from fastopt.backends import native

from .oracle import ORACLES
from .support import CASES, assert_same_bits, gradients, make_states, parameter, run

MEASURED = [name for name, rule in RULES.items() if rule.by_tensor]
# About the sixteen lanes, the tiles and chunks, the blocks of 4096, the 256 parts of their sums, shares of threads.
SIZES = [1, 2, 15, 16, 17, 31, 33, 511, 513, 1025, 4095, 4096, 4097, 8200, 140_000]
LONG = 256 * 4096 + 4097
BF = ml_dtypes.bfloat16


@pytest.fixture
def isa():
    yield native.set_isa
    native.set_isa(None)


def stepped(name, params, grads, backend, threads, **options):
    """Parameters and states after steps of the class."""
    params = [param.copy(order="K") for param in params]
    optimizer = getattr(fastopt, RULES[name].optimizer)(params, backend=backend, threads=threads, **options)
    for own in grads:
        optimizer.step(own, grad_scale=0.5)
    return [*params, *(np.asarray(x) for state in optimizer.state for x in state.values())]


def assert_same_everywhere(name, params, grads, isa, **options):
    want = stepped(name, params, grads, "numba", 1, **options)
    for threads in (2, 3):
        assert_same_bits(stepped(name, params, grads, "numba", threads, **options), want)
    for level, threads in itertools.product(native.isa_supported(), (1, 2, 3)):
        isa(level)
        assert_same_bits(stepped(name, params, grads, "native", threads, **options), want)
    return want


def draw(sizes, dtype, steps=2):
    rng = np.random.default_rng(0)
    arrays = [[rng.standard_normal(size).astype(dtype) for size in sizes] for _ in range(steps + 1)]
    return arrays[0], arrays[1:]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", MEASURED)
def test_sizes(name, dtype, isa):
    params, grads = draw(SIZES, dtype)
    got = assert_same_everywhere(name, params, grads, isa, weight_decay=0.1)
    if RULES[name].over_all:  # as one tensor of all elements
        got, params, grads = (
            [np.concatenate(got[: len(SIZES)])],
            [np.concatenate(params)],
            [[np.concatenate(own)] for own in grads],
        )
    for k, param in enumerate(params):  # each tensor is measured by itself
        want, _ = ORACLES[name](param, [own[k] for own in grads], grad_scale=0.5, weight_decay=0.1)
        np.testing.assert_allclose(got[k], want.astype(dtype), rtol=1e-4 if dtype == "f4" else 1e-11, atol=1e-6)


@pytest.mark.parametrize("name", MEASURED)
def test_more_blocks_than_partial_sums(name, isa):
    assert_same_everywhere(name, *draw([LONG, 5], "f4", 1), isa)


STORED = {
    "bfloat16": (BF, {}),
    "float16": ("f2", {}),
    "what is lost": (BF, {"rounding": "kahan"}),
    "master": ("f2", {"rounding": "master"}),
    "at random": (BF, {"rounding": "stochastic", "seed": 3}),
    "blocks": ("f4", {"state_dtype": "8bit"}),
    "blocks and master": (BF, {"state_dtype": "8bit", "rounding": "master"}),
    "states in bfloat16": ("f4", {"state_dtype": "bfloat16"}),
    "an average": ("f4", {"ema_decay": 0.9}),
    "noise": ("f4", {"gradient_noise": fastopt.GradientNoise(0.3, 0.55, 1)}),
    "noise in bfloat16": (BF, {"gradient_noise": fastopt.GradientNoise(0.3, 0.55, 1)}),
    "noise in float64": ("f8", {"gradient_noise": fastopt.GradientNoise(0.3, 0.55, 1)}),
}


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("name", MEASURED)
def test_storage(name, storage, isa):
    dtype, options = STORED[storage]
    params, grads = draw([5, 300, 4096 + 77, 70_000], dtype)
    assert_same_everywhere(name, params, grads, isa, weight_decay=0.1, **options)


@pytest.mark.parametrize("dtype", ["f4", "f8", BF])
@pytest.mark.parametrize("name", MEASURED)
def test_strides(name, dtype, isa):
    (whole,), grads = draw([(130, 140)], dtype)
    layouts = [np.s_[:, ::2], np.s_[:100, :70], np.s_[::3], np.s_[0], np.s_[:1, 0]]
    params = [whole.copy()[layout] for layout in layouts]
    assert_same_everywhere(name, params, [[own[layout] for layout in layouts] for (own,) in grads], isa)
    assert_same_everywhere(name, [whole.T], [[own.T] for (own,) in grads], isa)


@pytest.mark.parametrize("name", MEASURED)
def test_the_measure_reads_only_what_it_says(name):
    """Noise, zeroed gradients, clipping: the two passes have the same gradient, and the first writes nothing."""
    param, (grad,) = parameter(5000).astype("f4"), gradients(5000, 1).astype("f4")
    cls, got, want = getattr(fastopt, RULES[name].optimizer), param.copy(), param.copy()
    zeroed = grad.copy()
    cls(got).step(zeroed, max_norm=0.5, zero_grads=True)
    norm = fastopt.global_norm(grad)
    cls(want).step(grad, grad_scale=0.5 / (norm + 1e-6))
    assert_same_bits([got], [want])
    assert not zeroed.any()


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("name", MEASURED)
def test_norms_of_zero(name, backend):
    """The step is that without a quotient, not 0/0."""
    rule, (name, hyper) = RULES[name], CASES[f"{name}, varied"]
    zeros, ones = np.zeros(40), np.ones(40)
    for param, grads in ((zeros, [ones]), (ones, [zeros]), (zeros, [zeros, ones]), (zeros, [zeros])):
        got = run(name, {**hyper, "weight_decay": 0.0}, param, grads, "f8", backend=backend)
        want, states = ORACLES[name](param, grads, **{**hyper, "weight_decay": 0.0})
        expected = [want, *(states[state] for state in rule.state_names)]
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b.astype("f8"), rtol=1e-13)


@pytest.mark.parametrize("name", MEASURED)
def test_what_measures_whole_tensors_refuses_parts(name):
    param, called = np.ones((6, 3), "f4"), RULES[name].optimizer
    rows = fastopt.RowSparse(np.array([1, 4]), np.ones((2, 3), "f4"))
    optimizer = getattr(fastopt, called)(param)
    with pytest.raises(
        ValueError, match=f"^grads: found a gradient of rows, expected a dense one: {called} measures wh"
    ):
        optimizer.step(rows)
    states = make_states(name, CASES[f"{name}, varied"][1], param)
    with pytest.raises(ValueError, match=r"^grad: found a gradient of rows, expected a dense one"):
        getattr(functional, name)(param, rows, *states, step=1)
    assert (param == 1).all() and optimizer.state[0]["step"] == 0


SINGLE = [(name, state) for name in MEASURED for state in RULES[name].singles]


@pytest.mark.parametrize(("name", "state"), SINGLE)
def test_a_state_of_one_number_is_that(name, state):
    """Of no other shape or dtype, whatever the parameter's and the other states'; a checkpoint brings it back."""
    called, at = RULES[name].optimizer, RULES[name].state_names.index(state)
    wrong = [
        (np.zeros(1, "f4"), ValueError, r"found shape \(1,\), expected \(\), one number"),
        (np.zeros((), "f8"), TypeError, "found dtype float64, expected float32"),
        (np.broadcast_to(np.float32(0), ()), ValueError, "found a read-only array, expected a writable one"),
    ]
    for value, error, message in wrong:
        param = np.ones(5, "f4")
        states = make_states(name, CASES[f"{name}, varied"][1], param)
        states[at] = value
        with pytest.raises(error, match=f"^{state}: {message}"):
            getattr(functional, name)(param, np.ones(5, "f4"), *states, step=1)
        assert (param == 1).all()
    (start,), grads = draw([(70, 60)], BF, 4)
    options = {"state_dtype": "8bit", "rounding": "kahan", "ema_decay": 0.5}
    first, second = start.copy(), start.copy()
    optimizer, other = (getattr(fastopt, called)(x, **options) for x in (first, second))
    for (grad,) in grads[:2]:
        optimizer.step(grad)
    kept = optimizer.state[0][state]
    assert kept.shape == () and kept.dtype == "f4" and any(optimizer.state[0][own] != 0 for own in RULES[name].singles)
    other.load_state_dict(optimizer.state_dict())
    second[...] = first
    for (grad,) in grads[2:]:
        optimizer.step(grad)
        other.step(grad)
    assert_same_bits([first, *optimizer.state[0].values()], [second, *other.state[0].values()])


@pytest.mark.parametrize("value", [-1.0, 0.0, -np.inf, np.inf, np.nan])
@pytest.mark.parametrize(("name", "state"), SINGLE)
def test_a_state_of_one_number_may_be_any(name, state, value):
    """What cannot be computed of it is NaN, as in C, also where Python would raise an error."""
    at, found = RULES[name].state_names.index(state), []
    for backend in ("native", "numba"):
        param = np.ones(5, "f4")
        states = make_states(name, CASES[f"{name}, varied"][1], param)
        states[at][()] = value
        with fastopt.use_backend(backend):
            getattr(functional, name)(param, np.ones(5, "f4"), *states, step=3)
        found.append([param, *states])
    for got, want in zip(*found, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", MEASURED)
def test_numba_kernels_of_your_own(name):
    """`fold`, `measure`, `complete` and `update` in Numba, over one tensor of few elements."""
    numba = pytest.importorskip("numba")
    from fastopt import numba as kernels

    space, rule = getattr(kernels, name), RULES[name]
    states = "".join(f", {state}" for state in rule.state_names)
    own = ", ".join(f"{state}[i]" for state in rule.elements)
    ones = "".join(f"{state}[()], " for state in rule.singles)
    read = "".join(f", {state}[i]" for state in rule.measured) + "".join(f", {x}[()]" for x in rule.read_before)
    source = f"def step(t, p, g{states}):\n    c = space.fold(real, t, weight_decay=0.1)\n"
    source += "".join(f"    {total} = 0.0\n" for total in rule.sums)
    source += f"    for i in range(p.size):\n        found = space.measure(p[i], g[i]{read}, c)\n"
    source += "".join(f"        {total} += float(found[{k}][0]) * found[{k}][1]\n" for k, total in enumerate(rule.sums))
    source += f"    {ones}c = space.complete(real, {', '.join(rule.sums)}, {ones}c)\n"
    source += f"    for i in range(p.size):\n        p[i], {own} = space.update(p[i], g[i], {own}, c)\n"
    namespace = {"space": space, "real": np.float64}
    exec(source, namespace)
    step = numba.njit(error_model="numpy")(namespace["step"])
    got, grads = [parameter(13), *make_states(name, rule.defaults(), parameter(13))], gradients(13, 3)
    want = [x.copy() for x in got]
    for t, g in enumerate(grads, 1):
        step(t, got[0], g, *got[1:])
        getattr(functional, name)(want[0], g, *want[1:], step=t, weight_decay=0.1)
    assert_same_bits(got, want)


OVER_ALL = {"SWATS": {"over": "all", "eps": 0.1, "betas": (0.5, 0.5)}, "Prodigy": {"d0": 1e-3}}
TOGETHER = [name for name in MEASURED if RULES[name].over_all]


def test_every_rule_over_all_tensors_is_here():
    assert {RULES[name].optimizer for name in TOGETHER} == set(OVER_ALL)


@pytest.mark.parametrize("called", OVER_ALL)
def test_all_tensors_are_measured_together(called, isa):
    """Of several groups, storages and layouts, some without elements; they share the states of one number."""
    params, grads = draw([5, 0, 300, (70, 60), 9000, 0], "f4", 5)
    params = [*params[:3], params[3].T, params[4].astype(BF), params[5]]
    grads = [[*own[:3], own[3].T, *own[4:]] for own in grads]

    def stepped(backend, threads):
        arrays = [param.copy(order="K") for param in params]
        groups = [{"params": arrays[:4]}, {"params": arrays[4:], "weight_decay": 0.1, "state_dtype": "8bit"}]
        optimizer = getattr(fastopt, called)(groups, backend=backend, threads=threads, **OVER_ALL[called])
        for own in grads:
            optimizer.step([own[:4], own[4:]], grad_scale=0.5)
        rule = optimizer._arguments.rule(optimizer.param_groups[0])
        assert all(x[name] is optimizer.state[0][name] for x in optimizer.state for name in rule.singles)
        assert any(optimizer.state[0][name] not in (0, 1e-3) for name in rule.singles)
        return [*arrays, *(np.asarray(x) for state in optimizer.state for x in state.values())]

    want = stepped("numba", 1)
    for threads in (1, 3):
        assert_same_bits(stepped("native", threads), want)


@pytest.mark.parametrize("called", OVER_ALL)
def test_tensors_of_a_step_over_all_are_one_tensor_in_parts(called):
    """The oracle has one of all their elements. A tensor without a gradient goes on by what others know."""
    sizes, options = [3, 700, 5000], OVER_ALL[called]
    params, grads = draw(sizes, "f8", 6)
    rule = getattr(fastopt, called)._arguments.rule({**getattr(fastopt, called)._arguments.defaults, **options})
    hyper = {key: value for key, value in options.items() if key not in ("over", "betas")}
    if "betas" in options:
        hyper["beta1"], hyper["beta2"] = options["betas"]
    got = [param.copy() for param in params]
    optimizer = getattr(fastopt, called)(got, **options)
    for own in grads:
        optimizer.step(own)
    want, states = ORACLES[rule.name](np.concatenate(params), [np.concatenate(own) for own in grads], **hyper)
    np.testing.assert_allclose(np.concatenate(got), want.astype("f8"), rtol=1e-9)
    for name in rule.singles:
        np.testing.assert_allclose(optimizer.state[0][name], float(states[name]), rtol=1e-9)
    before = {name: optimizer.state[2][name].copy() for name in rule.singles}
    optimizer.step([None, *grads[0][1:]])
    optimizer.step([*grads[0][:2], None])
    assert all(optimizer.state[0][name] is optimizer.state[2][name] for name in rule.singles)
    assert called == "SWATS" or optimizer.state[0]["d_numerator"] != before["d_numerator"]


@pytest.mark.parametrize("name", TOGETHER)
def test_lists_of_the_functional_form_share_numbers_or_have_the_same(name):
    params, grads = draw([3, 700, 5000], "f4", 4)
    results = []
    for shared in (False, True):
        arrays = [param.copy() for param in params]
        hyper = RULES[name].defaults()
        states = [make_states(name, hyper, param) for param in arrays]
        if shared:
            count = len(RULES[name].elements)
            states = [[*own[:count], *states[0][count:]] for own in states]
        for t, own in enumerate(grads, 1):
            getattr(functional, name)(arrays, own, *map(list, zip(*states, strict=True)), step=t)
        results.append([*arrays, *itertools.chain.from_iterable(states)])
    assert_same_bits(*results)


@pytest.mark.parametrize("called", OVER_ALL)
def test_what_measures_all_tensors_computes_in_one_dtype(called):
    params = [np.ones(3, "f4"), np.ones(2, "f8")]
    optimizer = getattr(fastopt, called)(params, **OVER_ALL[called])
    with pytest.raises(
        TypeError, match=rf"^params\[1\]: found float64, expected a dtype .* float32, as .* {called} mea"
    ):
        optimizer.step([np.ones(3, "f4"), np.ones(2, "f8")])
    assert all((param == 1).all() for param in params) and optimizer.state[0]["step"] == 0
