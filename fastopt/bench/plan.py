"""Budget: seconds dealt out among sections and rows, and kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from .section import Section
from .timing import OutOfTime


@contextmanager
def alarm(budget: float | None) -> Iterator[None]:
    """Raises `OutOfTime` once the budget is spent, where the system and the thread allow it."""
    if budget is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, budget)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Plan:
    """Split the budget among sections in proportion to what their rows would like.

    Parameters
    ----------
    sections : sequence of Section
        In the order in which they are run.
    budget : float or None
        Seconds from now on; with None every row has what it would like.
    """

    def __init__(self, sections: Sequence[Section], budget: float | None) -> None:
        self._wishes = {section.key: section.seconds * len(section.names) for section in sections}
        self._end = None if budget is None else perf_counter() + budget

    def rows(self, section: Section) -> Iterator[tuple[str, float]]:
        """The section's rows with the seconds for each, as long as its part of the budget lasts.

        Those that come first have the whole budget. A row is not begun if there is less time than half of what the one
        before it took; the first one's time tells nothing, for it loads and compiles.
        """
        wish = self._wishes.pop(section.key)
        if self._end is None:
            yield from ((name, section.seconds) for name in section.names)
            return
        began = perf_counter()
        end = began + (self._end - began) * wish / (wish + sum(self._wishes.values()))
        took = 0.0
        for k, name in enumerate(section.names):
            now = perf_counter()
            left = (self._end if k < section.first else end) - now
            if left <= took / 2:
                return
            yield name, min(section.seconds, left / ((section.first if k < section.first else len(section.names)) - k))
            took = (perf_counter() - now) * bool(k)
