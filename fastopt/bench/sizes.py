"""One rule at many sizes: where the caches end, and what a call costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from . import pictures
from .peers import COMPETITORS
from .rules import Updates
from .section import Options, Row, Section, Table, named, rate_of, share_of, table, whoever

#: One rule can stand for all here: it is bytes that count.
USUAL = "adam"


def section(options: Options) -> Section:
    """The section of sizes."""
    rule = USUAL if USUAL in options.rules else options.rules[0]
    dtype = options.dtypes[0]
    updates = Updates((*options.backends, *options.peers), options.threads, options.repeats)
    sizes = {f"{size:.0e}".replace("e+0", "e"): size for size in options.sizes}
    sizes = {name if float(name) == size else f"{size:,}": size for name, size in sizes.items()}
    title = f"One step of {rule}, {dtype}, by size; {options.threads} threads"

    def measure(name: str, budget: float) -> Row:
        return updates.measure(name, rule, sizes[name], dtype, budget)

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        whom = whoever(rows, (*options.backends, *options.peers))
        labels = {who: COMPETITORS[who].label + "\nGB/s" for who in whom}
        rates = {label: rate_of(who) for who, label in labels.items()}
        columns = {"elements": named, "ceiling\nGB/s": rate_of("ceiling"), "fastopt\nshare": share_of("native")}
        yield table(title, {**columns, **rates}, rows, "GB/s: bytes that must be read and written, by time.")

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        pictures.roofline(figure, title, rows, whoever(rows, ("ceiling", *options.backends, *options.peers)))

    return Section("sizes", title, list(sizes), measure, tables, draw, 6.0, updates.arena.reasons)
