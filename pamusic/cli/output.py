"""Where a command's result goes: a file, under a name given or free, or standard output. Knows paths and streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from pamusic.cli.terminal import result, result_bytes
from pamusic.errors import PamusicError, UsageError
from pamusic.files import Draft, written_anew, written_atomically

STREAM = Path("-")


class Output:
    """Takes the bytes of one file, and tells its name."""

    def __init__(self, draft: Draft | None) -> None:
        self._draft = draft
        self.is_dropped = False

    def write(self, data: bytes) -> None:
        """Write all there is."""
        if self._draft is None:
            result_bytes(data)
        else:
            self._draft.file.write_bytes(data)

    def drop(self) -> None:
        """Say that there will be no such file."""
        self.is_dropped = True


class _DroppedError(Exception):
    """Takes us out of the place of a file that will not be."""


@contextmanager
def outputs(out: Path | None, default: Path, num: int, *, sources: Sequence[Path], kind: str) -> Iterator[list[Output]]:
    """Lend places for some results: that of `output` for one; for more, `out` with a number behind its name each.

    The user named none of those, so what is there stays, and the first free names after them are taken.

    Raises:
        PamusicError: they cannot be written there.
    """
    if num > 1 and out == STREAM:
        raise UsageError(f"standard output takes one file, not {num}; name one with --out, they will be numbered")
    if num > 1 and out is not None and (not out.name or out.is_dir() or (out.exists() and not out.is_file())):
        raise PamusicError(f"{out}: is no name for {num} files; name one with --out, they will be numbered")
    places = [(out, default)] * num
    if num > 1 and out is not None:
        places = [(None, out.with_stem(f"{out.stem}-{number:0{len(str(num))}}")) for number in range(1, num + 1)]
    with ExitStack() as stack:
        backwards = [stack.enter_context(output(*place, sources=sources, kind=kind)) for place in places[::-1]]
        yield backwards[::-1]


@contextmanager
def output(out: Path | None, default: Path, *, sources: Sequence[Path], kind: str) -> Iterator[Output]:
    """Lend a place for a result, opened first, so that an error comes before the work, not after it.

    When the block ends well, the file is there, whole, and its path is printed.

    Args:
        out: where the user wants it, even over what is there; `-` is standard output.
        default: where it goes otherwise, or under the first free name after it.
        sources: files that must not be overwritten.
        kind: music or sound, for an error.

    Raises:
        PamusicError: it cannot be written there.
    """
    if out == STREAM:
        if sys.stdout is None:
            raise PamusicError("standard output is closed; name a file with --out")
        if sys.stdout.isatty():
            raise PamusicError(f"standard output is a terminal, which shows no {kind}; name a file with --out")
        yield Output(None)
        return
    if out is not None:
        for source in sources:
            check_apart(out, source)
    with suppress(_DroppedError):
        if out is None:
            with written_anew(default) as draft:
                yield from _lent(draft)
        else:
            with written_atomically(out) as file:
                draft = Draft(file, out)
                yield from _lent(draft)
        result(draft.name)


def check_kind(out: Path | None, kind: str, suffixes: Sequence[str]) -> None:
    """Refuse a name that is not that of such a file: what lies there may be dear to somebody.

    Raises:
        PamusicError: it has another suffix, and is no pipe, device or folder.
    """
    if out is None or out == STREAM or out.suffix.lower() in suffixes or (out.exists() and not out.is_file()):
        return
    raise PamusicError(f"{out}: only {kind} files are written here; name one that ends in {suffixes[0]}")


def check_apart(out: Path, source: Path) -> None:
    """Refuse to write over what is read.

    Raises:
        PamusicError: both are one file.
    """
    if source.exists() and out.exists() and os.path.samefile(out, source):
        raise PamusicError(f"{out}: is {source} itself; name another file with --out")


def _lent(draft: Draft) -> Iterator[Output]:
    place = Output(draft)
    yield place
    if place.is_dropped:
        raise _DroppedError


def picture(path: Path | None) -> AbstractContextManager[Path | None]:
    """Lend a place for a picture, or None where none is asked for; opened first, as for `output`.

    Raises:
        UsageError: it is called otherwise than a picture: what lies there may be what the command reads.
        PamusicError: it cannot be written there.
    """
    if path is None:
        return nullcontext()
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot draws a PNG file, and {str(path)!r} is not called so; name one that ends in .png")
    return written_atomically(path)
