"""The classes against torch.optim, with default and with other hyper-parameters, over param groups and schedules."""

import numpy as np
import pytest

import fastopt

from .support import gradients, parameter

torch = pytest.importorskip("torch", reason="torch is not installed")

CASES = [
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.01, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 1.0}),
    ("SGD", {"lr": 0.01, "momentum": 1.1, "nesterov": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-6}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-5, "weight_decay": 0.1}),
    ("Adadelta", {"rho": 1.0}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 1.0, "eps": 1e-2}),
    ("RMSprop", {"alpha": 1.0, "eps": 1e-2, "momentum": 1.0}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-6, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "momentum": 0.7, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-2, "centered": True, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-2, "centered": True, "momentum": 0.7, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.1, "amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": True}),
    ("Adamax", {}),
    ("Adamax", {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.1}),
    ("ASGD", {}),
    ("ASGD", {"lr": 0.05, "lambd": 0.02, "alpha": 0.6, "t0": 4, "weight_decay": 0.1}),
    ("RAdam", {}),
    ("RAdam", {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}),
    ("Rprop", {}),
    ("Rprop", {"lr": 0.02, "etas": (0.4, 1.3), "step_sizes": (1e-4, 0.05)}),
    ("NAdam", {}),
    ("NAdam", {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "momentum_decay": 0.1}),
]
BOUND = 64  # epsilons of the largest magnitude that the element's trajectory had, after 25 steps


@pytest.fixture
def double_scalars():
    """torch's NAdam keeps its product of momenta in the default dtype: in float32 it would differ by 1e-7."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_scalars")
@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_same_trajectory(name, options, dtype, backend):
    p0, grads = parameter(203).astype(dtype), gradients(203, 25).astype(dtype)
    theirs = torch.tensor(p0, requires_grad=True)
    reference = getattr(torch.optim, name)([theirs], **options)
    ours = torch.nn.Parameter(torch.tensor(p0))
    optimizer = getattr(fastopt, name)([ours], backend=backend, **options)
    scale = np.abs(p0)
    for t, g in enumerate(grads):
        if t == 10:
            reference.param_groups[0]["lr"] *= 0.5
            optimizer.param_groups[0]["lr"] *= 0.5
        theirs.grad = torch.tensor(g)
        reference.step()
        optimizer.step([torch.tensor(g)])
        scale = np.maximum(scale, np.abs(theirs.detach().numpy()))
    error = np.abs(ours.detach().numpy() - theirs.detach().numpy()) / scale / np.finfo(dtype).eps
    assert error.max() < BOUND
    state = reference.state[theirs]
    for key, value in optimizer.state[0].items():
        if key in state:  # all but what torch keeps under names of its own
            got, want = np.asarray(value, np.float64), np.asarray(state[key], np.float64)
            np.testing.assert_allclose(got, want, rtol=1e-3 if dtype == "float32" else 1e-9, atol=1e-12)
    expected = {k for k, v in state.items() if v is not None}  # torch keeps an unused momentum_buffer as None
    assert expected - {"step"} == set(optimizer.state[0]) - {"step"}


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("scale", [1e20, 1e-20])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "NAdam", "RMSprop", "Adadelta", "Adagrad"])
def test_same_trajectory_of_gradients_near_the_ends_of_float32(name, foreach, scale, backend):
    if name in ("Adadelta", "Adagrad"):  # whose sums of squares are larger
        scale = min(scale, 1e18)
    foreach = foreach or name == "NAdam"  # else torch corrects the average before its root, and has infinity
    p0, grads = np.ones(5, "f4"), (np.outer(np.linspace(0.5, 1, 12), [1, -1, 0.5, 0.1, 0]) * scale).astype("f4")
    theirs = torch.tensor(p0, requires_grad=True)
    reference = getattr(torch.optim, name)([theirs], foreach=foreach)
    ours = p0.copy()
    optimizer = getattr(fastopt, name)([ours], backend=backend)
    for g in grads:
        theirs.grad = torch.tensor(g)
        reference.step()
        optimizer.step([g])
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4)
    assert np.isfinite(ours).all()
    if scale > 1:
        assert (ours[:4] != 1).all()


def test_parameters_of_a_model_are_updated_in_place():
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    addresses = [p.data_ptr() for p in model.parameters()]
    optimizer = fastopt.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    x, y = torch.randn(64, 5, generator=torch.manual_seed(0)), torch.arange(64) % 3
    losses = []
    for _ in range(60):
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step([p.grad for p in model.parameters()])
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert addresses == [p.data_ptr() for p in model.parameters()]


def test_replaced_memory_is_noticed():
    p, g = torch.ones(4), torch.ones(4)
    optimizer = fastopt.SGD([p], lr=1.0)
    optimizer.step([g])
    p.data = torch.full((4,), 5.0)
    optimizer.step([g])
    assert p.tolist() == [4.0] * 4
    g.data = torch.full((4,), 2.0)
    optimizer.step([g])
    assert p.tolist() == [2.0] * 4


def test_layouts():
    p0, g0 = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(0)), torch.randn(2, 3, 4, 5)
    want = p0.clone()
    fastopt.Adam([want], lr=0.1).step([g0])
    for layout in (torch.channels_last, torch.contiguous_format):
        p = p0.clone(memory_format=layout)
        fastopt.Adam([p], lr=0.1).step([g0])
        assert torch.equal(p, want)
    wide = torch.zeros(2, 3, 4, 10)
    wide[..., ::2] = p0
    fastopt.Adam([wide[..., ::2]], lr=0.1).step([g0])
    assert torch.equal(wide[..., ::2], want)
    assert (wide[..., 1::2] == 0).all()


def test_tensors_without_a_backend():
    with pytest.raises(fastopt.BackendUnavailable, match=r"params\[0\].*meta.*\.cpu\(\)"):
        fastopt.SGD([torch.ones(3, device="meta")])
    with pytest.raises(TypeError, match=r"params\[0\].*int16.*float32"):
        fastopt.SGD([torch.ones(3, dtype=torch.int16)])
    with pytest.raises(TypeError, match="grads: found 2 sparse dimensions, expected 1: rows"):
        fastopt.SGD([torch.ones(3, 3)]).step([torch.ones(3, 3).to_sparse()])
    with pytest.raises(TypeError, match=r"grads\[1\]: found 2 sparse dimensions"):
        fastopt.SGD([torch.ones(3), torch.ones(3, 3)]).step([torch.ones(3), torch.ones(3, 3).to_sparse()])
    with pytest.raises(TypeError, match="sparse_csr"):
        fastopt.SGD([torch.ones(3, 3)]).step([torch.ones(3, 3).to_sparse_csr()])
