"""Run `pamusic replay`: make a file of `pamusic sample` again from its record. Knows options and words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pamusic.cli.output import STREAM, check_kind
from pamusic.cli.primes import MIDI_SUFFIXES
from pamusic.cli.sampling_run import SamplingRun
from pamusic.cli.terminal import log
from pamusic.compose.request import LEGACY_DEFAULTS, MAX_SAMPLES, SampleRequest
from pamusic.errors import PamusicError, UsageError

MAX_THREADS = 1024  # limit for a record's thread count: no machine has more, and too many threads end the process


def replay(
    file: Annotated[Path, Argument(help="Replay this file of pamusic sample.", show_default=False)],
    out: Annotated[
        Path | None, Option("--out", "-o", help="Write here; - is stdout. (default: beside FILE, under a free name)")
    ] = None,
    prime: Annotated[Path | None, Option(help="Read the prime here; - is stdin. (default: where it was)")] = None,
    checkpoint: Annotated[str | None, Option(help="Use this checkpoint. (default: the recorded one)")] = None,
) -> None:
    """Generate a file again from its record: byte for byte on the same machine and versions."""
    import torch

    from pamusic.checkpoint import find_checkpoint
    from pamusic.compose.provenance import check_weights, has_music_of, read_provenance
    from pamusic.music.midi import file_bytes

    before = file_bytes(file)
    record = read_provenance(before, str(file))
    try:
        request = SampleRequest.from_record(record.options, defaults=LEGACY_DEFAULTS)
    except PamusicError as error:
        raise PamusicError(f"{file}: {error}") from None
    _check(file, request, record.row)
    if prime is not None and request.prime is None:
        raise UsageError(f"{file} was made without a prime; leave out --prime")
    if request.prime is not None and prime is None and not (request.prime != STREAM and request.prime.is_file()):
        raise PamusicError(f"{file}: was made from {request.prime}, which is missing; pass its path with --prime")
    request = replace(request, prime=prime or request.prime, checkpoint=checkpoint or request.checkpoint)
    check_weights(record, find_checkpoint(request.checkpoint))
    if isinstance(threads := record.made_on.get("threads"), int) and 0 < threads <= MAX_THREADS:
        torch.set_num_threads(threads)
    check_kind(out, "MIDI", MIDI_SUFFIXES)
    again = SamplingRun(request, replayed=record).sample(request.prime, out, file)
    if again == before:
        log("the same, byte for byte")
    elif has_music_of(again, before):
        log(f"the same music as {file}, but another record of how it was made")
    else:
        log(f"not the same music as {file}")


def _check(file: Path, request: SampleRequest, row: int) -> None:
    """Raise an error for a record that no file of `pamusic sample` has.

    Raises:
        PamusicError: it has no seed, no end, or too few pieces.
    """
    has_row = row < request.num_drawn <= MAX_SAMPLES
    has_end = request.length is not None or request.seconds is not None
    if not (has_row and has_end and request.seed is not None and 0 <= request.seed < 2**63):
        raise PamusicError(f"{file}: its record was changed (no seed, no end or no such piece); use the original file")
