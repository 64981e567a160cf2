"""The command line. Knows words on a terminal; no music and no mathematics."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Runs `pamusic` with the words it was called with, and exits."""
    if sys.stderr is None:  # closed (2>&-): nobody listens
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        signal.signal(signal.SIGTERM, _end)
        from pamusic.cli.app import app

        app(prog_name="pamusic")
    except KeyboardInterrupt:  # before a command has begun: the application itself sees to all later ones
        print("pamusic: interrupted", file=sys.stderr)
        sys.exit(130)


def _end(number: int, frame: object) -> None:
    """Ends by an exception, so that what was half-written is taken away on the way out."""
    raise SystemExit(128 + number)
