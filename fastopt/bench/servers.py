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
from .timing import ratio

#: What `in_servers.py` takes for each.
CASES = {
    "4 MB": "1000000",
    "100 MB": "25000000",
    f"{LOOKUPS:,} rows": f"{ROWS},{WIDTH},{LOOKUPS}",
}
RULES = ("SGD", "Adagrad", "AdaptiveRevision")
BY_RAY = ("Ray", "SGD by Ray")
_OF_RAY = "4 MB"  # where Ray takes part: it has several copies of all on their way
_PROGRAM = Path(__file__).with_name("in_servers.py")


def measure(name: str, budget: float, repeats: int = 21, ray: bool = False) -> Row:
    """Starts two processes, which take turns of all, with Ray's actors beside them or not.

    Raises
    ------
    Skip
        There is no MPI.
    """
    arguments = [CASES[name], str(repeats), str(budget), *RULES, *(["Ray"] if ray else [])]
    times, beside = times_of(_PROGRAM, 2, arguments)
    of_ray = ratio(times["SGD by Ray"], times["Ray"]) if ray else None
    return row_of(name, times, beside=beside, of_ray=of_ray)


def _of_ray(row: Row) -> str:
    return f"{row['of_ray'][1]:.2f}x" if row["of_ray"] else "-"


def section(options: Options) -> Section:
    """The section of servers."""
    title = "A worker's exchange with a server, and a bare ping-pong of the same bytes"
    caption = (
        "bare: the gradient is sent there, and as many bytes back, by MPI alone. rows: those of Zipf-distributed "
        f"lookups in a table of {ROWS:,} x {WIDTH} float32, fetched and pushed; bare sends one for each lookup. "
        "Ray: a call of one of its actors with the same bytes."
    )

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        shown = [*RULES, *BY_RAY]
        columns = {"": named, "bare, ms": time_of("bare"), **{f"{who} / bare": of_bare(who) for who in shown}}
        columns["SGD by Ray / Ray"] = _of_ray
        yield table(title, columns, rows, caption)

    def take(name: str, budget: float) -> Row:
        return measure(name, budget, options.repeats, name == _OF_RAY and installed("ray"))

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        pictures.beside(figure, title, rows, {who: who for who in (*RULES, *BY_RAY)})

    names = list(CASES) if installed("mpi4py") else []
    return Section("servers", title, names, take, tables, draw, 10.0)
