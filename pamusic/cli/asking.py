"""Checks how `pamusic sample` was called, before anything is read. Knows options and words."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from pamusic.cli.output import STREAM
from pamusic.cli.primes import is_many
from pamusic.errors import UsageError

DEFAULT_SECONDS = 60.0  # of new music, where no length is asked for
OF_A_PRIME = ("prime_from", "prime_to", "tracks", "one_track", "continuation_only")


def is_one_piece(num: int, best_of: int | None) -> bool:
    """Return whether one piece is drawn; it has a guard by default, unless a port plays it."""
    return (best_of or num) == 1


def completed(
    options: dict[str, Any], primes: Sequence[Path], *, out: Path | None, port: str | None, ahead: float | None
) -> dict[str, Any]:
    """Return the options with lengths in seconds and with the defaults that depend on other options.

    Raises:
        UsageError: an option makes no sense, or two contradict each other.
    """
    num, best_of, keep = (options[name] for name in ("num", "best_of", "keep"))
    one = is_one_piece(num, best_of)
    if ahead is not None and port is None:
        raise UsageError("--ahead requires --port; name the port that plays the music")
    if port is not None and not one:
        raise UsageError(f"--port plays one piece, not {best_of or num}; leave out --num and --best-of")
    if best_of is not None and num != 1:
        raise UsageError("--num keeps all pieces, --best-of some of them; give one of the two")
    if keep is not None and (best_of is None or keep > best_of):
        raise UsageError(f"--keep {keep} is of the pieces that --best-of draws; say --best-of with as many or more")
    if not one and options["temperature"] == 0:
        raise UsageError(
            f"--temperature 0 leaves nothing to chance, so all {best_of or num} pieces would be one; ask for one"
        )
    _check_primes(options, primes, out=out, port=port)
    seconds = _seconds(options)
    return {
        **options,
        "seconds": DEFAULT_SECONDS if seconds is None and options["length"] is None else seconds,
        "guard": one and port is None if options["guard"] is None else options["guard"],
        "seed": secrets.randbelow(2**31) if options["seed"] is None else options["seed"],
    }


def refuse_words(words: Sequence[str]) -> None:
    """Refuse what stands behind the options, such as the files of a shell's pattern.

    Raises:
        UsageError: there are such words.
    """
    if not words:
        return
    more = " …" if len(words) > 2 else ""
    each = " ".join(f"--prime {shlex.quote(word)}" for word in words[:2])
    raise UsageError(
        f"every prime needs a --prime of its own, and {shlex.quote(words[0])} has none; write {each}{more}, or name"
        " their folder: --prime FOLDER"
    )


def _check_primes(options: dict[str, Any], primes: Sequence[Path], *, out: Path | None, port: str | None) -> None:
    if not primes and any(options[name] not in (None, False, "piano") for name in OF_A_PRIME):
        raise UsageError(
            "--prime-from, --prime-to, --tracks, --one-track and --continuation-only are of a prime; give one with "
            "--prime"
        )
    if options["one_track"] and options["continuation_only"]:
        raise UsageError("--one-track is of a file with the prime in it, --continuation-only leaves it out; take one")
    if not is_many(primes):
        return
    given = f"{len(primes)} were given" if len(primes) > 1 else f"{primes[0]} is a folder"
    for option, is_asked in (("--port", port is not None), ("-o -", out == STREAM), ("--prime -", STREAM in primes)):
        if is_asked:
            raise UsageError(f"{option} works with one prime, and {given}; give --prime once, with one file or -")


def _seconds(options: dict[str, Any]) -> float | None:
    seconds, minutes = options["seconds"], options["minutes"]
    if minutes is not None and seconds is not None:
        raise UsageError("--minutes and --seconds both say how long; give one of them")
    for name, asked in (("seconds", seconds), ("minutes", minutes)):
        if asked is not None and not 0 < 60 * asked < inf:
            raise UsageError(f"--{name} is a number above 0, not {asked:g}")
    return seconds if minutes is None else 60 * minutes
