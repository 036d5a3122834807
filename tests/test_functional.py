"""The functional forms: signatures, what they take, and what bad input gets."""

import array
import inspect
import pickle
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import functional
from fastopt.binding import update, where
from fastopt.binding.update import Known
from fastopt.rules import RULES

from .support import VARIED, assert_same_bits, default_hyper, make_states


def call(**changes):
    """Calls adam with changes to a good call; returns the arrays."""
    arrays = {name: np.ones(6, "f4") for name in ("param", "grad", "exp_avg", "exp_avg_sq")}
    arguments = {"step": 1, **arrays, **changes}
    functional.adam(**arguments)
    return [arguments[name] for name in arrays]


def test_signature_is_the_contract():
    text = str(inspect.signature(functional.adam))
    assert text == (
        "(param, grad, exp_avg, exp_avg_sq, *, step, lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, eps_root=0.0, "
        "bias_correction=True, eps_hat=False, weight_decay=0.0, decoupled_weight_decay=0.0, maximize=False, "
        "grad_scale=1.0, gradient_noise=None, first_element=0, backend=None, threads=None)"
    )
    for name, rule in RULES.items():
        parameters = list(inspect.signature(getattr(functional, name)).parameters)
        assert tuple(parameters[: 2 + len(rule.states)]) == ("param", "grad", *rule.state_names)
        documentation = " ".join(getattr(functional, name).__doc__.split())
        said = (*rule.formula.split("; "), *rule.notes, f"Source: {rule.source}.")
        assert all(" ".join(text.split()) in documentation for text in said)
    with pytest.raises(AttributeError, match="the rules are sgd"):
        functional.no_rule  # noqa: B018


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("name", RULES)
def test_empty_and_zero_dimensional_arrays(name, backend):
    hyper = {**default_hyper(name), **VARIED[name]}
    for shape in ((0,), (3, 0, 2)):
        param = np.zeros(shape, "f4")
        states = make_states(name, hyper, param)
        getattr(functional, name)(param, np.zeros(shape, "f4"), *states, step=1, **hyper, backend=backend)
    scalar, one = np.array(0.5), np.array([0.5])
    for param in (scalar, one):
        states = make_states(name, hyper, param)
        getattr(functional, name)(param, np.full_like(param, 2.0), *states, step=1, **hyper, backend=backend)
    assert scalar == one[0] != 0.5
    getattr(functional, name)([], [], *[[] for _ in RULES[name].states], step=1, **hyper, backend=backend)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize(
    "name", [name for name, rule in RULES.items() if rule.decoupled is not None and not rule.by_tensor]
)
def test_weight_decay_of_a_rule_that_is_decoupled_is_that(name, backend):
    param = np.ones(3)
    states = make_states(name, {}, param)
    step = getattr(functional, name)
    step(param, np.zeros(3), *states, step=1, lr=0.1, weight_decay=0.5, backend=backend)
    np.testing.assert_array_equal(param, 1 - 0.1 * 0.5)
    assert not any(state.any() for state in states)
    step(param, np.zeros(3), *states, step=2, backend=backend)
    default = RULES[name].defaults()
    np.testing.assert_array_equal(param, (1 - 0.1 * 0.5) * (1 - default["lr"] * default["weight_decay"]))
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        step(param, np.zeros(3), *states, step=2, decoupled_weight_decay=0.5)
    assert "decoupled_weight_decay" not in step.__doc__ and "L2" not in step.__doc__


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_hyper_parameters_are_numbers_of_the_type_of_computing(backend):
    def step(name, dtype, **hyper):
        param = np.ones(3, dtype)
        states = make_states(name, hyper, param)
        getattr(functional, name)(param, np.zeros(3, dtype), *states, step=1, **hyper, backend=backend)
        assert np.isfinite(param).all()

    for name, key, value in [
        ("sgd", "lr", 1e39),
        ("sgd", "weight_decay", 1e39),
        ("ftrl", "l1", 1e39),
        ("momentum", "dampening", -1e39),
        ("adam", "eps", 1e300),
    ]:
        with pytest.raises(ValueError, match=rf"{key}: found .*, expected a number that float32 holds.*3.4028235e\+38"):
            step(name, "f4", **{key: value})
        with pytest.raises(ValueError, match=f"{key}: found"):
            step(name, "f2", **{key: value})
        step(name, "f8", **{key: value})
    with pytest.raises(ValueError, match=r"lr: found 3e\+38, which with the other hyper-parameters makes rate 9.48"):
        step("adam", "f4", lr=3e38, beta1=0.99)
    with pytest.raises(ValueError, match=r"lr: found 1e-40, .* makes inverse_lr 1e\+40 at step 1, .* float32 holds"):
        step("ftrl", "f4", lr=1e-40)
    with pytest.raises(ValueError, match=r"lr: found .* float64"):
        step("adam", "f8", lr=1e308, beta1=0.999999)
    step("sgd", "f4", lr=3e38)
    step("nadam", "f4", momentum_decay=np.inf)


def test_kinds_of_arrays(tmp_path):
    want = call()[0]
    file = np.memmap(tmp_path / "p", "f4", "w+", shape=6)
    file[:] = 1
    call(param=file)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "p", "f4"), want)
    buffer = array.array("f", [1.0] * 6)
    call(param=buffer, grad=memoryview(array.array("f", [1.0] * 6)))
    np.testing.assert_array_equal(buffer, want)

    class Exchanged:
        """A CPU array that speaks DLPack and nothing else."""

        def __init__(self, data, device=(1, 0)):
            self.data, self.device = data, device

        def __dlpack__(self, **options):
            return self.data.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.device

    data = np.ones(6, "f4")
    call(param=Exchanged(data), grad=Exchanged(np.ones(6, "f4")))
    np.testing.assert_array_equal(data, want)
    if not has_cuda():
        with pytest.raises(
            fastopt.BackendUnavailable, match=r"param: .* on a CUDA device; numba-cuda: (no|numba-cuda is not) "
        ):
            call(param=Exchanged(data, (2, 0)))
    optimizer = fastopt.SGD([Exchanged(data)], lr=0.0)
    optimizer.step([np.ones(6, "f4")])


def has_cuda():
    return fastopt.available_backends()["numba-cuda"] == "available"


class OnGpu:
    __cuda_array_interface__ = ()


R = np.ones(6, "f4")
R.flags.writeable = False
SHARED = np.ones(12, "f4")
BAD = {
    "shape": ({"grad": np.ones(5, "f4")}, ValueError, r"grad: found shape \(5,\), expected \(6,\) as param has"),
    "dimensions": ({"exp_avg": np.ones((6, 1), "f4")}, ValueError, r"exp_avg: found shape \(6, 1\)"),
    "dtype": (
        {"exp_avg_sq": np.ones(6)},
        TypeError,
        "exp_avg_sq: found dtype float64, expected float32, bfloat16 or float16 beside",
    ),
    "integers": ({"param": np.ones(6, "i4")}, TypeError, "param: found dtype int32, expected float32, float64"),
    "float8": ({"param": np.ones(6, ml_dtypes.float8_e5m2)}, TypeError, "param: found dtype float8_e5m2"),
    "bytes": ({"exp_avg": np.ones(6, "u1")}, ValueError, r"exp_avg: found shape \(6,\), expected \(260,\), the bytes"),
    "float64 beside bfloat16": (
        {"param": np.ones(6), "grad": np.ones(6, ml_dtypes.bfloat16)},
        TypeError,
        "grad: found dtype",
    ),
    "byte order": ({"param": np.ones(6, ">f4")}, TypeError, "param: .*native byte order"),
    "read-only param": ({"param": R}, ValueError, "param: found a read-only array"),
    "read-only state": ({"exp_avg": R}, ValueError, "exp_avg: found a read-only array"),
    "read-only bytes": ({"param": memoryview(b"123456781234567812345678").cast("f")}, ValueError, "param.*read-only"),
    "grad is param": ({"param": SHARED[:6], "grad": SHARED[:6]}, ValueError, "grad: found memory shared with param"),
    "grad overlaps": ({"param": SHARED[:6], "grad": SHARED[5:11]}, ValueError, "grad: found memory shared with param"),
    "state overlaps": ({"exp_avg": SHARED[:6], "exp_avg_sq": SHARED[4:10]}, ValueError, "exp_avg_sq: .* with exp_avg"),
    "itself": ({"param": np.broadcast_to(np.ones(1, "f4"), 6)}, ValueError, "param: found a (read-only|view)"),
    "no array": ({"param": 1.0}, TypeError, "param: found float, expected an array"),
    "text": ({"param": "ones"}, TypeError, "param: found str, expected an array"),
    "none": ({"grad": None}, TypeError, "grad: found NoneType, expected an array"),
    "list among arrays": ({"grad": [np.ones(6, "f4")]}, TypeError, "grad: found a list, expected one array"),
    "array among lists": ({"param": [np.ones(6, "f4")]}, TypeError, "grad: found ndarray, expected a list"),
    "gpu": ({"param": OnGpu()}, (fastopt.BackendUnavailable, TypeError), "param: found a tests array"),
    "step 0": ({"step": 0}, ValueError, "step: found 0, expected an integer >= 1"),
    "step 1.5": ({"step": 1.5}, TypeError, "step: found 1.5 of type float"),
    "negative lr": ({"lr": -0.1}, ValueError, "lr: found -0.1, expected a finite number >= 0"),
    "nan": ({"eps": float("nan")}, ValueError, "eps: found nan"),
    "infinite": ({"weight_decay": float("inf")}, ValueError, "weight_decay: found inf"),
    "beta 1": ({"beta2": 1.0}, ValueError, r"beta2: found 1.0, expected a number in \[0, 1\)"),
    "text for a number": ({"lr": "0.1"}, TypeError, "lr: found '0.1' of type str"),
    "callable for a number": ({"lr": lambda t: 0.1}, TypeError, "lr: found .* of type function"),
    "flag": ({"bias_correction": 2}, ValueError, "bias_correction: found 2, expected True or False"),
    "scale": ({"grad_scale": float("nan")}, ValueError, "grad_scale: found nan"),
    "scale's type": ({"grad_scale": "1"}, TypeError, "grad_scale: found '1'"),
    "backend": (
        {"backend": "gpu"},
        ValueError,
        "backend: found 'gpu', expected one of auto, native, numba, numba-cuda",
    ),
    "missing backend": ({"backend": "numba-cuda"}, (fastopt.BackendUnavailable, ValueError), "numba-cuda"),
    "threads": ({"threads": 0}, ValueError, "threads: found 0, expected an integer >= 1"),
    "unknown": ({"learning_rate": 0.1}, TypeError, "learning_rate"),
}


@pytest.mark.parametrize("after_a_good_call", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_named_error_and_changes_nothing(case, after_a_good_call):
    changes, error, message = BAD[case]
    arrays = {name: np.full(6, 0.5, "f4") for name in ("param", "grad", "exp_avg", "exp_avg_sq")}
    if after_a_good_call:
        functional.adam(**arrays, step=1)
    arguments = {"step": 2, **arrays, **changes}
    everything = [a for a in (*arrays.values(), *changes.values()) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in everything]
    for backend in ({}, {"backend": "numba"}):
        with pytest.raises(error, match=message):
            functional.adam(**{**backend, **arguments})
        assert [a.tobytes() for a in everything] == before


def test_lists():
    params = [np.ones(3, "f4"), np.ones(4, "f4")]
    with pytest.raises(ValueError, match="grad: found 1 arrays, expected 2 as param has"):
        functional.sgd(params, params[:1], step=1)
    with pytest.raises(ValueError, match=r"grad\[1\]: found shape \(5,\)"):
        functional.sgd(params, [np.ones(3, "f4"), np.ones(5, "f4")], step=1)
    with pytest.raises(ValueError, match=r"param\[1\]: found memory shared with param\[0\]"):
        functional.sgd([params[0], params[0]], [np.ones(3, "f4")] * 2, step=1)
    functional.sgd(params, [np.ones(3, "f4"), np.ones(4, "f4")], step=1, lr=1.0)
    assert not np.concatenate(params).any()
    one = np.ones(4, "f4")  # one gradient may serve several parameters
    functional.sgd([a := np.ones(4, "f4"), b := np.ones(4, "f4")], [one, one], step=1, lr=1.0)
    assert not a.any()
    assert not b.any()
    interleaved = np.arange(8, dtype="f4")
    functional.sgd(interleaved[::2], interleaved[1::2], step=1, lr=1.0)
    np.testing.assert_array_equal(interleaved, [-1, 1, -1, 3, -1, 5, -1, 7])


def test_an_array_made_read_only_between_calls_is_refused():
    p, g, m, v = (np.ones(5, "f4") for _ in range(4))
    functional.adam(p, g, m, v, step=1)
    v.flags.writeable = False
    before = p.copy()
    with pytest.raises(ValueError, match="exp_avg_sq: found a read-only"):
        functional.adam(p, g, m, v, step=2)
    np.testing.assert_array_equal(p, before)


def test_identities_of_dead_arrays_are_not_remembered():
    for n in range(1, 200):
        p, g = np.ones(n, "f4"), np.ones(n, "f4")
        functional.sgd(p, g, step=1, lr=1.0)
        assert not p.any()
        refs = weakref.ref(p), weakref.ref(g)
        del p, g
        assert [ref() for ref in refs] == [None, None]


def flat_views(flat, n, count):
    """Views of one array, made anew."""
    return [flat[i * n : (i + 1) * n].reshape(10, -1) for i in range(count)]


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("name", RULES)
def test_fresh_views_are_bound_once_and_give_the_same_bits(name, backend, lists, monkeypatch):
    hyper, n = {**default_hyper(name), **VARIED[name]}, 1000
    rng = np.random.default_rng(0)

    def call(arrays, t):
        arguments = [[array, other] for array, other in zip(*arrays, strict=True)] if lists else arrays[0]
        getattr(functional, name)(*arguments, step=t, **hyper, backend=backend)

    flats = [rng.standard_normal(2 * n).astype("f4") for _ in range(2)]
    shapes = [state.shape for state in make_states(name, hyper, np.empty((10, n // 10)))]
    states = [[np.zeros(shape, "f4") for shape in shapes] for _ in flats]
    kept = [
        [*map(np.copy, flat_views(flat, n, 2)), *map(np.copy, own)] for flat, own in zip(flats, states, strict=True)
    ]
    made = []
    monkeypatch.setattr(
        functional, "Update", lambda *arguments, real=functional.Update: made.append(0) or real(*arguments)
    )
    for t in range(1, 8):
        call([[*flat_views(flat, n, 2), *(s[...] for s in own)] for flat, own in zip(flats, states, strict=True)], t)
    for t in range(1, 8):
        call(kept, t)
    assert len(made) == 1
    for flat, own, want in zip(flats[: 1 + lists], states, kept, strict=False):
        assert_same_bits([*flat_views(flat, n, 2), *own], want)


def test_fresh_views_of_every_storage_give_the_same_bits():
    rng = np.random.default_rng(0)
    for param, grad, state in [("f8", "f8", "f8"), (ml_dtypes.bfloat16, "f4", "f2"), ("f4", ml_dtypes.bfloat16, "u1")]:
        n = 4096
        bytes_ = 16 * 260 if state == "u1" else n
        arrays = [rng.standard_normal(n).astype(param), rng.standard_normal(n).astype(grad)]
        arrays += [np.zeros(bytes_, state) for _ in range(2)]
        kept = [a.copy() for a in arrays]
        for t in range(1, 5):
            functional.adam(*(a[:] for a in arrays), step=t)
            functional.adam(*kept, step=t)
        assert_same_bits(arrays, kept)
    velocity = np.zeros((3, 50))
    kept = np.ones(50), np.ones(50), velocity.copy()
    p = np.ones(50)
    for t in range(1, 5):
        functional.aggmo(p[:], np.ones(50), velocity[:], step=t)
        functional.aggmo(*kept, step=t)
    assert_same_bits([p, velocity], [kept[0], kept[2]])


def test_fresh_views_are_checked_as_kept_arrays_are():
    def views(flat):
        return flat_views(flat, 100, 4)

    flat = np.ones(800, "f4")
    for _ in range(4):
        functional.adam(*views(flat), step=1)
    before = flat.copy()
    frozen = flat[:400]
    frozen.flags.writeable = False
    p, g, m, v = views(flat)
    for bad, error, message in [
        ([p, g, m, frozen[300:400].reshape(10, 10)], ValueError, "exp_avg_sq: found a read-only"),
        ([frozen[:100].reshape(10, 10), g, m, v], ValueError, "param: found a read-only"),
        ([p, g, m, flat[250:350].reshape(10, 10)], ValueError, "exp_avg_sq: found memory shared with exp_avg"),
        ([p, flat[50:150].reshape(10, 10), m, v], ValueError, "grad: found memory shared with param"),
        ([p, g, m, m[:]], ValueError, "exp_avg_sq: found memory shared with exp_avg"),
        ([p, g, m, v.T[:, :9]], ValueError, "exp_avg_sq: found shape"),
        ([p, g, m, np.ones((10, 10))], TypeError, "exp_avg_sq: found dtype float64"),
        ([p, g, m, np.ones((5, 20), "f4")], ValueError, "exp_avg_sq: found shape"),
    ]:
        for _ in range(2):
            with pytest.raises(error, match=message):
                functional.adam(*bad, step=2)
    for hyper, error in [({"lr": -1.0}, ValueError), ({"step": 0}, ValueError), ({"threads": 0}, ValueError)]:
        with pytest.raises(error):
            functional.adam(*views(flat), **{"step": 2, **hyper})
    np.testing.assert_array_equal(flat, before)
    functional.adam(p, frozen[100:200].reshape(10, 10), m, v, step=2)  # a gradient may be read-only
    assert (p != before[:100].reshape(10, 10)).all()
    one = np.ones(100, "f4")  # and may serve several parameters
    for _ in range(4):
        a, b = np.ones(100, "f4"), np.ones(100, "f4")
        functional.sgd([a, b], [one, one], step=1, lr=1.0)
        assert not a.any()
        assert not b.any()


def test_arrays_that_interleave_or_are_not_contiguous_are_bound_once_too(monkeypatch):
    made = []
    monkeypatch.setattr(
        functional, "Update", lambda *arguments, real=functional.Update: made.append(0) or real(*arguments)
    )
    functional._known.clear()
    memory = np.random.default_rng(0).standard_normal((3, 4, 10, 8)).astype("f4")
    cuts = {
        "interleaved": (3, [[model[i // 2, :, i % 2 :: 2] for i in range(4)] for model in memory]),
        "backwards": (1, [[x[::-1] for x in model] for model in memory]),
        "transposed": (1, [[x.T for x in model] for model in memory]),
        "with gaps": (1, [[x[1:, 2:5] for x in model] for model in memory]),
    }
    for times, models in cuts.values():
        memory[:, 3] = np.abs(memory[:, 3])
        memory[:, 1, :, 1] = np.abs(memory[:, 1, :, 1])
        made.clear()
        for t in range(1, 5):
            for model in models:
                own = [x.copy() for x in model]
                functional.adam(*model, step=t)
                count = len(made)
                functional.adam(*(x[:] for x in own), step=t, backend="numba")
                del made[count:]
                np.testing.assert_array_equal(model, own)
        assert len(made) == times


@pytest.mark.parametrize("native", [True, False])
def test_arrays_are_asked_where_they_are(native, monkeypatch):
    if not native:
        monkeypatch.setattr(update, "look", where._ask)
    root = np.ones((4, 100), "f4")
    arrays = [x[:50] for x in root]
    for move in (lambda x: x, lambda x: x.copy(), lambda x: x[::-1].copy()[::-1], lambda x: x.astype(">f4")):
        moved = [move(x) for x in arrays]
        before = moved[0].copy()
        if moved[0].dtype.isnative:
            functional.adam(*moved, step=1)
            assert (moved[0] != before).all()
        else:
            with pytest.raises(TypeError, match="native byte order"):
                functional.adam(*moved, step=1)
            assert (moved[0] == before).all()
    arrays[0].flags.writeable = False
    with pytest.raises(ValueError, match="param: found a read-only"):
        functional.adam(*arrays, step=1)
    arrays[0] = np.ma.array(root[0, :50])
    with pytest.raises(TypeError, match="masked"):
        functional.adam(*arrays, step=1)


def test_arrays_are_read_as_they_answer():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((6, 7, 8))
    arrays = [base.astype(kind) for kind in ("f4", "f8", "f2", "u1", ">f4", "i8", ml_dtypes.bfloat16)]
    arrays += [base[::2], base[:, ::-1], base.T, base[:0], base[0, 0, 0:1].reshape(()), base[1:2, :, 3]]
    unpickled = pickle.loads(pickle.dumps(arrays[0]))  # whose dtype is an object of its own
    read, asked = where.look((unpickled, None)), where._ask((unpickled, None))
    assert read[0] == where.look((arrays[0], None))[0]
    assert read[1] == asked[1]
    frozen = base[:]
    frozen.flags.writeable = False
    odd = np.frombuffer(bytearray(33), "f4", 8, 1)
    arrays += [unpickled, frozen, odd, *(np.zeros((1,) * n, "f4") for n in range(30))]
    for x in arrays:
        for y in arrays:
            assert (where.look((x,))[0] == where.look((y,))[0]) == (where._ask((x,))[0] == where._ask((y,))[0])
    assert where.look(tuple(arrays))[1] == where._ask(tuple(arrays))[1]
    for other in (np.ma.array(base), np.zeros(3, "S4"), np.zeros(3, "V2"), np.zeros(3, "M8[s]"), 1.0, "x"):
        assert where.look((base, other)) is None


def test_threads_may_update_views_of_the_same_layouts():
    flat = np.ones((8, 4, 20_000), "f4")
    want = flat[0].copy()
    for t in range(1, 31):
        functional.adam(*want, step=t)

    def work(rows):
        for t in range(1, 31):
            functional.adam(*(row[:] for row in rows), step=t, threads=1)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in flat]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_bits(flat, [want] * 8)


def test_what_is_known_stays_small(monkeypatch):
    monkeypatch.setattr(functional, "_known", Known(100))
    for n in range(1, 100):
        flat = np.ones(4 * n, "f4")
        for _ in range(4):
            functional.adam(*(flat[i * n : (i + 1) * n] for i in range(4)), step=1)
        assert len(functional._known) <= 100 // 4 + 1


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_hyper_parameter_within_an_array_is_read_at_each_call(kind):
    make = np.array if kind == "numpy" else pytest.importorskip("torch", reason="torch is not installed").tensor
    p, g, lr = np.zeros(3, "f4"), np.ones(3, "f4"), make(0.5)
    for value in (0.5, 0.25, 1.0):
        lr[...] = value
        functional.sgd(p, g, step=1, lr=lr)
    np.testing.assert_array_equal(p, -1.75)
    functional.sgd(p, g, step=1, lr=0.25)
    with pytest.raises(TypeError, match="lr: found"):
        functional.sgd(p, g, step=1, lr=make([0.1, 0.2]))
    lr[...] = np.nan
    with pytest.raises(ValueError, match="lr: found"):
        functional.sgd(p, g, step=1, lr=lr)
    np.testing.assert_array_equal(p, -2.0)


def test_unknown_names_are_told_what_they_may_mean():
    for name, meant in [("adamW", "adamw"), ("Nadam", "nadam"), ("rmsprop_centred", "rmsprop_centered")]:
        with pytest.raises(AttributeError, match=f"the rules are sgd.*; did you mean '{meant}'"):
            getattr(functional, name)
    for key, meant in [
        ("learning_rate", "lr"),
        ("beta", "beta[12]"),
        ("wieght_decay", "weight_decay"),
        ("Threads", "threads"),
    ]:
        with pytest.raises(TypeError, match=f"adam: found '{key}', expected param, .*; did you mean '{meant}'"):
            call(**{key: 0.1})


def test_aggmo_states():
    p, g = np.ones(3), np.ones(3)
    with pytest.raises(ValueError, match=r"momentum_buffer: found shape \(3,\), expected \(3, 3\)"):
        functional.aggmo(p, g, np.zeros(3), step=1)
    for betas, error in [((), "1 to 8"), ((0.5,) * 9, "1 to 8"), ((0.5, 1.0), r"betas\[1\]: found 1.0")]:
        with pytest.raises(ValueError, match=error):
            functional.aggmo(p, g, np.zeros((len(betas), 3)), step=1, betas=betas)
    with pytest.raises(TypeError, match=r"betas: found 0\.9"):
        functional.aggmo(p, g, np.zeros((1, 3)), step=1, betas=0.9)
    functional.aggmo(p, g, np.zeros((8, 3)), step=1, betas=(0.5,) * 8)
    b, betas = np.zeros((2, 3)), [0.5, 0.5]
    functional.aggmo(p, g, b, step=1, betas=betas)
    betas[1] = 0.0
    functional.aggmo(p, g, b, step=2, betas=betas)
    np.testing.assert_array_equal(b, [[1.5] * 3, [1.0] * 3])
    with pytest.raises(ValueError, match="betas: found 1 values, expected 2"):
        functional.aggmo(p, g, b, step=3, betas=(0.5,))
    assert (p < 1).all()


def test_nadam_at_a_later_step_knows_its_product():
    p, g, m, v = (np.full(4, 0.5) for _ in range(4))
    q, n, w = p.copy(), m.copy(), v.copy()
    product = 1.0
    for t in range(1, 6):
        product *= 0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3))
    functional.nadam(p, g, m, v, step=6)
    functional.nadam(q, g, n, w, step=6, mu_product=product)
    np.testing.assert_array_equal(p, q)
    functional.nadam(q, g, n, w, step=10**9)
    assert np.isfinite(q).all()


def test_a_backend_that_is_chosen_later_is_taken(monkeypatch):
    """An update bound before for arrays of the same layouts is of another backend, and is not taken."""
    from fastopt.backends import numba_cpu

    made = []
    prepare = numba_cpu.prepare
    monkeypatch.setattr(numba_cpu, "prepare", lambda jobs, written: made.append(jobs) or prepare(jobs, written))
    for _ in range(2):
        functional.sgd(np.ones(13), np.ones(13), step=1, lr=0.1)
    assert not made
    with fastopt.use_backend("numba"):
        functional.sgd(np.ones(13), np.ones(13), step=1, lr=0.1)
    assert len(made) == 1
