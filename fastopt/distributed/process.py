"""Internal. ``python -m fastopt.distributed.process train.py``: a program as one of several processes.

Where it fails this process ends at once, without waiting for the others, which its launcher ends.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path

from . import raised
from .ending import leave


def main() -> None:
    """Run the program that the arguments name."""
    program = sys.argv[1]
    del sys.argv[0]
    sys.path[0] = str(Path(program).resolve().parent)
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            if not isinstance(end.code, int):
                print(end.code, file=sys.stderr)
            leave(end.code if isinstance(end.code, int) else 1)
    except KeyboardInterrupt:
        leave(130)
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != program:
            trace = trace.tb_next
        raised.tell(error, "".join(traceback.format_exception(type(error), error, trace or error.__traceback__)))
        leave(1)


if __name__ == "__main__":
    main()
