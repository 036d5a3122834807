"""Internal. Ctrl-C ends a run soon, also where what runs does not listen: a long native call, or an import."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from .section import Skip

PATIENCE = 0.3  # seconds for what runs to end by itself
_TERMINATION = 0.1  # seconds of them that a command may take to end
_running: set[subprocess.Popen[str]] = set()


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
            if got[0] != signal.SIGINT:
                continue
            for process in list(_running):
                process.terminate()
            if not done.wait(PATIENCE):
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


def output_of(command: Sequence[str], timeout: float | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it prints; where this ends first, the command is told to end, too.

    Raises
    ------
    Skip
        It failed, or did not end within `timeout` seconds.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=env)
    _running.add(process)
    try:
        printed, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Skip(f"did not end within {timeout:.0f} s") from None
    finally:
        process.terminate()  # not killed: `fastopt run` has processes to end
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TERMINATION)
        _running.discard(process)
    if process.returncode:
        raise Skip((errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
    return printed
