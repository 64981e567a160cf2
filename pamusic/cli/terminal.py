"""Write to the terminal: results to standard output, everything else to standard error.

Knows streams; knows no command.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from tqdm import tqdm

MAX_LISTED = 20  # lines of a list such as refusals; the rest is counted


def result(line: object) -> None:
    """Print one line of the result, such as a path, for other programs to read."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name need not be valid text: write its bytes unchanged
        sys.stdout.reconfigure(errors="surrogateescape")
    print(line, file=sys.stdout, flush=True)


def result_bytes(data: bytes) -> None:
    """Write a whole file as the result: MIDI or WAV bytes."""
    rest = memoryview(data)
    while rest:  # unbuffered (PYTHONUNBUFFERED), one write takes at most the 64 KiB of a pipe
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


def log(line: object) -> None:
    """Print one line for the user."""
    print(one_line(line), file=sys.stderr, flush=True)


@contextmanager
def log_if_slow(words: str, seconds: float = 1.0) -> Iterator[None]:
    """Log a message if the block takes longer than `seconds`."""
    timer = Timer(seconds, log, (words,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def load_torch() -> None:
    """Import PyTorch, which takes seconds on some machines; log a message if it does."""
    with log_if_slow("loading PyTorch"):
        import torch  # noqa: F401


def one_line(text: object) -> str:
    """Return the text without line breaks, and with unprintable characters (such as terminal escapes) spelled out."""
    lines = " ".join(str(text).splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in lines)


def console(*, stderr: bool = True) -> Console:
    """Return a new rich console for tables, which writes to the current standard error (or output)."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def table(rows: list[dict[str, Any]], title: str | None = None) -> None:
    """Print a table with one row per dictionary; the names of the first row are the head."""
    from rich.table import Table

    if not rows:
        return
    shown = Table(*(name.replace("_", " ") for name in rows[0]), title=title, title_justify="left")
    for column, value in zip(shown.columns, rows[0].values(), strict=True):
        column.justify = "left" if isinstance(value, str) else "right"
    for row in rows:
        shown.add_row(*(value if isinstance(value, str) else f"{value:,}" for value in row.values()))
    console().print(shown)


def progress_callback(bar: tqdm) -> Callable[[int, int], None]:
    """Return a callback (done, total) that moves a progress bar."""

    def move(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)

    return move


def progress(
    items: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    what: str = "",
    unit: str = "it",
    scaled: bool = False,
) -> tqdm:
    """Return a progress bar, around `items` or moved with `update`; silent unless standard error is a terminal.

    Numbers that are not whole are `scaled`: rounded to three digits.
    """
    from tqdm import tqdm

    return tqdm(
        items,
        total=total,
        desc=what or None,
        unit=unit,
        unit_scale=scaled,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    )
