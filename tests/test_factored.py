"""Adafactor: averages over rows and columns by the arrays' library, between two ends from the table."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import functional
from fastopt.arrays.libraries import factors
from fastopt.distributed import Synchronous
from fastopt.rules import MATRIX_RULES

from .oracle.matrices import adafactor
from .support import assert_same_bits
from .torch_pairs import both, check_error_cases, own_table, step_all, step_both, step_scheduled, torch_with

BF = ml_dtypes.bfloat16
SHAPES = [(5, 7), (7, 5), (1, 4), (4, 1), (1, 1), (9,), (1,), (), (3, 4, 5), (2, 3, 4, 2)]
VARIED = {
    "lr": 0.5,
    "beta2_decay": -0.4,
    "eps": (1e-2, 0.3),
    "d": 1.7,
    "weight_decay": 0.2,
    "maximize": True,
}
OPTIONS = [
    {},
    VARIED,
    {"lr": 0.5, "relative_step": False, "d": np.inf},
    {"lr": 0.1, "scale_parameter": False, "eps": (0.0, 0.0)},
]


def draw(shape, steps=5, seed=0):
    """A parameter and gradients of many sizes."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-3, 3, (steps, *[1] * len(shape)))
    return np.array(rng.standard_normal(shape)), rng.standard_normal((steps, *shape)) * sizes


def steps(p, grads, **options):
    """The optimizer after steps of one parameter."""
    opt = fastopt.Adafactor(p, **options)
    for g in grads:
        opt.step(np.asarray(g))
    return opt


def names_of(shape):
    return ["row_var", "col_var"] if len(shape) > 1 else ["variance"]


def laid_out(p0):
    """The same values as they may lie in memory."""
    part = np.zeros(tuple(2 * n for n in p0.shape))[(*[slice(None, None, 2)] * p0.ndim, ...)]
    part[...] = p0
    return p0.copy(), np.array(p0, order="F"), part


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_the_papers(shape, options):
    p0, grads = draw(shape)
    want, averages = adafactor(p0, grads, **options)
    for own in laid_out(p0):
        opt = steps(own, grads, **options)
        np.testing.assert_allclose(own, want, rtol=1e-10, atol=1e-12)
        assert list(opt.state[0]) == ["step", *names_of(shape)]
        for name, average in zip(names_of(shape), averages, strict=True):
            np.testing.assert_allclose(opt.state[0][name], average, rtol=1e-12, strict=True)
    p, states = p0.copy(), {name: np.zeros_like(x) for name, x in zip(names_of(shape), averages, strict=True)}
    eps = dict(zip(("eps1", "eps2"), options.get("eps", ()), strict=False))
    own = {key: value for key, value in options.items() if key != "eps"} | eps
    for t, g in enumerate(grads, 1):
        functional.adafactor(p, np.asarray(g), **states, step=t, **own)
    np.testing.assert_allclose(p, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("piece", [1, 2, 6, 7, 30, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_make_no_difference_beyond_rounding(piece, shape, monkeypatch):
    monkeypatch.setattr(factors, "PIECE", piece)
    p0, grads = draw(shape)
    p = p0.copy()
    steps(p, grads, lr=0.5)
    np.testing.assert_allclose(p, adafactor(p0, grads, lr=0.5)[0], rtol=1e-10, atol=1e-12)


def test_pieces_cover_each_element_once():
    for shape in [(1, 1, 1), (3, 4, 5), (1, 30, 7), (50, 3, 3), (1, 1, 100)]:
        for most in (1, 2, 5, 9, 20, 64, 10_000):
            seen = np.zeros(shape, int)
            for at in factors.pieces(shape, most):
                assert 0 < seen[at].size <= most
                seen[at] += 1
            assert (seen == 1).all()


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_several_shapes_among_groups(backend):
    params, grads = zip(*(draw(shape, 4, k) for k, shape in enumerate(SHAPES)), strict=True)
    own = [p.astype("f4") for p in params]
    opt = fastopt.Adafactor(
        [{"params": own[:5], "lr": 0.1}, {"params": own[5:], "lr": 0.3, "weight_decay": 0.1}], backend=backend
    )
    for each in zip(*grads, strict=True):
        each = [np.asarray(g).astype("f4") for g in each]
        opt.step([each[:5], each[5:]])
    for k, p in enumerate(own):
        options = {"lr": 0.1} if k < 5 else {"lr": 0.3, "weight_decay": 0.1}
        want = adafactor(params[k].astype("f4"), grads[k].astype("f4"), precision=2.0**-23, **options)[0]
        np.testing.assert_allclose(p, want, rtol=1e-4, atol=1e-5)
    assert [int(state["step"]) for state in opt.state] == [4] * len(SHAPES)


def test_a_call_of_the_function_updates_lists():
    params, grads = zip(*(draw(shape, 1, k) for k, shape in enumerate(SHAPES[:7])), strict=True)
    own = [p.copy() for p in params]
    means = [adafactor(p, g)[1] for p, g in zip(params, grads, strict=True)]
    rows, columns = ([np.zeros_like(own[k]) if len(own) > 1 else None for own in means] for k in (0, 1))
    every = [np.zeros_like(p) if p.ndim < 2 else None for p in params]
    functional.adafactor(own, [np.asarray(g[0]) for g in grads], rows, columns, every, step=1, lr=0.1)
    for p, p0, g in zip(own, params, grads, strict=True):
        np.testing.assert_allclose(p, adafactor(p0, g, lr=0.1)[0], rtol=1e-12)
    p, g = params[0].copy(), grads[0][0]
    functional.adafactor([p], [g], [np.zeros((5, 1))], [np.zeros((1, 7))], step=1, lr=0.1)
    assert_same_bits([p], [own[0]])


def test_a_schedule_gives_each_step_its_rate():
    p0, grads = draw((5, 7))
    want, p = p0.copy(), p0.copy()
    steps(p, grads, lr=lambda t: 0.1 / t)
    opt = fastopt.Adafactor(want)
    for t, g in enumerate(grads, 1):
        opt.param_groups[0]["lr"] = 0.1 / t
        opt.step(g)
    assert_same_bits([p], [want])


@pytest.mark.parametrize("others", ["native", pytest.param("numba", marks=pytest.mark.slow)])
def test_backends_and_threads_differ_in_nothing(others):
    """What is between the ends is NumPy's for all."""
    p0, grads = draw((20, 30))
    found = []
    for backend, threads in (("native", 1), (others, 1), (others, 2)):
        p = p0.astype(BF)
        noise = fastopt.GradientNoise(0.3, 0.55, 1)
        options = {"rounding": "stochastic", "seed": 3, "gradient_noise": noise, "ema_decay": 0.9}
        opt = steps(p, grads.astype(BF), backend=backend, threads=threads, **options)
        found.append([p, *(opt.state[0][name] for name in ("row_var", "col_var", "ema"))])
    for other in found[1:]:
        assert_same_bits(other, found[0])


STORED = {
    "bfloat16": (BF, {}, 0.02, 2.0**-7),
    "float16": ("f2", {}, 4e-3, 2.0**-10),
    "what is lost": (BF, {"rounding": "kahan"}, 0.02, 2.0**-7),
    "master": ("f2", {"rounding": "master"}, 2e-3, 2.0**-10),
    "single": ("f4", {"state_dtype": "float32"}, 1e-5, 2.0**-23),
}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(64, 70), (300,)])
@pytest.mark.parametrize("storage", STORED)
def test_storage(storage, shape, order):
    dtype, options, bound, precision = STORED[storage]
    p0, grads = draw(shape, 3)
    p = np.array(p0.astype(dtype), order=order)
    want = adafactor(p0.astype(dtype), grads.astype(dtype), lr=0.1, precision=precision)[0]
    opt = steps(p, [np.array(g.astype(dtype), order=order) for g in grads], lr=0.1, **options)
    np.testing.assert_allclose(p.astype("f8"), want, rtol=bound, atol=bound)
    assert {opt.state[0][name].dtype for name in names_of(shape)} == {np.dtype("f4")}
    if "master" in opt.state[0]:
        assert_same_bits([opt.state[0]["master"].astype(dtype)], [p])


@pytest.mark.parametrize("shape", [(5, 7), (9,)])
@pytest.mark.parametrize("clip", [{"max_norm": 0.5}, {"clip_norm": 0.5}, {"clip_value": 0.3}, {"grad_scale": 0.25}])
def test_gradients_are_scaled_clipped_and_zeroed(shape, clip):
    """Beside an average of before: by itself the size of a gradient does not matter."""
    p0, grads = draw(shape, 2)
    got, want, second = p0.copy(), p0.copy(), grads[1].copy()
    opt, plain = fastopt.Adafactor(got, lr=0.3), fastopt.Adafactor(want, lr=0.3)
    for o in (opt, plain):
        o.step(grads[0])
    norm = np.sqrt((second**2).sum())
    clipped = second * min(1, 0.5 / (norm + 1e-6))
    clipped = second.clip(-0.3, 0.3) if "clip_value" in clip else clipped
    clipped = second * 0.25 if "grad_scale" in clip else clipped
    opt.step(second, zero_grads=True, **clip)
    plain.step(clipped)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert not second.any()


def test_the_average_is_of_the_parameter():
    p0, grads = draw((5, 7), 2)
    p, average = p0.copy(), p0.copy()
    opt = fastopt.Adafactor(p, ema_decay=0.9)
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
    fastopt.Adafactor(p, gradient_noise=noise).step(noisy)
    fastopt.Adafactor(want).step(-there)
    np.testing.assert_allclose(p, want, rtol=1e-12)


def test_what_is_not_finite_is_skipped_or_stays_in_its_tensor():
    p, other = np.ones((3, 4)), np.ones((4, 3))
    opt, bad = fastopt.Adafactor([p, other]), np.ones((3, 4))
    bad[1, 2] = np.inf
    opt.step([bad, np.ones((4, 3))], skip_nonfinite=True)
    assert opt.last_step_skipped and (p == 1).all() and not opt.state[0]["row_var"].any()
    opt.step([bad, np.ones((4, 3))])
    assert np.isnan(p[1, 2]) and np.isfinite(other).all()


@pytest.mark.parametrize("shape", [(5, 7), (9,)])
@pytest.mark.parametrize("eps1", [0.0, 1e-30, None])
def test_gradients_of_zeros_leave_the_decay_alone(shape, eps1):
    p = np.ones(shape, "f4")
    opt = fastopt.Adafactor(p, lr=0.5, weight_decay=0.1, eps=(eps1, 1e-3))
    opt.step(np.zeros(shape, "f4"))
    assert (p == np.float32(0.95)).all()


def test_a_step_that_fails_leaves_nothing_of_its_gradient_behind(monkeypatch):
    p0, (first, second) = draw((5, 7), 2)
    want, p = p0.copy(), p0.copy()
    opt, plain = fastopt.Adafactor(p), fastopt.Adafactor(want)
    for each in (opt, plain):
        each.step(first)
    with monkeypatch.context() as patched:
        patched.setattr(factors.ByRowAndColumn, "average", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            opt.step(first)
    for each in (opt, plain):
        each.step(second, clip_value=0.1)
    assert (p != p0).all()
    np.testing.assert_array_equal(opt.state[0]["row_var"], plain.state[0]["row_var"])


def test_rows_of_zeros_do_not_move():
    p0, grads = draw((5, 7), 3)
    grads[:, 2] = 0
    p = p0.copy()
    steps(p, grads, lr=0.3, eps=(0.0, 1e-3))
    assert (p[2] == p0[2]).all() and (p[[0, 1, 3, 4]] != p0[[0, 1, 3, 4]]).all()


def test_empty_and_absent_tensors():
    p, empty, none = np.ones((3, 4)), np.ones((0, 4)), np.ones(0)
    opt = fastopt.Adafactor([p, empty, none])
    opt.step([None, np.ones((0, 4)), np.ones(0)])
    assert (p == 1).all() and [int(state["step"]) for state in opt.state] == [0, 1, 1]
    assert not any(opt.state[1]["col_var"].ravel())


def test_gradients_elsewhere_plans_and_sums_are_as_ever():
    p0, grads = draw((5, 7))
    want, p = p0.copy(), p0.copy()
    steps(want, grads)
    opt, buffer = fastopt.Adafactor(p), np.empty((5, 7))
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


def test_a_state_that_a_user_writes_is_what_the_next_step_reads():
    p0, grads = draw((5, 7), 2)
    want, p = p0.copy(), p0.copy()
    steps(want, grads)
    opt = steps(p, grads[:1])
    kept = {name: opt.state[0][name].copy() for name in ("row_var", "col_var")}
    opt.state[0]["row_var"][...] = 7
    opt.state[0].update(kept)
    opt.step(grads[1])
    assert_same_bits([p], [want])


@pytest.mark.parametrize("shape", [(5, 7), (9,), (3, 4, 5)])
def test_checkpoints_go_on_bit_for_bit(shape, tmp_path):
    p0, grads = draw(shape, 6)
    want = p0.copy()
    steps(want, grads)
    p = p0.copy()
    flat = fastopt.flatten_state_dict(pickle.loads(pickle.dumps(steps(p, grads[:3]).state_dict())))
    opt = fastopt.Adafactor(p, lr=0.5)
    opt.load_state_dict(fastopt.unflatten_state_dict(flat))
    for g in grads[3:]:
        opt.step(g)
    assert_same_bits([p], [want])
    p = p0.copy()
    steps(p, grads[:3], state_dir=tmp_path / "states")
    with pytest.warns(UserWarning, match="step 3 are resumed"):
        steps(p, grads[3:], state_dir=tmp_path / "states")
    assert_same_bits([p], [want])
    p = p0.copy()
    copied = copy.deepcopy(steps(p, grads[:3]))
    for g in grads[3:]:
        copied.step(g)
    assert_same_bits([copied.param_groups[0]["params"][0]], [want])


def test_what_is_refused(tmp_path):
    p, g = np.ones((3, 4)), np.ones((3, 4))
    row, column = np.zeros((3, 1)), np.zeros((1, 4))
    for message, call in {
        r"^row_var: found None, expected an array: of shape \(3, 4\) states are row_var, col_var": lambda: (
            functional.adafactor(p, g, variance=np.zeros((3, 4)), step=1)
        ),
        "^variance: found ndarray, expected None: of shape": lambda: functional.adafactor(
            p, g, row, column, np.zeros((3, 4)), step=1
        ),
        r"^variance\[1\]: found None, expected an array: of shape \(4,\)": lambda: functional.adafactor(
            [p, np.ones(4)], [g, np.ones(4)], [row, None], [column, None], step=1
        ),
        "^col_var: found dtype float32, expected float64": lambda: functional.adafactor(
            p, g, row, column.astype("f4"), step=1
        ),
        "^beta2_decay: found 0.1, expected a finite number <= 0": lambda: fastopt.Adafactor(p, beta2_decay=0.1),
        "^d: found 0.5, expected a finite number >= 1, infinity": lambda: fastopt.Adafactor(p, d=0.5),
        r"^eps\[0\]: found -1.0, expected a finite number >= 0 or None": lambda: fastopt.Adafactor(p, eps=(-1.0, 0)),
        "^eps: found 1e-30 of type float, expected a pair": lambda: fastopt.Adafactor(p, eps=1e-30),
        "^state_dtype: found '8bit', expected None: the averages of Adafactor": lambda: fastopt.Adafactor(
            p.astype("f4"), state_dtype="8bit"
        ),
        "^state_dtype: found 'bfloat16', expected None": lambda: fastopt.Adafactor(
            [{"params": p.astype("f4"), "state_dtype": "bfloat16"}]
        ),
        "^state_memory: found 100000, expected None: Adafactor measures whole tensors": lambda: fastopt.Adafactor(
            p, state_dir=tmp_path, state_memory=100_000
        ),
        "^grads: found a gradient of rows, expected a dense one: Adafactor measures whole": lambda: fastopt.Adafactor(
            p
        ).step(fastopt.RowSparse(np.array([1]), np.ones((1, 4)))),
        "^optimizer: found 'Adafactor', expected another: it measures whole tensors": lambda: Synchronous(
            fastopt.Adafactor, [p], slices=1
        ),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    with pytest.raises(ValueError, match=r"row_var: found shape \(4, 1\), expected \(3, 1\)$"):
        functional.adafactor(p, g, np.zeros((4, 1)), column, step=1)
    with pytest.raises(ValueError, match="row_var: found memory shared with param"):
        functional.adafactor(p, g, p[:, :1], column, step=1)
    assert (p == 1).all() and not row.any() and not column.any()


def test_the_rule_says_what_it_is():
    rule = MATRIX_RULES["adafactor"]
    assert not rule.elementwise and rule.whole and rule.states_of((3, 4)) == ("row_var", "col_var")
    assert rule.states_of(()) == rule.states_of((3,)) == ("variance",)


# ---- torch ----


@pytest.fixture
def torch():
    return torch_with("Adafactor")


TORCH_OPTIONS = [{}, VARIED, {"lr": 0.3, "foreach": True}]


@pytest.mark.parametrize("shape", [(5, 7), (9,), (), (2, 3, 4, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("options", TORCH_OPTIONS)
def test_same_trajectory_as_torchs(dtype, shape, options, torch):
    params, opts, grads = both(torch, "Adafactor", dtype, shape, **options)
    step_all(torch, params, opts, grads)
    assert set(opts[0].state[params[0]]) == set(opts[1].state[params[1]]) == {"step", *names_of(shape)}
    for name in names_of(shape):
        assert opts[0].state[params[0]][name].shape == opts[1].state[params[1]][name].shape
    # Of bfloat16 torch rounds each operation, here each step is rounded once.
    bound = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.1}[dtype]
    torch.testing.assert_close(*params, rtol=bound, atol=bound)


def test_torchs_own_cases(torch):
    for case in own_table(torch, "Adafactor").optim_inputs_func(device="cpu"):
        params, opts, grads = both(torch, "Adafactor", **case.kwargs)
        for g in grads:
            step_both(params, opts, g)
        torch.testing.assert_close(*params, rtol=1e-5, atol=1e-6)


def test_torchs_own_error_cases(torch):
    check_error_cases(torch, "Adafactor")


def test_torchs_schedulers_and_scaler(torch):
    params, opts, grads = both(torch, "Adafactor", lr=0.1)
    step_scheduled(torch, params, opts, grads, cycle_momentum=False)
    torch.testing.assert_close(*params, rtol=1e-5, atol=1e-6)


def test_arrays_of_torch_in_the_class_for_arrays(torch):
    params, opts, grads = both(torch, "Adafactor")
    own = params[1].detach().clone()
    plain = fastopt.Adafactor([own])
    for g in grads:
        params[0].grad = g
        opts[0].step()
        plain.step([g])
    assert torch.equal(own, params[0].detach())


@pytest.mark.parametrize("shape", [(5, 7), (9,)])
def test_torchs_checkpoint_loads_into_the_class_for_arrays(shape, torch):
    params, opts, grads = both(torch, "Adafactor", shape=shape, eps=(1e-4, 1e-2))
    for g in grads:
        step_both(params, opts, g)
    p = params[1].detach().numpy().copy()
    opt = fastopt.Adafactor(p)
    opt.load_state_dict(opts[1].state_dict())
    assert opt.param_groups[0]["eps"] == (1e-4, 1e-2) and int(opt.state[0]["step"]) == 8
    for name in names_of(shape):
        np.testing.assert_array_equal(opt.state[0][name], opts[1].state[params[1]][name].numpy())


@pytest.mark.parametrize("shape", [(5, 7), (9,), (2, 3, 4)])
def test_torchs_operations_do_the_same(shape, torch, monkeypatch):
    """Those of a device, here on the CPU."""
    from fastopt import torch as optim
    from fastopt.arrays.libraries import matrices

    found = []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(factors, "library_for", matrices.library_of)
        params, (opt, _), grads = both(torch, "Adafactor", "bfloat16", shape, lr=0.3)
        assert isinstance(opt, optim.Adafactor)
        for t, g in enumerate(grads):
            params[0].grad = g
            with torch.inference_mode(t < 2):
                opt.step()
        found.append([params[0], *(opt.state[params[0]][name].clone() for name in names_of(shape))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_steps_in_inference_mode_and_out_of_it(torch):
    for shape in ((5, 7), (9,)):
        params, opts, grads = both(torch, "Adafactor", shape=shape)
        for t, g in enumerate(grads):
            with torch.inference_mode(t < 2):
                params[0].grad = g.clone()
                opts[0].step()
                params[1].grad = g.clone()
            with torch.no_grad():
                opts[1].step()
        torch.testing.assert_close(*params, atol=1e-5, rtol=1e-5)


def test_parameters_in_channels_last_and_other_memory(torch):
    from fastopt import torch as optim

    rng = np.random.default_rng(0)
    p0 = torch.tensor(rng.standard_normal((4, 3, 5, 2)))
    params = [torch.nn.Parameter(p0.clone().to(memory_format=torch.channels_last)), torch.nn.Parameter(p0.clone())]
    opts = [optim.Adafactor([params[0]], lr=0.1), torch.optim.Adafactor([params[1]], lr=0.1)]
    for t in range(4):
        g = torch.tensor(rng.standard_normal(p0.shape))
        if t == 2:
            params[0].data = params[0].data.clone()
        step_both(params, opts, g)
    torch.testing.assert_close(*params, rtol=1e-12, atol=1e-12)


def test_what_is_refused_of_torchs(torch):
    from fastopt import torch as optim

    p = torch.ones(3, 4, requires_grad=True)
    p.grad = torch.ones(3, 4).to_sparse(1)
    with pytest.raises(ValueError, match="found a gradient of rows, expected a dense one: Adafactor measures whole"):
        optim.Adafactor([p]).step()
    with pytest.raises(ValueError, match="state_dtype: found '8bit', expected None"):
        optim.Adafactor([p], state_dtype="8bit")
    with pytest.raises(ValueError, match="optimizer: found 'Adafactor', expected another: it measures whole tensors"):
        Synchronous(optim.Adafactor, [torch.ones(3, 4)], slices=1)
    assert (p == 1).all()
