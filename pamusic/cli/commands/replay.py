"""`pamusic replay`: makes a file of `pamusic sample` again, from what it says of how it was made."""

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

MAX_THREADS = 1024  # of those a record may name: no machine has more, and to ask for too many ends the process


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
        raise UsageError(f"{file} was begun from nothing; leave --prime out")
    if request.prime is not None and prime is None and not (request.prime != STREAM and request.prime.is_file()):
        raise PamusicError(f"{file}: was made from {request.prime}, which is not there; say where: --prime")
    request = replace(request, prime=prime or request.prime, checkpoint=checkpoint or request.checkpoint)
    check_weights(record, find_checkpoint(request.checkpoint))
    if isinstance(threads := record.made_on.get("threads"), int) and 0 < threads <= MAX_THREADS:
        torch.set_num_threads(threads)
    check_kind(out, "MIDI", MIDI_SUFFIXES)
    again = SamplingRun(request, replayed=record).sample(request.prime, out, file)
    if again == before:
        log("the same, byte for byte")
    elif has_music_of(again, before):
        log(f"the same music as {file}, and another record of how it was made")
    else:
        log(f"not the same music as {file}")


def _check(file: Path, request: SampleRequest, row: int) -> None:
    """Refuse a record that no file of ours has.

    Raises:
        PamusicError: it has no seed, no end, or not that many pieces.
    """
    has_row = row < request.num_drawn <= MAX_SAMPLES
    has_end = request.length is not None or request.seconds is not None
    if not (has_row and has_end and request.seed is not None and 0 <= request.seed < 2**63):
        raise PamusicError(f"{file}: its record was changed (no seed, no end or no such piece); take the original")
