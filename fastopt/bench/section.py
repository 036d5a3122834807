"""Section: a part of the benchmark with rows of its own, the tables that show them, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log10
from typing import Any, NamedTuple, Protocol

from .timing import Spread, Times, quartiles, ratio

#: The result of one measurement: `row_of` makes it.
Row = dict[str, Any]
Show = Callable[[Row], str]
NOISY = "~"
#: What people call whose keys in the results are those of backends.
LABELS = {"native": "fastopt", "numba": "fastopt (numba)", "numba-cuda": "fastopt"}
DISTURBED = 1.05  # a share above it says that the ceiling was slowed, for nothing is faster
FOOTNOTE = f"{NOISY}: the interval is wider than what the figure claims; measure again on a quiet machine."


class Table(NamedTuple):
    """A table for people, as plain text; its first columns, as many as `words` says, are words."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1


class Skip(Exception):
    """Something cannot be measured here; the message is the reason, shown to the user."""


def reason(error: Exception) -> str:
    """Why someone cannot take part, from what was raised: another's package may raise anything."""
    return str(error) if isinstance(error, Skip) else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass
class Options:
    """Options of ``fastopt bench`` by name; `rows` are rules of tables' rows, `limited` tells of a budget of time."""

    rules: Sequence[str]
    rows: Sequence[str] = ()
    size: int = 20_000_000
    sizes: Sequence[int] = ()
    dtypes: Sequence[str] = ("float32",)
    backends: Sequence[str] = ("native", "numba")
    peers: Sequence[str] = ()
    threads: int = 1
    repeats: int = 11
    tensors: bool = False
    matrices: bool = False
    sparse: bool = False
    precision: bool = False
    scaling: bool = False
    workloads: Sequence[str] = ()
    digits: bool = True
    startup: bool = False
    distributed: bool = False
    cuda: bool = False
    kernels: bool = False
    neighbours: int = 0
    limited: bool = False


class Measure(Protocol):
    """Measures what has a name within the seconds given, as far as what it calls allows; may raise `Skip`."""

    def __call__(self, name: str, budget: float) -> Row:
        """The row."""


@dataclass
class Section:
    """A part of the benchmark.

    Attributes
    ----------
    key, title : str
        Its name in the results, and for people.
    names : sequence of str
        What is measured, a row each.
    measure : callable
        Measures one of them.
    tables : callable
        The rows, shown.
    draw : callable, optional
        Draws the rows on a `matplotlib.figure.Figure`.
    seconds : float
        What a row takes if there is time: its part of the budget.
    notes : mapping of str to str
        Why somebody takes no part, by who.
    first : int
        The rows, from the first one on, that come before all other sections' where time is short.
    """

    key: str
    title: str
    names: Sequence[str]
    measure: Measure
    tables: Callable[[Sequence[Row]], Iterator[Table]]
    draw: Callable[[Any, Sequence[Row]], None] | None = None
    seconds: float = 5.0
    notes: Mapping[str, str] = field(default_factory=dict)
    first: int = 0


def row_of(name: str, times: Times, moved: float = 0.0, ceiling: Sequence[float] | None = None, **more: Any) -> Row:
    """A row of times: medians and quartiles in seconds, shares of the ceiling, and ratios to the native backend's.

    Parameters
    ----------
    name : str
        The row's.
    times : mapping of str to sequence of float
        Seconds of each round, by who.
    moved : float
        Bytes that must be read and written.
    ceiling : sequence of float, optional
        Seconds of the fastest streaming kernel in the same rounds.
    **more
        Whatever else the row says.
    """
    ours = times.get("native")
    return {
        "name": name,
        "bytes": moved,
        "times": {who: quartiles(own) for who, own in (times | ({"ceiling": ceiling} if ceiling else {})).items()},
        "shares": {who: ratio(ceiling, own) for who, own in times.items()} if ceiling else {},
        "against": {who: ratio(own, ours) for who, own in times.items() if who != "native"} if ours else {},
        **more,
    }


def named(row: Row) -> str:
    """The row's name."""
    return row["name"]


def time_of(who: str, digits: int = 2, scale: float = 1e3) -> Show:
    """Shows someone's median, in milliseconds, with so many digits after the point or two that are no leading zeros."""

    def show(row: Row) -> str:
        spread = row["times"].get(who)
        if not spread:
            return "-"
        time = spread[1] * scale
        return f"{time:.{max(digits, 1 - floor(log10(time)))}f}"

    return show


def rate_of(who: str) -> Show:
    """Shows someone's gigabytes a second."""

    def show(row: Row) -> str:
        spread = row["times"].get(who)
        return f"{row['bytes'] / spread[1] / 1e9:.1f}" if spread else "-"

    return show


def share_of(who: str, most: float = DISTURBED) -> Show:
    """Shows someone's share of the ceiling, with its interval; above `most` it is the ceiling that was disturbed."""

    def show(row: Row) -> str:
        if who not in row["shares"]:
            return "-"
        share = Spread(*row["shares"][who])
        if share.mid > most:
            return "ceiling disturbed"
        low, mid, high = share.scaled(100)
        return f"{mid:.0f} % ({low:.0f}-{high:.0f}){NOISY if share.noisy else ' '}"

    return show


def against(who: str, digits: int = 1, scale: float = 1e3) -> Show:
    """Shows someone's median, and how many times the native backend's it is."""

    def show(row: Row) -> str:
        if who not in row["times"]:
            return "-"
        text = time_of(who, digits, scale)(row)
        if who not in row["against"]:
            return text
        ratio = Spread(*row["against"][who])
        return f"{text} {ratio.mid:6.2f}x{NOISY if ratio.noisy else ' '}"

    return show


def value_of(key: str, digits: int = 1, unit: str = "", scale: float = 1.0) -> Show:
    """Shows a number that the row has."""
    return lambda row: "-" if row.get(key) is None else f"{row[key] * scale:.{digits}f}{unit}"


def table(title: str, columns: Mapping[str, Show], rows: Sequence[Row], caption: str = "") -> Table:
    """A table with a column for each header, without those that have nothing to show."""
    cells = {header: [show(row) for row in rows] for header, show in columns.items()}
    cells = {header: column for header, column in cells.items() if set(column) != {"-"}}
    lines = list(zip(*cells.values(), strict=True))
    if any(NOISY in cell for line in lines for cell in line):
        caption = "\n".join(filter(None, (caption, FOOTNOTE)))
    return Table(title, list(cells), lines, caption)


def whoever(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """List the names that some row has times of, in order."""
    return [name for name in names if any(name in row["times"] for row in rows)]
