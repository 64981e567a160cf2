"""The command line. Knows words on a terminal; no music and no mathematics."""

from __future__ import annotations


def main() -> None:
    """Runs `pamusic` with the words it was called with, and exits."""
    from pamusic.cli.app import app

    app(prog_name="pamusic")
