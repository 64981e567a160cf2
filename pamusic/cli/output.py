"""Where a command's result goes: a file, under a name given or free, or standard output. Knows paths and streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pamusic.cli.terminal import result, result_bytes
from pamusic.errors import PamusicError, UsageError
from pamusic.files import Draft, written_anew, written_atomically

STREAM = Path("-")


class Output:
    """Takes the bytes of one file, and tells its name."""

    def __init__(self, draft: Draft | None) -> None:
        self._draft = draft

    def write(self, data: bytes) -> None:
        """Writes all there is."""
        if self._draft is None:
            result_bytes(data)
        else:
            self._draft.file.write_bytes(data)


@contextmanager
def outputs(out: Path | None, default: Path, num: int, *, source: Path | None, kind: str) -> Iterator[list[Output]]:
    """Lends places for some results: that of `output` for one; for more, `out` with a number behind its name each.

    Raises:
        PamusicError: they cannot be written there.
    """
    if num > 1 and out == STREAM:
        raise UsageError(f"standard output takes one file, not {num}; name one with --out, they will be numbered")
    numbered = [
        out.with_stem(f"{out.stem}-{number:0{len(str(num))}}") if out is not None and num > 1 else out
        for number in range(1, num + 1)
    ]
    with ExitStack() as stack:
        yield [stack.enter_context(output(each, default, source=source, kind=kind)) for each in reversed(numbered)][
            ::-1
        ]


@contextmanager
def output(out: Path | None, default: Path, *, source: Path | None, kind: str) -> Iterator[Output]:
    """Lends a place for a result, opened first, so that one cannot be written to is told before the work, not after it.

    When the block ends well, the file is there, whole, and its path is printed.

    Args:
        out: where the user wants it, even over what is there; `-` is standard output.
        default: where it goes otherwise, or under the first free name after it.
        source: a file that must not be overwritten.
        kind: music or sound, for an error.

    Raises:
        PamusicError: it cannot be written there.
    """
    if out == STREAM:
        if sys.stdout.isatty():
            raise PamusicError(f"standard output is a terminal, which shows no {kind}; name a file with --out")
        yield Output(None)
        return
    if out is None:
        with written_anew(default) as draft:
            yield Output(draft)
    else:
        if source is not None:
            check_apart(out, source)
        with written_atomically(out) as file:
            draft = Draft(file, out)
            yield Output(draft)
    result(draft.name)


def check_apart(out: Path, source: Path) -> None:
    """Refuses to write over what is read.

    Raises:
        PamusicError: both are one file.
    """
    if source.exists() and out.exists() and os.path.samefile(out, source):
        raise PamusicError(f"{out}: is {source} itself; name another file with --out")
