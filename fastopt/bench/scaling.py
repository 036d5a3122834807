"""One rule with more and more threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from . import pictures
from .peers import COMPETITORS
from .rules import Updates
from .section import Options, Row, Section, Table, named, rate_of, share_of, table, whoever
from .sizes import USUAL

#: XLA starts its threads once, thinc and NumPy have one.
FOLLOW = ("native", "numba", "numba-loop", "torch-fused", "torch-foreach", "torch-loop", "torch-compile", "deepspeed")


def counts(threads: int) -> list[int]:
    """Numbers of threads up to one: the powers of two, and itself."""
    return sorted({1 << k for k in range(threads.bit_length()) if 1 << k <= threads} | {threads})


def section(options: Options) -> Section:
    """The section of threads."""
    rule = USUAL if USUAL in options.rules else options.rules[0]
    whom = [who for who in (*options.backends, *options.peers) if who in FOLLOW]
    updates = Updates(whom, options.threads, options.repeats)
    title = f"One step of {rule} over {options.size:,} elements of {options.dtypes[0]}, by threads"

    def measure(name: str, budget: float) -> Row:
        updates.arena.threads = int(name)
        return updates.measure(name, rule, options.size, options.dtypes[0], budget)

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        columns = {"threads": named, "ceiling\nGB/s": rate_of("ceiling"), "fastopt\nshare": share_of("native")}
        rates = {COMPETITORS[who].label + "\nGB/s": rate_of(who) for who in whoever(rows, whom)}
        yield table(
            title, {**columns, **rates}, rows, "Those whose threads cannot be changed in a process are not here."
        )

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        pictures.scaling(figure, title, rows, whoever(rows, ("ceiling", *whom)))

    return Section(
        "scaling", title, list(map(str, counts(options.threads))), measure, tables, draw, 5.0, updates.arena.reasons
    )
