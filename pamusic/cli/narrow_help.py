"""Help on narrow terminals: each option on a line, its text indented below. Knows terminals; no commands.

Rich's table of options has four columns. On a narrow terminal it shortens the names of options, so that a
reader cannot type them.
"""

from __future__ import annotations

from collections.abc import Sequence
from shutil import get_terminal_size
from typing import Any

import typer
from typer.core import TyperCommand

NARROW = 70  # columns below which the table shortens names

_HelpFormatter: type[Any] = typer.Context.formatter_class  # of click, or of typer's copy of it


class _NarrowFormatter(_HelpFormatter):  # type: ignore[misc]
    """Writes definitions with the term on a line of its own."""

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 2, col_spacing: int = 2) -> None:
        super().write_dl(rows, 2, 2)


class NarrowHelp:
    """A mixin for commands of typer: plain help on narrow terminals."""

    rich_markup_mode: Any

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of this command for the width of the terminal."""
        columns = get_terminal_size().columns
        if columns < NARROW:
            self.rich_markup_mode = None
            narrow = _NarrowFormatter(width=columns)
            super().format_help(ctx, narrow)  # type: ignore[misc]
            formatter.write(narrow.getvalue())
        else:
            super().format_help(ctx, formatter)  # type: ignore[misc]


class PamusicCommand(NarrowHelp, TyperCommand):
    """A subcommand."""
