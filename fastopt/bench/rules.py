"""The rules, one by one, at one size: each backend and each peer beside the ceiling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from ..rules import RULES
from . import machine, pictures
from .peers import COMPETITORS, Arena, values
from .peers.base import count_arrays, count_measured, count_moved
from .section import Options, Row, Section, Skip, Table, against, named, rate_of, row_of, share_of, time_of, whoever
from .section import table as make_table
from .timing import interleaved


class Updates:
    """Measures one step of a rule over an array of some size, by all who can do it, and the ceiling, in turns.

    Parameters
    ----------
    names : sequence of str
        Who takes part, of `peers.COMPETITORS`.
    threads, repeats : int
        Threads of all who can be told, and rounds.
    """

    def __init__(self, names: Sequence[str], threads: int, repeats: int) -> None:
        self.arena = Arena(names, threads)
        self.repeats = repeats
        self._kept: tuple[Any, ...] = ()

    def _arrays(self, size: int, dtype: str, arrays: int) -> tuple[np.ndarray, np.ndarray, machine.Ceiling]:
        """Values and the ceiling's arrays, kept for the next of the same size."""
        if self._kept[:2] != (size, dtype) or self._kept[2] < arrays:
            self._kept = ()
            need = (2 * arrays + 1) * size * np.dtype("f4" if dtype == "float32" else "f8").itemsize
            if need > machine.memory():
                raise Skip(f"needs {need / 1e9:.1f} GB of memory, {machine.memory() / 1e9:.1f} can be had")
            start, grad = values(size, dtype)
            self._kept = (size, dtype, arrays, start, grad, machine.Ceiling(start.nbytes, arrays))
        return self._kept[3:]

    def measure(self, name: str, rule: str, size: int, dtype: str, budget: float, widest: int = 0) -> Row:
        """A row.

        Parameters
        ----------
        name : str
            The row's.
        rule, size, dtype
            What is measured.
        budget : float
            Seconds for all of it.
        widest : int
            The arrays of the widest rule that comes later, for which memory is kept.
        """
        began = perf_counter()
        arrays = count_arrays(RULES[rule])
        start, grad, ceiling = self._arrays(size, dtype, max(arrays, widest))
        found = self.arena.build(RULES[rule], start, grad)
        streams = ceiling.calls(arrays, self.arena.threads, count_measured(RULES[rule]))
        calls = {**streams, **{who: peer.step for who, peer in found.items()}}
        before = {who: peer.before for who, peer in found.items() if peer.before}
        times = interleaved(calls, self.repeats, budget - (perf_counter() - began), before)
        moved, fastest = count_moved(RULES[rule]) * start.nbytes, machine.take_ceiling(times)
        return row_of(name, times, moved, fastest, rule=rule, elements=size, dtype=dtype)


class Measure(Updates):
    """Measures rules at one size."""

    def __init__(self, options: Options) -> None:
        super().__init__((*options.backends, *options.peers), options.threads, options.repeats)
        self.size = options.size
        self.cases = {
            rule if dtype == "float32" else f"{rule} {dtype}": (rule, dtype)
            for dtype in options.dtypes
            for rule in options.rules
        }
        self.widest = max(count_arrays(RULES[rule]) for rule in options.rules)

    def __call__(self, name: str, budget: float) -> Row:
        """The row of a rule."""
        rule, dtype = self.cases[name]
        return self.measure(name, rule, self.size, dtype, budget, self.widest)


CAPTION = (
    "share: of the ceiling, the fastest streaming kernel found with the same reads and writes, in the same run; of "
    "rules that measure tensors, which read them twice, with the fastest that only reads as much. Medians of rounds in "
    "turns; ratios are medians of the rounds' own, in brackets the interval that holds the true one with 95 % "
    "confidence (of fewer than six rounds, their range)."
)
AGREED = (
    "x: the peer's time to fastopt's: below 1 the peer wins. After one step both of fastopt's backends had the same "
    "bits, the others the same numbers up to rounding."
)


def section(options: Options) -> Section:
    """The section of rules."""
    measure = Measure(options)
    kinds = ", ".join(options.dtypes)
    title = f"One step over {options.size:,} elements of {kinds}, {options.threads} thread{'s' * (options.threads > 1)}"

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        ours = {
            "rule": named,
            "ceiling\nGB/s": rate_of("ceiling"),
            "fastopt\nms": time_of("native"),
            "fastopt\nGB/s": rate_of("native"),
            "fastopt\nshare": share_of("native"),
            "fastopt (numba)\nms": time_of("numba"),
            "fastopt (numba)\nshare": share_of("numba"),
        }
        yield make_table(title, ours, rows, CAPTION)
        if peers := whoever(rows, options.peers):
            theirs = {COMPETITORS[who].label + "\nms": against(who) for who in peers}
            yield make_table("The same by others", {"rule": named, **theirs}, rows, AGREED)

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        pictures.bars(figure, title, rows, whoever(rows, (*options.backends, *options.peers)))

    seconds = 3.0 * max(1.0, options.size / 2e7)
    return Section("rules", title, list(measure.cases), measure, tables, draw, seconds, measure.arena.reasons, first=3)
