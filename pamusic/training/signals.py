"""Turn Ctrl-C and SIGTERM into a request that a loop can check. Knows signals; knows no training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests(on_signal: Callable[[bool], None]) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second Ctrl-C interrupts.

    Args:
        on_signal: Called at a signal: with True if the loop is asked to stop, with False if a second Ctrl-C interrupts
            it.

    Yields:
        A function that returns whether a signal has come. Signals reach only the main thread.
    """
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            on_signal(False)
            raise KeyboardInterrupt
        if not requested:
            on_signal(True)
        requested = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: the handler was not set from Python
