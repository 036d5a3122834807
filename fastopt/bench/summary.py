"""A sentence of what was found, for whoever reads no table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .peers import COMPETITORS, PEERS
from .section import DISTURBED, Row
from .timing import Spread

#: Sections whose first row is told, by whose time it is told.
_TOLD = (("rules", "native"), ("rules", "numba"), ("cuda", "numba-cuda"))


def sentence(results: Mapping[str, Sequence[Row]]) -> str:
    """Tell the first row's time, its share of the ceiling, and the fastest peer's time beside it.

    Parameters
    ----------
    results : mapping of str to sequence of dict
        The rows of each section.

    Returns
    -------
    str
        Nothing where there is no such row.
    """
    for section, ours in _TOLD:
        for row in results.get(section, ()):
            if ours in row["times"]:
                return _tell(row, ours)
    return ""


def _tell(row: Row, ours: str) -> str:
    text = f"{row['name']} over {row['elements']:,} elements takes {row['times'][ours][1] * 1e3:.3g} ms"
    if ours in row["shares"]:
        share = row["shares"][ours][1]
        text += ", the ceiling being disturbed" if share > DISTURBED else f", {100 * share:.0f} % of the ceiling"
    beside = {who: Spread(*row["against"][who]).mid for who in PEERS if who in row["against"]}
    if beside:
        who = min(beside, key=beside.__getitem__)
        text += f"; {COMPETITORS[who].label}, the fastest of the others, takes {beside[who]:.2f} times as long"
    return text + "."
