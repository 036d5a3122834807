"""Internal. Ctrl-C ends a run soon, also where what runs does not listen: a long native call, or an import."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 0.2  # seconds for what runs to end by itself


@contextmanager
def soon(end: Callable[[], None]) -> Iterator[None]:
    """Have another thread call `end`, and then end the process, where the block goes on after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    done = threading.Event()

    def watch() -> None:
        while got := os.read(reading, 1):
            if got[0] == signal.SIGINT and not done.wait(PATIENCE):
                try:
                    end()
                finally:
                    os._exit(130)

    watcher = threading.Thread(target=watch, daemon=True)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to when a signal comes, whatever runs
    watcher.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(before)
        os.close(writing)
        watcher.join()  # which ends the process, if it has begun to
        os.close(reading)
