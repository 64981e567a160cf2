"""The command line. Knows words on a terminal; no music and no mathematics."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from pamusic.cli.interrupting import INTERRUPTED, Interrupts, end_now


def main() -> None:
    """Run `pamusic` with the words it was called with, and exits."""
    _fill_closed_streams()
    if sys.stderr is None:  # closed (2>&-): nobody listens
        sys.stderr = os.fdopen(2, "w", closefd=False)
    try:
        signal.signal(signal.SIGTERM, _end)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, _hung_up)
        can_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in a shell's background
        if can_interrupt:
            signal.signal(signal.SIGINT, Interrupts())
        from pamusic.cli.app import app

        try:
            app(prog_name="pamusic")
        finally:
            if can_interrupt:
                signal.signal(signal.SIGINT, end_now)
    except KeyboardInterrupt:  # before a command has begun: the application itself sees to all later ones
        print("pamusic: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _fill_closed_streams() -> None:
    """Point closed descriptors of standard input, output and error at nothing, so that no file gets their numbers.

    To Python they stay closed: `sys.stdin` and the others are None, and whoever needs one says so.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def _hung_up(number: int, frame: object) -> None:
    """The window was closed: no more words to it, and the rest as for SIGTERM."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        with suppress(OSError):
            if os.isatty(stream):
                os.dup2(nowhere, stream)
    signal.raise_signal(signal.SIGTERM)


def _end(number: int, frame: object) -> None:
    """End by an exception, so that what was half-written is taken away on the way out."""
    raise SystemExit(128 + number)
