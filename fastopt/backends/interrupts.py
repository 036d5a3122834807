"""Ctrl-C, held back where Python is between parts of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_back(number: int = signal.SIGINT) -> Iterator[None]:
    """Hold back Ctrl-C, or another signal, until the block is done, so that it is done whole or not at all."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is None:
        yield
        return
    held: list[Any] = []
    before = signal.signal(number, lambda *event: held.append(event))
    try:
        yield
    finally:
        signal.signal(number, before)
        if held:
            signal.raise_signal(number)
