"""Convert errors, paths and files at the border of the API. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from pamusic.errors import PamusicError, is_about_memory
from pamusic.files import written_atomically

StrPath = str | PathLike[str]
FLAG = re.compile(r"(?<![\w/-])--([a-z]+(?:-[a-z]+)*)")
COMMAND = re.compile(r"(pamusic [a-z]+ [^;]*)")


@contextmanager
def in_python() -> Iterator[None]:
    """Rename flags in errors to Python's names of options; leave commands and paths unchanged."""
    try:
        yield
    except PamusicError as error:
        parts = COMMAND.split(str(error))
        parts[::2] = [FLAG.sub(lambda flag: flag[1].replace("-", "_"), part) for part in parts[::2]]
        raise type(error)("".join(parts), rule=error.rule) from error.__cause__
    except (MemoryError, RuntimeError) as error:
        if not is_about_memory(error):
            raise
        raise PamusicError("there is not enough memory; use fewer pieces at once, or less context") from error


def as_path(path: StrPath) -> Path:
    """Return a value as a path.

    Raises:
        TypeError: it is neither a string nor a path.
        PamusicError: it is empty, or cannot be the name of a file.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"a path must be a str or a pathlib.Path, got {path!r}")
    if not str(path) or "\0" in str(path):
        raise PamusicError(f"{str(path)!r} cannot be a file name; use another")
    return Path(path)


def write_file(path: StrPath, data: bytes, suffixes: Sequence[str]) -> Path:
    out = as_path(path)
    if out.suffix.lower() not in suffixes:
        raise PamusicError(f"{out}: must end in {suffixes[0]}, got {out.suffix or 'no suffix'}; use another name")
    with written_atomically(out) as file:
        file.write_bytes(data)
    return out
