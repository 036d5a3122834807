"""Gradient checking: a gradient against differences of its loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays.libraries import floats_of
from ..checks import (
    as_float,
    check_flag,
    check_integer,
    check_name,
    check_number,
    describe,
    differing,
    wrong_type,
    wrong_value,
)
from .nested import Leaf, check_floats, leaves

_EPS = float(np.finfo(np.float64).eps)
_STEP = _EPS ** (1 / 3)  # where truncation, which grows as its square, meets rounding, which grows as it falls
_SHRINK = 8.0  # from one step to the next smaller
_STEPS = 6
_COMPLEX_STEP = 1e-30
_SHOWN = 10


@dataclass(frozen=True)
class Coordinate:
    """One element of the parameters, with its derivative by the gradient and by differences of the loss.

    Attributes
    ----------
    name : str
        The array, as ``params['w']``.
    index : tuple of int
        The element's place in it.
    gradient, numeric : float
        The derivative by the gradient, and by differences.
    error : float
        The relative error, ``|gradient - numeric| / max(|gradient|, |numeric|)``, of what rounding does not explain.
    kind : str
        "smooth"; "kink" where the slopes on both sides differ; "unresolved" where no step told the derivative.
    """

    name: str
    index: tuple[int, ...]
    gradient: float
    numeric: float
    error: float
    kind: str

    @property
    def place(self) -> str:
        """The element as Python writes it: ``params['w'][3, 5]``."""
        return self.name + (f"[{', '.join(map(str, self.index))}]" if self.index else "")


@dataclass(frozen=True)
class GradientCheck:
    """The result of `check_gradient`: true in a condition where the gradient is right.

    Attributes
    ----------
    coordinates : tuple of Coordinate
        The elements that were checked, the largest error first.
    tolerance : float
        The relative error that is allowed.
    evaluations : int
        The calls of the loss.
    """

    coordinates: tuple[Coordinate, ...]
    tolerance: float
    evaluations: int

    @property
    def ok(self) -> bool:
        """True where no element is wrong and none is unresolved."""
        return not self.wrong and not self.unresolved

    @property
    def worst(self) -> Coordinate:
        """The element with the largest error."""
        return self.coordinates[0]

    @property
    def wrong(self) -> tuple[Coordinate, ...]:
        """The elements whose error is beyond the tolerance."""
        return tuple(c for c in self.coordinates if c.error > self.tolerance)

    @property
    def kinks(self) -> tuple[Coordinate, ...]:
        """The elements at a kink; any slope between those of the two sides is right there."""
        return tuple(c for c in self.coordinates if c.kind == "kink")

    @property
    def unresolved(self) -> tuple[Coordinate, ...]:
        """The elements at which no step gave a derivative: of a loss that computes in float32, for example."""
        return tuple(c for c in self.coordinates if c.kind == "unresolved")

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        heading = (
            f"gradient {'right' if self.ok else 'NOT right'}: {len(self.coordinates)} elements, {len(self.wrong)} "
            f"wrong, {len(self.kinks)} at kinks, {len(self.unresolved)} unresolved; largest relative error "
            f"{self.worst.error:.1e} at {self.worst.place}, allowed {self.tolerance:.1e}"
        )
        shown = [c for c in self.coordinates if c.error > self.tolerance or c.kind == "unresolved"][:_SHOWN]
        lines = [
            f"  {c.place}: gradient {c.gradient:.8g}, differences {c.numeric:.8g}, error {c.error:.1e} ({c.kind})"
            for c in shown
        ]
        return "\n".join([heading, *lines])


def check_gradient(
    loss: Callable[[Any], Any],
    params: Any,
    gradient: Any,
    *,
    samples: int | None = 100,
    coordinates: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    complex_step: bool = False,
) -> GradientCheck:
    """Compare a gradient with differences of its loss in float64.

    Central differences, extrapolated (Richardson 1911; Press et al. 2007, "Numerical Recipes", section 5.7)::

        D(h) = (f(x + h) - f(x - h)) / (2*h)
        numeric = (4*D(h/2) - D(h)) / 3,  h = eps^(1/3)*max(1, |x|)

    with a step for each element: where D(h/2) and D(h) differ by more than rounding, smaller steps are tried, and the
    one with the least estimated error is taken. The complex step (Squire and Trapp 1998, doi:10.1137/S003614459631241X)
    subtracts nothing, and is exact to rounding::

        numeric = Im f(x + i*h) / h,  h = 1e-30*max(1, |x|)

    Parameters
    ----------
    loss : callable
        The loss, a real number, as a function of the parameters. It gets copies in float64 (complex128 with
        `complex_step`), in the same nesting, of which one element is changed at a time, and computes in their dtype;
        tensors of torch are tensors there.
    params : array, or nested mappings and sequences of arrays
        Where the gradient is taken. They are not changed.
    gradient : array, nested arrays, or callable
        The gradient there, in the same nesting; or a function that gives it, which is called with float64 copies.
    samples : int, optional
        The elements of each array that are checked, drawn at random; all of them if it has no more. Default 100; None
        checks all.
    coordinates : mapping, optional
        Further elements to check: for the path of an array, as "layers.0.weight" (a single array is "params"), a
        sequence of indices.
    seed : int
        The seed of the draw; default 0.
    tolerance : float, optional
        The relative error that is allowed; by default 1e-6, or sqrt(eps) of a gradient in float32 or less.
    complex_step : bool
        True takes complex steps; for a loss made of analytic functions, without ``abs``. Default False.

    Returns
    -------
    GradientCheck
        True in a condition where the gradient is right. Printed, it says what is worst and where.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the gradient has another nesting or other shapes; the loss is no number in float64,
        not finite, differs from call to call, or drops what a complex step adds.

    Notes
    -----
    At a kink, as of ``maximum(x, 0)`` at 0, the slopes on both sides stay apart however small the step; a gradient is
    right there if it is between them.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.training import check_gradient
    >>> x = np.random.default_rng(0).standard_normal((20, 3))
    >>> params = {"w": np.ones((3, 2)), "b": np.zeros(2)}
    >>> def loss(p):
    ...     return (np.tanh(x @ p["w"] + p["b"]) ** 2).sum()
    >>> def gradient(p):
    ...     y = np.tanh(x @ p["w"] + p["b"])
    ...     delta = 2 * y * (1 - y**2)
    ...     return {"w": x.T @ delta, "b": delta.sum(axis=1)[:2]}  # the wrong axis
    >>> found = check_gradient(loss, params, gradient)
    >>> bool(found), found.worst.name, len(found.wrong)
    (False, "params['b']", 2)
    """
    if not callable(loss):
        raise wrong_type("loss", loss, "a function of the parameters")
    samples = None if samples is None else check_integer("samples", samples, 0)
    seed = check_integer("seed", seed, 0)
    complex_step = check_flag("complex_step", complex_step)
    params = list(params) if isinstance(params, Iterator) else params
    found = leaves(params)
    check_floats(found)
    slopes, precision = _read_gradient(gradient, params, found)
    allowed = max(1e-6, math.sqrt(precision)) if tolerance is None else check_number("tolerance", tolerance, 0)
    chosen = _choose(found, samples, coordinates, seed)
    differences = _Differences(loss, params, found)
    steps: _Differences | _ComplexSteps = _ComplexSteps(loss, params, found) if complex_step else differences
    largest = [float(np.abs(own[np.isfinite(own)]).max(initial=0.0)) for own in slopes]
    results = []
    for k, (leaf, places) in enumerate(zip(found, chosen, strict=True)):
        rounding = 16 * precision * largest[k] if precision > _EPS else 0.0
        for place in places:
            own = float(slopes[k][place])
            result = _judged(leaf, place, own, steps.slope(k, place, allowed), rounding, max(largest))
            if complex_step and result.error > allowed:
                other = _judged(leaf, place, own, differences.slope(k, place, allowed), rounding, max(largest))
                if other.error <= allowed and other.kind == "smooth":
                    raise ValueError(
                        f"loss: found a complex step of {result.numeric:.6g} at {result.place} where differences give "
                        f"{other.numeric:.6g}, expected an analytic function, without abs; leave complex_step out"
                    )
            results.append(result)
    if not results:
        raise ValueError("samples: found no element to check, expected samples >= 1, or coordinates")
    results.sort(key=lambda c: (-c.error, c.kind != "unresolved"))
    return GradientCheck(tuple(results), allowed, differences.evaluations + (steps.evaluations if complex_step else 0))


class _Slope(NamedTuple):
    """A derivative from differences, or the slopes on the sides of a kink."""

    value: float
    uncertainty: float
    rounding: float  # of that, what rounding leaves at best
    low: float
    high: float

    @property
    def kink(self) -> bool:
        return self.low < self.high


def _judged(leaf: Leaf, place: int, own: float, slope: _Slope, rounding: float, largest: float) -> Coordinate:
    """A gradient's element, known up to `rounding`, beside its derivative from differences."""
    beyond = max(slope.low - own, own - slope.high) - slope.uncertainty - rounding
    size = max(abs(own), abs(slope.value))
    error, kind = beyond / size if beyond > 0 else 0.0, "smooth"
    if not math.isfinite(own):
        error = math.inf
    elif slope.kink:
        kind = "kink"
    # An uncertainty as large as derivatives are tells nothing, unless all are zero but for rounding.
    elif not (slope.uncertainty <= 0.01 * max(size, largest) or largest < slope.uncertainty <= 100 * slope.rounding):
        kind = "unresolved"
    index = tuple(int(i) for i in np.unravel_index(place, leaf.array.shape)) if leaf.array.shape else ()
    return Coordinate(leaf.name, index, own, slope.value, error, kind)


class _Loss:
    """The loss as a function of one element at a time of copies of the parameters."""

    def __init__(self, loss: Callable[[Any], Any], params: Any, found: Sequence[Leaf], dtype: type) -> None:
        self._loss = loss
        self._params, self._flat = _copies(params, found, dtype)
        self.evaluations = 0

    def at(self, k: int, place: int, x: complex) -> Any:
        """Evaluate the loss with one element changed."""
        flat = self._flat[k]
        before = flat[place]
        flat[place] = x
        self.evaluations += 1
        try:
            with np.errstate(all="ignore"):  # beyond the domain a smaller step is tried
                return self._loss(self._params)
        finally:
            flat[place] = before


class _Differences(_Loss):
    """Derivatives by central differences."""

    def __init__(self, loss: Callable[[Any], Any], params: Any, found: Sequence[Leaf]) -> None:
        super().__init__(loss, params, found, np.float64)
        value, again = (self._number(loss(self._params)) for _ in range(2))
        self.evaluations += 2
        if not math.isfinite(value):
            raise wrong_value("loss", value, "a finite number at params")
        if again != value:
            raise ValueError(
                f"loss: found {value!r}, then {again!r} at the same params, expected a function of them alone; draw "
                "whatever is random from the same seed at each call"
            )
        self.value = value

    @staticmethod
    def _number(value: Any) -> float:
        value = value.detach() if hasattr(value, "detach") else value
        number = as_float(value)
        if number is None:
            raise wrong_type("loss", value, "it to return a number")
        if str(getattr(value, "dtype", "float64")).removeprefix("torch.") in ("float32", "float16", "bfloat16"):
            raise TypeError(f"loss: found a result in {value.dtype}, expected float64, the dtype of its parameters")
        return number

    def slope(self, k: int, place: int, tolerance: float) -> _Slope:
        """The derivative by an element, from as many steps as it takes."""
        x = float(self._flat[k][place])
        step = _STEP * max(1.0, abs(x))
        best = _Slope(math.nan, math.inf, 0.0, math.nan, math.nan)
        kink: _Slope | None = None  # the slopes at the step before, if they were apart
        for _ in range(_STEPS):
            wide, near = self._sides(k, place, x, step), self._sides(k, place, x, step / 2)
            coarse, fine = sum(wide) / 2, sum(near) / 2
            if math.isfinite(coarse) and math.isfinite(fine):
                jump = abs(near[1] - near[0])
                noise = 8 * _EPS * max(abs(self.value), *(abs(side * step) for side in near)) / step
                noise += 2 * _EPS * max(1.0, abs(x)) * jump / step  # x is rounded within the loss
                value = (4 * fine - coarse) / 3
                found = _Slope(value, abs(value - fine) + noise, noise, value, value)
                # The two sides' slopes of a smooth function differ half as much at half the step.
                if jump > max(0.75 * abs(wide[1] - wide[0]), 20 * noise, tolerance * max(map(abs, near))):
                    before, kink = kink, _Slope(fine, noise, noise, min(near), max(near))
                    if before is not None and abs(fine - before.value) < 0.01 * jump:
                        return kink
                else:
                    kink = None
                    if found.uncertainty < best.uncertainty:
                        best = found
                    if best.uncertainty <= max(0.1 * tolerance * abs(best.value), _SHRINK * noise):
                        return best
            step /= _SHRINK
        return best if kink is None or math.isfinite(best.uncertainty) else kink

    def _sides(self, k: int, place: int, x: float, step: float) -> tuple[float, float]:
        """The slopes to the left and to the right."""
        above, below = x + step, x - step  # rounded: the steps are what the differences are of
        left = (self.value - self._number(self.at(k, place, below))) / (x - below)
        right = (self._number(self.at(k, place, above)) - self.value) / (above - x)
        return left, right


class _ComplexSteps(_Loss):
    """Derivatives by complex steps."""

    def __init__(self, loss: Callable[[Any], Any], params: Any, found: Sequence[Leaf]) -> None:
        super().__init__(loss, params, found, np.complex128)

    def slope(self, k: int, place: int, tolerance: float) -> _Slope:
        """The derivative by an element."""
        x = float(self._flat[k][place].real)
        step = _COMPLEX_STEP * max(1.0, abs(x))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                result = self.at(k, place, x + 1j * step)
        except np.exceptions.ComplexWarning as warning:
            raise TypeError(f"loss: found that it drops imaginary parts ({warning}); leave complex_step out") from None
        if not str(getattr(result, "dtype", type(result).__name__)).removeprefix("torch.").startswith("complex"):
            raise wrong_type("loss", result, "a complex number of a complex step; leave complex_step out")
        value = complex(result.detach() if hasattr(result, "detach") else result).imag / step
        return _Slope(value, 16 * _EPS * abs(value), 0.0, value, value)


def _copies(params: Any, found: Sequence[Leaf], dtype: type) -> tuple[Any, list[np.ndarray]]:
    """The parameters in another dtype, in the same nesting, and each array's elements in one row."""
    arrays: list[np.ndarray] = [floats_of(leaf.array).astype(dtype) for leaf in found]
    rest = iter(zip(found, arrays, strict=True))

    def built(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: built(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            inside = [built(inner) for inner in value]
            return (
                type(value)(*inside) if hasattr(value, "_fields") else tuple(inside) if type(value) is tuple else inside
            )
        leaf, array = next(rest)
        if not hasattr(leaf.array.owner, "detach"):
            return array
        import torch

        return torch.from_numpy(array).requires_grad_(True)

    return built(params), [array.reshape(-1) for array in arrays]


def _read_gradient(gradient: Any, params: Any, found: Sequence[Leaf]) -> tuple[list[np.ndarray], float]:
    """A gradient's elements, each array's in one row, in the order of the parameters; and its dtype's precision."""
    if callable(gradient):
        gradient = gradient(_copies(params, found, np.float64)[0])
    given = leaves(gradient, "gradient")
    check_floats(given)
    by_key = {leaf.key: leaf for leaf in given}
    keys = [leaf.key for leaf in found]
    if set(by_key) != set(keys):
        raise ValueError(f"gradient: found other arrays than params has{differing(by_key, keys)}")
    slopes, precision = [], _EPS
    for leaf in found:
        _, name, array = by_key[leaf.key]
        if array.shape != leaf.array.shape:
            raise ValueError(f"{name}: found shape {array.shape}, expected {leaf.array.shape} as {leaf.name} has")
        eps = 2.0**-7 if array.dtype.kind == "V" else float(np.finfo(array.dtype).eps)  # bfloat16's
        precision = max(precision, eps)
        slopes.append(floats_of(array).astype(np.float64).reshape(-1))
    return slopes, precision


def _choose(
    found: Sequence[Leaf], samples: int | None, coordinates: Mapping[str, Sequence[Any]] | None, seed: int
) -> list[list[int]]:
    """The elements of each array to check, by their number in C order."""
    random = np.random.default_rng(seed)
    chosen = []
    for leaf in found:
        size = leaf.array.size
        every = samples is None or size <= samples
        chosen.append(range(size) if every else np.sort(random.choice(size, samples, replace=False)).tolist())
    told: dict[str, list[int]] = {leaf.key: [] for leaf in found}
    if coordinates is not None and not isinstance(coordinates, Mapping):
        raise wrong_type("coordinates", coordinates, "a mapping of paths to sequences of indices")
    for key, indices in (coordinates or {}).items():
        check_name("coordinates", key, told)
        shape = found[list(told).index(key)].array.shape
        if not isinstance(indices, (list, tuple, np.ndarray)):
            raise wrong_type(f"coordinates[{key!r}]", indices, "a sequence of indices")
        for index in indices:
            try:
                place = tuple(index) if isinstance(index, (list, tuple, np.ndarray)) else (index,)
                told[key].append(int(np.ravel_multi_index(place, shape)))
            except (TypeError, ValueError):
                raise ValueError(
                    f"coordinates[{key!r}]: found {describe(index)}, expected indices of an element of shape {shape}"
                ) from None
    return [sorted({*own, *told[leaf.key]}) for leaf, own in zip(found, chosen, strict=True)]
