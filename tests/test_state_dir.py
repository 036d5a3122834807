"""The classes with `state_dir` and `state_memory`: the same bits as with states in memory, however they are kept."""

import json
import os
import pickle
import signal
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.files.paging import LEAST, SLOTS, SPARE

from .support import assert_same_bits, gradients, parameter
from .test_optimizers import EVERY, arrays, make

SMALLEST = SLOTS * LEAST + SPARE
MEMORY = [None, pytest.param(SMALLEST, marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"))]


def assert_same(got, want):
    """Two optimizers' parameters and states."""
    assert_same_bits(
        [p for group in got.param_groups for p in group["params"]],
        [p for group in want.param_groups for p in group["params"]],
    )
    for ours, theirs in zip(got.state, want.state, strict=True):
        assert list(ours) == list(theirs)
        assert_same_bits(ours.values(), theirs.values())


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_every_class(tmp_path, name, options, backend, memory):
    if memory is not None and getattr(fastopt, name)._arguments.rules[0].by_tensor:
        with pytest.raises(ValueError, match=f"^state_memory: found {memory}, expected None: {name} measures whole te"):
            make(name, arrays(5), **options, backend=backend, state_dir=tmp_path, state_memory=memory)
        assert not os.listdir(tmp_path)
        return
    sizes = (5, 5000, 1)
    params = arrays(*sizes)
    got = make(name, [p.copy() for p in params], **options, backend=backend, state_dir=tmp_path, state_memory=memory)
    want = make(name, params, **options, backend=backend)
    for t in range(6):
        grads = arrays(*sizes, seed=t + 1)
        if t == 2:
            grads[1] = None
        for optimizer in (got, want):
            optimizer.step(grads, grad_scale=0.5, max_norm=3.0)
        assert got.last_grad_norm == want.last_grad_norm
        if t == 3:  # another takes up where this one ends
            own = got.param_groups[0]["params"]
            del got
            got = make(name, own, **options, backend=backend, state_dir=tmp_path, state_memory=memory)
    assert_same(got, want)


def layouts(folder):
    """Parameters that are laid out in memory, and in files, in every way; with gradients."""
    rng = np.random.default_rng(0)

    def numbers(*shape):
        return rng.standard_normal(shape).astype("f4")

    def mapped(name, array, mode="r+"):
        array.tofile(folder / name)
        return np.memmap(folder / name, array.dtype, mode, shape=array.shape)

    params = {
        "large": numbers(700_000),
        "fortran": np.asfortranarray(numbers(700, 500)),
        "strided": numbers(900, 800)[::2, 1::3],
        "map": mapped("p0", numbers(600_000)),
        "map, transposed": mapped("p1", numbers(500, 600)).T,
        "map, part": mapped("p2", numbers(300_000))[5_000:],
        "private map": mapped("p3", numbers(300_000), "c"),
        "float64": rng.standard_normal(200_000),
        "number": numbers().reshape(()),
        "none": numbers(0, 3),
    }
    grads = {name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in params.items()}
    for k, name in enumerate(("large", "map", "float64")):
        grads[name] = mapped(f"g{k}", grads[name], "r")
    return params, grads


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", ["Adam", "AggMo", "NAdam", "SGD"])
def test_layouts(tmp_path, name, memory):
    params, grads = layouts(tmp_path)
    want = make(name, {key: np.array(p, order="K") for key, p in params.items()})
    got = make(name, params, state_dir=tmp_path / "states", state_memory=memory)
    for _ in range(3):
        for optimizer in (got, want):
            optimizer.step(grads, max_norm=1.0)
    assert_same(got, want)
    for p, state in zip(params.values(), got.state, strict=True):
        if name == "Adam" and p.size > 1:  # the parameter's order in memory, as without files
            order = np.argsort([-abs(s) for s in p.strides], kind="stable").tolist()
            assert np.argsort([-s for s in state["exp_avg"].strides], kind="stable").tolist() == order


@pytest.mark.parametrize("memory", MEMORY)
def test_groups_schedules_and_plans(tmp_path, memory):
    def groups(a, b):
        return [{"params": [a], "lr": lambda t: 0.1 / t}, {"params": {"b": b}, "amsgrad": True}]

    a, b, ga, gb = arrays(400_000, 30, 400_000, 30)
    want = fastopt.Adam(groups(a.copy(), b.copy()))
    got = fastopt.Adam(groups(a, b), state_dir=tmp_path, state_memory=memory)
    plan = got.bind([[ga], {"b": gb}])
    for t in range(4):
        want.step([[ga], {"b": gb}])
        plan.step() if t % 2 else got.step([[ga.copy()], {"b": gb.copy()}])
        got.param_groups[1]["lr"] = want.param_groups[1]["lr"] = 0.01 / (t + 1)
    assert_same(got, want)


@pytest.mark.parametrize("memory", MEMORY)
def test_state_dicts(tmp_path, memory):
    p, q, *grads = arrays(500_000, 20, 500_000, 20)
    source = fastopt.Adam([p.copy(), q.copy()])
    source.step(grads)
    got = fastopt.Adam([p, q], state_dir=tmp_path, state_memory=memory)
    got.load_state_dict(source.state_dict())
    for own, other in zip((p, q), source.param_groups[0]["params"], strict=True):
        own[...] = other
    del got  # what was loaded is in the files
    got = fastopt.Adam([p, q], state_dir=tmp_path, state_memory=memory)
    for optimizer in (got, source):
        optimizer.step(grads)
    assert_same(got, source)
    back = fastopt.Adam([p.copy(), q.copy()])
    back.load_state_dict(got.state_dict())
    for optimizer in (back, source):
        optimizer.step(grads)
    assert_same(back, source)
    before = fastopt.Adam([p.copy(), q.copy()]).state_dict()
    with pytest.raises(ValueError, match="found shape"):
        got.load_state_dict(fastopt.Adam([q, p]).state_dict())
    got.load_state_dict(before)
    assert not got.state[0]["exp_avg"].any() and got.state[1]["step"] == 0


@pytest.mark.parametrize("memory", MEMORY)
def test_initial_values(tmp_path, memory):
    p, g = arrays(600_000, 600_000)
    got = fastopt.Adagrad(p.copy(), initial_accumulator_value=0.5, state_dir=tmp_path, state_memory=memory)
    want = fastopt.Adagrad(p, initial_accumulator_value=0.5)
    for optimizer in (got, want):
        optimizer.step(g)
    assert_same(got, want)


def test_a_step_that_is_refused_changes_nothing(tmp_path):
    p, g = arrays(5000, 5000)
    optimizer = fastopt.Adam(p, state_dir=tmp_path, state_memory=SMALLEST if sys.platform == "linux" else None)
    optimizer.step(g)
    kept = [p.copy(), *(array.copy() for array in optimizer.state[0].values())]
    for bad in (g[:-1], g.astype("f8"), p):
        with pytest.raises((TypeError, ValueError)):
            optimizer.step(bad)
    with pytest.raises(ValueError, match="grad_scale"):
        optimizer.step(g, grad_scale=np.inf)
    assert_same_bits([p, *optimizer.state[0].values()], kept)
    optimizer.step(g)


def test_what_is_refused(tmp_path):
    p = np.ones(5000, "f4")
    with pytest.raises(ValueError, match=r"state_memory: found .*, expected None without state_dir"):
        fastopt.Adam(p, state_memory=SMALLEST)
    with pytest.raises(TypeError, match="state_memory: found '1 GB'"):
        fastopt.Adam(p, state_dir=tmp_path, state_memory="1 GB")
    with pytest.raises(TypeError, match="state_dir: found 3 of type int"):
        fastopt.Adam(p, state_dir=3)
    optimizer = fastopt.Adam(p, state_dir=tmp_path)
    with pytest.raises(ValueError, match="in use by another optimizer"):
        fastopt.Adam(p, state_dir=tmp_path)
    del optimizer
    for other in (
        lambda: fastopt.Adam(p, amsgrad=True, state_dir=tmp_path),
        lambda: fastopt.Adam(p[1:], state_dir=tmp_path),
        lambda: fastopt.Adam(p.astype("f8"), state_dir=tmp_path),
        lambda: fastopt.Adam([p, p.copy()], state_dir=tmp_path),
        lambda: fastopt.SGD(p, lr=1.0, state_dir=tmp_path),
    ):
        with pytest.raises(
            ValueError, match=rf"state_dir: found states in {tmp_path} with .* choose another directory"
        ):
            other()
    fastopt.Adam(p, state_dir=tmp_path, lr=0.5, weight_decay=0.1)  # hyper-parameters are this call's


def test_resuming_tells_that_parameters_are_not_there(tmp_path):
    p, g = arrays(30, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastopt.Adam(p, state_dir=tmp_path).close()
        with fastopt.Adam(p, state_dir=tmp_path) as optimizer:
            for _ in range(3):
                optimizer.step(g)
    with pytest.raises(ValueError, match="closed"):
        optimizer.step(g)
    with pytest.warns(UserWarning, match=f"after step 3 are resumed from {tmp_path}.* no parameters") as told:
        assert fastopt.Adam(p, state_dir=tmp_path).state[0]["step"] == 3
    assert told[0].filename == __file__
    assert "Parameters are not kept there" in " ".join(fastopt.Optimizer.__doc__.split())


def test_a_with_block_without_files():
    p, g = arrays(30, 30)
    with fastopt.SGD(p, lr=1.0) as optimizer:
        optimizer.step(g)
    optimizer.step(g)


@pytest.mark.parametrize("memory", MEMORY)
def test_killed_at_any_time(tmp_path, memory):
    """The resumed states are of one step, and so are the parameters, which are in a file too."""
    code = """
import sys
import numpy as np, fastopt
folder, memory = sys.argv[1], eval(sys.argv[2])
p = np.memmap(folder + "/p", "f4", "r+")
opt = fastopt.SGD(p, lr=1.0, momentum=0.5, state_dir=folder + "/s", state_memory=memory)
g = np.ones(p.shape, "f4")
print(flush=True)
while True:
    opt.step(g)
"""
    whole = broken = 0
    rng = np.random.default_rng()
    for k in range(100):
        folder = tmp_path / str(k)
        folder.mkdir()
        np.zeros(1_000_000, "f4").tofile(folder / "p")
        with subprocess.Popen([sys.executable, "-c", code, folder, str(memory)], stdout=subprocess.PIPE) as process:
            process.stdout.read(1)
            try:
                process.wait(rng.uniform(0, 0.05))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        p = np.memmap(folder / "p", "f4", "r+")
        try:
            optimizer = fastopt.SGD(p, lr=1.0, momentum=0.5, state_dir=folder / "s", state_memory=memory)
        except ValueError as error:
            assert "the process ended in the middle of it" in str(error)
            broken += 1
        else:
            (state,) = optimizer.state
            steps = int(state["step"])
            assert (state["momentum_buffer"] == state["momentum_buffer"][0]).all() and (p == p[0]).all()
            assert p[0] == pytest.approx(-(2 * steps - 2 + 2 * 0.5**steps), rel=1e-5)
            whole += 1
        (folder / "p").unlink()
        if k >= 5 and whole and broken:
            break
    assert broken and (whole or memory)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_the_bound(tmp_path):
    """States, parameter and gradient are 16 times what may be in memory."""
    code = """
import sys, threading
import numpy as np, fastopt
folder = sys.argv[1]
def resident():
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile"))
n, memory = 5 << 20, 5 << 20
p = np.memmap(folder + "/p", "f4", "w+", shape=(n,))
g = np.memmap(folder + "/g", "f4", "r", shape=(n,))
opt = fastopt.Adam(p, state_dir=folder + "/s", state_memory=memory)
warm = fastopt.Adam(p[:4096].copy())
warm.step(g[:4096], max_norm=1.0)
before = peak = resident()
done = threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, resident())
thread = threading.Thread(target=watch)
thread.start()
for _ in range(2):
    opt.step(g, max_norm=1.0)
done.set()
thread.join()
assert (opt.state[0]["exp_avg"][::1000] > 0).all()
print(peak - before)
"""
    np.ones(5 << 20, "f4").tofile(tmp_path / "g")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 1 << 20 < int(done.stdout) <= 5 << 20


# ---- every storage ----

STORAGES = [
    {},
    {"state_dtype": "8bit", "rounding": "stochastic"},
    {"state_dtype": "bfloat16", "rounding": "master", "ema_decay": 0.9},
    {"state_dtype": "float32", "rounding": "kahan"},
]


def _params(sizes):
    return [parameter(n, seed=k).astype(ml_dtypes.bfloat16) for k, n in enumerate(sizes)]


def _grads(params, t):
    return [gradients(p.size, 1, seed=t)[0].astype("f4").reshape(p.shape).astype(p.dtype) for p in params]


def _same(first, second):
    for own, other in zip(first.param_groups[0]["params"], second.param_groups[0]["params"], strict=True):
        assert own.tobytes() == other.tobytes()
    for own, other in zip(first.state, second.state, strict=True):
        assert own.keys() == other.keys()
        for name in own:
            assert own[name].tobytes() == np.asarray(other[name]).tobytes(), name


SIZES = (700_001, 0, 5000)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_every_storage(options, memory, backend, tmp_path):
    mine, theirs = _params(SIZES), _params(SIZES)
    first = fastopt.Adam(mine, lr=0.01, weight_decay=0.01, **options)
    files = {"state_dir": tmp_path / "states", "state_memory": memory, "backend": backend}
    second = fastopt.Adam(theirs, lr=0.01, weight_decay=0.01, **options, **files)
    for t in range(2):
        for opt in (first, second):
            opt.step(_grads(opt.param_groups[0]["params"], t), max_norm=3.0, skip_nonfinite=True, zero_grads=t == 1)
        assert first.last_grad_norm == second.last_grad_norm
    _same(first, second)
    saved = pickle.dumps(second)
    second.close()
    third = fastopt.Adam(theirs, lr=0.01, weight_decay=0.01, **options, **files)  # goes on where that one was
    copied = pickle.loads(saved)  # in memory, apart from the files
    for opt in (first, third, copied):
        opt.step(_grads(opt.param_groups[0]["params"], 3))
    _same(first, third)
    _same(first, copied)
    # A state dict goes into the files, and out of them.
    third.load_state_dict({"state": {}, "param_groups": first.state_dict()["param_groups"]})
    assert [int(state["step"]) for state in third.state] == [0, 0, 0]
    assert not third.state_values(0, "exp_avg").any()
    third.load_state_dict(first.state_dict())
    _same(first, third)
    first.load_state_dict(third.state_dict())
    third.sync()


def test_memory_maps_everywhere(tmp_path):
    """Parameters and gradients in files too, in an order of axes of their own, and rows."""
    n, shape = 3_000_000, (3000, 1000)
    maps = [np.memmap(tmp_path / name, "f4", "w+", shape=shape, order="F") for name in ("param", "grad")]
    maps[0].reshape(-1, order="A")[:] = parameter(n).astype("f4")
    maps[1].reshape(-1, order="A")[:] = gradients(n, 1)[0].astype("f4")
    param, grad = [np.asfortranarray(np.array(m)) for m in maps]
    first = fastopt.Adagrad(param, lr=0.1, initial_accumulator_value=0.5)
    second = fastopt.Adagrad(
        maps[0], lr=0.1, initial_accumulator_value=0.5, state_dir=tmp_path / "states", state_memory=SMALLEST
    )
    for opt, g in ((first, grad), (second, maps[1])):
        opt.step(g, max_norm=1.0)
    assert second.state[0]["sum"].flags.f_contiguous
    _same(first, second)
    table = np.zeros((1000, 64), "f4")
    rows = fastopt.RowSparse(np.array([3, 999, 3]), np.ones((3, 64), "f4"))
    opts = [fastopt.Adagrad(table.copy()), fastopt.Adagrad(table, state_dir=tmp_path / "rows", state_memory=SMALLEST)]
    for opt in opts:
        opt.step(rows)
    _same(*opts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls": "AdamW"}, "rule 'adam', expected 'adamw'"),
        ({"sizes": (5000, 7)}, "shape"),
        ({"state_dtype": "8bit"}, "8bit"),
        ({"ema_decay": 0.9}, "states 2, expected 3"),
    ],
    ids=str,
)
def test_states_of_another_optimizer_are_refused(changes, message, tmp_path):
    fastopt.Adam(_params((5000, 8)), state_dir=tmp_path).close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changes = dict(changes)
    cls, sizes = getattr(fastopt, changes.pop("cls", "Adam")), changes.pop("sizes", (5000, 8))
    with pytest.raises(ValueError, match=rf"state_dir: .*{message}"):
        cls(_params(sizes), state_dir=tmp_path, **changes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match=r"state_dir: .*format 99"):
        fastopt.Adam(_params((5000, 8)), state_dir=tmp_path)
