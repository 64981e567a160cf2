"""Words on a terminal: results go to standard output, all the rest to standard error.

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

MAX_LISTED = 20  # refusals and the like on a terminal; the rest is counted


def result(line: object) -> None:
    """One line of result, such as a path: what another program may read."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name need not be valid text: it goes out as it came in
        sys.stdout.reconfigure(errors="surrogateescape")
    print(line, file=sys.stdout, flush=True)


def result_bytes(data: bytes) -> None:
    """A whole file as the result: MIDI or WAV bytes."""
    rest = memoryview(data)
    while rest:  # where Python is told not to buffer (PYTHONUNBUFFERED), one write takes what a pipe holds, 64 KiB
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


def log(line: object) -> None:
    """One line for the person at the keyboard."""
    print(one_line(line), file=sys.stderr, flush=True)


@contextmanager
def log_if_slow(words: str, seconds: float = 1.0) -> Iterator[None]:
    """Say what is going on if the block takes longer than so many seconds."""
    timer = Timer(seconds, log, (words,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def load_torch() -> None:
    """Import PyTorch, which takes seconds on some machines, and then say so."""
    with log_if_slow("loading PyTorch"):
        import torch  # noqa: F401


def one_line(text: object) -> str:
    """Without line breaks, and with what no terminal should get (such as an escape in a file's name) spelled out."""
    lines = " ".join(str(text).splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in lines)


def console(*, stderr: bool = True) -> Console:
    """Return a rich console for tables; made anew, so that it writes to what standard error (or output) is now."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def table(rows: list[dict[str, Any]], title: str | None = None) -> None:
    """A table of numbers and words, a row each, with the names of the first as its head."""
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
    """Return what moves a bar: a function of how many are done, and of how many."""

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
    """Return a progress bar, around `items` or to be moved with `update`; silent where nobody watches.

    Watching is a terminal at standard error: a log file or a pipe gets nothing. Numbers that are not
    whole are `scaled`: rounded to three digits.
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
