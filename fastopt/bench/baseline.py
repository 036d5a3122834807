"""This run beside an earlier one, by shares of the ceiling: they differ less from day to day than times do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .section import LABELS, Table
from .timing import Spread


def shares(report: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], Spread]]:
    """A report's shares of the ceiling, by section, row and who."""
    for key, rows in report.items():
        for row in rows if isinstance(rows, list) else ():
            for who in LABELS:
                if who in row.get("shares", {}):
                    yield (key, row["name"], who), Spread(*row["shares"][who])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Tell what was asked of the two runs that is not the same, or nothing.

    Parameters
    ----------
    before, now : mapping
        A report, as ``--json`` writes it, and what is asked of this run.
    """
    found = [f"{key} {before[key]:,}, here {value:,}" for key, value in now.items() if before.get(key, value) != value]
    return f"The baseline has {'; '.join(found)}: shares differ with these." if found else ""


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
            row = name if key == "rules" else f"{key}, {name}"
            lines.append([row, LABELS[who], *map(_percent, (old, share)), f"{share.mid / old.mid:.2f}x", verdict])
    return Table(
        "Against the baseline: share of the ceiling",
        ["", "by", "then", "now", "now to\nthen", ""],
        lines,
        "same: the intervals overlap." if lines else "The two runs have nothing in common.",
        words=2,
    )


def _percent(share: Spread) -> str:
    low, mid, high = share.scaled(100)
    return f"{mid:.0f} % ({low:.0f}-{high:.0f})"
