"""Start the command line. Knows words on a terminal; no music and no mathematics."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from pamusic.cli.interrupting import INTERRUPTED, Interrupts, end_now


def main() -> None:
    """Run `pamusic` with its command-line arguments, and exit."""
    _fill_closed_streams()
    if sys.stderr is None:  # closed (2>&-): discard the messages
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
    except KeyboardInterrupt:  # before a command has begun: the application handles all later ones
        print("pamusic: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _fill_closed_streams() -> None:
    """Point closed descriptors 0 to 2 at the null device, so that no file gets their numbers.

    In Python the closed streams stay None, and code that needs one reports this.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def _hung_up(number: int, frame: object) -> None:
    """Handle a closed window: write nothing more to it, then do the same as for SIGTERM."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        with suppress(OSError):
            if os.isatty(stream):
                os.dup2(nowhere, stream)
    signal.raise_signal(signal.SIGTERM)


def _end(number: int, frame: object) -> None:
    """End by an exception, so that half-written files are removed on the way out."""
    raise SystemExit(128 + number)
