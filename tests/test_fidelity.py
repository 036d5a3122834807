"""The table "Which option reproduces whom" of fastopt/rules: whom each line names, run beside what it says.

A line names an optimizer of torch, Keras or optax by its call, which is made; or a formula by its name, which is
written here in float64, as the paper or the authors' code has it.
"""

import inspect
import itertools
import math
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

import fastopt
from fastopt.optimizers import CLASSES

from .pages import page
from .support import assert_same_bits, gradients, parameter

SECTION = page("fastopt/rules").partition("## Which option reproduces whom\n")[2].partition("\n## ")[0]
MATRICES = page("fastopt/rules").partition("## Whole matrices\n")[2].partition("\n## Which option")[0]
MATRIX_ROWS = dict(re.findall(r"^  \| `([^`|]+)` \| `(.+)` \|$", MATRICES, re.MULTILINE))
ROWS = dict(re.findall(r"^\| `?([^`|]+?)`? \| `(.+)` \|$", SECTION, re.MULTILINE))
LIBRARIES = ("torch", "keras", "optax")

P0, GRADS = parameter(203), gradients(203, 20)
TURN, DECAY = 8, 0.05  # "changed": lr is doubled from this step on, and parameters decay where the reference can
BOUND = 32  # epsilons of the largest magnitude that the element's trajectory had; all measured below 10


def parse(call):
    """``"optax.adam(eps_root=1e-8)"`` as the name and the arguments."""
    name, arguments = call.removesuffix(")").split("(", 1)
    return name.rpartition(".")[2], eval(f"dict({arguments})", {"math": math})


class Reference(NamedTuple):
    """The reference that a line names.

    `run` is a generator function of the parameter, and of `weight_decay` if it `decays`. It yields the parameter, and
    is sent the next gradient with its learning rate. `lr` is the default learning rate, None where there is none.
    """

    run: Callable
    lr: float | None
    decays: bool


# ---- the libraries ----


def parameters_of(make):
    return inspect.signature(make).parameters


def torch_reference(torch, call):
    name, options = parse(call)
    make = getattr(torch.optim, name)

    def run(p, **decay):
        param = torch.tensor(p, requires_grad=True)
        optimizer = make([param], **options, **decay)
        while True:
            g, optimizer.param_groups[0]["lr"] = yield param.detach().numpy().copy()
            param.grad = torch.tensor(g)
            optimizer.step()

    return Reference(run, parameters_of(make)["lr"].default, "weight_decay" in parameters_of(make))


def keras_reference(keras, call):
    name, options = parse(call)
    make = getattr(keras.optimizers, name)

    def run(p, **decay):
        variable = keras.Variable(p, dtype="float64")
        optimizer = make(**options, **decay)
        while True:
            g, optimizer.learning_rate = yield keras.ops.convert_to_numpy(variable.value)
            optimizer.apply([keras.ops.convert_to_tensor(g)], [variable])

    decays = name != "ScheduleFreeAdamW"  # whose decay moves y alone, and so x the other way
    return Reference(run, parameters_of(make)["learning_rate"].default, decays)


def optax_reference(optax, call):
    name, options = parse(call)
    make = getattr(optax, name, None) or getattr(optax.contrib, name)

    def run(p, **decay):
        state = make(1.0, **options, **decay).init(p)
        while True:
            g, lr = yield np.array(p)
            updates, state = make(lr, **options, **decay).update(g, state, p)
            p = optax.apply_updates(p, updates)

    return Reference(run, None, "weight_decay" in parameters_of(make))


@pytest.fixture(scope="module")
def torch():
    """torch, with float64 as its default type: NAdam keeps its product of momenta in that."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def jax():
    jax = pytest.importorskip("jax", reason="jax, on which Keras and optax run here, is not installed")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def keras(jax, tmp_path_factory):
    """Keras on JAX, with float64 as its default type: that is the learning rate's."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))  # it writes its settings there
    keras = pytest.importorskip("keras", reason="keras is not installed")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield keras
    keras.config.set_floatx(before)


@pytest.fixture(scope="module")
def optax(jax):
    return pytest.importorskip("optax", reason="optax is not installed")


MAKERS = {"torch": torch_reference, "keras": keras_reference, "optax": optax_reference}


@pytest.fixture
def reference(request, who):
    library = who.partition(".")[0]
    return MAKERS[library](request.getfixturevalue(library), who) if library in LIBRARIES else FORMULAS[who]


# ---- the formulas ----

FORMULAS = {}


def formula(who, lr=None):
    """An entry of `FORMULAS`, with the learning rate that the source states."""

    def register(run):
        FORMULAS[who] = Reference(run, lr, "weight_decay" in parameters_of(run))
        return run

    return register


@formula("TensorFlow 1, RMSPropOptimizer(momentum=0.9)")
def tensorflow(p):
    ms, mom = 1.0, 0.0
    while True:
        g, lr = yield p
        ms = 0.9 * ms + 0.1 * g**2
        mom = 0.9 * mom + lr * g / np.sqrt(ms + 1e-10)
        p = p - mom


@formula("NVIDIA Apex, FusedAdam; llm.c", lr=1e-3)
def apex(p, weight_decay=0.0):
    m = v = 0.0
    for t in itertools.count(1):
        g, lr = yield p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + weight_decay * p
        p = p - lr * update


def adabound(p, weight_decay, amsbound):
    """github.com/Luolc/AdaBound, where weight_decay is the L2 penalty."""
    m = v = largest = 0.0
    base_lr = 1e-3
    for t in itertools.count(1):
        g, lr = yield p
        g = g + weight_decay * p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        largest = np.maximum(largest, v)
        denominator = np.sqrt(largest if amsbound else v) + 1e-8
        step_size = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        final_lr = 0.1 * lr / base_lr
        lower, upper = final_lr * (1 - 1 / (1e-3 * t + 1)), final_lr * (1 + 1 / (1e-3 * t))
        p = p - np.clip(step_size / denominator, lower, upper) * m


@formula("Luo et al. 2019, package adabound", lr=1e-3)
def adabound_without_maximum(p, weight_decay=0.0):
    return adabound(p, weight_decay, amsbound=False)


@formula("Luo et al. 2019, package adabound (amsbound=True)", lr=1e-3)
def adabound_with_maximum(p, weight_decay=0.0):
    return adabound(p, weight_decay, amsbound=True)


@formula("Chen et al. 2023, package lion-pytorch", lr=1e-4)
def lion(p, weight_decay=0.0):
    m = 0.0
    while True:
        g, lr = yield p
        p = p * (1 - lr * weight_decay)
        p = p - lr * np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g


@formula("Zhuang et al. 2020, package adabelief-pytorch (weight_decouple=False, rectify=False)", lr=1e-3)
def adabelief(p, weight_decay=0.0):
    m = s = 0.0
    for t in itertools.count(1):
        g, lr = yield p
        g = g + weight_decay * p
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-16
        p = p - lr / (1 - 0.9**t) * m / (np.sqrt(s) / math.sqrt(1 - 0.999**t) + 1e-16)


@formula("Xie et al. 2022, sail-sg/Adan (weight_decay=0.02)", lr=1e-3)
def adan(p):
    m = v = n = 0.0
    before = None
    for t in itertools.count(1):
        g, lr = yield p
        change = 0.0 if before is None else g - before
        before = g
        m = 0.98 * m + 0.02 * g
        v = 0.92 * v + 0.08 * change
        n = 0.99 * n + 0.01 * (g + 0.92 * change) ** 2
        denominator = np.sqrt(n) / math.sqrt(1 - 0.99**t) + 1e-8
        p = p - lr / (1 - 0.98**t) * m / denominator
        p = p - lr * 0.92 / (1 - 0.92**t) * v / denominator
        p = p / (1 + lr * 0.02)


@formula("Pagliardini et al. 2024, ml-ademamix (alpha=5, beta3_warmup=12, alpha_warmup=12)", lr=1e-3)
def ademamix(p, weight_decay=0.0):
    def half_life(beta):
        return math.log(0.5) / math.log(beta) - 1

    fast = slow = v = 0.0
    for t in itertools.count(1):
        g, lr = yield p
        done = min(t / 12, 1.0)
        beta3 = 0.5 ** (1 / ((1 - done) * half_life(0.9) + done * half_life(0.9999) + 1))
        fast = 0.9 * fast + 0.1 * g
        slow = beta3 * slow + (1 - beta3) * g
        v = 0.999 * v + 0.001 * g**2
        update = (fast / (1 - 0.9**t) + 5 * done * slow) / (np.sqrt(v) / math.sqrt(1 - 0.999**t) + 1e-8)
        p = p - lr * (update + weight_decay * p)


@formula("Ginsburg et al. 2019, package pytorch-optimizer", lr=1e-3)
def novograd(p, weight_decay=0.0):
    average, moment = None, 0.0
    while True:
        g, lr = yield p
        square = np.sum(g**2)
        average = square if average is None else 0.98 * average + 0.02 * square
        moment = 0.95 * moment + g / (np.sqrt(average) + 1e-8) + weight_decay * p
        p = p - lr * moment


@formula("Keskar and Socher 2017, algorithm 1 (eps=0.01)", lr=1e-3)
def swats(p):
    m = a = average = rate = 0.0
    velocity = None  # from when it is SGD
    for k in itertools.count(1):
        g, lr = yield p
        if velocity is not None:
            velocity = 0.9 * velocity + g
            p = p - 0.1 * rate * velocity
            continue
        m = 0.9 * m + 0.1 * g
        a = 0.999 * a + 0.001 * g**2
        step = -lr * math.sqrt(1 - 0.999**k) / (1 - 0.9**k) * m / (np.sqrt(a) + 0.01)
        p = p + step
        projected = step @ step / -(step @ g)
        average = 0.999 * average + 0.001 * projected
        rate = average / (1 - 0.999**k)
        if k > 1 and abs(rate - projected) < 0.01:
            velocity = 0.0


def prodigyopt(p, weight_decay, decouple, safeguard_warmup, growth_rate):
    """github.com/konstmish/prodigy, 1.1.2."""
    p0, d0 = p.copy(), 1e-6
    d = d_max = d0
    m = v = s = numerator = 0.0
    beta3 = math.sqrt(0.999)
    while True:
        g, lr = yield p
        dlr = d * lr
        if not decouple:
            g = g + weight_decay * p
        numerator = beta3 * numerator + d / d0 * dlr * math.fsum(g * (p0 - p))
        m = 0.9 * m + d * (1 - 0.9) * g
        v = 0.999 * v + d * d * (1 - 0.999) * g * g
        s = beta3 * s + d / d0 * (d if safeguard_warmup else dlr) * g
        d_hat = numerator / math.fsum(np.abs(s))
        if d == d0:
            d = max(d, d_hat)
        d_max = max(d_max, d_hat)
        d = min(d_max, d * growth_rate)
        if decouple:
            p = p - weight_decay * dlr * p
        p = p - dlr * m / (np.sqrt(v) + d * 1e-8)


@formula("Mishchenko and Defazio 2023, package prodigyopt", lr=1.0)
def prodigy(p, weight_decay=0.0):
    return prodigyopt(p, weight_decay, True, False, math.inf)


@formula(
    "Mishchenko and Defazio 2023, package prodigyopt (decouple=False, safeguard_warmup=True, growth_rate=1.5)", lr=1.0
)
def prodigy_l2(p, weight_decay=0.0):
    return prodigyopt(p, weight_decay, False, True, 1.5)


def schedule_free(y, direction):
    """github.com/facebookresearch/schedule_free, where p is y between train() and eval()."""
    z, sum_, largest = y.copy(), 0.0, -1.0
    for k in itertools.count():
        g, lr = yield y
        lr = lr * (k + 1) / 6 if k < 6 else lr
        largest = max(lr, largest)
        weight = (k + 1) ** 0.5 * largest**2
        sum_ += weight
        c = weight / sum_
        u = direction(g, y, k)
        y = y + c * (z - y) + lr * (0.9 * (1 - c) - 1) * u
        z = z - lr * u


@formula("Defazio et al. 2024, package schedulefree, SGDScheduleFree(warmup_steps=6, r=0.5)", lr=1.0)
def schedule_free_sgd(p, weight_decay=0.0):
    return schedule_free(p, lambda g, y, k: g + weight_decay * y)


@formula("Defazio et al. 2024, package schedulefree, AdamWScheduleFree(warmup_steps=6, r=0.5)", lr=0.0025)
def schedule_free_adamw(p, weight_decay=0.0):
    squares = np.zeros_like(p)

    def direction(g, y, k):
        squares[:] = 0.999 * squares + 0.001 * g**2
        return g / (np.sqrt(squares / (1 - 0.999 ** (k + 1))) + 1e-8) + weight_decay * y

    return schedule_free(p, direction)


@formula("Ruder 2016, momentum")
def ruder_momentum(p):
    v = 0.0
    while True:
        g, lr = yield p
        v = 0.9 * v + lr * g
        p = p - v


@formula("Ruder 2016, NAG, seen at the look-ahead point")
def ruder_nag(theta):
    v = 0.0
    while True:
        g, lr = yield theta - 0.9 * v  # where the gradient is taken
        v = 0.9 * v + lr * g
        theta = theta - v


@formula("Ruder 2016, Adagrad", lr=0.01)
def ruder_adagrad(p):
    sum_ = 0.0
    while True:
        g, lr = yield p
        sum_ = sum_ + g**2
        p = p - lr / np.sqrt(sum_ + 1e-8) * g


@formula("Ruder 2016, RMSprop", lr=0.001)
def ruder_rmsprop(p):
    average = 0.0
    while True:
        g, lr = yield p
        average = 0.9 * average + 0.1 * g**2
        p = p - lr / np.sqrt(average + 1e-8) * g


@formula("Ruder 2016, Nadam")
def ruder_nadam(p):
    m = v = 0.0
    for t in itertools.count(1):
        g, lr = yield p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        p = p - lr / (np.sqrt(v_hat) + 1e-8) * (0.9 * m_hat + 0.1 * g / (1 - 0.9**t))


@formula("Ruder 2016, AMSGrad")
def ruder_amsgrad(p):
    m = v = v_hat = 0.0
    while True:
        g, lr = yield p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        v_hat = np.maximum(v_hat, v)
        p = p - lr / (np.sqrt(v_hat) + 1e-8) * m


@formula("Zeiler 2012, Adadelta", lr=1.0)
def zeiler(p):
    squares = deltas = 0.0
    while True:
        g, lr = yield p
        squares = 0.95 * squares + 0.05 * g**2
        delta = -np.sqrt(deltas + 1e-6) / np.sqrt(squares + 1e-6) * g
        deltas = 0.95 * deltas + 0.05 * delta**2
        p = p + lr * delta


@formula("Graves 2013, equations 38 to 45", lr=1e-4)
def graves(p):
    n = average = delta = 0.0
    while True:
        g, lr = yield p
        n = 0.95 * n + 0.05 * g**2
        average = 0.95 * average + 0.05 * g
        delta = 0.9 * delta - lr * g / np.sqrt(n - average**2 + 1e-4)
        p = p + delta


@formula("Kingma and Ba 2015, algorithm 1", lr=1e-3)
def kingma(p):
    m = v = 0.0
    for t in itertools.count(1):
        g, lr = yield p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


@formula("Kingma and Ba 2015, section 2, eps-hat", lr=1e-3)
def kingma_eps_hat(p):
    m = v = 0.0
    for t in itertools.count(1):
        g, lr = yield p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        p = p - lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)


@formula("Kingma and Ba 2015, algorithm 2, AdaMax", lr=2e-3)
def kingma_adamax(p):
    m = u = 0.0
    for t in itertools.count(1):
        g, lr = yield p
        m = 0.9 * m + 0.1 * g
        u = np.maximum(0.999 * u, np.abs(g))
        p = p - lr / (1 - 0.9**t) * np.divide(m, u, out=np.zeros_like(p), where=u > 0)  # 0/0 where no g has been


@formula("Ma and Yarats 2019, QHM")
def qhm(p):
    buffer = 0.0
    while True:
        g, lr = yield p
        buffer = 0.999 * buffer + 0.001 * g
        p = p - lr * (0.3 * g + 0.7 * buffer)


@formula("Ma and Yarats 2019, QHAdam")
def qhadam(p):
    m = v = 0.0
    for t in itertools.count(1):
        g, lr = yield p
        m = 0.995 * m + 0.005 * g
        v = 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.995**t), v / (1 - 0.999**t)
        p = p - lr * (0.3 * g + 0.7 * m_hat) / (np.sqrt(v_hat) + 1e-8)


@formula("Lucas et al. 2019, AggMo")
def aggmo(p):
    velocities = [0.0, 0.0, 0.0]
    while True:
        g, lr = yield p
        velocities = [beta * v - g for beta, v in zip((0, 0.9, 0.99), velocities, strict=True)]
        p = p + lr / 3 * sum(velocities)


# ---- the proofs ----


def run_fastopt(name, options, changed, decays, backend="native"):
    """The parameter after each step, and the learning rate at first."""
    param = P0.copy()
    optimizer = getattr(fastopt, name)(param, **options, backend=backend)
    group = optimizer.param_groups[0]
    lr = group["lr"]
    if changed and decays:
        group[decays] = DECAY
    path = []
    for t, g in enumerate(GRADS):
        if changed and t == TURN:
            group["lr"] = 2 * lr
        optimizer.step(g)
        path.append(param.copy())
    return np.array(path), lr


def run_reference(reference, lr, changed):
    run = reference.run(P0.copy(), **({"weight_decay": DECAY} if changed and reference.decays else {}))
    next(run)
    return np.array([run.send((g, 2 * lr if changed and t >= TURN else lr)) for t, g in enumerate(GRADS)])


def distance(got, want):
    scale = np.maximum(np.abs(P0), np.abs(want).max(axis=0))
    return float((np.abs(got - want) / scale).max() / np.finfo(np.float64).eps)


def decay_argument(who, name):
    """Return fastopt's name of the reference's weight_decay."""
    keras_decay = who.startswith("keras") and not CLASSES[name]._arguments.decoupled
    return "decoupled_weight_decay" if keras_decay else "weight_decay"


@pytest.mark.parametrize("who", ROWS)
def test_line(who, reference):
    name, options = parse(ROWS[who])
    decays = decay_argument(who, name) if reference.decays else None
    idle = set(options)  # until leaving the word out is seen to make a difference
    for changed in (False, True):
        got, lr = run_fastopt(name, options, changed, decays)
        assert reference.lr in (None, lr)
        assert_same_bits([run_fastopt(name, options, changed, decays, backend="numba")[0]], [got])
        want = run_reference(reference, lr, changed)
        assert distance(got, want) < BOUND, "with lr and decay changed" if changed else "as it is"
        for word in set(idle):
            without = {key: value for key, value in options.items() if key != word}
            try:
                same = distance(run_fastopt(name, without, changed, decays)[0], want) < 10 * BOUND
            except (TypeError, ValueError):  # lr is required, nesterov needs a momentum
                same = False
            if not same:
                idle.remove(word)
    assert not idle, "the line says more than it needs"


@pytest.mark.parametrize("who", MATRIX_ROWS)
def test_line_of_matrices(who, reference):
    """Their middles are other libraries', and torch's products in bfloat16, with 3 digits at each step."""
    name, options = parse(MATRIX_ROWS[who])
    lr = 0.01 if name == "Muon" else 0.5  # more than 1/sqrt(t) in the end
    start, grads = P0[:144].reshape(12, 12), [g[:144].reshape(12, 12) for g in GRADS[:6]]

    def distance_from(want, **given):
        param = start.copy()
        optimizer = getattr(fastopt, name)(param, lr=lr, **given)
        for g in grads:
            optimizer.step(g)
        return np.abs(param - want).max()

    run = reference.run(start.copy())
    next(run)
    want = [run.send((g, lr)) for g in grads][-1]
    bound = (0.05 if who == "torch.optim.Muon()" else 1e-5) * np.abs(want - start).max()
    assert distance_from(want, **options) < bound
    for word in options:
        assert distance_from(want, **{key: value for key, value in options.items() if key != word}) > 10 * bound, word


def test_every_line_of_the_table_is_read():
    assert len(MATRIX_ROWS) == sum(line.startswith("  | `") for line in MATRICES.splitlines())
    assert len(ROWS) == sum(line.startswith("|") for line in SECTION.splitlines()) - 2
    assert set(FORMULAS) == {who for who in ROWS if who.partition(".")[0] not in LIBRARIES}


# A step of optax's Rprop is that of the gradient before, which no option of another has. The weight decay of Keras's
# LAMB is beside the step that is measured.
UNLIKE = {"optax": {"rprop"}, "keras": {"lamb"}}


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_optimizer_that_a_library_shares_has_a_line(library, request):
    module = request.getfixturevalue(library)
    theirs = {name.lower() for name in dir(getattr(module, "optim", getattr(module, "optimizers", module)))}
    lines = {parse(who)[0].lower() for who in ROWS if who.startswith(library)}
    assert {name.lower() for name in CLASSES} & theirs - lines == UNLIKE.get(library, set())
