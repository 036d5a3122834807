"""Internal. A worker's exchange with a server: gradient there, step, parameters back, against a bare ping-pong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import pictures
from .distributed import of_bare, times_of
from .peers.base import installed
from .section import Options, Row, Section, Table, named, row_of, table, time_of
from .sparse import LOOKUPS, ROWS, WIDTH

#: What `in_servers.py` takes for each.
CASES = {
    "4 MB": "1000000",
    "100 MB": "25000000",
    f"{LOOKUPS:,} rows": f"{ROWS},{WIDTH},{LOOKUPS}",
}
RULES = ("SGD", "Adagrad", "AdaptiveRevision")
_PROGRAM = Path(__file__).with_name("in_servers.py")


def measure(name: str, budget: float, repeats: int = 21) -> Row:
    """Starts two processes, which take turns of all.

    Raises
    ------
    Skip
        There is no MPI.
    """
    arguments = [CASES[name], str(repeats), str(budget), *RULES]
    times, beside = times_of(_PROGRAM, 2, arguments)
    return row_of(name, times, beside=beside)


def section(options: Options) -> Section:
    """The section of servers."""
    title = "A worker's exchange with a server, and a bare ping-pong of the same bytes"
    caption = (
        "bare: the gradient is sent there, and as many bytes back, by MPI alone. rows: those of Zipf-distributed "
        f"lookups in a table of {ROWS:,} x {WIDTH} float32, fetched and pushed; bare sends one for each lookup."
    )

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        columns = {"": named, "bare, ms": time_of("bare"), **{f"{rule} / bare": of_bare(rule) for rule in RULES}}
        yield table(title, columns, rows, caption)

    def take(name: str, budget: float) -> Row:
        return measure(name, budget, options.repeats)

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        pictures.beside(figure, title, rows, {rule: rule for rule in RULES})

    names = list(CASES) if installed("mpi4py") else []
    return Section("servers", title, names, take, tables, draw, 10.0)
