"""Timing side by side: machines are noisy, so whatever is compared is run in turns, and spreads go with medians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import comb
from random import Random
from statistics import median, quantiles
from time import perf_counter, process_time, sleep
from typing import NamedTuple

# Seconds before each call, and the most of them: whoever ran before may have left threads spinning, which would share
# their processors with another's. OpenMP's, which PyTorch has, spin for some 4 ms, longer where the machine is busy.
REST, LONGEST_REST = 0.005, 0.05
QUIET = 0.001  # seconds in which nobody computes, before it is taken that nobody spins
# Seconds that a timing takes at least: shorter calls are repeated in a loop.
SHORTEST = 2e-4
# Seconds of the quickest one's untimed calls before each timing: others have had the caches. Each of the others has as
# many, within the longest time: several passes find more of their arrays there than one does.
WARM, LONGEST_WARM = 5e-3, 20e-3
LONG = 0.1  # seconds of a call that one warm-up tells enough of
FEWEST = 3  # rounds, whatever a call takes
CLEAR = 0.05  # a spread up to this is within the digits shown

Call = Callable[[], object]
Times = dict[str, list[float]]


class OutOfTime(KeyboardInterrupt):
    """The budget is spent: like Ctrl-C, it ends whatever is running."""


class Spread(NamedTuple):
    """A figure, and the values between which it may lie."""

    low: float
    mid: float
    high: float

    @property
    def noisy(self) -> bool:
        """Tell whether a ratio may differ from its figure by more than the figure differs from 1."""
        return max(self.high - self.mid, self.mid - self.low) > max(CLEAR, abs(self.mid - 1))

    def scaled(self, by: float) -> Spread:
        """The figure in another unit."""
        return Spread(*(value * by for value in self))


def quartiles(times: Sequence[float]) -> Spread:
    """The median and the quartiles."""
    if len(times) < 2:
        return Spread(times[0], times[0], times[0])
    return Spread(*quantiles(times, n=4, method="inclusive"))


def confidence(values: Sequence[float]) -> Spread:
    """The median, and the interval that has the true one with a confidence of 95 % or more.

    It is the one of order statistics, which holds whatever the distribution. Fewer than six values give their range.
    """
    n, ordered = len(values), sorted(values)
    k, outside = 0, 0.0
    while 2 * (outside + comb(n, k) / 2**n) <= 0.05:  # the median is below the k-th smallest
        outside += comb(n, k) / 2**n
        k += 1
    k = max(k, 1)
    return Spread(ordered[k - 1], median(ordered), ordered[n - k])


def ratio(times: Sequence[float], others: Sequence[float]) -> Spread:
    """The median over rounds of one call's time to another's: what slows a whole round changes nothing."""
    return confidence([a / b for a, b in zip(times, others, strict=False)])


def seconds(call: Call) -> float:
    """Time one call."""
    start = perf_counter()
    call()
    return perf_counter() - start


def rest() -> None:
    """Sleep until no thread of this process computes any more."""
    sleep(REST)
    end = perf_counter() + LONGEST_REST - REST
    spent = QUIET
    while spent > QUIET / 4 and perf_counter() < end:
        before = process_time()
        sleep(QUIET)
        spent = process_time() - before


def interleaved(
    calls: Mapping[str, Call], repeats: int, budget: float = 5.0, before: Mapping[str, Call] | None = None
) -> Times:
    """Seconds of each call by round, all of them run in turns after a warm-up, every round in another order.

    Parameters
    ----------
    calls : mapping of str to callable
        What is to be timed.
    repeats : int
        The number of rounds.
    budget : float
        Seconds for all; calls that would need more than their part of it take part in fewer rounds, three at least.
    before : mapping of str to callable, optional
        What some calls need done before each time, which is not timed.

    Returns
    -------
    dict of str to list of float
        Fewer rounds where `OutOfTime` ends them, but one at least.

    Raises
    ------
    OutOfTime
        Some call has not been timed yet.
    """
    prepare = before or {}

    def timed(name: str, loops: int = 1) -> float:
        if name in prepare:
            prepare[name]()
        if loops == 1:
            return seconds(calls[name])
        call, times = calls[name], range(loops)
        return seconds(lambda: [call() for _ in times]) / loops

    first = {name: timed(name) for name in calls}
    first |= {name: timed(name) for name, own in first.items() if own < LONG}
    rounds, loops, warm = {}, {}, {}
    passes = max([1, *(int(WARM / own) for own in first.values())])
    for name, own in first.items():
        warm[name] = min(passes, int(LONGEST_WARM / own))
        each = REST + QUIET + (1 + warm[name]) * own
        rounds[name] = min(repeats, max(FEWEST, int(budget / len(calls) / each)))
        loops[name] = 1 if name in prepare else max(1, int(SHORTEST / own))
    shuffle = Random(0)  # what a call leaves in caches and threads is not always the same one's burden
    times: Times = {name: [] for name in calls}
    try:
        for i in range(repeats):
            for name in shuffle.sample(list(calls), len(calls)):
                if i < rounds[name]:
                    rest()
                    for _ in range(warm[name]):
                        timed(name)
                    times[name].append(timed(name, loops[name]))
    except OutOfTime:
        if not all(times.values()):
            raise
    return times
