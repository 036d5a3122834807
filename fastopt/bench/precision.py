"""What fewer bytes bring: Adam with parameters, gradients and states in fewer bits, against the float32 ceiling."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import numpy as np

from ..dispatch import load_backend
from ..optimizers import CLASSES, Plan
from ..storage import BLOCK, BLOCK_BYTES, numpy_dtype, storage_dtype
from .timing import Call, interleaved, microseconds, ratio

#: The dtype of parameter and gradient, and that of states.
CASES = {
    f"{kind}: {states}": (kind, states)
    for kind, states in (
        ("float32", "float32"),
        ("float32", "bfloat16"),
        ("float32", "8bit"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "8bit"),
        ("float16", "float16"),
    )
}
IN_CACHE = 8192  # elements, for one thread
AHEAD = (0, 512, 1024)


def _plan(name: str, size: int, threads: int) -> Plan:
    kind, states = CASES[name]
    rng = np.random.default_rng(0)
    dtype = numpy_dtype(storage_dtype(kind) or np.dtype(np.float32))
    param, grad = np.empty(size, dtype), np.empty(size, dtype)
    for begin in range(0, size, 1 << 20):
        n = min(1 << 20, size - begin)
        param[begin : begin + n] = rng.standard_normal(n, np.float32)
        grad[begin : begin + n] = rng.standard_normal(n, np.float32)
    return CLASSES["Adam"](param, state_dtype=states, threads=threads).bind(grad)


def bytes_moved(name: str) -> float:
    """Bytes read and written for each parameter: it and its two states are both, its gradient is read."""
    size = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": BLOCK_BYTES / BLOCK}
    kind, states = (size[part] for part in CASES[name])
    return 3 * kind + 4 * states


def levels() -> list[str]:
    """The instruction sets that this processor has."""
    native: Any = load_backend("native")
    return native.isa_supported()


class Measure:
    """Measures every case over large arrays, in turns, when the first is asked for; and each in cache."""

    def __init__(self, size: int, threads: int, repeats: int) -> None:
        self.size, self.threads, self.repeats = size, threads, repeats
        self._native: Any = load_backend("native")
        self._times: dict[str, list[float]] = {}

    def _run(self) -> None:
        streamed = [np.ones(self.size, np.float32) for _ in range(4)]
        calls: dict[str, Call] = {
            f"ceiling {ahead}": partial(self._native.stream, streamed, ahead, self.threads) for ahead in AHEAD
        }
        calls |= {name: _plan(name, self.size, self.threads).step for name in CASES}
        self._times = interleaved(calls, self.repeats, budget=20)

    def __call__(self, name: str) -> dict[str, Any]:
        """The row of a case."""
        if not self._times:
            self._run()
        ceiling = min((own for call, own in self._times.items() if call.startswith("ceiling")), key=median)
        own = self._times[name]
        moved = bytes_moved(name)
        row = {
            "storage": name,
            "bytes": moved,
            "ms": 1e3 * median(own),
            "gbs": moved * self.size / median(own) / 1e9,
            "updates": self.size / median(own) / 1e9,
            "against": ratio(ceiling, own),
            "most": bytes_moved("float32: float32") / moved,
        }
        step, chosen = _plan(name, IN_CACHE, 1).step, self._native.isa()
        for level in levels():
            self._native.set_isa(level)
            row[level] = 1e3 * microseconds(step, 3) / IN_CACHE
        self._native.set_isa(chosen)
        return row
