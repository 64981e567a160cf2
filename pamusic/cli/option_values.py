"""Read values of options from a TOML file (`--config`) and from words (`--set`). Knows TOML, files and words."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from pamusic.errors import PamusicError, UsageError


def read_values(config: Path | None, assignments: Sequence[str]) -> dict[str, object]:
    """Return values by option name. Assignments override the file, and later assignments override earlier ones.

    Args:
        config: A TOML file with lines such as `top_p = 0.98`, or None.
        assignments: Words such as `top-p=0.98`.

    Raises:
        PamusicError: the file cannot be read.
        UsageError: a word is not an assignment.
    """
    values = {} if config is None else _read_table(config)
    for assignment in assignments:
        name, is_assigned, text = assignment.partition("=")
        if not name or not is_assigned:
            raise UsageError(f"--set must be NAME=VALUE, got {assignment!r}; use for example --set top_p=0.98")
        values[name.strip().replace("-", "_")] = _parse(text.strip())
    return values


def _read_table(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PamusicError(f"{path}: is not a TOML file ({error}); use lines such as: top_p = 0.98") from None


def _parse(text: str) -> object:
    """Return a TOML value, or the text itself if it is not one."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
