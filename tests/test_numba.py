"""fastopt.numba: the rules within kernels of one's own give the bits of every other backend."""

import inspect
import math
import os
import subprocess
import sys

import numba
import numpy as np
import pytest

import fastopt
import fastopt.numba as kernels
from fastopt.rules import RULES

from .pages import example
from .support import CASES, assert_same_bits, gradients, make_states, one_of_each_kind, parameter, run

STEPS = 6


def kernel(name):
    """A kernel as a user would write it for the rule, over as many states as it has."""
    rule = RULES[name]
    states = [f"s{k}" for k in range(len(rule.states))]
    own = "".join(f", {s}[i]" for s in states)
    source = f"def step(p, grad, {''.join(s + ', ' for s in states)}c):\n    for i in range(p.size):\n"
    source += f"        p[i]{own} = update(p[i], grad[i]{own}, c)\n"
    names = {"update": getattr(kernels, name).update}
    exec(source, names)
    return numba.njit(nogil=True)(names["step"])


def without_none(hyper):
    return {key: math.nan if value is None else value for key, value in hyper.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name",
    one_of_each_kind([name for name, rule in RULES.items() if rule.elementwise and not rule.vector], more=["nadam"]),
)
def test_same_bits(name, dtype):
    p0, grads, step = parameter(203).astype(dtype), gradients(203, STEPS).astype(dtype), kernel(name)
    for case in [case for case in CASES if CASES[case][0] == name]:
        hyper = CASES[case][1]
        p, states, scalars = p0.copy(), make_states(name, hyper, p0), {}
        for t, g in enumerate(grads, 1):
            c = getattr(kernels, name).fold(dtype, t, **without_none(hyper), **scalars)
            if RULES[name].scalars:
                c, *after = c
                scalars = dict(zip(RULES[name].scalars, after, strict=True))
            assert {type(x) for x in c} == {float}
            step(p, g, *states, tuple(map(dtype, c)))
        assert_same_bits([p, *states], run(name, hyper, p0, grads, dtype))


def test_same_bits_with_copies_of_the_states():
    aggmo = kernels.aggmo

    @numba.njit
    def step(t, p, grad, b, lr, betas):
        for i in range(p.size):
            c = aggmo.fold(np.float32, t, lr, betas[0], len(betas), weight_decay=0.02, decoupled_weight_decay=0.03)
            x, g = aggmo.prologue(p[i], grad[i], c)
            for k in range(len(betas)):
                c = aggmo.fold(np.float32, t, lr, betas[k], len(betas))
                x, b[k, i] = aggmo.update(x, g, b[k, i], c)
            p[i] = x

    name, hyper = CASES["aggmo, varied"]
    p0, grads = parameter(203).astype("f4"), gradients(203, STEPS).astype("f4")
    p, (b,) = p0.copy(), make_states(name, hyper, p0)
    for t, g in enumerate(grads, 1):
        step(t, p, g, b, hyper["lr"], hyper["betas"])
    assert_same_bits([p, b], run(name, hyper, p0, grads, "f4"))


def test_same_bits_with_states_of_rows():
    rule = kernels.rowwise_adagrad

    @numba.njit
    def step(t, p, grad, s, lr):
        c = rule.fold(np.float64, t, lr, weight_decay=0.02)
        for i in range(p.shape[0]):
            square = 0.0
            for k in range(p.shape[1]):
                square += rule.prologue(p[i, k], grad[i, k], c)[1] ** 2
            s[i], rate = rule.by_row(square / p.shape[1], s[i], c)
            for k in range(p.shape[1]):
                p[i, k] = rule.update(p[i, k], grad[i, k], c, rate)

    p, grad = np.random.default_rng(0).standard_normal((2, 30, 16))
    s, want, sums = np.zeros(30), p.copy(), np.zeros(30)
    for t in range(1, 5):
        step(t, p, grad, s, 0.1)
        fastopt.functional.rowwise_adagrad(want, grad, sums, step=t, lr=0.1, weight_decay=0.02)
    assert_same_bits([p, s], [want, sums])


def test_folding_within_a_kernel():
    adamw = kernels.adamw

    @numba.njit
    def step(t, p, grad, m, v):
        c = adamw.fold(np.float32, t, 1, beta1=0.8, maximize=True, grad_scale=0.5)  # an integer lr
        for i in range(p.size):
            p[i], m[i], v[i] = adamw.update(p[i], grad[i], m[i], v[i], c)

    p0, grads = parameter(50).astype("f4"), gradients(50, STEPS).astype("f4")
    p, m, v = p0.copy(), np.zeros(50, "f4"), np.zeros(50, "f4")
    for t, g in enumerate(grads, 1):
        step(t, p, g, m, v)
    want = run("adamw", {"lr": 1.0, "beta1": 0.8, "maximize": True}, p0, grads, "f4", grad_scale=0.5)
    assert_same_bits([p, m, v], want)


def test_a_decoupled_rule_has_one_decay():
    c = kernels.adamw.fold(np.float64, 1, 0.1, weight_decay=0.5)
    assert c[1:3] == (0.0, 1 - 0.1 * 0.5)
    assert kernels.adamw.fold(np.float64, 1, 0.1)[1:3] == (0.0, 1 - 0.1 * 1e-2)
    for name, rule in RULES.items():
        arguments = inspect.signature(getattr(kernels, name).fold.py_func).parameters
        assert ("decoupled_weight_decay" in arguments) == (rule.decoupled is None)


def test_every_rule_is_documented():
    assert set(kernels.__all__) == set(RULES)
    for name in RULES:
        namespace = getattr(kernels, name)
        assert all(part in namespace.update.__doc__ for part in RULES[name].formula.split("; "))
        assert f"fastopt.functional.{name}" in namespace.fold.__doc__
    with pytest.raises(AttributeError, match="no attribute 'adma'; the rules are sgd,"):
        kernels.adma  # noqa: B018


def test_the_engine_of_the_page():
    """It learns a matrix of rank 4 from some of its entries."""
    names = {}
    exec(example("fastopt", "adagrad.fold"), names)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, 4)).astype("f4") for n in (120, 90))
    first, second = rng.integers(0, 120, 6000), rng.integers(0, 90, 6000)
    rating = (a[first] * b[second]).sum(axis=1)
    u, v = (rng.standard_normal((n, 4)).astype("f4") for n in (120, 90))
    su, sv = np.zeros_like(u), np.zeros_like(v)

    def loss():
        return float((((u[first] * v[second]).sum(axis=1) - rating) ** 2).mean())

    before = loss()
    for t in range(1, 61):
        names["epoch"](t, first, second, rating, u, v, su, sv, 0.2)
    assert loss() < 0.02 * before
    assert np.isfinite(u).all()


@pytest.mark.slow
def test_within_a_cuda_kernel_on_the_simulator():
    """The simulator hands coefficients on as Python's floats: what is float32 on a GPU is float64 there."""
    code = """
import numpy as np
from numba import cuda
from fastopt.numba import adam
import fastopt

@cuda.jit
def step(t, p, grad, m, v):
    i = cuda.grid(1)
    c = adam.fold(np.float32, t, 0.02, weight_decay=0.1)
    if i < p.size:
        p[i], m[i], v[i] = adam.update(p[i], grad[i], m[i], v[i], c)

rng = np.random.default_rng(0)
got = [rng.standard_normal(70).astype("f4") for _ in range(2)] + [np.zeros(70, "f4") for _ in range(2)]
want = [a.copy() for a in got]
for t in range(1, 4):
    step[2, 64](t, *got)
    fastopt.functional.adam(*want, step=t, lr=0.02, weight_decay=0.1)
print(all(np.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(got, want)), abs(got[2]).min() > 0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named 'numba.cuda" in done.stderr:
        pytest.skip("this Numba has no CUDA target: pip install numba-cuda")
    assert done.stdout.strip() == "True True", done.stderr


def test_kernels_are_cached_across_processes(tmp_path):
    path = tmp_path / "kernels.py"
    path.write_text(
        "import numpy as np\nfrom numba import njit\nfrom fastopt.numba import adam\n"
        "@njit(cache=True)\ndef step(p, g, m, v):\n    c = adam.fold(np.float64, 1)\n"
        "    for i in range(p.size):\n        p[i], m[i], v[i] = adam.update(p[i], g[i], m[i], v[i], c)\n"
        "step(*np.ones((4, 3)))\nprint(sum(step.stats.cache_hits.values()))\n"
    )
    for hits in ("0", "1"):
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == hits, done.stderr
