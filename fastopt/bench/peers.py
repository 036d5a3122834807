"""Who competes: one step of a rule by each backend, by NumPy expressions made from the rule, and by torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from .. import functional
from ..dispatch import available_backends, count_copies, hyper_row
from ..rules import REQUIRED, Rule

_NUMPY = {"sqrt": np.sqrt, "where": np.where, "maximum": np.maximum, "isnan": np.isnan}

#: The rules that torch has: its class, and its options beside lr.
TORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {}),
    "adadelta": ("Adadelta", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_momentum": ("RMSprop", {"momentum": 0.9}),
    "rmsprop_centered": ("RMSprop", {"centered": True}),
    "rmsprop_centered_momentum": ("RMSprop", {"centered": True, "momentum": 0.9}),
    "adam": ("Adam", {}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "adamw": ("AdamW", {}),
    "adamw_amsgrad": ("AdamW", {"amsgrad": True}),
    "adamax": ("Adamax", {}),
    "nadam": ("NAdam", {}),
}
_FUSED = ("SGD", "Adagrad", "Adam", "AdamW")  # by torch on the CPU


@dataclass
class Peer:
    """One step by someone, over arrays of its own.

    Attributes
    ----------
    step : callable
        Does the next step.
    arrays : list of numpy.ndarray
        What can be compared with the others' afterwards: the parameter, and states where they can be seen.
    how : str
        What it is to be called.
    """

    step: Callable[[], Any]
    arrays: list[np.ndarray]
    how: str


@cache
def load_torch() -> ModuleType | None:
    """torch, where it is installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def hyper_of(rule: Rule) -> dict[str, Any]:
    """The rule's defaults, with 1e-3 for a required value."""
    return {name: 1e-3 if hyper.default is REQUIRED else hyper.default for name, hyper in rule.hyper.items()}


def count_arrays(rule: Rule) -> int:
    """The arrays of a step: parameter, gradient, states. All are read, all but the gradient are written."""
    return 2 + len(rule.states) * count_copies(rule, hyper_of(rule))


def _arrays(rule: Rule, start: np.ndarray) -> list[np.ndarray]:
    """A copy of the parameter, and zero states, every page of them touched."""
    shape = rule.state_shape(start.shape, count_copies(rule, hyper_of(rule)))
    return [start.copy(), *(np.full(shape, 0, start.dtype) for _ in rule.states)]


def fastopt_peer(rule: Rule, backend: str, start: np.ndarray, grad: np.ndarray, threads: int | None = None) -> Peer:
    """The functional form on a backend."""
    function = getattr(functional, rule.name)
    param, *states = arrays = _arrays(rule, start)
    count = itertools.count(1)
    required = {name: 1e-3 for name, hyper in rule.hyper.items() if hyper.default is REQUIRED}

    def step() -> None:
        function(param, grad, *states, step=next(count), weight_decay=0.0, backend=backend, threads=threads, **required)

    return Peer(step, arrays, backend)


def numpy_peer(rule: Rule, start: np.ndarray, grad: np.ndarray) -> Peer:
    """The rule's own expressions over whole arrays, as one would write them with NumPy."""
    update = FunctionType(rule.update.__code__, {**rule.update.__globals__, **_NUMPY})
    param, *states = arrays = _arrays(rule, start)
    rows = hyper_row(rule, hyper_of(rule))
    decay = param.dtype.type(rule.prologue_coefficients(rows[0], 1.0)[2])
    scalars: tuple[float, ...] = tuple(rule.scalars.values())
    count, width = itertools.count(1), len(rule.coefficients)

    def step() -> None:
        nonlocal scalars
        t = float(next(count))
        if decay != 1:
            param[...] *= decay
        for k, row in enumerate(rows.tolist()):
            folded = rule.fold(t, row[0], *row[4:], *scalars)
            own = [state[k] for state in states] if rule.vector else states
            with np.errstate(all="ignore"):
                updated = update(param, grad, *own, *map(param.dtype.type, folded[:width]))
            for array, value in zip((param, *own), updated if own else (updated,), strict=True):
                array[...] = value
        scalars = folded[width:]

    return Peer(step, arrays, "numpy")


def torch_peer(rule: Rule, start: np.ndarray, grad: np.ndarray, threads: int | None = None) -> Peer | None:
    """The optimizer of ``torch.optim``, fused where torch can; None without torch, or where it has no such rule."""
    torch = load_torch()
    if torch is None or rule.name not in TORCH:
        return None
    if threads is not None:
        torch.set_num_threads(threads)
    name, options = TORCH[rule.name]
    how = "fused" if name in _FUSED else "foreach"
    array = start.copy()
    param = torch.from_numpy(array).requires_grad_()
    param.grad = torch.from_numpy(grad)
    optimizer = getattr(torch.optim, name)([param], lr=hyper_of(rule)["lr"], **{how: True}, **options)
    return Peer(optimizer.step, [array], how)


def build(rule: Rule, start: np.ndarray, grad: np.ndarray, threads: int | None = None) -> dict[str, Peer]:
    """All that can do the rule here: some of native, numba, numpy, torch.

    Parameters
    ----------
    rule : Rule
        The rule.
    start, grad : numpy.ndarray
        The parameter's values at first, which each peer copies, and the gradient, which all read.
    threads : int, optional
        Threads of all but NumPy; by default their own choice.
    """
    found = {
        backend: fastopt_peer(rule, backend, start, grad, threads)
        for backend in ("native", "numba")
        if available_backends()[backend] == "available"
    }
    found["numpy"] = numpy_peer(rule, start, grad)
    torch = torch_peer(rule, start, grad, threads)
    return found if torch is None else {**found, "torch": torch}


def check(rule: Rule, n: int, threads: int | None = None) -> None:
    """Does one step by each and compares.

    Raises
    ------
    AssertionError
        Backends differ in a bit, or others by more than rounding.
    """
    rng = np.random.default_rng(1)
    start, grad = rng.standard_normal((2, n), np.float32)
    peers = build(rule, start, grad, threads)
    for peer in peers.values():
        peer.step()
    first, expected = next(iter(peers.items()))
    for name, peer in peers.items():
        for array, other in zip(peer.arrays, expected.arrays, strict=False):
            same = np.array_equal if {first, name} == {"native", "numba"} else _close
            if not same(array, other):
                raise AssertionError(f"{rule.name}: after one step {name} differs from {first}")


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=1e-4)
