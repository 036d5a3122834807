"""Scenes: what each picture shows, as arrays and a table. `drawing` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import functional
from ..checks import check_integer, check_name, did_you_mean, wrong_type, wrong_value
from ..palette import look, rule_look
from ..schedules import InverseTime
from .descent import ELEMENTWISE, Track, descend, tracks, tuned
from .objectives import BEALE, RAVINE, SADDLE, Floats, Objective, bowl

#: The contents of a scene, side by side.
PANELS = ("plane", "space", "loss")


@dataclass(frozen=True)
class Arrow:
    """A vector of a picture.

    Parameters
    ----------
    name : str
        The name in the legend of all of its kind.
    colour : str
        Its colour.
    begin, end : tuple of float
        From where to where.
    step : int
        The step from which it is seen.
    """

    name: str
    colour: str
    begin: tuple[float, float]
    end: tuple[float, float]
    step: int


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture as data.

    Parameters
    ----------
    title : str
        Its title.
    objective : Objective
        The loss that is descended.
    tracks : tuple of Track
        The tracks, all of as many steps.
    panels : tuple of str
        The panels, side by side: "plane", contours and tracks; "space", the same in three dimensions; "loss", the
        loss against steps.
    goal : str
        The goal that the table counts steps to.
    reached : callable
        The step at which a track has reached the goal; None if it did not.
    arrows : tuple of Arrow
        Vectors on the plane.

    Raises
    ------
    TypeError, ValueError
        There are no tracks, or they are of different numbers of steps; or a panel is none of the three.
    """

    title: str
    objective: Objective
    tracks: tuple[Track, ...]
    panels: tuple[str, ...]
    goal: str = "steps to within 1e-3 of the minimum"
    reached: Callable[[Track], int | None] = Track.arrival
    arrows: tuple[Arrow, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.tracks, tuple) or not all(isinstance(track, Track) for track in self.tracks):
            raise wrong_type("tracks", self.tracks, "a tuple of Tracks")
        if len(steps := {len(track.points) - 1 for track in self.tracks}) != 1:
            raise wrong_value("tracks", f"tracks of {sorted(steps)} steps", "one or more, all of as many steps")
        if not isinstance(self.panels, tuple) or not self.panels:
            raise wrong_type("panels", self.panels, f"a tuple of {', '.join(PANELS)}")
        for panel in self.panels:
            check_name("panels", panel, PANELS)

    @property
    def steps(self) -> int:
        """Number of steps of the tracks."""
        return len(self.tracks[0].points) - 1

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table beside the picture: each track's name, its learning rate, the steps to the goal, its last loss."""
        rows = []
        for track in self.tracks:
            step = self.reached(track)
            lr = repr(track.lr) if callable(track.lr) else f"{track.lr:.3g}"
            rows.append((track.name, lr, "did not" if step is None else str(step), f"{track.losses[-1]:.2g}"))
        return rows

    def table(self) -> str:
        """The table as text, for a terminal or a page.

        Examples
        --------
        >>> from fastopt.trajectories import ravine
        >>> print(ravine(steps=300).table())
        | optimizer | lr | steps to within 1e-3 of the minimum | loss after 300 steps |
        |---|---|---|---|
        | sgd | 0.0395 | 273 | 6.3e-06 |
        | momentum | 0.0395 | 149 | 1e-12 |
        """
        head = ("optimizer", "lr", self.goal, f"loss after {self.steps} steps")
        lines = [head, ("---",) * len(head), *self.rows()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(
            "| --- | --- | --- | --- |", "|---|---|---|---|"
        )


def beale(rules: Sequence[str] = ELEMENTWISE, steps: int = 600) -> Scene:
    """Beale's function: contours, and the track of each rule with the best of the learning rates tried.

    Parameters
    ----------
    rules : sequence of str
        The rules; by default all.
    steps : int
        How many.

    Examples
    --------
    >>> scene = beale(("sgd", "adam"))
    >>> [row[2] for row in scene.rows()]
    ['did not', '155']
    """
    found = tuple(tuned(rule, BEALE, steps) for rule in _rules(rules, steps))
    return Scene("Beale's function, each with its best learning rate", BEALE, found, ("plane",))


def loss(rules: Sequence[str] = ELEMENTWISE, steps: int = 600) -> Scene:
    """Beale's function: the loss against steps; arguments as `beale`'s.

    Examples
    --------
    >>> loss(("adam",), steps=10).tracks[0].losses.shape
    (11,)
    """
    found = tuple(tuned(rule, BEALE, steps) for rule in _rules(rules, steps))
    return Scene("The loss on Beale's function, each with its best learning rate", BEALE, found, ("loss",))


#: The overview's six on its saddle point.
_OVERVIEW = ("sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop")


def saddle(rules: Sequence[str] = _OVERVIEW, steps: int = 150) -> Scene:
    """A saddle point in three dimensions, from a start almost on its ridge; lr 0.05, and 1 for Adadelta.

    Parameters
    ----------
    rules : sequence of str
        The rules.
    steps : int
        How many.

    Examples
    --------
    >>> steps = {row[0]: int(row[2]) for row in saddle(("sgd", "rmsprop"), steps=200).rows()}
    >>> steps["rmsprop"] < steps["sgd"]
    True
    """
    found = []
    for rule in _rules(rules, steps):
        found += tracks(rule, SADDLE, [1.0 if rule == "adadelta" else 0.05], steps)
    return Scene(
        "Leaving a saddle point", SADDLE, tuple(found), ("space",), "steps until the loss is below -1", left_saddle
    )


def left_saddle(track: Track) -> int | None:
    """The first step at which the loss is below -1, one below the saddle point; None if it never is."""
    below = np.flatnonzero(track.losses < -1)
    return int(below[0]) if len(below) else None


def ravine(rules: Sequence[str] = ("sgd", "momentum"), steps: int = 150) -> Scene:
    """A ravine with and without momentum: the same lr 0.0395, near the largest at which SGD converges.

    Parameters
    ----------
    rules : sequence of str
        The rules.
    steps : int
        How many.

    Examples
    --------
    >>> sgd, momentum = ravine().tracks
    >>> bool(abs(sgd.points[50:, 1]).max() > 2 * abs(momentum.points[50:, 1]).max())
    True
    """
    found: list[Track] = []
    for rule in _rules(rules, steps):
        found += tracks(rule, RAVINE, [0.0395], steps)
    return Scene("A ravine, with and without momentum", RAVINE, tuple(found), ("plane",))


def linear_regression() -> tuple[Floats, Floats, Objective]:
    """A linear regression of 200 examples: inputs (1, x), targets, and the loss of all above its minimum.

    Examples
    --------
    >>> inputs, targets, objective = linear_regression()
    >>> inputs.shape, round(float(objective.loss(np.array(objective.minimum))), 12)
    ((200, 2), 0.0)
    """
    rng = np.random.default_rng(0)
    inputs = np.stack([np.ones(200), rng.uniform(-1.5, 1.5, 200)], axis=1)
    targets = inputs @ np.array([1.0, -1.0]) + 0.7 * rng.standard_normal(200)
    best = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    floor = float(((inputs @ best - targets) ** 2).mean() / 2)
    objective = Objective(
        "linear regression",
        "mean squared error / 2, above its minimum",
        lambda p: ((p @ inputs.T - targets) ** 2).mean(axis=-1) / 2 - floor,
        lambda p: (p @ inputs.T - targets) @ inputs / len(targets),
        (-1.0, 1.0),
        (-1.4, 2.2, -2.4, 1.4),
        (float(best[0]), float(best[1])),
        tuple(np.geomspace(0.01, 8.0, 10).tolist()),
    )
    return inputs, targets, objective


def fluctuation(rules: Sequence[str] = ("sgd",), steps: int = 600) -> Scene:
    """A linear regression by gradients of all examples, of ten, of one, and of one with an annealed learning rate.

    Parameters
    ----------
    rules : sequence of str
        One rule.
    steps : int
        How many.

    Examples
    --------
    >>> whole, ten, one, annealed = fluctuation().tracks
    >>> bool(one.losses[300:].std() > ten.losses[300:].std() > annealed.losses[300:].std())
    True
    """
    (rule,) = _rules(rules, steps, most=1)
    inputs, targets, objective = linear_regression()

    def batches(count: int) -> Callable[[Floats], Floats]:
        rng = np.random.default_rng(1)

        def gradient(p: Floats) -> Floats:
            batch = rng.integers(len(targets), size=count)
            return (p @ inputs[batch].T - targets[batch]) @ inputs[batch] / count

        return gradient

    ways: list[tuple[str, Callable[[Floats], Floats], Any]] = [
        ("all examples", objective.gradient, 0.2),
        ("ten", batches(10), 0.2),
        ("one", batches(1), 0.2),
        ("one, annealed", batches(1), InverseTime(0.2, tau=20)),
    ]
    found = []
    for k, (name, gradient, lr) in enumerate(ways):
        points = descend(rule, gradient, objective.start, [lr], steps)[:, 0]
        found.append(
            Track(name, look(k) if k else rule_look(rule), lr, points, objective.loss(points), objective.minimum)
        )
    return Scene("The fluctuation of gradients of few examples", objective, tuple(found), ("plane", "loss"))


_GENTLE = Objective(
    "bowl", "(x^2 + 4*y^2)/2", *bowl(4.0), (-3.0, 1.5), (-3.3, 2.0, -1.7, 1.7), (0.0, 0.0),
    tuple(np.geomspace(0.05, 8.0, 9).tolist()), "Sutskever et al. 2013, figure 1",
)  # fmt: skip
_JUMP, _GRADIENT = "#7d858f", "#9c9474"


def nag(rules: Sequence[str] = ("momentum", "nesterov"), steps: int = 8) -> Scene:
    """The vectors of Momentum and of Nesterov's accelerated gradient, in Sutskever's and the overview's form.

    Momentum adds the gradient of where it is to its jump. NAG jumps first, and then corrects by the gradient of where
    it landed: ``v = momentum*v + lr*gradient(theta - momentum*v)``, ``theta -= v``. The kernel's parameter array holds
    the point where the gradient is taken, ``theta - momentum*v``; the track is that of theta.

    Parameters
    ----------
    rules : sequence of str
        "momentum", "nesterov" or both.
    steps : int
        How many.

    Examples
    --------
    >>> momentum, nesterov = nag().tracks
    >>> bool(momentum.points[:, 1].min() < nesterov.points[:, 1].min() < 0)  # it corrects sooner
    True
    """
    chosen = _rules(rules, steps, ("momentum", "nesterov"))
    lr, momentum, found, arrows = 0.15, 0.8, [], []
    for rule in chosen:
        ahead = momentum if rule == "nesterov" else 0.0
        param, velocity = np.array(_GENTLE.start), np.zeros(2)
        points, colour = [param.copy()], rule_look(rule).colour
        for t in range(1, steps + 1):
            theta, landed = points[-1], param.copy()
            jump = theta - momentum * lr * velocity
            grad = _GENTLE.gradient(param)
            getattr(functional, rule)(param, grad, velocity, step=t, lr=lr, momentum=momentum)
            points.append(param + ahead * lr * velocity)
            if ahead:
                vectors = (("jump", _JUMP, theta, jump), ("NAG's correction", colour, landed, points[-1]))
            else:
                vectors = (("jump", _JUMP, theta, jump), ("Momentum's gradient", colour, jump, points[-1]))
            for name, shade, begin, end in vectors:
                if np.any(begin != end):
                    arrows.append(Arrow(name, shade, tuple(begin.tolist()), tuple(end.tolist()), t))
        path = np.array(points)
        found.append(Track(rule, rule_look(rule), lr, path, _GENTLE.loss(path), _GENTLE.minimum))
    title = "Momentum adds the gradient before the jump; NAG corrects after it"
    return Scene(title, _GENTLE, tuple(found), ("plane",), arrows=tuple(arrows))


def _rules(rules: Sequence[str], steps: Any, known: Sequence[str] = ELEMENTWISE, most: int = 0) -> tuple[str, ...]:
    """The rules of a scene, checked.

    Raises
    ------
    TypeError, ValueError
        There are none, too many, or others than known; or `steps` is no whole number >= 1.
    """
    check_integer("steps", steps, 1)
    if isinstance(rules, bytes) or not isinstance(rules, Sequence):
        raise wrong_type("rules", rules, "names of rules")
    names = (rules,) if isinstance(rules, str) else tuple(rules)
    for name in names:
        if name not in known:
            raise wrong_value("rules", name, f"some of {', '.join(known)}{did_you_mean(name, known)}")
    if not names or (most and len(names) > most):
        raise wrong_value("rules", names, f"{most} of them" if most else "one or more")
    return names


#: Every scene by its name on the command line.
SCENES = MappingProxyType({scene.__name__: scene for scene in (beale, saddle, ravine, fluctuation, nag, loss)})
