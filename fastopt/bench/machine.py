"""The machine: its caches, its memory, and the ceiling, the fastest way found to read and write arrays."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..backends.choice import available_backends
from .timing import Call, Times

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
AHEAD = (0, 512, 1024)  # how many elements ahead streaming kernels prefetch
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def caches(folder: Path = CACHES) -> dict[str, int]:
    """Bytes of the first processor's caches for data, by level: L1, L2 ...; nothing where the system does not say."""
    found = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction" and (match := re.fullmatch(r"(\d+)([KMG]?)", size)):
            found[f"L{level}"] = int(match[1]) * _UNITS[match[2]]
    return found


def memory() -> int:
    """Bytes of memory that new arrays may have: three quarters of what is free, for others want some too."""
    try:
        with open("/proc/meminfo") as file:
            free = next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = 1 << 33
    return free * 3 // 4


def has_ceiling() -> bool:
    """Tell whether there are streaming kernels: they are the C library's."""
    return available_backends()["native"] == "available"


class Ceiling:
    """Streaming kernels over arrays of their own, for any number of arrays up to `widest`.

    Parameters
    ----------
    nbytes : int
        Bytes of an array.
    widest : int
        The most arrays that will be asked for.
    """

    def __init__(self, nbytes: int, widest: int) -> None:
        self.arrays = [np.ones(max(1, nbytes // 4), np.float32) for _ in range(widest if has_ceiling() else 0)]

    def calls(self, arrays: int, threads: int, measured: int = 0) -> dict[str, Call]:
        """Kernels that read so many arrays, write all but one, and differ in how far ahead they prefetch.

        Others only read as many arrays as are `measured`.
        """
        if not self.arrays:
            return {}
        from ..backends import native  # where there is a ceiling it is there

        calls: dict[str, Call] = {}
        passes = {
            "ceiling": (native.lib.fastopt_stream, arrays),
            "reading": (native.lib.fastopt_stream_reads, measured),
        }
        for name, (stream, count) in passes.items():
            own = [native.ffi.from_buffer("float[]", a) for a in self.arrays[:count]]
            run = partial(self._run, stream, self.arrays[0].size, count, native.ffi.new("float *[]", own))
            calls |= {f"{name} {ahead}": partial(run, ahead, threads) for ahead in AHEAD if count}
        return calls

    def _run(self, stream: Any, *arguments: Any) -> None:
        """A method, so that whoever can call it keeps the arrays."""
        stream(*arguments)


def take_ceiling(times: Times) -> list[float] | None:
    """Take the streaming kernels' times out of `times`, and return those of the fastest, of both passes together."""
    passes = []
    for kind in ("ceiling ", "reading "):
        found = [times.pop(name) for name in list(times) if name.startswith(kind)]
        passes += [min(found, key=median)] if found else []
    return [sum(own) for own in zip(*passes, strict=False)] or None
