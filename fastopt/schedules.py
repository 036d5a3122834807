"""Schedules: hyper-parameters that depend on the step.

A schedule is any callable of the 1-based step. A state dict holds it as it is, and so does a pickle, if pickle finds it
by name: a function of a module, or an object such as `Demon`. Of a lambda, or a function within a function, a pickle
holds only that there was one: an optimizer that such a state dict is loaded into goes on with its own schedule there.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checks import check_number, wrong_value


@dataclass(frozen=True)
class Demon:
    """Decaying momentum (Chen et al. 2022, arXiv:1910.04952): for any momentum or beta.

    ``beta_t = beta*(1 - t/T)/((1 - beta) + beta*(1 - t/T))``, and 0 from t = T on.

    Parameters
    ----------
    total : int
        T, the number of steps; at least 1.
    beta : float
        The value that it begins at, in [0, 1); default 0.9.

    Raises
    ------
    TypeError, ValueError
        `total` or `beta` is no number, or out of range.

    Examples
    --------
    >>> Demon(total=100)(100)
    0.0
    """

    total: int
    beta: float = 0.9

    def __post_init__(self) -> None:
        check_number("total", self.total, 1, expected="a number of steps >= 1")
        if check_number("beta", self.beta, 0, 1, expected="a number in [0, 1)") == 1:
            raise wrong_value("beta", self.beta, "a number in [0, 1)")

    def __call__(self, t: float) -> float:
        """The value at the 1-based step `t`."""
        t = check_number("t", t, 1, expected="a step >= 1")
        left = max(0.0, 1.0 - t / self.total)
        return self.beta * left / ((1.0 - self.beta) + self.beta * left)


@dataclass(frozen=True)
class InverseTime:
    """Search, then converge (Darken, Chang and Moody 1992): ``start/(1 + (t - 1)/tau)``.

    Parameters
    ----------
    start : float
        The value at the first step.
    tau : float
        The number of steps after which it is half of that; from about then on it falls as 1/t.

    Examples
    --------
    >>> InverseTime(0.1, tau=10)(11)
    0.05
    """

    start: float
    tau: float

    def __call__(self, t: float) -> float:
        """The value at the 1-based step `t`."""
        return self.start / (1 + (t - 1) / self.tau)


class Unpickled:
    """What stands in a state dict for a schedule that pickle cannot hold: callable as it, until it is pickled."""

    def __init__(self, schedule: Callable[[int], Any] | None, name: str) -> None:
        self.schedule = schedule
        self.name = name

    def __call__(self, t: int) -> Any:
        """The value at the 1-based step `t`."""
        if self.schedule is None:
            raise TypeError(f"found {self!r}, expected a schedule: no pickle holds this one")
        return self.schedule(t)

    def __reduce__(self) -> tuple[Any, ...]:
        return Unpickled, (None, self.name)

    def __deepcopy__(self, memo: Any) -> Unpickled:
        return self

    def __repr__(self) -> str:
        return f"<schedule {self.name}>"


def picklable(value: Any) -> Any:
    """A hyper-parameter as state dicts hold it: schedules that pickle cannot hold are wrapped."""
    if isinstance(value, tuple):
        return tuple(map(picklable, value))
    if not callable(value):
        return value
    try:
        pickle.dumps(value)
    except Exception:  # any that the schedule's own code may raise
        return Unpickled(value, getattr(value, "__qualname__", repr(value)))
    return value


def schedules_in(value: Any) -> list[Unpickled]:
    """The schedules in a hyper-parameter that `picklable` has wrapped."""
    return [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Unpickled)]


def restored(value: Any, own: Any, where: str) -> Any:
    """A saved hyper-parameter with the schedule that it holds, or with the optimizer's own where it holds only a name.

    Raises
    ------
    ValueError
        The schedule was not saved, and the optimizer has none there.
    """
    if isinstance(value, tuple):
        owns = own if isinstance(own, tuple) and len(own) == len(value) else (None,) * len(value)
        return tuple(restored(*pair, where) for pair in zip(value, owns, strict=True))
    if not isinstance(value, Unpickled):
        return value
    if value.schedule is None and not callable(own):
        raise ValueError(
            f"{where}: found {value!r}, which no pickle holds, expected the optimizer to have a schedule there: "
            "construct it with one"
        )
    return own if value.schedule is None else value.schedule
