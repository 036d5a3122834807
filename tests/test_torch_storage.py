"""Storage below float32 in the classes for PyTorch: the NumPy classes' bits, through all of torch's own machinery."""

import copy
import io
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.arrays.libraries import numpy_of, view
from fastopt.binding.blocks import from_blocks

from .support import gradients, parameter

torch = pytest.importorskip("torch", reason="torch is not installed")

import fastopt.torch as optim  # noqa: E402

OPTIONS = [
    {},
    {"state_dtype": "bfloat16"},
    {"state_dtype": torch.float16, "ema_decay": 0.9},
    {"state_dtype": "8bit", "rounding": "stochastic", "seed": 3},
    {"state_dtype": "float32", "rounding": "kahan"},
    {"state_dtype": "8bit", "rounding": "master"},
]
NAMES = [name for name in optim.CLASSES if name in fastopt.__all__]


def _given(name):
    return {"lr": 0.05, "weight_decay": 0.01, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})}


def _pair(name, options, sizes=(5003, 100, 0)):
    """Make optimizers of the classes for torch and for NumPy with equal parameters."""
    arrays = [parameter(n).astype(ml_dtypes.bfloat16) for n in sizes]
    tensors = [torch.from_numpy(a.view(np.uint16).copy()).view(torch.bfloat16).requires_grad_() for a in arrays]
    own = {**_given(name), **({"momentum": 0.9, "dampening": 0.0} if name == "SGD" else {})}
    plain = (
        {**options, "state_dtype": str(options["state_dtype"]).removeprefix("torch.")}
        if "state_dtype" in options
        else options
    )
    return (
        arrays,
        getattr(fastopt, name)(arrays, **own, **plain),
        tensors,
        getattr(optim, name)(tensors, **own, **options),
    )


def _step(arrays, first, tensors, second, t):
    grads = [g.astype(ml_dtypes.bfloat16) for g in (gradients(a.size, 1, seed=t)[0] for a in arrays)]
    first.step(grads)
    for p, g in zip(tensors, grads, strict=True):
        p.grad = torch.from_numpy(g.view(np.uint16)).view(torch.bfloat16)
    second.step()


def _same(arrays, first, tensors, second):
    for i, (a, p) in enumerate(zip(arrays, tensors, strict=True)):
        assert numpy_of(p).tobytes() == a.tobytes()
        for name, state in first.state[i].items():
            if name in second.state[p] and name != "step":
                found = second.state[p][name]
                assert (numpy_of(found) if found.ndim else found.numpy()).tobytes() == state.tobytes(), name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_the_numpy_classes(name, options):
    arrays, first, tensors, second = _pair(name, options)
    for t in range(4):
        _step(arrays, first, tensors, second, t)
    _same(arrays, first, tensors, second)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_saving_loading_copying(options):
    arrays, first, tensors, second = _pair("Adam", options)
    _step(arrays, first, tensors, second, 0)
    file = io.BytesIO()
    torch.save({"optimizer": second.state_dict(), "params": [p.detach().clone() for p in tensors]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    leaves = [p.clone().requires_grad_() for p in saved["params"]]
    loaded = optim.Adam(leaves, lr=1.0, **options)
    loaded.load_state_dict(saved["optimizer"])
    copied = copy.deepcopy(second)
    twins = [p for group in copied.param_groups for p in group["params"]]
    _step(arrays, first, tensors, second, 1)
    for others, optimizer in ((leaves, loaded), (twins, copied)):
        for p, q in zip(others, tensors, strict=True):
            p.grad = q.grad.clone()
        optimizer.step()
        _same(arrays, first, others, optimizer)
    # And into the NumPy class, and back.
    again = [a.copy() for a in arrays]
    plain = {
        key: str(value).removeprefix("torch.") if key == "state_dtype" else value for key, value in options.items()
    }
    third = fastopt.Adam(again, **_given("Adam"), **plain)
    third.load_state_dict(second.state_dict())
    _step(again, third, tensors, second, 2)
    _same(again, third, tensors, second)
    second.load_state_dict(third.state_dict())
    _step(again, third, tensors, second, 3)
    _same(again, third, tensors, second)


def test_bfloat16_is_as_near_to_torchs_own_as_rounding_allows():
    p0 = torch.randn(4000, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name in ("AdamW", "SGD"):
        ours, theirs = p0.clone().requires_grad_(), p0.clone().requires_grad_()
        momentum = {"momentum": 0.9} if name == "SGD" else {"betas": (0.9, 0.99)}
        first, second = (
            getattr(optim, name)([ours], lr=0.02, **momentum),
            getattr(torch.optim, name)([theirs], lr=0.02, **momentum),
        )
        for t in range(10):
            grad = torch.randn(4000, generator=torch.Generator().manual_seed(t + 1)).bfloat16()
            ours.grad, theirs.grad = grad.clone(), grad.clone()
            first.step()
            second.step()
        moved = (theirs - p0).float().abs().mean()
        assert (ours - theirs).float().abs().mean() < 0.1 * moved
        # Either's state dict is the other's.
        second.load_state_dict(first.state_dict())
        first.load_state_dict(second.state_dict())


STORED = {
    "float32": (torch.float32, {}),
    "float64": (torch.float64, {}),
    "bfloat16": (torch.bfloat16, {"state_dtype": "bfloat16"}),
    "float16": (torch.float16, {"state_dtype": "float16"}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "master": (torch.bfloat16, {"state_dtype": "float32", "rounding": "master"}),
}


def _stepped(kind, name="Adam", grad=0.5):
    dtype, options = STORED[kind]
    p = torch.linspace(-1, 1, 5000).reshape(50, 100).to(dtype).t().requires_grad_()
    optimizer = getattr(optim, name)([p], **options)
    p.grad = torch.linspace(-grad, grad, 5000).reshape(50, 100).to(dtype).t()
    optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("into", STORED)
@pytest.mark.parametrize("kind", STORED)
def test_states_of_other_bits_are_converted(kind, into):
    p, one = _stepped(kind)
    q, other = _stepped(into, grad=0.1)
    kept = {name: x.dtype for name, x in other.state[q].items()}
    other.load_state_dict(one.state_dict())
    assert {name: x.dtype for name, x in other.state[q].items()} == kept
    assert float(other.state[q]["step"]) == 1 and other.param_groups[0]["lr"] == one.param_groups[0]["lr"]
    coarse = {"8bit": 2**-4, "bfloat16": 2**-8, "master": 2**-8, "float16": 2**-9}
    bound = max(coarse.get(kind, 0), coarse.get(into, 0), 1e-6)
    for name, largest in (("exp_avg", 0.05), ("exp_avg_sq", 0.00025)):
        found = [_values(x, optimizer, name) for x, optimizer in ((p, one), (q, other))]
        assert np.abs(found[0] - found[1]).max() <= bound * largest
    if into == "master" != kind:
        assert torch.equal(other.state[q]["master"], q.float())
    q.grad = torch.ones_like(q)
    other.step()
    assert float(other.state[q]["step"]) == 2


def _values(p, optimizer, name):
    state = optimizer.state[p][name]
    if state.dtype != torch.uint8:
        return state.double().numpy()
    return from_blocks(state.numpy(), name == "exp_avg_sq", view(p, "p")).astype(np.float64)


def test_states_are_not_converted_to_what_cannot_hold_them():
    _, one = _stepped("float32", grad=1e10)
    for into, said in (("float16", "beyond what this optimizer's float16 can hold"), ("8bit", "infinity or NaN")):
        q, other = _stepped(into)
        saved = one.state_dict()
        if into == "8bit":
            next(iter(saved["state"].values()))["exp_avg"][0, 0] = torch.nan
        before = copy.deepcopy(other.state[q])
        with pytest.raises(ValueError, match=said):
            other.load_state_dict(saved)
        assert all(torch.equal(x, before[name]) for name, x in other.state[q].items())
    saved["state"][0]["exp_avg"] = torch.zeros(7, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\['exp_avg'\]: found shape \(7,\), expected \(5200,\)"):
        other.load_state_dict(saved)


def test_a_group_has_states_of_its_own_dtype():
    """8-bit states beside an embedding table that is updated by rows."""
    dense, table = torch.zeros(5000, requires_grad=True), torch.nn.Embedding(5000, 2, sparse=True)
    with torch.no_grad():
        table.weight.zero_()
    groups = [{"params": [dense]}, {"params": [table.weight], "state_dtype": torch.float32}]
    optimizer = optim.Adam(groups, state_dtype="8bit")
    (dense.sum() + table(torch.tensor([1, 3, 3])).sum()).backward()
    optimizer.step()
    assert optimizer.state[dense]["exp_avg"].dtype == torch.uint8
    assert optimizer.state[table.weight]["exp_avg"].dtype == torch.float32
    assert (table.weight[1] != 0).all() and (table.weight[2] == 0).all() and (dense != 0).all()
    # It is the optimizer's that loads, not that of what is loaded.
    other = optim.Adam([{"params": [dense]}, {"params": [table.weight], "state_dtype": "bfloat16"}])
    other.load_state_dict(optimizer.state_dict())
    assert other.state[dense]["exp_avg"].dtype == torch.float32
    assert other.state[table.weight]["exp_avg"].dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"found 8-bit blocks.*its group may have a state_dtype of its own"):
        alone = optim.Adam([table.weight], state_dtype="8bit")
        alone.step()
    with pytest.raises(TypeError, match=r"param_groups\[0\]: found 'rounding' in a group"):
        optim.Adam([{"params": [dense], "rounding": "kahan"}])


def test_steps_are_skipped_and_gradients_zeroed():
    p = torch.ones(300, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.full_like(p, 2.0)
    optimizer = optim.AdamW([p], lr=0.1)
    p.grad[7] = float("nan")
    optimizer.step(skip_nonfinite=True)
    assert optimizer.last_step_skipped and (p == 1).all() and (p.grad[:7] == 2).all()
    p.grad[7] = 2.0
    version = p.grad._version
    optimizer.step(skip_nonfinite=True, zero_grads=True, max_norm=1.0)
    assert not optimizer.last_step_skipped and (p != 1).all() and not p.grad.any() and p.grad._version > version
    assert optimizer.last_grad_norm == pytest.approx(2 * 300**0.5)


def test_sgd_counts_steps_where_rounding_needs_it():
    p = torch.zeros(4096, dtype=torch.bfloat16, requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0, rounding="stochastic")
    found = []
    for _ in range(2):
        with torch.no_grad():
            p.zero_()
        p.grad = torch.full((4096,), 1 + 2**-8).to(torch.bfloat16) * 0 + 1
        optimizer.param_groups[0]["lr"] = 1 + 2**-9
        optimizer.step()
        found.append(p.detach().clone())
    assert int(optimizer.state[p]["step"]) == 2 and not torch.equal(*found)


def test_gradients_to_be_zeroed_share_no_memory():
    params = [torch.ones(300, requires_grad=True) for _ in range(2)]
    optimizer = optim.SGD(params, lr=1.0)
    for p in params:
        p.grad = torch.ones(300)
    optimizer.step(zero_grads=True)
    params[1].grad = params[0].grad.fill_(1)
    with pytest.raises(
        ValueError, match=r"the gradient of .*\[1\]\W+ found memory shared with the gradient of .*\[0\]"
    ):
        optimizer.step(zero_grads=True)
    params[1].grad = torch.ones(1).expand(300)
    with pytest.raises(ValueError, match=r"the gradient of .*\[1\]\W+ found a view whose elements share memory"):
        optimizer.step(zero_grads=True)
    assert all((p == 0).all() for p in params) and (params[0].grad == 1).all()


def test_bfloat16_without_ml_dtypes():
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, torch, fastopt
import fastopt.torch as optim
p = torch.ones(5000, dtype=torch.bfloat16, requires_grad=True)
p.grad = torch.full_like(p, 2.0)
optimizer = optim.AdamW([p], lr=0.1, state_dtype="8bit", rounding="kahan", ema_decay=0.9)
optimizer.step(max_norm=1.0, skip_nonfinite=True)
assert p[0] != 1
norm = optim.clip_grad_norm_([p], 1.0)
assert norm == torch.tensor(2 * 5000**0.5).bfloat16() and abs(float(p.grad[0]) * 5000**0.5 - 1) < 0.01
optimizer.step(zero_grads=True)
assert not p.grad.any()
try:
    fastopt.Adam([np.zeros(3, "f4")], state_dtype="bfloat16")
except ModuleNotFoundError as error:
    assert "pip install ml_dtypes" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_float16_parameters_have_float32_states():
    p = torch.full((64,), 0.58, dtype=torch.float16, requires_grad=True)
    for options, dtype in [({}, torch.float32), ({"state_dtype": torch.float16}, torch.float16)]:
        optimizer = optim.Adam([p], **options)
        p.grad = torch.full_like(p, 60000.0)
        optimizer.step()
        assert {optimizer.state[p][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {dtype}
