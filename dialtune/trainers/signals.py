"""SIGTERM, SIGINT and SIGUSR1 ask the loop to stop after its current update; a second signal stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """`number` is the signal that asked for a stop, or None."""

    def __init__(self) -> None:
        self.number: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that the first signal sets; handlers are put back at the end. Outside the main thread it stays unset."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if flag.number is not None:
            os._exit(128 + number)  # asked twice: the last checkpoint is valid, nothing needs tidying
        flag.number = number

    before = {number: signal.signal(number, handle) for number in WATCHED}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
