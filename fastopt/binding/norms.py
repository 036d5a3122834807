"""Norms of gradients, and the limits that they are clipped to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import settings
from ..arrays.array import CPU, Array, Place
from ..arrays.checks import check_distinct
from ..backends import DeviceScale, SquareSums
from ..backends.choice import choose_backend, host_backend, ieee_arithmetic
from ..checks import as_float, check_number, wrong_type
from ..jobs.job import NORM_BLOCK, NORM_EPS, Gradients
from ..jobs.tables import make_gradients
from ..rules.hyper import check_held
from .sparse import RowSparse, is_mapping, view_gradient


def _gradients(grads: Any) -> tuple[list[Array | RowSparse], list[str]]:
    if is_mapping(grads):
        items = [(f"grads[{key!r}]", grad) for key, grad in grads.items()]
    elif isinstance(grads, (list, tuple)):
        items = [(f"grads[{i}]", grad) for i, grad in enumerate(grads)]
    elif grads is None:
        raise wrong_type("grads", grads, "an array, a RowSparse, or a sequence or mapping of them")
    else:
        items = [("grads", grads)]
    items = [(name, grad) for name, grad in items if grad is not None]
    return [view_gradient(grad, name) for name, grad in items], [name for name, _ in items]


def _place_of(grads: Sequence[Array | RowSparse]) -> Place:
    """Return the place of gradients."""
    return next((grad.values.place if isinstance(grad, RowSparse) else grad.place for grad in grads), CPU)


def tables_of(grads: Sequence[Array | RowSparse], names: Sequence[str]) -> list[Gradients | RowSparse]:
    """Gradients as `norm_of` takes them."""
    dense = [(grad, name) for grad, name in zip(grads, names, strict=True) if isinstance(grad, Array)]
    tables: list[Gradients | RowSparse] = [grad for grad in grads if isinstance(grad, RowSparse)]
    return [*make_gradients([grad for grad, _ in dense], [name for _, name in dense]), *tables]


class Limits(NamedTuple):
    """Limits of a step's gradients: of their global norm or of each one's norm, and of their elements."""

    max_norm: float | None
    clip_norm: float | None
    clip_value: float

    @classmethod
    def of(cls, max_norm: Any, clip_norm: Any, clip_value: Any) -> Limits:
        """The limits, checked.

        Raises
        ------
        TypeError, ValueError
            One is no number >= 0, or there are both norms.
        """
        if max_norm is not None and clip_norm is not None:
            raise ValueError(f"clip_norm: found {clip_norm!r} beside max_norm={max_norm!r}, expected one of the two")
        return cls(
            None if max_norm is None else check_limit("max_norm", max_norm),
            None if clip_norm is None else check_limit("clip_norm", clip_norm),
            math.inf if clip_value is None else check_limit("clip_value", clip_value),
        )


NO_LIMITS = Limits(None, None, math.inf)


def square_sums_of(tables: Sequence[Gradients | RowSparse], backend: SquareSums, threads: int) -> list[np.ndarray]:
    """The sums of squares of tables of gradients, block by block, of which `root_of` makes the norm.

    A row that is named several times counts as the sum of its gradients.
    """
    sums = []
    for table in tables:
        if not isinstance(table, RowSparse):
            sums.append(backend.square_sums(table, threads))
            continue
        summed = table.coalesced().values  # of a gradient on a CUDA device, on the CPU
        own = backend if summed.place == table.values.place else host_backend()
        sums += [own.square_sums(dense, threads) for dense in make_gradients([summed], ["grads"])]
    return sums


def root_of(sums: Sequence[np.ndarray]) -> float:
    """The norm, from all sums of squares in any order: the same bits, for their sum is rounded once."""
    with ieee_arithmetic():
        return math.sqrt(sum_of(sums))


def sum_of(sums: Sequence[np.ndarray]) -> float:
    """All sums of squares together, in any order, rounded once."""
    try:
        with ieee_arithmetic():
            return math.fsum(np.concatenate(sums).tolist()) if sums else 0.0
    except OverflowError:
        return math.inf


def norm_of(tables: Sequence[Gradients | RowSparse], backend: SquareSums, threads: int) -> float:
    """The Euclidean norm over tables of gradients: the same bits whatever the number of threads and the backend."""
    return root_of(square_sums_of(tables, backend, threads))


def _norms_of(table: Gradients | RowSparse, backend: SquareSums, threads: int) -> np.ndarray:
    """The norm of each array of a table, with the bits that `norm_of` has."""
    if isinstance(table, RowSparse):
        return np.array([norm_of([table], backend, threads)])
    sums = backend.square_sums(table, threads)
    blocks = -(-np.diff(table.offsets) // NORM_BLOCK)
    counts = np.bincount(table.array_of, blocks, len(table.places)).astype(np.int64)
    ends = np.cumsum(counts)
    norms = np.zeros(len(counts))
    norms[counts == 1] = np.sqrt(sums[ends[counts == 1] - 1])
    for i in np.flatnonzero(counts > 1).tolist():
        norms[i] = root_of([sums[ends[i] - counts[i] : ends[i]]])
    return norms


def _all_finite(tables: Sequence[Gradients | RowSparse], backend: SquareSums, threads: int) -> bool:
    """Return whether all gradients and their squares are finite."""
    dense: list[Gradients] = []
    for table in tables:
        dense += make_gradients([table.values], ["grads"]) if isinstance(table, RowSparse) else [table]
    return all(bool(np.isfinite(backend.square_sums(table, threads)).all()) for table in dense)


class Reading(NamedTuple):
    """What gradients say, read before a step: their scale, factors beside it, their global norm, and whether to skip.

    Attributes
    ----------
    scale : float or DeviceScale
        The scale of all.
    factors : sequence of numpy.ndarray
        Of each table the factors of its arrays, where each has a limit of its own.
    norm : float, DeviceScale or None
        The global norm, where it has a limit.
    skipped : bool or DeviceScale
        True if the step is not to be done.
    """

    scale: float | DeviceScale
    factors: Sequence[np.ndarray] = ()
    norm: float | DeviceScale | None = None
    skipped: bool | DeviceScale = False


class Telling(Protocol):
    """An optimizer that is told what its gradients say."""

    _last_norm: float | DeviceScale | None
    _last_skipped: bool | DeviceScale

    def _settle(self) -> None:
        """Find out whether the last step was skipped."""


class Told:
    """The results of a step beside the update, as an optimizer's attributes.

    What is on a device is fetched when it is looked at. A step that a device skipped is counted until then, or until
    the next one: `_settle` takes that back.
    """

    _last_norm: float | DeviceScale | None = None
    _last_skipped: bool | DeviceScale = False

    @property
    def last_grad_norm(self) -> float | None:
        """The global norm of the gradients at the last step that had a limit for it, before clipping."""
        if self._last_norm is not None and not isinstance(self._last_norm, float):
            return self._last_norm.norm()
        return self._last_norm

    @property
    def last_step_skipped(self) -> bool:
        """True if the last step did nothing, because a gradient was not finite."""
        self._settle()
        return self._last_skipped if isinstance(self._last_skipped, bool) else self._last_skipped.skipped()

    def _settle(self) -> None:
        """Finds out whether the last step was skipped, if it is counted."""
        if not isinstance(self._last_skipped, bool) and self._last_skipped.counted:
            self._last_skipped = self._last_skipped.skipped()


def read(
    tables: Sequence[Gradients | RowSparse],
    backend: SquareSums,
    threads: int,
    scale: float,
    limits: Limits,
    skip_nonfinite: bool,
) -> Reading:
    """Read gradients as limits of norms and `skip_nonfinite` demand."""
    if limits.max_norm is not None:
        norm = norm_of(tables, backend, threads)
        skipped = skip_nonfinite and not math.isfinite(norm)
        scale, norm = clipped(scale, norm, limits.max_norm)
        return Reading(scale, (), norm, skipped)
    if limits.clip_norm is not None:
        with ieee_arithmetic(), np.errstate(all="ignore"):
            norms = [_norms_of(table, backend, threads) for table in tables]
            skipped = skip_nonfinite and not all(bool(np.isfinite(own).all()) for own in norms)
            return Reading(scale, [clip_factors(own * abs(scale), limits.clip_norm) for own in norms], None, skipped)
    return Reading(scale, skipped=skip_nonfinite and not _all_finite(tables, backend, threads))


def clipped(scale: float, norm: float, limit: float) -> tuple[float, float]:
    """Return the scale that clips gradients of a norm, once they are scaled, to a limit; and their norm then."""
    with ieee_arithmetic():
        norm *= abs(scale)
        return scale * _clip_factor(norm, limit), norm


def check_scale(grad_scale: Any, dtype: np.dtype) -> float:
    """`grad_scale` as a float.

    Raises
    ------
    TypeError, ValueError
        It is no finite number, or `dtype`, in which updates are computed, cannot hold it.
    """
    scale = check_number("grad_scale", grad_scale)
    check_held("grad_scale", scale, dtype)
    return scale


def check_limit(name: str, value: Any) -> float:
    """A limit as a float; infinity clips nothing.

    Raises
    ------
    TypeError, ValueError
        It is no number >= 0.
    """
    return math.inf if as_float(value) == math.inf else check_number(name, value, 0)


def _clip_factor(norm: float, limit: float) -> float:
    """Return the factor that brings gradients of a norm to at most `limit`, as torch has it."""
    factor = limit / (norm + NORM_EPS)
    return factor if factor < 1 or math.isnan(factor) else 1.0


def clip_factors(norms: np.ndarray, limit: float) -> np.ndarray:
    """Return the factors that bring gradients of these norms to at most `limit` each, as Keras and optax have them."""
    return np.where(norms <= limit, 1.0, limit / norms)


def global_norm(grads: Any, *, backend: str | None = None, threads: int | None = None) -> float:
    """The Euclidean norm of all gradients taken together, summed in float64.

    Parameters
    ----------
    grads : array or RowSparse, sequence or mapping of them
        float32, float64, bfloat16 or float16; ``None`` entries are skipped.
    backend : str, optional
        ``"native"``, ``"numba"`` or ``"numba-cuda"``; by default chosen as for updates.
    threads : int, optional
        By default `fastopt.get_num_threads`. The result does not depend on it.

    Raises
    ------
    TypeError
        Something is no array, or has another dtype.
    BackendUnavailable
        An array is on a device without a backend.
    """
    limit = settings.get_num_threads() if threads is None else settings.check_threads("threads", threads)
    gradients, names = _gradients(grads)
    return norm_of(tables_of(gradients, names), choose_backend(backend, _place_of(gradients)), limit)


def clip_grad_norm_(grads: Any, max_norm: float, *, backend: str | None = None, threads: int | None = None) -> float:
    """Scales gradients in place so that their global norm is at most `max_norm`, as torch's function of that name.

    ``opt.step(grads, max_norm=...)`` has the same effect without writing the gradients.

    Parameters
    ----------
    grads : array or RowSparse, sequence or mapping of them
        float32, float64, bfloat16 or float16; ``None`` entries are skipped.
    max_norm : float
        At least 0.
    backend, threads : optional
        As `global_norm`.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    TypeError, ValueError
        Something is no array, has another dtype, is read-only or shares memory with another, which would be scaled
        twice; `max_norm` is no number >= 0.
    """
    return clip(grads, max_norm, backend=backend, threads=threads)


def clip(
    grads: Any, max_norm: float, norm: float | None = None, backend: str | None = None, threads: int | None = None
) -> float:
    """Clip as `clip_grad_norm_`; by `norm` where these are some of the gradients only."""
    most = check_limit("max_norm", max_norm)
    gradients, names = _gradients(grads)
    arrays = [grad.values if isinstance(grad, RowSparse) else grad for grad in gradients]
    check_distinct(arrays, names, "scaled in place")
    limit = settings.get_num_threads() if threads is None else settings.check_threads("threads", threads)
    chosen = choose_backend(backend, _place_of(gradients))
    if norm is None:
        norm = norm_of(tables_of(gradients, names), chosen, limit)
    factor = _clip_factor(norm, most)
    if factor != 1:
        for array in arrays:
            chosen.scale(array, factor)
    return norm
