"""Rules of whole matrices: the ends from the table, the products by the arrays' library."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import functional
from fastopt.distributed import Synchronous
from fastopt.rules import MATRIX_RULES, RULES, MatrixRule

from .oracle.matrices import muon
from .support import assert_same_bits
from .torch_pairs import both, check_error_cases, own_table, step_all, step_both, step_scheduled, torch_with

BF = ml_dtypes.bfloat16
SHAPES = [(5, 7), (7, 5), (6, 6), (1, 4), (4, 1), (30, 3)]
VARIED = {
    "lr": 0.1,
    "weight_decay": 0.3,
    "momentum": 0.8,
    "nesterov": False,
    "ns_coefficients": (3.0, -3.2, 1.2),
    "eps": 1e-3,
    "ns_steps": 4,
    "adjust_lr_fn": "match_rms_adamw",
}
OPTIONS = [{}, {"lr": 0.1}, VARIED, {"lr": 0.1, "ns_steps": 0}, {"adjust_lr_fn": "original", "momentum": 0.0}]


def draw(shape, steps=5, seed=0):
    """A parameter and gradients of many sizes."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), rng.standard_normal((steps, *shape)) * 10.0 ** rng.integers(-3, 3, (steps, 1, 1))


def steps(p, grads, **options):
    """The optimizer after steps of one parameter."""
    opt = fastopt.Muon(p, **options)
    for g in grads:
        opt.step(g)
    return opt


def test_every_rule_is_of_rules_of_the_table():
    assert not MATRIX_RULES.keys() & RULES.keys()
    for rule in MATRIX_RULES.values():
        assert {rule.first, rule.last} <= RULES.keys()
        assert not isinstance(rule, MatrixRule) or rule.states == RULES[rule.first].states
        assert not rule.elementwise and rule.whole and rule.optimizer in fastopt.__all__
        assert hasattr(functional, rule.name)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_the_papers(shape, options):
    p0, grads = draw(shape)
    want, average = muon(p0, grads, **options)
    p, turned, part = p0.copy(), np.array(p0, order="F"), np.zeros((2 * shape[0], 3 * shape[1]))[::2, ::3]
    part[...] = p0
    for own in (p, turned, part):
        opt = steps(own, grads, **options)
        np.testing.assert_allclose(own, want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(opt.state[0]["momentum_buffer"], average, rtol=1e-12, atol=1e-12)
    p, buffer = p0.copy(), np.zeros(shape)
    own = {key: value for key, value in options.items() if key != "ns_coefficients"}
    own |= dict(zip(("ns_a", "ns_b", "ns_c"), options.get("ns_coefficients", ()), strict=False))
    for t, g in enumerate(grads, 1):
        functional.muon(p, g, buffer, step=t, **own)
    np.testing.assert_allclose(p, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_several_matrices_among_groups(backend):
    params, grads = zip(*(draw(shape, 4, k) for k, shape in enumerate(SHAPES)), strict=True)
    own = [p.astype("f4") for p in params]
    opt = fastopt.Muon(
        [{"params": own[:3], "lr": 0.1}, {"params": own[3:], "lr": lambda t: 0.1 / t, "nesterov": False}],
        backend=backend,
    )
    for each in zip(*grads, strict=True):
        opt.step([[g.astype("f4") for g in each[:3]], [g.astype("f4") for g in each[3:]]])
    for k, p in enumerate(own):
        want = muon(params[k], grads[k].astype("f4"), lr=0.1)[0]
        if k >= 3:
            want, momentum = params[k], np.zeros_like(params[k])
            for t, g in enumerate(grads[k].astype("f4"), 1):
                momentum = 0.95 * momentum + 0.05 * g.astype("f8")
                want = muon(want, [momentum / 0.05], lr=0.1 / t, nesterov=False)[0]
        np.testing.assert_allclose(p, want, rtol=1e-3, atol=1e-4)
    assert [int(state["step"]) for state in opt.state] == [4] * 6


def test_backends_differ_in_nothing_but_the_products():
    """These are NumPy's for both, so that here all bits are equal."""
    p0, grads = draw((20, 30))
    found = []
    for backend, threads in (("native", 1), ("native", 3), ("numba", 1), ("numba", 2)):
        p = p0.astype(BF)
        noise = fastopt.GradientNoise(0.3, 0.55, 1)
        options = {
            "rounding": "stochastic",
            "seed": 3,
            "gradient_noise": noise,
            "ema_decay": 0.9,
            "state_dtype": "bfloat16",
        }
        opt = steps(p, grads.astype(BF), backend=backend, threads=threads, **options)
        found.append([p, *(opt.state[0][name] for name in ("momentum_buffer", "ema"))])
    for other in found[1:]:
        assert_same_bits(other, found[0])


STORED = {
    "bfloat16": (BF, {}, 0.02),
    "float16": ("f2", {}, 2e-3),
    "what is lost": (BF, {"rounding": "kahan"}, 0.02),
    "master": ("f2", {"rounding": "master"}, 2e-3),
    "blocks": ("f4", {"state_dtype": "8bit"}, 0.05),
    "states in bfloat16": ("f4", {"state_dtype": "bfloat16"}, 0.02),
}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("storage", STORED)
def test_storage(storage, order):
    dtype, options, bound = STORED[storage]
    p0, grads = draw((64, 70), 3)
    p, want = np.array(p0.astype(dtype), order=order), muon(p0.astype(dtype), grads.astype(dtype), lr=0.1)[0]
    opt = steps(p, [np.array(g.astype(dtype), order=order) for g in grads], lr=0.1, **options)
    np.testing.assert_allclose(p.astype("f8"), want, rtol=bound, atol=bound)
    if "master" in opt.state[0]:
        assert_same_bits([opt.state[0]["master"].astype(dtype)], [p])


def test_the_average_is_of_the_parameter():
    p0, grads = draw((5, 7), 2)
    p, average = p0.copy(), p0.copy()
    opt = fastopt.Muon(p, ema_decay=0.9)
    for g in grads:
        opt.step(g)
        average = 0.9 * average + 0.1 * p
    np.testing.assert_allclose(opt.state[0]["ema"], average, rtol=1e-14)


def test_noise_is_added_to_the_gradient():
    p0, (g,) = draw((5, 7), 1)
    noise = fastopt.GradientNoise(0.3, 0.55, 1)
    there, noisy = np.zeros((5, 7)), g.copy()
    fastopt.SGD(there, lr=1.0, gradient_noise=noise).step(g)
    p, want = p0.copy(), p0.copy()
    fastopt.Muon(p, gradient_noise=noise).step(noisy)
    fastopt.Muon(want).step(-there)
    np.testing.assert_allclose(p, want, rtol=1e-12)


@pytest.mark.parametrize("clip", [{"max_norm": 0.5}, {"clip_norm": 0.5}, {"clip_value": 0.3}, {"grad_scale": 0.25}])
def test_gradients_are_scaled_clipped_and_zeroed_in_the_first_end(clip):
    """Beside an average of before: by itself the size of a gradient does not matter."""
    params, grads = zip(*(draw(shape, 2) for shape in SHAPES[:2]), strict=True)
    got, want = [p.copy() for p in params], [p.copy() for p in params]
    opt, plain = fastopt.Muon(got), fastopt.Muon(want)
    for o in (opt, plain):
        o.step([g[0] for g in grads])
    second = [g[1].copy() for g in grads]
    norm, own = np.sqrt(sum((g**2).sum() for g in second)), [np.sqrt((g**2).sum()) for g in second]
    clipped = {
        "max_norm": [g * min(1, 0.5 / (norm + 1e-6)) for g in second],
        "clip_norm": [g * min(1, 0.5 / (n + 1e-6)) for g, n in zip(second, own, strict=True)],
        "clip_value": [g.clip(-0.3, 0.3) for g in second],
        "grad_scale": [g * 0.25 for g in second],
    }
    opt.step(second, zero_grads=True, **clip)
    plain.step(clipped[next(iter(clip))])
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert not any(g.any() for g in second)


def test_what_is_not_finite_is_skipped_or_makes_all_of_its_matrix_so():
    p, other = np.ones((3, 4)), np.ones((4, 3))
    opt, bad = fastopt.Muon([p, other]), np.ones((3, 4))
    bad[1, 2] = np.inf
    opt.step([bad, np.ones((4, 3))], skip_nonfinite=True)
    assert opt.last_step_skipped and (p == 1).all() and not opt.state[0]["momentum_buffer"].any()
    opt.step([bad, np.ones((4, 3))])
    assert np.isnan(p).all() and np.isfinite(other).all()


@pytest.mark.parametrize("scale", [1e25, 1e-12])
def test_the_size_of_gradients_does_not_matter(scale):
    p0, (g,) = draw((5, 7), 1)
    p, want = p0.astype("f4"), p0.astype("f4")
    fastopt.Muon(p, eps=0.0).step((g * scale).astype("f4"))
    fastopt.Muon(want, eps=0.0).step(g.astype("f4"))
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p, want, rtol=1e-4)


def test_a_gradient_of_zeros_leaves_the_decay_alone():
    p = np.ones((3, 4))
    fastopt.Muon(p, lr=0.5).step(np.zeros((3, 4)))
    assert (p == 0.95).all()


def test_empty_and_absent_matrices():
    p, empty = np.ones((3, 4)), np.ones((0, 4))
    opt = fastopt.Muon([p, empty])
    opt.step([None, np.ones((0, 4))])
    assert (p == 1).all() and [int(state["step"]) for state in opt.state] == [0, 1]


def test_gradients_elsewhere_plans_and_sums_are_as_ever():
    p0, grads = draw((5, 7))
    want, p = p0.copy(), p0.copy()
    steps(want, grads)
    opt, buffer = fastopt.Muon(p), np.empty((5, 7))
    plan = opt.bind(buffer)
    for t, g in enumerate(grads):
        if t % 2:
            buffer[...] = g
            plan.step()
        else:
            opt.accumulate(g / 2)
            opt.accumulate(g / 2)
            opt.step()
    np.testing.assert_allclose(p, want, rtol=1e-12)


def test_checkpoints_go_on_bit_for_bit(tmp_path):
    p0, grads = draw((5, 7), 6)
    want = p0.copy()
    steps(want, grads)
    p = p0.copy()
    saved = pickle.loads(pickle.dumps(steps(p, grads[:3]).state_dict()))
    opt = fastopt.Muon(p, lr=0.5)
    opt.load_state_dict(saved)
    for g in grads[3:]:
        opt.step(g)
    assert_same_bits([p], [want])
    p = p0.copy()
    steps(p, grads[:3], state_dir=tmp_path / "states")
    with pytest.warns(UserWarning, match="step 3 are resumed"):
        steps(p, grads[3:], state_dir=tmp_path / "states")
    assert_same_bits([p], [want])


REFUSED = {
    "shape": (
        lambda: fastopt.Muon([np.ones((3, 4)), np.ones(3)]),
        r"^params\[1\]: found shape \(3,\), expected two dimensions, for Muon only supports 2D parameters: give",
    ),
    "shape of a function": (
        lambda: functional.muon(np.ones(3), np.ones(3), np.ones(3), step=1),
        r"^param: found shape \(3,\), expected two dimensions",
    ),
    "rows": (
        lambda: fastopt.Muon(np.ones((3, 4))).step(fastopt.RowSparse(np.array([1]), np.ones((1, 4)))),
        "^grads: found a gradient of rows, expected a dense one: Muon multiplies whole matrices",
    ),
    "adjust_lr_fn": (
        lambda: fastopt.Muon(np.ones((3, 4)), adjust_lr_fn="match_rms"),
        "^adjust_lr_fn: found 'match_rms', expected one of original, match_rms_adamw",
    ),
    "ns_steps": (
        lambda: fastopt.Muon(np.ones((3, 4)), ns_steps=100),
        "^ns_steps: found 100, expected an integer >= 0 and <= 99",
    ),
    "Synchronous": (
        lambda: Synchronous(fastopt.Muon, [np.ones((3, 4))], slices=1),
        "^optimizer: found 'Muon', expected another: it multiplies whole matrices",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    call, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_state_memory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="state_memory: found 100000, expected None: Muon multiplies whole matrices"):
        fastopt.Muon(np.ones((3, 4)), state_dir=tmp_path, state_memory=100_000)
    with pytest.raises(TypeError, match=r"ns_steps: found 5\.0"):
        fastopt.Muon(np.ones((3, 4)), ns_steps=5.0)


def test_a_group_that_is_refused_leaves_nothing():
    p = np.ones((3, 4))
    opt = fastopt.Muon(p)
    with pytest.raises(ValueError, match="only supports 2D"):
        opt.add_param_group({"params": np.ones(3)})
    opt.step(np.ones((3, 4)))
    assert len(opt.param_groups) == 1


# ---- torch ----


@pytest.fixture
def torch():
    return torch_with("Muon")


CASES = [("float32", (5, 7), options) for options in OPTIONS]
CASES += [("float64", (30, 20), options) for options in OPTIONS[1:3]]
# Without nesterov torch normalizes an average that is in bfloat16 where it is, and so loses it.
CASES += [("bfloat16", (30, 20), {**options, "nesterov": True}) for options in OPTIONS[1:3]]


@pytest.mark.parametrize(("dtype", "shape", "options"), CASES)
def test_same_trajectory_as_torchs(dtype, shape, options, torch):
    params, opts, grads = both(torch, "Muon", dtype, shape, **options)
    step_all(torch, params, opts, grads)
    assert set(opts[0].state[params[0]]) == set(opts[1].state[params[1]]) == {"momentum_buffer"}
    lr = opts[0].param_groups[0]["lr"]
    got, want = (p.detach().double().numpy() for p in params)
    # The polynomial in bfloat16 has 3 digits, the last of which depends on the order of sums. Parameters in bfloat16
    # are rounded twice in a step by torch, and once here.
    rounding = 0.0 if dtype != "bfloat16" else 16 * 2.0**-8
    np.testing.assert_allclose(got, want, rtol=1e-6 + rounding, atol=0.1 * lr + rounding / 4)


def test_torchs_own_cases(torch):
    for case in own_table(torch, "Muon").optim_inputs_func(device="cpu"):
        params, opts, grads = both(torch, "Muon", **case.kwargs)
        for g in grads:
            step_both(params, opts, g)
        torch.testing.assert_close(*params, rtol=1e-6, atol=0.1 * float(opts[0].param_groups[0]["lr"]))


def test_torchs_own_error_cases(torch):
    check_error_cases(torch, "Muon")


def test_torchs_schedulers_and_scaler(torch):
    params, opts, grads = both(torch, "Muon", lr=0.1)
    step_scheduled(torch, params, opts, grads)
    torch.testing.assert_close(*params, rtol=1e-6, atol=0.02)


def test_arrays_of_torch_in_the_class_for_arrays(torch):
    params, opts, grads = both(torch, "Muon")
    own = params[1].detach().clone()
    plain = fastopt.Muon([own])
    for g in grads:
        params[0].grad = g
        opts[0].step()
        plain.step([g])
    assert torch.equal(own, params[0].detach())


def test_torchs_checkpoint_loads_into_the_class_for_arrays(torch):
    params, opts, grads = both(torch, "Muon", adjust_lr_fn="match_rms_adamw")
    for g in grads:
        step_both(params, opts, g)
    p = params[1].detach().numpy().copy()
    opt = fastopt.Muon(p)
    opt.load_state_dict(opts[1].state_dict())
    assert opt.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    np.testing.assert_array_equal(opt.state[0]["momentum_buffer"], opts[1].state[params[1]]["momentum_buffer"].numpy())


def test_steps_in_inference_mode_and_out_of_it(torch):
    params, opts, grads = both(torch, "Muon")
    for t, g in enumerate(grads):
        with torch.inference_mode(t < 2):
            params[0].grad = g.clone()
            opts[0].step()
            params[1].grad = g.clone()
        with torch.no_grad():
            opts[1].step()
    torch.testing.assert_close(params[0], params[1], atol=1e-4, rtol=1e-4)


def test_what_is_refused_of_torchs(torch):
    from fastopt import torch as optim

    with pytest.raises(ValueError, match="optimizer: found 'Muon', expected another: it multiplies whole matrices"):
        Synchronous(optim.Muon, [torch.ones(3, 4)], slices=1)
    with pytest.raises(
        ValueError, match=r"found shape \(3,\), expected two dimensions, for Muon only supports 2D param"
    ):
        optim.Muon([torch.ones(3, requires_grad=True)])
    p = torch.ones(3, 4, requires_grad=True)
    p.grad = torch.ones(3, 4).to_sparse(1)
    with pytest.raises(ValueError, match="found a gradient of rows, expected a dense one: Muon multiplies whole"):
        optim.Muon([p]).step()
    assert (p == 1).all()
