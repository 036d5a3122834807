"""Timing side by side: machines are noisy, so whatever is compared is run in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from statistics import median
from time import perf_counter, sleep

# Seconds before each call: whoever ran before may have left threads spinning, which would hold back another's.
REST = 0.005

Call = Callable[[], object]


def seconds(call: Call) -> float:
    """How long one call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def interleaved(
    calls: Mapping[str, Call], repeats: int, budget: float = 0.6, before: Mapping[str, Call] | None = None
) -> dict[str, list[float]]:
    """Seconds of each call by round, all of them run in turns after one warm-up each, every round in another order.

    Parameters
    ----------
    calls : mapping of str to callable
        What is to be timed.
    repeats : int
        The number of rounds.
    budget : float
        Seconds for each; calls that would need more take part in fewer rounds, two at least.
    before : mapping of str to callable, optional
        What some calls need done before each time, which is not timed.
    """
    prepare = before or {}

    def timed(name: str) -> float:
        if name in prepare:
            prepare[name]()
        return seconds(calls[name])

    rounds = {name: min(repeats, max(2, int(budget / timed(name)))) for name in calls}
    shuffle = Random(0)  # what a call leaves in caches and threads is not always the same one's burden
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        for name in shuffle.sample(list(calls), len(calls)):
            if i < rounds[name]:
                sleep(REST)
                times[name].append(timed(name))
    return times


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of one call's time to another's: what slows a whole round changes nothing."""
    return median(a / b for a, b in zip(times, others, strict=False))


def microseconds(call: Call, repeats: int, budget: float = 0.1) -> float:
    """Median microseconds of a short call: of `repeats` loops that share the budget of seconds, after a warm-up.

    Not in turns: whoever ran before would leave its threads spinning and the caches to itself.
    """
    loops = max(1, int(budget / repeats / min(seconds(call) for _ in range(3))))
    return 1e6 * median(seconds(lambda: [call() for _ in range(loops)]) / loops for _ in range(repeats))
