"""Structures of params and grads that do not fit, and views of arrays."""

import numpy as np
import pytest

import fastopt
from fastopt.arrays import runs_of, view
from fastopt.errors import install_command


@pytest.mark.parametrize(
    ("params", "grads", "error", "message"),
    [
        ([3, 4], [3], ValueError, "grads: found 1 gradients, expected 2"),
        ([3, 4], [3, 5], ValueError, r"grads\[1\]: found shape \(5,\), expected \(4,\) as params\[1\] has"),
        ([3], 3, TypeError, "grads: found ndarray, expected a sequence of 1 arrays"),
        (3, [3, 3], TypeError, "grads: found list, expected one array"),
        ({"w": 3}, [3], TypeError, "grads: found list, expected a mapping"),
        ({"w": 3}, {"v": 3}, ValueError, "'v', 'w'"),
        ({"w": 3}, {"w": 4}, ValueError, r"grads\['w'\]: found shape \(4,\)"),
        ([{"params": [3]}, {"params": [4]}], [3, 4, 5], ValueError, "grads: found 3 entries"),
        ([{"params": [3]}, {"params": [4]}], [[3], [4, 4]], ValueError, r"grads\[1\]: found 2 gradients"),
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
        ([a, [a]], TypeError, r"params\[1\]: found list"),
        ({"w": np.ones(3, "i8")}, TypeError, r"params\['w'\]: found dtype int64"),
        ([{"params": a, "betas": 0.9}], TypeError, "betas: found 0.9, expected a pair"),
        ([{"params": a, "rho": 0.9}], TypeError, r"params\[0\]: found 'rho'"),
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


def test_runs_are_as_few_as_strides_allow():
    a = np.zeros((4, 6, 8), "f4")
    assert runs_of([view(a, "a"), view(a.copy(), "b")])[2] == a.size
    t = a.transpose(2, 0, 1)
    assert runs_of([view(t, "a"), view(t.copy(order="K"), "b")])[2] == a.size
    table, strides, length = runs_of([view(a[:, ::2], "a"), view(a[:, 1::2], "b")])
    assert (len(table), strides, length) == (8, [64, 64], 12) or length * len(table) == 96
    table, _, length = runs_of([view(a[:, :0], "a")])
    assert len(table) * length == 0


def test_no_backend_of_that_name():
    assert fastopt.available_backends()["native"] == "available"
    reason = fastopt.available_backends()["numba-cuda"]
    if reason == "available":
        pytest.skip("this machine has a CUDA device")
    assert install_command("cuda") in reason or "driver" in reason or "device" in reason
    with pytest.raises(fastopt.BackendUnavailable, match="numba-cuda"), fastopt.use_backend("numba-cuda"):
        pass
