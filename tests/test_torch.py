"""fastopt.torch: torch.optim's trajectories, its state dicts both ways, and all that a training does around it."""

import copy
import inspect
import io
import math
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest

import fastopt
from fastopt.errors import install_command

from .support import assert_same_bits

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.optim import lr_scheduler  # noqa: E402

import fastopt.torch as optim  # noqa: E402
from fastopt.drop_in.classes import signature_of  # noqa: E402

# torch's SparseAdam takes no dense gradients: see tests/test_sparse.py.
SHARED = [name for name in optim.CLASSES if hasattr(torch.optim, name) and name != "SparseAdam"]
OWN = [name for name in optim.CLASSES if not hasattr(torch.optim, name)]
NUMPY = {"SparseAdam": ("Adam", {"eps_hat": True})}
REQUIRED = {"QHM": {"lr": 0.05}}
BY_ROW = ("RowwiseAdagrad",)  # these need rows whose elements are contiguous
# Options beside those of torch's own table.
VARIED = [
    ("SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": True}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {"lr": 0.02, "betas": (0.8, 0.99), "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("NAdam", {"lr": 0.02, "momentum_decay": 0.1, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "weight_decay": 0.1}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.02, "momentum": 0.7, "centered": True, "eps": 1e-2, "weight_decay": 0.1}),
    ("Adamax", {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.1}),
]
BOUND = 64  # epsilons of the largest magnitude of a trajectory


def tensors(dtype=torch.float32, seed=0):
    """Parameters with the layouts that models have: dense, transposed, channels last, a scalar, empty, a slice."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return [
        random(7, 5),
        random(4, 6).t(),
        random(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        random(()),
        random(0),
        random(6, 10)[:, ::3],
    ]


def tensors_for(name):
    return [t.contiguous() for t in tensors()] if name in BY_ROW else tensors()


def leaves(values):
    """Parameters with the values' layouts and memory of their own."""
    made = []
    for value in values:
        storage = torch.zeros(value.untyped_storage().nbytes() // value.element_size(), dtype=value.dtype)
        p = torch.as_strided(storage, value.shape, value.stride())
        p.copy_(value)
        made.append(p.requires_grad_())
    return made


def twins(name, options, dtype=torch.float32, **fixed):
    """Make an optimizer of torch's and one of ours with equal parameters."""
    lacking = {**options, **fixed}.keys() - inspect.signature(getattr(torch.optim, name)).parameters.keys()
    if lacking:
        pytest.skip(f"{name} of PyTorch {torch.__version__} has no {', '.join(sorted(lacking))}")
    theirs, ours = leaves(tensors(dtype)), leaves(tensors(dtype))
    return (
        theirs,
        getattr(torch.optim, name)(theirs, **options, **fixed),
        ours,
        getattr(optim, name)(ours, **options),
    )


def give_gradients(*sets, step, missing=()):
    """Give each set of parameters equal gradients."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, members in enumerate(zip(*sets, strict=True)):
        grad = torch.randn(members[0].shape, generator=generator, dtype=members[0].dtype)
        for p in members:
            p.grad = None if i in missing else torch.empty_like(p).copy_(grad)


def assert_close(ours, theirs, start, bound=BOUND):
    for a, b, s in zip(ours, theirs, start, strict=True):
        if a.numel():
            scale = max(1.0, float(b.detach().abs().max()), float(s.abs().max()))
            error = float((a.detach() - b.detach()).abs().max()) / scale / torch.finfo(a.dtype).eps
            assert error < bound, error


def train(optimizer, params, steps, first=0, grads=give_gradients):
    for t in range(first, first + steps):
        grads(params, step=t)
        optimizer.step()


# ---- the same trajectories ----


def optim_db():
    pytest.importorskip("expecttest", reason="torch's own test tables need expecttest: pip install expecttest")
    from torch.testing._internal import common_optimizers

    return {info.optim_cls.__name__: info for info in common_optimizers.optim_db}


@pytest.fixture
def double_scalars():
    """torch's NAdam keeps its product of momenta in the default dtype: in float32 it would differ by 1e-7."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_scalars")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SHARED)
def test_torchs_own_cases(name, dtype):
    for case in optim_db()[name].optim_inputs_func(device="cpu"):
        theirs, reference, ours, optimizer = twins(name, case.kwargs, dtype)
        for t in range(20):
            give_gradients(theirs, ours, step=t, missing=(1, 3) if t % 3 == 1 else ())
            reference.step()
            optimizer.step()
        assert_close(ours, theirs, tensors(dtype))


@pytest.mark.usefixtures("double_scalars")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), VARIED)
def test_other_options(name, options, dtype):
    theirs, reference, ours, optimizer = twins(name, options, dtype)
    for t in range(20):
        give_gradients(theirs, ours, step=t)
        reference.step()
        optimizer.step()
        if t == 9:
            for group in (*reference.param_groups, *optimizer.param_groups):
                group["lr"] *= 0.5
    assert_close(ours, theirs, tensors(dtype))


@pytest.mark.parametrize("name", SHARED)
def test_torchs_own_error_cases(name):
    """Calls that torch refuses are refused, but for those that only its implementation cannot do."""
    may = ("lr as a Tensor is not supported", "betas must be either both", r"betas\[0\] as a Tensor")
    for case in optim_db()[name].optim_error_inputs_func(device="cpu", dtype=torch.float32):
        if any(case.error_regex.startswith(text) for text in may):
            continue
        given, warned = case.optimizer_error_input, issubclass(case.error_type, Warning)
        with pytest.warns(case.error_type) if warned else pytest.raises((case.error_type, TypeError)):
            getattr(optim, name)(given.params, **given.kwargs)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("name", optim.CLASSES)
def test_same_bits_as_the_numpy_class(name, backend):
    options = REQUIRED.get(name, {})
    ours = leaves(tensors_for(name))
    arrays = [np.array(p.detach().numpy()) for p in ours]
    twin, more = NUMPY.get(name, (name, {}))
    one, other = (
        getattr(optim, name)(ours, **options, backend=backend),
        getattr(fastopt, twin)(arrays, **options, **more),
    )
    for t in range(8):
        give_gradients(ours, step=t)
        one.step()
        other.step([p.grad.numpy() for p in ours])
    assert_same_bits([p.detach().numpy() for p in ours], arrays)


# ---- state dicts ----


@pytest.mark.usefixtures("double_scalars")
@pytest.mark.parametrize("how", ["memory", "file"])
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in SHARED), *VARIED])
def test_state_dicts_go_both_ways(name, options, how):
    """A run begun with torch goes on with fastopt on the same trajectory, and back."""

    def carried(state_dict):
        if how == "memory":
            return copy.deepcopy(state_dict)
        file = io.BytesIO()
        torch.save(state_dict, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    theirs, reference, ours, optimizer = twins(name, options, torch.float64)
    alone = leaves(tensors(torch.float64))
    unbroken = getattr(torch.optim, name)(alone, **options)
    for t in range(24):
        missing = (0,) if t in (2, 3, 9) else ()
        give_gradients(theirs, ours, alone, step=t, missing=missing)
        reference.step()
        optimizer.step()
        unbroken.step()
        if t % 8 == 7:
            one, other = carried(reference.state_dict()), carried(optimizer.state_dict())
            assert one["state"].keys() == other["state"].keys()
            for index, state in one["state"].items():
                kept = {key for key, value in state.items() if value is not None}
                assert kept == other["state"][index].keys()
                for key in kept:
                    assert state[key].shape == other["state"][index][key].shape
            assert one["param_groups"][0].keys() <= other["param_groups"][0].keys()
            optimizer.load_state_dict(one)
            reference.load_state_dict(other)
    assert_close(ours, alone, tensors(torch.float64))
    assert_close(theirs, alone, tensors(torch.float64))


@pytest.mark.parametrize("duplicate", ["state_dict", "deepcopy", "pickle", "file"])
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in OWN), *VARIED])
def test_a_training_resumed_goes_on_bit_for_bit(name, options, duplicate):
    options = {**REQUIRED.get(name, {}), **options}
    ours = leaves(tensors_for(name))
    optimizer = getattr(optim, name)(ours, **options, threads=2)
    train(optimizer, ours, 5)
    optimizer.param_groups[0]["lr"] *= 0.5
    if duplicate in ("deepcopy", "pickle"):
        make = copy.deepcopy if duplicate == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x))
        other = make(optimizer)
        resumed = other.param_groups[0]["params"]
        assert other._threads == 2
    else:
        resumed = leaves([p.detach() for p in ours])
        other = getattr(optim, name)(resumed, **REQUIRED.get(name, {}))
        saved = optimizer.state_dict()
        if duplicate == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        other.load_state_dict(saved)
    train(optimizer, ours, 5, first=5)
    train(other, resumed, 5, first=5)
    assert_same_bits([p.detach().numpy() for p in resumed], [p.detach().numpy() for p in ours])


def test_a_loaded_state_is_a_copy():
    ours = leaves(tensors())
    one = optim.Adam(ours)
    train(one, ours, 1)
    other = optim.Adam(leaves(tensors()))
    other.load_state_dict(one.state_dict())
    before = other.state_dict()["state"][0]["exp_avg"].clone()
    train(one, ours, 1)
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], before)
    assert float(other.state_dict()["state"][0]["step"]) == 1


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in (*SHARED, *OWN)), *VARIED])
def test_state_dicts_between_torch_and_numpy_classes(name, options, tmp_path):
    """torch's files load into the NumPy classes, and theirs into torch's."""
    options = {**REQUIRED.get(name, {}), **options}
    numpys = dict(options)
    if numpys.pop("decoupled_weight_decay", False):
        numpys["decoupled_weight_decay"] = numpys.pop("weight_decay")
    params = leaves([t.contiguous() for t in tensors(torch.float64)])
    optimizer = (getattr(torch.optim, name) if name in SHARED else getattr(optim, name))(params, **options)
    train(optimizer, params, 4)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    arrays = [p.detach().numpy().copy() for p in params]
    ours = getattr(fastopt, name)(arrays, **numpys)
    ours.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for t in range(4, 8):
        give_gradients(params, step=t)
        optimizer.step()
        ours.step([p.grad.numpy() for p in params])
    assert_close([torch.from_numpy(a) for a in arrays], params, tensors(torch.float64), bound=1e9)  # float32 mu_product
    torch.save(fastopt.torch_state_dict(ours.state_dict()), tmp_path / "ours.pt")
    back = leaves([torch.from_numpy(a) for a in arrays])
    resumed = (getattr(torch.optim, name) if name in SHARED else getattr(optim, name))(back, **options)
    resumed.load_state_dict(torch.load(tmp_path / "ours.pt", weights_only=True))
    for key, value in ours.state[0].items():
        if key in resumed.state[back[0]] and key != "step":
            assert resumed.state[back[0]][key].dtype == torch.float64
            np.testing.assert_array_equal(resumed.state[back[0]][key].numpy(), value)
    for t in range(8, 12):
        give_gradients(back, step=t)
        resumed.step()
        ours.step([p.grad.numpy() for p in back])
    bound = 1e9 if name == "ASGD" else BOUND  # whose eta torch makes float32 again
    assert_close([torch.from_numpy(a) for a in arrays], back, tensors(torch.float64), bound)


NO_COUNTS = [
    torch.tensor(-1.0), 1.9, float("inf"), float("nan"), 1e300, 2**63, "1", ["1"], torch.ones(2), True, 1j,
]  # fmt: skip


def test_state_dicts_that_do_not_fit_change_nothing():
    ours = leaves(tensors())
    optimizer = optim.Adam(ours, lr=0.5)
    train(optimizer, ours, 2)
    good = copy.deepcopy(optimizer.state_dict())
    state, group = good["state"][0], good["param_groups"][0]

    def broken(**changes):
        return {**copy.deepcopy(good), **changes}

    def first(**changes):
        return broken(state={**copy.deepcopy(good["state"]), 0: {**state, **changes}})

    for bad, message in [
        ({}, "found no 'state'"),
        (broken(param_groups=[]), "groups of"),
        (broken(param_groups=[{**group, "params": [0, 1]}]), "groups of"),
        (broken(param_groups=[{**group, "lr": -1.0}]), "lr: found -1.0"),
        (broken(param_groups=[{**group, "amsgrad": True}]), "max_exp_avg_sq"),
        (broken(param_groups=[{**group, "capturable": True}]), "capturable: found True"),
        (first(sum=state["exp_avg"]), r"\[0\]: found \['exp_avg', 'exp_avg_sq', 'step', 'sum'\], expected"),
        *((first(step=x), r"\[0\]\['step'\]: found .* expected a number >= 0, whole") for x in NO_COUNTS),
        (broken(state={**good["state"], 1: {**state, "step": 1e300}}), r"\[1\]\['step'\]: found 1e\+300"),
        (first(exp_avg=torch.zeros(5)), r"\['exp_avg'\]: found shape \(5,\), expected \(7, 5\)"),
        (first(exp_avg=["a", "b"]), r"\['exp_avg'\]: found list, expected a tensor"),
        (first(exp_avg=torch.zeros(7, 5, dtype=torch.int64)), "found dtype int64, expected floats"),
        (
            broken(state={0: {key: x for key, x in state.items() if key != "step"}}),
            r"\[0\]: found .* expected .*'step'",
        ),
        (broken(state={0: ["exp_avg"]}), r"\['state'\]\[0\]: found list, expected a mapping"),
        (broken(state=[]), r"\['state'\]: found list, expected a mapping"),
        (broken(state={99: state}), r"\['state'\]: found 99, expected numbers of parameters"),
        (broken(state={"weight": state}), r"\['state'\]: found 'weight', expected numbers of parameters"),
        (broken(param_groups=[{**group, "params": "abcdef"}]), r"\['params'\]: found 'abcdef'"),
        (broken(param_groups=[{**group, "params": [0] * 6}]), "expected each of them once"),
        (broken(param_groups=[{"lr": 1.0}]), r"\['param_groups'\]\[0\]: found dict, expected a mapping with 'params'"),
        (broken(param_groups=5), r"\['param_groups'\]: found int, expected a list"),
        (broken(param_groups=[{**group, "betas": "no"}]), "betas: found 'no'"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.load_state_dict(bad)
        now = optimizer.state_dict()
        assert now["param_groups"] == good["param_groups"]
        for index, states in good["state"].items():
            assert all(torch.equal(now["state"][index][key], value) for key, value in states.items())
    for other in ("Adagrad", "RMSprop", "Adadelta", "SGD"):
        with pytest.raises(ValueError, match=r"state_dict\['state'\]\[0\]: found .* expected"):
            getattr(optim, other)(leaves(tensors())).load_state_dict(good)


def test_loaded_numbers_stand_in_tables_again():
    """Counts of a loaded state are advanced together, not a tensor at a time."""
    ours = leaves(tensors())
    optimizer = optim.NAdam(ours)
    train(optimizer, ours, 1)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, ours, 1)
    for name in ("step", "mu_product"):
        assert len({optimizer.state[p][name].untyped_storage().data_ptr() for p in ours}) == 1
        assert all(float(optimizer.state[p]["step"]) == 2 for p in ours)


def test_adabound_keeps_base_lr():
    ours = leaves(tensors())
    optimizer = optim.AdaBound(ours, lr=0.01)
    optimizer.param_groups[0]["lr"] = 0.001
    other = optim.AdaBound(leaves(tensors()), lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["base_lr"] == 0.01


def test_load_hooks_run_before_the_checks():
    ours = leaves(tensors())
    optimizer = optim.Adam(ours)
    train(optimizer, ours, 1)
    saved = optimizer.state_dict()
    wrapped = {"inner": saved, "state": {}, "param_groups": []}
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda self, state_dict: state_dict["inner"])
    optimizer.register_load_state_dict_post_hook(lambda self: seen.append("loaded"))
    optimizer.register_state_dict_post_hook(lambda self, state_dict: seen.append("saved"))
    optimizer.load_state_dict(wrapped)
    optimizer.state_dict()
    assert seen == ["loaded", "saved"]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


# ---- schedulers, hooks, groups, closures, AMP ----

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[4]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=3, cycle_momentum=True),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8),
}


def test_every_scheduler_is_tried():
    abstract = {"LRScheduler"}
    assert {name for name in lr_scheduler.__all__ if name not in abstract} == set(SCHEDULERS)


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler, name, tensor_lr):
    options = {"momentum": 0.8} if name == "SGD" else {}
    theirs, ours = leaves(tensors()), leaves(tensors())
    reference, optimizer = (
        getattr(module, name)(params, lr=torch.tensor(0.05) if tensor_lr else 0.05, **options)
        for module, params in ((torch.optim, theirs), (optim, ours))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a scheduler warns where it does not see steps
        warnings.filterwarnings("ignore", "The epoch parameter in", UserWarning)
        schedules = [SCHEDULERS[scheduler](o) for o in (reference, optimizer)]
        for t in range(12):
            give_gradients(theirs, ours, step=t)
            reference.step()
            optimizer.step()
            for schedule in schedules:
                schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
    assert float(reference.param_groups[0]["lr"]) == float(optimizer.param_groups[0]["lr"])
    assert_close(ours, theirs, tensors())


def test_hooks_and_the_profiler():
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ours, (p,) = leaves(tensors()), leaves([torch.ones(3)])
    p.grad = torch.ones(3)
    optimizer = optim.SGD([p], lr=1.0)
    seen = []

    def before(which, args, kwargs):
        seen.append("before")
        assert which is optimizer
        p.grad.fill_(2.0)

    handles = [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(lambda which, args, kwargs: seen.append("after")),
        register_optimizer_step_post_hook(lambda which, args, kwargs: seen.append("everyone's")),
    ]
    optimizer.step()
    assert seen == ["before", "after", "everyone's"]
    assert p.tolist() == [-1.0] * 3
    for handle in handles:
        handle.remove()
    with torch.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    assert {"Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"} <= {e.key for e in profile.key_averages()}
    assert len(seen) == 3
    assert p.grad is None
    assert ours


def test_closures():
    (p,) = leaves([torch.tensor([3.0, -1.0])])
    optimizer = optim.SGD([p], lr=0.25)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert [float(optimizer.step(closure)) for _ in range(3)] == [10.0, 2.5, 0.625]


def test_sgd_counts_steps_only_where_rounding_needs_them():
    for options, counts in (
        ({}, False),
        ({"state_dtype": "float32"}, False),
        ({"state_dtype": "bfloat16"}, True),
        ({"state_dtype": "8bit"}, True),
        ({"rounding": "stochastic"}, True),
        ({"rounding": "kahan"}, False),
    ):
        (p,) = leaves([torch.ones(4)])
        p.grad = torch.ones(4)
        optimizer = optim.SGD([p], lr=0.1, momentum=0.9, **options)
        optimizer.step()
        assert set(optimizer.state[p]) == ({"momentum_buffer", "step"} if counts else {"momentum_buffer"})


def test_groups_added_later():
    a, b, c = leaves([torch.ones(3), torch.ones(4), torch.ones(5)])
    optimizer = optim.SGD([{"params": [a], "momentum": 0.5}, {"params": b, "name": "b's"}], lr=1.0)
    for p in (a, b, c):
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.add_param_group({"params": [c], "lr": 0.25})
    optimizer.step()
    assert [p[0].item() for p in (a, b, c)] == [1 - 1 - 1.5, -1.0, 0.75]
    assert [set(optimizer.state[p]) for p in (a, b, c) if p in optimizer.state] == [{"momentum_buffer"}]
    optimizer.param_groups[1]["momentum"] = 0.5  # another rule, as torch allows
    optimizer.step()
    optimizer.step()
    assert b[0].item() == -1.0 - 1 - 1.5
    optimizer.param_groups[2]["params"].append(torch.ones(2, requires_grad=True))
    optimizer.param_groups[2]["params"][1].grad = torch.ones(2)
    optimizer.step()
    assert optimizer.param_groups[2]["params"][1][0].item() == 0.75
    for bad, error, message in [
        ({"params": [a]}, ValueError, "more than one"),
        ({"params": [torch.ones(3)], "lr": -1.0}, ValueError, "lr: found -1.0"),
        (
            {"params": [torch.ones(3, dtype=torch.complex64, requires_grad=True)]},
            TypeError,
            r"param_groups\[3\]\[.params.\]\[0\].*complex64",
        ),
        ({"params": [b[1:]]}, ValueError, "non-leaf"),
        ({"params": [b.detach()[1:]]}, ValueError, "memory shared with"),
        (
            {"params": [torch.ones(3)], "rounding": "kahan"},
            TypeError,
            r"param_groups\[3\]: found 'rounding' in a group",
        ),
        ({"params": [torch.ones(3)], "differentiable": True}, ValueError, "differentiable: found True"),
    ]:
        with pytest.raises(error, match=message):
            optimizer.add_param_group(bad)
        assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam"])
def test_a_parameter_that_is_there_several_times(name):
    """torch warns, and updates it so many times."""
    options = {"lr": 0.1}
    theirs, ours = (leaves([torch.ones(3), torch.full((2,), 2.0), torch.ones(4)]) for _ in range(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        reference, optimizer = (
            getattr(module, name)([a, b, a, c, a], **options)
            for module, (a, b, c) in ((torch.optim, theirs), (optim, ours))
        )
    for t in range(3):
        give_gradients(theirs, ours, step=t, missing=(1,) if t == 1 else ())
        reference.step()
        optimizer.step(zero_grads=t == 2)
    assert_close(ours, theirs, [torch.ones(3), torch.full((2,), 2.0), torch.ones(4)])
    if name != "SGD":
        assert [float(optimizer.state[p]["step"]) for p in ours] == [9.0, 2.0, 3.0]
    assert not ours[0].grad.any()
    copy.deepcopy(optimizer).step()


def test_named_parameters_are_named_in_errors():
    model = torch.nn.Linear(3, 2)
    optimizer = optim.Adam(model.named_parameters())
    model.weight.grad = torch.ones(2, 3)
    model.weight.grad.untyped_storage().resize_(4)
    model.bias.grad = torch.ones(2)
    with pytest.raises(TypeError, match=r"the gradient of 'weight': found a tensor beyond its storage"):
        optimizer.step()
    assert not optimizer.state
    p = torch.ones(3, device="meta", requires_grad=True)
    optimizer = optim.Adam([p])  # as torch's: what is on no device yet may never be trained
    p.grad = torch.ones(3, device="meta")
    with pytest.raises(fastopt.BackendUnavailable, match="meta"):
        optimizer.step()


def test_flags_of_torchs_implementations():
    for flags in ({"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}):
        p = torch.ones(3, requires_grad=True)
        optimizer = optim.AdamW([p], 0.1, (0.9, 0.99), 1e-8, 0.0, **flags)  # by position, as torch's
        p.grad = torch.ones(3)
        optimizer.step()
        optimizer.zero_grad()
        assert p[0].item() == pytest.approx(0.9)
    for flag in ("differentiable", "capturable"):
        with pytest.raises(ValueError, match=f"{flag}: found True, expected False"):
            optim.Adam([torch.ones(3)], **{flag: True})
    with pytest.raises(TypeError, match=r"Adam: found 'learning_rate', expected .*; did you mean 'lr'\?"):
        optim.Adam([torch.ones(3)], learning_rate=0.1)


def test_arguments_are_torchs():
    import inspect

    for name in SHARED:
        ours = list(inspect.signature(getattr(optim, name)).parameters.items())
        theirs = list(inspect.signature(getattr(torch.optim, name)).parameters.items())
        assert [(k, p.default, p.kind) for k, p in ours[: len(theirs)]] == [(k, p.default, p.kind) for k, p in theirs]
        theirs, _, ours, _ = twins(name, {})
        groups = [module(params).param_groups[0] for module, params in zip(
            (getattr(torch.optim, name), getattr(optim, name)), (theirs, ours), strict=True)]  # fmt: skip
        expected = {key: value for key, value in groups[0].items() if key != "params"}
        assert {key: groups[1][key] for key in expected} == expected


def test_a_rule_whose_decay_is_decoupled_has_no_flag_for_it():
    """torch's AdamW has none in its arguments; a class that torch lacks has none either."""
    of_adamw = replace(optim.AdamW._arguments, name="NotOfTorch")
    assert "weight_decay" in signature_of(of_adamw).parameters
    for arguments in (of_adamw, optim.AdamW._arguments):
        assert "decoupled_weight_decay" not in signature_of(arguments).parameters


@pytest.mark.parametrize(("name", "fused"), [("SGD", False), ("Adam", False), ("RMSprop", False), ("Adam", True)])
def test_grad_scaler(name, fused):
    """A step with an infinity is skipped, and the scale halved; with ``fused`` unscaling is left to the step."""
    fused = {"fused": True} if fused else {}
    theirs, ours = ([t.contiguous() for t in tensors()] for _ in range(2))  # torch's fused ones skip other layouts
    theirs, ours = leaves(theirs), leaves(ours)
    reference, optimizer = (
        getattr(module, name)(params, lr=0.05, weight_decay=0.1, **fused)
        for module, params in ((torch.optim, theirs), (optim, ours))
    )
    assert optimizer._step_supports_amp_scaling == bool(fused)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3) for _ in range(2)]
    for t in range(10):
        if t == 8:  # what was unscaled beforehand is not again
            give_gradients(theirs, ours, step=t)
        for params, which, scaler in ((theirs, reference, scalers[0]), (ours, optimizer, scalers[1])):
            which.zero_grad()
            generator = torch.Generator().manual_seed(t)
            loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in params)
            scaler.scale(loss).backward()
            if t == 4:
                params[0].grad[0, 0] = torch.inf
            if t == 8:
                scaler.unscale_(which)
            scaler.step(which)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        for p, q in zip(theirs, ours, strict=True):  # both are left unscaled
            assert torch.equal(p.grad, q.grad)
    assert_close(ours, theirs, tensors())
    if name != "SGD":
        assert float(optimizer.state_dict()["state"][0]["step"]) == 9


def test_clipping():
    theirs, reference, ours, optimizer = twins("Adam", {"lr": 0.05})
    fused = leaves(tensors())
    other = optim.Adam(fused, lr=0.05)
    for t in range(6):
        give_gradients(theirs, ours, fused, step=t)
        limit = 3.0 if t % 2 else 1e6
        want = torch.nn.utils.clip_grad_norm_(theirs, limit)
        got = optim.clip_grad_norm_(ours, limit)
        torch.testing.assert_close(got, want)
        kept = [p.grad.clone() for p in fused]
        other.step(max_norm=limit)
        assert other.last_grad_norm == pytest.approx(float(want), rel=1e-6)
        assert all(torch.equal(p.grad, g) for p, g in zip(fused, kept, strict=True))
        reference.step()
        optimizer.step()
    assert_close(ours, theirs, tensors(), bound=1e3)
    assert_close(fused, theirs, tensors(), bound=1e3)
    assert float(optim.clip_grad_norm_([torch.ones(3)], 1.0)) == 0.0
    with pytest.raises(ValueError, match=r"norm_type: found inf, expected 2\.0"):
        optim.clip_grad_norm_(ours, 1.0, norm_type=torch.inf)
    ours[0].grad[0, 0] = torch.nan
    before = ours[1].grad.clone()
    with pytest.raises(RuntimeError, match="not finite"):
        optim.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    assert torch.equal(ours[1].grad, before)


# ---- tensors that move ----


def test_changes_between_steps_are_noticed():
    ours, theirs = leaves(tensors()), leaves(tensors())
    optimizer, reference = optim.Adam(ours, lr=0.05), torch.optim.Adam(theirs, lr=0.05)

    def step(t, **options):
        give_gradients(theirs, ours, step=t, **options)
        reference.step()
        optimizer.step()
        assert_close(ours, theirs, tensors())

    step(0, missing=(0, 2))
    step(1, missing=(0,))
    step(2)
    step(3, missing=(1, 5))
    for params in (theirs, ours):  # another memory, another layout
        params[0].data = params[0].data.clone()
        params[1].data = params[1].data.contiguous()
    step(4)
    for which, params in ((reference, theirs), (optimizer, ours)):
        which.state[params[0]]["exp_avg"] = torch.ones(7, 5)
        which.state[params[2]]["step"] = torch.tensor(40.0)
        which.state[params[3]]["exp_avg_sq"].share_memory_()
        del which.state[params[5]]
    step(5)
    for which in (reference, optimizer):
        which.state.clear()
    step(6)
    give_gradients(theirs, ours, step=7)
    for params in (theirs, ours):  # gradients laid out otherwise
        params[0].grad = params[0].grad.t().contiguous().t()
        params[4].grad = None
    reference.step()
    optimizer.step()
    step(8)
    step(9, missing=range(6))
    assert_close(ours, theirs, tensors())
    optimizer.state[ours[0]]["step"].fill_(7)
    step_count = float(optimizer.state_dict()["state"][0]["step"])
    give_gradients(ours, step=10)
    optimizer.step()
    assert (step_count, float(optimizer.state_dict()["state"][0]["step"])) == (7.0, 8.0)


def test_a_model_moved_to_another_dtype_is_refused():
    model = torch.nn.Linear(3, 2)
    optimizer = optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    model.double()
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    before = model.weight.detach().clone()
    with pytest.raises((TypeError, ValueError), match=r"float32, expected float64"):
        optimizer.step()
    assert torch.equal(model.weight, before)


def test_gradients_are_not_kept_alive():
    import weakref

    (p,) = leaves([torch.ones(5)])
    optimizer = optim.Adam([p])
    for _ in range(3):
        p.grad = torch.ones(5)
        optimizer.step()
        ref = weakref.ref(p.grad)
        optimizer.zero_grad()
        assert ref() is None


def test_autograd_sees_that_parameters_changed():
    p = torch.ones(3, requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_in_a_compiled_function():
    theirs, reference, ours, optimizer = twins("AdamW", {"lr": 0.05})

    @torch.compile(backend="eager")
    def step():
        optimizer.step()

    for t in range(3):
        give_gradients(theirs, ours, step=t)
        reference.step()
        step()
    assert_close(ours, theirs, tensors())


def test_without_torch():
    import subprocess
    import sys

    older = "import torch.autograd.graph as g; g.increment_version = int"  # which takes no list either
    for code, said in (
        ("import sys; sys.modules['torch'] = None", "fastopt.torch needs PyTorch"),
        (older, "fastopt.torch needs a newer PyTorch than"),
    ):
        code += "; import fastopt.torch"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert said in done.stderr and install_command("torch") in done.stderr


def test_numpy_classes_and_functions_refuse_a_tensor_that_is_no_leaf():
    p = torch.ones(3, requires_grad=True)
    for inner in (p * 2, (p * 2).view(3)):
        with pytest.raises(ValueError, match="found a tensor that requires grad and is no leaf"):
            fastopt.SGD([inner])
        with pytest.raises(ValueError, match="param: found a tensor that requires grad and is no leaf"):
            fastopt.functional.sgd(inner, torch.ones(3), step=1)
    fastopt.functional.sgd(p, p * 2, step=1, lr=1.0)  # as a gradient it may be
    assert p.tolist() == [-1.0] * 3


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        *(("Adam", "amsgrad"), ("AdamW", "amsgrad"), ("SGD", "nesterov"), ("RMSprop", "centered")),
        *((name, "maximize") for name in optim.CLASSES),
        *((name, "decoupled_weight_decay") for name, cls in optim.CLASSES.items() if not cls._arguments.decoupled),
    ],
)
def test_flags_are_true_or_false(name, flag):
    options = {**REQUIRED.get(name, {}), **({"momentum": 0.9} if flag == "nesterov" else {})}
    p = torch.ones(3, 2, requires_grad=True)
    for bad in ("False", None, [], math.nan, 2):
        with pytest.raises((TypeError, ValueError), match=f"^{flag}: found .*, expected True or False"):
            getattr(optim, name)([p], **options, **{flag: bad})
    optimizer = getattr(optim, name)([p], **options, **{flag: np.False_})
    optimizer.param_groups[0][flag] = "False"
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=f"^{flag}: found 'False'"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3, 2))


def test_hyper_parameters_are_numbers_of_the_type_of_computing():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^lr: found 1e.39, expected a number that float32 holds"):
        optim.SGD([p], lr=1e39)
    optim.SGD([q], lr=1e39)
    optimizer = optim.SGD([p], lr=1.0)
    optimizer.param_groups[0]["lr"] = 1e39
    p.grad = torch.zeros_like(p)
    with pytest.raises(ValueError, match=r"^lr: found 1e.39, expected a number that float32 holds"):
        optimizer.step()


@pytest.mark.parametrize("name", SHARED)
def test_whatever_number_torch_takes_is_taken(name):
    for key, default in getattr(torch.optim, name)([torch.ones(3)]).defaults.items():
        if isinstance(default, bool) or not isinstance(default, (float, int, tuple)):
            continue
        for value in (0, 1e-30, 0.5, 1.0, 1.5, 1e9, -0.5):
            options = {key: (value, value) if isinstance(default, tuple) else value}
            try:
                getattr(torch.optim, name)([torch.ones(3)], **options)
            except ValueError:
                continue
            getattr(optim, name)([torch.ones(3)], **options)


# ---- the package prodigyopt ----

PRODIGYS = (
    {"d0": 1e-3},
    {"d0": 1e-3, "use_bias_correction": True, "safeguard_warmup": True, "growth_rate": 1.1, "weight_decay": 0.1},
    {"d0": 1e-3, "betas": (0.8, 0.99), "decouple": False, "weight_decay": 0.1},
)


@pytest.mark.parametrize("options", PRODIGYS)
def test_state_dicts_go_both_ways_with_prodigyopt(options):
    prodigyopt = pytest.importorskip("prodigyopt")
    start = [torch.zeros(7), *tensors(torch.float64)]  # one of zeros, whose p0 it keeps as a number
    params = [[t.double().clone().requires_grad_() for t in start] for _ in range(3)]

    def made(module, own):
        return module.Prodigy([{"params": own[:2]}, {"params": own[2:], "weight_decay": 0.0}], **options)

    alone, (theirs, ours) = made(prodigyopt, params[0]), (made(prodigyopt, params[1]), made(optim, params[2]))
    for t in range(24):
        for own in params:
            # It corrects the bias of all by the steps of the first.
            give_gradients(own, step=0, missing=(0,) if t < 12 and "use_bias_correction" not in options else ())
        for optimizer in (alone, theirs, ours):
            optimizer.step()
        if t % 6 == 5:
            one, other = copy.deepcopy(theirs.state_dict()), fastopt.torch_state_dict(ours.state_dict())
            for index, state in one["state"].items():
                assert {key: torch.as_tensor(x).shape for key, x in state.items() if key != "p0"} == {
                    key: torch.as_tensor(x).shape for key, x in other["state"][index].items()
                    if key != "p0" and key in state
                }  # fmt: skip
            ours.load_state_dict(one)
            theirs.load_state_dict(copy.deepcopy(other))
    assert_close(params[1], params[0], [t.double() for t in start], 512)  # d multiplies what is rounded otherwise
    assert_close(params[2], params[0], [t.double() for t in start], 512)
    found, expected = ours.state[params[2][1]]["d"].item(), alone.param_groups[0]["d"]
    assert found != 1e-3 and abs(found / expected - 1) < 1e-9


def test_the_numpy_class_goes_on_with_prodigyopts():
    prodigyopt = pytest.importorskip("prodigyopt")
    start = tensors(torch.float64)
    params = leaves([*start, torch.ones(3, dtype=torch.float64)])  # the last has no gradient yet, nor a state
    theirs = prodigyopt.Prodigy(params, d0=1e-3)
    for _ in range(12):
        give_gradients(params[:-1], step=0)
        theirs.step()
    arrays = [p.detach().numpy().copy() for p in params]
    ours = fastopt.Prodigy(arrays)
    ours.load_state_dict(theirs.state_dict())
    back = leaves([torch.from_numpy(a.copy()) for a in arrays])
    again = prodigyopt.Prodigy(back)
    again.load_state_dict(copy.deepcopy(fastopt.torch_state_dict(ours.state_dict())))
    for _ in range(12):
        for own in (params, back):
            give_gradients(own, step=0)
        theirs.step()
        again.step()
        ours.step([p.grad.numpy() for p in params])
    for own in ([torch.from_numpy(a) for a in arrays], back):
        assert_close(own[:-1], params[:-1], start)
    found, expected = again.param_groups[0], theirs.param_groups[0]
    assert found["k"] == 24 and found["d"] != 1e-3 and abs(found["d"] / expected["d"] - 1) < 1e-9


def test_what_prodigyopt_has_beyond_is_told():
    prodigyopt = pytest.importorskip("prodigyopt")
    with pytest.raises(TypeError, match=r"^Prodigy: found slice_p=11, expected none: .*all elements.*; leave it out$"):
        optim.Prodigy(leaves(tensors()), slice_p=11)
    params = leaves(tensors())
    theirs, ours = prodigyopt.Prodigy(params, slice_p=11), optim.Prodigy(leaves(tensors()))
    give_gradients(params, step=0)
    theirs.step()
    with pytest.raises(ValueError, match=r"param_groups'\]\[0\]\['slice_p'\]: found 11, expected 1: .*; go on with"):
        ours.load_state_dict(theirs.state_dict())
    saved = fastopt.torch_state_dict(ours.state_dict())
    state = {0: {"step": 1, "s": torch.zeros(2), "p0": torch.zeros(35), "exp_avg_sq": torch.zeros(7, 5)}}
    with pytest.raises(ValueError, match=r"^state_dict\['state'\]\[0\]\['s'\]: found shape \(2,\), expected \(7, 5\)"):
        ours.load_state_dict({**saved, "state": state})
