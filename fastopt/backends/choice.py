"""The choice of a backend: by the call, else by the thread or task, else by the arrays."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .. import settings
from ..arrays.array import CPU, Place
from ..errors import BackendUnavailable
from . import Backend, HostBackend

if TYPE_CHECKING:  # each has the members of its interface, with their signatures
    from . import native, numba_cpu
    from .numba_cuda import backend as numba_cuda

    _of_the_cpu: list[HostBackend] = [native, numba_cpu]
    _of_devices: list[Backend] = [numba_cuda]

_MODULES = {"native": "native", "numba": "numba_cpu", "numba-cuda": "numba_cuda.backend"}
_chosen: ContextVar[str | None] = ContextVar("fastopt backend")


@cache
def _import(name: str) -> Any:
    """The backend's module, or the `BackendUnavailable` that says why there is none."""
    try:
        return importlib.import_module(f"fastopt.backends.{_MODULES[name]}")
    except BackendUnavailable as reason:
        return reason


def load_backend(name: str) -> Backend:
    """The backend of that name.

    Raises
    ------
    BackendUnavailable
        It is not available here; the message says why, and what would make it so.
    """
    backend: Backend = _load(name)
    return backend


def _load(name: str) -> Any:
    """The backend's module."""
    found = _import(name)
    if isinstance(found, BackendUnavailable):
        raise BackendUnavailable(f"backend {name}: {found}")
    return found


@cache
def host_backend() -> HostBackend:
    """Return the first backend for arrays on the CPU that is available, whatever was chosen.

    Raises
    ------
    BackendUnavailable
        None is.
    """
    backend: HostBackend = _load("numba" if isinstance(_import("native"), BackendUnavailable) else "native")
    return backend


def backend_of(place: Place) -> Backend:
    """Return the backend for arrays there, whatever was chosen.

    Raises
    ------
    BackendUnavailable
        None is available.
    """
    return load_backend("numba-cuda") if place.kind == "cuda" else host_backend()


@cache
def _default_on_cpu() -> str:
    """Name the default for arrays on the CPU; warn, once, if that is not the C library."""
    reason = _import("native")
    if not isinstance(reason, BackendUnavailable):
        return "native"
    if not isinstance(_import("numba"), BackendUnavailable):
        warnings.warn(
            f"fastopt: updates are done by Numba, which compiles for seconds when first used: {reason}; "
            "FASTOPT_BACKEND=numba chooses it without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
    return "numba"


def ieee_arithmetic() -> AbstractContextManager[None]:
    """Have this thread's arithmetic, Python's and NumPy's too, be IEEE 754's until the block's end.

    It rounds to nearest and keeps subnormal numbers, which others may have set it not to do.
    """
    return host_backend().ieee_arithmetic()


def get_backend() -> str | None:
    """The backend chosen for this thread or task, else by the environment; None where calls choose by their arrays."""
    return _chosen.get(settings.backend)


class use_backend:
    """Chooses the backend for this thread or task, or for a ``with`` block in it.

    Other threads go by ``FASTOPT_BACKEND``, or what they chose themselves; a task of asyncio begins with the choice of
    what created it.

    Parameters
    ----------
    name : str
        ``"native"``, ``"numba"``, ``"numba-cuda"`` or ``"auto"``.

    Raises
    ------
    ValueError
        There is no backend of that name.
    BackendUnavailable
        The backend is not available here.
    """

    def __init__(self, name: str) -> None:
        chosen = settings.check_backend("name", name)
        if chosen is not None:
            load_backend(chosen)
        self._before = get_backend()
        _chosen.set(chosen)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        _chosen.set(self._before)


def choose_backend(name: str | None, place: Place = CPU) -> Backend:
    """The backend that the call asks for, else the thread or task, else the first that is there for such arrays.

    Raises
    ------
    ValueError
        The one asked for is not for arrays there.
    BackendUnavailable
        It is not available, or none is.
    """
    chosen = settings.check_backend("backend", name) or get_backend()
    on_cuda = place.kind == "cuda"
    if chosen is None:
        chosen = "numba-cuda" if on_cuda else _default_on_cpu()
    backend = load_backend(chosen)
    if (chosen == "numba-cuda") != on_cuda:
        expected = "'numba-cuda'" if on_cuda else "'native' or 'numba'"
        raise ValueError(f"backend: found {chosen!r}, expected {expected} for arrays on {place.device}")
    return backend


def available_backends() -> Mapping[str, str]:
    """Every backend with ``"available"``, or the reason why it is not."""
    status = {}
    for name in settings.BACKENDS:
        found = _import(name)
        status[name] = str(found) if isinstance(found, BackendUnavailable) else "available"
    return MappingProxyType(status)
