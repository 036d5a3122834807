"""The global norm: one result whatever the backend, threads, layout; and clipping as torch's."""

import math
from concurrent.futures import Future

import numpy as np
import pytest

import fastopt
from fastopt.backends import numba_cpu


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_same_bits_whatever_threads_backend_and_layout(dtype):
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n).astype(dtype) for n in (1, 100_003, 4096, 0, 4097, 200_000)]
    want = fastopt.global_norm(grads, backend="native", threads=1)
    exact = math.sqrt(math.fsum(float(x) ** 2 for g in grads for x in g))
    assert want == pytest.approx(exact, rel=1e-14)
    wide = [np.repeat(g, 2)[::2] for g in grads]
    for backend in ("native", "numba"):
        for threads in (1, 2, 3, 4):
            assert fastopt.global_norm(grads, backend=backend, threads=threads) == want
            assert fastopt.global_norm(wide, backend=backend, threads=threads) == want


@pytest.mark.parametrize("how", ["late", "none"])
def test_a_thread_does_the_part_of_one_that_does_not_begin(monkeypatch, how):
    class Pool:
        _max_workers = 64

        def submit(self, work, *part):
            if how == "none":
                raise RuntimeError("no thread is to be had")
            return Future()  # which nobody begins

    grads = np.random.default_rng(0).standard_normal(2_000_003, np.float32)
    want = fastopt.global_norm(grads, backend="numba", threads=1)
    fastopt.global_norm(2 * grads, backend="numba", threads=1)  # its sums are what the memory has at first
    monkeypatch.setattr(numba_cpu.threads, "_team", 0)  # as where there is no C library
    monkeypatch.setattr(numba_cpu.threads, "_pool", Pool())
    assert fastopt.global_norm(grads, backend="numba", threads=4) == want


def test_what_it_takes():
    assert fastopt.global_norm([]) == 0.0
    assert fastopt.global_norm({"a": np.array([3.0]), "b": None, "c": np.array([4.0], "f4")}) == 5.0
    assert fastopt.global_norm(np.array([3.0, 4.0])) == 5.0
    assert fastopt.global_norm(np.full(4, 3e38, "f4")) == pytest.approx(6e38)  # float32 squares would overflow
    assert math.isnan(fastopt.global_norm([np.array([np.nan, 1.0])]))
    assert fastopt.global_norm([np.array([np.inf, 1.0])]) == math.inf
    assert fastopt.global_norm([np.full(3, 1e200)]) == math.inf
    with pytest.raises(TypeError, match=r"grads\[0\]: found dtype int64"):
        fastopt.global_norm([np.ones(3, "i8")])


def test_nothing_is_scaled_twice():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import fastopt.torch as optim

    g = np.full(6, 2.0, "f4")
    once = fastopt.RowSparse([0, 1], g[:4].reshape(2, 2))
    for grads, message in [
        ([g, g], r"grads\[1\]: found memory shared with grads\[0\]"),
        ({"a": g, "b": np.ones(2), "c": g[2:]}, r"grads\['c'\]: found memory shared with grads\['a'\]"),
        ([once, g[3:]], r"grads\[1\]: found memory shared with grads\[0\]"),
        ([once, once], r"grads\[1\]: found memory shared with grads\[0\]"),
        (np.broadcast_to(g, (3, 6)), "grads: found a read-only array"),
        (np.lib.stride_tricks.as_strided(g, (5, 2), (4, 4)), "grads: found a view whose elements share memory"),
    ]:
        with pytest.raises(ValueError, match=message):
            fastopt.clip_grad_norm_(grads, 1.0)
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    params[0].grad = params[1].grad = torch.from_numpy(g[:3])
    with pytest.raises(ValueError, match=r"found memory shared with"):
        optim.clip_grad_norm_(params, 1.0)
    assert (g == 2).all()
    assert fastopt.global_norm([g, g]) == pytest.approx(np.sqrt(2) * np.linalg.norm(g))
    assert fastopt.clip_grad_norm_([g[:3], g[3:]], 1.0) == pytest.approx(np.linalg.norm(np.full(6, 2.0)))
    np.testing.assert_allclose(g, 1 / np.sqrt(6), rtol=1e-5)


@pytest.mark.parametrize(
    "grads", ["abc", 1.0, [1.0, 2.0], {"a": object()}, [[np.ones(3)]], np.ones(3, "c8"), np.ma.ones(3)]
)
def test_bad_gradients_are_named(grads):
    for call in (fastopt.global_norm, lambda g: fastopt.clip_grad_norm_(g, 1.0)):
        with pytest.raises(TypeError, match=r"^grads(\[0\]|\['a'\])?: found"):
            call(grads)


def test_clipping_in_place_is_torchs():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(50).astype("f4"), rng.standard_normal((5, 5)).astype("f4")]
    theirs = [torch.zeros(g.shape, requires_grad=True) for g in grads]
    for x, g in zip(theirs, grads, strict=True):
        x.grad = torch.tensor(g)
    for limit in (100.0, 1.5, 0.0):
        norm = torch.nn.utils.clip_grad_norm_(theirs, limit)
        assert fastopt.clip_grad_norm_(grads, limit) == pytest.approx(norm.item(), rel=1e-6)
        for x, g in zip(theirs, grads, strict=True):
            np.testing.assert_allclose(g, x.grad.numpy(), rtol=1e-6)
    read_only = np.ones(4)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"grads\[1\]: found a read-only array"):
        fastopt.clip_grad_norm_([np.ones(3), read_only], 0.1)
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="max_norm"):
            fastopt.clip_grad_norm_([np.ones(3)], bad)
    with pytest.raises(TypeError, match="max_norm"):
        fastopt.SGD(np.ones(3)).step(np.ones(3), max_norm="1")
