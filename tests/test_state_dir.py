"""Optimizers whose states are in files: the bits of those in memory, and what a directory tells of itself."""

import json
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.rules import RULES

from .support import default_hyper, gradients, parameter

BF16 = ml_dtypes.bfloat16
MEMORY = 8 << 20
OPTIONS = [
    {},
    {"state_dtype": "8bit", "rounding": "stochastic"},
    {"state_dtype": "bfloat16", "rounding": "master", "ema_decay": 0.9},
    {"state_dtype": "float32", "rounding": "kahan"},
]


def _params(sizes=(3_000_017, 0, 5000), dtype=BF16):
    return [parameter(n, seed=k).astype(dtype) for k, n in enumerate(sizes)]


def _grads(params, t):
    return [gradients(p.size, 1, seed=t)[0].astype("f4").reshape(p.shape).astype(p.dtype) for p in params]


def _same(first, second):
    for own, other in zip(first._params, second._params, strict=True):
        assert own.tobytes() == other.tobytes()
    for own, other in zip(first.state, second.state, strict=True):
        assert own.keys() == other.keys()
        for name in own:
            assert own[name].tobytes() == np.asarray(other[name]).tobytes(), name


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("memory", [None, MEMORY])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_bits_of_states_in_memory(options, memory, backend, tmp_path):
    mine, theirs = _params(), _params()
    first = fastopt.Adam(mine, lr=0.01, weight_decay=0.01, **options)
    files = {"state_dir": tmp_path / "states", "state_memory": memory, "backend": backend}
    second = fastopt.Adam(theirs, lr=0.01, weight_decay=0.01, **options, **files)
    for t in range(2):
        for opt in (first, second):
            opt.step(_grads(opt._params, t), max_norm=3.0, skip_nonfinite=True, zero_grads=t == 1)
        assert first.last_grad_norm == second.last_grad_norm
    _same(first, second)
    saved = pickle.dumps(second)
    second.close()
    third = fastopt.Adam(theirs, lr=0.01, weight_decay=0.01, **options, **files)  # goes on where that one was
    copied = pickle.loads(saved)  # in memory, apart from the files
    for opt in (first, third, copied):
        opt.step(_grads(opt._params, 3))
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


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.states or rule.scalars])
def test_every_rule(name, tmp_path):
    rule, hyper = RULES[name], default_hyper(name)
    cls = getattr(fastopt, rule.optimizer)
    values = {key: value for key, value in hyper.items() if key in cls.arguments.defaults}
    mine, theirs = [[p.reshape(-1, 25) for p in _params((50_000, 100), "f4")] for _ in range(2)]
    first = cls(mine, **values)
    second = cls(theirs, **values, state_dir=tmp_path, state_memory=MEMORY)
    for t in range(3):
        first.step(_grads(mine, t))
        second.step(_grads(theirs, t))
    _same(first, second)


def test_memory_maps_everywhere(tmp_path):
    """Parameters and gradients in files too, in an order of axes of their own, and rows."""
    n, shape = 3_000_000, (3000, 1000)
    maps = [np.memmap(tmp_path / name, "f4", "w+", shape=shape, order="F") for name in ("param", "grad")]
    maps[0].reshape(-1, order="A")[:] = parameter(n).astype("f4")
    maps[1].reshape(-1, order="A")[:] = gradients(n, 1)[0].astype("f4")
    param, grad = [np.asfortranarray(np.array(m)) for m in maps]
    first = fastopt.Adagrad(param, lr=0.1, initial_accumulator_value=0.5)
    second = fastopt.Adagrad(
        maps[0], lr=0.1, initial_accumulator_value=0.5, state_dir=tmp_path / "states", state_memory=MEMORY
    )
    for opt, g in ((first, grad), (second, maps[1])):
        opt.step(g, max_norm=1.0)
    assert second.state[0]["sum"].flags.f_contiguous
    _same(first, second)
    table = np.zeros((1000, 64), "f4")
    rows = fastopt.RowSparse(np.array([3, 999, 3]), np.ones((3, 64), "f4"))
    opts = [fastopt.Adagrad(table.copy()), fastopt.Adagrad(table, state_dir=tmp_path / "rows", state_memory=MEMORY)]
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


def test_bad_arguments(tmp_path):
    p = _params((10,))
    with pytest.raises(ValueError, match=r"state_memory: found 8388608 without state_dir"):
        fastopt.Adam(p, state_memory=MEMORY)
    with pytest.raises(TypeError, match="state_dir: found 3 of type int, expected a path"):
        fastopt.Adam(p, state_dir=3)
    with pytest.raises(TypeError, match="state_memory: found '1G' of type str"):
        fastopt.Adam(p, state_dir=tmp_path / "a", state_memory="1G")
    with pytest.raises(ValueError, match="state_memory: found 1 bytes, expected at least"):
        fastopt.Adam(p, state_dir=tmp_path / "b", state_memory=1)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "diary.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"state_dir: found diary\.txt"):
        fastopt.Adam(p, state_dir=tmp_path / "c")
    kept = fastopt.Adam(p, state_dir=tmp_path / "d")
    with pytest.raises(ValueError, match=r"state_dir: .*in use by another optimizer"):
        fastopt.Adam(p, state_dir=tmp_path / "d")
    kept.close()
    with pytest.raises(ValueError, match="closed"):
        kept.step(_grads(p, 0))


KILLED = """
import os, signal, sys
import numpy as np, fastopt
p = np.zeros(3_000_000, "f4")
opt = fastopt.Adam(p, state_dir=sys.argv[1], state_memory=8 << 20)
opt.step(np.ones_like(p))
if sys.argv[2] == "within":
    runner = type(opt._last.plan._runner)
    update = runner.update
    parts = []
    def killed(self, *args):
        parts.append(args)
        if len(parts) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        update(self, *args)
    runner.update = killed
    opt.step(np.ones_like(p))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["between", "within"])
def test_a_killed_process(when, tmp_path):
    code = KILLED
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), when], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    p = np.zeros(3_000_000, "f4")
    if when == "between":
        assert int(fastopt.Adam(p, state_dir=tmp_path).state[0]["step"]) == 1
    else:
        with pytest.raises(ValueError, match=r"state_dir: .* the process ended in the middle of it"):
            fastopt.Adam(p, state_dir=tmp_path)
