"""Schedule-Free classes: parameters moved between where gradients are taken and where they are to be evaluated."""

import copy
import pickle

import numpy as np
import pytest

import fastopt

from .support import assert_same_bits, gradients, parameter

N = 5000  # enough for blocks of 8 bits
CLASSES = {"ScheduleFreeSGD": {"lr": 0.1, "momentum": 0.8}, "ScheduleFreeAdamW": {"lr": 0.02, "betas": (0.8, 0.99)}}
NEAR = (1 - 0.8) / 0.8  # how far y is ahead of x, in multiples of z - y


def stepped(name, p, steps=4, **options):
    opt = getattr(fastopt, name)(p, **CLASSES[name], **options)
    for g in gradients(p.size, steps):
        opt.step(g.reshape(p.shape).astype("f4" if p.dtype.itemsize < 8 else "f8"))
    return opt


@pytest.fixture(params=CLASSES)
def name(request):
    return request.param


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_eval_moves_to_the_average_and_train_back(name, backend):
    p = parameter(N)
    opt = stepped(name, p, backend=backend)
    y, states = p.copy(), [opt.state[0][key].copy() for key in opt.state[0]]
    opt.eval()
    x, z = p.copy(), y + opt.state[0]["z_offset"]
    np.testing.assert_allclose(0.8 * x + (1 - 0.8) * z, y, rtol=1e-14, atol=1e-15)
    assert np.abs(x - y).max() > 1e-3
    assert_same_bits([x], [y - NEAR * opt.state[0]["z_offset"]])
    assert opt.param_groups[0]["train_mode"] is False
    opt.eval()
    assert_same_bits([p, *opt.state[0].values()], [x, *states])
    opt.train()
    opt.train()
    np.testing.assert_allclose(p, y, rtol=1e-14, atol=1e-15)
    assert_same_bits(list(opt.state[0].values()), states)
    opt.step(np.ones(N))


def test_a_step_is_refused_where_parameters_are_evaluated(name):
    p, g = parameter(N), np.ones(N)
    opt = stepped(name, p)
    plan = opt.bind(g)
    opt.eval()
    before = p.copy()
    for step in (lambda: opt.step(g), plan.step, lambda: opt.step(g, max_norm=1.0), lambda: opt.bind(g).step()):
        with pytest.raises(ValueError, match=r"param_groups\[0\]: found parameters in eval mode, expected train\(\)"):
            step()
    assert_same_bits([p], [before])
    opt.train()
    plan.step()
    assert opt.state[0]["step"] == 6 - 1


def test_the_average_is_that_of_the_iterates(name):
    """With equal weights x is the mean of z_1, z_2, ...: the claim of the paper's equation for c = 1/t."""
    p = parameter(50)
    opt, iterates = getattr(fastopt, name)(p, **CLASSES[name]), []
    for g in gradients(50, 9):
        opt.step(g)
        iterates.append(p + opt.state[0]["z_offset"])
    opt.eval()
    np.testing.assert_allclose(p, np.mean(iterates, axis=0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["f4", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": "8bit"}, {"rounding": "kahan", "state_dtype": "bfloat16"}, {"rounding": "master"}]
)
def test_storage(name, dtype, options):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    p = parameter(N).astype(dtype)
    opt = stepped(name, p, ema_decay=0.9, **options)

    def value():
        kept = opt.state[0].get("compensation", 0)  # what the parameter should be less
        return opt.state[0].get("master", p).astype("f8") + np.asarray(kept).astype("f8")

    y, averages = value(), opt.state[0]["ema"].copy()
    opt.eval()
    eps = float(ml_dtypes.finfo(dtype).eps) if "rounding" not in options else 2.0**-14
    np.testing.assert_allclose(value(), y - NEAR * opt.state_values(0, "z_offset"), rtol=eps, atol=eps / 8)
    if "rounding" in options and dtype.itemsize == 2:
        np.testing.assert_allclose(p.astype("f8"), value(), rtol=float(ml_dtypes.finfo(dtype).eps))
    assert_same_bits([opt.state[0]["ema"]], [averages])
    opt.train()
    np.testing.assert_allclose(value(), y, rtol=2 * eps, atol=eps / 4)


def test_groups_copies_and_state_dicts_know_the_mode(name):
    a, b = parameter(30), parameter(30)
    second = {"params": b, ("momentum" if "SGD" in name else "betas"): 0.5 if "SGD" in name else (0.5, 0.9)}
    opt = getattr(fastopt, name)([{"params": a}, second], **CLASSES[name])
    for g in gradients(30, 3):
        opt.step([g, g])
    y = a.copy(), b.copy()
    opt.eval()
    assert_same_bits([b], [y[1] - 1.0 * opt.state[1]["z_offset"]])
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert [group["train_mode"] for group in other.param_groups] == [False, False]
        other.train()
        np.testing.assert_allclose(other.param_groups[0]["params"][0], y[0], rtol=1e-14, atol=1e-15)
    saved = fastopt.unflatten_state_dict(fastopt.flatten_state_dict(opt.state_dict()))
    x = a.copy(), b.copy()
    resumed = getattr(fastopt, name)([{"params": x[0]}, {"params": x[1]}], lr=1.0)
    resumed.load_state_dict(saved)
    with pytest.raises(ValueError, match="eval mode"):
        resumed.step([np.ones(30), None])
    resumed.train()
    opt.train()
    assert_same_bits(x, [a, b])


def test_schedules_of_momentum(name):
    p = parameter(30)
    options = {"momentum": lambda t: t / 10} if "SGD" in name else {"betas": (lambda t: t / 10, 0.9)}
    opt = getattr(fastopt, name)(p, lr=0.1, **options)
    for g in gradients(30, 5):
        opt.step(g)
    y = p.copy()
    opt.eval()
    assert_same_bits([p], [y - (1 - 0.5) / 0.5 * opt.state[0]["z_offset"]])
    opt.train()
    opt.step(np.ones(30))


def test_what_cannot_be_moved_stays(name):
    a, b = parameter(30), parameter(30)
    opt = getattr(fastopt, name)([a, b], **CLASSES[name])
    opt.eval()  # before the first step it is at both
    assert_same_bits([a], [parameter(30)])
    opt.train()
    opt.step([np.ones(30), np.ones(30)])
    opt.step([np.arange(30.0), np.ones(30)])
    before = a.copy(), b.copy()
    b.flags.writeable = False
    with pytest.raises(ValueError, match=r"params\[1\]: found a read-only array"):
        opt.eval()
    assert_same_bits([a, b], before)
    assert opt.param_groups[0]["train_mode"] is True


def test_states_in_files(name, tmp_path):
    p = parameter(N)
    with stepped(name, p, state_dir=tmp_path / "states") as opt:
        y = p.copy()
        opt.eval()
        assert_same_bits([p], [y - NEAR * opt.state[0]["z_offset"]])
        opt.train()
        opt.step(np.ones(N))


def test_torch(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from fastopt import torch as optim

    p, never = (torch.tensor(parameter(N), requires_grad=True) for _ in range(2))
    want = parameter(N)
    arrays = stepped(name, want)
    opt = getattr(optim, name)([p, never], **CLASSES[name])
    for g in gradients(N, 4):
        p.grad = torch.tensor(g)
        opt.step()
    version = p._version
    opt.eval()
    arrays.eval()
    assert_same_bits([p.detach().numpy(), never.detach().numpy()], [want, parameter(N)])
    assert p._version > version
    with pytest.raises(ValueError, match=r"param_groups\[0\]: found parameters in eval mode, expected train\(\)"):
        opt.step()
    assert_same_bits([p.detach().numpy()], [want])
    q = torch.tensor(want, requires_grad=True)
    resumed = getattr(optim, name)([q, never])
    resumed.load_state_dict(opt.state_dict())
    q.grad = torch.ones_like(q)
    with pytest.raises(ValueError, match="eval mode"):
        resumed.step()
    for one in (opt, arrays, resumed):
        one.train()
    assert_same_bits([p.detach().numpy(), q.detach().numpy()], [want, want])
    resumed.step()
    arrays.step(np.ones(N))
    assert_same_bits([q.detach().numpy()], [want])
