"""Every wrong call of the public API says what is wrong: see `tests.malformed`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import functional, hogwild
from fastopt.binding import options
from fastopt.binding.options import EXECUTION
from fastopt.rules import EVERY_RULE, REQUIRED, Hyper

from .malformed import LEGITIMATE, SCALARS, Opaque, Target, arrays_like, calls

torch = pytest.importorskip("torch")
fo = pytest.importorskip("fastopt.torch")

ARGUMENTS = {**options.ARGUMENTS, **options.MATRIX_ARGUMENTS}
SHAPE = (3, 2)
#: The rules and classes for which every value is tried; others are made from the same table.
FULL = ("adam", "aggmo", "rowwise_adagrad", "Adam", "AggMo", "SGD")


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape or SHAPE, "f4")


# ---- functional forms ----


def kind_of(hyper: Hyper) -> str:
    """A hyper-parameter's kind, by its domain."""
    if hyper.flag:
        return "flag"
    if hyper.vector:
        return "vector"
    if hyper.names:
        return "optional"
    if hyper.whole:
        return "count >= 0"
    if hyper.optional:
        return "number >= 0 or inf" if hyper.infinite else "optional number > 0"
    if hyper.infinite:
        return "number >= 1 or inf"
    if hyper.high == 1:
        return "fraction" if hyper.below_high else "closed fraction"
    return "any number" if hyper.low < 0 else "number > 0" if hyper.low > 0 else "number >= 0"


def of_function(name: str) -> Target:
    rule = EVERY_RULE[name]
    keys = [key for key in rule.hyper if key not in rule.initial]
    copies = (2,) if rule.vector else ()
    states_of_shape = (*rule.states_of(SHAPE), *rule.singles)

    def make():
        states = {state: np.zeros(rule.state_shape(state, SHAPE, 2), "f4") for state in states_of_shape}
        arguments = {"param": ones(), "grad": ones(), **states}
        arguments |= {"step": 3, **{key: rule.hyper[key].default for key in keys if key in rule.defaults()}}
        arguments |= {key: 0.1 for key in keys if key not in rule.defaults()}
        arguments |= {"betas": (0.0, 0.9)} if copies else {}
        arguments |= dict.fromkeys(rule.scalars)
        arguments |= {"grad_scale": 0.5, "gradient_noise": None, "first_element": 0, "backend": None, "threads": None}
        return getattr(functional, name), arguments, None

    kinds = {"param": "array", "grad": "gradient", **dict.fromkeys(states_of_shape, "array"), "step": "step"}
    kinds |= {key: kind_of(rule.hyper[key]) for key in keys} | dict.fromkeys(rule.scalars, "optional number")
    kinds |= {"grad_scale": "any number", "gradient_noise": "optional", "first_element": "count >= 0"}
    kinds |= {"backend": "backend", "threads": "threads"}
    required = ("param", "grad", *states_of_shape, "step", *(key for key in keys if key not in rule.defaults()))
    arrays = ("param", "grad", *states_of_shape)
    return Target(
        f"functional.{name}",
        make,
        kinds,
        required=required,
        suggests=True,
        brief=name not in FULL,
        names=dict.fromkeys(arrays, arrays),
    )


# ---- classes ----


def _class_kinds(arguments: Any) -> dict[str, str]:
    kinds = {}
    for key, default in arguments.defaults.items():
        hypers = [rule.hyper[key] for rule in arguments.rules if key in rule.hyper]
        if isinstance(default, tuple) and not any(hyper.vector for hyper in hypers):
            kinds[key] = "pair"
        elif hypers:
            kinds[key] = kind_of(hypers[0])
        else:
            kinds[key] = "flag" if isinstance(default, bool) else "number >= 0"
    if "momentum" in kinds:
        kinds["momentum"] = "number >= 0"
    return kinds


EXECUTION_KINDS = {
    "state_dtype": "optional",
    "rounding": "name",
    "seed": "count >= 0",
    "first_element": "count >= 0",
    "ema_decay": "optional share",
    "gradient_noise": "optional",
    "backend": "backend",
    "threads": "threads",
}
ARRAYS = ("True", "complex", "empty list", "array", "array of one", "range")
INDICES = ("range", "int32", "int8", "big-endian", "read-only", "nested lists", "torch int64")
GRADIENT = LEGITIMATE["gradient"]
FILE_KINDS = {"state_dir": "path", "state_memory": "optional"}
# Any callable is a schedule, whose own exceptions reach the caller.
SCHEDULES = {"function": "a schedule", "class": "a schedule"}
SCHEDULED = {key: SCHEDULES for arguments in ARGUMENTS.values() for key in arguments.defaults}


def of_class(name: str) -> Target:
    arguments = ARGUMENTS[name]
    cls = getattr(fastopt, name)
    defaults = {key: 0.1 if default is REQUIRED else default for key, default in arguments.defaults.items()}
    assert set(EXECUTION_KINDS) == set(EXECUTION)

    def make():
        given = {"params": ones(), **defaults, **{key: default for key, (default, _) in EXECUTION.items()}}
        return cls, {**given, "state_dir": None, "state_memory": None}, None

    kinds = {"params": "structure", **_class_kinds(arguments), **EXECUTION_KINDS, **FILE_KINDS}
    required = ("params", *(key for key, default in arguments.defaults.items() if default is REQUIRED))
    wrong = dict.fromkeys(arguments.defaults, _schedules) | {"params": _params}
    return Target(
        f"fastopt.{name}",
        make,
        kinds,
        required=required,
        suggests=True,
        wrong=wrong,
        names={"params": ("params", "lr")},
        brief=name not in FULL,
        legitimate={"params": PARAMS_TAKEN, **SCHEDULED},
    )


def _schedules() -> dict[str, Any]:
    return {
        "schedule of text": lambda t: "x",
        "schedule of NaN": lambda t: float("nan"),
        "schedule of None": lambda t: None,
    }


PARAMS_TAKEN = {
    "empty list": "no parameters: nothing to do",
    "empty dict": "no parameters: nothing to do",
    "array": "an array",
    "array of one": "an array",
    "two levels": "nested sequences",
}


def _params() -> dict[str, Any]:
    p = ones()
    return {
        "twice": [p, p],
        "group without params": [{"lr": 0.1}],
        "group with unknown": [{"params": p, "learning_rate": 0.1}],
        "group with wrong lr": [{"params": p, "lr": "x"}],
        "group with None": [{"params": None}],
        "groups and arrays": [{"params": p}, ones()],
        "two levels": [[p]],
        "two levels of nothing": [[None]],
        "text in list": [p, "x"],
        "ints": [p, np.ones(3, int)],
        "read-only": [_locked()],
        "float64 beside": {"a": p, "b": np.ones(3, "i8")},
        "big-endian": p.astype(">f4"),
        "overlap": [p[:2], p[1:]],
        "generator of text": "ab",
    }


def _locked() -> np.ndarray:
    a = ones()
    a.flags.writeable = False
    return a


# ---- optimizers of arrays ----


def fresh(name: str = "Adam", **options: Any) -> Any:
    """An optimizer that has done two steps."""
    params = {"w": ones(), "b": ones(4)}
    opt = getattr(fastopt, name)(params, **options)
    for _ in range(2):
        opt.step({"w": ones(), "b": ones(4)})
    return opt


STEP = {"grad_scale": "any number", "max_norm": "limit", "skip_nonfinite": "flag", "zero_grads": "flag"}
STEP |= {"clip_norm": "limit", "clip_value": "limit"}
GOOD_STEP = {"grad_scale": 0.5, "max_norm": None, "skip_nonfinite": True, "zero_grads": False}
GOOD_STEP |= {"clip_norm": None, "clip_value": 2.0}


def _grads() -> dict[str, Any]:
    w, b = ones(), ones(4)
    wrong = {
        "array": w,
        "list": [w, b],
        "a key less": {"w": w},
        "a key more": {"w": w, "b": b, "c": w},
        "a misspelled key": {"W": w, "b": b},
        "text": {"w": "x", "b": b},
        "number": {"w": 1.0, "b": b},
        "another shape": {"w": b, "b": b},
        "transposed shape": {"w": w.T.copy(), "b": b},
        "ints": {"w": w.astype(int), "b": b},
        "big-endian": {"w": w.astype(">f4"), "b": b},
        "float64": {"w": w.astype("f8"), "b": b},
        "complex": {"w": w.astype("c8"), "b": b},
        "rows beyond": {"w": fastopt.RowSparse(np.array([7]), ones(1, 2)), "b": b},
        "rows before": {"w": fastopt.RowSparse(np.array([-1]), ones(1, 2)), "b": b},
        "rows of another width": {"w": fastopt.RowSparse(np.array([0]), ones(1, 3)), "b": b},
        "rows of another dtype": {"w": fastopt.RowSparse(np.array([0]), np.ones((1, 2))), "b": b},
        "nested": {"w": {"w": w}, "b": b},
        "list within": {"w": [w], "b": b},
    }
    sparse = sys.modules.get("scipy.sparse")
    if sparse is not None:
        wrong |= {
            "CSR of more rows": {"w": sparse.csr_matrix(ones(9, 2)), "b": b},
            "CSR of less rows": {"w": sparse.csr_matrix(ones(2, 2)), "b": b},
            "CSR for a vector": {"w": w, "b": sparse.csr_matrix(ones(1, 9))},
        }
    return wrong


def _of_step(name: str, **options: Any) -> list[Target]:
    def grads() -> dict[str, Any]:
        return {"w": ones(), "b": ones(4)}

    def step():
        opt = fresh(name, **options)
        return opt.step, {"grads": grads(), **GOOD_STEP}, opt

    def bind():
        opt = fresh(name, **options)
        return opt.bind, {"grads": grads()}, opt

    def accumulate():
        opt = fresh(name, **options)
        return opt.accumulate, {"grads": grads()}, opt

    def plan():
        opt = fresh(name, **options)
        return opt.bind(grads()).step, dict(GOOD_STEP), opt

    called = f"fastopt.{name}({', '.join(options)})"
    how = {"wrong": {"grads": _grads}, "required": ("grads",)}
    return [
        Target(f"{called}.step", step, {"grads": "structure", **STEP}, **how),
        Target(f"{called}.bind", bind, {"grads": "structure"}, **how),
        Target(f"{called}.accumulate", accumulate, {"grads": "structure"}, **how),
        Target(f"{called}.bind().step", plan, STEP),
    ]


def _of_groups(name: str) -> Target:
    """``opt.param_groups[0][key] = value``."""
    arguments = ARGUMENTS[name]
    kinds = _class_kinds(arguments)

    def make():
        opt = fresh(name, **({"lr": 0.1} if arguments.defaults["lr"] is REQUIRED else {}))

        def assign(**values: Any) -> None:
            for key, value in values.items():
                opt.param_groups[0][key] = value

        return assign, {}, opt

    return Target(
        f"fastopt.{name}.param_groups",
        make,
        kinds,
        suggests=True,
        legitimate=SCHEDULED,
        brief=name not in FULL,
        wrong=dict.fromkeys(kinds, _schedules),
    )


def _of_added_groups() -> Target:
    """``opt.add_param_group(group)``."""

    def make():
        opt = fresh()
        return opt.add_param_group, {}, opt

    def groups() -> dict[str, Any]:
        shared = fresh().param_groups[0]["params"]
        values = {f"params: {label}": {"params": value} for label, value in SCALARS.items()}
        values |= {f"nested: {label}": {"params": {"a": [value]}} for label, value in SCALARS.items()}
        values |= {f"lr: {label}": {"params": ones(4), "lr": value} for label, value in SCALARS.items()}
        values |= {
            "no params": {"lr": 0.1},
            "params twice": {"params": [shared[0], shared[0]]},
            "an argument of all groups": {"params": ones(4), "seed": 1},
            "a name like an argument's": {"params": ones(4), "betass": (0.9, 0.99)},
        }
        return {**SCALARS, **values}

    arrays = dict.fromkeys(("array", "array of one"), "an array of floats")
    empty = dict.fromkeys(("empty list", "empty dict"), "no parameters")
    return Target(
        "fastopt.Adam.add_param_group",
        make,
        {"param_group": "given"},
        names={"param_group": ("param_group", "params", "lr", "seed", "betas")},
        wrong={"param_group": groups},
        required=("param_group",),
        keywords=False,
        legitimate={
            "param_group": {
                **{
                    f"{place}: {label}": why
                    for place in ("params", "nested")
                    for label, why in {**arrays, **empty}.items()
                },
                **{f"lr: {label}": why for label, why in SCHEDULES.items()},
                **dict.fromkeys(("lr: 0", "lr: 1.5", "lr: array of one"), "a number"),
            }
        },
    )


def _of_group_calls() -> Target:
    """Yield wrong calls of a mapping's other methods than assignment."""

    def make():
        opt = fresh()
        group = opt.param_groups[0]
        ways = {
            "update": group.update,
            "setdefault": lambda x: group.setdefault(*x),
            "del": lambda x: group.__delitem__(x),
            "|=": lambda x: group.__ior__(x),
            "pop": lambda x: group.pop(x),
            "item": lambda x: group.__setitem__(*x),
        }

        def call(**values: Any) -> None:
            for way, value in values.items():
                ways[way](value)

        return call, {}, opt

    wrong = {
        "update": lambda: {"bad lr": {"lr": "x"}, "NaN": {"lr": float("nan")}, "unknown": {"learning_rate": 1.0}},
        "|=": lambda: {"bad lr": {"lr": "x"}, "NaN": {"lr": float("nan")}, "unknown": {"learning_rate": 1.0}},
        "setdefault": lambda: {"unknown": ("learning_rate", 1.0)},
        "del": lambda: {"lr": "lr"},
        "pop": lambda: {"lr": "lr", "params": "params"},
        "item": lambda: {"params": ("params", [ones()])},
    }
    names = dict.fromkeys(wrong, ("param_groups", "lr", "learning_rate", "params"))
    return Given("fastopt.Adam.param_groups[0]", make, wrong, names)


def Given(name: str, make: Any, wrong: Any, names: Any = None, **more: Any) -> Target:
    """A target whose wrong values are all given: those for any argument make no sense for it."""
    return Target(name, make, dict.fromkeys(wrong, "given"), names=names or {}, wrong=wrong, keywords=False, **more)


def _loads(new: Any, taken: dict[str, str], first: str = "exp_avg") -> Target:
    """``opt.load_state_dict(...)``, of either face: `new` makes an optimizer that has done steps."""

    def make():
        opt = new()
        return opt.load_state_dict, {}, opt

    def changed(**parts: Any) -> dict[str, Any]:
        return {**new().state_dict(), **parts}

    def with_state(**entries: Any) -> dict[str, Any]:
        saved = new().state_dict()
        state = {**saved["state"], 1: {**saved["state"][1], **entries}}
        return {**saved, "state": state}

    def with_group(**entries: Any) -> dict[str, Any]:
        saved = new().state_dict()
        return {**saved, "param_groups": [{**saved["param_groups"][0], **entries}]}

    def without(name: str) -> dict[str, Any]:
        saved = new().state_dict()
        state = {key: value for key, value in saved["state"][1].items() if key != name}
        return {**saved, "state": {**saved["state"], 1: state}}

    def without_key(name: str) -> dict[str, Any]:
        saved = new().state_dict()
        return {**saved, "param_groups": [{k: v for k, v in saved["param_groups"][0].items() if k != name}]}

    def wrong() -> dict[str, Any]:
        saved = new().state_dict()
        values = {f"state: {label}": changed(state=value) for label, value in SCALARS.items() if label != "empty dict"}
        values |= {f"param_groups: {label}": changed(param_groups=value) for label, value in SCALARS.items()}
        values |= {f"a group: {label}": changed(param_groups=[value]) for label, value in SCALARS.items()}
        values |= {
            f"state[1]: {label}": changed(state={**saved["state"], 1: value})
            for label, value in SCALARS.items()
            if label not in ("empty dict", "None")
        }
        values |= {f"params: {label}": with_group(params=value) for label, value in SCALARS.items()}
        values |= {
            f"lr: {label}": with_group(lr=value) for label, value in SCALARS.items() if label not in ("0", "1.5")
        }
        values |= {f"betas: {label}": with_group(betas=value) for label, value in SCALARS.items()}
        values |= {
            f"step: {label}": with_state(step=value)
            for label, value in {**SCALARS, "2**63": 2**63, "1e300": 1e300}.items()
            if label not in ("0", "function")
        }
        values |= {f"{first}: {label}": with_state(**{first: value}) for label, value in SCALARS.items()}
        values |= {
            f"{first}: {label}": with_state(**{first: value})
            for label, value in arrays_like(ones(4)).items()
            if label not in TAKEN_STATES
        }
        values |= {
            "params: indices twice": with_group(params=[0, 0]),
            "params: unknown indices": with_group(params=[0, 7]),
            "params: indices as text": with_group(params=["0", "1"]),
            "params: less": with_group(params=[0]),
            "two groups": changed(param_groups=saved["param_groups"] * 2),
            "keys as text": changed(state={str(key): value for key, value in saved["state"].items()}),
            "unknown index": changed(state={**saved["state"], 9: saved["state"][1]}),
            "without step": without("step"),
            f"without {first}": without(first),
            "unknown state": with_state(velocity=ones(4)),
            "unknown key": with_group(learning_rate=0.1),
            "no params": without_key("params"),
            "only groups": {"param_groups": saved["param_groups"]},
            "only state": {"state": saved["state"]},
            "list of pairs": list(saved.items()),
        }
        return values

    names = {"state_dict": ("state_dict", "param_groups", "state", "lr", "betas", "params")}
    return Target(
        f"{new.__name__}.load_state_dict",
        make,
        {"state_dict": "given"},
        names=names,
        wrong={"state_dict": lambda: {**SCALARS, **wrong()}},
        required=("state_dict",),
        keywords=False,
        legitimate={
            "state_dict": {
                "params: range": "names of entries",
                "params: indices as text": "names of entries",
                "keys as text": "as JSON has them",
                **taken,
            }
        },
    )


LOADED_BY_ARRAYS = {
    **{f"{key}: {label}": why for key in ("lr", "betas") for label, why in SCHEDULES.items()},
    "lr: array of one": "a number, as files of arrays have them",
}
LOADED_BY_TORCH = {
    "state: dict": "torch keeps what is of no parameter",
    "unknown key": "torch keeps the user's own",
    "unknown state": "torch keeps the user's own",
}
TAKEN_STATES = ("float64", "masked", "read-only", "overlapping itself", "nested lists", "big-endian", "longdouble")


def adam() -> Any:
    return fresh("Adam")


# ---- fastopt.torch ----


def tensors() -> list[Any]:
    params = [torch.ones(3, 2, requires_grad=True), torch.ones(4, requires_grad=True)]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


def torch_adam() -> Any:
    opt = fo.Adam(tensors())
    opt.step()
    opt.step()
    return opt


def of_torch_class(name: str) -> Target:
    cls = getattr(fo, name)
    arguments = cls._arguments
    defaults = {key: 0.1 if default is REQUIRED else default for key, default in arguments.defaults.items()}
    import inspect

    known = list(inspect.signature(cls).parameters)

    def make():
        given = {"params": tensors(), **{key: value for key, value in defaults.items() if key in known}}
        return cls, {**given, **{key: default for key, (default, _) in EXECUTION.items()}}, None

    kinds = {"params": "structure", **_class_kinds(arguments), **EXECUTION_KINDS}
    kinds = {key: kind for key, kind in kinds.items() if key in known}
    if "decoupled_weight_decay" in kinds:
        kinds["decoupled_weight_decay"] = "flag"
    return Target(
        f"fastopt.torch.{name}",
        make,
        kinds,
        required=("params",),
        suggests=True,
        brief=name not in FULL,
        wrong={"params": _torch_params},
        names={"params": ("params", "lr")},
        legitimate={"params": TORCH_PARAMS_TAKEN},
    )


TORCH_PARAMS_TAKEN = {
    "empty list": "torch itself refuses it",
    "twice": "torch warns",
    "complex": "it has no gradient",
    "ints": "they have no gradient",
    "names and tensors mixed": "torch itself refuses them",
}


def _torch_params() -> dict[str, Any]:
    p = torch.ones(3, requires_grad=True)
    return {
        "twice": [p, p],
        "group without params": [{"lr": 0.1}],
        "group with wrong lr": [{"params": [p], "lr": "x"}],
        "ints": [torch.ones(3, dtype=torch.int64)],
        "complex": [torch.ones(3, dtype=torch.complex64)],
        "arrays": [ones()],
        "no leaf": [p * 2],
        "text in list": [p, "x"],
        "expanded": [torch.ones(1).expand(3)],
        "overlap": [torch.ones(4)[:3].detach()] and [x for base in [torch.ones(4)] for x in (base[:3], base[1:])],
        "sparse": [torch.ones(3, 2).to_sparse()],
        "one tensor": p,
        "names and tensors mixed": [("a", p), torch.ones(2)],
    }


def _of_torch_step() -> list[Target]:
    def step():
        opt = torch_adam()
        arguments = {"closure": None, "skip_nonfinite": True, "zero_grads": False}
        return opt.step, {**arguments, "max_norm": None, "clip_norm": None, "clip_value": 2.0}, opt

    def hyper():
        opt = torch_adam()

        def call(**values: Any) -> None:
            opt.param_groups[0].update(values)
            try:
                opt.step()
            finally:
                opt.param_groups[0].update({key: opt.defaults[key] for key in values})

        return call, {}, opt

    def state():
        opt = torch_adam()
        p = opt.param_groups[0]["params"][0]

        def call(**values: Any) -> None:
            before = dict(opt.state[p])
            opt.state[p].update(values)
            try:
                opt.step()
            finally:
                opt.state[p].update(before)

        return call, {}, opt

    def group():
        opt = torch_adam()
        return opt.add_param_group, {}, opt

    p = torch.ones(5, requires_grad=True)
    groups = {
        "param_group": lambda: {
            **SCALARS,
            "wrong lr": {"params": [p], "lr": "x"},
            "NaN lr": {"params": [p], "lr": float("nan")},
            "text": {"params": "x"},
            "none": {"params": None},
            "ints": {"params": [torch.ones(3, dtype=torch.int64)]},
            "twice": {"params": [p, p]},
            "no params": {"lr": 0.1},
        }
    }
    kinds = _class_kinds(fo.Adam._arguments)
    return [
        Target(
            "fastopt.torch.Adam.step",
            step,
            {"closure": "optional", **{key: kind for key, kind in STEP.items() if key != "grad_scale"}},
            legitimate={"closure": {"class": "a callable", "function": "a callable"}},
        ),
        Target(
            "fastopt.torch.Adam.param_groups, step",
            hyper,
            kinds,
            keywords=False,
            legitimate={
                "decoupled_weight_decay": {"True": "a flag"},
                "bias_correction": {"array of one": "equal to what was there"},
            },
        ),
        Given(
            "fastopt.torch.Adam.add_param_group",
            group,
            groups,
            {"param_group": ("param", "lr")},
            legitimate={"param_group": {"ints": "it has no gradient", "twice": "torch warns"}},
        ),
        Given(
            "fastopt.torch.Adam.state, step",
            state,
            {
                "exp_avg": lambda: {**SCALARS, "shape": torch.ones(7), "dtype": torch.ones(3, 2, dtype=torch.int32)},
                "exp_avg_sq": lambda: {"None": None, "shape": torch.ones(7)},
                "step": lambda: {k: v for k, v in SCALARS.items() if k != "0"},
            },
        ),
    ]


# ---- sparse gradients ----


def _of_sparse() -> list[Target]:
    def rows():
        return fastopt.RowSparse, {"indices": np.array([0, 2]), "values": ones(2, 3), "duplicates": "sum"}, None

    def bags():
        arguments = {"indices": np.array([0, 2, 1]), "offsets": np.array([0, 2]), "values": ones(2, 3)}
        more = {"weights": ones(3), "mode": "sum", "duplicates": "sum"}
        return fastopt.RowSparse.bags, {**arguments, **more}, None

    indices = {
        "indices": lambda: {
            "floats": np.array([0.0, 2.0]),
            "two dimensions": np.zeros((2, 1), int),
            "bools": np.array([True, False]),
            "objects": np.array([0, 1], object),
            "more": np.arange(3 * 2),
            "big-endian": np.array([0, 2], ">i8"),
        },
        "values": lambda: {
            "more": ones(5, 3),
            "ints": np.ones((2, 3), int),
            "0-d": np.float32(1),
            "text array": np.array([["a"], ["b"]]),
            "big-endian": ones(2, 3).astype(">f4"),
        },
    }
    offsets = {
        "offsets": lambda: {
            "falling": np.array([2, 0]),
            "beyond": np.array([0, 9]),
            "not from 0": np.array([1, 2]),
            "floats": np.array([0.0, 2.0]),
            "more": np.arange(7),
            "negative": np.array([0, -1]),
        },
        "weights": lambda: {
            "more": ones(5),
            "float64": np.ones(3),
            "two dimensions": ones(3, 1),
            "ints": np.ones(3, int),
        },
    }
    kinds = {"indices": "array", "values": "array", "duplicates": "name"}
    taken = {
        "indices": dict.fromkeys(INDICES, "indices"),
        "offsets": dict.fromkeys(INDICES, "indices"),
        "values": dict.fromkeys(("array", "float64", *GRADIENT), "only read"),
    }
    names = {
        "indices": ("indices", "values", "weights"),
        "values": ("values", "weights"),
        "offsets": ("offsets", "indices"),
        "mode": ("mode", "weights"),
    }
    shared: Any = {"names": names}
    return [
        Target(
            "fastopt.RowSparse", rows, kinds, required=("indices", "values"), wrong=indices, legitimate=taken, **shared
        ),
        Target(
            "fastopt.RowSparse.bags",
            bags,
            {**kinds, "offsets": "array", "weights": "optional", "mode": "name"},
            required=("indices", "offsets", "values"),
            wrong={**indices, **offsets},
            legitimate=taken,
            **shared,
        ),
    ]


# ---- norms, settings, schedules, state dicts ----


def _of_norms() -> list[Target]:
    def grads() -> list[np.ndarray]:
        return [ones(), ones(4)]

    def norm():
        return fastopt.global_norm, {"grads": grads(), "backend": None, "threads": None}, None

    def clip():
        return fastopt.clip_grad_norm_, {"grads": grads(), "max_norm": 1.0, "backend": None, "threads": None}, None

    def torch_clip():
        params = tensors()
        arguments = {"parameters": params, "max_norm": 1.0, "norm_type": 2.0, "error_if_nonfinite": False}
        return fo.clip_grad_norm_, arguments, [p.grad for p in params]

    def wrong() -> dict[str, Any]:
        return {
            "text within": [ones(), "x"],
            "number within": [ones(), 1.0],
            "ints": [np.ones(3, int)],
            "complex": ones().astype("c8"),
            "big-endian": ones().astype(">f4"),
            "nested": [[ones()]],
            "objects": ones().astype(object),
        }

    def twice() -> dict[str, Any]:
        g = ones()
        return {**wrong(), "read-only": _locked(), "twice": [g, g], "overlap": [g[:2], g[1:]]}

    common = {"backend": "backend", "threads": "threads"}
    taken = {
        "array": "",
        "array of one": "",
        "list of None": "skipped",
        "empty list": "nothing",
        "empty dict": "nothing",
    }
    limit = {"max_norm": "required limit"}
    return [
        Target(
            "fastopt.global_norm",
            norm,
            {"grads": "structure", **common},
            required=("grads",),
            wrong={"grads": wrong},
            legitimate={"grads": taken},
        ),
        Target(
            "fastopt.clip_grad_norm_",
            clip,
            {"grads": "structure", **limit, **common},
            required=("grads", "max_norm"),
            wrong={"grads": twice},
            legitimate={"grads": taken},
        ),
        Target(
            "fastopt.torch.clip_grad_norm_",
            torch_clip,
            {"parameters": "structure", **limit, "norm_type": "two", "error_if_nonfinite": "flag"},
            required=("parameters", "max_norm"),
            legitimate={"parameters": {"empty list": "nothing"}},
        ),
    ]


def _of_settings() -> list[Target]:
    def one(function: Any, **arguments: Any) -> Any:
        return lambda: (function, dict(arguments), lambda: None)

    def saved() -> dict[str, Any]:
        return fresh().state_dict()

    flat = fastopt.flatten_state_dict

    def of_dict(function: Any, argument: str, value: Any) -> Any:
        return lambda: (function, {argument: value()}, None)

    state_dicts = {
        "state_dict": lambda: {
            "state is a list": {"state": [], "param_groups": []},
            "no groups": {"state": {}},
            "no state": {"param_groups": []},
            "state of text": {"state": {0: "x"}, "param_groups": []},
            "groups of text": {"state": {}, "param_groups": ["x"]},
            "groups of None": {"state": {}, "param_groups": None},
            "state of objects": {"state": {0: {"m": Opaque()}}, "param_groups": []},
        }
    }
    flats = {
        "flat": lambda: {
            "no groups": {"state.0.m": ones()},
            "another name": {**flat(saved()), "other": ones()},
            "bad index": {**flat(saved()), "state.x.m": ones()},
            "groups no JSON": {**flat(saved()), "param_groups": np.frombuffer(b"{", np.uint8)},
            "groups deep": {**flat(saved()), "param_groups": np.frombuffer(b"[" * 100000, np.uint8)},
            "groups of floats": {**flat(saved()), "param_groups": ones()},
            "groups None": {**flat(saved()), "param_groups": None},
            "groups no text": {**flat(saved()), "param_groups": np.frombuffer(b"\xff\xfe", np.uint8)},
            "bad bfloat16": {**flat(saved()), "state.0.m:bfloat16": np.ones(3, "u1")},
            "objects": {**flat(saved()), "state.0.m": None},
        }
    }
    return [
        Target(
            "fastopt.set_num_threads", one(fastopt.set_num_threads, n=2), {"n": "required threads"}, required=("n",)
        ),
        Target("fastopt.use_backend", one(fastopt.use_backend, name="native"), {"name": "backend"}, required=("name",)),
        Target(
            "fastopt.GradientNoise",
            one(fastopt.GradientNoise, eta=0.3, gamma=0.55, seed=0),
            {"eta": "number >= 0", "gamma": "number >= 0", "seed": "count >= 0"},
        ),
        Target(
            "fastopt.Demon",
            one(fastopt.Demon, total=10, beta=0.9),
            {"total": "count >= 1", "beta": "fraction"},
            required=("total",),
            legitimate={"total": {"1e400": "", "1.5": "steps may be fractions"}},
        ),
        Target(
            "fastopt.Demon()",
            lambda: (fastopt.Demon(10), {"t": 3}, None),
            {"t": "count >= 1"},
            keywords=False,
            legitimate={"t": {"1e400": "", "1.5": "steps may be fractions"}},
        ),
        Target(
            "fastopt.flatten_state_dict",
            of_dict(flat, "state_dict", saved),
            {"state_dict": "given"},
            wrong={"state_dict": lambda: {**SCALARS, **state_dicts["state_dict"]()}},
        ),
        Target(
            "fastopt.torch_state_dict",
            of_dict(fastopt.torch_state_dict, "state_dict", saved),
            {"state_dict": "given"},
            wrong={"state_dict": lambda: {**SCALARS, **state_dicts["state_dict"]()}},
            legitimate={"state_dict": {"state of objects": "they stay as they are"}},
        ),
        Target(
            "fastopt.unflatten_state_dict",
            of_dict(fastopt.unflatten_state_dict, "flat", lambda: flat(saved())),
            {"flat": "given"},
            wrong={"flat": lambda: {**SCALARS, **flats["flat"]()}},
        ),
    ]


# ---- hogwild ----


def _kernel(order: Any, lr: float, *arrays: Any) -> float:
    return 0.0


def _of_hogwild() -> list[Target]:
    def run():
        arguments = {"kernel": _kernel, "examples": 3, "arrays": [ones()], "lr": 0.1, "workers": 1, "epochs": 1}
        more = {"decay": 0.9, "processes": False, "seed": 0, "progress": None}
        return hogwild.run, {**arguments, **more}, None

    def linear():
        arguments = {"loss": "hinge", "rule": "sgd", "lr": 0.5, "decay": 0.9, "l2": 0.0, "seed": 0}
        return hogwild.LinearModel, arguments, None

    def factorization():
        return hogwild.Factorization, {"rank": 2, "rule": "sgd", "lr": 0.5, "decay": 0.9, "l2": 0.0, "seed": 0}, None

    def create():
        def call(**values: Any) -> None:
            hogwild.SharedArrays.create(**values).unlink()

        return call, {"w": ones()}, None

    def opened():
        return hogwild.SharedArrays.open, {"name": "fastopt-nonesuch"}, None

    table = np.array([0, 1, 2]), np.array([0, 1]), ones(2)
    y = np.array([1.0, -1.0])

    def fit():
        model = hogwild.LinearModel()
        return model.fit, {"X": table, "y": y, "workers": 1, "epochs": 1, "processes": False, "progress": None}, model

    def factor():
        model = hogwild.Factorization(2)
        arguments = {"i": np.array([0, 1]), "j": np.array([0, 1]), "r": y, "workers": 1, "epochs": 1}
        return model.fit, arguments, model

    def fitted(method: str) -> Any:
        def make():
            model = hogwild.LinearModel().fit(table, y, epochs=1)
            return getattr(model, method), {"X": table, **({"y": y} if method == "score" else {})}, None

        return make

    def matrix(method: str) -> Any:
        def make():
            model = hogwild.Factorization(2).fit(np.array([0, 1]), np.array([0, 1]), y, epochs=1)
            arguments = {"i": np.array([0, 1]), "j": np.array([0, 1])}
            return getattr(model, method), {**arguments, **({"r": y} if method == "score" else {})}, None

        return make

    def tables() -> dict[str, Any]:
        starts, indices, values = table
        return {
            "indptr of floats": (ones(3), indices, values),
            "indptr falling": (np.array([0, 2, 1]), indices, values),
            "indptr short": (np.array([0]), indices, values),
            "indices negative": (starts, np.array([0, -1]), values),
            "indices of floats": (starts, ones(2), values),
            "data longer": (starts, indices, ones(5)),
            "data of text": (starts, indices, np.array(["a", "b"])),
            "data NaN": (starts, indices, np.array([1, np.nan])),
            "three Nones": (None, None, None),
            "ragged": (starts, [[0], [0, 1]], values),
        }

    def targets() -> dict[str, Any]:
        return {
            "zeros": np.zeros(2),
            "more": np.ones(5),
            "text": np.array(["a", "b"]),
            "NaN": np.array([1, np.nan]),
            "two dimensions": np.ones((2, 1)),
            "ragged": [[1], [1, 2]],
            "bool": None,
        }

    def numbers() -> dict[str, Any]:
        return {
            "negative": np.array([0, -1]),
            "floats": np.array([0.0, 1.0]),
            "more": np.array([0, 1, 2]),
            "huge": np.array([0, 2**40]),
            "text": np.array(["a", "b"]),
            "two dimensions": np.zeros((2, 1), int),
            "ragged": [[1], [1, 2]],
        }

    how = {"workers": "required threads", "epochs": "count >= 1", "processes": "flag", "progress": "progress"}
    model = {"lr": "number > 0", "decay": "share", "l2": "number >= 0", "seed": "count >= 0"}
    huge = {"seed": {"1e400": "any whole number", "1e5000": "any whole number"}}
    pair = {"i": "given", "j": "given"}
    pairs: Any = {"i": lambda: {**SCALARS, **numbers()}, "j": lambda: {**SCALARS, **numbers()}}
    named: Any = {"i": ("i", "j"), "j": ("j", "i")}
    ranges = {key: {"range": "array_like"} for key in ("i", "j", "y", "r")}
    return [
        Target(
            "hogwild.run",
            run,
            {
                "kernel": "callable",
                "examples": "count >= 1",
                "arrays": "sequence",
                "lr": "number > 0",
                "decay": "share",
                "seed": "count >= 0",
                **how,
            },
            required=("kernel", "examples", "arrays", "lr"),
            legitimate=huge,
            names={"processes": ("processes", "arrays")},
        ),
        Target("hogwild.LinearModel", linear, {"loss": "name", "rule": "name", **model}, legitimate=huge),
        Target(
            "hogwild.Factorization",
            factorization,
            {"rank": "count >= 1", "rule": "name", **model},
            required=("rank",),
            legitimate={**huge, "rank": {"1e400": "", "1e5000": ""}},
        ),
        Target(
            "hogwild.SharedArrays.create",
            create,
            {"w": "anything of numbers"},
            keywords=False,
            legitimate={"w": dict.fromkeys(ARRAYS, "an array")},
        ),
        Target("hogwild.SharedArrays.open", opened, {"name": "name"}, required=("name",), raises=(FileNotFoundError,)),
        Target(
            "hogwild.LinearModel.fit",
            fit,
            {"X": "given", "y": "given", **how},
            required=("X", "y"),
            wrong={"X": lambda: {**SCALARS, **tables()}, "y": lambda: {**SCALARS, **targets()}},
            legitimate={"X": {"array": "made a CSR matrix"}},
        ),
        Target(
            "hogwild.Factorization.fit",
            factor,
            {**pair, "r": "given"},
            required=("i", "j", "r"),
            wrong={**pairs, "r": lambda: {**SCALARS, **targets()}},
            names=named,
            legitimate={**ranges, "r": {"zeros": "numbers", **ranges["r"]}},
        ),
        *(
            Target(
                f"hogwild.LinearModel.{name}",
                fitted(name),
                {"X": "given"},
                required=("X",),
                wrong={"X": lambda: {**SCALARS, **tables()}},
                legitimate={"X": {"array": "made a CSR matrix"}},
            )
            for name in ("predict", "decision_function")
        ),
        Target(
            "hogwild.LinearModel.score",
            fitted("score"),
            {"y": "given"},
            required=("y",),
            wrong={"y": lambda: {**SCALARS, **targets()}},
            legitimate={"y": {"zeros": "none right", **ranges["y"]}},
        ),
        *(
            Target(
                f"hogwild.Factorization.{name}",
                matrix(name),
                pair,
                required=("i", "j"),
                wrong=pairs,
                names=named,
                legitimate=ranges,
            )
            for name in ("predict", "score")
        ),
    ]


TARGETS: list[Target] = [
    *(of_function(name) for name in EVERY_RULE),
    *(of_class(name) for name in ARGUMENTS),
    *_of_step("Adam"),
    *_of_step("SGD", momentum=0.9),
    *_of_step("AggMo"),
    *_of_step("Adam", state_dtype="8bit"),
    *(_of_groups(name) for name in options.ARGUMENTS),
    _of_group_calls(),
    _of_added_groups(),
    _loads(adam, LOADED_BY_ARRAYS),
    _loads(torch_adam, LOADED_BY_TORCH),
    *(of_torch_class(name) for name in (*fo.CLASSES, *fo.MATRIX_CLASSES)),
    *_of_torch_step(),
    *_of_sparse(),
    *_of_norms(),
    *_of_settings(),
    *_of_hogwild(),
]


def offenders(target: Target) -> Iterator[tuple[str, str]]:
    for call in calls(target):
        problem = call.run()
        if problem:
            yield str(call), problem


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_is_wrong_is_said(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of files are among what is tried
    assert list(offenders(target)) == []


@pytest.mark.parametrize("name", ["indices", "values", "duplicates"])
def test_attributes_of_row_sparse_stay(name):
    sparse = fastopt.RowSparse(np.array([0, 2]), ones(2, 3))
    with pytest.raises(AttributeError, match=name):
        setattr(sparse, name, None)


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        (fastopt, "Nadam", "NAdam"),
        (fastopt, "adamw", "AdamW"),
        (fastopt, "RowsSparse", "RowSparse"),
        (functional, "adam_w", "adamw"),
        (functional, "AdaGrad", "adagrad"),
        (fo, "AdamWW", "AdamW"),
    ],
)
def test_unknown_names_are_answered_with_the_right_one(module, name, meant):
    with pytest.raises(AttributeError, match=f"'{name}'.*did you mean '{meant}'"):
        getattr(module, name)


@pytest.mark.parametrize("module", [fastopt, fo], ids=lambda module: module.__name__)
@pytest.mark.parametrize("name", ["AdaBound", "AMSBound"])
def test_a_base_lr_that_is_taken_from_lr_is_not_blamed(module, name):
    params = [ones()] if module is fastopt else tensors()
    with pytest.raises(ValueError, match=r"^lr: found 0, expected a finite number > 0, or a base_lr beside it$"):
        getattr(module, name)(params, lr=0)
    assert getattr(module, name)(params, lr=0, base_lr=0.1).param_groups[0]["lr"] == 0


def test_a_buffer_of_torch_s_sgd_that_has_not_begun_is_none():
    """The buffer is None, as torch itself leaves it."""
    (p, _) = params = tensors()
    opt = fo.SGD(params, lr=0.1, momentum=0.9)
    opt.state[p]["momentum_buffer"] = None
    opt.step()
    torch.testing.assert_close(opt.state[p]["momentum_buffer"], p.grad)


def test_a_refused_group_stays_as_it_was():
    opt, group = torch_adam(), {"params": [torch.ones(5, requires_grad=True)], "lr": "x"}
    before = dict(group)
    with pytest.raises(TypeError, match=r"^lr: found 'x'"):
        opt.add_param_group(group)
    assert group == before
    assert len(opt.param_groups) == 1


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    wanted = sys.argv[1:]
    total, counts = 0, Counter()
    for target in TARGETS:
        if wanted and not any(w in target.name for w in wanted):
            continue
        begin = time.perf_counter()
        for call in calls(target):
            total += 1
            started = time.perf_counter()
            try:
                problem = call.run()
            except Exception as error:
                problem = f"GENERATOR {error!r}"
            if time.perf_counter() - started > 1:
                print("SLOW", call, time.perf_counter() - started)
            if problem:
                counts[target.name] += 1
                print(" ".join(f"{call} => {problem}".split()))
        print("TIME", target.name, round(time.perf_counter() - begin, 2))
    print(total, "calls", sum(counts.values()), "offenders", dict(counts))
