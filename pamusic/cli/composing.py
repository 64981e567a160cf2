"""Options of `pamusic sample` -> a MIDI file, for the first time or again. Knows words and the order of the work."""

from __future__ import annotations

import time
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from typer import Exit

from pamusic.cli.choosing import chosen
from pamusic.cli.drawing import INTERRUPTED, Hearing, collected
from pamusic.cli.live import live
from pamusic.cli.output import check_kind, outputs
from pamusic.cli.reading import read_with_bytes
from pamusic.cli.terminal import say
from pamusic.errors import PamusicError, UsageError

if TYPE_CHECKING:
    from pamusic.provenance import Provenance


def is_one_piece(num: int, best_of: int | None) -> bool:
    """Whether no more than one is drawn; such a piece has a guard, unless a port hears it."""
    return (best_of or num) == 1


def compose_file(
    out: Path | None,
    default: Path,
    options: dict[str, Any],
    again: Provenance | None = None,
    *,
    port: str | None = None,
    ahead: float = 0.0,
) -> bytes:
    """Composes into a file, or several, each of which tells how it was made; returns the bytes of the last.

    Args:
        out: where it goes, or None.
        default: where it goes then, or under the first free name after it.
        options: of `pamusic sample`, by name.
        again: the record of the file that is to be made again, alone of those it was made with; its names are kept.
        port: where the new music is heard while it is composed, or None.
        ahead: seconds that are composed before they are heard.

    Raises:
        PamusicError: it cannot be composed, or from another prime than before; or the port is none, or was lost.
        typer.Exit: it was interrupted; the file is there.
    """
    from pamusic.checkpoint import find_checkpoint, load_checkpoint, shipped_checkpoints
    from pamusic.composition import compose_many
    from pamusic.device import choose_machine, cost_of
    from pamusic.generation.config import SamplingConfig
    from pamusic.generation.ending import Ending
    from pamusic.generation.guard import Guard
    from pamusic.kernels import kernel_for
    from pamusic.model.precision import resolved
    from pamusic.music.midi import parsed_tracks
    from pamusic.provenance import differences, provenance, sha256
    from pamusic.tokens.continuation import as_midi, streaming
    from pamusic.tokens.prime import Cut, unheard

    o = SimpleNamespace(**options)
    tracks, cut = parsed_tracks(o.tracks), Cut(o.prime_from or 0.0, o.prime_to)
    is_cut = o.prime_from is not None or o.prime_to is not None
    if o.prime is None and (is_cut or o.one_track or o.continuation_only or o.tracks != "piano"):
        raise UsageError(
            "--prime-from, --prime-to, --tracks, --one-track and --continuation-only are of a prime; give one with "
            "--prime"
        )
    check_kind(out, "MIDI", (".mid", ".midi"))
    if o.one_track and o.continuation_only:
        raise UsageError("--one-track is of a file with the prime in it, --continuation-only leaves it out; take one")
    num, ending = o.best_of or o.num, Ending() if o.end else None
    if num > 1 and o.temperature == 0 and again is None:
        raise UsageError(f"--temperature 0 leaves nothing to chance, so all {num} pieces would be one; ask for one")
    rows = range(o.keep or 1 if o.best_of else num) if again is None else [again.row]
    try:
        sampling = SamplingConfig(
            temperature=o.temperature, top_k=o.top_k, top_p=o.top_p, min_p=o.min_p, typical_p=o.typical_p,
            class_temperatures=(o.temperature_time, o.temperature_pitch, o.temperature_velocity), let_go=o.let_go,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    sources = [path for path in (o.prime, default if again else None) if path is not None]
    with outputs(out, default, len(rows), sources=sources, kind="music") as files, live(port, ahead) as ears:
        opening, data, repairs = (None, None, ()) if o.prime is None else read_with_bytes(o.prime, tracks)
        if again and data is not None and sha256(data) != again.prime_sha256:
            raise PamusicError(f"{o.prime}: is not the prime that the file was made from; say where that is: --prime")
        path = find_checkpoint(o.checkpoint)
        who, hearing = load_checkpoint(path, choose_machine(o.device, "fp32", compile=False).device), Hearing(o.seed)
        try:
            kernel = kernel_for(who.model, o.precision, say) if o.compile else None
            precision = resolved(o.precision, who.model.head.weight.device, kernel is not None)
            drawn = compose_many(
                who, opening, cut=cut, seed=o.seed, num=num, length=o.length, seconds=o.seconds, may_end=o.may_end,
                ending=ending, sampling=sampling,
                num_latents=o.num_latents, context_length=o.context_length, refill=o.refill, precision=precision,
                kernel=kernel,
                guard=Guard() if o.guard else None, alarmed=hearing.alarmed, keeping=hearing.keeping,
                stop_after=again.stopped_after if again else None,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None
        say(f"{who.title}, seed {o.seed}")
        if told := cost_of(precision, who.model.head.weight.device):
            say(told)
        if opening is not None and (told := unheard(who.tokenizer, opening, cut)):
            say(told)
        began = time.perf_counter()
        stop_at = o.seconds if ending is None or o.seconds is None else o.seconds * ending.deadline
        decoder = streaming(who.tokenizer, prime=opening, cut=cut, seconds=stop_at)
        got = collected(ears.heard(drawn, decoder), num, o.length, hearing)
        was_lost = ears.quiet()
        took, pieces = time.perf_counter() - began, got.pieces
        if o.best_of and again is None:
            try:
                rows = chosen(
                    who, pieces, len(rows), prime=opening, cut=cut, seconds=stop_at, seed=o.seed,
                    num_latents=o.num_latents, context_length=o.context_length,
                )  # fmt: skip
            except KeyboardInterrupt:
                got = replace(got, interrupted=INTERRUPTED)
                say("interrupted before they were compared; the first are kept")
        if got.interrupted:  # a guard draws one piece after the other: there may be nothing yet of the last ones
            rows = [row for row in rows if pieces[row]]
            for file in files[len(rows) :]:
                file.drop()
            if len(rows) < len(files):
                say(f"of {len(files)} pieces {len(rows)} had begun")
            if not rows:
                raise KeyboardInterrupt
        names = {"checkpoint": o.checkpoint or (path.name if path in shipped_checkpoints() else str(path))}
        if again:
            names = {name: again.options.get(name) for name in ("checkpoint", "prime")}
        was_cut = got.interrupted or was_lost
        options = {**options, **names, "precision": precision, "compile": kernel is not None}
        record = replace(provenance(options, who, data), stopped_after=again.stopped_after if again else None)
        if again and (other := differences(again, record)):
            say(f"the music may differ: {'; '.join(other)}")
        for file, row in zip(files, rows, strict=False):
            of_row = replace(record, row=row, alarms=got.num_alarms[row])
            if was_cut:
                of_row = replace(of_row, stopped_after=got.num_drawn[row])
            midi, is_kept = as_midi(
                who.tokenizer, pieces[row], prime=opening, data=data, repairs=repairs, tracks=tracks, cut=cut,
                seconds=stop_at, one_track=o.one_track, alone=o.continuation_only,
                text=of_row.text(),
            )  # fmt: skip
            file.write(midi)
        if opening is not None and not is_kept and not o.continuation_only:
            say("the prime's file is not plain, so its notes and pedals are written anew, to the millisecond")
    ids = [id for piece in pieces for id in piece]
    seconds = (who.tokenizer.vocabulary.seconds_of_id[piece].sum() for piece in pieces)
    passed = sum(min(each, stop_at or inf) for each in seconds)
    say(f"{len(ids):,} tokens, {passed:.1f} seconds of music, in {took:.1f} seconds:")
    fast = f"{len(ids) / took:.0f} tokens/s, {passed / took:.1f} times real time"
    say(f"{fast}; interrupted" if got.interrupted else fast)
    ears.told("; what was made so far is in the file")
    if got.interrupted:
        raise Exit(got.interrupted)
    return midi
