"""Write a command's result to a named file, a free name or standard output. Knows paths and streams."""

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
    """The destination of one file."""

    def __init__(self, draft: Draft | None) -> None:
        self._draft = draft
        self.is_dropped = False

    def write(self, data: bytes) -> None:
        """Write the whole file."""
        if self._draft is None:
            result_bytes(data)
        else:
            self._draft.file.write_bytes(data)

    def drop(self) -> None:
        """Mark this file as not to be written."""
        self.is_dropped = True


class _DroppedError(Exception):
    """Signal that leaves the writing of a file without creating it."""


@contextmanager
def outputs(out: Path | None, default: Path, num: int, *, sources: Sequence[Path], kind: str) -> Iterator[list[Output]]:
    """Yield destinations for `num` results: as in `output` for one; for more, `out` with numbers appended to its name.

    The user did not choose the numbered names, so existing files stay, and the next free names are used.

    Raises:
        PamusicError: they cannot be written there.
    """
    if num > 1 and out == STREAM:
        raise UsageError(f"standard output takes one file, got {num}; pass a name with --out to number them")
    if num > 1 and out is not None and (not out.name or out.is_dir() or (out.exists() and not out.is_file())):
        raise PamusicError(f"{out}: cannot name {num} files; pass a file name with --out to number them")
    places = [(out, default)] * num
    if num > 1 and out is not None:
        places = [(None, out.with_stem(f"{out.stem}-{number:0{len(str(num))}}")) for number in range(1, num + 1)]
    with ExitStack() as stack:
        backwards = [stack.enter_context(output(*place, sources=sources, kind=kind)) for place in places[::-1]]
        yield backwards[::-1]


@contextmanager
def output(out: Path | None, default: Path, *, sources: Sequence[Path], kind: str) -> Iterator[Output]:
    """Yield a destination for a result, opened first, so that an error comes before the work, not after it.

    If the block succeeds, the file is complete, and its path is printed.

    Args:
        out: Path from the user, which may replace an existing file; `-` is standard output.
        default: Path without `out`; if it exists, the next free name is used.
        sources: Files that must not be overwritten.
        kind: Kind of the result (music or sound), for errors.

    Raises:
        PamusicError: it cannot be written there.
    """
    if out == STREAM:
        if sys.stdout is None:
            raise PamusicError("standard output is closed; pass a file with --out")
        if sys.stdout.isatty():
            raise PamusicError(f"standard output is a terminal, which cannot show {kind}; pass a file with --out")
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
    """Raise an error if a path has the suffix of another kind of file, which might be overwritten by mistake.

    Raises:
        PamusicError: the suffix is not one of `suffixes`, and the path is not a pipe, device or folder.
    """
    if out is None or out == STREAM or out.suffix.lower() in suffixes or (out.exists() and not out.is_file()):
        return
    raise PamusicError(f"{out}: only {kind} files are possible here; use a name that ends in {suffixes[0]}")


def check_apart(out: Path, source: Path) -> None:
    """Raise an error if the output would overwrite the input.

    Raises:
        PamusicError: both are the same file.
    """
    if source.exists() and out.exists() and os.path.samefile(out, source):
        raise PamusicError(f"{out}: is also the input; use another file with --out")


def _lent(draft: Draft) -> Iterator[Output]:
    place = Output(draft)
    yield place
    if place.is_dropped:
        raise _DroppedError


def picture(path: Path | None) -> AbstractContextManager[Path | None]:
    """Yield a destination for a figure, or None without a path; opened first, as in `output`.

    Raises:
        UsageError: the suffix is not .png, so the file might be an input of the command.
        PamusicError: the file cannot be written.
    """
    if path is None:
        return nullcontext()
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot must end in .png, got {str(path)!r}")
    return written_atomically(path)
