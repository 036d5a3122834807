"""Gradient noise: its distribution, its place in a step, and its bits on every backend."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest

import fastopt
from fastopt import GradientNoise
from tests.oracle.noise import deviates
from tests.support import assert_same_everywhere

BACKENDS = ("native", "numba")
scipy_stats = pytest.importorskip("scipy.stats")
NOISE = GradientNoise(eta=0.3, gamma=0.55, seed=2**40 + 7)


def drawn(n, step=1, seed=0, dtype=np.float32, backend=None, first=0):
    """Standard normal deviates of n elements: a step by minus the noise from zero."""
    p = np.zeros(n, dtype)
    noise = GradientNoise(eta=1.0, gamma=0.0, seed=seed)
    fastopt.functional.sgd(
        p, np.zeros_like(p), step=step, lr=1.0, maximize=False, gradient_noise=noise, first_element=first,
        backend=backend,
    )  # fmt: skip
    return -p


def bits(*arrays):
    return [np.ascontiguousarray(a).tobytes() for a in arrays]


# ---- the distribution ----


def check_distribution(n):
    z = drawn(n, step=3, seed=11).astype(np.float64)
    assert scipy_stats.kstest(z, "norm").pvalue > 1e-3
    for power, mean, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < 4 * np.sqrt(spread / n), power
    for lag in (1, 2, 3, 4, 16, 64, 1024):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4 / np.sqrt(n), lag
        assert abs(((z[lag:] ** 2 - 1) * (z[:-lag] ** 2 - 1)).mean()) < 4 * 2 / np.sqrt(n), lag
    for sigmas in (2, 3, 4, 5):
        expected = n * 2 * scipy_stats.norm.sf(sigmas)
        assert abs((abs(z) > sigmas).sum() - expected) < 4 * np.sqrt(expected) + 3, sigmas


def test_deviates_are_normal():
    check_distribution(10**6)


@pytest.mark.slow
def test_more_deviates_are_normal():
    check_distribution(10**7)


@pytest.mark.slow
def test_tails_are_right_to_five_and_a_half_sigmas():
    n, steps, found = 2**24, 32, 0
    for step in range(1, steps + 1):
        found += int((abs(drawn(n, step, seed=3)) > 5.5).sum())
    expected = n * steps * 2 * scipy_stats.norm.sf(5.5)
    assert abs(found - expected) < 4 * np.sqrt(expected)


def test_deviates_of_steps_and_of_seeds_are_apart():
    n = 10**5
    z = [drawn(n, step, seed) for step, seed in ((1, 0), (2, 0), (2**32 + 1, 0), (1, 1), (1, 2**32))]
    for i in range(len(z)):
        for j in range(i):
            assert abs(np.corrcoef(z[i], z[j])[0, 1]) < 4 / np.sqrt(n)


def test_deviates_are_those_of_exact_arithmetic():
    first, step, seed = 2**33 + 5, 2**32 + 3, 2**63 + 12345
    expected, r = deviates(range(first, first + 4000), step, seed)
    for backend in BACKENDS:
        found = drawn(4000, step, seed, backend=backend, first=first)
        assert (abs(found - expected) <= 5e-7 * r).all()


def test_the_variance_falls_by_the_step():
    p = np.zeros(10**5, np.float64)
    for step in (1, 2, 10, 1000):
        p[:] = 0
        fastopt.functional.sgd(p, np.zeros_like(p), step=step, lr=1.0, gradient_noise=GradientNoise(0.3, 0.55))
        assert p.var() == pytest.approx(0.3 / step**0.55, rel=0.02)
    assert GradientNoise(0.3, 1e38).deviation(2) == 0.0


# ---- its place in a step ----


@pytest.mark.parametrize("name", sorted(fastopt.RULES))
def test_a_step_is_that_of_the_noisy_gradient(name):
    rule = fastopt.RULES[name]
    cls = getattr(fastopt, rule.optimizer)
    rng = np.random.default_rng(5)
    for dtype in (np.float32, np.float64):
        start = rng.standard_normal((7, 101)).astype(dtype)
        one, other = start.copy(), start.copy()
        options = {"lr": 0.1, "weight_decay": 0.1}
        noisy, plain = cls(one, **options, gradient_noise=NOISE), cls(other, **options)
        for step in range(1, 4):
            g = rng.standard_normal(start.shape).astype(dtype)
            z = drawn(start.size, step, NOISE.seed).reshape(start.shape).astype(dtype)
            deviation = dtype(np.sqrt(0.3 / step**0.55))
            noisy.step(g, grad_scale=0.5)
            plain.step(dtype(0.5) * g + deviation * z)
            assert bits(one) == bits(other)


def test_clipping_does_not_count_it():
    p, g = np.zeros(1000, np.float32), np.full(1000, 3, np.float32)
    opt = fastopt.SGD(p, lr=1.0, gradient_noise=GradientNoise(eta=1.0, gamma=0.0))
    opt.step(g, max_norm=1.0)
    assert opt.last_grad_norm == pytest.approx(np.sqrt(9000))
    assert p.var() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_stay_and_are_zeroed_as_ever(backend):
    for dtype in (np.float32, np.float64):
        p, g = np.zeros(1500, dtype), np.ones((1500, 2), dtype)[:, 0]
        opt = fastopt.Adam(p, gradient_noise=NOISE, backend=backend)
        opt.step(g)
        assert (g == 1).all()
        opt.step(g, zero_grads=True)
        assert (g == 0).all()


# ---- its bits ----

STORAGES = [
    ("float32", "float32", {}),
    ("float64", "float64", {}),
    ("float32", "bfloat16", {"state_dtype": "bfloat16"}),
    ("bfloat16", "bfloat16", {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    ("float16", "float32", {"rounding": "kahan"}),
    ("bfloat16", "bfloat16", {"rounding": "master", "ema_decay": 0.9}),
    ("float32", "float32", {"state_dtype": "8bit"}),
]


def stepped(dtypes, options, backend, threads=1, strided=False, first=3):
    """An Adam of two parameters after some steps: these, and the first one's states."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    param, grad = (np.dtype(getattr(ml_dtypes, kind, kind)) for kind in dtypes)
    rng = np.random.default_rng(3)
    shapes = ((90, 70), (33,))
    params = [rng.standard_normal((*shape, 2)).astype(param)[..., 0] for shape in shapes]
    params = params if strided else [p.copy() for p in params]
    grads = [rng.standard_normal(shape).astype(grad) for shape in shapes]
    options = {"gradient_noise": NOISE, "backend": backend, "threads": threads, "first_element": first, **options}
    opt = fastopt.Adam(params, lr=0.1, **options)
    for _ in range(3):
        opt.step(grads, grad_scale=0.25)
    return [*params, *(opt.state_values(0, name) for name in ("exp_avg", "exp_avg_sq"))]


@pytest.mark.parametrize(("param", "grad", "options"), STORAGES, ids=str)
def test_bits_are_the_same_everywhere(param, grad, options, set_isa):
    ways = [{}] if options.get("state_dtype") == "8bit" else [{}, {"strided": True}]
    assert_same_everywhere(partial(stepped, (param, grad), options), set_isa, ways)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deviates_have_the_same_bits_everywhere(dtype, set_isa):
    from fastopt.backends import native

    starts = (0, 1, 0), (2**32 - 50001, 2**33, 2**64 - 1), (2**34 - 50001, 2**33, 3), (2**61 + 1, 2**62, 17)
    for first, step, seed in starts:
        expected = drawn(200001, step, seed, dtype, "numba", first)
        for level in native.isa_supported():
            set_isa(level)
            assert bits(drawn(200001, step, seed, dtype, "native", first)) == bits(expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_have_the_noise_of_the_whole(backend):
    def train(part, first):
        p = np.linspace(-1, 1, 1001, dtype=np.float32)[part].copy()
        g = np.linspace(1, 2, 1001, dtype=np.float32)[part].copy()
        opt = fastopt.Momentum(p, lr=0.1, gradient_noise=NOISE, first_element=first, backend=backend)
        for _ in range(3):
            opt.step(g)
        return p

    shards = [train(slice(a, b), 7 + a) for a, b in ((0, 333), (333, 900), (900, 1001))]
    assert bits(np.concatenate(shards)) == bits(train(slice(None), 7))


# ---- rows ----


@pytest.mark.parametrize("width", [1, 3, 16, 600])
@pytest.mark.parametrize("cls", [fastopt.Adagrad, fastopt.Adam, fastopt.RowwiseAdagrad])
def test_rows_have_the_noise_of_a_dense_gradient(cls, width):
    """The rows named are as after a step with the noise added to their sum, and the others as before."""
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(1)
        start = rng.standard_normal((40, width)).astype(dtype)
        indices = np.array([3, 17, 3, 39, 0, 17, 3], np.int64)
        values = rng.standard_normal((len(indices), width)).astype(dtype)
        rows = np.unique(indices)
        summed = np.zeros_like(start)
        for i, value in zip(indices, values, strict=True):
            summed[i] += value
        params = [start.copy() for _ in (*BACKENDS, "without")]
        options = {"gradient_noise": NOISE, "first_element": 5}
        noisy = [cls(p, lr=0.1, backend=b, **options) for p, b in zip(params, BACKENDS, strict=False)]
        plain = cls(params[-1], lr=0.1)
        for step in (1, 2):
            for opt in noisy:
                opt.step(fastopt.RowSparse(indices, values), grad_scale=0.5)
            z = drawn(start.size, step, NOISE.seed, first=5).reshape(start.shape).astype(dtype)
            gradient = dtype(0.5) * summed + dtype(np.sqrt(0.3 / step**0.55)) * z
            plain.step(fastopt.RowSparse(rows, gradient[rows]))
        assert bits(params[0]) == bits(params[1]) == bits(params[2])


@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"rounding": "kahan"}, {"ema_decay": 0.5}], ids=str)
@pytest.mark.parametrize("cls", [fastopt.Adam, fastopt.RowwiseAdagrad])
def test_rows_in_other_formats_have_the_same_bits(cls, options):
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    found = []
    for backend in BACKENDS:
        rng = np.random.default_rng(1)
        p = rng.standard_normal((40, 70)).astype(bfloat16)
        opt = cls(p, lr=0.1, gradient_noise=NOISE, backend=backend, **options)
        values = rng.standard_normal((7, 70)).astype(bfloat16)
        for _ in range(2):
            opt.step(fastopt.RowSparse([3, 17, 3, 39, 0, 17, 3], values))
        found.append(p)
    assert bits(found[0]) == bits(found[1])


@pytest.mark.parametrize("duplicates", ["sequential", "hogwild"])
def test_several_steps_of_a_row_are_refused(duplicates):
    p, before = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    opt = fastopt.SGD(p, lr=1.0, gradient_noise=NOISE)
    grad = fastopt.RowSparse([1, 1], np.ones((2, 2), np.float32), duplicates=duplicates)
    with pytest.raises(ValueError, match=f"grads: found duplicates '{duplicates}', expected 'sum'"):
        opt.step(grad)
    assert bits(p) == bits(before)


# ---- the argument ----


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"eta": -1.0}, ValueError, "eta: found -1.0, expected a finite number >= 0 and <= 1e"),
        ({"eta": float("nan")}, ValueError, "eta: found nan"),
        ({"eta": "0.3"}, TypeError, "eta: found '0.3'"),
        ({"gamma": float("inf")}, ValueError, "gamma: found inf"),
        ({"gamma": None}, TypeError, "gamma: found None"),
        ({"seed": -1}, ValueError, "seed: found -1, expected a whole number >= 0, below 2"),
        ({"seed": 1.5}, TypeError, "seed: found 1.5"),
    ],
    ids=str,
)
def test_what_is_no_noise_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        GradientNoise(**arguments)


def test_another_object_is_none():
    p = np.zeros(3, np.float32)
    with pytest.raises(
        TypeError, match=r"gradient_noise: found 0\.3 of type float, expected a fastopt\.GradientNoise or None"
    ):
        fastopt.SGD(p, lr=1.0, gradient_noise=0.3)
    with pytest.raises(TypeError, match="gradient_noise: found True"):
        fastopt.functional.sgd(p, p.copy(), step=1, lr=1.0, gradient_noise=True)
    with pytest.raises(TypeError, match="first_element: found True"):
        fastopt.functional.sgd(p, p.copy(), step=1, lr=1.0, first_element=True)
    with pytest.raises(TypeError, match="found 'gradient_noise' in a group"):
        fastopt.SGD([{"params": [p], "gradient_noise": NOISE}], lr=1.0)


def test_a_function_tells_noises_apart():
    found = []
    for noise in (None, NOISE, GradientNoise(seed=1), None, NOISE):
        p = np.zeros(5, np.float32)
        fastopt.functional.sgd(p, np.zeros_like(p), step=1, lr=1.0, gradient_noise=noise)
        found.append(bits(p))
    assert found[0] == found[3] and found[1] == found[4] and len(set(map(str, found))) == 3


def test_lists_of_arrays_are_numbered_through():
    p = [np.zeros(5, np.float32), np.zeros(3, np.float32)]
    whole = np.zeros(8, np.float32)
    for arrays in (p, whole):
        grads = [np.zeros_like(a) for a in p] if arrays is p else np.zeros_like(whole)
        fastopt.functional.sgd(arrays, grads, step=1, lr=1.0, gradient_noise=NOISE)
    assert bits(np.concatenate(p)) == bits(whole)


def test_a_training_goes_on_with_its_noise():
    def begun():
        p = np.zeros(50, np.float32)
        return p, fastopt.Adam(p, gradient_noise=NOISE)

    g = np.ones(50, np.float32)
    p, opt = begun()
    for _ in range(4):
        opt.step(g)
    half, first = begun()
    for _ in range(2):
        first.step(g)
    for resumed in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        for _ in range(2):
            resumed.step(g)
        assert bits(resumed.param_groups[0]["params"][0]) == bits(p)
    other, last = begun()
    other[:] = half
    last.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(2):
        last.step(g)
    assert bits(other) == bits(p)
    assert eval(repr(NOISE)) == NOISE


def test_torchs_classes_take_it():
    torch = pytest.importorskip("torch")
    from fastopt import torch as optim

    for name in ("SGD", "Adam"):  # torch's SGD counts no steps, but noise needs them
        p, g = np.ones(50, np.float32), np.full(50, 0.5, np.float32)
        tensor = torch.ones(50, requires_grad=True)
        tensor.grad = torch.full((50,), 0.5)
        ours = getattr(optim, name)([tensor], lr=0.1, gradient_noise=NOISE)
        plain = getattr(fastopt, name)(p, lr=0.1, gradient_noise=NOISE)
        for _ in range(3):
            ours.step()
            plain.step(g)
        assert bits(tensor.detach().numpy()) == bits(p)


# ---- what is saved ----

BF = pytest.importorskip("ml_dtypes").bfloat16
DRAWN = {
    "noise": ({"gradient_noise": NOISE}, {"gradient_noise": (0.3, 0.55, 2**40 + 7)}),
    "rounding": ({"rounding": "stochastic", "seed": 7}, {"stochastic_rounding": 7}),
}


def _by_numpy(**options):
    return fastopt.Adam([np.ones(3, BF)], **options), np.ones(3, BF)


def _by_torch(**options):
    torch = pytest.importorskip("torch")
    from fastopt import torch as optim

    p = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.ones(3, dtype=torch.bfloat16)
    return optim.Adam([p], **options), None


@pytest.mark.parametrize("make", [_by_numpy, _by_torch])
@pytest.mark.parametrize("kind", DRAWN)
def test_state_dicts_tell_of_what_is_drawn(kind, make):
    options, told = DRAWN[kind]
    opt, g = make(**options)
    opt.step() if g is None else opt.step([g])
    saved = opt.state_dict()
    assert told.items() <= saved["param_groups"][0].items()
    flat = fastopt.unflatten_state_dict(fastopt.flatten_state_dict(saved)) if g is not None else copy.deepcopy(saved)
    (name,) = told
    make(**options)[0].load_state_dict(flat)
    plain = make()[0].state_dict()
    assert name not in plain["param_groups"][0]
    opt.load_state_dict(plain)  # as one of before, and torch's own, it tells of none
    others = {"noise": {"gradient_noise": GradientNoise(seed=8)}, "rounding": {"rounding": "stochastic", "seed": 8}}
    for given in ({}, others[kind]):
        other = make(**given)[0]
        before = repr(other.state_dict())
        remedy = {"noise": r"gradient_noise=GradientNoise\(0.3", "rounding": r"rounding='stochastic', seed=7"}[kind]
        with pytest.raises(ValueError, match=rf"\['{name}'\]: found .*, expected .* construct it with {remedy}"):
            other.load_state_dict(saved)
        assert repr(other.state_dict()) == before
        taken = copy.deepcopy(saved)
        del taken["param_groups"][0][name]
        other.load_state_dict(taken)
    if kind == "rounding":
        for exact in ("kahan", "master"):
            make(rounding=exact)[0].load_state_dict(saved)
    for wrong in ("x", [1], {}, -1):
        saved["param_groups"][0][name] = wrong
        with pytest.raises((TypeError, ValueError), match=rf"{name}.*found"):
            make(**options)[0].load_state_dict(saved)


def test_torchs_own_class_takes_such_a_state_dict():
    torch = pytest.importorskip("torch")
    ours, _ = _by_torch(gradient_noise=NOISE, rounding="stochastic", seed=7)
    ours.step()
    p = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    theirs = torch.optim.Adam([p])
    theirs.load_state_dict(ours.state_dict())
    p.grad = torch.ones(3, dtype=torch.bfloat16)
    theirs.step()
    _by_torch(gradient_noise=NOISE, rounding="stochastic", seed=7)[0].load_state_dict(theirs.state_dict())


def test_files_of_states_tell_of_what_is_drawn(tmp_path):
    for kind, (options, told) in DRAWN.items():
        with fastopt.Adam([np.ones(3, BF)], state_dir=tmp_path / kind, **options):
            pass
        with fastopt.Adam([np.ones(3, BF)], state_dir=tmp_path / kind, **options):
            pass
        with pytest.raises(ValueError, match=rf"^state_dir: found .* with drawn.{next(iter(told))} .*, expected None"):
            fastopt.Adam([np.ones(3, BF)], state_dir=tmp_path / kind)
