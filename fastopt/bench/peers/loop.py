"""Numba, as a user would write it: one ``prange`` loop with the rule's formula."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np

from ...backends.numba_cpu.compiler import compile_update
from ...rules import RULES
from .base import Competitor, Peer, Task, coefficients, new_arrays

_MOST = numba.get_num_threads()  # it starts no more than there are processors


@cache
def _kernel(name: str) -> Any:
    rule = RULES[name]
    own = ", ".join(f"c[0, {k}]" for k in range(len(rule.coefficients)))
    states = "".join(f", {state}" for state in rule.state_names)
    elements = "".join(f", {state}[i]" for state in rule.state_names)
    body = f"        p[i]{elements} = update(p[i] * decay, g[i]{elements}, {own})\n"
    if rule.vector:
        copies = elements.replace("[i]", "[k, i]")
        body = (
            "        x = p[i] * decay\n"
            "        for k in range(len(c)):\n"
            f"            x{copies} = update(x, g[i]{copies}, {own.replace('[0,', '[k,')})\n"
            "        p[i] = x\n"
        )
    source = f"def loop(p, g{states}, decay, c):\n    for i in numba.prange(p.size):\n{body}"
    names: dict[str, Any] = {"numba": numba, "update": compile_update(rule)}
    exec(compile(source, f"<prange loop of {name}>", "exec"), names)
    return numba.njit(parallel=True, error_model="numpy")(names["loop"])


def build(task: Task) -> Peer:
    """The loop, compiled for the arrays at hand."""
    arrays = new_arrays(task)
    real = task.start.dtype.type
    loop, (decay, steps) = _kernel(task.rule.name), coefficients(task)
    numba.set_num_threads(min(task.threads, _MOST))

    def step() -> None:
        loop(arrays[0], task.grad, *arrays[1:], real(decay), np.array(next(steps), real))

    return Peer(step, lambda: arrays)


LOOP = Competitor("numba-loop", "Numba\nloop", build, "numba")
