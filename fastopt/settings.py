"""What holds for the whole process: the number of threads and the backend."""

from __future__ import annotations

import os

from .checks import check_integer, check_name

#: More than any machine has use for, and few enough to start.
MAX_THREADS = 1024
BACKENDS = ("native", "numba", "numba-cuda")


def _cpus() -> int:
    """The CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(name: str, n: object) -> int:
    """`n` as a number of threads.

    Raises
    ------
    TypeError, ValueError
        `n` is no integer >= 1.
    """
    return check_integer(name, n, 1, MAX_THREADS)


def check_backend(name: str, backend: object) -> str | None:
    """`backend` as one of the backends' names, None for the automatic choice."""
    chosen = "auto" if backend is None else check_name(name, backend, ("auto", *BACKENDS))
    return None if chosen == "auto" else chosen


def _environment_threads() -> int:
    for name in ("FASTOPT_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text:
            if not text.isdigit() or int(text) < 1:
                raise ValueError(f"{name}: found {text!r}, expected an integer >= 1")
            return check_threads(name, int(text)) if name == "FASTOPT_NUM_THREADS" else min(int(text), _cpus())
    return _cpus()


_backend: str | None = check_backend("FASTOPT_BACKEND", os.environ.get("FASTOPT_BACKEND") or None)


def get_num_threads() -> int:
    """The number of threads that an update may use.

    By default ``FASTOPT_NUM_THREADS``, else the CPUs that the process may run on, of which ``OMP_NUM_THREADS`` may
    allow fewer.
    """
    return _threads


def set_num_threads(n: int) -> None:
    """Sets the number of threads that an update may use.

    Parameters
    ----------
    n : int
        At least 1. Small updates use fewer.

    Raises
    ------
    TypeError, ValueError
        `n` is no integer >= 1.
    """
    global _threads
    _threads = check_threads("n", n)


_threads = _environment_threads()


def get_backend() -> str | None:
    """The backend chosen for the process, None where each call chooses by its arrays."""
    return _backend


class use_backend:
    """Chooses the backend for the process, or for a ``with`` block.

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
        global _backend
        chosen = check_backend("name", name)
        if chosen is not None:
            from .dispatch import load_backend

            load_backend(chosen)
        self._before = _backend
        _backend = chosen

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        global _backend
        _backend = self._before
