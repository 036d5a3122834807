"""Malformed calls of the whole public API: arguments x wrong values, and what each must come to.

A `Target` is a call that is right. From it `calls` makes wrong ones, one argument at a time. Each either stands among
the values that are legitimate for arguments of its kind, with a reason; or it must raise a documented exception, whose
text names the argument, what was found and what would do, and must have changed nothing. ``python -m
tests.test_messages`` prints those that do not, of all targets or of those whose names contain a word that is given.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fastopt

PACKAGE = str(Path(fastopt.__file__).parent)
DOCUMENTED = (ValueError, TypeError, fastopt.BackendUnavailable)


class Opaque:
    """An object that is nothing that anybody could mean."""

    def __repr__(self) -> str:
        return "<opaque>"


class Hostile:
    """An object whose every conversion fails in its own way."""

    def __float__(self) -> float:
        raise KeyError("float")

    def __index__(self) -> int:
        raise RuntimeError("index")

    def __len__(self) -> int:
        raise OSError("len")

    def __repr__(self) -> str:
        raise RuntimeError("repr")


#: Values tried for every argument.
SCALARS: dict[str, Any] = {
    "None": None,
    "empty text": "",
    "text": "x",
    "number as text": "1",
    "bytes": b"x",
    "True": True,
    "NaN": float("nan"),
    "inf": float("inf"),
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "1e400": 10**400,
    "-1e400": -(10**400),
    "1e5000": 10**5000,
    "complex": 1j,
    "empty list": [],
    "list of None": [None],
    "empty dict": {},
    "dict": {"x": 1},
    "set": {1, 2},
    "object": Opaque(),
    "class": Opaque,
    "array": np.ones((2, 2), "f4"),
    "array of one": np.ones(1),
    "0-d text": np.array("1"),
    "function": len,
    "range": range(2),
    "slice": slice(1),
    "ellipsis": ...,
}


#: Values tried where others like it have had everything.
BRIEF = ("None", "text", "True", "NaN", "inf", "-1", "1e400", "complex", "dict", "array", "object", "hostile", "longer")


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def arrays_like(a: np.ndarray) -> dict[str, Any]:
    """Arrays that cannot stand for a float32 array of that shape."""
    n = a.size
    return {
        "int32": a.astype("i4"),
        "int8": a.astype("i1"),
        "bool": a.astype(bool),
        "complex64": a.astype("c8"),
        "object": a.astype(object),
        "text array": a.astype("U4"),
        "structured": np.zeros(a.shape, [("x", "f4")]),
        "datetime": np.zeros(a.shape, "M8[s]"),
        "longdouble": a.astype(np.longdouble),
        "big-endian": a.astype(">f4"),
        "float64": a.astype("f8"),
        "longer": np.ones(n + 1, "f4"),
        "shorter": np.ones(max(n - 1, 0), "f4"),
        "another rank": np.ones((1, *a.shape), "f4"),
        "0-d": np.array(1, "f4"),
        "empty": np.ones(0, "f4"),
        "read-only": _read_only(a),
        "overlapping itself": np.lib.stride_tricks.as_strided(np.ones(1, "f4"), a.shape, (0,) * a.ndim),
        "nested lists": a.tolist(),
        "masked": np.ma.masked_array(a.copy(), np.arange(n).reshape(a.shape) == 0),
        "bytearray": bytearray(a.nbytes),
        "memoryview of bytes": memoryview(bytearray(a.nbytes)),
        "scalar": np.float32(1),
    }


def tensors_like(a: np.ndarray) -> dict[str, Any]:
    """torch's, where it is here."""
    if "torch" not in sys.modules:
        return {}
    import torch

    t = torch.from_numpy(a.copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is in support only in beta, or soon no more
        odd = {
            "torch sparse CSR": t.float().reshape(1, -1).to_sparse_csr(),
            "torch quantized": torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        }
    return {
        **odd,
        "torch int64": t.long(),
        "torch complex": t.to(torch.complex64),
        "torch bool": t.bool(),
        "torch meta": t.to("meta"),
        "torch longer": torch.ones(a.size + 1),
        "torch no leaf": t.float().requires_grad_() * 2,
        "torch expanded": torch.ones(1).expand(a.shape) if a.ndim == 1 else t.long(),
    }


@dataclass
class Target:
    """A call that is right, and what makes it wrong.

    `make` gives the function, its good arguments, and what must not change. `kinds` gives each argument's kind, a key
    of `LEGITIMATE`. An argument's value is replaced within `at`, for arguments that are parts of others.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], dict[str, Any], Any]]
    kinds: Mapping[str, str]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what messages may call an argument
    raises: tuple[type[BaseException], ...] = ()  # documented beside the usual ones
    wrong: Mapping[str, Callable[[], Mapping[str, Any]]] = field(default_factory=dict)  # more wrong values
    required: tuple[str, ...] = ()
    legitimate: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of this target alone
    keywords: bool = True  # whether it takes arguments by keyword, so that a name can be misspelled
    brief: bool = False  # for one of many like it: not all values are tried again
    suggests: bool = False  # whether a misspelled name is answered with the right one
    positional: tuple[str, ...] = ()  # arguments that are handed over by place

    def __str__(self) -> str:
        return self.name


@dataclass
class Call:
    """One wrong call."""

    target: Target
    argument: str
    value: str
    run: Callable[[], str]

    def __str__(self) -> str:
        return f"{self.target.name}: {self.argument} = {self.value}"


def freeze(x: Any) -> Any:
    """All that could change of a thing, to be compared."""
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes() if x.dtype != object else repr(x)
    if type(x).__module__.startswith("torch") and hasattr(x, "data_ptr") and not hasattr(x, "param_groups"):
        if x.layout is not sys.modules["torch"].strided or x.device.type != "cpu" or x.is_quantized:
            return repr(x)
        detached = x.detach().contiguous().reshape(-1)
        return str(x.dtype), tuple(x.shape), detached.view(sys.modules["torch"].uint8).numpy().tobytes()
    if hasattr(x, "param_groups") and hasattr(x, "state_dict"):
        own = [freeze(array) for group in x.param_groups for array in _members(group["params"])]
        groups = [{k: repr(v) for k, v in dict(group).items() if k != "params"} for group in x.param_groups]
        return own, groups, freeze(x.state_dict()["state"]), repr(getattr(x, "_steps", None))
    if isinstance(x, fastopt.RowSparse):
        return freeze(x.indices), freeze(x.values.numpy()), x.duplicates
    if isinstance(x, Mapping):
        return [(repr(key), freeze(value)) for key, value in x.items()]
    if isinstance(x, (list, tuple)):
        return [freeze(value) for value in x]
    if isinstance(x, (int, str, bytes, type(None))):
        return x
    return repr(x) if callable(x) or isinstance(x, float) else type(x).__name__


def _members(params: Any) -> list[Any]:
    return list(params.values()) if isinstance(params, Mapping) else params if isinstance(params, list) else [params]


#: For each kind of argument the values that are right for it after all, and why.
_ABSENT = {"None": "it need not be given"}
_SCHEDULE = {"function": "a schedule"}
LEGITIMATE: dict[str, dict[str, str]] = {
    "any number": {"-1": "a number", "0": "a number", "1.5": "a number"},
    "number >= 0": {"0": "a number >= 0", "1.5": "a number >= 0"},
    "limit": {"0": "a number >= 0", "1.5": "a number >= 0", "inf": "clips nothing", "1e400": "as infinity", **_ABSENT},
    "required limit": {"0": "a number >= 0", "1.5": "a number >= 0", "inf": "clips nothing", "1e400": "as infinity"},
    "number > 0": {"1.5": "a number > 0"},
    "number >= 1 or inf": {"1.5": "a number >= 1", "inf": "infinity has a meaning here", "1e400": "as infinity"},
    "number >= 0 or inf": {"0": "", "1.5": "", "inf": "infinity has a meaning here", "1e400": "as infinity", **_ABSENT},
    "fraction": {"0": "in [0, 1)"},
    "closed fraction": {"0": "in [0, 1]"},
    "share": {},  # in (0, 1]
    "optional share": {"0": "in [0, 1]", **_ABSENT},
    "flag": {"True": "a flag", "0": "stands for False"},
    "step": {},
    "count >= 0": {"0": "a whole number"},
    "count >= 1": {},
    "threads": {**_ABSENT},
    "required threads": {},
    "backend": {**_ABSENT},
    "name": {},
    "optional": {**_ABSENT},
    "optional number": {**_ABSENT, "-1": "a number", "0": "a number", "1.5": "a number"},
    "optional number > 0": {**_ABSENT, "1.5": "a number > 0"},
    "pair": {},
    "vector": {},
    "array": {},
    "gradient": {
        "read-only": "it is only read",
        "overlapping itself": "it is only read",
        "torch no leaf": "it is only read",
        "torch expanded": "it is only read",
    },
    "structure": {},
    "given": {},
    "path": {**_ABSENT, "text": "a path", "number as text": "a path", "bytes": "a path"},
    "two": {},
    "callable": {"class": "a callable", "function": "a callable"},
    "sequence": {
        "empty list": "no arrays",
        "empty dict": "no arrays",
        "list of None": "anything the kernel takes",
        "dict": "anything the kernel takes",
        "range": "anything the kernel takes",
        "array": "its rows",
    },
    "progress": {**_ABSENT, "True": "prints", "function": "a callable", "class": "a callable"},
    "anything of numbers": dict.fromkeys(("NaN", "inf", "-1", "0", "1.5"), "a number"),
    "schedulable": {},
}


def _legitimate(target: Target, argument: str, value: str) -> bool:
    value = "1e400" if value == "1e5000" else value
    own = target.legitimate.get(argument, {})
    return value in own or value in LEGITIMATE[target.kinds[argument]]


def judge(
    target: Target, argument: str, run: Callable[[], Any], watched: Any, legitimate: bool, unknown: bool = False
) -> str:
    """Return the fault in a wrong call's outcome; nothing if it is as it must be."""
    before = freeze(watched)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        problem = "" if legitimate and type(error) in DOCUMENTED else _judge_error(target, argument, error, unknown)
        if not problem and freeze(watched) != before:
            problem = "something has changed, though it was refused"
        return problem
    return "" if legitimate else "taken without a word"


def _judge_error(target: Target, argument: str, error: BaseException, unknown: bool) -> str:
    said = f"{type(error).__name__}: {error}"
    allowed = (*DOCUMENTED, *target.raises)
    if type(error) not in allowed:
        return f"raw {said} [{_origin(error)}]"
    text = str(error)
    names = target.names.get(argument, ()) or (argument,)
    if not any(name in text for name in names):
        return f"does not name {argument!r}: {said}"
    if unknown:
        return "" if not target.suggests or "did you mean" in text else f"no 'did you mean': {said}"
    if isinstance(error, fastopt.BackendUnavailable):
        return ""
    if "found" not in text or "expected" not in text:
        return f"no 'found ..., expected ...': {said} [{_origin(error)}]"
    return "" if len(text) < 600 and "\n" not in text else f"too long, or of several lines: {said[:100]}"


def _origin(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def calls(target: Target) -> Iterator[Call]:
    """All wrong calls of a target."""
    _, good, _ = target.make()
    for argument, kind in target.kinds.items():
        values = {} if kind == "given" else dict(SCALARS)
        if kind in ("array", "gradient") and isinstance(good.get(argument), np.ndarray):
            values |= {**arrays_like(good[argument]), **tensors_like(good[argument])}
        values |= {} if kind == "given" else {"hostile": Hostile()}
        values |= target.wrong.get(argument, dict)()
        if target.brief and kind != "given":
            values = {label: values[label] for label in BRIEF if label in values}
        for label, value in values.items():
            if not _same(good.get(argument, fastopt), value):
                yield Call(target, argument, label, _replaced(target, argument, label, value))
    for argument in target.required:
        yield Call(target, argument, "not given", _without(target, argument))
    if target.keywords:
        for argument in [name for name in target.kinds if name not in target.positional]:
            for label, name in (
                ("misspelled", argument[:-1] + "_" + argument[-1]),
                ("doubled", argument + argument[-1]),
            ):
                yield Call(target, argument, f"{label} as {name}", _misspelled(target, argument, name))


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, (bool, int, float, str, type(None))) and a == b


def _call(target: Target, function: Any, arguments: dict[str, Any]) -> Any:
    places = [arguments[name] for name in target.positional if name in arguments]
    return function(*places, **{key: value for key, value in arguments.items() if key not in target.positional})


def _replaced(target: Target, argument: str, label: str, value: Any) -> Callable[[], str]:
    def run() -> str:
        function, arguments, watched = target.make()
        arguments[argument] = value
        legitimate = _legitimate(target, argument, label)
        return judge(target, argument, lambda: _call(target, function, arguments), (watched, arguments), legitimate)

    return run


def _without(target: Target, argument: str) -> Callable[[], str]:
    def run() -> str:
        function, arguments, _ = target.make()
        arguments.pop(argument, None)
        error = None
        try:
            _call(target, function, arguments)
        except TypeError as raised:
            error = raised
        if error is None:
            return "taken without a word"
        names = target.names.get(argument, ()) or (argument,)
        return "" if any(name in str(error) for name in names) else f"does not name {argument!r}: {error}"

    return run


def _misspelled(target: Target, argument: str, name: str) -> Callable[[], str]:
    def run() -> str:
        function, arguments, watched = target.make()
        arguments[name] = arguments.pop(argument, 0)
        own = Target(target.name, target.make, {name: target.kinds[argument]}, suggests=target.suggests)
        places = {**arguments}
        problem = judge(own, name, lambda: _call(target, function, places), (watched, arguments), False, unknown=True)
        # Python itself says first that one that must be given is missing.
        return "" if argument in target.required and "missing" in problem and repr(argument) in problem else problem

    return run
