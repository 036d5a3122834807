"""Internal. The end of a process that has failed."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

#: A variable that is set where some processes may end before their time, and others go on.
SURVIVES = "FASTOPT_SURVIVES"
#: What a process writes that has failed where others go on; behind it is its status.
FAILED = "fastopt: a process has ended with status "


def leave(status: int) -> NoReturn:
    """End this process at once, without MPI's own end, for which all ranks would have to be there.

    Where others go on its status is written, and is 0: PRRTE 3 does not tell them of the end of one with another.
    """
    if status and os.environ.get(SURVIVES):
        print(f"{FAILED}{status}", file=sys.stderr)
        status = 0
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)
