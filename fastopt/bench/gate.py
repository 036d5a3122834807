"""The gate: fails a rule that is surely slower than it should be, by its share of the ceiling in the same run."""

from __future__ import annotations

from collections.abc import Callable

from .timing import Spread

BOUND = 0.85
ATTEMPTS = 3  # a noisy machine has bad moments, a slower kernel has only such


def settle(measure: Callable[[], Spread], bound: float = BOUND, attempts: int = ATTEMPTS) -> Spread:
    """Measures a share until it may reach the bound.

    Parameters
    ----------
    measure : callable
        Measures the share and its interval anew.
    bound : float
        What the interval's upper end must reach.
    attempts : int
        How often it is measured at most.

    Returns
    -------
    Spread
        The last measurement: it fails if its upper end is below the bound, for then all were.
    """
    for _ in range(attempts):
        share = measure()
        if share.high >= bound:
            break
    return share
