"""Internal. The command ``fastopt``, and ``python -m fastopt``: next to nothing is loaded before it listens."""

import os
import signal
import sys


def _end(*_: object) -> None:
    os.write(2, b"fastopt: interrupted\n")
    os._exit(130)


def main() -> int:
    """Run the command line in a process that is its own.

    Ctrl-C ends it at once, also before and after what `fastopt.cli.main` does: what libraries that were loaded do when
    a process ends may take a second.
    """
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as by nohup
    if listens:
        signal.signal(signal.SIGINT, _end)
    from fastopt import cli

    try:
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = cli.main()
        if status == 130:
            os._exit(130)
        if listens:
            signal.signal(signal.SIGINT, _end)
    except KeyboardInterrupt:
        _end()
    return status


if __name__ == "__main__":
    sys.exit(main())
