"""Neighbours: processes that compute without end while something is measured, as on a machine with others on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# It ends with the process that started it, however that ends.
_BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(1_000_000))\n"


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keeps so many processors busy."""
    busy = [sys.executable, "-S", "-c", _BUSY, str(os.getpid())]
    nothing = subprocess.DEVNULL  # also of errors: Ctrl-C is theirs, too
    processes = [subprocess.Popen(busy, stdin=nothing, stdout=nothing, stderr=nothing) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
