"""Check the call of `pamusic sample` before anything is read. Knows options and words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pamusic.cli.option_values import read_values
from pamusic.cli.output import STREAM
from pamusic.cli.primes import is_many
from pamusic.errors import UsageError

if TYPE_CHECKING:
    from typer import Context

    from pamusic.compose.request import SampleRequest


def request_of(
    context: Context, options: Mapping[str, object], config: Path | None, assignments: Sequence[str]
) -> SampleRequest:
    """Return the request of a command line: given options, then `--set`, then `--config`, then defaults.

    Raises:
        PamusicError: the file cannot be read.
        UsageError: an option is unknown, or its value has the wrong type.
    """
    from pamusic.compose.request import SampleRequest

    given = {name: value for name, value in options.items() if _is_given(context, name)}
    values = read_values(config, assignments)
    if "prime" in values:
        raise UsageError("prime cannot be a setting; pass it with --prime")
    try:
        return SampleRequest.from_options({**values, **given})
    except TypeError as error:
        raise UsageError(f"{error}; see pamusic sample --help") from None


def _is_given(context: Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def check_call(
    request: SampleRequest, primes: Sequence[Path], *, out: Path | None, port: str | None, buffer_seconds: float | None
) -> None:
    """Raise an error for options that contradict each other and are not part of the request.

    Raises:
        UsageError: an option makes no sense, or two contradict each other.
    """
    if buffer_seconds is not None and port is None:
        raise UsageError("--buffer-seconds requires --port; pass the port that plays the music")
    if port is not None and not request.is_one_piece:
        raise UsageError(f"--port plays one piece, got {request.num_drawn}; leave out --num-samples and --best-of")
    is_of_a_prime = request.tracks != "piano" or request.same_track or request.continuation_only
    if not primes and (is_of_a_prime or request.prime_start is not None or request.prime_end is not None):
        raise UsageError(
            "--prime-start, --prime-end, --tracks, --same-track and --continuation-only need a prime; pass one with"
            " --prime"
        )
    if not is_many(primes):
        return
    given = f"{len(primes)} were given" if len(primes) > 1 else f"{primes[0]} is a folder"
    for option, is_asked in (("--port", port is not None), ("-o -", out == STREAM), ("--prime -", STREAM in primes)):
        if is_asked:
            raise UsageError(f"{option} works with one prime, but {given}; use --prime once, with one file or -")


def refuse_words(words: Sequence[str]) -> None:
    """Raise an error for words after the options, such as the files of a shell pattern.

    Raises:
        UsageError: there are such words.
    """
    if not words:
        return
    more = " …" if len(words) > 2 else ""
    each = " ".join(f"--prime {shlex.quote(word)}" for word in words[:2])
    raise UsageError(
        f"every prime needs its own --prime, but {shlex.quote(words[0])} has none; use {each}{more}, or pass"
        " their folder: --prime FOLDER"
    )
