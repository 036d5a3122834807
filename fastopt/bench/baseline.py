"""This run beside an earlier one, by shares of the ceiling: they differ less from day to day than times do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .section import Table
from .timing import Spread

OURS = ("native", "numba")


def shares(report: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], Spread]]:
    """A report's shares of the ceiling, by section, row and who."""
    for key, rows in report.items():
        for row in rows if isinstance(rows, list) else ():
            for who in OURS:
                if who in row.get("shares", {}):
                    yield (key, row["name"], who), Spread(*row["shares"][who])


def table(before: Mapping[str, Any], now: Mapping[str, Any]) -> Table:
    """Compare the rows that both runs have.

    Parameters
    ----------
    before, now : mapping
        Two reports, as ``--json`` writes them.
    """
    earlier = dict(shares(before))
    lines = []
    for (key, name, who), share in shares(now):
        if (key, name, who) in earlier:
            old = earlier[key, name, who]
            apart = share.low > old.high or share.high < old.low
            verdict = ("faster" if share.mid > old.mid else "slower") if apart else "same"
            lines.append([key, name, who, *map(_percent, (old, share)), f"{share.mid / old.mid:.2f}x", verdict])
    return Table(
        "Against the baseline: share of the ceiling",
        ["section", "", "by", "then", "now", "now to then", ""],
        lines,
        "same: the intervals overlap." if lines else "The two runs have nothing in common.",
        words=3,
    )


def _percent(share: Spread) -> str:
    low, mid, high = share.scaled(100)
    return f"{mid:.0f} % ({low:.0f}-{high:.0f})"
