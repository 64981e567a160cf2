"""Handle Ctrl-C: the first interrupts a command, the second ends it at once. Knows signals; knows no command."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

INTERRUPTED = 130  # exit status of a command ended by Ctrl-C
PATIENCE = 1.0  # seconds that a command has after a second Ctrl-C to remove half-written files


class Interrupts:
    """A handler of Ctrl-C that raises `KeyboardInterrupt`, and from the second time on makes the process end."""

    def __init__(self) -> None:
        self._num = 0

    def __call__(self, number: int, frame: object) -> None:
        self._num += 1
        if self._num > 1:
            end_soon()
        raise KeyboardInterrupt


def end_soon() -> None:
    """Print that the command was interrupted, suppress all other output, and end the process within `PATIENCE`.

    The interrupted code may be a compiler or another library. It may take long to stop, report the interruption as an
    error, or ignore it.
    """
    with suppress(OSError):
        os.write(2, b"pamusic: interrupted\n")  # not by a stream, which may be in the middle of a line
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
    end = threading.Timer(PATIENCE, os._exit, (INTERRUPTED,))
    end.daemon = True
    end.start()


def end_now(number: int, frame: object) -> None:
    """Handle Ctrl-C after a command is done and has said so: end at once."""
    os._exit(INTERRUPTED)
