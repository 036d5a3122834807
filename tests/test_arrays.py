"""Structures of params and grads that do not fit, and views of arrays."""

import array
import ctypes
import mmap
import sys

import numpy as np
import pytest

import fastopt
from fastopt import functional
from fastopt.arrays.array import Array, Place
from fastopt.arrays.checks import check_tensor
from fastopt.arrays.libraries import new_array, view
from fastopt.arrays.runs import row_stride, runs_of
from fastopt.errors import install_command


@pytest.mark.parametrize(
    ("params", "grads", "error", "message"),
    [
        ([3, 4], [3], ValueError, "grads: found 1 arrays, expected 2"),
        ([3, 4], [3, 5], ValueError, r"grads\[1\]: found shape \(5,\), expected \(4,\) as params\[1\] has"),
        ([3], 3, TypeError, "grads: found ndarray, expected a sequence of 1 arrays"),
        (3, [3, 3], TypeError, "grads: found list, expected one array"),
        ({"w": 3}, [3], TypeError, "grads: found list, expected a mapping"),
        ({"w": 3}, {"v": 3}, ValueError, "missing: 'w'; too many: 'v'"),
        ({"w": 3}, {"w": 4}, ValueError, r"grads\['w'\]: found shape \(4,\)"),
        ([{"params": [3]}, {"params": [4]}], [3, 4, 5], ValueError, "grads: found 3 entries"),
        ([{"params": [3]}, {"params": [4]}], [[3], [4, 4]], ValueError, r"grads\[1\]: found 2 arrays"),
    ],
)
def test_gradients_of_another_structure(params, grads, error, message):
    def build(spec):
        if isinstance(spec, int):
            return np.ones(spec, "f4")
        if isinstance(spec, dict):
            return {key: build(value) for key, value in spec.items()}
        return [build(value) for value in spec]

    optimizer = fastopt.Adam(build(params))
    with pytest.raises(error, match=message):
        optimizer.step(build(grads))
    with pytest.raises(error, match=message):
        optimizer.bind(build(grads))
    for state in optimizer.state:
        assert state["step"] == 0
        assert not state["exp_avg"].any()


def test_parameters_that_cannot_be():
    a = np.ones(8, "f4")
    for params, error, message in [
        ([a, a[:4]], ValueError, r"params\[1\]: found memory shared with params\[0\]"),
        ([a, "b"], TypeError, r"params\[1\]: found str"),
        ([a, [a]], ValueError, r"params\[1\]\[0\]: found memory shared with params\[0\]"),
        ({"w": np.ones(3, "i8")}, TypeError, r"params\['w'\]: found dtype int64"),
        ([{"params": a, "betas": 0.9}], TypeError, "betas: found 0.9 of type float, expected a pair"),
        ([{"params": a, "rho": 0.9}], ValueError, r"params\[0\]: found 'rho'"),
        (np.lib.stride_tricks.as_strided(a, (3, 3), (4, 4)), ValueError, "elements share memory"),
    ]:
        with pytest.raises(error, match=message):
            fastopt.Adam(params)
    for options, error, message in [
        ({"lr": -1.0}, ValueError, "lr: found -1.0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\]: found 1.0"),
        ({"betas": (0.9,)}, TypeError, "betas: found"),
        ({"backend": "gpu"}, ValueError, "backend: found 'gpu'"),
        ({"threads": -1}, ValueError, "threads: found -1"),
        ({"momentum": 0.9}, TypeError, "momentum"),
    ]:
        with pytest.raises(error, match=message):
            fastopt.Adam([a], **options)
    with pytest.raises(TypeError, match="QHM: missing a required argument: 'lr'"):
        fastopt.QHM([a])
    with pytest.raises(ValueError, match="nesterov: found True with momentum 0"):
        fastopt.SGD([a], nesterov=True)
    assert (a == 1).all()


def test_gradients_that_overlap():
    block = np.ones(20, "f4")
    optimizer = fastopt.Adam([block[:5], block[5:10]])
    for grads in ([block[10:15], block[9:14]], [block[:5], block[15:]], [block[4:9], block[15:]]):
        with pytest.raises(ValueError, match=r"found memory shared with"):
            optimizer.step(grads)
    assert (block == 1).all()
    optimizer.step([block[10:15], block[10:15]])
    with pytest.raises(ValueError, match="state of params"):
        optimizer.step([optimizer.state[1]["exp_avg"], block[10:15]])
    for params in ([block[:5], block[4:5]], [block[4:5], block[:5]], [block[4:5], block[4:9]]):
        with pytest.raises(ValueError, match=r"params\[1\]: found memory shared with params\[0\]"):
            fastopt.Adam(params)
    fastopt.Adam([block[:5], block[5:6], block[3:3]])


def test_runs_are_as_few_as_strides_allow():
    a = np.zeros((4, 6, 8), "f4")
    assert runs_of([view(a, "a"), view(a.copy(), "b")])[2] == a.size
    t = a.transpose(2, 0, 1)
    assert runs_of([view(t, "a"), view(t.copy(order="K"), "b")])[2] == a.size
    table, strides, length = runs_of([view(a[:, ::2], "a"), view(a[:, 1::2], "b")])
    assert (len(table), strides, length) == (8, [64, 64], 12) or length * len(table) == 96
    table, _, length = runs_of([view(a[:, :0], "a")])
    assert len(table) * length == 0


def test_rows_have_a_stride_where_their_own_elements_are_contiguous():
    for n in (1, 2, 3):
        wide = np.zeros((4, 3 * n), "f4")
        found = [row_stride(view(x, "")) for x in (wide, wide[:, :n], wide[::-1, :n], wide[:, ::3])]
        assert found == [12 * n, 12 * n, -12 * n, 12 * n if n == 1 else None]
        deep = np.zeros((4, 5, n), "f4")
        found = [row_stride(view(x, "")) for x in (deep, deep[:, :n], deep[:, ::5], deep[:, ::2], deep[:, :, :1])]
        assert found == [20 * n, 20 * n, 20 * n, None, 20 * n if n == 1 else None]


def test_places():
    """Places are of devices by number: memory of one is none for the kernels of another, even of two arrays alone."""
    assert [(Place(f"cuda{n}").kind, Place(f"cuda{n}").number) for n in ("", ":0", ":3")] == [
        ("cuda", 0), ("cuda", 0), ("cuda", 3)
    ]  # fmt: skip
    here, there = (Array(None, 0, np.dtype("f4"), (3,), None, Place(device)) for device in ("cuda:0", "cuda:1"))
    for arrays in ([here, there], [here, here, there]):
        with pytest.raises(ValueError, match=r": found an array on cuda:1, expected one on cuda:0 as p is"):
            check_tensor(arrays, ["p", "g", "m"][: len(arrays)])


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_new_arrays_have_the_shape_that_is_asked_for_and_the_order_of_their_model(value):
    for model in (np.ones((3, 4), "f4"), np.ones((4, 3), "f4").T, np.ones((3, 8), "f4")[:, ::2]):
        same = new_array(model, view(model, ""), np.dtype("f8"), (3, 4), value)
        assert (same == value).all() and same.dtype == "f8" and same.flags.f_contiguous == model.flags.f_contiguous
        rows = new_array(model, view(model, ""), np.dtype("f4"), (3,), value)
        assert rows.tolist() == [value] * 3


def test_no_backend_of_that_name():
    assert fastopt.available_backends()["native"] == "available"
    reason = fastopt.available_backends()["numba-cuda"]
    if reason == "available":
        pytest.skip("this machine has a CUDA device")
    assert install_command("cuda") in reason or "driver" in reason or "device" in reason
    with pytest.raises(fastopt.BackendUnavailable, match="numba-cuda"), fastopt.use_backend("numba-cuda"):
        pass


# ---- memory that moves, and arrays that are none ----


class Fresh:
    """An array that exports other memory each time it is asked."""

    shape, dtype = (1000,), np.dtype("f4")

    def __init__(self, value):
        self.value = value

    def __dlpack__(self, **options):
        return np.full(self.shape, self.value, self.dtype).__dlpack__(**options)

    def __dlpack_device__(self):
        return (1, 0)


def scribble():
    """Takes the memory that was just let go, if it was."""
    return [np.full(Fresh.shape, 1e9, "f4") for _ in range(20)]


def test_exported_memory_lives_as_long_as_it_is_used():
    grad = Fresh(1.0)
    p = np.zeros(Fresh.shape, "f4")
    optimizer = fastopt.SGD(p, lr=1.0)
    taken = []
    for t in range(4):
        optimizer.step(np.ones_like(p) if t == 2 else grad)
        taken.append(scribble())
        grad.value += 1
    np.testing.assert_array_equal(p, -np.full_like(p, 1 + 2 + 1 + 4))
    plan = optimizer.bind(grad)
    taken.append(scribble())
    plan.step()
    functional.sgd(p, grad, step=1, lr=1.0)
    np.testing.assert_array_equal(p, -np.full_like(p, 8 + 5 + 5))
    assert fastopt.global_norm(grad) == pytest.approx(5 * np.sqrt(1000))
    p = Fresh(1.0)
    optimizer = fastopt.Adam([p], lr=1.0)
    taken.append(scribble())
    optimizer.step([np.ones(1000, "f4")])
    assert all((x == 1e9).all() for xs in taken for x in xs)


def test_memory_of_bound_arrays_cannot_move():
    grown = array.array("f", [1.0] * 100)
    memory = bytearray(400)
    mapped = mmap.mmap(-1, 4096)
    root = np.zeros(1000, "f4")
    arrays = {
        "array": (grown, lambda: grown.extend(grown)),
        "bytearray": (np.ndarray(100, "f4", memory), lambda: memory.extend(memory)),
        "mmap": (np.ndarray(100, "f4", mapped), mapped.close),
        "view": (root[100:200], lambda: root.resize(10**6, refcheck=False)),
    }
    own = np.zeros(100, "f4")
    arrays["own"] = own, lambda: own.resize(10**6, refcheck=False)
    for x, move in arrays.values():
        optimizer = fastopt.SGD(np.zeros(100, "f4"), lr=1.0)
        plans = [optimizer.bind(x), fastopt.Adam([x]).bind([np.ones(100, "f4")])]
        with pytest.raises((BufferError, ValueError)):
            move()
        for plan in plans:
            plan.step()
        del plan, plans
        optimizer.step(x)
        optimizer.step(x)
        if x is not own and x is not arrays["view"][0]:
            move()  # a step is over when it is over


def test_arrays_that_were_stepped_with_are_stepped_where_they_are_next_time():
    optimizer = fastopt.SGD(np.zeros(100, "f4"), lr=1.0)
    for step in (lambda p, g: optimizer.step(g), lambda p, g: functional.sgd(p, g, step=1, lr=1.0)):
        p = np.zeros(100, "f4")
        for part in (slice(None, 100), slice(100, 200)):
            root = np.ones(1000, "f4")
            for _ in range(2):
                step(p, root[part])
            root.resize(10**6, refcheck=False)
            root[:] = 2.0
            before = optimizer.param_groups[0]["params"][0].copy(), p.copy()
            step(p, root[part])
            after = optimizer.param_groups[0]["params"][0], p
            assert sorted(float((x - y).max()) for x, y in zip(before, after, strict=True)) == [0.0, 2.0]


def speaker(**answers):
    """An object that speaks a protocol, with what it answers."""
    return type("Says", (), answers)()


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def capsule(shape=(3,), strides=None, *, data=None, code=2, bits=32, lanes=1, ndim=None, name=b"dltensor"):
    """A DLPack capsule of whatever it is told, with the memory that it needs as attributes."""
    from fastopt.arrays.libraries.dlpack import _Tensor

    kept = [(ctypes.c_int64 * len(x))(*x) if x is not None else None for x in (shape, strides)]
    tensor = _Tensor(data, (1, 0), len(shape) if ndim is None else ndim, code, bits, lanes, *map(_pointer, kept), 0)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    made = make(ctypes.addressof(tensor), name, None)
    return speaker(__dlpack__=lambda self, **_: made, __dlpack_device__=lambda self: (1, 0), kept=(kept, tensor, name))


def _pointer(numbers):
    return None if numbers is None else ctypes.cast(numbers, ctypes.POINTER(ctypes.c_int64))


FLOATS = np.arange(1.0, 13.0, dtype="f4")
NO_ARRAYS = {
    "str": "abc",
    "bytes": b"abcdefgh",
    "nothing": object(),
    "number": 3.0,
    "list": [1.0, 2.0, 3.0],
    "masked": np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0], dtype="f4"),
    "swapped": np.ones(3, ">f4"),
    "object": np.ones(3, object),
    "complex": np.ones(3, "c8"),
    "long double": np.ones(3, "g"),
    "integers": np.ones(3, "i8"),
    "bool": np.ones(3, bool),
    "text": np.ones(3, "U3"),
    "time": np.ones(3, "M8[s]"),
    "structured": np.ones(3, [("a", "f4")]),
    "void": np.ones(3, "V2"),
    "series": speaker(to_numpy=lambda self: FLOATS[:3], __array__=lambda self, *_: FLOATS[:3]),
    "interface only": speaker(__array_interface__=FLOATS[:3].__array_interface__),
    "interface fails": speaker(__array_interface__=property(failing(RuntimeError("gone")))),
    "device fails": speaker(__dlpack__=1, __dlpack_device__=failing(RuntimeError("deleted"))),
    "device is none": speaker(__dlpack__=1, __dlpack_device__=lambda self: None),
    "device is text": speaker(__dlpack__=1, __dlpack_device__=lambda self: ("cpu", "x")),
    "export fails": speaker(__dlpack__=failing(BufferError("busy")), __dlpack_device__=lambda self: (1, 0)),
    "export fails oddly": speaker(__dlpack__=failing(KeyError()), __dlpack_device__=lambda self: (1, 0)),
    "export of no capsule": speaker(__dlpack__=lambda self, **_: 7, __dlpack_device__=lambda self: (1, 0)),
    "used capsule": capsule(data=FLOATS.ctypes.data, name=b"used_dltensor"),
    "no memory": capsule(data=None),
    "negative shape": capsule((-3,), data=FLOATS.ctypes.data),
    "endless": capsule((2**40, 2**40), data=FLOATS.ctypes.data),
    "far apart": capsule((3,), (2**61,), data=FLOATS.ctypes.data),
    "dimensions": capsule(ndim=-1, data=FLOATS.ctypes.data),
    "many dimensions": capsule(ndim=65, data=FLOATS.ctypes.data),
    "vectors": capsule(data=FLOATS.ctypes.data, lanes=4),
    "bits": capsule(data=FLOATS.ctypes.data, bits=4),
    "opaque": capsule(data=FLOATS.ctypes.data, code=3),
    "float8": capsule(data=FLOATS.ctypes.data, bits=8),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_is_no_array_is_named(kind):
    odd, p = NO_ARRAYS[kind], np.ones(3, "f4")
    within = r"(\[0\])?" if kind == "list" else ""  # parameters may be nested
    for call, name in [
        (lambda: fastopt.SGD([p, odd], lr=1.0), r"params\[1\]"),
        (lambda: fastopt.SGD({"w": odd}, lr=1.0), r"params\['w'\]"),
        (lambda: fastopt.SGD([p, p.copy()], lr=1.0).step([None, odd]), r"grads\[1\]"),
        (lambda: fastopt.SGD([p, p.copy()], lr=1.0).bind([p.copy(), odd]), r"grads\[1\]"),
        (lambda: fastopt.SGD({"v": p, "w": p.copy()}, lr=1.0).step({"v": None, "w": odd}), r"grads\['w'\]"),
        (lambda: functional.sgd([p], [odd], step=1, lr=1.0), "grad"),
        (lambda: functional.adam([p], [p.copy()], [p.copy()], [odd], step=1, lr=1.0), "exp_avg_sq"),
        (lambda: fastopt.global_norm([p, odd]), r"grads\[1\]"),
        (lambda: fastopt.RowSparse([0, 1, 2], odd), "values"),
    ]:
        with pytest.raises(TypeError, match=f"^{name}{within}: found") as caught:
            call()
        assert "expected" in str(caught.value) or "cannot be viewed" in str(caught.value)
    with pytest.raises((TypeError, ValueError), match=r"^weights: found"):
        fastopt.RowSparse.bags([0, 1, 2], [0, 1, 2], np.ones(3), odd)
    assert (p == 1).all()


def test_what_to_do_about_what_cannot_be_updated():
    for odd, advice in [
        ([1.0], r"np.array\(x, dtype\) makes one"),
        (NO_ARRAYS["series"], r"x.to_numpy\(copy=True\) makes one"),
        (NO_ARRAYS["interface only"], r"np.array\(x\) makes one"),
        (NO_ARRAYS["masked"], r"x.filled\(0\)"),
    ]:
        with pytest.raises(TypeError, match=advice):
            fastopt.SGD([odd], lr=1.0)


class Plain:
    """An array of a library from before DLPack had versions."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, *, stream=None):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


@pytest.mark.parametrize(
    "layout",
    [
        lambda a: a,
        lambda a: a.T,
        lambda a: a[::2],
        lambda a: a[:, ::3],
        lambda a: a[::-1, ::-1],
        lambda a: a[::2, :1],
        lambda a: a[:1, 1:5],
        lambda a: a[:0, ::2],
        lambda a: a[:, None, 2],
    ],
)
def test_exports_in_any_layout(layout):
    """The bits are those of the array itself, and nothing between its elements is written."""
    memory, reference = np.arange(48.0).reshape(6, 8), np.arange(48.0).reshape(6, 8)
    grads = np.random.default_rng(1).standard_normal((6, 8))
    fastopt.Adam(Plain(layout(memory)), lr=0.1).step(Plain(layout(grads)))
    fastopt.Adam(layout(reference), lr=0.1).step(layout(grads))
    np.testing.assert_array_equal(memory, reference)
    assert layout(memory).size == 0 or (memory != np.arange(48.0).reshape(6, 8)).sum() == layout(memory).size


def test_exports_of_any_age_and_dtype():
    p = np.ones((3, 4), "f4")
    fastopt.SGD([Plain(p)], lr=1.0).step([Plain(np.asfortranarray(p))])
    assert (p == 0).all()
    halves = np.array([1.0, 2.0, 3.0], "f4").view(np.uint16)[1::2].copy()  # bfloat16 by its bits
    x = np.ones(3, "f4")
    functional.sgd(x, capsule(data=halves.ctypes.data, code=4, bits=16), step=1, lr=1.0)
    np.testing.assert_array_equal(x, [0, -1, -2])
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # before, it exports none that is read-only
        read_only = np.ones(3, "f4")
        read_only.flags.writeable = False
        with pytest.raises(ValueError, match=r"params\[0\]: found a read-only array"):
            fastopt.SGD(
                [speaker(__dlpack__=lambda _, **o: read_only.__dlpack__(**o), __dlpack_device__=lambda _: (1, 0))]
            )


def test_arrays_of_jax():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    for dtype in ("float32", "bfloat16", "float16"):
        p, g = np.zeros((3, 4), "f4"), jax.numpy.arange(12, dtype=dtype).reshape(3, 4)
        optimizer = fastopt.SGD([p], lr=1.0)
        optimizer.step([g])
        optimizer.step([g])
        optimizer.step([g + 1])
        np.testing.assert_array_equal(p, -3 * np.arange(12.0).reshape(3, 4) - 1)
        with pytest.raises(ValueError, match=r"found a JAX array, which nothing may change \(np.array\(x\)"):
            fastopt.SGD([g], lr=1.0)
        g.delete()
        with pytest.raises(TypeError, match=r"grads: found ArrayImpl that cannot be viewed: "):
            optimizer.step([g])


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="other Pythons have objects of their own")
def test_numpys_arrays_are_read_in_c():
    """Else each step asks each array, which takes ten times as long."""
    native = pytest.importorskip("fastopt.backends.native", exc_type=ImportError)
    assert native._can_read_arrays()


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_arrays_of_any_layout_at_random(backend):
    """Odd layouts are updated as plain ones are, or refused with what is wrong; nothing beside them is written."""
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(150):
        shape = tuple(rng.integers(0, 5, rng.integers(0, 4)))
        arrays = [_odd_array(rng, shape) for _ in range(4)]
        before = [_block_of(x).copy() for x in arrays]
        p, g, m, v = (np.array(x) for x in arrays)
        try:
            functional.adam(*arrays, step=1, backend=backend)
        except (TypeError, ValueError) as error:
            assert str(error).split(":")[0] in ("param", "grad", "exp_avg", "exp_avg_sq"), error
            for x, old in zip(arrays, before, strict=True):
                np.testing.assert_array_equal(_block_of(x), old)
            continue
        taken += 1
        functional.adam(p, g, m, v, step=1, backend=backend)
        for x, want in zip(arrays, (p, g, m, v), strict=True):
            np.testing.assert_array_equal(x, want)
    assert taken > 30


def _block_of(x):
    return x if x.base is None else _block_of(x.base)


def _odd_array(rng, shape):
    """A view of a larger block: any steps, directions and order of axes; rarely one that cannot be updated."""
    dtype = rng.choice(["f4", "f4", "f4", "f4", "f4", "f4", "f2", "f8", ">f4"])
    steps, order = rng.integers(1, 3, len(shape)), rng.permutation(len(shape))
    whole = [n * s for n, s in zip(np.array(shape, int)[order], steps[order], strict=True)]
    block = rng.random(int(np.prod(whole)) + 2).astype(dtype)
    start = rng.integers(0, 3)
    x = block[start : start + int(np.prod(whole))].reshape(whole).transpose(np.argsort(order))
    x = x[(..., *(slice(None, None, s) for s in steps))]
    x = x[(..., *(slice(None, None, rng.choice([1, 1, -1])) for _ in shape))]
    if rng.random() < 0.05:
        x = np.lib.stride_tricks.as_strided(x, shape, (0,) * len(shape))
    if rng.random() < 0.05:
        x = x[..., None]
    if rng.random() < 0.03:
        x.flags.writeable = False
    return x


@pytest.mark.parametrize("count", [1, 4, 31, 32, 33, 300])
def test_any_number_of_arrays_is_read(count):
    """Words that C has no room for at first are those that asking each array gives."""
    native = pytest.importorskip("fastopt.backends.native", exc_type=ImportError)
    kinds = np.zeros((2, 3), "f4"), None, np.zeros((3, 4), ">f8")[:, ::2], np.zeros(0, "f2"), np.zeros(())
    arrays = tuple(kinds[i % len(kinds)] for i in range(count))
    layouts, addresses = native.read_arrays(arrays)
    assert list(np.frombuffer(addresses, np.uint64)) == [0 if x is None else x.ctypes.data for x in arrays]
    assert layouts == b"".join(native.read_arrays((x,))[0] for x in arrays)


@pytest.mark.parametrize("other", [1.0, np.zeros(2).view(np.matrix), np.zeros(2, "S4"), np.zeros(2, "M8[s]")])
def test_what_is_no_plain_array_is_not_read(other):
    native = pytest.importorskip("fastopt.backends.native", exc_type=ImportError)
    assert native.read_arrays((np.zeros(3), other)) is native.read_arrays((other,)) is None
    assert native.read_arrays(()) is None
    with pytest.raises((TypeError, SystemError)):
        native.read_arrays([np.zeros(3)])
