"""Parameters of the classes for arrays: groups that join later, nested ones, and entries of the user's own."""

import copy
import json
import pickle

import numpy as np
import pytest

import fastopt
from fastopt.optimizers import CLASSES

RNG = np.random.default_rng(0)


def arrays(*shapes, dtype="f4"):
    return [RNG.standard_normal(shape).astype(dtype) for shape in shapes]


def nested(dtype="f4"):
    """Parameters as JAX and Keras people have them."""
    w, v, b, s = arrays((4, 3), (3, 2), 2, (), dtype=dtype)
    return {"layers": [{"weight": w}, {"weight": v, "bias": b}], "scale": s}


PATHS = ["layers.0.weight", "layers.1.weight", "layers.1.bias", "scale"]


def flat(tree):
    return [tree["layers"][0]["weight"], tree["layers"][1]["weight"], tree["layers"][1]["bias"], tree["scale"]]


# ---- groups that join later ----


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_a_group_that_joins_later_is_as_an_optimizer_of_its_own(name, varying):
    """Each group's parameters have the bits that they have in two optimizers, whatever is in the other's group."""
    lr = (lambda t: 0.1 / t) if varying else 0.1
    one, two = arrays((5, 3), 7), arrays((300, 4), ())
    alone = [copy.deepcopy(one), copy.deepcopy(two)]
    opt = CLASSES[name](one, lr=lr, weight_decay=0.01)
    apart = [CLASSES[name](alone[0], lr=lr, weight_decay=0.01), CLASSES[name](alone[1], lr=0.05, weight_decay=0.01)]
    for step in range(6):
        grads = [arrays(*(p.shape for p in params)) for params in (one, two)]
        if step == 2:
            opt.add_param_group({"params": two, "lr": 0.05, "name": "late"})
        opt.step(grads[0] if step < 2 else grads, max_norm=None)
        apart[0].step(grads[0])
        if step >= 2:
            apart[1].step(grads[1])
    for mine, others in zip([*one, *two], [*alone[0], *alone[1]], strict=True):
        np.testing.assert_array_equal(mine, others)
    assert [int(state["step"]) for state in opt.state] == [6, 6, 4, 4]
    assert opt.param_groups[1]["name"] == "late" and opt.param_groups[1]["weight_decay"] == 0.01
    assert opt.hyper(1)["lr"] == 0.05


def test_a_schedule_of_a_late_group_counts_each_parameters_steps():
    first, a, b = np.zeros(1), np.zeros(1), np.zeros(1)
    opt = fastopt.SGD([first], lr=1.0)
    opt.step([np.ones(1)])
    opt.add_param_group({"params": [a, b], "lr": lambda t: 2.0**-t})
    one = np.ones(1)
    for grads in ([one, one, one], [one, one, None], [one, one, one], [None, one, one]):
        opt.step(grads)
    assert [p.item() for p in (first, a, b)] == [-4.0, -0.5 - 0.25 - 0.125 - 0.0625, -0.5 - 0.25 - 0.125]


def test_a_group_whose_states_find_no_memory_does_not_join(monkeypatch):
    params, late = np.ones(3), np.ones(4)
    opt = fastopt.Adam(params, lr=0.1)
    opt.step(np.ones(3))
    before = pickle.dumps(opt.state_dict())

    def full(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("fastopt.binding.owned.new_state", full)
        with pytest.raises(MemoryError):
            opt.add_param_group({"params": late})
    assert len(opt.param_groups) == len(opt.state) == 1
    assert pickle.dumps(opt.state_dict()) == before
    opt.step(np.ones(3))
    opt.add_param_group({"params": late})
    opt.step([np.ones(3), np.ones(4)])
    assert [int(state["step"]) for state in opt.state] == [3, 1]


def test_torch_counts_the_same():
    torch = pytest.importorskip("torch")
    one, two = arrays(3, dtype="f8")[0], arrays(4, dtype="f8")[0]
    there = [torch.tensor(one, requires_grad=True), torch.tensor(two, requires_grad=True)]
    theirs, ours = torch.optim.Adam(there[:1], lr=0.1), fastopt.Adam(one, lr=0.1)
    for step in range(5):
        if step == 2:
            theirs.add_param_group({"params": there[1:], "lr": 0.02})
            ours.add_param_group({"params": two, "lr": 0.02})
        grads = arrays(3, 4, dtype="f8")
        for tensor, grad in zip(there, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.step()
        ours.step(grads if step >= 2 else grads[0])
    for tensor, mine in zip(there, (one, two), strict=True):
        np.testing.assert_allclose(mine, tensor.detach().numpy(), rtol=1e-12)
    saved = fastopt.torch_state_dict(ours.state_dict())
    theirs.load_state_dict(saved)
    ours.load_state_dict(theirs.state_dict())


def test_plans_from_before_go_on_with_their_parameters():
    one, two = arrays(3, 4)
    other = one.copy()
    opt, alone = fastopt.Adam(one, lr=0.1), fastopt.Adam(other, lr=0.1)
    grad = np.ones(3, "f4")
    plan = opt.bind(grad)
    plan.step()
    opt.add_param_group({"params": two})
    before = two.copy()
    plan.step()
    opt.step([grad, np.ones(4, "f4")])
    plan.step()
    for _ in range(4):
        alone.step(grad)
    np.testing.assert_array_equal(one, other)
    assert (two != before).all() and [int(state["step"]) for state in opt.state] == [4, 1]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_have_the_groups_and_their_defaults(duplicate):
    one, two, three = arrays(3, 4, 5)
    opt = fastopt.Momentum(one, lr=0.1)
    opt.param_groups[0]["lr"] = 0.5
    opt.add_param_group({"params": {"w": two}, "momentum": 0.5})
    opt.step([np.ones(3, "f4"), {"w": np.ones(4, "f4")}])
    made = duplicate(opt)
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.1]
    made.add_param_group({"params": three})
    assert made.param_groups[2]["lr"] == 0.1 and len(opt.param_groups) == 2
    made.step([np.ones(3, "f4"), {"w": np.ones(4, "f4")}, np.ones(5, "f4")])
    state = opt.state_dict()
    assert [group["params"] for group in state["param_groups"]] == [[0], [1]]


def test_a_group_joins_none():
    opt = fastopt.SGD([], lr=0.1)
    (late,) = arrays(3)
    want = late - np.float32(0.1)
    opt.add_param_group({"params": [late]})
    opt.step([[], [np.ones(3, "f4")]])
    np.testing.assert_array_equal(late, want)


def test_references_to_groups_hold():
    """References that schedulers keep hold."""
    opt = fastopt.SGD(arrays(3), lr=0.1)
    group, state = opt.param_groups[0], opt.state[0]
    opt.add_param_group({"params": arrays(2)})
    assert opt.param_groups[0] is group and opt.state[0] is state
    group["lr"] = 0.3
    assert opt.hyper()["lr"] == 0.3 and opt.hyper(1)["lr"] == 0.1


@pytest.mark.parametrize(
    ("group", "error", "said"),
    [
        (None, TypeError, "param_group: found None of type NoneType, expected a mapping with 'params'"),
        ({"lr": 0.1}, TypeError, "param_group: found .*expected a mapping with 'params'"),
        ({"params": [1.0]}, TypeError, r"params\[1\]\['params'\]\[0\]: found"),
        ({"params": np.ones(2, "i4")}, TypeError, r"params\[1\]\['params'\]: found dtype int32"),
        ({"params": np.ones(2), "lr": -1.0}, ValueError, "lr: found -1.0"),
        ({"params": np.ones(2), "learning_rate_": 1.0, "lrr": 0.1}, ValueError, "param_group: found 'lrr'"),
        ({"params": np.ones(2), "threads": 1}, TypeError, "param_group: found 'threads' in a group"),
        ({"params": np.ones(2), "state_dtype": "float"}, ValueError, "state_dtype: found 'float'"),
        ("shared", ValueError, r"params\[1\]\['params'\].*params\[0\]\['params'\]"),
        ("read-only", ValueError, r"params\[1\]\['params'\]: found a read-only array"),
    ],
)
def test_a_wrong_group_changes_nothing(group, error, said):
    (param,) = arrays(4, dtype="f8")
    opt = fastopt.Adam(param, lr=0.1)
    opt.step(np.ones(4))
    if isinstance(group, str):
        array = param[:2] if group == "shared" else np.ones(2)
        array.flags.writeable = group == "shared"
        group = {"params": array}
    before, bits = repr(opt), param.copy()
    with pytest.raises(error, match=said):
        opt.add_param_group(group)
    assert repr(opt) == before and len(opt.state) == 1
    np.testing.assert_array_equal(param, bits)
    opt.step(np.ones(4))
    with pytest.raises((TypeError, ValueError), match=r"^grads: found"):
        opt.step(np.ones(3))
    assert int(opt.state[0]["step"]) == 2


def test_numbers_that_the_new_dtype_cannot_hold_are_refused():
    param = np.ones(3)
    opt = fastopt.SGD(param, lr=1e300)
    with pytest.raises(ValueError, match="lr"):
        opt.add_param_group({"params": np.ones(2, "f4"), "lr": 0.1})
    opt.step(np.full(3, 1e-300))
    np.testing.assert_array_equal(param, np.zeros(3))


def test_states_in_files_are_of_the_construction(tmp_path):
    with fastopt.Adam(arrays(3), lr=0.1, state_dir=tmp_path / "states") as opt:
        with pytest.raises(ValueError, match="param_group: found one more group, expected none with state_dir"):
            opt.add_param_group({"params": arrays(2)})
        assert len(opt.param_groups) == 1


def test_elements_are_numbered_on():
    """Stochastic rounding draws by the number of the element: a group that joins has those that follow."""
    options = {"lr": 0.01, "rounding": "stochastic", "seed": 3}
    ml_dtypes = pytest.importorskip("ml_dtypes")
    one, two = (np.ones(n, ml_dtypes.bfloat16) for n in (300, 500))
    other = [one.copy(), two.copy()]
    opt = fastopt.SGD(one, **options)
    opt.add_param_group({"params": two})
    together = fastopt.SGD([{"params": other[0]}, {"params": other[1]}], **options)
    for _ in range(3):
        grads = [np.ones(300, one.dtype), np.ones(500, one.dtype)]
        opt.step(grads)
        together.step(grads)
    assert (one == other[0]).all() and (two == other[1]).all()


# ---- nested parameters ----


@pytest.mark.parametrize("name", CLASSES)
def test_nested_parameters_have_the_bits_of_flat_ones(name):
    params = nested()
    same = [p.copy() for p in flat(params)]
    opt, plain = CLASSES[name](params, lr=0.1), CLASSES[name](same, lr=0.1)
    for step in range(4):
        grads = nested()
        if step == 2:
            grads["layers"][1]["bias"] = None
        opt.step(grads, max_norm=1.0)
        plain.step(flat(grads), max_norm=1.0)
    for mine, others in zip(flat(params), same, strict=True):
        np.testing.assert_array_equal(mine, others)
    assert opt.param_groups[0]["param_names"] == PATHS
    assert "param_names" not in plain.param_groups[0]


def test_none_skips_a_whole_part():
    params = nested()
    before = copy.deepcopy(params)
    opt = fastopt.SGD(params, lr=0.1)
    grads = nested()
    opt.step({"layers": [grads["layers"][0], None], "scale": None})
    assert [int(state["step"]) for state in opt.state] == [1, 0, 0, 0]
    np.testing.assert_array_equal(params["layers"][1]["weight"], before["layers"][1]["weight"])
    opt.bind({"layers": None, "scale": grads["scale"]}).step()
    assert [int(state["step"]) for state in opt.state] == [1, 0, 0, 1]


def test_rows_of_nested_parameters():
    table = np.zeros((5, 2), "f4")
    opt = fastopt.SGD({"embed": {"table": table}}, lr=1.0)
    opt.step({"embed": {"table": fastopt.RowSparse(np.array([1, 3]), np.ones((2, 2), "f4"))}})
    assert table[:, 0].tolist() == [0, -1, 0, -1, 0]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda g: g.pop("scale"), ValueError, "grads: found other keys than params has.*missing: 'scale'"),
        (
            lambda g: g["layers"].append(None),
            ValueError,
            r"grads\['layers'\]: found 3 arrays, expected 2, as params",
        ),
        (lambda g: g["layers"][1].pop("bias"), ValueError, r"grads\['layers'\]\[1\]: found other keys"),
        (lambda g: g.update(layers={}), TypeError, r"grads\['layers'\]: found dict, expected a sequence of 2 arrays"),
        (lambda g: g["layers"].insert(0, g["layers"].pop()["bias"]), TypeError, r"grads\['layers'\]\[0\]: found"),
        (lambda g: g["layers"][0].update(weight=[1.0]), TypeError, r"grads\['layers'\]\[0\]\['weight'\]: found"),
        (lambda g: g.update(scale=np.ones(2, "f4")), ValueError, r"grads\['scale'\]: found shape \(2,\)"),
    ],
)
def test_gradients_of_another_structure_are_refused(change, error, said):
    params = nested()
    before = copy.deepcopy(params)
    opt = fastopt.Adam(params, lr=0.1)
    grads = nested()
    change(grads)
    for call in (opt.step, opt.bind):
        with pytest.raises(error, match=said):
            call(grads)
    for mine, others in zip(flat(params), flat(before), strict=True):
        np.testing.assert_array_equal(mine, others)


def test_what_is_no_array_is_named_by_its_place():
    with pytest.raises(TypeError, match=r"params\['layers'\]\[1\]\['bias'\]: found"):
        fastopt.SGD({"layers": [{}, {"bias": "zero"}]}, lr=0.1)
    with pytest.raises(TypeError, match=r"params\[0\]\['params'\]\['a'\]\[0\]: found"):
        fastopt.SGD([{"params": {"a": [None]}}], lr=0.1)
    with pytest.raises(TypeError, match=r"params\[1\]: found .*expected a mapping with 'params', as other entries are"):
        fastopt.SGD([{"params": np.ones(2)}, np.ones(2)], lr=0.1)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_are_nested_alike(duplicate):
    params = nested()
    opt = fastopt.Adam(params, lr=0.1)
    opt.step(nested())
    made = duplicate(opt)
    grads = nested()
    made.step(grads)
    opt.step(grads)
    for mine, own in zip(flat(params), made.param_groups[0]["params"], strict=True):
        np.testing.assert_array_equal(mine, own)
    assert made.param_groups[0]["param_names"] == PATHS


def test_state_dicts_have_paths(tmp_path):
    params = nested()
    opt = fastopt.Adam(params, lr=0.1)
    opt.step(nested())
    saved = opt.state_dict()
    assert saved["param_groups"][0]["param_names"] == PATHS
    np.savez(tmp_path / "state.npz", **fastopt.flatten_state_dict(saved))
    with np.load(tmp_path / "state.npz") as file:
        read = fastopt.unflatten_state_dict(dict(file))
    other = nested()
    resumed = fastopt.Adam(other, lr=0.5)
    resumed.load_state_dict(read)
    assert resumed.hyper()["lr"] == 0.1 and resumed.param_groups[0]["param_names"] == PATHS
    np.testing.assert_array_equal(resumed.state[1]["exp_avg"], opt.state[1]["exp_avg"])
    fastopt.Adam(flat(other), lr=0.5).load_state_dict(read)
    renamed = {"blocks": other["layers"], "scale": other["scale"]}
    stranger = fastopt.Adam(renamed, lr=0.5)
    with pytest.raises(ValueError, match=r"\['param_names'\]: found other paths than params has; missing: 'blocks.0"):
        stranger.load_state_dict(read)
    assert stranger.hyper()["lr"] == 0.5 and not stranger.state[1]["exp_avg"].any()


# ---- entries of the user's own ----


def test_entries_of_the_users_own_stay_everywhere():
    (one, two) = arrays(3, 4)
    opt = fastopt.Adam([{"params": one, "name": "head", "lr_scale": 0.5}], lr=0.1)
    opt.add_param_group({"params": two, "name": "body", "tags": ["frozen", 1]})
    opt.param_groups[0]["warm"] = True
    opt.step([np.ones(3, "f4"), np.ones(4, "f4")])
    saved = json.loads(json.dumps({"param_groups": opt.state_dict()["param_groups"]}, default=list))["param_groups"]
    assert (saved[0]["name"], saved[0]["lr_scale"], saved[0]["warm"]) == ("head", 0.5, True)
    assert (saved[1]["name"], saved[1]["tags"]) == ("body", ["frozen", 1])
    again = fastopt.Adam([{"params": one.copy()}, {"params": two.copy()}], lr=0.1)
    again.load_state_dict(opt.state_dict())
    assert again.param_groups[1]["tags"] == ["frozen", 1] and again.param_groups[0]["name"] == "head"
    flattened = fastopt.unflatten_state_dict(fastopt.flatten_state_dict(opt.state_dict()))
    assert flattened["param_groups"][1]["name"] == "body"
