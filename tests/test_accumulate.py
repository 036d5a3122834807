"""Gradients of several batches, added up for one step."""

import copy
import pickle

import numpy as np
import pytest

import fastopt
from fastopt.optimizers import CLASSES

RNG = np.random.default_rng(0)


def arrays(*shapes, dtype="f4"):
    return [RNG.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_step_uses_the_sum(name, dtype):
    params = arrays((5, 3), 7, (), dtype=dtype)
    same = copy.deepcopy(params)
    opt, plain = CLASSES[name](params, lr=0.1), CLASSES[name](same, lr=0.1)
    for count in (1, 3, 2):
        total = None
        for _ in range(count):
            grads = arrays((5, 3), 7, (), dtype=dtype)
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
            given = copy.deepcopy(grads)
            opt.accumulate(given)
            for array in given:
                array[...] = np.nan
        opt.step(grad_scale=1 / count, max_norm=1.0)
        plain.step(total, grad_scale=1 / count, max_norm=1.0)
        assert opt.last_grad_norm == plain.last_grad_norm
    for mine, others in zip(params, same, strict=True):
        np.testing.assert_array_equal(mine, others)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_sums_are_numpys(backend):
    """Bit for bit, of long and of strided arrays, by several threads."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    kinds = [("f4", "f4"), ("f4", bfloat16), (bfloat16, "f4"), ("f8", "f8")]
    params = [np.zeros((900, 211), kind) for kind, _ in kinds]
    opt = fastopt.SGD(params, lr=1.0, backend=backend, threads=3)
    batches = [[RNG.standard_normal((900, 422)).astype(kind)[:, ::2] for _, kind in kinds] for _ in range(3)]
    batches[1][0][:2] = np.inf
    batches[2][0][:2, 7] = -np.inf
    sums = [np.zeros(p.shape, "f8" if p.dtype == "f8" else "f4") for p in params]
    for grads in batches:
        opt.accumulate(grads)
        with np.errstate(invalid="ignore"):
            sums = [total + grad.astype(total.dtype) for total, grad in zip(sums, grads, strict=True)]
    opt.step()
    for param, total in zip(params, sums, strict=True):
        np.testing.assert_array_equal(param, (-total).astype(param.dtype))


@pytest.mark.parametrize("library", ["torch", "ml_dtypes"])
def test_sums_of_sixteen_bits_are_float32(library):
    """256 times 1 added to 512 is lost, one by one, in bfloat16, whose numbers there are 4 apart."""
    package = pytest.importorskip(library)
    if library == "torch":
        param, first, one = (package.full((3,), x, dtype=package.bfloat16) for x in (0.0, 512.0, 1.0))
    else:
        param, first, one = (np.full(3, x, package.bfloat16) for x in (0.0, 512.0, 1.0))
    opt = fastopt.SGD([param], lr=1.0)
    opt.accumulate([first])
    for _ in range(256):
        opt.accumulate([one])
    opt.step()
    assert [float(x) for x in param] == [-768.0] * 3


def test_who_has_no_gradient_is_skipped():
    params = {"a": np.ones(2), "b": {"c": np.ones(2), "d": np.ones(2)}}
    opt = fastopt.SGD(params, lr=1.0)
    opt.accumulate({"a": np.ones(2), "b": None})
    opt.accumulate({"a": None, "b": {"c": np.ones(2), "d": None}})
    opt.step()
    assert [int(state["step"]) for state in opt.state] == [1, 1, 0]
    opt.accumulate({"a": None, "b": {"c": None, "d": np.ones(2)}})
    opt.step()
    assert [int(state["step"]) for state in opt.state] == [1, 1, 1]
    assert params["a"].tolist() == [0, 0]


def test_rows_are_summed_in_their_order():
    table = np.zeros((6, 2), "f4")
    other = table.copy()
    opt, plain = fastopt.Adagrad(table, lr=0.1), fastopt.Adagrad(other, lr=0.1)
    batches = [([1, 3, 1], arrays((3, 2))[0]), ([3, 0], arrays((2, 2))[0])]
    for indices, values in batches:
        given = values.copy()
        opt.accumulate(fastopt.RowSparse(np.array(indices), given))
        given[...] = np.nan
    opt.step(max_norm=1.0)
    summed = np.zeros((6, 2), "f4")
    for indices, values in batches:
        part = np.zeros((6, 2), "f4")
        for i, value in zip(indices, values, strict=True):
            part[i] += value
        summed += part
    plain.step(fastopt.RowSparse(np.array([0, 1, 3]), summed[[0, 1, 3]]), max_norm=1.0)
    np.testing.assert_array_equal(table, other)
    assert not table[[2, 4, 5]].any()


def test_what_was_added_is_used_once():
    p = np.zeros(2)
    opt = fastopt.SGD(p, lr=1.0)
    opt.accumulate(np.ones(2))
    opt.step()
    with pytest.raises(TypeError, match="grads: found none, expected gradients, or some accumulated before"):
        opt.step()
    opt.step(np.ones(2))
    assert p.tolist() == [-2, -2]
    opt.accumulate(np.array([np.nan, 1.0]))
    opt.step(skip_nonfinite=True)
    assert opt.last_step_skipped
    opt.step(np.ones(2))
    assert p.tolist() == [-3, -3]


def test_rows_that_were_added_are_used_once():
    param = np.zeros((3, 1))
    opt = fastopt.SGD([param], lr=1.0)
    for row in (0, 2):
        opt.accumulate([fastopt.RowSparse(np.array([row]), np.ones((1, 1)))])
        opt.step()
    opt.accumulate([np.ones((3, 1))])  # dense ones may follow
    opt.step()
    assert param.ravel().tolist() == [-2.0, -1.0, -2.0]


def test_a_step_that_fails_keeps_the_sum():
    p = np.zeros(2)
    opt = fastopt.SGD(p, lr=1.0)
    opt.accumulate(np.ones(2))
    for wrong in ({"grads": np.ones(2)}, {"grad_scale": np.nan}, {"max_norm": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            opt.step(**wrong)
    opt.step()
    assert p.tolist() == [-1, -1]


@pytest.mark.parametrize("save", [lambda opt: opt.state_dict(), copy.copy, copy.deepcopy, pickle.dumps])
def test_what_is_accumulated_is_not_saved(save):
    opt = fastopt.Adam(np.zeros(2), lr=1.0)
    saved = opt.state_dict()
    opt.accumulate(np.ones(2))
    with pytest.raises(ValueError, match=r"grads: found some accumulated, expected none in a state dict"):
        save(opt)
    opt.load_state_dict(saved)
    save(opt)


def test_a_group_joins_in_between():
    one, two = np.zeros(2), np.zeros(3)
    opt = fastopt.SGD(one, lr=1.0)
    opt.accumulate(np.ones(2))
    opt.add_param_group({"params": two})
    opt.accumulate([np.ones(2), np.ones(3)])
    opt.step()
    assert one.tolist() == [-2, -2] and two.tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("grads", "error", "said"),
    [
        ([np.ones(2)], ValueError, "grads: found 1 arrays, expected 2"),
        ([np.ones(2), np.ones(4)], ValueError, r"grads\[1\]: found shape \(4,\)"),
        ([np.ones(2), np.ones(3, "f4")], TypeError, r"grads\[1\]: found dtype float32"),
        ([np.ones(2), [1.0]], TypeError, r"grads\[1\]: found"),
        ([np.ones(2), fastopt.RowSparse([0], np.ones(1))], ValueError, r"grads\[1\]: found another kind of gradient"),
        ([np.ones(2), fastopt.RowSparse([7], np.ones(1))], ValueError, r"grads\[1\]: found index 7"),
    ],
)
def test_wrong_gradients_add_nothing(grads, error, said):
    params = [np.zeros(2), np.zeros(3)]
    opt = fastopt.SGD(params, lr=1.0)
    opt.accumulate([np.ones(2), np.ones(3)])
    with pytest.raises(error, match=said):
        opt.accumulate(grads)
    opt.step()
    assert params[0].tolist() == [-1, -1] and params[1].tolist() == [-1, -1, -1]


def test_rows_that_are_steps_of_their_own_are_refused():
    opt = fastopt.SGD(np.zeros(3), lr=1.0)
    with pytest.raises(ValueError, match="grads: found duplicates 'sequential', expected 'sum'"):
        opt.accumulate(fastopt.RowSparse([0, 0], np.ones(2), duplicates="sequential"))
    opt.accumulate(fastopt.RowSparse([0, 0], np.ones(2)))
    with pytest.raises(ValueError, match="grads: found another kind of gradient"):
        opt.accumulate(np.ones(3))
