"""Early stopping against the algorithm written out on lists."""

import json
import pickle

import numpy as np
import pytest

import fastopt
from fastopt.training import EarlyStopping


def oracle(values, patience, min_delta=0.0, mode="min"):
    """The step at which training stops, if it does, and the best value with its step."""
    best, best_step, waited = None, None, 0
    for step, value in enumerate(values, 1):
        if mode == "min":
            better = value < (np.inf if best is None else best) - min_delta
        else:
            better = value > (-np.inf if best is None else best) + min_delta
        if better:
            best, best_step, waited = value, step, 0
        else:
            waited += 1
            if waited == patience:
                return step, best, best_step
    return None, best, best_step


SERIES = {
    "falls, then rises": [5, 4, 3, 2, 3, 4, 5, 6, 7],
    "falls to the end": [5, 4, 3, 2, 1],
    "one value": [1],
    "equal": [2, 2, 2, 2],
    "slowly": [5, 4.9, 4.8, 4.7, 4.6, 4.5],
    "to and fro": [3, 4, 2.9, 4, 2.8, 4, 4, 1, 4],
    "NaN": [np.nan, 3, np.nan, 2, np.nan, np.nan, np.nan],
    "infinite": [np.inf, np.inf, 2, np.inf, np.inf],
    "negative": [-1, -2, -3, -2, -2, -2],
}


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("min_delta", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("patience", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SERIES)
def test_stops_where_the_oracle_does(name, patience, min_delta, mode):
    sign = 1 if mode == "min" else -1
    values = [sign * value for value in SERIES[name]]
    want, best, best_step = oracle(values, patience, min_delta, mode)
    stopping, p = EarlyStopping(patience, min_delta, mode), np.zeros(3)
    stopped = None
    for step, value in enumerate(values, 1):
        p += 1
        if stopping.step(value, p):
            stopped = step
            break
    assert stopped == want and stopping.stopped == (want is not None)
    assert (stopping.best, stopping.best_step) == (best, best_step)
    if want is not None and best is not None:
        assert (p == best_step).all()
    else:
        assert (p == stopping.steps).all()


def nested(dtype="f4"):
    rng = np.random.default_rng(0)
    return {
        "layers": [{"w": rng.standard_normal((3, 2)).astype(dtype)}, {"w": rng.standard_normal(4).astype(dtype)}],
        "file": rng.standard_normal(()).astype(dtype),
        "strided": rng.standard_normal((4, 6)).astype(dtype)[:, ::2],
    }


def flat(params):
    return [params["layers"][0]["w"], params["layers"][1]["w"], params["file"], params["strided"]]


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64"])
def test_the_best_parameters_come_back(dtype, in_file, tmp_path):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    params = nested(dtype)
    best = [array.copy() for array in flat(params)]
    path = tmp_path / "best.npz"
    stopping = EarlyStopping(2, file=path if in_file else None)
    assert not stopping.step(1.0, params)
    for array in flat(params):
        array[...] = 7
    assert not stopping.step(1.5, params)
    kept = stopping.best_params()
    assert set(kept) == {"layers.0.w", "layers.1.w", "file", "strided"}
    wide = {2: np.float32}.get(np.dtype(dtype).itemsize, np.dtype(dtype))
    for copy, array in zip(kept.values(), best, strict=True):
        assert copy.dtype == wide
        np.testing.assert_array_equal(copy, array.astype(wide))
    assert stopping.step(1.5, params)
    for array, want in zip(flat(params), best, strict=True):
        assert array.tobytes() == want.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == (["best.npz"] if in_file else [])
    if in_file:
        with np.load(path) as file:
            assert set(file) == set(kept)


def test_not_restored_unless_asked():
    p = np.ones(2)
    stopping = EarlyStopping(1, restore_best=False)
    stopping.step(1.0, p)
    p[:] = 5
    assert stopping.step(2.0, p)
    assert (p == 5).all()
    stopping.restore(p)
    assert (p == 1).all()


def test_without_parameters():
    stopping = EarlyStopping(1, restore_best=False)
    stopping.step(1.0)
    assert stopping.step(2.0) and json.loads(json.dumps(stopping.state_dict())) == stopping.state_dict()
    with pytest.raises(ValueError, match="best_params: found no parameters"):
        stopping.restore(np.ones(1))


def test_nothing_is_restored_where_nothing_was_good():
    p = np.ones(2)
    stopping = EarlyStopping(2)
    assert not stopping.step(np.nan, p)
    p[:] = 3
    assert stopping.step(np.inf, p)
    assert stopping.best is None and (p == 3).all()


def test_parameters_of_torch():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).to(torch.bfloat16)
    optimizer = pytest.importorskip("fastopt.torch").SGD(model.parameters(), lr=0.1)
    stopping = EarlyStopping(1)
    want = {name: value.clone() for name, value in model.state_dict().items()}
    assert not stopping.step(torch.tensor(1.0), model.state_dict())
    model(torch.ones(4, 3, dtype=torch.bfloat16)).square().sum().backward()
    optimizer.step()
    assert not all(torch.equal(value, want[name]) for name, value in model.state_dict().items())
    assert stopping.step(torch.tensor(2.0), model.state_dict())
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())
    stopping.restore(model.state_dict())
    other = EarlyStopping(1)
    other.step(1.0, model.parameters())  # an iterator
    assert other.step(1.0, model.parameters())


@pytest.mark.parametrize("in_file", [False, True])
def test_resumed_from_a_checkpoint(in_file, tmp_path):
    """A training that is cut off and resumed ends as the whole one does."""

    def train(p, opt, stopping, rounds):
        for _ in range(rounds):
            opt.step(2 * (p - 1))
            value = abs(float(p[0]) - 0.5)  # best in passing
            if stopping.step(value, p):
                break
        return p, stopping

    def new(name):
        p = np.zeros(3)
        return p, fastopt.SGD(p, lr=0.05), EarlyStopping(4, file=tmp_path / f"{name}.npz" if in_file else None)

    whole, stopping = train(*new("whole"), 100)
    p, opt, first = new("first")
    train(p, opt, first, stopping.best_step + 2)
    saved = pickle.dumps((p, opt.state_dict(), first.state_dict()))
    train(p, opt, first, 1)  # what happened after the checkpoint is lost
    p, opt, resumed = new("first")
    values, state, stopped = pickle.loads(saved)
    p[:] = values
    opt.load_state_dict(state)
    resumed.load_state_dict(stopped)
    p, resumed = train(p, opt, resumed, 100)
    assert (p == whole).all() and resumed.steps == stopping.steps
    assert resumed.best == stopping.best and resumed.stopped


def test_a_file_that_cannot_be_written_leaves_the_best(tmp_path, monkeypatch):
    p = np.zeros(2)
    stopping = EarlyStopping(2, file=tmp_path / "best.npz")
    stopping.step(2.0, p)
    before = stopping.state_dict()
    p += 1

    def full(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="no space"):
        stopping.step(1.0, p)
    after = stopping.state_dict()
    assert (after.pop("params")["params"] == before.pop("params")["params"]).all() and after == before
    assert [file.name for file in tmp_path.iterdir()] == ["best.npz"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"patience": 0}, ValueError, "patience: found 0, expected an integer >= 1"),
        ({"min_delta": -1}, ValueError, "min_delta: found -1"),
        ({"mode": "minimum"}, ValueError, "mode: found 'minimum', expected one of min, max"),
        ({"restore_best": None}, TypeError, "restore_best: found None"),
        ({"file": 3}, TypeError, "file: found 3"),
        ({"file": "best.pt"}, ValueError, "file: found 'best.pt', expected a name ending in .npz"),
        ({"file": "/nowhere/best.npz"}, ValueError, "in a folder that is there"),
    ],
)
def test_refusals(options, error, said):
    with pytest.raises(error, match=said):
        EarlyStopping(**options)


def read_only():
    p = np.zeros(2)
    p.flags.writeable = False
    return p


@pytest.mark.parametrize(
    ("value", "params", "error", "said"),
    [
        ("1", np.zeros(2), TypeError, "value: found '1'"),
        (np.zeros(2), np.zeros(2), TypeError, "value: found"),
        (1.0, None, TypeError, "params: found None"),
        (1.0, [], ValueError, "params: found no array"),
        (1.0, {"w": [1.0]}, TypeError, r"params\['w'\]\[0\]: found float"),
        (1.0, {"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)}, ValueError, "found the path 'a.b' of"),
        (1.0, read_only(), ValueError, "params: found a read-only array"),
        (9.0, np.zeros(3), ValueError, r"best_params\['params'\]: found shape \(2,\), expected \(3,\)"),
        (9.0, {"w": np.zeros(2)}, ValueError, "best_params: found other arrays"),
        (9.0, np.zeros(2, "f4"), TypeError, "found dtype float64, expected float32"),
    ],
)
def test_wrong_steps_change_nothing(value, params, error, said):
    stopping = EarlyStopping(1)
    stopping.step(2.0, np.zeros(2))
    with pytest.raises(error, match=said):
        stopping.step(value, params)
    assert stopping.steps == 1 and stopping.best == 2.0 and not stopping.stopped


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"mode": "max"}, ValueError, r"state_dict\['mode'\]: found 'max', expected 'min', as here"),
        ({"steps": 1.5}, TypeError, r"state_dict\['steps'\]"),
        ({"waited": 3}, ValueError, r"state_dict\['waited'\]: found 3"),
        ({"best": None}, ValueError, r"state_dict\['best_step'\]"),
        ({"best": "1"}, TypeError, r"state_dict\['best'\]"),
        ({"best": float("nan")}, TypeError, r"state_dict\['best'\]"),
        ({"best_step": 3}, ValueError, r"state_dict\['best_step'\]: found 3"),
        ({"params": 3}, TypeError, r"state_dict\['params'\]: found int"),
        ({"params": {"w": 3}}, TypeError, r"state_dict\['params'\]\['w'\]: found int"),
        ({"more": 3}, ValueError, "too many: 'more'"),
    ],
)
def test_wrong_states_change_nothing(change, error, said):
    stopping = EarlyStopping(5)
    stopping.step(2.0, np.zeros(2))
    before = {**stopping.state_dict(), "params": None}
    with pytest.raises(error, match=said):
        stopping.load_state_dict({**before, "steps": 2, **change})
    with pytest.raises(TypeError, match="state_dict: found 3"):
        stopping.load_state_dict(3)
    assert {**stopping.state_dict(), "params": None} == before
