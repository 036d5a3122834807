"""The benchmark's peers: that they do the same, and why one does not take part."""

import sys

import numpy as np
import pytest

import fastopt
from fastopt.bench import machine, peers
from fastopt.bench.peers import COMPETITORS, PEERS, USUAL, Arena, values
from fastopt.bench.peers.base import ELEMENTWISE, Competitor, Peer, load
from fastopt.bench.peers.expressions import NUMPY
from fastopt.bench.section import Skip

QUICK = ("native", "numba", "numpy", "torch-fused", "torch-foreach")
PACKAGES = {"torch-fused": "torch", "torch-foreach": "torch", "torch-loop": "torch", "optax": "optax", "thinc": "thinc",
            "prodigyopt": "prodigyopt"}  # fmt: skip


def missing(name):
    if name in ("native", "numba"):
        return fastopt.available_backends()[name] != "available"
    try:
        load(PACKAGES.get(name, "numpy"), name)
    except Skip:
        return True
    return False


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_peers_agree(name):
    arena = Arena(QUICK, 1)
    found = arena.build(fastopt.RULES[name], *values(1003, "float32"))
    assert list(found) == [who for who in QUICK if name in COMPETITORS[who].rules and not missing(who)]
    assert set(arena.reasons) <= {who for who in QUICK if missing(who)}


@pytest.mark.parametrize(
    ("who", "rule"), [("numba-loop", "adam"), ("numba-loop", "aggmo"), ("optax", "rmsprop"), ("optax", "adamw"),
                      ("optax", "signsgd"), ("optax", "ademamix"), ("optax", "schedule_free_adamw"),
                      ("optax", "lars"), ("optax", "lamb"), ("optax", "novograd"), ("torch-loop", "nesterov"),
                      ("thinc", "adam"), ("prodigyopt", "prodigy")]
)  # fmt: skip
def test_others_agree(who, rule):
    if missing(who):
        pytest.skip(f"no {who}")
    first = "numpy" if rule in COMPETITORS["numpy"].rules else "native"
    arena = Arena((first, who), 1)
    assert list(arena.build(fastopt.RULES[rule], *values(1003, "float32"))) == [first, who] and not arena.reasons


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtypes(dtype):
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    arena = Arena(QUICK, 1)
    found = arena.build(fastopt.RULES["adam"], *values(1003, dtype))
    assert list(found) == [who for who in QUICK if dtype in COMPETITORS[who].dtypes and not missing(who)]
    assert arena.reasons.get(f"numpy, {dtype}") == (None if dtype == "float64" else "has float32, float64")


@pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 3])
def test_values_are_random_to_the_last(size):
    for array in values(size, "float32"):
        assert len(array) == size and len(set(array[-3:].tolist())) == min(size, 3) and np.abs(array[-3:]).max() < 6


def peer(step):
    return lambda task: Peer(step, lambda: [task.start])


def arena_of(monkeypatch, **entry):
    """Make an arena of NumPy's peer, and of one more."""
    monkeypatch.setitem(COMPETITORS, "new", Competitor("new", "New", **entry))
    return Arena(("numpy", "new"), 1)


def fail(*_):
    raise RuntimeError("no kernel\nfor this processor")


def test_reasons(monkeypatch):
    """Whoever is missing, fails, or gives another result is not timed, and says why."""
    rule, arrays = fastopt.RULES["adam"], values(1003, "float32")
    for build, said in (
        (peer(lambda: None), ("new, adam", "its result after one step is another")),
        (fail, ("new", "RuntimeError: no kernel for this processor")),
        (peer(fail), ("new", "RuntimeError: no kernel for this processor")),
    ):
        arena = arena_of(monkeypatch, build=build)
        assert list(arena.build(rule, *arrays)) == ["numpy"]
        assert list(arena.reasons.items()) == [said]
    arena = arena_of(monkeypatch, build=NUMPY.build)
    monkeypatch.setattr(machine, "memory", lambda: 5 * 4 * 1003)
    assert list(arena.build(rule, *arrays)) == ["new"]
    assert arena.reasons == {"numpy, 1,003 elements": "needs 0.0 GB more memory"}


@pytest.mark.parametrize(
    ("who", "module", "install"),
    [("torch-fused", "torch", "torch"), ("deepspeed", "deepspeed.ops.adam", "deepspeed"), ("optax", "jax", "jax optax"),
     ("thinc", "thinc.api", "thinc")],
)  # fmt: skip
def test_missing_packages(monkeypatch, who, module, install):
    if who == "deepspeed" and missing("torch-fused"):
        pytest.skip("no torch")
    monkeypatch.setitem(sys.modules, module, None)
    arena = Arena(("numpy", who), 1)
    assert list(arena.build(fastopt.RULES["adam"], *values(1003, "float32"))) == ["numpy"]
    assert arena.reasons[who].endswith(f": pip install {install}") and module in arena.reasons[who]


def test_backends_must_agree(monkeypatch):
    other = Competitor("numba", "numba", peer(lambda: None))
    monkeypatch.setitem(COMPETITORS, "numba", other)
    monkeypatch.setattr(peers, "BACKENDS", (COMPETITORS["native"], other))
    if missing("native"):
        pytest.skip("the native backend is not available")
    with pytest.raises(AssertionError, match="adam, float32: after one step numba differs"):
        Arena(("native", "numba"), 1).build(fastopt.RULES["adam"], *values(1003, "float32"))


def test_the_gradient_is_never_written(monkeypatch):
    start, grad = values(1003, "float32")
    before = grad.copy()
    found = Arena(QUICK, 1).build(fastopt.RULES["nesterov"], start, grad)
    for who in found.values():
        who.step()
        who.step()
    assert np.array_equal(grad, before)


def test_names_and_versions():
    assert set(USUAL) < set(PEERS) and "native" not in PEERS
    assert peers.versions(["", "numpy", "no-such-package", "numpy"]) == f"numpy {np.__version__}, no no-such-package"
