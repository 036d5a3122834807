"""The peers: fastopt's backends and other libraries, each an entry of one table, optional, skipped with a reason.

Each is set up as its own documentation says is fastest, works on the same values, and is timed only if its result after
one step is that of fastopt. To add one, write its `Competitor` and name it in `COMPETITORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import numpy as np

from ...rules import Rule
from .. import machine
from ..section import reason
from .base import Competitor, Peer, Task, count_arrays
from .deepspeed import DEEPSPEED
from .expressions import NUMPY
from .loop import LOOP
from .optax import OPTAX
from .own import BACKENDS
from .prodigyopt import PRODIGYOPT
from .pytorch import TORCH
from .thinc import THINC

COMPETITORS = {entry.name: entry for entry in (*BACKENDS, NUMPY, LOOP, *TORCH, DEEPSPEED, OPTAX, THINC, PRODIGYOPT)}
PEERS = [name for name, entry in COMPETITORS.items() if entry not in BACKENDS]
USUAL = [name for name in PEERS if COMPETITORS[name].usual]
CHECKED = 131_101  # elements that results are compared on: two threads' worth, and a remainder
_T = TypeVar("_T")
_CLOSE = {"float64": (1e-9, 1e-12), "float32": (1e-4, 1e-6), "bfloat16": (2e-2, 1e-3), "float16": (4e-3, 1e-4)}


class Arena:
    """Builds and compares those who were asked for, and keeps the reasons of those who cannot take part.

    Parameters
    ----------
    names : sequence of str
        Of `COMPETITORS`.
    threads : int
        For all who can be told.
    """

    def __init__(self, names: Sequence[str], threads: int) -> None:
        self.entries = [COMPETITORS[name] for name in names]
        self.threads = threads
        self.reasons: dict[str, str] = {}
        self._agreed: dict[tuple[str, str, str], bool] = {}

    def build(self, rule: Rule, start: np.ndarray, grad: np.ndarray) -> dict[str, Peer]:
        """All that can do the rule here, on the arrays' dtype, with the memory there is.

        Raises
        ------
        AssertionError
            The backends differ in a bit.
        """
        task, dtype = Task(rule, start, grad, self.threads), start.dtype.name
        self._compare(rule, dtype)
        found: dict[str, Peer] = {}
        # Some arrays come with the first step only, so that what is free is not asked again.
        free, taken, most = machine.memory(), 0, 0
        for entry in self.entries:
            if not self._agreed.get((entry.name, rule.name, dtype)):
                continue
            own, temporary = count_arrays(rule) * start.nbytes, entry.temporaries * start.nbytes
            if (need := taken + own + max(most, temporary)) > free:
                self.reasons[f"{entry.name}, {start.size:,} elements"] = (
                    f"needs {(need - free) / 1e9:.1f} GB more memory"
                )
            elif (peer := self._attempt(entry, task, _itself)) is not None:
                found[entry.name] = peer
                taken, most = taken + own, max(most, temporary)
        return found

    def _attempt(self, entry: Competitor, task: Task, then: Callable[[Peer], _T]) -> _T | None:
        """Return the result of `then` for the peer, or the reason why there is none."""
        try:
            return then(entry.build(task))
        except Exception as error:
            self.reasons[entry.name] = reason(error)
        return None

    def _compare(self, rule: Rule, dtype: str) -> None:
        """Does one step by each who has not done it yet."""
        start, grad = values(CHECKED, dtype, seed=1)
        task = Task(rule, start, grad, self.threads)
        expected: Sequence[np.ndarray] = ()
        for entry in self.entries:
            key = (entry.name, rule.name, dtype)
            if key in self._agreed or rule.name not in entry.rules:
                continue
            if dtype not in entry.dtypes:
                self.reasons[f"{entry.name}, {dtype}"] = f"has {', '.join(entry.dtypes)}"
                continue
            found = self._attempt(entry, task, _result)
            if found is None:
                continue
            expected = expected or found
            if entry in BACKENDS:
                same = all(map(np.array_equal, found, expected))
                assert same, f"{rule.name}, {dtype}: after one step {entry.name} differs from another backend"
            same = all(_close(a, b, dtype) for a, b in zip(found, expected, strict=False))
            if not same:
                case = rule.name if dtype == "float32" else f"{rule.name}, {dtype}"
                self.reasons[f"{entry.name}, {case}"] = "its result after one step is another"
            self._agreed[key] = same


def _itself(peer: Peer) -> Peer:
    return peer


def _result(peer: Peer) -> Sequence[np.ndarray]:
    """After one step."""
    if peer.before:
        peer.before()
    peer.step()
    return peer.result()


def values(size: int, dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A parameter and a gradient."""
    if dtype == "bfloat16":
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
    else:
        kind = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    start, grad = np.empty(size, kind), np.empty(size, kind)
    for array in (start, grad):
        for begin in range(0, size, 1 << 20):
            array[begin : begin + (1 << 20)] = rng.standard_normal(min(1 << 20, size - begin), np.float32)
    return start, grad


def _close(a: np.ndarray, b: np.ndarray, dtype: str) -> bool:
    rtol, atol = _CLOSE[dtype]
    return np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=atol)


def versions(packages: Iterable[str]) -> str:
    """The packages' versions, once each; of a competitor's without one there is nothing to say."""
    return ", ".join(map(_version, dict.fromkeys(filter(None, packages))))


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"
