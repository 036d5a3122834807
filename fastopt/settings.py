"""Internal. Settings of the process: the number of threads, and what the environment asks for."""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from contextlib import suppress
from typing import Any

from .checks import check_integer, check_name, describe, wrong_value

#: More than any machine has use for, and few enough to start.
MAX_THREADS = 1024
BACKENDS = ("native", "numba", "numba-cuda")


#: Where Linux says which control groups a process is in, and what they are given.
OWN_GROUPS, GROUPS = "/proc/self/cgroup", "/sys/fs/cgroup"


def _quota_of(folder: str) -> float:
    """The CPUs' worth of time that a control group has: infinite if nobody limits it."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):  # of version 2, and of version 1
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join(_read(f"{folder}/{name}") for name in names).split()
            return int(quota) / int(period) if quota.isdigit() else math.inf
    return math.inf


def _quota() -> float:
    """The CPUs' worth of time that this process has, as in a container. A group has no more than the one around it."""
    least = math.inf
    with suppress(OSError, ValueError):
        for line in _read(OWN_GROUPS).splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                group = f"{GROUPS}/{controllers}".rstrip("/") + path.rstrip("/")
                while len(group) >= len(GROUPS):
                    least = min(least, _quota_of(group))
                    group = group.rpartition("/")[0]
    return least


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def cpus() -> int:
    """The CPUs that this process may run on, no more than its control groups give it time for."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(own, _quota())))


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


def _whole(text: str) -> int | None:
    """A whole number in digits, as the C library reads one; None for anything else."""
    found = re.fullmatch(r"\s*\+?0*([0-9]{1,18})\s*", text)
    return int(found[1]) if found else None


def _environment_threads() -> int:
    """The number of threads that the environment asks for."""
    text = os.environ.get("FASTOPT_NUM_THREADS", "").strip()
    if text:
        number = _whole(text)
        if number is None or not 1 <= number <= MAX_THREADS:
            raise wrong_value("FASTOPT_NUM_THREADS", text, f"an integer >= 1 and <= {MAX_THREADS}")
        return number
    text = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not text:
        return cpus()
    levels = [_whole(level) for level in text.split(",")]  # a number for each level of nested parallel regions
    if all(levels):
        return min(levels[0] or 1, cpus())
    warnings.warn(
        f"OMP_NUM_THREADS: found {describe(text)}, expected whole numbers >= 1, separated by commas; it is ignored",
        RuntimeWarning,
        stacklevel=2,
    )
    return cpus()


def _environment_backend() -> str | None:
    """The backend that the environment asks for."""
    return check_backend("FASTOPT_BACKEND", os.environ.get("FASTOPT_BACKEND") or None)


threads: int
backend: str | None
_settings: Any = sys.modules[__name__]


def __getattr__(name: str) -> Any:
    """`threads` and `backend`, from the environment, where that was wrong at import: this use says so."""
    if name == "threads":
        value: Any = _environment_threads()
    elif name == "backend":
        value = _environment_backend()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    setattr(_settings, name, value)
    return value


for _name in ("threads", "backend"):
    with suppress(ValueError):
        __getattr__(_name)


def get_num_threads() -> int:
    """The number of threads that an update may use.

    By default ``FASTOPT_NUM_THREADS``, else the CPUs that the process may run on, of which ``OMP_NUM_THREADS`` or the
    quota of a control group, as of a container, may allow fewer.

    Raises
    ------
    ValueError
        ``FASTOPT_NUM_THREADS`` is no number of threads.
    """
    return _settings.threads


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
    global threads
    threads = check_threads("n", n)
