"""Assemble the application from its commands, and turn errors into messages and exit statuses.

Knows the commands by name; each has a file of its own, and imports what it needs when it runs.

    exit 0    done
    exit 1    a `PamusicError`, or a disk that is full or forbidden: one line, no traceback
    exit 2    wrong usage, by typer or by a `UsageError`: also one line
    exit 130  interrupted from the keyboard;  141  the reader of our output is gone;  143  ended by SIGTERM

Anything else is our bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pamusic import __version__
from pamusic.cli.commands.average import average
from pamusic.cli.commands.benchmark import benchmark
from pamusic.cli.commands.compare import compare
from pamusic.cli.commands.doctor import doctor
from pamusic.cli.commands.evaluate import evaluate
from pamusic.cli.commands.inspect import inspect
from pamusic.cli.commands.originality import originality
from pamusic.cli.commands.page import page
from pamusic.cli.commands.play import play
from pamusic.cli.commands.render import render
from pamusic.cli.commands.replay import replay
from pamusic.cli.commands.runs import runs
from pamusic.cli.commands.sample import sample
from pamusic.cli.commands.tokenize import tokenize
from pamusic.cli.commands.train import train
from pamusic.cli.narrow_help import NarrowHelp, PamusicCommand
from pamusic.cli.renamed import with_new_names
from pamusic.cli.terminal import log, result
from pamusic.errors import PamusicError, is_about_memory
from pamusic.files import DISK_FULL_ERRNOS, ERRNO_ADVICE

# Errors of the user's disk, not of our program, wherever they occur.
ENVIRONMENT_ERRNOS = DISK_FULL_ERRNOS | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}

ClickUsageError: type[Exception] = typer.BadParameter.__mro__[
    1
]  # the parsers' exception: click's, or that in typer's copy of click


class PamusicGroup(NarrowHelp, TyperGroup):
    """A group of commands that reports a user's errors in one line, in a shell and in a test runner alike."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, with_new_names(args or ["--help"]))
        except ClickUsageError as error:
            raise _as_exit(error) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PamusicError as error:
            log(f"pamusic: error: {error}")
            raise typer.Exit(error.exit_code) from None
        except ClickUsageError as error:
            raise _as_exit(error) from None
        except BrokenPipeError:
            _let_go_of_output()
            raise typer.Exit(141) from None
        except OSError as error:
            if error.errno not in ENVIRONMENT_ERRNOS:
                raise
            log(f"pamusic: error: {_named(error)}: {ERRNO_ADVICE[error.errno]}")
            _let_go_of_output()
            raise typer.Exit(1) from None
        except (MemoryError, RuntimeError) as error:
            if not is_about_memory(error):
                raise
            log("pamusic: error: there is not enough memory; use fewer pieces or windows at once, or less context")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            log("pamusic: interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="pamusic",
    cls=PamusicGroup,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        result(f"pamusic {__version__}")
        raise typer.Exit


@app.callback()
def pamusic(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Symbolic piano music with Perceiver AR: tokenize, train, evaluate, sample, render."""


# In the order of a typical workflow.
app.command(cls=PamusicCommand)(inspect)
app.command(cls=PamusicCommand)(tokenize)
app.command(cls=PamusicCommand)(train)
app.command(cls=PamusicCommand)(runs)
app.command(cls=PamusicCommand)(average)
app.command(cls=PamusicCommand)(evaluate)
app.command(cls=PamusicCommand, context_settings={"allow_extra_args": True})(sample)  # refused with an example
app.command(cls=PamusicCommand)(replay)
app.command(cls=PamusicCommand)(render)
app.command(cls=PamusicCommand)(page)
app.command(cls=PamusicCommand)(play)
app.command(cls=PamusicCommand)(originality)
app.command(cls=PamusicCommand)(compare)
app.command(cls=PamusicCommand)(benchmark)
app.command(cls=PamusicCommand)(doctor)


def _as_exit(error: Any) -> typer.Exit:
    """Log what is wrong with a command's words, the value given, and where to look; return the exit."""
    words = " ".join(error.format_message().split()).rstrip(".")
    details: list[Any] = getattr(error.__cause__, "errors", list)()  # from typer versions that validate with pydantic
    got = next((repr(detail["input"]) for detail in details if "input" in detail), "")
    not_so = f", got {got}" if got and got not in words else ""
    log(f"pamusic: error: {words}{not_so}; see {error.ctx.command_path if error.ctx else 'pamusic'} --help")
    return typer.Exit(2)


def _named(error: OSError) -> str:
    """Return the file of an error; without a file it was standard output."""
    return os.fsdecode(error.filename) if error.filename is not None else "standard output"


def _let_go_of_output() -> None:
    """Point standard output at the null device, so that flushing it on the way out does not fail again."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or a test runner's stream without a descriptor
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
