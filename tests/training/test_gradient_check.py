"""Gradient checks of right gradients, which pass, and of planted faults, which are found."""

import math
from collections import namedtuple

import numpy as np
import pytest

from fastopt.training import check_gradient

RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((50, 6)), RNG.standard_normal((50, 3))
Layer = namedtuple("Layer", "w b")


def network(rectified=False):
    """A loss and its gradient, over parameters that are nested."""

    def forward(p):
        z = X @ p["layers"][0].w + p["layers"][0].b
        h = np.maximum(z, 0) if rectified else np.tanh(z)
        return z, h, h @ p["layers"][1].w + p["layers"][1].b

    def loss(p):
        return ((forward(p)[2] - T) ** 2).mean()

    def gradient(p):
        z, h, y = forward(p)
        delta = 2 * (y - T) / T.size
        back = delta @ p["layers"][1].w.T * ((z > 0) if rectified else 1 - h * h)
        return {"layers": [Layer(X.T @ back, back.sum(0)), Layer(h.T @ delta, delta.sum(0))]}

    return loss, gradient


def parameters(dtype=np.float64):
    rng = np.random.default_rng(1)
    first = Layer(rng.standard_normal((6, 8)).astype(dtype) / 2, rng.standard_normal(8).astype(dtype))
    second = Layer(rng.standard_normal((8, 3)).astype(dtype) / 2, np.zeros(3, dtype))
    return {"layers": [first, second]}


@pytest.mark.parametrize("complex_step", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rectified", [False, True])
def test_right_gradients_pass(rectified, dtype, complex_step):
    loss, gradient = network(rectified)
    params = parameters(dtype)
    before = [layer.w.copy() for layer in params["layers"]]
    for given in (gradient, gradient(params)):
        found = check_gradient(loss, params, given, samples=None, complex_step=complex_step)
        assert found and found.ok and len(found.coordinates) == 6 * 8 + 8 + 8 * 3 + 3, str(found)
    assert all((layer.w == own).all() for layer, own in zip(params["layers"], before, strict=True))


def planted(fault):
    """The network's gradient with a fault in the array `layers.0.w` or `layers.1.b`."""
    loss, right = network()

    def gradient(p):
        (first, second) = right(p)["layers"]
        if fault == "sign":
            first = Layer(-first.w, first.b)
        elif fault == "factor":
            first = Layer(first.w * 1.00001, first.b)
        elif fault == "element":
            first.w[3, 5] *= 1.01
        elif fault == "axis":
            second = Layer(second.w, np.resize(second.w.sum(axis=1), 3))
        elif fault == "order":
            first = Layer(first.w.reshape(8, 6).T.copy(), first.b)
        elif fault == "nan":
            first.w[3, 5] = np.nan
        elif fault == "infinite":
            first.w[3, 5] = np.inf
        elif fault == "zero":
            second = Layer(second.w, 0 * second.b)
        return {"layers": [first, second]}

    return loss, gradient


FAULTS = {
    "sign": "['layers'][0][0]",
    "factor": "['layers'][0][0]",
    "element": "['layers'][0][0][3, 5]",
    "axis": "['layers'][1][1]",
    "order": "['layers'][0][0]",
    "nan": "['layers'][0][0][3, 5]",
    "infinite": "['layers'][0][0][3, 5]",
    "zero": "['layers'][1][1]",
}


@pytest.mark.parametrize("complex_step", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, complex_step):
    loss, gradient = planted(fault)
    found = check_gradient(loss, parameters(), gradient, complex_step=complex_step)
    assert not found
    assert found.worst.place.startswith(f"params{FAULTS[fault]}")
    assert {c.name for c in found.wrong} == {found.worst.name}
    assert "NOT right" in str(found) and found.worst.place in str(found)
    if fault == "element":
        assert [c.index for c in found.wrong] == [(3, 5)]
        assert found.worst.error == pytest.approx(0.01 / 1.01, rel=1e-4)


@pytest.mark.parametrize("told", [False, True])
def test_one_wrong_element_in_a_million(told):
    w = np.random.default_rng(2).standard_normal((1000, 1000))
    scale = np.linspace(1, 2, 1000)

    def loss(p):
        return float(np.einsum("ij,ij,j->", p["w"], p["w"], scale))

    wrong = 2 * w * scale
    wrong[123, 456] *= -1
    coordinates = {"w": [(123, 456), (0, 0)]} if told else None
    found = check_gradient(loss, {"w": w}, {"w": wrong}, samples=20, coordinates=coordinates)
    assert bool(found) != told
    assert len(found.coordinates) == 20 + 2 * told
    assert [c.place for c in found.wrong] == (["params['w'][123, 456]"] if told else [])


SMOOTH = {
    "exp": (lambda p: np.exp(p).sum(), np.exp, [0, 1, 10, -10, 50]),
    "fast": (lambda p: np.sin(1e4 * p).sum(), lambda p: 1e4 * np.cos(1e4 * p), [0, 0.1, 0.2, 1, 3]),
    "pole": (lambda p: (1 / p).sum(), lambda p: -1 / p**2, [1e-3, 1e-2, 1, 100]),
    "edge of the domain": (lambda p: np.log(p).sum(), lambda p: 1 / p, [1e-7, 1e-3, 1, 100]),
    "constant": (lambda p: 1.0, lambda p: 0 * p, [1, 2]),
    "linear": (lambda p: 3 * p.sum(), lambda p: 3 + 0 * p, [1e-9, 1, 1e3]),
    "bent at 0": (lambda p: (np.maximum(p, 0) ** 2).sum(), lambda p: 2 * np.maximum(p, 0), [0, 1, -1]),
    "minimum": (
        lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2,
        lambda p: np.array([2 * (p[0] - 1) - 400 * p[0] * (p[1] - p[0] ** 2), 200 * (p[1] - p[0] ** 2)]),
        [1, 1],
    ),
    "large and small": (lambda p: (p**2).sum(), lambda p: 2 * p, [1e-6, 1e6]),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_steps_for_each_element(name):
    loss, gradient, point = SMOOTH[name]
    p = np.array(point, np.float64)
    found = check_gradient(loss, p, gradient)
    assert found and {c.kind for c in found.coordinates} == {"smooth"}, str(found)
    derivatives = [c for c in found.coordinates if abs(c.gradient) > 1e-3 * np.abs(gradient(p)).max()]
    for c in derivatives:
        assert c.numeric == pytest.approx(c.gradient, rel=1e-6)
    if derivatives:
        assert not check_gradient(loss, p, lambda p: gradient(p) * 1.001)


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.3, 1.0])
def test_any_slope_between_those_of_a_kinks_sides_is_right(slope):
    found = check_gradient(lambda p: np.abs(p).sum() + p[1] ** 2, np.array([0.0, 2.0]), np.array([slope, 5.0]))
    assert found and [c.index for c in found.kinks] == [(0,)]
    assert not check_gradient(lambda p: np.abs(p).sum(), np.zeros(1), np.array([1.1]))


def test_rectified_units_at_their_kink():
    def loss(p):
        return (np.maximum(X[:5] @ p, 0) * np.arange(1, 6)).sum()

    p = np.zeros(6)
    at_zero = X[:5].T @ (np.arange(1, 6) * (X[:5] @ p > 0))
    found = check_gradient(loss, p, at_zero)
    assert found and len(found.kinks) == 6


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("distance", [1e-3, 6e-6, 5e-6, 3.1e-6, 3e-6, 2e-6, 1e-6, 3e-7, 1e-7, 3e-8, 1e-8])
def test_kinks_beside_a_point_are_stepped_over(distance, sign):
    p = np.array([sign * distance, 1.0])
    found = check_gradient(lambda p: np.abs(p).sum(), p, np.sign)
    assert found and not found.kinks, str(found)
    assert not check_gradient(lambda p: np.abs(p).sum(), p, np.array([-sign, 1.0]))


def test_what_float64_cannot_tell_is_unresolved():
    found = check_gradient(lambda p: 1e9 + np.sin(p).sum(), np.array([0.0, 1.0]), np.cos)
    assert not found and len(found.unresolved) == 2 and not found.wrong


def test_a_loss_that_computes_in_float32_does_not_pass():
    for seed in range(5):
        p = np.random.default_rng(seed).standard_normal(4)
        assert not check_gradient(lambda p: float(np.sin(p.astype("f4")).sum()), p, np.cos)


def test_gradients_in_float32_are_allowed_their_rounding():
    loss, gradient = network()
    narrow = {"layers": [Layer(*(x.astype("f4") for x in layer)) for layer in gradient(parameters())["layers"]]}
    found = check_gradient(loss, parameters("f4"), narrow)
    assert found and found.tolerance > 1e-4
    narrow["layers"][0].w[2, 2] *= 1.1
    assert [c.place for c in check_gradient(loss, parameters("f4"), narrow).wrong] == ["params['layers'][0][0][2, 2]"]


def test_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    p = np.array([0.5, 1.5, 2.0], bfloat16)
    assert check_gradient(lambda p: (p**2).sum(), p, 2 * p)
    assert not check_gradient(lambda p: (p**2).sum(), p, -2 * p)


@pytest.mark.parametrize("complex_step", [False, True])
def test_tensors_of_torch(complex_step):
    torch = pytest.importorskip("torch")
    params = [torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(3, requires_grad=True)]
    x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(p):
        y = torch.sin(x.to(p[0].dtype) @ p[0] + p[1])
        return (y * y).sum()

    def gradient(p):
        return torch.autograd.grad(loss(p), p)

    assert check_gradient(loss, params, gradient, complex_step=complex_step)
    assert not check_gradient(loss, params, lambda p: [-g for g in gradient(p)], complex_step=complex_step)


def test_a_single_array_and_samples():
    w = np.random.default_rng(0).standard_normal(100)
    found = check_gradient(lambda p: (p**3).sum(), w, 3 * w**2, samples=10)
    assert found and len(found.coordinates) == 10 and found.evaluations >= 40
    other = check_gradient(lambda p: (p**3).sum(), w, 3 * w**2, samples=10, seed=1)
    assert {c.index for c in found.coordinates} != {c.index for c in other.coordinates}
    again = check_gradient(lambda p: (p**3).sum(), w, 3 * w**2, samples=10)
    assert {c.index for c in found.coordinates} == {c.index for c in again.coordinates}
    for samples in (99, 100, 101, None):
        whole = check_gradient(lambda p: (p**3).sum(), w, 3 * w**2, samples=samples)
        assert len({c.index for c in whole.coordinates}) == (99 if samples == 99 else 100)
    told = check_gradient(lambda p: (p**3).sum(), w, 3 * w**2, samples=0, coordinates={"params": [7, (8,)]})
    assert sorted(c.index for c in told.coordinates) == [(7,), (8,)]
    assert check_gradient(lambda p: sum(x**2 for x in p.tolist()), w, 2 * w, complex_step=True)
    assert check_gradient(lambda p: float(p) ** 2, np.array(3.0), np.array(6.0)).worst.index == ()


def random_loss():
    draws = np.random.default_rng(0)
    return lambda p: (p**2).sum() + draws.standard_normal()


P = np.ones(2)


@pytest.mark.parametrize(
    ("loss", "params", "gradient", "options", "error", "said"),
    [
        (3, P, P, {}, TypeError, "loss: found 3"),
        (np.sum, np.ones(2, int), P, {}, TypeError, "params: found dtype int64, expected float32, float64"),
        (np.sum, [], [], {}, ValueError, "params: found no array"),
        (np.sum, {"w": P}, {"v": P}, {}, ValueError, "gradient: found other arrays than params has; missing: 'w'"),
        (np.sum, {"w": P}, P, {}, ValueError, "gradient: found other arrays"),
        (np.sum, {"w": P}, {"w": np.ones(3)}, {}, ValueError, r"gradient\['w'\]: found shape \(3,\), expected \(2,\)"),
        (np.sum, P, lambda p: None, {}, TypeError, "gradient: found NoneType"),
        (np.sum, P, np.ones(2, int), {}, TypeError, "gradient: found dtype int64"),
        (lambda p: p, P, P, {}, TypeError, "loss: found .*ndarray, expected it to return a number"),
        (lambda p: None, P, P, {}, TypeError, "loss: found None"),
        (lambda p: np.float32(1), P, P, {}, TypeError, "loss: found a result in float32, expected float64"),
        (lambda p: math.nan, P, P, {}, ValueError, "loss: found nan, expected a finite number at params"),
        (random_loss(), P, P, {}, ValueError, "at the same params, expected a function of them alone"),
        (np.sum, P, P, {"samples": -1}, ValueError, "samples: found -1"),
        (np.sum, P, P, {"samples": 0}, ValueError, "samples: found no element to check"),
        (np.sum, P, P, {"seed": 0.5}, TypeError, "seed: found 0.5"),
        (np.sum, P, P, {"tolerance": -1}, ValueError, "tolerance: found -1"),
        (np.sum, P, P, {"coordinates": [1]}, TypeError, r"coordinates: found \[1\]"),
        (np.sum, P, P, {"coordinates": {"w": [1]}}, ValueError, "coordinates: found 'w', expected one of params"),
        (np.sum, P, P, {"coordinates": {"params": 1}}, TypeError, r"coordinates\['params'\]: found 1"),
        (np.sum, P, P, {"coordinates": {"params": [2]}}, ValueError, r"found 2, expected indices of .* shape \(2,\)"),
        (lambda p: np.abs(p).sum(), P, P, {"complex_step": True}, TypeError, "leave complex_step out"),
        (lambda p: p.astype(float).sum(), P, P, {"complex_step": True}, TypeError, "drops imaginary parts"),
        (
            lambda p: (p * np.conj(p)).sum() if np.iscomplexobj(p) else (p * p).sum(),
            P,
            2 * P,
            {"complex_step": True},
            ValueError,
            "expected an analytic function",
        ),
    ],
)
def test_refusals(loss, params, gradient, options, error, said):
    with pytest.raises(error, match=said):
        check_gradient(loss, params, gradient, **options)
