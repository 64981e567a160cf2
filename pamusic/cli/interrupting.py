"""Ctrl-C for a command: the first interrupts it, a second ends it at once. Knows signals; knows no command."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

INTERRUPTED = 130  # the exit status of what Ctrl-C has ended
PATIENCE = 1.0  # seconds that a command has, after a second Ctrl-C, to take away what is half-written


class Interrupts:
    """Handles Ctrl-C: raises `KeyboardInterrupt`, and from the second one on sees to it that the process ends."""

    def __init__(self) -> None:
        self._num = 0

    def __call__(self, number: int, frame: object) -> None:
        self._num += 1
        if self._num > 1:
            end_soon()
        raise KeyboardInterrupt


def end_soon() -> None:
    """Say that the command was interrupted, let nothing else be said, and end the process within `PATIENCE`.

    What is interrupted may be a compiler or other code that is not ours. It may take long to stop, report the
    interruption as an error, or go on.
    """
    with suppress(OSError):
        os.write(2, b"pamusic: interrupted\n")  # not by a stream, which may be amid a line of its own
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
    end = threading.Timer(PATIENCE, os._exit, (INTERRUPTED,))
    end.daemon = True
    end.start()


def end_now(number: int, frame: object) -> None:
    """Handle Ctrl-C when a command is done and has said so: what is left can be cut short."""
    os._exit(INTERRUPTED)
