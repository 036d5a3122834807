"""Tracks: the points that optimizers go through, computed by fastopt's kernels in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..checks import check_integer, check_name, wrong_type, wrong_value
from ..optimizers import CLASSES
from ..palette import Look, rule_look
from ..rules import RULES
from .objectives import Floats, Objective, check_function, check_point

#: Rules that update each element by itself, whatever the parameter's shape.
ELEMENTWISE = tuple(name for name, rule in RULES.items() if rule.elementwise)

#: Learning rates that `tuned` tries: from 1e-4 to 10, four in a decade.
LRS = tuple(10 ** (k / 4) for k in range(-16, 5))


@dataclass(frozen=True, eq=False)
class Track:
    """The points that an optimizer went through.

    Parameters
    ----------
    name : str
        The name in tables and legends.
    look : Look
        Colour and dashes: a rule has its own.
    lr : float or callable
        The learning rate, or a schedule.
    points : numpy.ndarray
        The points, (steps + 1) x 2: the start first.
    losses : numpy.ndarray
        The loss at each.
    minimum : tuple of float, optional
        The objective's.

    Examples
    --------
    >>> from fastopt.trajectories import BEALE, tuned
    >>> track = tuned("adam", BEALE, steps=300)
    >>> track.points.shape, track.arrival(1e-3) < 300
    ((301, 2), True)
    """

    name: str
    look: Look
    lr: Any
    points: Floats
    losses: Floats
    minimum: tuple[float, float] | None = None

    def arrival(self, within: float = 1e-3) -> int | None:
        """The first step from which on the track stays within a distance of the minimum; None if it did not."""
        if self.minimum is None:
            return None
        away = self.points - self.minimum
        return _settled(np.hypot(away[:, 0], away[:, 1]) <= within)


def _settled(inside: np.ndarray) -> int | None:
    """The first index from which on all are true; None if the last is not."""
    if not inside[-1]:
        return None
    outside = np.flatnonzero(~inside)
    return int(outside[-1]) + 1 if len(outside) else 0


def optimizer_class(rule: str) -> Any:
    """The class that stands for a rule, with the arguments that choose the rule bound."""
    cls: Any = CLASSES[RULES[rule].optimizer]
    return partial(cls, **cls._arguments.choices[rule])


def descend(
    rule: str,
    gradient: Callable[[Floats], Floats],
    start: Sequence[float],
    lrs: Sequence[Any],
    steps: int,
    **options: Any,
) -> Floats:
    """The points of one optimizer with several learning rates, all stepped in one call.

    Parameters
    ----------
    rule : str
        The rule's name.
    gradient : callable
        ``gradient(p)`` of points, (learning rates x parameters). It is called once a step.
    start : sequence of float
        The first point of all.
    lrs : sequence of float
        Learning rates, or schedules.
    steps : int
        How many.
    **options
        More arguments of the optimizer's class.

    Returns
    -------
    numpy.ndarray
        (steps + 1) x learning rates x parameters. Those that diverge become infinite or NaN.

    Raises
    ------
    TypeError, ValueError
        The rule is none, or an argument is not what it must be.

    Examples
    --------
    >>> descend("sgd", lambda p: p, (1.0, 2.0), [0.5], 2)[:, 0].tolist()
    [[1.0, 2.0], [0.5, 1.0], [0.25, 0.5]]
    """
    check_name("rule", rule, ELEMENTWISE)
    check_integer("steps", steps, 1)
    check_function("gradient", gradient)
    if isinstance(lrs, (str, bytes)) or not isinstance(lrs, Sequence):
        raise wrong_type("lrs", lrs, "a sequence of learning rates")
    if not lrs:
        raise wrong_value("lrs", lrs, "one learning rate or more")
    now = np.tile(check_point("start", start), (len(lrs), 1))
    grads = np.empty_like(now)
    groups = [{"params": [point], "lr": lr} for point, lr in zip(now, lrs, strict=True)]
    plan = optimizer_class(rule)(groups, lr=lrs[0], threads=1, **options).bind([{"params": [grad]} for grad in grads])
    points = np.empty((steps + 1, *now.shape))
    points[0] = now
    with np.errstate(all="ignore"):
        for t in range(1, steps + 1):
            grads[...] = _gradients(gradient, now)
            plan.step()
            points[t] = now
    return points


def _gradients(gradient: Callable[[Floats], Floats], points: Floats) -> Floats:
    """The gradients at points, checked."""
    found = gradient(points)
    if np.shape(found) != points.shape:
        shape = np.shape(found)
        raise ValueError(f"gradient: found gradients of shape {shape}, expected {points.shape}, as the points have")
    return found


def tracks(rule: str, objective: Objective, lrs: Sequence[Any], steps: int, **options: Any) -> list[Track]:
    """A rule's tracks on an objective, one for each learning rate; arguments as `descend`'s."""
    if not isinstance(objective, Objective):
        raise wrong_type("objective", objective, "an Objective")
    points = descend(rule, objective.gradient, objective.start, lrs, steps, **options)
    with np.errstate(all="ignore"):
        losses = objective.loss(points)
    return [Track(rule, rule_look(rule), lr, points[:, k], losses[:, k], objective.minimum) for k, lr in enumerate(lrs)]


def tuned(rule: str, objective: Objective, steps: int, **options: Any) -> Track:
    """A rule's track with the best of the learning rates `LRS`.

    The best is the one that settles first within 1e-3 of the minimum; where none does, the one whose last loss is the
    lowest. Tracks that leave the objective's window come last.

    Parameters
    ----------
    rule : str
        The rule's name.
    objective : Objective
        The objective that it descends.
    steps : int
        How many.
    **options
        More arguments of the optimizer's class.

    Examples
    --------
    >>> from fastopt.trajectories import RAVINE
    >>> tuned("momentum", RAVINE, 300).arrival() < tuned("sgd", RAVINE, 300).arrival()
    True
    """

    def rank(track: Track) -> tuple[bool, float, float]:
        arrival, last = track.arrival(), float(track.losses[-1])
        return (
            not objective.shows(track.points),
            steps + 1 if arrival is None else arrival,
            last if np.isfinite(last) else np.inf,
        )

    return min(tracks(rule, objective, LRS, steps, **options), key=rank)
