"""Wrong calls of the training room, as tests/test_messages.py makes them of all others."""

import numpy as np
import pytest

from fastopt.training import (
    SWA,
    BatchNorm,
    Curriculum,
    EarlyStopping,
    Lookahead,
    check_gradient,
    minibatches,
    use_average,
)

from ..malformed import Target, calls

HUGE = {"1e400": "any whole number", "1e5000": "any whole number"}
SEED = {"seed": HUGE}


def ones(*shape):
    return np.ones(shape or (3, 2), "f4")


def _batches():
    def make():
        arguments = {"data": ones(4, 2), "batch_size": 2, "shuffle": True, "seed": 0, "drop_last": False}
        return minibatches, {**arguments, "rank": 0, "ranks": 1}, None

    kinds = {"data": "array", "batch_size": "count >= 1", "shuffle": "flag", "seed": "count >= 0", "drop_last": "flag"}
    any_array = (
        *("int32", "int8", "bool", "complex64", "object", "text array", "structured", "datetime", "longdouble"),
        *("big-endian", "float64", "longer", "shorter", "another rank", "read-only", "overlapping itself", "masked"),
        *("array", "array of one", "torch sparse CSR", "torch quantized", "torch int64", "torch complex"),
        *("torch bool", "torch meta", "torch longer", "torch no leaf", "torch expanded"),
    )
    own = {"data": dict.fromkeys(any_array, "examples of any kind"), **SEED, "batch_size": {"None": "all", **HUGE}}
    return Target(
        "minibatches",
        make,
        {**kinds, "rank": "count >= 0", "ranks": "count >= 1"},
        required=("batch_size",),
        positional=("data",),
        legitimate=own,
        names={"data": ("data", "batch_size")},
    )


def _stopping():
    def make():
        return EarlyStopping, {"patience": 1, "min_delta": 0.0, "mode": "min", "restore_best": True, "file": None}, None

    def step():
        stopping, params = EarlyStopping(), {"w": ones()}
        return stopping.step, {"value": 1.0, "params": params}, params

    kinds = {"patience": "count >= 1", "min_delta": "number >= 0", "mode": "name", "restore_best": "flag"}
    arrays = dict.fromkeys(("array", "array of one"), "an array")
    return [
        Target(
            "EarlyStopping",
            make,
            {**kinds, "file": "optional"},
            legitimate={"patience": HUGE},
        ),
        Target(
            "EarlyStopping.step",
            step,
            {"value": "anything of numbers", "params": "structure"},
            required=("value",),
            legitimate={
                "params": arrays,
                "value": dict.fromkeys(("1e400", "-1e400", "1e5000"), "as infinity"),
            },
        ),
    ]


def _averages():
    def swa():
        params = ones()
        return SWA, {"params": params}, params

    def lookahead():
        params = ones()
        return Lookahead, {"params": params, "k": 2, "alpha": 0.5}, params

    def used():
        params = ones()

        def call(**values):
            with use_average(**values):
                pass

        return call, {"params": params, "average": ones()}, params

    shapes = ("longer", "shorter", "another rank", "0-d", "empty", "array", "array of one", "torch longer")
    floats = dict.fromkeys(("float64", *shapes), "floats")
    same = dict.fromkeys(("float64", "read-only", "overlapping itself", "torch no leaf", "torch expanded"), "only read")
    return [
        Target("SWA", swa, {"params": "array"}, required=("params",), legitimate={"params": floats}),
        Target(
            "Lookahead",
            lookahead,
            {"params": "array", "k": "count >= 1", "alpha": "share"},
            required=("params",),
            legitimate={"params": floats, "k": HUGE},
        ),
        Target(
            "use_average",
            used,
            {"params": "array", "average": "array"},
            required=("params", "average"),
            legitimate={"params": {"float64": "floats"}, "average": same},
            names={"params": ("params", "average"), "average": ("average",)},
        ),
    ]


def _norm():
    def make():
        return BatchNorm, {"features": 2, "eps": 1e-5, "momentum": 0.1, "axis": 1, "dtype": "f4", "threads": 1}, None

    def forward():
        norm = BatchNorm(2)
        return norm.forward, {"x": ones(), "training": True, "out": None}, norm.state_dict()

    def backward():
        norm = BatchNorm(2)
        norm.forward(ones())
        return norm.backward, {"dy": ones(), "out": None}, norm.state_dict()

    kinds = {"features": "count >= 1", "eps": "number > 0", "momentum": "optional share", "axis": "count >= 0"}
    read = {"read-only": "only read", "overlapping itself": "only read", "masked": "its data"}
    return [
        Target(
            "BatchNorm",
            make,
            {**kinds, "dtype": "name", "threads": "threads"},
            required=("features",),
            legitimate={"axis": {"-1": "the last"}, "dtype": {"None": "NumPy's float64"}},
        ),
        Target(
            "BatchNorm.forward",
            forward,
            {"x": "array", "training": "flag", "out": "optional"},
            required=("x",),
            legitimate={"x": {**read, "array": "as many features"}},
        ),
        Target(
            "BatchNorm.backward",
            backward,
            {"dy": "array", "out": "optional"},
            required=("dy",),
            legitimate={"dy": read},
        ),
    ]


def _curriculum():
    def make():
        return Curriculum, {"difficulty": [1, 2, 3], "strategy": "naive", "levels": 2, "seed": 0}, None

    def draw():
        curriculum = Curriculum([1, 2])
        return curriculum.draw, {"size": 3}, curriculum.state_dict()

    return [
        Target(
            "Curriculum",
            make,
            {"difficulty": "given", "strategy": "name", "levels": "threads", "seed": "count >= 0"},
            required=("difficulty",),
            legitimate=SEED,
        ),
        Target("Curriculum.draw", draw, {"size": "count >= 1"}, required=("size",)),
    ]


def _gradient():
    def make():
        params = np.ones(3)
        arguments = {"loss": lambda p: float((p**2).sum()), "params": params, "gradient": 2 * params}
        more = {"samples": 2, "coordinates": None, "seed": 0, "tolerance": None, "complex_step": False}
        return check_gradient, {**arguments, **more}, params

    return Target(
        "check_gradient",
        make,
        {
            "loss": "given",
            "params": "structure",
            "gradient": "structure",
            "samples": "optional",
            "coordinates": "optional",
            "seed": "count >= 0",
            "tolerance": "optional number > 0",
            "complex_step": "flag",
        },
        required=("loss", "params", "gradient"),
        legitimate={
            **SEED,
            "samples": {**HUGE, "0": ""},
            "coordinates": {"empty dict": "none"},
            "tolerance": {"0": "none"},
            "gradient": {"class": "a callable"},
        },
        names={"params": ("params", "gradient"), "complex_step": ("complex_step", "loss")},
    )


TARGETS = [_batches(), *_stopping(), *_averages(), *_norm(), *_curriculum(), _gradient()]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_is_wrong_is_said(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems = [(str(call), problem) for call in calls(target) if (problem := call.run())]
    assert problems == []
