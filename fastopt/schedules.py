"""Schedules: hyper-parameters that depend on the step.

A schedule is any callable of the 1-based step. Those here are frozen dataclasses: they compare equal by their numbers,
print and pickle themselves, and are plain data in state dicts and in ``.npz`` and safetensors files. Each gives the
number of torch's ``lr_scheduler`` or optax's schedule of its kind at every step; step t is their count t - 1.

Past its last step a schedule stays at the value that it ends with. `OnPlateau` has no last step: it follows the loss.

Functional forms take ``lr=schedule(t)``. For an optimizer of torch or `fastopt.torch` that is made with lr=1,
``torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: schedule(epoch + 1))`` follows a schedule.

Of another callable a state dict holds what pickle finds by name, as a function of a module. Of a lambda, or a function
within a function, it holds only that there was one: an optimizer that such a state dict is loaded into goes on with its
own schedule there. Files of arrays hold none of these.

Examples
--------
>>> import numpy as np, fastopt
>>> from fastopt.schedules import Cosine, WarmUp
>>> opt = fastopt.AdamW(np.zeros(3), lr=WarmUp(10, Cosine(1e-3, steps=90)))
>>> opt.hyper()["lr"], opt.param_groups[0]["lr"](11)
(0.0, 0.001)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

from .checks import as_float, check_integer, check_name, check_number, wrong_type, wrong_value
from .palette import STYLE, load_matplotlib, looks

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cosine",
    "Demon",
    "Exponential",
    "InverseSqrt",
    "InverseTime",
    "Join",
    "Linear",
    "MultiStep",
    "OnPlateau",
    "OneCycle",
    "Polynomial",
    "Scale",
    "Schedule",
    "Step",
    "Triangular",
    "WarmRestarts",
    "WarmUp",
    "from_state_dict",
    "plot",
]

# The domain of the fields of these names: the lowest number, True if it is excluded, True for whole numbers.
_FIELDS: dict[str, tuple[float, bool, bool]] = {
    **dict.fromkeys(("start", "end", "value", "low", "high", "peak", "lowest"), (-math.inf, False, False)),
    **dict.fromkeys(("factor", "power", "shrink", "threshold", "epsilon"), (0.0, False, False)),
    **dict.fromkeys(("tau", "divide", "final_divide"), (0.0, True, False)),
    **dict.fromkeys(("every", "steps", "up", "down", "multiply", "total"), (1, False, True)),
    **dict.fromkeys(("patience", "cooldown", "bad", "cooling"), (0, False, True)),
}


def _checked(name: str, value: Any) -> Any:
    """A field as a plain number."""
    low, above, whole = _FIELDS[name]
    if whole:
        return check_integer(name, value, int(low))
    number = check_number(name, value, low, above=above)
    return value if type(value) is int else number


class Schedule:
    """The base of the schedules: checks of their fields, calls, plain data.

    A class of your own that derives from it is a dataclass with a method ``_at(count)``: the value after so many steps.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name in _FIELDS and not (value is None and field.default is None):
                object.__setattr__(self, field.name, _checked(field.name, value))

    def __call__(self, t: float) -> float:
        """The value for the 1-based step `t`."""
        count = check_number("t", t, 1, expected="a step >= 1") - 1
        try:
            return self._at(count)
        except OverflowError:
            raise wrong_value("t", t, f"a step at which {self} is within float64's range") from None

    def _at(self, count: float) -> float:
        """The value after `count` steps."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The schedule as plain data: its class's name as ``"schedule"``, and its fields.

        Examples
        --------
        >>> Step(0.1, every=30).state_dict()
        {'schedule': 'Step', 'start': 0.1, 'every': 30, 'factor': 0.1}
        """
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"schedule": type(self).__name__, **values}


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.state_dict()
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def from_state_dict(state: Mapping[str, Any]) -> Schedule:
    """The schedule that `Schedule.state_dict` made plain.

    Parameters
    ----------
    state : mapping
        Its class's name as ``"schedule"``, and its fields.

    Raises
    ------
    TypeError, ValueError
        There is no such schedule, or a field is not what it must be.

    Examples
    --------
    >>> from_state_dict({"schedule": "Linear", "start": 0.1, "end": 0.0, "steps": 10})
    Linear(start=0.1, end=0.0, steps=10)
    """
    cls = SCHEDULES[check_name("schedule", state.get("schedule"), SCHEDULES)]
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    given = {key: value for key, value in state.items() if key != "schedule"}
    if unknown := [key for key in given if key not in names]:
        raise wrong_value("schedule", unknown[0], f"some of {', '.join(names)}")

    def made(value: Any) -> Any:
        if isinstance(value, Mapping):
            return from_state_dict(value)
        return tuple(map(made, value)) if isinstance(value, (list, tuple)) else value

    return cls(**{key: made(value) for key, value in given.items()})


def is_plain(value: Any) -> bool:
    """Return whether `Schedule.state_dict` holds all of a schedule: it and those within it are of this module."""
    if isinstance(value, Schedule):
        own = SCHEDULES.get(type(value).__name__) is type(value)
        return own and all(is_plain(getattr(value, field.name)) for field in fields(value))  # type: ignore[arg-type]
    return all(map(is_plain, value)) if isinstance(value, tuple) else not callable(value)


# ---- one after the other, and scaled ----


def _schedule(name: str, value: Any) -> Callable[[Any], Any]:
    """A schedule within another: a number is a constant one."""
    if callable(value):
        return value
    return Constant(check_number(name, value, expected="a number or a callable of the step"))


@dataclass(frozen=True)
class Constant(Schedule):
    """One value: ``value``. (optax's ``constant_schedule``.)

    Parameters
    ----------
    value : float
        The value.

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    value: float

    def _at(self, count: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """Along a line: ``start + (end - start)*(t - 1)/steps``, then `end`.

    torch's ``LinearLR`` with lr*start_factor, lr*end_factor and total_iters; optax's ``linear_schedule``.

    Parameters
    ----------
    start, end : float
        The values at the first step, and `steps` steps later.
    steps : int
        How many.

    Examples
    --------
    >>> [Linear(1.0, 0.0, steps=4)(t) for t in (1, 2, 5, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int

    def _at(self, count: float) -> float:
        if count >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * (count / self.steps)


@dataclass(frozen=True)
class Step(Schedule):
    """Stairs of one length: ``start*factor^floor((t - 1)/every)``. (torch's ``StepLR``.)

    Parameters
    ----------
    start : float
        The value at the first step.
    every : int
        Steps of a stair.
    factor : float
        The ratio of each stair to the one before; default 0.1.

    Examples
    --------
    >>> [Step(1.0, every=2, factor=0.5)(t) for t in (1, 2, 3, 5)]
    [1.0, 1.0, 0.5, 0.25]
    """

    start: float
    every: int
    factor: float = 0.1

    def _at(self, count: float) -> float:
        return self.start * self.factor ** (count // self.every)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Stairs at given steps: ``start*factor^(milestones passed)``.

    torch's ``MultiStepLR``; optax's ``piecewise_constant_schedule``.

    Parameters
    ----------
    start : float
        The value at the first step.
    milestones : tuple of int
        After how many steps it changes, in order.
    factor : float
        The ratio of each stair to the one before; default 0.1.

    Examples
    --------
    >>> [MultiStep(1.0, (2, 3), factor=0.5)(t) for t in (1, 2, 3, 4)]
    [1.0, 1.0, 0.5, 0.25]
    """

    start: float
    milestones: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "milestones", _ascending("milestones", self.milestones))

    def _at(self, count: float) -> float:
        return self.start * self.factor ** bisect_right(self.milestones, count)


def _ascending(name: str, value: Any) -> tuple[int, ...]:
    """Numbers of steps, in order."""
    if not isinstance(value, (list, tuple)):
        raise wrong_type(name, value, "a tuple of numbers of steps")
    steps = tuple(check_integer(f"{name}[{k}]", step, 0) for k, step in enumerate(value))
    if list(steps) != sorted(steps):
        raise wrong_value(name, value, "numbers of steps in order")
    return steps


@dataclass(frozen=True)
class Exponential(Schedule):
    """Exponential decay: ``start*factor^((t - 1)/every)``.

    torch's ``ExponentialLR`` (every 1); optax's ``exponential_decay`` with transition_steps, not staircase.

    Parameters
    ----------
    start : float
        The value at the first step.
    factor : float
        The share of it that is left after `every` steps.
    every : int
        Default 1.

    Examples
    --------
    >>> Exponential(1.0, 0.5, every=10)(21)
    0.25
    """

    start: float
    factor: float
    every: int = 1

    def _at(self, count: float) -> float:
        return self.start * self.factor ** (count / self.every)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """A power of the way that is left: ``end + (start - end)*(1 - (t - 1)/steps)^power``, then `end`.

    torch's ``PolynomialLR`` (end 0); optax's ``polynomial_schedule``.

    Parameters
    ----------
    start : float
        The value at the first step.
    steps : int
        How many.
    power : float
        Default 1.
    end : float
        Default 0.

    Examples
    --------
    >>> [Polynomial(1.0, steps=4, power=2)(t) for t in (1, 3, 5, 6)]
    [1.0, 0.25, 0.0, 0.0]
    """

    start: float
    steps: int
    power: float = 1.0
    end: float = 0.0

    def _at(self, count: float) -> float:
        return self.end + (self.start - self.end) * (1 - min(count / self.steps, 1.0)) ** self.power


@dataclass(frozen=True)
class InverseTime(Schedule):
    """Search, then converge (Darken, Chang and Moody 1992): ``start/(1 + (t - 1)/tau)^power``.

    Robbins and Monro's (1951) conditions, that the sum of all rates is infinite and the sum of their squares is not,
    hold for powers above 1/2 and up to 1: stochastic gradient descent with such rates converges where a constant rate
    goes on fluctuating.

    Parameters
    ----------
    start : float
        The value at the first step.
    tau : float
        The steps of searching; about then the value begins to fall as a power of 1/t.
    power : float
        Default 1.

    Examples
    --------
    >>> InverseTime(0.1, tau=10)(11)
    0.05
    """

    start: float
    tau: float
    power: float = 1.0

    def _at(self, count: float) -> float:
        return self.start / (1 + count / self.tau) ** self.power


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """The inverse square root (Vaswani et al. 2017, section 5.3): ``start/sqrt(1 + (t - 1)/tau)``.

    ``WarmUp(w, InverseSqrt(peak, tau=w))`` is the Transformer's: ``peak*min(c/w, sqrt(w/c))`` after c steps.

    Parameters
    ----------
    start : float
        The value at the first step.
    tau : float
        The steps that count as made before the first.

    Examples
    --------
    >>> InverseSqrt(0.2, tau=10)(31)
    0.1
    """

    start: float
    tau: float

    def _at(self, count: float) -> float:
        return self.start / math.sqrt(1 + count / self.tau)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine (Loshchilov and Hutter 2017): ``end + (start - end)*(1 + cos(pi*(t - 1)/steps))/2``, then `end`.

    torch's ``CosineAnnealingLR`` up to its T_max, where it turns and rises; optax's ``cosine_decay_schedule``.

    Parameters
    ----------
    start : float
        The value at the first step.
    steps : int
        How many.
    end : float
        Default 0.

    Examples
    --------
    >>> [round(Cosine(1.0, steps=2)(t), 12) for t in (1, 2, 3, 4)]
    [1.0, 0.5, 0.0, 0.0]
    """

    start: float
    steps: int
    end: float = 0.0

    def _at(self, count: float) -> float:
        return _half_cosine(self.start, self.end, min(count / self.steps, 1.0))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class WarmRestarts(Schedule):
    """Cosines that begin anew (SGDR, Loshchilov and Hutter 2017, arXiv:1608.03983), each longer than the one before.

    torch's ``CosineAnnealingWarmRestarts`` with T_0, T_mult and eta_min; optax's ``sgdr_schedule`` of such cycles. It
    has no end.

    Parameters
    ----------
    start : float
        The value at the first step of each cycle.
    steps : int
        Those of the first cycle.
    multiply : int
        How many times as long the next cycle is; default 1.
    end : float
        The value that each cycle falls to; default 0.

    Examples
    --------
    >>> [round(WarmRestarts(1.0, steps=2, multiply=2)(t), 12) for t in (1, 2, 3, 5, 7)]
    [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    start: float
    steps: int
    multiply: int = 1
    end: float = 0.0

    def _at(self, count: float) -> float:
        length = self.steps
        if self.multiply == 1:
            count %= length
        while count >= length:
            count -= length
            length *= self.multiply
        return _half_cosine(self.start, self.end, count / length)


@dataclass(frozen=True)
class Triangular(Schedule):
    """Up and down between two values (Smith 2017, arXiv:1506.01186).

    torch's ``CyclicLR`` with base_lr, max_lr, step_size_up and step_size_down; its mode "triangular2" is shrink 0.5. It
    has no end.

    Parameters
    ----------
    low, high : float
        The values.
    up : int
        Steps from low to high.
    down : int, optional
        Steps from high to low; by default as many.
    shrink : float
        The ratio of each cycle's height to that of the one before; default 1.

    Examples
    --------
    >>> [Triangular(0.0, 1.0, up=2)(t) for t in (1, 2, 3, 4, 5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    low: float
    high: float
    up: int
    down: int | None = None
    shrink: float = 1.0

    def _at(self, count: float) -> float:
        down = self.up if self.down is None else self.down
        cycle, within = divmod(count, self.up + down)
        height = within / self.up if within <= self.up else (self.up + down - within) / down
        return self.low + (self.high - self.low) * height * self.shrink**cycle


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to a peak and down to almost nothing (Smith and Topin 2018, arXiv:1708.07120), along half cosines.

    torch's ``OneCycleLR`` with max_lr, total_steps, pct_start, div_factor and final_div_factor.

    Parameters
    ----------
    peak : float
        The largest value.
    steps : int
        All of the cycle; at least 2.
    rise : float
        The share of it that rises, in (0, 1); default 0.3.
    divide : float
        The first value is peak/divide; default 25.
    final_divide : float
        The last one is the first divided by it; default 1e4.

    Examples
    --------
    >>> cycle = OneCycle(1.0, steps=101, rise=0.3)
    >>> round(cycle(1), 6), round(cycle(30.3), 6), round(cycle(101), 9), round(cycle(500), 9)
    (0.04, 1.0, 4e-06, 4e-06)
    """

    peak: float
    steps: int
    rise: float = 0.3
    divide: float = 25.0
    final_divide: float = 1e4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("steps", self.steps, 2)
        if not 0 < check_number("rise", self.rise, 0, 1) < 1:
            raise wrong_value("rise", self.rise, "a number in (0, 1)")

    def _at(self, count: float) -> float:
        first, top = self.peak / self.divide, self.rise * self.steps - 1
        if count < top:
            return _half_cosine(first, self.peak, count / top)
        share = min((count - top) / (self.steps - 1 - top), 1.0)
        return _half_cosine(self.peak, first / self.final_divide, share)


@dataclass(frozen=True)
class Demon(Schedule):
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

    def _at(self, count: float) -> float:
        left = max(0.0, 1.0 - (count + 1) / self.total)
        return self.beta * left / ((1.0 - self.beta) + self.beta * left)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Along a line up to the first value of another schedule, which then begins.

    optax's ``warmup_cosine_decay_schedule`` is ``WarmUp(warmup_steps, Cosine(peak, decay_steps - warmup_steps))``.

    Parameters
    ----------
    steps : int
        Those of the line.
    then : float or callable
        The schedule; a number stays.
    start : float
        The value at the first step; default 0.

    Examples
    --------
    >>> [WarmUp(4, 1.0)(t) for t in (1, 2, 5, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """

    steps: int
    then: Any
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "then", _schedule("then", self.then))

    def _at(self, count: float) -> float:
        if count >= self.steps:
            return self.then(count - self.steps + 1)
        return self.start + (self.then(1) - self.start) * (count / self.steps)


@dataclass(frozen=True)
class Join(Schedule):
    """Schedules one after the other, each from its own first step. (optax's ``join_schedules``.)

    Parameters
    ----------
    schedules : tuple
        Callables, or numbers.
    at : tuple of int
        After how many steps the second begins, the third, and so on.

    Examples
    --------
    >>> [Join((Linear(1.0, 0.0, 2), 5.0), at=(2,))(t) for t in (1, 2, 3)]
    [1.0, 0.5, 5.0]
    """

    schedules: tuple[Any, ...]
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, (list, tuple)):
            raise wrong_type("schedules", self.schedules, "a tuple of schedules")
        made = tuple(_schedule(f"schedules[{k}]", schedule) for k, schedule in enumerate(self.schedules))
        object.__setattr__(self, "schedules", made)
        object.__setattr__(self, "at", _ascending("at", self.at))
        if len(self.schedules) != len(self.at) + 1:
            raise wrong_value("at", self.at, f"{len(self.schedules) - 1} steps, one between each two schedules")

    def _at(self, count: float) -> float:
        k = bisect_right(self.at, count)
        return self.schedules[k](count + 1 - (self.at[k - 1] if k else 0))


@dataclass(frozen=True)
class Scale(Schedule):
    """Another schedule times a number.

    Parameters
    ----------
    of : callable
        The schedule.
    factor : float
        The number, >= 0.

    Examples
    --------
    >>> Scale(Linear(1.0, 0.0, 4), 0.5)(3)
    0.25
    """

    of: Any
    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "of", _schedule("of", self.of))

    def _at(self, count: float) -> float:
        return self.factor * self.of(count + 1)


# ---- with a state ----


def _loss(name: str, value: Any) -> float:
    """A loss as a float, NaN and infinite ones included."""
    if (loss := as_float(value)) is None:
        raise wrong_type(name, value, "a number")
    return loss


@dataclass
class OnPlateau(Schedule):
    """A value that falls where the loss no longer does: after more than `patience` losses that are not better.

    torch's ``ReduceLROnPlateau``. Call `feed` with each loss; its state is in the optimizer's state dict.

    Parameters
    ----------
    start : float
        The value at first.
    factor : float
        The share of the value that is left each time; default 0.1.
    patience : int
        How many losses in a row may be no better; default 10.
    threshold : float
        A loss is better that is below (1 - threshold) times the best; default 1e-4.
    mode : str
        "min", or "max" where larger is better.
    cooldown : int
        How many losses do not count after a fall; default 0.
    lowest : float
        The lowest value; default 0.
    epsilon : float
        Falls that are not larger are not made; default 1e-8.
    value, best, bad, cooling : float and int
        The state: the value now, the best loss, how many losses were no better since, how many more do not count.

    Examples
    --------
    >>> rate = OnPlateau(1.0, factor=0.5, patience=1)
    >>> [rate.feed(loss) for loss in (3.0, 2.0, 2.0, 2.0, 2.0)]
    [1.0, 1.0, 1.0, 0.5, 0.5]
    """

    start: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    mode: str = "min"
    cooldown: int = 0
    lowest: float = 0.0
    epsilon: float = 1e-8
    value: float | None = None
    best: float | None = None
    bad: int = 0
    cooling: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("mode", self.mode, ("min", "max"))
        if self.factor >= 1:
            raise wrong_value("factor", self.factor, "a number in [0, 1)")
        if self.value is None:
            self.value = float(self.start)
        if self.best is not None:
            self.best = _loss("best", self.best)

    def _at(self, count: float) -> float:
        assert self.value is not None
        return self.value

    def feed(self, loss: float) -> float:
        """Takes a loss into account.

        Parameters
        ----------
        loss : float
            The loss, or whatever is to fall (rise, with mode "max"). NaN is no better than any.

        Returns
        -------
        float
            The value from now on.

        Raises
        ------
        TypeError
            `loss` is no number.
        """
        loss = _loss("loss", loss)
        if self._is_better(loss):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad = 0
        if self.bad > self.patience:
            lower = max(self._at(0) * self.factor, self.lowest)
            if self._at(0) - lower > self.epsilon:
                self.value = lower
            self.cooling, self.bad = self.cooldown, 0
        return self._at(0)

    def _is_better(self, loss: float) -> bool:
        if self.mode == "min":
            return loss < (math.inf if self.best is None else self.best * (1 - self.threshold))
        return loss > (-math.inf if self.best is None else self.best * (1 + self.threshold))

    def take(self, other: OnPlateau) -> None:
        """Takes over the fields of another. Optimizers do so with their own when a state dict is loaded."""
        for field in fields(self):
            setattr(self, field.name, getattr(other, field.name))


#: The schedules by their names, as state dicts name them.
SCHEDULES: dict[str, type[Schedule]] = {
    cls.__name__: cls
    for cls in (
        *(Constant, Linear, Step, MultiStep, Exponential, Polynomial, InverseTime, InverseSqrt, Cosine),
        *(WarmRestarts, Triangular, OneCycle, Demon, WarmUp, Join, Scale, OnPlateau),
    )
}


# ---- to look at ----


def plot(
    schedules: Callable[[int], float] | Mapping[str, Callable[[int], float]],
    steps: int,
    path: str | PathLike[str] | None = None,
) -> str:
    """A table of schedules, and a picture of them.

    Parameters
    ----------
    schedules : callable, or mapping of str to callable
        One schedule, or several by name; each is called with the steps from 1 on.
    steps : int
        How many.
    path : path, optional
        The file of the picture, in the format that the name's ending says, as ``.png`` or ``.svg``.

    Returns
    -------
    str
        The table: eleven steps, from the first to the last.

    Raises
    ------
    BackendUnavailable
        A picture is asked for, and matplotlib is not here.

    Examples
    --------
    >>> print(plot(Linear(1.0, 0.0, steps=2), steps=3))
    | step | Linear(start=1.0, end=0.0, steps=2) |
    | --- | --- |
    | 1 | 1 |
    | 2 | 0.5 |
    | 3 | 0 |
    """
    check_integer("steps", steps, 1)
    named = schedules if isinstance(schedules, Mapping) else {repr(schedules): schedules}
    values = {name: [float(schedule(t)) for t in range(1, steps + 1)] for name, schedule in named.items()}
    if path is not None:
        load_matplotlib()
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(STYLE):
            figure = Figure(figsize=(8, 4), layout="constrained")
            axes = figure.add_subplot(xlabel="step", ylabel="value")
            axes.grid(alpha=0.25)
            for (name, look), line in zip(looks(values).items(), values.values(), strict=True):
                axes.plot(range(1, steps + 1), line, color=look.colour, linestyle=look.dashes, label=name)
            figure.legend(loc="outside right upper", fontsize=9)
            figure.savefig(path, dpi=144)
    shown = sorted({round(1 + k * (steps - 1) / 10) for k in range(11)})
    lines = [["step", *values], ["---"] * (1 + len(values))]
    lines += [[str(t), *(f"{line[t - 1]:.4g}" for line in values.values())] for t in shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def __dir__() -> list[str]:
    return sorted(__all__)
