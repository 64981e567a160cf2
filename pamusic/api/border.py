"""What crosses into Python and out of it: errors, paths and files of the API. Knows no model."""

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
    """Name options as Python does in errors that speak of flags; leave commands and paths in them as they are."""
    try:
        yield
    except PamusicError as error:
        parts = COMMAND.split(str(error))
        parts[::2] = [FLAG.sub(lambda flag: flag[1].replace("-", "_"), part) for part in parts[::2]]
        raise type(error)("".join(parts), rule=error.rule) from error.__cause__
    except (MemoryError, RuntimeError) as error:
        if not is_about_memory(error):
            raise
        raise PamusicError("there is not enough memory; ask for fewer pieces at once or for less context") from error


def as_path(path: StrPath) -> Path:
    """Return a path that can be one.

    Raises:
        TypeError: it is neither a text nor a path.
        PamusicError: it is empty, or no file can be called so.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"a path is a text or a pathlib.Path, not {path!r}")
    if not str(path) or "\0" in str(path):
        raise PamusicError(f"no file can be called {str(path)!r}; name another")
    return Path(path)


def write_file(path: StrPath, data: bytes, suffixes: Sequence[str]) -> Path:
    out = as_path(path)
    if out.suffix.lower() not in suffixes:
        raise PamusicError(f"{out}: ends in {out.suffix or 'nothing'}, which is not {suffixes[0]}; choose another name")
    with written_atomically(out) as file:
        file.write_bytes(data)
    return out
