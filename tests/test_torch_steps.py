"""Step counts in fastopt.torch, and what else stands in its states: live, exact, and the user's own where it is so."""

import copy
import io
import multiprocessing
import pickle

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import fastopt.torch as optim  # noqa: E402
from fastopt.rules import RULES  # noqa: E402

COUNTED = ["Adam", "AdamW", "NAdam", "Adagrad", "RMSprop"]


def made(name="Adam", n=3, **options):
    params = [torch.ones(4, requires_grad=True) for _ in range(n)]
    return params, getattr(optim, name)(params, **options)


def step(params, optimizer, times=1):
    for _ in range(times):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()


# ---- state dicts are live ----


@pytest.mark.parametrize("name", COUNTED)
def test_a_state_dict_is_live(name):
    params, optimizer = made(name)
    step(params, optimizer)
    kept = optimizer.state_dict()
    step(params, optimizer, 5)
    params[0].grad = None  # other gradients
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    params[1].data = params[1].data.clone()  # other memory
    step(params, optimizer, 3)
    now = optimizer.state_dict()
    assert [float(state["step"]) for state in kept["state"].values()] == [9.0, 10.0, 10.0]
    for index, state in kept["state"].items():
        assert state.keys() == now["state"][index].keys()
        for key in state:
            assert state[key] is now["state"][index][key]


def test_a_count_set_by_hand_is_taken_over():
    params, optimizer = made(lr=0.1)
    reference = [torch.ones(4, requires_grad=True) for _ in params]
    other = torch.optim.Adam(reference, lr=0.1)
    for which, members in ((optimizer, params), (other, reference)):
        step(members, which)
        which.state[members[0]]["step"].fill_(40)
        which.state[members[1]]["step"] = torch.tensor(60.0)
        step(members, which, 2)
        assert [float(which.state[p]["step"]) for p in members] == [42.0, 62.0, 3.0]
    for p, q in zip(params, reference, strict=True):
        torch.testing.assert_close(p, q)
    for bad in (1.5, -1.0, float("nan"), float("inf")):
        before = params[0].detach().clone()
        optimizer.state[params[0]]["step"].fill_(bad)
        with pytest.raises(ValueError, match=r"'step' of .*: found .*, expected a number >= 0, whole"):
            optimizer.step()
        assert torch.equal(params[0], before)
    optimizer.state[params[0]]["step"].fill_(42)
    step(params, optimizer)


def test_counts_beyond_float32():
    params, optimizer = made()
    step(params, optimizer)
    for state in optimizer.state.values():
        state["step"].fill_(2**24 + 1)
    step(params, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other_params, other = made()
    other.load_state_dict(torch.load(file, weights_only=True))
    step(other_params, other)
    assert [int(state["step"]) for state in other.state.values()] == [2**24 + 3] * 3


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}, {"foreach": False}])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adagrad", "SGD"])
def test_torchs_implementations_take_the_counts(name, how):
    params, optimizer = made(name, lr=0.1)
    step(params, optimizer, 3)
    twins = [p.detach().clone().requires_grad_() for p in params]
    theirs = getattr(torch.optim, name)(twins, lr=0.1, **how)
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch copies no tensor that fits
    step(twins, theirs, 2)
    step(params, optimizer, 2)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q)
    optimizer.load_state_dict(theirs.state_dict())
    if name != "SGD":
        assert [float(state["step"]) for state in optimizer.state.values()] == [5.0] * 3


# ---- the user's own tensors and entries ----


def _work(params, optimizer, times):
    step(params, optimizer, times)


@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_shared_counts_stay_shared(name):
    """Workers that were forked count together, as with torch's class."""
    params, optimizer = made(name, n=2, lr=0.1)
    step(params, optimizer)
    for p in params:
        p.share_memory_()
        for x in optimizer.state[p].values():
            x.share_memory_()
    held = [dict(optimizer.state[p]) for p in params]
    context = multiprocessing.get_context("fork")
    for times in (4, 5):  # one after the other: updates without locks may be lost
        worker = context.Process(target=_work, args=(params, optimizer, times))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    step(params, optimizer)
    twins, alone = made(name, n=2, lr=0.1)
    step(twins, alone, 11)
    for p, q, own in zip(params, twins, held, strict=True):
        assert float(own["step"]) == 11
        for key, x in own.items():
            assert optimizer.state[p][key] is x and torch.equal(x, alone.state[q][key])
        assert torch.equal(p, q)


def test_a_users_count_stays_the_users():
    params, optimizer = made(n=2)
    own = torch.tensor([0.0]), torch.zeros((), dtype=torch.int64)
    for p, count in zip(params, own, strict=True):
        optimizer.state[p].update(step=count, exp_avg=torch.zeros(4), exp_avg_sq=torch.zeros(4))
    step(params, optimizer, 3)
    assert [int(x) for x in own] == [3, 3]
    twins, alone = made(n=2)
    step(twins, alone, 3)
    assert torch.equal(params[0], twins[0]) and torch.equal(params[1], twins[1])


def test_entries_of_the_users_are_carried_along():
    params, optimizer = made()
    plain, alone = made()
    step(params, optimizer)
    step(plain, alone)
    bound = optimizer._stepper.bound
    optimizer.state[params[0]]["count"] = 3
    optimizer.state[params[0]]["table"] = {"of": torch.ones(2)}
    optimizer.state["epoch"] = 7
    optimizer.state["mean"] = torch.tensor(2.0)
    for _ in range(3):
        optimizer.state[params[0]]["count"] += 1000
        optimizer.state["epoch"] += 1000
        step(params, optimizer)
        step(plain, alone)
    assert optimizer._stepper.bound is bound
    saved = optimizer.state_dict()
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    for loaded in (saved, torch.load(file, weights_only=True)):
        others, other = made()
        other.load_state_dict(loaded)
        assert other.state[others[0]]["count"] == 3003 and other.state["epoch"] == 3007
        assert float(other.state["mean"]) == 2 and other.state[others[0]]["table"]["of"].tolist() == [1, 1]
        step(others, other)
        assert float(other.state[others[0]]["step"]) == 5
    copied = pickle.loads(pickle.dumps(optimizer))
    assert copied.state["epoch"] == 3007
    assert torch.equal(params[0], plain[0])


def test_sgd_with_entries_of_the_users():
    params, optimizer = made("SGD", lr=1.0, momentum=0.9, dampening=0.5)
    for p in params:
        optimizer.state[p]["count"] = 3
    step(params, optimizer)
    assert params[0].tolist() == [0.0] * 4  # the first step takes the gradient whole


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_what_the_last_step_said(duplicate):
    params, optimizer = made("NAdam")
    step(params, optimizer, 2)
    optimizer.step(max_norm=1.0)
    params[0].grad[0] = torch.inf
    optimizer.step(skip_nonfinite=True)
    other = duplicate(optimizer)
    assert other.last_step_skipped and other.last_grad_norm == optimizer.last_grad_norm
    copies = other.param_groups[0]["params"]
    step(copies, other)
    assert [float(other.state[p]["step"]) for p in copies] == [4.0] * 3
    assert [float(optimizer.state[p]["step"]) for p in params] == [3.0] * 3
    assert other.state[copies[0]]["step"].untyped_storage().nbytes() == 8 * 3
    step(params, optimizer)
    assert torch.equal(params[0], copies[0])


def test_pickles_do_not_grow_with_the_square_of_the_parameters():
    sizes = []
    for n in (100, 200):
        params, optimizer = made("SGD", n=n, rounding="stochastic")  # which counts, and keeps nothing else
        step(params, optimizer)
        sizes.append(len(pickle.dumps(optimizer)))
    assert sizes[1] < 2.2 * sizes[0]


def test_groups_added_keep_counts():
    params, optimizer = made()
    step(params, optimizer, 2)
    more = [torch.ones(4, requires_grad=True)]
    optimizer.add_param_group({"params": more})
    step([*params, *more], optimizer, 2)
    assert [float(optimizer.state[p]["step"]) for p in (*params, *more)] == [4.0, 4.0, 4.0, 2.0]


# ---- hooks ----


def test_hooks_get_torchs_arguments():
    seen = {}
    for module in (torch.optim, optim):
        p = torch.ones(3, requires_grad=True)
        optimizer = module.SGD([p], lr=0.1)
        calls = seen[module] = []
        optimizer.register_step_pre_hook(lambda o, args, kwargs, calls=calls: calls.append((args[1:], kwargs)))
        optimizer.register_step_post_hook(lambda o, args, kwargs, calls=calls: calls.append((args[1:], kwargs)))
        p.grad = torch.ones(3)
        optimizer.step()
        optimizer.step(None)
        optimizer.step(closure=None)
    assert seen[torch.optim] == seen[optim]


# ---- surroundings ----


@pytest.fixture(params=["meta", "float64", "bfloat16", "inference", "no_grad", "deterministic"])
def surroundings(request):
    """Defaults and modes of torch's under which a step is to be what it is without."""
    kind = request.param
    if kind == "meta":
        torch.set_default_device("meta")
    elif kind in ("float64", "bfloat16"):
        torch.set_default_dtype(getattr(torch, kind))
    elif kind == "deterministic":
        torch.use_deterministic_algorithms(True)
    modes = {"inference": torch.inference_mode, "no_grad": torch.no_grad}
    try:
        with modes.get(kind, torch.enable_grad)():
            yield kind
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", [(3, 4), (5,)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", [rule.optimizer for rule in RULES.values() if hasattr(optim, rule.optimizer)])
def test_every_class_zeroes_gradients_and_tells_their_norm(name, padded, shape):
    p = torch.ones(shape, requires_grad=True)
    values = torch.arange(1.0, 1 + p.numel()).reshape(shape)
    p.grad = torch.stack([values, values], -1)[..., 0] if padded and len(shape) == 1 else values.clone()
    if padded and len(shape) == 2:
        p.grad = torch.cat([values, values], 1)[:, : shape[1]]
    optimizer = getattr(optim, name)([p], lr=0.1)
    optimizer.step(max_norm=1e9, zero_grads=True)
    assert optimizer.last_grad_norm == pytest.approx(float(values.norm()), rel=1e-6)
    assert (p.grad == 0).all() and (p != 1).all()


@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD", "Adagrad"])
def test_defaults_and_modes_of_torchs(surroundings, name):
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {"state_dtype": "8bit"})}
    if name == "Adagrad":
        options["initial_accumulator_value"] = 0.5

    def run():
        params = [torch.ones(n, device="cpu", dtype=torch.float32).requires_grad_() for n in (3, 5000)]
        optimizer = getattr(optim, name)(params, **options)
        for t in range(3):
            for p in params:
                p.grad = torch.full(p.shape, 0.5 + t, device="cpu", dtype=torch.float32)
            optimizer.step(max_norm=1e6, zero_grads=t == 2)
            if t == 1:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for p in params:
            p.grad = torch.ones(p.shape, device="cpu", dtype=torch.float32)
        norm = optim.clip_grad_norm_(params, 1.0)
        return [p.detach().clone() for p in params], float(norm), optimizer

    under, norm, optimizer = run()
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    with torch.inference_mode(False):
        plain, want, _ = run()
    assert all(torch.equal(a, b) for a, b in zip(under, plain, strict=True)) and norm == want
    assert optimizer.state_dict()["state"]


def test_a_step_outside_the_mode_it_was_begun_in():
    params, optimizer = made()
    with torch.inference_mode():
        step(params, optimizer)
    step(params, optimizer)
    for p in params:
        optimizer.state[p]["step"].fill_(5)
    params[0].grad = None
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [5.0, 6.0, 6.0]


@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_a_count_loaded_in_a_mode_can_be_set_outside_of_it(name):
    params, optimizer = made(name)
    step(params, optimizer)
    with torch.inference_mode():
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p in params:
        optimizer.state[p]["step"].fill_(5)
    step(params, optimizer)
    assert [float(optimizer.state[p]["step"]) for p in params] == [6.0, 6.0, 6.0]


def test_a_state_that_is_none_is_no_fresh_one():
    """Zeros in its place would be wrong numbers without a word."""
    params, optimizer = made()
    step(params, optimizer)
    before = [p.detach().clone() for p in params]
    optimizer.state[params[1]]["exp_avg_sq"] = None
    with pytest.raises(TypeError, match=r"'exp_avg_sq' of .*: found None of type NoneType, expected a tensor, or no"):
        step(params, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


# ---- what else there is in torch.optim, and parameters that are not trained ----


def test_the_rest_is_torchs():
    from fastopt.torch import LBFGS, lr_scheduler

    assert lr_scheduler is torch.optim.lr_scheduler and LBFGS is torch.optim.LBFGS
    assert optim.swa_utils is torch.optim.swa_utils and optim.LBFGS is torch.optim.LBFGS
    assert optim.Adam is not torch.optim.Adam
    assert {"lr_scheduler", "LBFGS", "Adam", "FTRL"} <= set(dir(optim))
    with pytest.raises(AttributeError, match=r"no attribute 'Adamw'; did you mean 'Adam"):
        optim.Adamw  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'xyzzy'; it has"):
        optim.xyzzy  # noqa: B018


FROZEN = {
    "int8": lambda: torch.nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False),
    "float8": lambda: torch.nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False),
    "bool": lambda: torch.ones(4, dtype=torch.bool),
    "complex": lambda: torch.ones(4, dtype=torch.complex64),
    "meta": lambda: torch.nn.Parameter(torch.ones(4, device="meta")),
    "lazy": torch.nn.parameter.UninitializedParameter,
}


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "RowwiseAdagrad"])
@pytest.mark.parametrize("kind", FROZEN)
def test_parameters_that_are_not_trained(kind, name):
    frozen, p = FROZEN[kind](), torch.ones(4, requires_grad=True)
    optimizer = getattr(optim, name)([frozen, p], lr=0.1)
    step([p], optimizer, 2)
    assert (p < 1).all() and frozen not in optimizer.state
    again = getattr(optim, name)([frozen, p], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    again.step()
    copied = copy.deepcopy(optimizer) if kind != "lazy" else optimizer
    copied.step()
    if kind in ("int8", "bool", "complex"):
        frozen.grad = torch.ones_like(frozen)
        with pytest.raises(TypeError, match=r"param_groups\[0\].*found dtype .*" + kind):
            optimizer.step()


def test_a_lazy_module_is_trained_once_it_has_been_called():
    model = torch.nn.LazyLinear(2)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert (model.weight != before).all()
    assert set(map(float, (state["step"] for state in optimizer.state.values()))) == {1.0}


def test_complex_and_nan_are_refused():
    with pytest.raises(TypeError, match=r"found dtype .*complex64, expected float32"):
        optim.Adam([torch.ones(3, dtype=torch.complex64, requires_grad=True)])
    for bad in (float("nan"), torch.tensor(float("nan"))):
        with pytest.raises(ValueError, match="lr: found"):
            optim.Adam([torch.ones(3)], lr=bad)
        params, optimizer = made()
        step(params, optimizer)
        optimizer.param_groups[0]["lr"] = bad
        before = params[0].detach().clone()
        with pytest.raises(ValueError, match="lr: found"):
            optimizer.step()
        assert torch.equal(params[0], before)


def test_lightnings_question_is_answered_as_torchs_classes_do():
    for fused in (None, False, True):
        ours, theirs = (module.Adam([torch.ones(3)], fused=fused) for module in (optim, torch.optim))
        answers = [getattr(o, "_step_supports_amp_scaling", False) for o in (ours, theirs)]
        assert answers == [bool(fused)] * 2
