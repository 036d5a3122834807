"""Shared parts of the tests: cases for every rule, data, and comparisons."""

import itertools

import numpy as np
import pytest

from fastopt import functional
from fastopt.rules import REQUIRED, RULES

# For each rule, hyper-parameters that are not the defaults, so that no term is multiplied by 0 or 1.
VARIED = {
    "sgd": {"lr": 0.05},
    "momentum": {"lr": 0.05, "momentum": 0.8, "dampening": 0.3},
    "nesterov": {"lr": 0.05, "momentum": 0.8, "dampening": 0.2, "lr_inside": True},
    "qhm": {"lr": 0.05, "momentum": 0.95, "nu": 0.6},
    "aggmo": {"lr": 0.05, "betas": (0.0, 0.5, 0.9, 0.9)},
    "lion": {"lr": 0.02, "beta1": 0.8, "beta2": 0.95},
    "signsgd": {"lr": 0.02, "momentum": 0.8},
    "schedule_free_sgd": {
        "lr": 0.05,
        "momentum": 0.8,
        "warmup_steps": 5.0,
        "weight_step_power": 0.5,
        "weight_lr_power": 1.5,
    },
    "asgd": {"lr": 0.05, "lambd": 0.02, "alpha": 0.6, "t0": 4.0},
    "rprop": {"lr": 0.02, "etaminus": 0.4, "etaplus": 1.3, "step_size_min": 1e-4, "step_size_max": 0.05},
    "adagrad": {"lr": 0.05, "lr_decay": 0.1, "eps": 1e-7, "eps_root": 1e-6},
    "rowwise_adagrad": {"lr": 0.05, "lr_decay": 0.1, "eps": 1e-7, "eps_root": 1e-6},
    "adadelta": {"lr": 0.7, "rho": 0.8, "eps": 1e-5},
    "rmsprop": {"lr": 0.02, "alpha": 0.9, "eps": 1e-6, "eps_root": 1e-7},
    "rmsprop_momentum": {"lr": 0.02, "alpha": 0.9, "eps_root": 1e-7, "momentum": 0.7},
    "rmsprop_centered": {"lr": 0.02, "alpha": 0.9, "eps": 1e-3},
    "rmsprop_centered_momentum": {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "momentum": 0.7, "lr_inside": True},
    "ftrl": {"lr": 0.05, "beta": 0.5, "l1": 0.03, "l2": 0.2},
    "adam": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "eps_root": 1e-7},
    "amsgrad": {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "bias_correction": False},
    "adamw": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6},
    "adamw_amsgrad": {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "eps_hat": True, "max_corrected": True},
    "adamax": {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6},
    "nadam": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "momentum_decay": 0.1},
    "qhadam": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "nu1": 0.7, "nu2": 0.9},
    "adabound": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "final_lr": 0.3, "gamma": 0.05, "base_lr": 0.01},
    "amsbound": {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "final_lr": 0.3, "gamma": 0.05},
    "adabelief": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "eps_root": 1e-7},
    "radam": {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6},
    "adan": {"lr": 0.02, "beta1": 0.9, "beta2": 0.8, "beta3": 0.95, "eps_root": 1e-7, "proximal_weight_decay": 0.1},
    "schedule_free_adamw": {
        "lr": 0.02,
        "beta1": 0.8,
        "beta2": 0.99,
        "eps": 1e-6,
        "warmup_steps": 5.0,
        "weight_step_power": 0.5,
        "weight_lr_power": 1.5,
    },
    "ademamix": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "beta3": 0.995, "alpha": 3.0, "warmup": 15.0},
    "lars": {"lr": 0.5, "momentum": 0.8, "trust_coefficient": 0.01, "eps": 1e-4},
    "lamb": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-5, "eps_root": 1e-7},
    "swats": {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3},
    "swats_over_all": {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3},
    "prodigy": {
        "lr": 0.5,
        "beta1": 0.8,
        "beta2": 0.9,
        "beta3": 0.8,
        "eps": 1e-6,
        "use_bias_correction": True,
        "d0": 1e-3,
        "d_coef": 2.0,
        "growth_rate": 1.5,
    },
    "novograd": {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-5, "eps_root": 1e-7, "grad_averaging": True},
    "adaptive_revision": {"lr": 0.05},
    "dc_asgd": {"lr": 0.02, "lambd": 0.02},
    "dc_asgd_adaptive": {"lr": 0.02, "lambd0": 0.5, "alpha": 0.9, "eps_root": 1e-5},
}
DECAY = {"weight_decay": 0.02, "decoupled_weight_decay": 0.03}
# Forms that an option of a rule makes, beside the two of every rule.
FORMS = {
    "momentum, lr inside": ("momentum", {**VARIED["momentum"], "lr_inside": True}),
    "nesterov, torch's": ("nesterov", {**VARIED["nesterov"], "lr_inside": False}),
    "rmsprop_momentum, lr inside": ("rmsprop_momentum", {**VARIED["rmsprop_momentum"], "lr_inside": True}),
    "rmsprop_centered_momentum, torch's": (
        "rmsprop_centered_momentum",
        {**VARIED["rmsprop_centered_momentum"], "lr_inside": False},
    ),
    "adamax, Keras's": ("adamax", {**VARIED["adamax"], "eps_outside": True}),
    "adamax, the paper's": ("adamax", {**VARIED["adamax"], "eps": 0.0}),
    "nadam, constant beta1": ("nadam", {**VARIED["nadam"], "momentum_decay": None}),
    "nadam, optax's": ("nadam", {**VARIED["nadam"], "momentum_decay": np.inf}),
    "radam, optax's": ("radam", {**VARIED["radam"], "eps_hat": False}),
    "adan, optax's": ("adan", {**VARIED["adan"], "difference_weight": 0.2}),
    "ademamix, no warm-up": ("ademamix", {**VARIED["ademamix"], "warmup": None}),
    "adam, eps-hat": ("adam", {**VARIED["adam"], "eps_hat": True}),
    "adam, uncorrected": ("adam", {**VARIED["adam"], "bias_correction": False}),
    "amsgrad, torch's": ("amsgrad", {**VARIED["amsgrad"], "bias_correction": True}),
    "amsgrad, Keras's": ("amsgrad", {**VARIED["amsgrad"], "bias_correction": True, "eps": 1e-3, "eps_hat": True}),
    "novograd, the paper's": ("novograd", {**VARIED["novograd"], "grad_averaging": False}),
    "lars, optax's": ("lars", {**VARIED["lars"], "lr_inside": True, "decay_inside": True}),
    "adaptive_revision, unread": ("adaptive_revision", {**VARIED["adaptive_revision"], "read": False}),
    "dc_asgd, unread": ("dc_asgd", {**VARIED["dc_asgd"], "read": False}),
    "dc_asgd_adaptive, unread": ("dc_asgd_adaptive", {**VARIED["dc_asgd_adaptive"], "read": False}),
    "prodigy, L2": ("prodigy", {**VARIED["prodigy"], "decouple": False, "safeguard_warmup": True, "growth_rate": None}),
    "amsgrad, optax's": ("amsgrad", {**VARIED["amsgrad"], "bias_correction": True, "max_corrected": True}),
}

# One rule of each kind by which kernels differ in more than the update: these are compiled in every test, the others
# where it takes seconds for each in slow ones.
KINDS = {
    (rule.count_arrays(1), len(rule.singles), rule.vector, rule.stage and rule.stage.over): name
    for name, rule in reversed(RULES.items())
}


def compiled_for_each(names, backends):
    """Parameters: each rule with each backend; slow where Numba would compile one more kernel of a kind."""
    return [
        pytest.param(*case, marks=[pytest.mark.slow] * (case[1] == "numba" and case[0] not in KINDS.values()))
        for case in itertools.product(names, backends)
    ]


def one_of_each_kind(names, more=()):
    """Parameters: each rule; slow where one more kernel of a kind would be compiled and `more` does not name it."""
    fast = {*KINDS.values(), *more}
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in fast)) for name in names]


def default_hyper(name):
    """A rule's defaults, with an lr where it has none."""
    rule = RULES[name]
    return {
        key: 0.05 if hyper.default is REQUIRED else hyper.default
        for key, hyper in rule.hyper.items()
        if key not in rule.initial
    }


def decay_of(name):
    """The decays that a rule has."""
    return {key: value for key, value in DECAY.items() if key in RULES[name].hyper}


CASES = {
    **{f"{name}, defaults": (name, {**default_hyper(name), "weight_decay": 0.01}) for name in RULES},
    **{f"{name}, varied": (name, {**default_hyper(name), **VARIED[name], **decay_of(name)}) for name in RULES},
    **{form: (name, {**default_hyper(name), **hyper, **decay_of(name)}) for form, (name, hyper) in FORMS.items()},
}


def copies_of(name, hyper):
    return len(hyper["betas"]) if RULES[name].vector else None


def make_states(name, hyper, param):
    """States before the first step, in the parameter's memory order."""
    copies = copies_of(name, hyper)
    shapes = [RULES[name].state_shape(state, param.shape, copies) for state in RULES[name].state_names]
    made = []
    begins = {**RULES[name].defaults(), **hyper}
    for state, shape in zip(RULES[name].states, shapes, strict=True):
        dtype = param.dtype if param.dtype.itemsize > 2 or not state.single else "f4"
        begin = param if state.begins == "parameter" else begins.get(state.begins, 0.0)
        made.append(np.full(shape, begin, dtype))
    return made


def gradients(n, steps, seed=0):
    """Gradients with the spread that real ones have: many magnitudes, zeros among them."""
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((steps, n)) * 10.0 ** rng.integers(-4, 2, size=n)
    g[:, ::17] = 0.0
    return g


def parameter(n, seed=1):
    return np.random.default_rng(seed).standard_normal(n)


def run(name, hyper, p0, grads, dtype, *, place=np.array, **call):
    """Steps through the functional form; `place` lays an array out in memory. Returns parameter and states."""
    param = place(np.asarray(p0, dtype))
    states = [place(state) for state in make_states(name, hyper, np.asarray(p0, dtype))]
    grad = place(np.zeros_like(np.asarray(p0, dtype)))
    step = getattr(functional, name)
    for t, g in enumerate(grads, 1):
        grad[...] = g
        step(param, grad, *states, step=t, **hyper, **call)
    return [param, *states]


def misaligned(a):
    """A copy that begins between two elements' places."""
    b = np.ndarray(a.shape, a.dtype, np.zeros(a.nbytes + 1, np.uint8).data, offset=1)
    b[...] = a
    return b


def bits(arrays):
    """Arrays as integers, NaNs made one: which NaN an operation gives is the processor's choice."""
    out = []
    for a in arrays:
        a = np.ascontiguousarray(a)
        if a.dtype.kind == "f" or a.dtype.name == "bfloat16":
            a = np.where(np.isnan(a), np.array(np.nan, a.dtype), a)
        out.append(a.view(f"u{a.itemsize}"))
    return out


def assert_same_bits(got, want):
    for a, b in zip(bits(got), bits(want), strict=True):
        differing = np.flatnonzero(a.ravel() != b.ravel())
        assert differing.size == 0, f"{differing.size} of {a.size} differ, the first at {differing[0]}"


def assert_same_everywhere(stepped, set_isa, ways):
    """Assert that ``stepped(backend, threads=, **way)`` has the same bits of each backend and instruction set."""
    from fastopt.backends import native

    expected = stepped("numba")
    for way in ways:
        assert_same_bits(stepped("numba", threads=3, **way), expected)
        for level in native.isa_supported():
            set_isa(level)
            assert_same_bits(stepped("native", threads=3, **way), expected)


# The distance allowed from the oracle in long double, in epsilons of the largest magnitude that the element's
# trajectory had: 1 - beta2^t, folded in float64 as torch does, is what loses most. All measured below 34.
BOUND = 40
#: The same for sums of terms that cancel, which are larger than their sum.
BOUNDS = {"d_numerator": 2000}


def assert_near_the_oracle(name, got, p0, path):
    """Assert that parameter and states are near the end of the oracle's `path` of steps."""
    for k, array in enumerate(got):
        values = [states[RULES[name].state_names[k - 1]] if k else p for p, states in path]
        scale = np.maximum.reduce(np.abs(values)) if k else np.maximum(np.abs(p0), np.maximum.reduce(np.abs(values)))
        error = np.abs(array - values[-1]) / np.maximum(scale, np.finfo(array.dtype).tiny)
        worst = float(error.max()) / np.finfo(array.dtype).eps
        what = RULES[name].state_names[k - 1] if k else "p"
        assert worst <= BOUNDS.get(what, BOUND), f"{what}: {worst:.1f} eps"
