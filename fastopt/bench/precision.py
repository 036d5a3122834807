"""Adam stored in fewer bits: speed against float32's ceiling, and what an update costs where memory does not count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from time import perf_counter
from typing import Any

import numpy as np

from ..arrays.blocks import BLOCK_BYTES, QUANT_BLOCK
from ..backends.choice import load_backend
from ..optimizers import CLASSES
from . import pictures
from .machine import Ceiling, take_ceiling
from .peers import values
from .peers.base import installed
from .peers.lowbit import LOWBIT, build
from .section import (
    Options,
    Row,
    Section,
    Show,
    Skip,
    Table,
    against,
    named,
    row_of,
    share_of,
    table,
    time_of,
    value_of,
)
from .timing import Call, interleaved, quartiles

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
FOR_OTHERS = 10_000_000  # elements at most: the slowest takes seconds for them
LR = 1e-3
_SIZES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": BLOCK_BYTES / QUANT_BLOCK}


def _bytes_moved(parameter: float, state: float) -> float:
    """Bytes read and written for each parameter: it and its two states are both, its gradient is read."""
    return 3 * parameter + 4 * state


def levels() -> list[str]:
    """The instruction sets that this processor has."""
    load_backend("native")
    from ..backends import native

    return native.isa_supported()


class Measure:
    """Measures each case, and each peer beside fastopt's 8-bit states, in turns with the ceiling of float32."""

    def __init__(self, options: Options) -> None:
        self.size, self.threads, self.repeats = options.size, options.threads, options.repeats
        self.reasons: dict[str, str] = {}
        load_backend("native")
        from ..backends import native

        self._native = native

    def _case(self, name: str, size: int, threads: int) -> Call:
        kind, states = CASES[name]
        param, grad = values(size, kind)
        return CLASSES["Adam"](param, state_dtype=states, threads=threads).bind(grad).step

    def __call__(self, name: str, budget: float) -> Row:
        """The row of a case or a peer."""
        began = perf_counter()
        if name in CASES:
            size, width, state = self.size, *(_SIZES[part] for part in CASES[name])
            calls = {"native": self._case(name, size, self.threads)}
        else:
            size, width, state = min(self.size, FOR_OTHERS), 4.0, LOWBIT[name][0]
            calls = {"peer": self._peer(name, size), "native": self._case("float32: 8bit", size, self.threads)}
        calls |= Ceiling(4 * size, 4).calls(4, self.threads)
        times = interleaved(calls, self.repeats, budget - (perf_counter() - began))
        fastest = take_ceiling(times)
        moved = _bytes_moved(width, state)
        row = row_of(name, times, moved * size, fastest, elements=size, who="native" if name in CASES else "peer")
        row |= {"each": moved, "most": _bytes_moved(4, 4) / moved}
        if fastest:
            row["ceiling_gbs"] = _bytes_moved(4, 4) * size / quartiles(fastest).mid / 1e9
        return row | (self._in_cache(name) if name in CASES else {})

    def _peer(self, name: str, size: int) -> Call:
        start, grad = values(size, "float32")
        try:
            peer = build(name, start, grad, LR, self.threads)
        except Skip as reason:
            self.reasons[name] = str(reason)
            raise
        want = start.copy()
        CLASSES["Adam"](want, lr=LR, threads=self.threads).step(grad)
        if not np.allclose(peer.result()[0], want, rtol=1e-4, atol=1e-6):  # states only lose bits after the first step
            raise Skip("its result after one step is another")
        return peer.step

    def _in_cache(self, name: str) -> Row:
        """Nanoseconds of a parameter with each instruction set."""
        step, chosen, found = self._case(name, IN_CACHE, 1), self._native.isa(), {}
        for level in levels():
            self._native.set_isa(level)
            found[level] = 1e9 * quartiles(interleaved({level: step}, self.repeats)[level]).mid / IN_CACHE
        self._native.set_isa(chosen)
        return found


def _updates(row: Row) -> str:
    return f"{row['elements'] / row['times'][row['who']][1] / 1e9:.2f}"


def _against_ours(row: Row) -> str:
    return against("peer")(row).split()[-1] if row["who"] == "peer" and "peer" in row["against"] else "-"


def _of_its_own(show: Any) -> Show:
    """A column about whoever the row is of."""
    return lambda row: show(row["who"])(row)


def section(options: Options) -> Section:
    """The section of storage."""
    measure = Measure(options)
    title = f"One step of Adam over {options.size:,} parameters, by what they are stored in; {options.threads} threads"
    columns: dict[str, Show] = {
        "parameter, gradient:\nstates": named,
        "bytes": value_of("each"),
        "\nms": _of_its_own(time_of),
        "10^9\nupdates/s": _updates,
        "of float32's\nceiling": _of_its_own(partial(share_of, most=inf)),  # fewer bytes take less time
        "to fastopt's\n8bit": _against_ours,
        "by bytes\nalone": value_of("most", 0, " %", 100),
        **{f"cached\n{level}": value_of(level, 2, " ns") for level in levels()},
    }
    caption = (
        "bytes: moved for each parameter. of float32's ceiling: updates per second, to those of the fastest streaming "
        "kernel with the reads and writes of Adam in float32, in the same run. cached: nanoseconds per parameter for "
        f"{IN_CACHE:,} of them, in one thread: what conversions and the update cost where memory does not count. "
        f"torchao, bitsandbytes: parameters in float32, over {min(options.size, FOR_OTHERS):,} of them, and their "
        "time beside that of fastopt's 8bit."
    )

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        yield table(title, columns, rows, caption)

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        pictures.precision(figure, title, rows)

    peers = [name for name in LOWBIT if installed("torch") and installed(name.partition(" ")[0])]
    return Section("precision", title, [*CASES, *peers], measure, tables, draw, 6.0, measure.reasons)
