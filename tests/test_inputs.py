"""Rules that read further arrays beside the gradient, by a toy rule that has more of everything than the table's.

The C library does not know the toy. One that does is built by the slow test, which runs this file again with it.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import GradientNoise, RowSparse, rules
from fastopt.backends import native
from fastopt.rules import Rule, State

from .support import assert_same_bits, gradients, misaligned, parameter
from .toy import HYPER, MEASURED, START, TOY, build_library, oracle, registered

KNOWN = native.lib.fastopt_find_rule(b"toy") >= 0  # by the library that the slow test has built
BACKENDS = ["numba", "native"] if KNOWN else ["numba"]
BF = ml_dtypes.bfloat16
N = 1037


@pytest.fixture
def toy():
    """The toy's functional form and class, with its hyper-parameters."""
    with registered() as (function, cls), fastopt.use_backend(BACKENDS[-1]):
        yield SimpleNamespace(function=function, cls=cls)


def draw(shape, steps=4, dtype="f4", seed=3):
    """A parameter, and of each step the gradient and two inputs."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(dtype), rng.standard_normal((steps, 3, *shape)).astype(dtype)


def states_of(param):
    return [*(np.zeros_like(param) for _ in range(3)), np.full_like(param, START)]


def functionally(toy, p0, given, place=np.array, **call):
    """Parameter and states after steps of the functional form."""
    arrays = [place(x) for x in (p0, *states_of(p0))]
    for t, (g, old, drift) in enumerate(given, 1):
        read = {name: place(x) for name, x in (("grad", g), ("old", old), ("drift", drift))}
        for x in read.values():
            x.flags.writeable = False
        grad = read.pop("grad")
        toy.function(arrays[0], grad, *arrays[1:], **read, step=t, **HYPER, **call)
        assert_same_bits([grad, *read.values()], [g, old, drift])
    return arrays


def of_class(toy, params, given, backend="numba", threads=1, options=None, **call):
    """Parameters and states after steps of the class; gradients and inputs are lists, anew at each step."""
    params = [p.copy(order="K") for p in params]
    optimizer = toy.cls(params, **HYPER, start=START, backend=backend, threads=threads, **(options or {}))
    for grads, old, drift in given:
        optimizer.step([g.copy() for g in grads], inputs={"drift": drift, "old": old}, **call)
    return [*params, *(np.asarray(x) for state in optimizer.state for x in state.values())]


# ---- bits ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_does_what_the_formula_says(toy, backend):
    p0, given = parameter(N), np.random.default_rng(5).standard_normal((10, 3, N))
    given[:, 0] = gradients(N, 10)
    got = functionally(toy, p0.astype("f4"), given.astype("f4"), backend=backend)
    want = oracle(
        p0.astype("f4"), given[:, 0].astype("f4"), given[:, 1:].swapaxes(0, 1).astype("f4"), **HYPER, start=START
    )
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() < 40 * np.finfo("f4").eps * np.abs(b).max()


def _strided(a):
    b = np.zeros((*a.shape[:-1], a.shape[-1] * 3), a.dtype)[..., 1::3]
    b[...] = a
    return b


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [np.array, _strided, misaligned, lambda a: a[::-1].copy()[::-1]])
def test_layouts_and_threads_have_the_same_bits(toy, place, backend, set_isa):
    for n in (1, 5, N, 300_007 if place is np.array else 4099):
        p0, given = draw((n,), 2)
        want = functionally(toy, p0, given, backend="numba", threads=1)
        for threads in (1, 3):
            for level in native.isa_supported() if backend == "native" else [None]:
                set_isa(level)
                assert_same_bits(functionally(toy, p0, given, place, backend=backend, threads=threads), want)


STORED = {
    "bfloat16": ((BF, BF, BF), {}),
    "inputs of another dtype": (("f4", BF, "f2"), {}),
    "bfloat16 states": (("f4", "f4", BF), {"state_dtype": "bfloat16"}),
    "8 bits": (("f4", "f4", "f4"), {"state_dtype": "8bit"}),
    "8 bits of bfloat16": ((BF, BF, BF), {"state_dtype": "8bit"}),
    "stochastic": ((BF, "f4", BF), {"rounding": "stochastic", "seed": 7}),
    "kahan, average": ((BF, BF, "f4"), {"rounding": "kahan", "ema_decay": 0.9}),
    "master, average": (("f2", "f2", "f2"), {"rounding": "master", "ema_decay": 0.9}),
    "noise": (("f4", "f4", "f4"), {"gradient_noise": GradientNoise(0.3, seed=5)}),
}


def stored(case):
    """Parameters, what each step is given, and the options of a case: contiguous, and with gaps where that may be."""
    dtypes, options = STORED[case]
    in_blocks = options.get("state_dtype") == "8bit"
    p0, given = draw((8195 if in_blocks else N,), 3)
    places = [np.array] if in_blocks else [np.array, _strided]
    params = [place(p0.astype(dtypes[0])) for place in places]
    kinds = (*dtypes, dtypes[-1])[1:]
    steps = [[[place(x.astype(kind)) for place in places] for x, kind in zip(own, kinds, strict=True)] for own in given]
    return params, steps, options


@pytest.mark.parametrize("case", STORED)
def test_storage_has_the_same_bits(toy, case, set_isa):
    params, given, options = stored(case)
    want = of_class(toy, params, given, options=options)
    before = [x.copy() for own in given for x in own[1] + own[2]]
    assert_same_bits(of_class(toy, params, given, threads=3, options=options), want)
    for level in native.isa_supported() if KNOWN else ():
        set_isa(level)
        assert_same_bits(of_class(toy, params, given, "native", 3, options=options), want)
    assert_same_bits([x for own in given for x in own[1] + own[2]], before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stored_values_are_those_of_float32_rounded(toy, backend):
    """Inputs in 16 bits are read as what they are: float32 inputs of the same values have the same bits."""
    p0, given = draw((N,), 3)
    halves = [[g, old.astype(BF), drift.astype("f2")] for g, old, drift in given]
    wide = [[g, old.astype("f4"), drift.astype("f4")] for g, old, drift in halves]
    got, want = (of_class(toy, [p0], [[[x] for x in own] for own in way], backend) for way in (halves, wide))
    assert_same_bits(got, want)


@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_have_the_bits_of_dense_steps(toy, backend, duplicates):
    """Each row named once: a dense step of these rows. Rows that are not named, and all inputs, stay."""
    p0, given = draw((23, 17), 2)
    rows = np.array([5, 0, 22, 7])
    for dtype in ("f4", BF):
        got, want = ([x.astype(dtype) for x in (p0, *states_of(p0))] for _ in range(2))
        part = [x[rows] for x in want]
        for t, (g, *inputs) in enumerate(given.astype(dtype), 1):
            read = dict(zip(TOY.inputs, map(misaligned if t == 2 else np.array, inputs), strict=True))
            for x in read.values():
                x.flags.writeable = False
            grad = RowSparse(rows, g[rows], duplicates=duplicates)
            toy.function(got[0], grad, *got[1:], **read, step=t, **HYPER, backend=backend, threads=2)
            dense = {name: x[rows] for name, x in read.items()}
            toy.function(part[0], g[rows], *part[1:], **dense, step=t, **HYPER, backend="numba")
        for x, own in zip(want, part, strict=True):
            x[rows] = own
        assert_same_bits(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stage_measures_inputs(backend, set_isa):
    """The same bits for layouts and threads, near the formula; and of 16-bit parameters, states and inputs."""
    with registered(MEASURED) as (function, cls):
        for n in (5, 20_000):
            p0, given = draw((n,), 3)
            want = [p0.astype("f8"), np.zeros(n)]
            for g, old, _ in given.astype("f8"):
                moved, square = ((want[0] - old) ** 2).sum(), 0.75 * (g**2).sum()
                want[1] = 0.75 * want[1] + g + want[0] - old
                want[0] = want[0] - 0.75 / (1 + np.sqrt(moved) + np.sqrt(square)) * want[1]
            ways = [(np.array, 1), (_strided, 2)]
            for k, (place, threads) in enumerate(ways):
                for level in native.isa_supported() if backend == "native" else [None]:
                    set_isa(level)
                    got = [place(p0), place(np.zeros_like(p0))]
                    for t, (g, old, _) in enumerate(given, 1):
                        function(got[0], g, got[1], old=place(old), step=t, backend=backend, threads=threads)
                    if k == 0:
                        first = [x.copy() for x in got]
                        assert all(np.abs(a - b).max() < 1e-5 for a, b in zip(got, want, strict=True))
                    assert_same_bits(got, first)
            halves = {}
            for way in {"numba", backend}:
                p = p0.astype(BF)
                optimizer = cls([p], backend=way, state_dtype="float16", rounding="kahan")
                for g, old, _ in given:
                    optimizer.step([g], inputs={"old": [old.astype(BF)]})
                halves[way] = [p, *(np.asarray(x) for x in optimizer.state[0].values())]
            assert_same_bits(halves[backend], halves["numba"])


# ---- the class ----


def stepped(toy, p0, given, **call):
    """What the functional form makes of it, for comparison."""
    return functionally(toy, p0, given, backend="numba", **call)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_class_does_the_steps_of_the_functional_form(toy, backend):
    p0, given = draw((N,), 6)
    want = stepped(toy, p0, given)
    p, held = p0.copy(), given.copy()
    optimizer = toy.cls(p, **HYPER, start=START, backend=backend)
    for t, (g, old, drift) in enumerate(given):
        if t < 2:  # arrays that are there, kept
            held[0] = g, old, drift
            optimizer.step(held[0, 0], inputs={"old": held[0, 1], "drift": held[0, 2]})
        elif t == 2:  # others
            optimizer.step(g.copy(), inputs={"drift": drift.copy(), "old": old.copy()})
        elif t == 3:  # of another layout
            optimizer.step(g, inputs={"drift": _strided(drift), "old": old})
        else:  # another input alone
            optimizer.step(g, inputs={"drift": drift.copy(), "old": old})
    assert_same_bits([p, *(optimizer.state[0][state] for state in TOY.state_names)], want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_reads_what_its_inputs_hold_then(toy, backend):
    p0, given = draw((N,), 3)
    p, (g, old, drift) = p0.copy(), np.zeros((3, N), "f4")
    optimizer = toy.cls(p, **HYPER, start=START, backend=backend)
    plan = optimizer.bind(g, {"old": old, "drift": drift})
    for g[...], old[...], drift[...] in given:
        plan.step()
    assert_same_bits([p], stepped(toy, p0, given)[:1])


def test_structures_skipped_parameters_and_rows(toy):
    """Nested parameters, of which some have no gradient and one has rows; groups of their own, one that joins later."""
    shapes = {"a": (7,), "b": (5, 3), "c": (11,)}
    p0 = {name: draw(shape)[0] for name, shape in shapes.items()}
    given = {name: draw(shape, 3, seed=9)[1] for name, shape in shapes.items()}
    params = {name: p.copy() for name, p in p0.items()}
    optimizer = toy.cls({"x": {"a": params["a"], "b": params["b"]}}, **HYPER, start=START)
    want = {name: [p.copy(), *states_of(p)] for name, p in p0.items()}
    done = dict.fromkeys(shapes, 0)
    for t in range(3):
        if t == 1:
            optimizer.add_param_group({"params": params["c"], "lr": 0.1})
        present = ["a" if t == 0 else "", "b", "c" if t else ""]
        grads, old, drift = ({name: given[name][t, k].copy() for name in shapes} for k in range(3))
        rows = RowSparse(np.array([1, 4]), grads["b"][[1, 4]]) if t == 2 else grads["b"]
        nested = [{"x": {"a": grads["a"] if t == 0 else None, "b": rows}}]
        inputs = [[{"x": {"a": x["a"] if t == 0 else None, "b": x["b"]}}] for x in (old, drift)]
        for part, x in zip((nested, *inputs), (grads, old, drift), strict=True):
            part += [x["c"]] * (t > 0)
        if t == 0:
            nested, inputs = nested[0], [x[0] for x in inputs]
        optimizer.step(nested, inputs={"old": inputs[0], "drift": inputs[1]})
        for name in filter(None, present):
            done[name] += 1
            grad = RowSparse(np.array([1, 4]), grads["b"][[1, 4]]) if name == "b" and t == 2 else grads[name]
            hyper = {**HYPER, "lr": 0.1} if name == "c" else HYPER
            own = want[name]
            toy.function(own[0], grad, *own[1:], old=old[name], drift=drift[name], step=done[name], **hyper)
    assert_same_bits(params.values(), [own[0] for own in want.values()])


def test_accumulated_gradients_and_limits(toy):
    p0, given = draw((N,), 2)
    p = p0.copy()
    optimizer = toy.cls(p, **HYPER, start=START, backend="numba")
    for g, old, drift in given:
        optimizer.accumulate(g / 2)
        optimizer.accumulate(g / 2)
        optimizer.step(inputs={"old": old, "drift": drift}, max_norm=1e9, clip_value=1e9, skip_nonfinite=True)
    assert_same_bits([p], stepped(toy, p0, given)[:1])
    assert optimizer.last_grad_norm == pytest.approx(np.linalg.norm(given[1, 0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_set_to_zero_and_inputs_are_not(toy, backend):
    p0, given = draw((N,), 2)
    p = p0.copy()
    optimizer = toy.cls(p, **HYPER, start=START, backend=backend)
    for own in given.copy():
        before = own.copy()
        optimizer.step(own[0], inputs={"old": own[1], "drift": own[2]}, zero_grads=True)
        assert_same_bits(own, [np.zeros(N, "f4"), *before[1:]])
    assert_same_bits([p], stepped(toy, p0, given)[:1])
    g = np.ones(2 * N, "f4")
    with pytest.raises(ValueError, match=r"inputs\['old'\]: found memory shared with grads"):
        optimizer.step(g[:N], inputs={"old": g[5 : N + 5], "drift": g[N:]}, zero_grads=True)
    plan = optimizer.bind(g[:N], {"old": g[:N], "drift": g[N:]})
    with pytest.raises(ValueError, match=r"inputs\['old'\]: found memory shared with grads"):
        plan.step(zero_grads=True)
    plan.step()


def test_states_in_files_with_inputs_in_files_that_cannot_be_written(toy, tmp_path):
    n = 400_000
    p0, given = draw((n,), 2)
    want = stepped(toy, p0, given)
    p = p0.copy()
    optimizer = toy.cls(p, **HYPER, start=START, backend="numba", state_dir=tmp_path / "states", state_memory=5 << 20)
    for t, (g, old, drift) in enumerate(given):
        for name, x in (("g", g), ("old", old)):
            x.tofile(tmp_path / f"{name}{t}")
        g, old = (np.memmap(tmp_path / f"{name}{t}", "f4", "r") for name in ("g", "old"))
        optimizer.step(g, inputs={"old": old, "drift": drift})
    assert_same_bits([p, *(optimizer.state[0][state] for state in TOY.state_names)], want)


def test_tensors_that_get_other_memory_are_noticed(toy):
    torch = pytest.importorskip("torch")
    p, (g, old, drift) = torch.ones(5), torch.ones(3, 5)
    optimizer = toy.cls(p, **HYPER, backend="numba")
    old = old.clone()
    plan = optimizer.bind(g, {"old": old, "drift": drift})
    plan.step()
    old.data = torch.zeros(5)
    with pytest.raises(ValueError, match=r"inputs\['old'\]: found a tensor that has other memory"):
        plan.step()
    want = np.array([x.numpy() for x in (p, *optimizer.state[0].values()) if x.ndim])
    other = toy.cls(q := torch.ones(5), **HYPER, backend="numba")
    other.step(g, inputs={"old": torch.ones(5), "drift": drift})
    assert_same_bits([np.array([x.numpy() for x in (q, *other.state[0].values()) if x.ndim])], [want])
    other.step(g, inputs={"old": old, "drift": drift})
    assert bool((q != torch.from_numpy(want[0])).any())


# ---- what bad input gets ----

A = np.ones(4, "f4")
BAD = {
    "none": (None, TypeError, "inputs: found None.*, expected a mapping with old, drift"),
    "an array": (A, TypeError, "inputs: found array.*, expected a mapping with old, drift"),
    "one missing": ({"old": A}, ValueError, "inputs: found other names than the rule's.*; missing: 'drift'"),
    "one more": ({"old": A, "drift": A, "new": A}, ValueError, "expected old, drift; too many: 'new'"),
    "a list": ({"old": [A, A], "drift": A}, TypeError, r"inputs\['old'\]: found list, expected one array"),
    "no array": ({"old": None, "drift": A}, TypeError, r"inputs\['old'\]: found None.*, expected an array, for grads"),
    "another shape": (
        {"old": A, "drift": A[:3]},
        ValueError,
        r"inputs\['drift'\]: found shape \(3,\), expected \(4,\)",
    ),
    "another dtype": ({"old": A.astype("f8"), "drift": A}, TypeError, r"inputs\['old'\]: found dtype float64"),
    "bytes": ({"old": A.astype("u1"), "drift": A}, TypeError, r"inputs\['old'\]: found dtype uint8"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_inputs_are_refused(toy, case):
    inputs, error, message = BAD[case]
    p = np.ones(4, "f4")
    optimizer = toy.cls(p, **HYPER)
    for call in (optimizer.step, optimizer.bind):
        with pytest.raises(error, match=message):
            call(A, inputs=inputs)
    assert (p == 1).all() and optimizer.state[0]["step"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_input_shares_no_memory_with_what_is_written(toy, backend):
    p, optimizer = (q := np.ones(8, "f4"))[:4], None
    optimizer = toy.cls(p, **HYPER, backend=backend)
    for old in (p, q[2:6], optimizer.state[0]["total"]):
        with pytest.raises(ValueError, match=r"inputs\['old'\]: found memory shared with"):
            optimizer.step(A, inputs={"old": old, "drift": A})
    optimizer.step(A, inputs={"old": A, "drift": A})  # read twice, as the gradient
    optimizer.step(A, inputs={"old": q[4:], "drift": A})
    with pytest.raises(ValueError, match=r"inputs\['old'\]: found memory shared with"):
        optimizer.step(A, inputs={"old": q[3:7], "drift": A})  # where an array of that layout may be elsewhere


def test_functional_inputs_are_named(toy):
    p, states = np.ones(4, "f4"), states_of(A)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'drift'"):
        toy.function(p, A, *states, old=A, step=1)
    with pytest.raises(ValueError, match=r"drift: found shape \(3,\), expected \(4,\) as param has"):
        toy.function(p, A, *states, old=A, drift=A[:3], step=1)
    with pytest.raises(ValueError, match="old: found memory shared with param"):
        toy.function(p, A, *states, old=p, drift=A, step=1)
    with pytest.raises(TypeError, match="old: found a list, expected one array as param is"):
        toy.function(p, A, *states, old=[A], drift=A, step=1)
    with pytest.raises(ValueError, match=r"drift: found 2 arrays, expected 1 as param has"):
        toy.function([p], [A], *([s] for s in states), old=[A], drift=[A, A], step=1)
    assert (p == 1).all()
    toy.function([p], [A], *([s] for s in states), old=[A], drift=[A], step=1, backend="numba")
    assert (p != 1).all()


def test_where_no_inputs_can_be_given_such_rules_are_refused(toy, monkeypatch):
    from fastopt.distributed import synchronous

    refused = "found Toy, which reads old, drift beside the gradient, expected another: the step of fastopt.Toy"
    monkeypatch.setattr(synchronous, "EVERY_CLASS", {**synchronous.EVERY_CLASS, "Toy": toy.cls})
    with pytest.raises(ValueError, match=f"optimizer: {refused}"):
        synchronous.Synchronous(toy.cls, np.ones(4), slices=2)
    torch, optim = pytest.importorskip("torch"), pytest.importorskip("fastopt.torch")
    cls = type("Toy", (optim.Optimizer,), {"_arguments": toy.cls._arguments})
    with pytest.raises(ValueError, match=rf"fastopt.torch: {refused}"):
        cls([torch.ones(3)])


def test_other_classes_take_no_inputs():
    with pytest.raises(TypeError, match="inputs"):
        fastopt.Adam(np.ones(4, "f4")).step(A, inputs={"old": A})


@pytest.mark.slow
def test_kernels_of_ones_own(toy):
    import numba

    from fastopt.numba import _namespace

    space, (p0, given) = _namespace(TOY), draw((5,), 1)

    @numba.njit(error_model="numpy")
    def step(p, g, a, b, c, d, old, drift):
        fold, _, _ = space.fold(np.float32, 1, 0.05, 0.8, 0.5)
        for i in range(p.size):
            p[i], a[i], b[i], c[i], d[i] = space.update(p[i], g[i], a[i], b[i], c[i], d[i], old[i], drift[i], fold)

    got = [p0.copy(), *states_of(p0)]
    g, old, drift = given[0]
    step(got[0], g, *got[1:], old, drift)
    assert_same_bits(got, stepped(toy, p0, given))


# ---- the C library ----


def test_a_c_program_is_told_of_inputs():
    for name, rule in rules.RULES.items():
        number = native.lib.fastopt_find_rule(name.encode())
        assert number < 0 or native.lib.fastopt_get_rule(number).inputs == len(rule.inputs)


@pytest.mark.skipif(not KNOWN, reason="the C library does not know the toy: the slow test runs this with one that does")
def test_the_c_interface_takes_inputs_behind_the_states():
    ffi, lib = native.ffi, native.lib
    number = lib.fastopt_find_rule(b"toy")
    rule = lib.fastopt_get_rule(number)
    assert [ffi.string(rule.input_names[k]).decode() for k in range(rule.inputs)] == list(TOY.inputs)
    assert rule.input_names[rule.inputs] == ffi.NULL and rule.states == 4
    p0, given = draw((N,), 2)
    with registered() as (function, _):
        want = stepped(SimpleNamespace(function=function), p0, given)
    got = [p0.copy(), *states_of(p0)]
    hyper, scalars, coefficients = (ffi.new("double[]", size) for size in (24, 4, 24))
    assert lib.fastopt_defaults(number, hyper, scalars) == 0
    for name, value in HYPER.items():
        assert lib.fastopt_set_hyper(number, hyper, name.encode(), value) == 0
    stored = ffi.new("int32_t[]", [0] * 8)
    storage = ffi.new("fastopt_storage *", {"dtypes": stored})
    for t, (g, *inputs) in enumerate(given, 1):
        arrays = ffi.new("void *[]", [ffi.from_buffer(x) for x in (got[0], g, *got[1:], *inputs)])
        assert lib.fastopt_fold(number, t, 1.0, hyper, scalars, coefficients) == 0
        tensors = 0, 1, 1, ffi.new("int64_t[]", [N]), arrays, coefficients
        if t == 1:
            assert lib.fastopt_update(number, *tensors, 2) == 0
        else:
            assert lib.fastopt_update_stored(number, *tensors, storage, t, 2) == 0
            for k in (6, 7):  # which are in no blocks
                stored[k] = lib.FASTOPT_BLOCKS_SIGNED
                assert lib.fastopt_update_stored(number, *tensors, storage, t, 2) == lib.FASTOPT_BAD_STORAGE
                stored[k] = lib.FASTOPT_FLOAT32
    assert_same_bits(got, want)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or KNOWN, reason="the loader is told of the other library as Linux's is")
def test_a_c_library_with_the_toy_has_the_same(tmp_path):
    """This file again, with the package's own code over a C library of this one rule."""
    built = build_library(tmp_path)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "", "-p", "no:cacheprovider", __file__]
    ran = subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(built)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "native-array" not in ran.stdout and "passed" in ran.stdout


# ---- limits: what the rule says of itself ----


def made(states=(), inputs=(), own=("lr",), step="p - c * g", **more):
    """A rule of these names."""
    names = [*(state.name for state in states), *inputs]
    space = {}
    after = ", ".join((step, *(state.name for state in states)))
    exec(
        f"def fold({', '.join(('t', *own))}): return (lr,)\n"
        f"def update({', '.join(('p', 'g', *names, 'c'))}): return ({after},)",
        space,
    )
    hyper = {name: rules.Hyper((0.5,) if name == "betas" else 1.0, "", vector=name == "betas") for name in own[:2]}
    return Rule("many", "Many", "", "", "", hyper, space["update"], space["fold"], states, inputs=inputs, **more)


def test_a_rule_says_which_inputs_it_has():
    rule = made((State("m"),), ("old",))
    assert (rule.beside, rule.coefficients, rule.count_arrays(1)) == (("m", "old"), ("c",), 4)
    with pytest.raises(ValueError, match=r"must be the states \('average',.*, then the inputs \('drift', 'old'\)"):
        Rule("toy", "Toy", "", "", "", TOY.own, TOY.update, TOY.fold, TOY.states, TOY.scalars, inputs=("drift", "old"))
    with pytest.raises(ValueError, match="rule many: found inputs beside betas, expected one of the two"):
        made((State("m"),), ("old",), ("lr", "betas", "copies"))
    with pytest.raises(ValueError, match="rule many: found inputs beside a stage over rows, expected one of the two"):
        by_row = rules.Stage("row", rules.RULES["rowwise_adagrad"].stage.measure, lambda square, m, old, c: (m, c))
        made((State("m"),), ("old",), stage=by_row)
    with pytest.raises(ValueError, match=r"rule many: found the constant 0.5 in update, expected a coefficient"):
        made(step="p - 0.5 * g")
    with pytest.raises(ValueError, match="rule many: found 'lr' twice among the names of arguments"):
        made((State("m"),), ("lr",))
