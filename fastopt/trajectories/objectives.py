"""Objectives of two parameters: losses with their gradients, minima and windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import wrong_type, wrong_value

Floats = NDArray[np.float64]


def check_function(name: str, value: Any) -> Any:
    """A callable."""
    if not callable(value):
        raise wrong_type(name, value, "a function of points")
    return value


def check_point(name: str, value: Any, length: int = 0) -> Floats:
    """A point as float64: finite numbers, as many as `length` says if that is not 0."""
    count = f"{length} numbers" if length else "one or more numbers"
    try:
        point = np.asarray(value).astype(np.float64, casting="safe")
    except (TypeError, ValueError):  # text, None, rows of different lengths
        raise wrong_type(name, value, count) from None
    if point.ndim != 1 or not len(point) or (length and len(point) != length) or not np.isfinite(point).all():
        raise wrong_value(name, value, f"{count}, finite ones")
    return point


@dataclass(frozen=True)
class Objective:
    """A loss of two parameters.

    Parameters
    ----------
    name : str
        The name.
    formula : str
        The loss in x and y.
    loss : callable
        ``loss(p)`` for an array whose last axis is (x, y): the losses, without that axis.
    gradient : callable
        ``gradient(p)``: the gradients, of the shape of `p`.
    start : tuple of float
        The first point of paths.
    window : tuple of float
        The part that pictures show: x from and to, y from and to.
    minimum : tuple of float, optional
        The minimum; None where there is none.
    levels : tuple of float
        Losses at which pictures draw contours.
    source : str
        The reference.

    Raises
    ------
    TypeError, ValueError
        A function is none, or the start, the window or the minimum are not so many numbers.

    Examples
    --------
    >>> float(BEALE.loss(np.array([3.0, 0.5]))), BEALE.gradient(np.array([1.0, 1.0])).tolist()
    (0.0, [0.0, 27.75])
    """

    name: str
    formula: str
    loss: Callable[[Floats], Any] = field(repr=False)
    gradient: Callable[[Floats], Floats] = field(repr=False)
    start: tuple[float, float]
    window: tuple[float, float, float, float]
    minimum: tuple[float, float] | None
    levels: tuple[float, ...] = field(repr=False)
    source: str = ""

    def __post_init__(self) -> None:
        check_function("loss", self.loss)
        check_function("gradient", self.gradient)
        check_point("start", self.start, 2)
        check_point("window", self.window, 4)
        if self.minimum is not None:
            check_point("minimum", self.minimum, 2)

    def shows(self, points: Floats) -> bool:
        """Tell whether all points are within the window."""
        left, right, low, high = self.window
        x, y = points[..., 0], points[..., 1]
        return bool(np.all((left <= x) & (x <= right) & (low <= y) & (y <= high)))


def _beale(p: Floats) -> Any:
    x, y = p[..., 0], p[..., 1]
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y * y) ** 2 + (2.625 - x + x * y * y * y) ** 2


def _beale_gradient(p: Floats) -> Floats:
    x, y = p[..., 0], p[..., 1]
    y2, y3 = y * y, y * y * y
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y2, 2.625 - x + x * y3
    in_x = 2 * (a * (y - 1) + b * (y2 - 1) + c * (y3 - 1))
    in_y = 2 * x * (a + 2 * b * y + 3 * c * y2)
    return np.stack([in_x, in_y], axis=-1)


def bowl(steep: float) -> tuple[Callable[[Floats], Any], Callable[[Floats], Floats]]:
    """The loss ``(x^2 + steep*y^2)/2`` and its gradient."""
    curvature = np.array([1.0, steep])
    return lambda p: (p[..., 0] ** 2 + steep * p[..., 1] ** 2) / 2, lambda p: p * curvature


def _levels(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(np.geomspace(low, high, count).tolist())


#: A narrow curved valley with steep walls.
BEALE = Objective(
    "Beale's function",
    "(1.5 - x + x*y)^2 + (2.25 - x + x*y^2)^2 + (2.625 - x + x*y^3)^2",
    _beale,
    _beale_gradient,
    (1.0, 1.5),
    (-1.0, 4.0, -2.0, 2.0),
    (3.0, 0.5),
    _levels(0.03, 300.0, 16),
    "Beale 1958",
)

#: A saddle point at the origin: down along y, up along x.
SADDLE = Objective(
    "saddle point",
    "x^2 - y^2",
    lambda p: p[..., 0] ** 2 - p[..., 1] ** 2,
    lambda p: np.stack([2 * p[..., 0], -2 * p[..., 1]], axis=-1),
    (1.0, 1e-6),
    (-1.5, 1.5, -1.5, 1.5),
    None,
    (-2.0, -1.5, -1.0, -0.5, -0.1, 0.1, 0.5, 1.0, 1.5, 2.0),
    "Dauphin et al. 2014, arXiv:1406.2572",
)

#: A ravine 50 times as steep across as along.
RAVINE = Objective(
    "ravine",
    "(x^2 + 50*y^2)/2",
    *bowl(50.0),
    (-4.0, 1.0),
    (-4.6, 3.0, -1.3, 1.3),
    (0.0, 0.0),
    _levels(0.02, 60.0, 12),
    "Sutton 1986",
)
